#!/usr/bin/env python3
"""
What clients notice of a rollout: real clients under bounded load, behind HAProxy and directly, while nodes are rolled.

    python3 tests/bench/availability.py --name LAB --roll KIND [--rolls N] [--json FILE]

The lab must be up (``./lab/lab --name LAB up``). HAProxy's configuration is the one of docs/operations.md. Prints for
each client what was sent, what failed, what it retried by itself and its longest stall, and for each node how long it
was not ready and how long it refused connections. Exits with 1 when a request failed, or a pinned client stalled longer
than 3 s and what a 429 told it to wait. See tests/bench/README.md for how the clients behave.
"""

import argparse
import copy
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "lab"))

from kclab import network  # noqa: E402
from kclab.binaries import default_cache  # noqa: E402
from kclab.lab import Lab  # noqa: E402
from kclab.shell import LabError, run, say  # noqa: E402

ORCHESTRATION = ("state.orchestrate", "kubernetes_controller.orchestrate.deploy")
PKI = "srv/kubernetes_controller/pki"
OVERLAY = "srv/pillar/overlay.sls"
PORT = 6443
NAMESPACE = "availability"
PINNED_STALL_S = 3
TOLD_S = 5  # what kube-apiserver says in Retry-After with a 429
LEAD_S, TAIL_S = 5, 10
# Requests a second, by kind of client. In all modes together about 60.
RATES = {
    ("http1 keep-alive", "read"): 2.5,
    ("http1 keep-alive", "write"): 1.5,
    ("http1 fresh", "read"): 2.5,
    ("http1 fresh", "write"): 1.5,
    ("http2 keep-alive", "read"): 2.5,
    ("http2 keep-alive", "write"): 1.5,
    ("python kubernetes", "read"): 2.5,
    ("python kubernetes", "write"): 1.5,
    ("kubectl", "both"): 0.5,
    ("watch http1", "watch"): 1,
    ("watch http2", "watch"): 1,
}
WRITER_RATE = 2
MODES = ("balanced", "retry", "pinned")


# -- what is rolled ---------------------------------------------------------------------------------------------------


def deploy(lab, _seconds=None):
    """Roll by the orchestration; return (ok, what failed)."""
    done = lab.salt_run(*ORCHESTRATION, "--out=json", check=False)
    return not done.returncode, failures(done) if done.returncode else ""


def apply(lab, _seconds):
    """Roll by plain Salt on all nodes at once, which leaves the order to the turn; return (ok, what failed)."""
    words = ["--timeout=240", "--out=json", "--static", "controller-*", "state.apply", "kubernetes_controller"]
    done = lab.salt(*words, check=False)  # its exit status is always 0
    answered = [node.name for node in lab.nodes if f'"{node.name}": {{' in done.stdout]
    said = failures(done) if '"result": false' in done.stdout or len(answered) < len(lab.nodes) else ""
    return not said, said


def rotate_encryption(lab, _seconds):
    """Exchange the encryption key; return (ok, what failed)."""
    return orchestrate(lab, "rotate_encryption")


def rotate(name, sls, **pillar):
    """
    Return a function that rotates a CA or the service-account key; it returns (ok, what failed).

    The first call stops when all is signed by the new one, the next goes to the end: whoever trusts the former CA alone
    is served until then, and each roll's clients take their CA and certificate from what signs when the roll begins.
    """

    def run(lab, _seconds):
        under_way = list((lab.master.root / PKI).glob(f"*/{name}.rotation"))
        return orchestrate(lab, sls, **pillar, **({} if under_way else {"until": "sign"}))

    return run


def orchestrate(lab, sls, **pillar):
    words = [ORCHESTRATION[0], f"kubernetes_controller.orchestrate.{sls}", f"pillar={json.dumps(pillar)}", "--out=json"]
    done = lab.salt_run(*words, check=False)
    return not done.returncode, failures(done) if done.returncode else ""


