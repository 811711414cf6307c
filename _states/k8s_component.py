"""
Run the components of the control plane from generations.

``running`` is the whole story. What is refused and what differs is found out first; then each step is one function, in
this order: prepare, rehearse, snapshot, join, turn, promote, take_up, gate, remember or go_back, settle. Each tells the master
its name as it begins, so the same names are in the output of a rollout, in the tests and in the docs.
"""

import contextlib
import time

from salt.exceptions import CommandExecutionError

CATCH_UP_S = 75  # what lost its API server asks it again after at most 60 s (client-go), and has to read what it missed

SILENCE_S = 15  # longer than an election of etcd, and enough for two answers that hang (k8s_health.TIMEOUT_S) and a third

CUT_OFF = "an earlier run was cut off"
REPLACED = "binary was replaced"
ADOPTION = "restart (adopted)"


def running(name, component):
    """
    Ensure that a component runs the generation that the pillar declares, and serves.

    name
        The component, for instance ``kube-scheduler``; also the name of its systemd unit.
    component
        Its row of the configuration's ``components``: references only, no secrets.

    A declared generation that differs from the live one is written beside it, rehearsed where it has not passed yet,
    promoted by one rename under the turn, and taken up by a reload where the component can and by a restart otherwise.
    When it does not pass its gate, the good one is put back and proven; one that failed by its own fault is not tried
    again until ``k8s_component.retry``. Where the pillar says ``rollout:mode: manual`` nothing is promoted.

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
    owners, fault = _own(component)
    if fault:
        return ret | {"result": False, "comment": f"{name}: {fault}"}
    answer = ret | _run(component, owners)
    if owners and answer["result"] and __opts__["test"]:
        answer["result"] = None
    return answer | {"changes": {**owners, **answer["changes"]}}


def _own(component):
    """
    What is live gets the owners and modes that it has to have, whatever else is declared or refused; nothing restarts for it.

    Returns them for ``changes``, and what kept it from it. They go over with a promotion, so one that was cut off, whose
    process may still be the former account's, is brought to its end first.
    """
    links = __salt__["k8s_generation.links"](component["home"])
    if links["live"] != links["good"]:
        return {}, ""
    try:
        astray = __salt__["k8s_owners.wrong"](component)
        if astray and not __opts__["test"]:
            __salt__["k8s_owners.belong"](component)
    except (CommandExecutionError, OSError) as exc:
        return {}, str(exc)
    return ({"owners": astray} if astray else {}), ""


def _run(component, owners):
    """Compare, refuse, change; return what of a state's answer is known then."""
    name = component["name"]
    try:
        changes = _compare(component)
    except (CommandExecutionError, OSError) as exc:
        if __opts__["test"] and getattr(exc, "to_come", False):
            return {"result": None, "comment": f"Not knowable yet: {exc}"}
        return {"result": False, "comment": f"{name}: {exc}"}
    if not changes and not owners:
        return _still_serves(component)
    changes = changes or {"process": "none (owners)"}
    before = __salt__["k8s_generation.links"](component["home"])["live"]
    try:
        _refuse(component, changes)
        if __opts__["test"] and _is_the_operators(component, changes):
            return _leave_it_to_the_operator(component, changes, "would be")
        if __opts__["test"]:
            return {"result": None, "changes": changes, "comment": f"{name} would change: {changes['process']}."}
        return _change(component, changes)
    except (CommandExecutionError, OSError) as exc:
        moved = __salt__["k8s_generation.links"](component["home"])["live"] != before
        return {"result": False, "changes": changes if moved else {}, "comment": f"{name}: {exc}"}


def _change(component, changes):
    """Bring the declared generation to the process, under the turn; raise when it does not pass its gate."""
    before = _facts(component)
    generation = _prepare(component, changes)
    _rehearse(component, generation)
    if _is_the_operators(component, changes):
        return _leave_it_to_the_operator(component, changes, "is")
    _snapshot(component, changes)
    with _join(component, generation), _turn(component, changes, generation) as turn:
        answer = _exchange(component, changes, generation)
        if not answer["ok"]:
            raise CommandExecutionError(_go_back(component, generation, changes, answer, before, turn))
        _remember(component)
        _settle(component, changes, turn)
    _report(component, changes, answer, before, "new serving", answer["said"])
    return {"changes": changes, "comment": f"{component['name']} serves after {answer['seconds']} s: {answer['said']}"}


