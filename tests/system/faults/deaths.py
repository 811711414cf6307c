"""
Faults in the middle of a run: somebody dies, or the network does, at a moment that is named.

The moments are read from the code: the steps of ``k8s_component.running``, and what a rehearsal calls in its order. Each
function is what an operator lives through, up to the correct run afterwards, whose Outcome it returns.
"""

import contextlib
import re
import time

from .inject import AT, HAPPENED, ROOT, deploy, here, in_background, ready
from .judge import COMPONENTS, Outcome, etcdctl

HOOKED = ("k8s_component", "k8s_stage", "k8s_scene", "k8s_snapshot")
# Appended to copies of modules on the lab's master, never a part of the formula: what happens at a named moment.
HOOK = """

import functools as _functools
import os as _os
import signal as _signal
import time as _time
import types as _types


def _moment(name):
    try:
        with open("/var/tmp/fault-at", encoding="ascii") as handle:
            how, wanted = handle.read().split()
        if wanted != name:
            return
        _os.rename("/var/tmp/fault-at", "/var/tmp/fault-happened")
    except (OSError, ValueError):
        return
    if how == "wait":
        _time.sleep(100)
    if how != "die":
        return
    minions = []
    for pid in filter(str.isdigit, _os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as handle:
                if b"salt-minion" in handle.read():
                    minions.append(int(pid))
        except OSError:
            pass
    for pid in [*(pid for pid in minions if pid != _os.getpid()), _os.getpid()]:
        try:
            _os.kill(pid, _signal.SIGKILL)
        except OSError:
            pass


def _hooked(module, name, function):
    @_functools.wraps(function)
    def call(*args, **kwargs):
        _moment(f"{module}.{name}" if name != "tell" else args[1])
        return function(*args, **kwargs)

    return call


for _hook, _function in list(globals().items()):
    if isinstance(_function, _types.FunctionType) and _function.__module__ == __name__ and not _hook.startswith("_"):
        globals()[_hook] = _hooked(__name__.rpartition(".")[2], _hook, _function)
"""


def steps():
    """Return the names of the steps of ``k8s_component.running``, in the order of its code."""
    return list(dict.fromkeys(re.findall(r'_begin\(component, "(\w+)"', (ROOT / "_states/k8s_component.py").read_text())))


def stage_steps():
    """Return the functions that a rehearsal calls, in the order of its code."""
    text = (ROOT / "_modules/k8s_rehearsal.py").read_text()
    return list(dict.fromkeys(re.findall(r'"(k8s_(?:stage|scene|snapshot)\.\w+)"', text)))


@contextlib.contextmanager
def hooked(world):
    """The node has modules that look for a named moment, until the end of all tests of this kind."""
    if not hasattr(world.lasting, "hooks"):
        world.lasting.hooks = world.lasting.enter_context(hooks(world))
    try:
        yield
    finally:
        for path in (AT, HAPPENED):
            (world.node.root / path).unlink(missing_ok=True)


@contextlib.contextmanager
def hooks(world):
    place = world.lab.master.root / "srv/salt/_modules"
    place.mkdir(parents=True, exist_ok=True)
    for name in HOOKED:
        (place / f"{name}.py").write_text((ROOT / f"_modules/{name}.py").read_text() + HOOK)
    try:
        sync(world)
        yield True
    finally:
        for name in HOOKED:
            (place / f"{name}.py").unlink()
        minions_answer(world, [world.node])
        sync(world)


def sync(world):
    # The file server keeps its list of files for a moment.
    world.lab.master.exec(["sh", "-c", "rm -rf /var/cache/salt/master/file_lists"])
    world.cluster.salt("saltutil.sync_modules", target=world.node.name)


def moment(world, how, name):
    """At the moment ``name`` the node's minion shall ``die``, ``wait`` or only ``mark`` that it came there."""
    (world.node.root / HAPPENED).unlink(missing_ok=True)
    world.node.write(AT, f"{how} {name}\n")


def reached(world, timeout_s=240):
    world.cluster.wait_for("the moment", (world.node.root / HAPPENED).exists, timeout_s)


def minions_answer(world, nodes, timeout_s=120):
    """Wait until the minions answer; first until each is connected, as Salt is slow to notice one that is not."""
    names, connected = [node.name for node in nodes], ["ss", "-Htn", "state", "established", "dport = :4505"]

    def answered():
        if not all(node.exec(connected).stdout.strip() for node in nodes):
            return False
        said = world.lab.salt("--out=txt", "-t", "3", "-L", ",".join(names), "test.ping", check=False).stdout
        return all(f"{name}: True" in said for name in names)

    world.cluster.wait_for("the minions", answered, timeout_s)


def all_serve(world):
    """Wait until every component of every node is well, and see that nothing is lost."""
    world.judge.all_serve(patience_s=120)
    world.judge.nothing_is_lost()


def leftovers(node):
    """Return what a preflight or a rehearsal left on a node."""
    script = """
        ls -d /run/kubernetes-rehearsal /run/kubernetes-controller-draft-* 2>/dev/null
        ls /run/systemd/system | grep rehearsal; ip netns list | grep rehearsal
        systemctl list-units --all --plain --no-legend 'kubernetes-rehearsal*'; grep rehearsal /proc/mounts; true
    """
    return node.exec(["bash", "-c", script]).stdout.split("\n")[:-1]


