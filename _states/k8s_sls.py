"""
Apply an SLS from within a run, so that it renders with modules that this very run brought to the node.
"""

HANDED_ON = ("kubernetes_controller", "scheduled", "force", "authority", "until")


def applied(name, mods=None):
    """
    Ensure that an SLS is applied; a failure inside is a failure of this state.

    name
        The SLS, or a sentence where ``mods`` is given.
    mods
        SLS to apply (list of str, default the name).

    The pillar of this run is handed on, one-run values included. In an orchestration, what is applied belongs to it: its
    states tell the master's bus of themselves like all others, and what stops the orchestration stops them.

    .. code-block:: yaml

        The control plane is applied with the modules that were just synced:
          k8s_sls.applied:
            - name: kubernetes_controller
    """
    mods = mods or [name]
    pillar = {key: value for key, value in __pillar__.items() if key in HANDED_ON}
    pillar["kubernetes_controller_synced"] = True  # a second round would be endless
    within = {"orchestration_jid": _orchestration(), "__pub_jid": _orchestration()} if _orchestration() else {}
    answer = __salt__["state.sls"](mods, concurrent=True, test=__opts__["test"], pillar=pillar, **within)
    if not isinstance(answer, dict):
        return {"name": name, "result": False, "changes": {}, "comment": "\n".join(map(str, answer))}
    states = sorted(answer.values(), key=lambda state: state.get("__run_num__", 0))
    failed = [state for state in states if state["result"] is False]
    changes = {state.get("__id__", state["name"]): _short(state["changes"]) for state in states if state["changes"]}
    lines = [f"{state.get('__id__', state['name'])}: {state['comment']}" for state in failed]
    lines += [line for state in failed for line in _inside(state)]
    pending = any(state["result"] is None for state in states)
    return {
        "name": name,
        "result": False if failed else (None if pending else True),
        "changes": changes,
        "comment": "\n".join(lines) or f"{', '.join(mods)}: {len(states)} states, {len(changes)} with changes.",
    }


def _orchestration():
    """Return the job id of the orchestration of which this is a state, or None."""
    return globals().get("__orchestration_jid__")


def _short(changes):
    """Return of a step of an orchestration which states changed on which minion: all that they say is too long to read."""
    answers = changes.get("ret") if isinstance(changes, dict) else None
    if not isinstance(answers, dict):
        return changes
    return {
        minion: [one.get("__id__", key) for key, one in states.items() if isinstance(one, dict) and one.get("changes")]
        if isinstance(states, dict)
        else states
        for minion, states in answers.items()
    }


def _inside(state):
    """Return a line for each state that failed on a minion, of a step of an orchestration."""
    answers = state["changes"].get("ret") if isinstance(state["changes"], dict) else None
    return [
        f"{minion}: {one['comment']}"
        for minion, states in (answers.items() if isinstance(answers, dict) else ())
        for one in (states.values() if isinstance(states, dict) else ())
        if isinstance(one, dict) and one.get("result") is False and not str(one["comment"]).startswith("One or more requisite")
    ]
