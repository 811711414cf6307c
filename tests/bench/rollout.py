#!/usr/bin/env python3
"""
The benchmark: the floor (hand-tuned shell, ``floor.py``) and the formula, turn by turn on the same lab.

First the rollout from bare booted nodes, then the run that finds nothing to do. Prints wall time, processor time of
the whole lab, phases, and the ratios formula/floor. It asserts no seconds: only that both end healthy, that the
formula would change nothing of what the floor made, and that its second run changes nothing.

    python3 tests/bench/rollout.py [--runs N] [--name LAB] [--json FILE]

The lab must be booted (``./lab/lab --name LAB boot``); its controllers are made bare again and again.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import floor
from floor import LabError

ORCHESTRATION = ("state.orchestrate", "kubernetes_controller.orchestrate.deploy")
DAY_S = 86400


class Clock:
    """Wall and processor time since it was made; the latter of everything that ran in the lab's cgroups."""

    def __init__(self, lab):
        self.lab, self.load = lab, round(os.getloadavg()[0], 1)
        self.cpu, self.parts, self.moment, self.started = processor_s(lab), services_s(lab), time.time(), time.monotonic()

    def stop(self):
        wall, cpu, parts = time.monotonic() - self.started, processor_s(self.lab) - self.cpu, services_s(self.lab)
        parts = {name: round(seconds - self.parts.get(name, 0), 1) for name, seconds in parts.items()}
        parts = {name: parts[name] for name in sorted(parts, key=parts.get, reverse=True) if parts[name] >= 0.1}
        return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "load": self.load, "cpu_by_service_s": parts}


def services_s(lab):
    """
    Return the processor seconds by service: of all controllers together, and of the salt-master.

    ``init.scope`` is what was run there by nsenter: the floor's scripts, the salt commands.
    """
    found = {}
    for node in [*lab.nodes, lab.master]:
        place = "master" if node is lab.master else "nodes"
        for top in node.cgroup.directories:
            for path in [*top.rglob("*.service/cpu.stat"), *top.rglob("init.scope/cpu.stat")]:
                name = f"{place} {path.parent.name.removesuffix('.service')}"
                found[name] = found.get(name, 0.0) + _cpu_stat_s(path)
    return found


def _cpu_stat_s(path):
    try:
        return int(path.read_text().split()[1]) / 1e6
    except OSError:
        return 0.0


def processor_s(lab):
    """Return the user and system seconds of all nodes, the salt-master's too."""
    total = 0.0
    for node in [*lab.nodes, lab.master]:
        found = [path / "cpu.stat" for path in node.cgroup.directories if (path / "cpu.stat").exists()]
        if found:
            total += _cpu_stat_s(found[0])
        else:  # a kernel without it: what those that still run used, and those that they waited for
            total += sum(map(_process_s, node.cgroup.pids()))
    return total


def _process_s(pid):
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


# -- one run of each --------------------------------------------------------------------------------------------------


def floor_rollout(lab, kit):
    lab.reset()
    floor.prepare(lab, kit)  # the nodes have new pids
    clock = Clock(lab)
    _, phases = floor.run(lab, kit)
    return {**clock.stop(), "phases": phases}


def formula_rollout(lab):
    lab.reset()
    clock = Clock(lab)
    answer = lab.salt_run(*ORCHESTRATION, "--out=json", check=False)
    run = clock.stop()
    if answer.returncode:
        raise LabError(
            f"The orchestration ended with status {answer.returncode}:\n{answer.stdout[-3000:]}{answer.stderr[-2000:]}"
        )
    return {**run, "phases": phases(json.loads(answer.stdout), clock.moment, run["wall_s"])}


def formula_noop(lab):
    clock = Clock(lab)
    answer = lab.salt("--timeout=60", "*", "state.apply", "kubernetes_controller", "--out=json", "--static", check=False)
    run = clock.stop()
    nodes = json.loads(answer.stdout)
    changed = [
        f"{node}: {state.get('__id__')}: {state.get('comment')}"
        for node, states in nodes.items()
        for state in (states.values() if isinstance(states, dict) else [{"comment": str(states)}])
        if state.get("changes") or state.get("result") is not True
    ]
    if changed or answer.returncode or len(nodes) != len(lab.nodes):
        raise LabError("The formula's second run found something:\n" + "\n".join(changed or [answer.stderr]))
    return {**run, "states_s": max(_union(_spans(states)) for states in nodes.values())}


def floor_noop(lab, kit):
    clock = Clock(lab)
    floor.noop(lab, kit)
    return clock.stop()


# -- where the orchestration's time went --------------------------------------------------------------------------------