def _exchange(component, changes, generation):
    """Let the process run from the generation, and return what the gate says; an error on the way is no pass either."""
    try:
        since = _promote(component, generation)
        _take_up(component, changes, since)
        return _gate(component, changes, since)
    except Exception as exc:  # noqa: BLE001 (whatever it is, what did not pass its gate must not stay)
        if __salt__["k8s_generation.links"](component["home"])["live"] != generation:
            raise  # as before, and so is what runs
        return {"ok": False, "said": str(exc), "seconds": 0, "away_s": 0, "blameless": True}


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
            return {**changes, "process": ADOPTION if process["pid"] else "start"}
        asked = __salt__["k8s_generation.action"](component, changes)
        if not process["pid"]:
            return {**changes, "process": f"start ({asked['why']})"}
        if links["live"] != links["good"]:  # what the process runs from is not known
            return {**changes, "process": f"restart ({asked['why']}, and {CUT_OFF})"}
        if asked["how"] == "reload" and __salt__["k8s_component.replaced"](component, process["pid"]):
            return {**changes, "process": f"restart ({asked['why']}, and {REPLACED})"}
        return {**changes, "process": f"{asked['how']} ({asked['why']})"}
    if links["live"] != links["good"]:
        return {"generation": {"old": links["good"], "new": links["live"]}, "process": f"restart ({CUT_OFF})"}
    if not process["pid"] and process["state"] != "activating":
        return {"process": f"start (unit was {process['state']})"}
    if __salt__["k8s_component.unit_differs"](component):
        return {"unit": "not a copy of live/unit", "process": "restart (unit)"}
    if __salt__["k8s_component.replaced"](component, process["pid"]):
        return {"binary": "not what the process was started from", "process": f"restart ({REPLACED})"}
    if not process["enabled"]:
        return {"unit": "not enabled", "process": "none (unit)"}
    if __salt__["k8s_component.unit_exposed"](component):
        return {"unit": "readable by others", "process": "none (unit)"}
    if __salt__["k8s_component.of_another_account"](process):
        return {"account": "not the one that the process has", "process": "restart (account)"}
    return {}


def _refuse(component, changes):
    """A generation that failed its gate by its own fault is not tried again by itself; none is newer than its API server."""
    # In test mode the API server, which comes first in a whole run, is still the old one.
    newer = "release" in changes and not __opts__["test"] and __salt__["k8s_skew.newer_than_api"](component)
    if newer:
        raise CommandExecutionError(newer)
    wanted = changes.get("generation", {}).get("new") or ""
    reason = __salt__["k8s_generation.failures"](component["home"]).get(wanted.partition(".")[0])
    if reason:
        runs = "" if __opts__["test"] else _revive(component)
        raise CommandExecutionError(
            f"generation {wanted} failed before and is not tried again: {reason}. Change the declaration, or say "
            f"`salt {__opts__['id']} k8s_component.retry {component['name']}`. {runs or 'The good generation goes on running.'}"
        )


def _revive(component):
    """Start the good generation where nothing runs, and say so (str); what is declared is not for this run."""
    process, links = __salt__["k8s_component.process"](component["name"]), __salt__["k8s_generation.links"](component["home"])
    good = links["good"] or links["live"]
    if process["pid"] or process["state"] == "activating" or not good:
        return ""
    start = {"process": f"start (unit was {process['state']})"}
    since = _promote(component, good)
    _take_up(component, start, since)
    answer = _gate(component, start, since)
    return f"Nothing ran: generation {good} was started and {'serves' if answer['ok'] else 'does not serve'}: {answer['said']}"


