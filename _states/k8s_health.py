"""
The gate as a state, for orchestration and for anyone's own SLS.
"""

from salt.exceptions import CommandExecutionError


def ready(name, components, timeout_s=75):
    """
    Ensure that the components of this node serve; nothing is changed either way.

    name
        A sentence.
    components
        The configuration's ``components`` (dict of rows).
    timeout_s
        How long to wait for each, in seconds (default 75: what lost its API server asks it again after at most 60 s; in
        test mode each is asked once).

    The members of a managed etcd must be those that the pillar declares, vote, and hold the same data; the servers of an
    external one must be of one cluster.

    .. code-block:: yaml

        This controller is healthy:
          k8s_health.ready:
            - components: {{ cfg.components | json }}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    patience = 0 if __opts__["test"] else timeout_s
    try:
        answers = {key: __salt__["k8s_health.wait"](row, timeout_s=patience, consecutive=1) for key, row in components.items()}
        faults = __salt__["k8s_health.members"](components, patience)
    except CommandExecutionError as exc:
        return ret | {"result": None if __opts__["test"] else False, "comment": str(exc)}
    lines = [f"{'ok    ' if answer['ok'] else 'NOT OK'} {key}  {answer['said']}" for key, answer in answers.items()]
    lines += [f"NOT OK {fault}" for fault in faults]
    good = not faults and all(answer["ok"] for answer in answers.values())
    return ret | {"result": good or (None if __opts__["test"] else False), "comment": "\n".join(lines)}