def wait(_lab, seconds):
    """Roll nothing."""
    time.sleep(seconds)
    return True, ""


def failures(done):
    """Return the comments of the states that failed by their own fault, wherever they are in Salt's answer."""

    def walk(value):
        if isinstance(value, dict):
            comment = value.get("comment")
            if value.get("result") is False and isinstance(comment, str) and not comment.startswith(others):
                yield comment
            for inner in value.values():
                yield from walk(inner)

    others = ("One or more requisite", "Run failed on minions")
    start = done.stdout.find("{")
    try:
        found = walk(json.JSONDecoder().raw_decode(done.stdout[start:])[0]) if start >= 0 else ()
        said = " | ".join(dict.fromkeys(found))
    except ValueError:
        said = ""
    return said[:1500] or done.stdout[-800:] + done.stderr[-800:]


@dataclass
class Kind:
    """
    One kind of roll. ``pillar`` makes what is declared for the N-th roll; ``act`` is done under load, just before ``run``,
    which is the roll itself; ``succeeds`` is whether it is to.
    """

    pillar: callable = lambda number: {}
    act: callable = None
    run: callable = deploy
    succeeds: bool = True
    pinned: int | None = None  # the node of the pinned clients; another one each roll where not given


def new_certificates(*names):
    """Return an act that takes certificates of all nodes away, so that the orchestration makes and rolls out new ones."""

    def act(lab):
        for node in lab.nodes:
            for name in names:
                for suffix in ("crt", "key"):
                    (lab.master.root / PKI / "hosts" / node.name / "kubernetes_controller_pki" / f"{name}.{suffix}").unlink()

    return act


def flag(number):
    return {"apiserver": {"settings": {"audit-log-maxage": 40 + number}}}


def etcd_flag(number):
    return {"etcd": {"settings": {"max-txn-ops": 128 + number}}}


def never_ready(number):
    """A generation that starts and serves, but whose /readyz never says ok; another one each time, as failures are remembered."""
    return {
        "apiserver": {"settings": {"etcd-readycheck-timeout": f"{number}ns", "audit-log-maxage": 40 + number}},
        "rollout": {"gate": {"timeout_s": 30}, "rehearsal": {"enabled": False}},  # which would not let it come so far
    }


def other_key(number):
    """Another encryption key; after an even number of rolls it is that of the lab again."""
    providers = [{"secretbox": {"keys": [f"encryption-key{1 + number % 2}"]}}, {"identity": {}}]
    return {"encryption": [{"resources": ["secrets"], "providers": providers}]}


def other_release(number):
    """A minor release back, and up again: every second roll is an upgrade."""
    return {"release": "1.36.3" if number % 2 else "1.37.2", "rollout": {"ignore": ["downgrade"]}}


KINDS = {
    "none": Kind(run=wait),
    "flag": Kind(pillar=flag),
    "etcd": Kind(pillar=etcd_flag),
    "apply": Kind(pillar=flag, run=apply),
    "certificate": Kind(act=new_certificates("apiserver")),
    "client-certificate": Kind(act=new_certificates("apiserver-etcd-client")),
    "upgrade": Kind(pillar=other_release),
    "back": Kind(pillar=never_ready, succeeds=False, pinned=0),
    "rotate-encryption": Kind(pillar=other_key, run=rotate_encryption),
    "rotate-ca": Kind(run=rotate("kubernetes-ca", "rotate_ca", authority="all")),
    "rotate-service-account": Kind(run=rotate("service-account", "rotate_service_account")),
}


# -- the lab's pillar -------------------------------------------------------------------------------------------------


def merged(below, above):
    """Return ``above`` laid over ``below``; dictionaries merge, as in the formula."""
    both = copy.deepcopy(below)
    for key, value in above.items():
        inner = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if inner else value
    return both


