"""
What the master knows of the cluster as a whole.
"""

from salt.exceptions import CommandExecutionError


def known(name, cfg):
    """
    Ensure that the master knows, and hands out, that the cluster exists, its members, and whose data it has.

    name
        The directory of certificates on the master.
    cfg
        The cluster's resolved configuration (dict).

    With that mark no controller ever founds an empty cluster in the place of this one. The controllers are asked; a mark
    that says all is left as it is.

    .. code-block:: yaml

        The master knows that the cluster exists:
          k8s_cluster.known:
            - name: /srv/kubernetes_controller/pki
            - cfg: {{ cfg | json }}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "The cluster exists, and the master knows it."}
    if __salt__["k8s_cluster.settled"](cfg):
        return ret
    if __opts__["test"]:
        return ret | {"result": None, "comment": "The mark of the cluster would be written as its controllers report it."}
    try:
        found = __salt__["k8s_cluster.learned"](cfg)
        written = __salt__["k8s_cluster.write"](cfg["pki"], found)
        if written:
            __salt__["k8s_controllers.forget"](list(cfg["controllers"]))  # or they are told "founding" for as long as it is kept
    except (CommandExecutionError, OSError) as exc:
        return ret | {
            "result": False,
            "comment": f"The mark of the cluster was not written: {exc}.",
        }
    return ret | {"changes": {path: "the cluster exists" for path in written}}