def phases(answer, moment, wall):
    """
    Return the seconds of each part of an orchestration, in the order in which they happen.

    What nodes do at once counts once, as long as on the slowest; what lies between is Salt's own.
    """
    midnight = datetime.datetime.fromtimestamp(moment).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    steps = next(iter(answer["data"].values()))
    steps = sorted(steps.values(), key=lambda step: step["__run_num__"])
    found, first, last = {}, None, 0.0
    for step in steps:
        start, end = _span(step, moment - midnight)
        first = start if first is None else min(first, start)
        last = max(last, end)
        nodes = step["changes"].get("ret") if isinstance(step["changes"], dict) else None
        nodes = {key: value for key, value in (nodes or {}).items() if _is_states(value)}
        if not nodes:
            found[f"master: {step['__id__']}"] = end - start
            continue
        spans = {node: _spans(states, moment - midnight) for node, states in nodes.items()}
        name = f"{step['__id__']}: "
        found[name + "until the first state of a node (publish, pillar, render)"] = (
            min(s[0] for v in spans.values() for s in v) - start
        )
        for sls in dict.fromkeys(state["__sls__"] for states in nodes.values() for state in _ordered(states)):
            found[f"  {sls.rpartition('.')[2]}"] = max(
                _union(_spans([state for state in _ordered(states) if state["__sls__"] == sls])) for states in nodes.values()
            )
        found["  between states (events, requisites)"] = max(
            max(s[1] for s in v) - min(s[0] for s in v) - _union(v) for v in spans.values()
        )
        found[name + "return after the last state"] = end - max(s[1] for v in spans.values() for s in v)
    head = {"salt-run starts and renders": first}
    tail = {"salt-run ends": wall - last}
    return {name: round(seconds, 2) for name, seconds in {**head, **found, **tail}.items()}


def _is_states(value):
    return isinstance(value, dict) and any("_|-" in key for key in value)


def _ordered(states):
    values = states.values() if isinstance(states, dict) else states
    return sorted((state for state in values if "start_time" in state), key=lambda state: state["__run_num__"])


def _span(state, origin=0.0):
    """Return start and end of a state in seconds since ``origin`` (seconds of the day)."""
    hours, minutes, seconds = state["start_time"].split(":")
    start = (int(hours) * 3600 + int(minutes) * 60 + float(seconds) - origin) % DAY_S
    return start, start + float(state["duration"]) / 1000


def _spans(states, origin=0.0):
    return [_span(state, origin) for state in _ordered(states)]


def _union(spans):
    """Return how long at least one of ``spans`` lasted: states may run in parallel."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return round(total, 3)


# -- output ---------------------------------------------------------------------------------------------------------------


def show(name, run):
    print(f"{name:<22} {run['wall_s']:6.1f} s wall  {run['cpu_s']:6.1f} s cpu  load {run['load']}", flush=True)
    for phase, seconds in run.get("phases", {}).items():
        print(f"    {seconds:6.2f}  {phase}", flush=True)
    print("    cpu: " + ", ".join(f"{service} {seconds}" for service, seconds in run["cpu_by_service_s"].items()), flush=True)


def ratios(pairs):
    """Return formula/floor of each pair and kind of time: least, median, most."""
    answer = {}
    for kind in ("wall_s", "cpu_s"):
        found = [formula[kind] / max(base[kind], 0.001) for base, formula in pairs]
        answer[kind] = {"min": min(found), "median": statistics.median(found), "max": max(found)}
    return {kind: {key: round(value, 2) for key, value in row.items()} for kind, row in answer.items()}


def show_ratios(what, found):
    for kind, row in found.items():
        label = {"wall_s": "wall", "cpu_s": "cpu"}[kind]
        print(f"{what}, {label}, formula/floor: min {row['min']}, median {row['median']}, max {row['max']}", flush=True)


def alternate(what, runs, first, second):
    """Run both ``runs`` times, turn by turn; print and return what they took."""
    pairs = []
    for number in range(1, runs + 1):
        pair = []
        for name, function in (("floor", first), ("formula", second)):
            pair.append(function())
            show(f"{what} {number}, {name}", pair[-1])
        pairs.append(pair)
    found = ratios(pairs)
    show_ratios(what, found)
    return {"floor": [pair[0] for pair in pairs], "formula": [pair[1] for pair in pairs], "ratios": found}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2, help="of each, default 2")
    parser.add_argument("--name", default="lab", help="the lab, default lab; it must be booted")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results there too")
    parser.add_argument("--only", choices=["rollout", "noop"], help="one half; noop needs a lab that is up")
    arguments = parser.parse_args()
    lab, results = floor.Lab(arguments.name), {"processors": os.cpu_count()}
    if not lab.nodes:
        raise LabError(f"There is no lab {lab.name}; `./lab/lab --name {lab.name} boot` makes it.")
    with tempfile.TemporaryDirectory() as scratch:
        kit = floor.prepare(lab, scratch)
        if arguments.only != "noop":
            lab.salt_run("saltutil.sync_all")  # a master has the modules from its first rollout on; a node is bare
            checked = []

            def checked_floor():
                run = floor_rollout(lab, kit)
                if not checked:
                    checked.append(True)
                    found = floor.differences(lab)
                    if found:
                        raise LabError("The floor did not do the formula's work:\n" + "\n".join(found))
                    print("the formula would change nothing of what the floor made", flush=True)
                return run

            results["rollout"] = alternate("rollout", arguments.runs, checked_floor, lambda: formula_rollout(lab))
        if arguments.only != "rollout":
            floor.prepare(lab, kit)
            floor.manifest(lab, kit)
            results["noop"] = alternate("no-op", arguments.runs, lambda: floor_noop(lab, kit), lambda: formula_noop(lab))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as exc:
        sys.exit(f"Error: {exc}")
