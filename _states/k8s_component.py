"""
Run the components of the control plane from generations.

``running`` is the whole story. Each step of it is one function: refuse, compare, prepare, take the turn, promote, take
up, gate, and remember or go back.
"""

import contextlib
import time

from salt.exceptions import CommandExecutionError

CUT_OFF = "an earlier run was cut off"


def running(name, component):
    """
    Ensure that a component runs the generation that the pillar declares, and serves.

    name
        The component, for instance ``kube-scheduler``; also the name of its systemd unit.
    component
        Its row of the configuration's ``components``: references only, no secrets.

    A declared generation that differs from the live one is written beside it, promoted by one rename under the turn,
    and taken up by a reload where the component can and by a restart otherwise. When it does not pass its gate, the
    good one is put back and proven; one that failed by its own fault is not tried again until ``k8s_component.retry``.

    .. code-block:: yaml

        kube-scheduler runs as declared:
          k8s_component.running:
            - name: kube-scheduler
            - component: {{ cfg.components["kube-scheduler"] | json }}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    foreign = __salt__["k8s_component.foreign"](component)
    if foreign:
        return ret | {"result": False, "comment": foreign}
    try:
        changes = _compare(component)
    except CommandExecutionError as exc:
        if __opts__["test"]:
            return ret | {"result": None, "comment": f"Not knowable yet: {exc}"}
        return ret | {"result": False, "comment": f"{name}: {exc}"}
    if not changes:
        return ret | _still_serves(component)
    before = __salt__["k8s_generation.links"](component["home"])["live"]
    try:
        _refuse_failed(component, changes)
        if __opts__["test"]:
            return ret | {"result": None, "changes": changes, "comment": f"{name} would change: {changes['process']}."}
        return ret | _change(component, changes)
    except CommandExecutionError as exc:
        moved = __salt__["k8s_generation.links"](component["home"])["live"] != before
        return ret | {"result": False, "changes": changes if moved else {}, "comment": f"{name}: {exc}"}


def _change(component, changes):
    """Bring the declared generation to the process, under the turn; raise when it does not pass its gate."""
    tell, name = __salt__["k8s_component.tell"], component["name"]
    generation = _prepare(component)
    tell(name, "prepare", f"generation {generation}: {changes['process']}")
    with _turn(component, changes):
        since = _promote(component, generation)
        tell(name, "promote", f"live is {generation}")
        _take_up(component, changes, since)
        answer = _gate(component, changes, since)
        if not answer["ok"]:
            said = _go_back(component, generation, changes, answer)
            tell(name, "go_back", said, result="failed", process=changes["process"])
            raise CommandExecutionError(said)
    _remember(component)
    tell(name, "done", answer["said"], result="new", process=changes["process"], seconds=answer["seconds"])
    return {"changes": changes, "comment": f"{component['name']} serves after {answer['seconds']} s: {answer['said']}"}


def _compare(component):
    """
    Return what has to change, with a key ``process`` that says what happens to the process and why; {} for nothing.

    The good generation is what counts: one that is live but not good was promoted by a run that did not get to its
    end, and is taken up and gated by this one.
    """
    links = __salt__["k8s_generation.links"](component["home"])
    changes = __salt__["k8s_generation.differences"](component)
    process = __salt__["k8s_component.process"](component["name"])
    if changes:
        if links["live"] is None:
            return {**changes, "process": "restart (adopted)" if process["pid"] else "start"}
        asked = __salt__["k8s_generation.action"](component, changes)
        if not process["pid"]:
            return {**changes, "process": f"start ({asked['why']})"}
        if links["live"] != links["good"]:  # what the process runs from is not known
            return {**changes, "process": f"restart ({asked['why']}, and {CUT_OFF})"}
        return {**changes, "process": f"{asked['how']} ({asked['why']})"}
    if links["live"] != links["good"]:
        return {"generation": {"old": links["good"], "new": links["live"]}, "process": f"restart ({CUT_OFF})"}
    if not process["pid"] and process["state"] != "activating":
        return {"process": f"start (unit was {process['state']})"}
    if __salt__["k8s_component.unit_differs"](component):
        return {"unit": "not a copy of live/unit", "process": "restart (unit)"}
    if not process["enabled"]:
        return {"unit": "not enabled", "process": "none (unit)"}
    return {}


def _refuse_failed(component, changes):
    """A generation that failed its gate by its own fault is not tried again by itself."""
    wanted = changes.get("generation", {}).get("new") or ""
    reason = __salt__["k8s_generation.failures"](component["home"]).get(wanted.partition(".")[0])
    if reason:
        raise CommandExecutionError(
            f"generation {wanted} failed before and is not tried again: {reason}. Change the declaration, or say "
            f"`salt {__opts__['id']} k8s_component.retry {component['name']}`. The good generation goes on running."
        )


def _still_serves(component):
    """Answer for a component that is as declared: it must also pass a short gate."""
    answer = __salt__["k8s_health.wait"](component, timeout_s=20, consecutive=1)
    if answer["ok"]:
        return {"comment": f"{component['name']} runs as declared: {answer['said']}"}
    return {"result": False, "comment": f"{component['name']} is as declared but does not serve: {answer['said']}"}


def _prepare(component):
    """Write the declared generation beside the others; nothing that runs reads it yet."""
    return __salt__["k8s_generation.prepare"](component)


@contextlib.contextmanager
def _turn(component, changes):
    """
    Hold the turn while something that serves is interrupted, and only while all neighbours are ready.

    What does not serve needs neither, so a cluster that is down can always be repaired.
    """
    untouched = changes["process"].startswith("none")
    if untouched or not component["neighbours"] or not __salt__["k8s_health.serves"](component):
        yield
        return
    turn = None if "turn" in component["ignore"] else __salt__["k8s_turn.take"](component)
    try:
        if "neighbours" not in component["ignore"]:
            __salt__["k8s_turn.neighbours_ready"](component)
        yield
    finally:
        if turn is not None:
            __salt__["k8s_turn.release"](turn)


def _promote(component, generation):
    """Let ``live`` lead to the generation; return the moment before, which the process that serves must be younger than."""
    home = component["home"]
    since = __salt__["k8s_generation.promoted_at"](home)
    if __salt__["k8s_generation.links"](home)["live"] != generation or since is None:
        since = time.time()
        __salt__["k8s_generation.promote"](home, generation)
    __salt__["k8s_component.install_unit"](component)
    return since


def _take_up(component, changes, since):
    """Make the process use what is live: by touching the files it watches, or by a restart."""
    how = changes["process"].partition(" ")[0]
    if how == "reload":
        __salt__["k8s_generation.touch"](component["home"])
    elif how != "none":
        process = __salt__["k8s_component.process"](component["name"])
        if changes["process"] == f"restart ({CUT_OFF})" and (process["started"] or 0) > since:
            return
        __salt__["k8s_component.restart"](component["name"])


def _gate(component, changes, since):
    """Wait until the component serves as declared, by a process younger than ``since`` where it was restarted."""
    restarted = changes["process"].startswith(("start", "restart"))
    # A first start has nothing to protect: it need not prove that it is steady.
    steady = {"consecutive": 1} if changes["process"] == "start" else {}
    return __salt__["k8s_health.wait"](component, since=since if restarted else None, **steady)


def _go_back(component, generation, changes, answer):
    """Put the good generation back, prove that it serves, and say what was tried, why it failed and what runs now."""
    name, home = component["name"], component["home"]
    good = __salt__["k8s_generation.links"](home)["good"]
    tried = f"generation {generation} ({changes['process']}) did not pass its gate in {answer['seconds']} s: {answer['said']}"
    if good in (None, generation):
        return f"{tried}. There is no other generation to go back to."
    since = time.time()
    __salt__["k8s_generation.promote"](home, good)
    __salt__["k8s_component.install_unit"](component)
    __salt__["k8s_component.restart"](name)
    back = __salt__["k8s_health.wait"](component, since=since)
    if not back["ok"]:
        return f"{tried}. Generation {good} is back, but does not serve either: {back['said']}"
    __salt__["k8s_generation.remember_failure"](home, generation, answer["said"])
    return f"{tried}. Generation {good} is back and serves: {back['said']}"


def _remember(component):
    """Only a passed gate moves ``good``."""
    live = __salt__["k8s_generation.links"](component["home"])["live"]
    __salt__["k8s_generation.promote"](component["home"], live, link="good")
    __salt__["k8s_generation.prune"](component["home"], component["keep_generations"])
