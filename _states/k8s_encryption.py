"""
What is stored is encrypted as the live configuration says.
"""

from salt.exceptions import CommandExecutionError


def rewritten(name, api):
    """
    Ensure that every stored object of the encrypted resources is under the key that the API server writes with.

    name
        A sentence.
    api
        The row of kube-apiserver in the configuration's ``components``.

    What is under another key is read and put back; then etcd itself is asked whether anything is left.

    .. code-block:: yaml

        Every stored object is under the present key:
          k8s_encryption.rewritten:
            - api: {{ cfg.components["kube-apiserver"] | json }}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        left = __salt__["k8s_encryption.left"](api)
        if not left:
            return ret | {"comment": "etcd holds no object under another key."}
        changes = {resource: f"{number} written anew" for resource, number in left.items()}
        if __opts__["test"]:
            return ret | {"result": None, "changes": changes, "comment": "Objects would be written anew."}
        __salt__["k8s_encryption.rewrite"](api)
        left = __salt__["k8s_encryption.left"](api)
    except (CommandExecutionError, OSError) as exc:
        return ret | {"result": False, "comment": str(exc)}
    if left:
        said = ", ".join(f"{number} {resource}" for resource, number in left.items())
        return ret | {"result": False, "changes": changes, "comment": f"etcd still holds objects under another key: {said}."}
    return ret | {"changes": changes, "comment": "Objects were written anew; etcd holds none under another key."}