def _still_serves(component):
    """Answer for a component that is as declared: it must also pass a short gate. A test run asks once."""
    patience = 0 if __opts__["test"] else CATCH_UP_S
    answer = __salt__["k8s_health.wait"](component, timeout_s=patience, consecutive=1)
    if answer["ok"]:
        if not __opts__["test"]:
            __salt__["k8s_identity.learn"](component)
        if component["name"] == "kube-apiserver" and not __opts__["test"]:
            _publish()
        return {"comment": f"{component['name']} runs as declared: {answer['said']}"}
    said = f"{component['name']} is as declared but does not serve: {answer['said']}"
    if __opts__["test"] and _waits(component):
        return {"result": None, "comment": f"{said}. What it needs does not serve either, and would be looked after first."}
    return {"result": False, "comment": said}


def _waits(component):
    """Tell whether a component that does not serve lacks what this run, were it none for a test, would have mended before."""
    try:
        if component["name"] == "etcd":
            return any(map(__salt__["k8s_etcdctl.closed"], __salt__["k8s_etcdctl.neighbours"](component)))
        if component["name"] == "kube-apiserver":
            servers = __salt__["k8s_etcdctl.health"](component) if component["etcd_managed"] else {}
            return not all(server["ok"] for server in servers.values())
        return bool(component["api"]) and __salt__["k8s_health.api"](component["api"], "/readyz")["status"] != 200
    except Exception:  # noqa: BLE001 (whatever it is, what it needs does not answer)
        return True


def _begin(component, step, said=""):
    """Tell the master at once that a step begins; the return of a run comes only at its end."""
    __salt__["k8s_component.tell"](component["name"], step, said)


def _facts(component):
    links = __salt__["k8s_generation.links"](component["home"])
    return {"generation": links["live"], "release": __salt__["k8s_generation.release"](component["home"])}


def _report(component, changes, answer, before, result, said):
    """Tell the master how it ended: what from, what to, how long, and how long without serving."""
    facts = {"result": result, "process": changes["process"], "from": before, "to": _facts(component)}
    facts |= {"seconds": answer["seconds"], "away_s": answer["away_s"]}
    __salt__["k8s_component.tell"](component["name"], "done" if result == "new serving" else "failed", said, **facts)


def _prepare(component, changes):
    """Write the declared generation beside the others; nothing that runs reads it yet."""
    _begin(component, "prepare", changes["process"])
    return __salt__["k8s_generation.prepare"](component)


def _rehearse(component, generation):
    """What did not pass its rehearsal yet does so now, with the other components as they are live, or is not promoted."""
    if not __salt__["k8s_rehearsal.needed"](component, generation):
        return
    _begin(component, "rehearse", generation)
    try:
        __salt__["k8s_rehearsal.alone"](component)
    except CommandExecutionError as exc:
        raise CommandExecutionError(f"the rehearsal failed: {__salt__['k8s_rehearsal.way_out'](exc)}") from exc


def _is_the_operators(component, changes):
    """
    Tell whether only the operator promotes this. A start of what is live is not, nor the end of a run that was cut off,
    as long as it leads to what was released: the generation that is live, or the good one.
    """
    links = __salt__["k8s_generation.links"](component["home"])
    if component["mode"] != "manual" or not links["live"] or "generation" not in changes:
        return False
    released = {name.partition(".")[0] for name in links.values() if name}
    return CUT_OFF not in changes["process"] or changes["generation"]["new"].partition(".")[0] not in released


def _leave_it_to_the_operator(component, changes, verb):
    """Answer for a generation that is ready, where the pillar says that only the operator promotes."""
    once = 'pillar=\'{"kubernetes_controller": {"rollout": {"mode": "automatic"}}}\''
    generation = changes.get("generation", {}).get("new", "as live")
    said = (
        f"{component['name']}: generation {generation} {verb} prepared and rehearsed, but not promoted, as rollout:mode is "
        f"manual ({changes['process']}). Promote it with `salt-run k8s_rollout.deploy`, or on this node alone with {once}."
    )
    started = "" if __opts__["test"] else _revive(component)
    if started:
        said = f"{said} {started}"
        return {"comment": said, "warnings": [said], "changes": {"process": "start"}, "result": "does not serve" not in started}
    return {"comment": said, "warnings": [said]}