# -- the minion --------------------------------------------------------------------------------------------------------


def killed_at(name, sls="kubernetes_controller"):
    """The minion is killed at a moment of an SLS; what it left serves, and a whole run brings it to its end."""

    def run(world):
        moment(world, "die", name)
        world.lab.salt("--async", world.node.name, "state.apply", sls)
        reached(world)
        minions_answer(world, [world.node])
        all_serve(world)
        outcome = here(world)
        assert leftovers(world.node) == []
        return outcome

    return run


def killed_going_back(world):
    """The minion is killed when it is about to put the good generation back; without the faulty pillar the next run does."""
    moment(world, "die", "go_back")
    world.lab.salt("--async", world.node.name, "state.apply", "kubernetes_controller")
    reached(world)
    minions_answer(world, [world.node])
    again = here(world)
    assert not again.ok and "is back and serves" in again.said, again.said
    return again


# -- the node ----------------------------------------------------------------------------------------------------------


def powered_off_at(name):
    """The node loses its power at a moment; it boots, serves, and the same run again brings it to its end."""

    def run(world):
        moment(world, "wait", name)
        world.lab.salt("--async", world.node.name, "state.apply", "kubernetes_controller")
        reached(world)
        world.node.kill()
        time.sleep(1)
        world.lab.boot()
        all_serve(world)
        return here(world)

    return run


def cut_off_with_the_turn(world):
    """The node loses its cable while it holds the turn; others get the turn, and when it is back the next run ends it."""
    moment(world, "mark", "promote")
    world.lab.salt("--async", world.node.name, "state.apply", "kubernetes_controller")
    reached(world)
    world.node.disconnect()
    try:
        began = time.monotonic()
        lock = ["lock", "--ttl=5", "/kubernetes_controller/turn", "true"]
        done = etcdctl(world.others[0], *lock, check=False, timeout=60)
        waited_s = time.monotonic() - began
        assert done.returncode == 0, done.stderr
        assert waited_s < 40, f"the turn of a node that is cut off was free after {waited_s:.0f} s only"
        ready(world, world.others, 30)  # once they miss the member of etcd
        time.sleep(10)
    finally:
        world.node.connect()
    minions_answer(world, [world.node])
    world.cluster.wait_for("the end of the run that was cut off", lambda: not busy(world), 240)
    all_serve(world)
    return here(world)


def busy(world):
    """Tell whether a state run is under way on the node."""
    return bool(world.cluster.salt("saltutil.is_running", "state.*", target=world.node.name)[world.node.name])


# -- the master, and everybody -----------------------------------------------------------------------------------------


def deploy_in_a_unit(world):
    """Roll out in a unit of systemd's, which can be killed with all that it started."""
    unit = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--unit=rollout"]
    done = world.lab.master.exec([*unit, "salt-run", "k8s_rollout.deploy"], check=False)
    return Outcome(done.returncode == 0, done.stdout + done.stderr)


def master_killed(world):
    """Master and orchestration are killed while the first node is at work; the next rollout brings all to the end."""
    live = world.node.root / world.cluster.homes["kube-scheduler"].lstrip("/") / "live"
    before = live.readlink()
    ended = in_background(deploy_in_a_unit, world)
    world.cluster.wait_for("the first node", lambda: live.readlink() != before, 240)
    world.lab.master.exec(["systemctl", "kill", "--signal=KILL", "rollout", "salt-master"])
    assert not ended().ok
    minions_answer(world, world.cluster.nodes)
    world.cluster.wait_for("the end of what still runs", lambda: not busy(world), 240)
    all_serve(world)
    return deploy(world)


def two_operators(world):
    """Two operators roll out at the same second; whoever is refused loses nothing by it."""
    both = [in_background(deploy, world), in_background(deploy, world)]
    outcomes = [ended() for ended in both]
    for outcome in outcomes:
        assert outcome.ok or "is running as PID" in outcome.said, outcome.said
    all_serve(world)
    return deploy(world)


def everything_down(world):
    """Every component of every node is down at once; one correct rollout repairs it."""
    for node in world.cluster.nodes:
        node.exec(["systemctl", "kill", "--signal=KILL", *COMPONENTS])
        node.exec(["systemctl", "stop", "--no-block", *COMPONENTS])
    for node in world.cluster.nodes:
        node.exec(["systemctl", "stop", *COMPONENTS])
        assert world.cluster.get(node, "/readyz")[0] == 0
    return deploy(world)


def without_quorum_rolled_out(world):
    """Two members of etcd are down while every API server still runs; one correct rollout repairs it."""
    for node in world.others:
        node.exec(["systemctl", "stop", "etcd"])
    return deploy(world)


def without_quorum(world):
    """Two members of etcd are down: the run fails and says so; when they are back, the same run ends well."""
    for node in world.others:
        node.exec(["systemctl", "stop", "etcd"])
    try:
        refused = here(world)
        assert not refused.ok, refused.said
        assert "etcd" in refused.said, refused.said
    finally:
        for node in world.others:
            node.exec(["systemctl", "start", "--no-block", "etcd"])
    all_serve(world)
    return Outcome(refused.ok, refused.said)
