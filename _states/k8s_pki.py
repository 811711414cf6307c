"""
The certificates of a cluster, on the master.
"""

from salt.exceptions import CommandExecutionError


def managed(name, pki, force=False):
    """
    Ensure that the CAs, keys and certificates of a cluster exist as declared, and that each minion has its share.

    name
        The directory on the master.
    pki
        The key ``pki`` of the cluster's resolved configuration.
    force
        Renew every leaf certificate now, with its key as it is (default False: those that are due).

    .. code-block:: yaml

        The certificates of the cluster are as declared:
          k8s_pki.managed:
            - name: /srv/kubernetes_controller/pki
            - pki: {{ cfg.pki | json }}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        found = __salt__["k8s_pki.differences" if __opts__["test"] else "k8s_pki.make"](pki, force=force)
    except (CommandExecutionError, OSError) as exc:
        return ret | {"result": False, "comment": str(exc)}
    if not found:
        return ret | {"comment": f"{name} is as declared."}
    changes = {path: {"old": why, "new": "as declared"} for path, why in found.items()}
    verb = "would be made" if __opts__["test"] else "were made"
    return ret | {"result": None if __opts__["test"] else True, "changes": changes, "comment": f"{len(found)} files {verb}."}