def _snapshot(component, changes):
    """Keep a verified copy of etcd's data from before another release writes to it."""
    if "release" in changes and changes["release"]["old"] and component["name"] in ("etcd", "kube-apiserver"):
        _begin(component, "snapshot", f"of etcd, before {component['name']} {component['release']}")
        __salt__["k8s_snapshot.keep"](component, f"{component['name']}-{component['release']}")


@contextlib.contextmanager
def _join(component, generation):
    """
    Let a member of etcd without data join the cluster, or found it with all others; raise if it must not start at all.

    It may for as long as this change takes, whatever its end is.
    """
    if component["name"] != "etcd":
        yield
        return
    try:
        how = __salt__["k8s_etcd_members.allow_first_start"](component, f"{component['home']}/generations/{generation}")
        if how != "data":
            _begin(component, "join", {"join": "the members that are there", "found": "all controllers found the cluster"}[how])
        yield
    finally:
        __salt__["k8s_etcd_members.forbid_first_start"]()


@contextlib.contextmanager
def _turn(component, changes, generation):
    """
    Hold the turn while something that serves is interrupted, and only while all neighbours are ready.

    What does not serve needs neither, so a cluster that is down can always be repaired. Gives None then, and else what
    holds the turn (``handle``; None where the operator said to ignore it). What is adopted is asked, and the others are,
    with the identity of the generation that is to replace it.
    """
    staged = f"{component['home']}/generations/{generation}" if changes["process"] == ADOPTION else None
    alone = not component["neighbours"] and component["name"] != "etcd"  # etcd may have members that the pillar does not name
    if changes["process"].startswith("none") or alone or not _serves(component, staged):
        yield None
        return
    if not component["neighbours"]:
        if "neighbours" not in component["ignore"]:
            __salt__["k8s_turn.neighbours_ready"](component, staged)
        yield None
        return
    _begin(component, "turn")
    turn = None if "turn" in component["ignore"] else __salt__["k8s_turn.take"](component, staged)
    try:
        if "neighbours" not in component["ignore"]:
            __salt__["k8s_turn.neighbours_ready"](component, staged)
        if turn is not None and not __salt__["k8s_turn.held"](turn):
            first = __salt__["k8s_etcdctl.must_answer"]()
            raise CommandExecutionError(
                f"the turn was lost while waiting (is this node cut off from etcd?); nothing was touched. {first}"
            )
        yield {"handle": turn}
    finally:
        if turn is not None:
            __salt__["k8s_turn.release"](turn)


def _serves(component, staged):
    """Tell whether there is something to protect: one that runs and is silent for a moment is asked again."""
    if staged:
        return __salt__["k8s_health.foreign_serves"](component, staged)
    return __salt__["k8s_health.serves"](component, patience_s=SILENCE_S)


def _promote(component, generation):
    """
    Let ``live`` lead to the generation, with what its account owns; return the moment before, which the process that serves
    must be younger than.
    """
    _begin(component, "promote", generation)
    home = component["home"]
    since = __salt__["k8s_generation.promoted_at"](home)
    if __salt__["k8s_generation.links"](home)["live"] != generation or since is None:
        since = time.monotonic()
        __salt__["k8s_generation.promote"](home, generation)
    if __salt__["k8s_component.unit_differs"](component):  # whatever runs was started by another one
        since = time.monotonic()
    __salt__["k8s_component.install_unit"](component)
    __salt__["k8s_owners.belong"](component)
    return since


def _take_up(component, changes, since):
    """Make the process use what is live: by touching the files it watches, or by a restart."""
    _begin(component, "take_up", changes["process"])
    how = changes["process"].partition(" ")[0]
    if how == "reload":
        __salt__["k8s_generation.touch"](component["home"])
    elif how != "none":
        process = __salt__["k8s_component.process"](component["name"])
        if changes["process"] == f"restart ({CUT_OFF})" and (process["started"] or 0) > since:
            return
        if how == "restart" and component["name"] == "etcd":
            __salt__["k8s_etcdctl.hand_over"](component)
        __salt__["k8s_component.restart"](component["name"])


