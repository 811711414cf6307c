"""
Rehearse what a node has prepared, before any of it is promoted.
"""

from salt.exceptions import CommandExecutionError


def passed(name, components):
    """
    Ensure that the declared generations of this node passed their rehearsal together; what runs is not touched.

    name
        A sentence.
    components
        The configuration's ``components`` (dict of rows).

    What differs from what is live is prepared and started for seconds on a stage of its own: a network namespace with
    the node's addresses and no way out, on a copy of the real data. Where nothing of the node is live yet there is
    nothing to protect, and nothing is rehearsed.

    .. code-block:: yaml

        This node's generations passed their rehearsal:
          k8s_rehearsal.passed:
            - components: {{ cfg.components | json }}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        due = __salt__["k8s_rehearsal.due"](components)
        if not due:
            if not __opts__["test"]:
                __salt__["k8s_stage.sweep"]()
            return ret | {"comment": "Nothing is to be rehearsed."}
        if __opts__["test"]:
            return ret | {"result": None, "comment": f"{', '.join(due)} would be rehearsed."}
        answer = __salt__["k8s_rehearsal.perform"](components, list(due))
    except (CommandExecutionError, OSError) as exc:
        if __opts__["test"] and getattr(exc, "to_come", False):
            return ret | {"result": None, "comment": f"Not knowable yet: {exc}"}
        return ret | {"result": False, "comment": f"The rehearsal failed: {__salt__['k8s_rehearsal.way_out'](exc)}"}
    return ret | {"comment": f"{answer['said']}, in {answer['seconds']} s."}