class Pillar:
    """The lab's overlay: what was there before, the endpoint of the benchmark, and what a roll declares."""

    def __init__(self, lab):
        self.lab, self.before = lab, yaml.safe_load((lab.master.root / OVERLAY).read_text()) or {}

    def declare(self, declared):
        endpoint = {"endpoint": {"host": network.GATEWAY, "port": PORT}}
        ours = {"kubernetes_controller": merged(endpoint, declared)}
        self.lab.pillar(json.dumps(merged(self.before, ours)))

    def restore(self):
        self.lab.pillar(json.dumps(self.before) if self.before else None)


# -- processes in the lab's network -----------------------------------------------------------------------------------


def inside(lab, words):
    return ["nsenter", f"--net={network.NETNS / lab.netns}", *map(str, words)]


class Helper:
    """A process in the lab's network that says "ready", and after SIGTERM what it has seen; both as lines of JSON."""

    def __init__(self, lab, words):
        self.process = subprocess.Popen(inside(lab, words), stdout=subprocess.PIPE, text=True)

    def wait(self):
        line = self.process.stdout.readline()
        if line.strip() != '"ready"':
            raise LabError(f"{self.process.args[3]} did not get ready: {line or 'it ended'}")

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        said = self.process.stdout.read()
        self.process.wait()
        return json.loads(said)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Balancer:
    """HAProxy with the configuration of docs/operations.md; ``events`` are its words on servers that go up and down."""

    SERVER = re.compile(r"Server \w+/(\S+) is (UP|DOWN)(?:[^.]*reason: ([^.]*?), check)?")

    def __init__(self, lab, scratch, authority):
        text = re.search(r"^```\n# /etc/haproxy/haproxy.cfg\n(.*?)^```$", (ROOT / "docs/operations.md").read_text(), re.M | re.S)
        if not text or "/etc/haproxy/kubernetes-ca.crt" not in text[1]:
            raise LabError("docs/operations.md has no block that begins with # /etc/haproxy/haproxy.cfg and names its ca-file.")
        for node in lab.nodes:
            if f"server {node.name} {node.address}:{PORT}" not in text[1]:
                raise LabError(
                    f"The HAProxy configuration of docs/operations.md has no server {node.name} {node.address}:{PORT}."
                )
        path = scratch / "haproxy.cfg"
        here = text[1].replace("/etc/haproxy/kubernetes-ca.crt", str(authority))
        # As many connections as this machine may open files for, two each; a container may have fewer than HAProxy wants.
        path.write_text(re.sub(r"maxconn \d+", "maxconn 1000", here))
        self.events, self.said = [], []
        self.process = subprocess.Popen(
            inside(lab, ["haproxy", "-db", "-f", path]), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        threading.Thread(target=self.follow, daemon=True).start()

    def follow(self):
        for line in self.process.stderr:
            self.said.append(line.rstrip())
            if found := self.SERVER.search(line):
                self.events.append([round(time.time(), 2), found[1], found[2], (found[3] or "").strip()])

    def check(self):
        if self.process.poll() is not None:
            raise LabError("haproxy ended: " + " | ".join(self.said[-5:]))

    def cpu_s(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.process.kill()
        self.process.wait()


def environment():
    """Return the Python of the clients, installing what they need outside the checkout where it is missing."""
    wanted = HERE / "requirements-availability.txt"
    digest = hashlib.sha256((sys.version + wanted.read_text()).encode()).hexdigest()[:12]
    venv = default_cache() / f"venv-availability-{digest}"
    if not (venv / "complete").exists():
        say(f"installing the clients to {venv}")
        shutil.rmtree(venv, ignore_errors=True)
        venv.parent.mkdir(parents=True, exist_ok=True)
        run([sys.executable, "-m", "venv", venv])
        run([venv / "bin/pip", "install", "-q", "-r", wanted])
        (venv / "complete").touch()
    return venv / "bin/python"


# -- the load ---------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """The balancer, the clients and the probe for one roll."""

    lab: Lab
    python: Path
    scratch: Path
    pinned: str
    helpers: list = field(default_factory=list)

    def start(self):
        urls = [f"https://{node.address}:{PORT}" for node in self.lab.nodes]
        self.keep_credentials()
        self.authority = self.scratch / "kubernetes-ca.crt"
        self.balancer = Balancer(self.lab, self.scratch, self.authority)
        time.sleep(1.5)
        self.balancer.check()
        setting = {
            "ca": str(self.authority), "certificate": str(self.scratch / "admin.crt"), "key": str(self.scratch / "admin.key"),
            "kubectl": next(word for word in self.lab.kubectl_command() if word.endswith("/kubectl")),
            "scratch": str(self.scratch),
            "addresses": {
                "balanced": [f"https://{network.GATEWAY}:{PORT}"], "retry": urls,
                "pinned": [url for node, url in zip(self.lab.nodes, urls, strict=True) if node.name == self.pinned],
            },
        }  # fmt: skip
        apart = ("python kubernetes", "kubectl")
        for number, part in enumerate((lambda kind: kind not in apart, lambda kind: kind in apart)):
            clients = [[kind, mode, does, rate] for mode in MODES for (kind, does), rate in RATES.items() if part(kind)]
            if not number:
                clients.insert(0, ["writer", "balanced", "write", WRITER_RATE])
            path = self.scratch / f"clients-{number}.json"
            path.write_text(json.dumps({**setting, "clients": clients}))
            self.helpers.append(Helper(self.lab, [self.python, HERE / "availability_clients.py", path]))
        pairs = [f"{node.name}={node.address}" for node in self.lab.nodes]
        self.helpers.append(Helper(self.lab, [self.python, HERE / "availability_probe.py", self.authority, *pairs]))
        for helper in self.helpers:
            helper.wait()
        self.balancer_cpu_s, self.begun = self.balancer.cpu_s(), time.time()

    def keep_credentials(self):
        """Copy what clients were given before this roll: it is not theirs to follow what changes on the master."""
        admin = self.lab.master.root / PKI / "admin"
        for name in ("kubernetes-ca.crt", "admin.crt", "admin.key"):
            (self.scratch / name).touch(mode=0o600)
            (self.scratch / name).write_bytes((admin / name).read_bytes())

    def end(self):
        """Return what was seen."""
        wall = time.time() - self.begun
        self.balancer.check()
        balancer_cpu = self.balancer.cpu_s() - self.balancer_cpu_s
        *clients, probe = [helper.end() for helper in self.helpers]
        events = [event for event in self.balancer.events if event[0] >= self.begun]
        nodes = {name: not_serving(states, probe["ended"]) for name, states in probe["states"].items()}
        self.kill()
        return {
            "wall_s": round(wall, 1),
            "clients": [client for part in clients for client in part["clients"]],
            "nodes": nodes,
            "balancer": events,
            "slack_s": slack_s(nodes, events),
            "cpu_s": {
                "clients": [part["cpu_s"] for part in clients], "probe": probe["cpu_s"], "haproxy": round(balancer_cpu, 2),
            },
        }  # fmt: skip

    def kill(self):
        for helper in self.helpers:
            helper.kill()
        if hasattr(self, "balancer"):
            self.balancer.end()


def not_serving(states, ended):
    """Return how long a node was not ready and refused connections, and each such time as [from, to, state]."""
    spans = [[start, end, state] for (start, state), (end, _) in zip(states, [*states[1:], [ended, None]], strict=True)]
    times = [span for span in spans if span[2] != "200"]
    return {
        "not_ready_s": round(sum(end - start for start, end, _ in times), 1),
        "refused_s": round(sum(end - start for start, end, state in times if state == "refused"), 1),
        "times": times,
    }


def slack_s(nodes, events):
    """
    Return the least time between HAProxy's using a node again and the next node's ceasing to be ready, or None.

    Negative: the next one left while HAProxy still did without the former.
    """
    found = []
    for name, node in nodes.items():
        if not node["times"]:
            continue
        ready = node["times"][-1][1]
        used = [moment for moment, server, state, _ in events if server == name and state == "UP" and moment >= ready - 1]
        left = [other["times"][0][0] for other in nodes.values() if other["times"] and other["times"][0][0] > ready - 1]
        if used and left:
            found.append(round(min(left) - used[-1], 1))
    return min(found, default=None)


def objects(lab, make):
    """Make or remove the namespace and the two ConfigMaps that all clients share."""
    # Directly: the endpoint of the kubeconfig is HAProxy's, which runs with the load only.
    direct = [f"--server=https://{lab.nodes[0].address}:{PORT}", "-n", NAMESPACE]
    if not make:
        lab.kubectl(*direct, "delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=60s", check=False)
        return
    lab.kubectl(*direct, "create", "namespace", NAMESPACE)
    for name in ("read-by-all", "clock"):
        lab.kubectl(*direct, "create", "configmap", name, "--from-literal=number=0", "--from-literal=written=0")


# -- one roll after the other -----------------------------------------------------------------------------------------


def measure(lab, pillar, kind, number, python, seconds):
    """Run the load over one roll; return what was seen."""
    pinned = lab.nodes[(number - 1 if kind.pinned is None else kind.pinned) % len(lab.nodes)].name
    objects(lab, make=False)
    objects(lab, make=True)
    with tempfile.TemporaryDirectory(prefix="availability-") as scratch:
        load = Load(lab, python, Path(scratch), pinned)
        try:
            load.start()
            averages = os.getloadavg()[0]
            time.sleep(LEAD_S)
            begun = time.time()
            if kind.act:
                kind.act(lab)
            pillar.declare(kind.pillar(number))
            ok, why = kind.run(lab, seconds)
            ended = time.time()
            time.sleep(TAIL_S)
            seen = load.end()
        finally:
            load.kill()
    objects(lab, make=False)
    return {
        "roll": number, "pinned": pinned, "begun": begun, "ended": ended, "roll_s": round(ended - begun, 1),
        "ok": ok == kind.succeeds, "said": why, "load_average": [round(averages, 1), round(os.getloadavg()[0], 1)], **seen,
    }  # fmt: skip


# -- the report -------------------------------------------------------------------------------------------------------


def summary(rolls):
    """Return one row per client and mode, over all rolls."""
    rows = {}
    for seen in rolls:
        for client in seen["clients"]:
            key = (client["kind"], client["mode"], client["does"])
            row = rows.setdefault(key, {"sent": 0, "failed": 0, "retries": {}, "longest_s": 0.0, "errors": []})
            row["sent"] += client["sent"]
            row["failed"] += client["failed"]
            row["longest_s"] = max(row["longest_s"], client["longest_s"])
            row["errors"] += [[seen["roll"], round(moment - seen["begun"], 1), text] for moment, text in client["errors"]]
            for reason, count in client["retries"].items():
                row["retries"][reason] = row["retries"].get(reason, 0) + count
    return [{"kind": kind, "mode": mode, "does": does, **row} for (kind, mode, does), row in rows.items()]


def show(seen):
    """Print one roll: the nodes."""
    cpu, wall = seen["cpu_s"], seen["wall_s"]
    share = 100 * (sum(cpu["clients"]) + cpu["probe"] + cpu["haproxy"]) / wall
    print(
        f"roll {seen['roll']}: {seen['roll_s']} s, {'as expected' if seen['ok'] else 'NOT as expected'}; pinned to"
        f" {seen['pinned']}; load {seen['load_average'][0]} to {seen['load_average'][1]}; cpu of {wall} s: clients"
        f" {sum(cpu['clients']):.1f} s, probe {cpu['probe']} s, haproxy {cpu['haproxy']} s ({share:.0f} % of one processor)"
    )
    if seen["said"]:
        print(f"  it said: {seen['said']}")
    moved = seen["balancer"]
    for name, node in seen["nodes"].items():
        print(f"  {name}: not ready {node['not_ready_s']:5.1f} s, refused {node['refused_s']:4.1f} s", end="")
        spans = [f"{start - seen['begun']:.1f}-{end - seen['begun']:.1f} {state}" for start, end, state in node["times"]]
        print(f"   [{', '.join(spans)}]" if spans else "")
        turns = [f"{moment - seen['begun']:.1f} {state}" for moment, server, state, _ in moved if server == name]
        if turns:
            print(f"      haproxy: {', '.join(turns)}")
    if seen["slack_s"] is not None:
        print(f"  haproxy used a node again {seen['slack_s']} s before the next one left, at least")
    sys.stdout.flush()


def show_summary(rows):
    print(f"{'client':<18} {'mode':<9} {'does':<6} {'sent':>6} {'failed':>6} {'stall s':>8}  retries by itself")
    for row in rows:
        retries = ", ".join(f"{reason} {count}" for reason, count in sorted(row["retries"].items()))
        print(
            f"{row['kind']:<18} {row['mode']:<9} {row['does']:<6} {row['sent']:>6} {row['failed']:>6}"
            f" {row['longest_s']:>8.2f}  {retries}"
        )
        for roll, moment, text in row["errors"][:6]:
            print(f"    roll {roll}, {moment} s: {text}")


def faults(rolls, rows):
    """Return what a soak must not show."""
    found = [f"roll {seen['roll']} did not end as expected: {seen['said']}" for seen in rolls if not seen["ok"]]
    for row in rows:
        name = f"{row['kind']} {row['mode']} {row['does']}"
        if row["failed"]:
            found.append(f"{name}: {row['failed']} of {row['sent']} failed")
        told = TOLD_S if "429" in row["retries"] else 0
        if row["mode"] == "pinned" and row["longest_s"] > PINNED_STALL_S + told:
            found.append(f"{name}: stalled {row['longest_s']} s, more than {PINNED_STALL_S + told} s")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="lab", help="the lab, default lab; it must be up")
    parser.add_argument("--roll", choices=KINDS, default="flag", help="what is rolled, default flag")
    parser.add_argument("--rolls", type=int, default=1, help="how often, default 1")
    parser.add_argument("--seconds", type=float, default=60, help="length of a roll of kind none, default 60")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write what was seen there too")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what stops the clients
    lab, kind, rolls = Lab(arguments.name), KINDS[arguments.roll], []
    if not lab.nodes:
        raise LabError(f"There is no lab {lab.name}; `./lab/lab --name {lab.name} up` makes it.")
    if not shutil.which("haproxy"):
        raise LabError("haproxy is missing: apt-get install haproxy.")
    python, pillar = environment(), Pillar(lab)
    try:
        pillar.declare({})
        say("the endpoint is declared and rolled out")
        ok, why = deploy(lab)
        if not ok:
            raise LabError(f"The endpoint's roll failed: {why}")
        for number in range(1, arguments.rolls + 1):
            rolls.append(measure(lab, pillar, kind, number, python, arguments.seconds))
            show(rolls[-1])
            write(arguments.json, {"kind": arguments.roll, "rolls": rolls, "summary": summary(rolls)})
    finally:
        pillar.restore()
    rows = summary(rolls)
    show_summary(rows)
    found = faults(rolls, rows)
    say("the lab is as it was before, without the endpoint")
    ok, why = deploy(lab)
    if not ok:
        found.append(f"the roll back to the lab's own pillar failed: {why}")
    write(arguments.json, {"kind": arguments.roll, "rolls": rolls, "summary": rows, "faults": found})
    print("\n".join(found) if found else "no client noticed more than it may")
    return bool(found)


def write(path, results):
    if path:
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as exc:
        sys.exit(f"Error: {exc}")