def _gate(component, changes, since):
    """Wait until the component serves as declared, by a process younger than ``since`` where it was restarted."""
    _begin(component, "gate")
    restarted = changes["process"].startswith(("start", "restart"))
    # A first start has nothing to protect: it need not prove that it is steady.
    steady = {"consecutive": 1} if changes["process"] == "start" else {}
    answer = __salt__["k8s_health.wait"](component, since=since if restarted else None, **steady)
    other = __salt__["k8s_identity.differs"](component) if answer["ok"] and restarted else None
    return {**answer, "ok": False, "said": other} if other else answer


def _go_back(component, generation, changes, answer, before, turn):
    """Put the good generation back, prove that it serves, and say what was tried, why it failed and what runs now."""
    home = component["home"]
    _begin(component, "go_back", answer["said"])
    good = __salt__["k8s_generation.links"](home)["good"]
    tried = f"generation {generation} ({changes['process']}) did not pass its gate in {answer['seconds']} s: {answer['said']}"
    if good in (None, generation):
        return f"{tried}. There is no other generation to go back to."
    since = None if changes["process"].startswith("reload") else time.monotonic()
    try:
        _put_back(component, good, since)
    except (CommandExecutionError, OSError) as exc:
        said = f"{tried}. Generation {good} could not be put back: {exc}. As soon as that is mended, the same run does it"
        _report(component, changes, answer, before, "not serving", said)
        return said
    back = __salt__["k8s_health.wait"](component, since=since)
    if not back["ok"]:
        said = f"{tried}. Generation {good} is back, but does not serve either: {back['said']}"
        _report(component, changes, back, before, "not serving", said)
        return said
    said = f"{tried}. Generation {good} is back and serves: {back['said']}"
    if answer.get("blameless"):
        said += ". It was not the generation's own fault, so the next run tries it again"
    elif turn and turn["handle"] and not __salt__["k8s_turn.held"](turn["handle"]):
        said += ". The turn was lost meanwhile (was this node cut off from etcd?), so the next run tries the generation again"
    else:
        try:
            __salt__["k8s_generation.remember_failure"](home, generation, answer["said"])
        except OSError as exc:
            said += f". The next run tries the failed one again, as its failure could not be written down: {exc}"
    _settle(component, changes, turn)
    _report(component, changes, {**back, "away_s": answer["away_s"] + back["away_s"]}, before, "old serving", said)
    return said


def _put_back(component, good, since):
    """Let the process run from the good generation; without ``since`` it has only to read its files again."""
    __salt__["k8s_generation.promote"](component["home"], good)
    __salt__["k8s_component.install_unit"](component)
    try:
        __salt__["k8s_owners.belong"](component)
    finally:  # it may serve without what could not be given back
        if since is None:
            __salt__["k8s_generation.touch"](component["home"])
        else:
            if component["name"] == "etcd":
                __salt__["k8s_etcdctl.hand_over"](component)
            __salt__["k8s_component.restart"](component["name"])


def _remember(component):
    """Only a passed gate moves ``good``."""
    _begin(component, "remember")
    live = __salt__["k8s_generation.links"](component["home"])["live"]
    __salt__["k8s_generation.promote"](component["home"], live, link="good")
    __salt__["k8s_generation.prune"](component["home"], component["keep_generations"])
    __salt__["k8s_identity.remember"](component)
    _publish()


def _publish():
    """Tell the other controllers what this one accepts now. Where etcd does not take it, the next run repeats it."""
    with contextlib.suppress(CommandExecutionError, OSError):
        __salt__["k8s_preflight.publish"](__salt__["k8s_config.load"]().get("components"))


def _settle(component, changes, turn):
    """Keep the turn until load balancers, which ask at intervals, use a restarted API server again."""
    if turn and component["name"] == "kube-apiserver" and changes["process"].startswith(("start", "restart")):
        _begin(component, "settle", f"{component['turn']['settle_s']} s")
        time.sleep(component["turn"]["settle_s"])
