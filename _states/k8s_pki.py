"""
The certificates of a cluster, on the master.
"""

from salt.exceptions import CommandExecutionError


def managed(name, pki, force=False, exists="", dropped=False, mark=None):
    """
    Ensure that the CAs, keys and certificates of a cluster exist as declared, and that each minion has its share, no more.

    name
        The directory on the master.
    pki
        The key ``pki`` of the cluster's resolved configuration.
    force
        Renew every leaf certificate now, each with a new key (default False: those that are due).
    exists
        What shows that the cluster is there already, in words that go on after "but", for instance ``kube-apiserver is
        live on controller-1`` (default: nothing does). Then a directory without any CA or key is an error: it was lost.
    dropped
        Encryption keys that the pillar does not name are in use nowhere, so shares lose them (default False).
    mark
        What is handed out of whether the cluster exists (dict, see ``k8s_cluster.seen``; default: what was handed out stays).

    .. code-block:: yaml

        The certificates of the cluster are as declared:
          k8s_pki.managed:
            - name: /srv/kubernetes_controller/pki
            - pki: {{ cfg.pki | json }}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        act = __salt__["k8s_pki.differences" if __opts__["test"] else "k8s_pki.make"]
        found = act(pki, force=force, exists=exists, dropped=dropped, mark=mark)
        stands = "".join(f" {said}" for said in __salt__["k8s_rotation.status"](name).values())
        if __opts__["test"]:
            __context__.setdefault("k8s_pki_to_come", set()).update(found)  # for k8s_controllers.delivered
    except (CommandExecutionError, OSError) as exc:
        return ret | {"result": False, "comment": str(exc)}
    except ValueError as exc:  # what cryptography says of names, dates and addresses
        return ret | {
            "result": False,
            "comment": f"{name}: not to be made as kubernetes_controller:pki declares: {exc}. Correct it.",
        }
    if not found:
        return ret | {"comment": f"{name} is as declared.{stands}"}
    gone = [path for path, why in found.items() if why.endswith("removed")]
    changes = {path: {"old": why, "new": "removed" if path in gone else "as declared"} for path, why in found.items()}
    verb = "would be" if __opts__["test"] else "were"
    back = [path for path, why in found.items() if why.endswith("taken back")]
    counts = ((len(found) - len(gone) - len(back), "made"), (len(back), "taken back"), (len(gone), "removed"))
    said = ", ".join(f"{count} files {verb} {done}" for count, done in counts if count)
    return ret | {"result": None if __opts__["test"] else True, "changes": changes, "comment": f"{said}.{stands}"}


def rotated(name, pki, authorities, step):
    """
    Ensure that the rotation of CAs, or of the service-account key, stands at ``step`` or beyond it.

    name
        The directory on the master.
    pki
        The key ``pki`` of the cluster's resolved configuration.
    authorities
        Names of CAs, or ``service-account`` (list).
    step
        ``trust``, ``sign``, ``drop``, or ``end`` when the last one is rolled out.

    Only the master's files change; a rollout after each step brings it to the controllers. What is replaced is kept.

    .. code-block:: yaml

        The next kubernetes CA stands beside the present one:
          k8s_pki.rotated:
            - name: /srv/kubernetes_controller/pki
            - pki: {{ cfg.pki | json }}
            - authorities: [kubernetes]
            - step: trust
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        act = __salt__["k8s_rotation.differences" if __opts__["test"] else "k8s_rotation.advance"]
        changes = act(pki, authorities, step)
        under_way = __salt__["k8s_rotation.status"](name)
    except (CommandExecutionError, OSError) as exc:
        return ret | {"result": False, "comment": str(exc)}
    except ValueError as exc:  # what cryptography says of names, dates and addresses
        return ret | {
            "result": False,
            "comment": f"{name}: not to be made as kubernetes_controller:pki declares: {exc}. Correct it.",
        }
    if not changes:
        stands = " ".join(under_way.get(one, "") for one in authorities).strip()
        return ret | {"comment": stands or "No rotation is under way."}
    said = " ".join(__salt__["k8s_rotation.said"](one, step) for one in changes)
    said += " A rollout to every controller would follow." if __opts__["test"] and step != "end" else ""
    return ret | {
        "result": None if __opts__["test"] else True,
        "changes": changes,
        "comment": f"Would be next: {said}" if __opts__["test"] else said,
    }
