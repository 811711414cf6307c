"""
Objects that the cluster needs from its installer.
"""

from salt.exceptions import CommandExecutionError


def applied(name, api, document):
    """
    Ensure that the cluster has ``document``, through this node's own API server.

    name
        A sentence.
    api
        The row of kube-apiserver in the configuration's ``components``.
    document
        The object (dict); fields that it does not name are left alone.

    .. code-block:: yaml

        API servers may call kubelets:
          k8s_object.applied:
            - api: {{ cfg.components["kube-apiserver"] | json }}
            - document: {apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, …}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    what = f"{document.get('kind')} {document.get('metadata', {}).get('name')}"
    try:
        changes = __salt__["k8s_object.differences"](api, document)
        if not changes:
            return ret | {"comment": f"{what} is as declared."}
        ret["changes"] = changes
        if __opts__["test"]:
            return ret | {"result": None, "comment": f"{what} would be applied."}
        __salt__["k8s_object.apply"](api, document)
    except (CommandExecutionError, OSError) as exc:
        why = _not_knowable(exc) if __opts__["test"] else ""
        if why:
            return ret | {"result": None, "comment": f"{what}: not knowable while {why} ({exc})."}
        return ret | {"result": False, "changes": {}, "comment": f"{what}: {exc}"}
    return ret | {"comment": f"{what} was applied."}


def _not_knowable(exc):
    """Return why an error says nothing yet: an earlier step of this run, were it none for a test, would meet it first; or ""."""
    if isinstance(exc, OSError):
        return "no API server answers here"
    row = __salt__["k8s_config.load"]().get("components", {}).get("kube-apiserver")
    try:
        return "the API server is to change" if row and __salt__["k8s_generation.differences"](row) else ""
    except (CommandExecutionError, OSError):
        return "the API server is to change"
