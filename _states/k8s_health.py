"""
The gate as a state, for orchestration and for anyone's own SLS.
"""

from salt.exceptions import CommandExecutionError


def ready(name, components, timeout_s=75, mended_before=False):
    """
    Ensure that the components of this node serve; nothing is changed either way.

    name
        A sentence.
    components
        The configuration's ``components`` (dict of rows).
    timeout_s
        How long to wait for each, in seconds (default 75: what lost its API server asks it again after at most 60 s; in
        test mode each is asked once).
    mended_before
        True: earlier steps of the same run start again what does not serve. Then a test run cannot know whether it would
        serve by now, and answers None instead of False (default False).

    The members of a managed etcd must be those that the pillar declares, vote, and hold the same data; the servers of an
    external one must be of one cluster. What is not in order there and does not pass by itself, no step mends.

    .. code-block:: yaml

        This controller is healthy:
          k8s_health.ready:
            - components: {{ cfg.components | json }}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    patience = 0 if __opts__["test"] else timeout_s
    unwell = None if __opts__["test"] and mended_before else False
    try:
        answers = {key: __salt__["k8s_health.wait"](row, timeout_s=patience, consecutive=1) for key, row in components.items()}
        faults = __salt__["k8s_health.members"](components, patience)
    except CommandExecutionError as exc:
        return ret | {"result": unwell, "comment": str(exc)}
    lines = [f"{'ok    ' if answer['ok'] else 'NOT OK'} {key}  {answer['said']}" for key, answer in answers.items()]
    lines += [f"NOT OK {fault}" for fault in faults["lasting"] + faults["passing"]]
    good = not any(faults.values()) and all(answer["ok"] for answer in answers.values())
    return ret | {"result": good or (False if faults["lasting"] else unwell), "comment": "\n".join(lines)}
