"""The lab itself, with one of another name beside the others: it boots, heals, and leaves nothing behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kclab import host
from kclab.lab import CHECKOUT, LOCKS, STATE, Lab
from kclab.network import NETNS

NAME = f"{os.environ.get('KC_LAB', 'systest')}-alone"
WORD = f"kclab-{NAME}"


@pytest.fixture(scope="module")
def alone():
    """A lab of one node; it needs no Kubernetes binaries."""
    host.check()
    lab = Lab(NAME)
    lab.down()
    lab.boot(1)
    yield lab
    lab.down()


def command(*words):
    return subprocess.run([CHECKOUT / "lab/lab", "--name", NAME, *words], capture_output=True, text=True, check=False)


def assert_all_answer(lab):
    status = lab.status()
    assert status["running"] == ["controller-1", "salt-master"]
    said = lab.salt("--out=json", "--static", "*", "test.ping").stdout
    assert json.loads(said[said.index("{") :]) == {"controller-1": True}


def pids(lab):
    return [node.pid for node in [*lab.nodes, lab.master]]


def traces():
    """Return what this machine shows of the lab, by kind, without asking the lab."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found = {
        "mounts": [line for line in mounts if WORD in line or f"{STATE / NAME}/" in line],
        "namespaces": list(NETNS.glob(f"{WORD}*")),
        "cgroups": subprocess.run(
            ["find", "/sys/fs/cgroup", "-maxdepth", "4", "-name", f"{WORD}*"], capture_output=True, text=True, check=True
        ).stdout.split(),
        "files": [path for path in (STATE / NAME, LOCKS / NAME) if path.exists()],
        "processes": [],
    }
    found["files"] += Path("/run/systemd/nspawn").glob(f"*/{WORD}*")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue  # dead; whoever started it has not asked yet how it ended
            if WORD in (process / "cgroup").read_text() or WORD.encode() in (process / "cmdline").read_bytes():
                found["processes"].append(process.name)
    return {kind: things for kind, things in found.items() if things}


def test_boot_leads_to_a_node_that_answers_at_its_address(alone):
    assert_all_answer(alone)
    (node,) = alone.nodes
    assert node.address in node.exec(["ip", "-4", "address", "show", "tap0"]).stdout
    assert set(traces()) == {"mounts", "namespaces", "cgroups", "files", "processes"}


def test_boot_again_changes_nothing(alone):
    before = pids(alone)
    alone.boot()
    assert pids(alone) == before


def cut(node):
    """Kill the node's PID 1, as if from outside, and wait until it is gone."""
    os.kill(node.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while node.pid:
        assert time.monotonic() < deadline, f"{node.name} does not die"
        time.sleep(0.05)


def delete_namespace(name):
    subprocess.run(["ip", "netns", "delete", name], check=True)


def node_is_killed(lab):
    cut(lab.nodes[0])


def master_is_killed(lab):
    cut(lab.master)


def node_lost_its_namespace(lab):
    cut(lab.nodes[0])
    delete_namespace(lab.nodes[0].netns)


def node_lost_its_root(lab):
    lab.nodes[0].kill()
    subprocess.run(["umount", lab.nodes[0].root], check=True)


def bridge_is_gone_under_running_nodes(lab):
    delete_namespace(lab.netns)


def record_is_lost(lab):
    (lab.directory / "lab.json").unlink()


def making_was_cut_off(lab):
    lab.down()
    making = subprocess.Popen([sys.executable, "-c", f"from kclab.lab import Lab; Lab({NAME!r}).boot(1)"], cwd=CHECKOUT / "lab")
    deadline = time.monotonic() + 30
    while not list(lab.directory.glob("*/root/etc/hostname")):
        assert making.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    making.kill()
    making.wait()


@pytest.mark.parametrize(
    "damage",
    [
        node_is_killed, master_is_killed, node_lost_its_namespace, node_lost_its_root, bridge_is_gone_under_running_nodes,
        record_is_lost, making_was_cut_off,
    ],
)  # fmt: skip
def test_boot_heals_a_lab_that_is_half_there(alone, damage):
    damage(alone)
    alone.boot(1)
    assert_all_answer(alone)


def test_a_lab_is_changed_by_nobody_while_a_killed_command_still_runs_what_it_began(alone, tmp_path):
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    last = f"touch {begun}; sleep 1; touch {ended}"
    program = f"from kclab.lab import Lab, run\nwith Lab({NAME!r})._alone(): run(['sh', '-c', {last!r}])"
    changing = subprocess.Popen([sys.executable, "-c", program], cwd=CHECKOUT / "lab")
    deadline = time.monotonic() + 30
    while not begun.exists():
        assert changing.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    changing.kill()
    changing.wait()
    assert not ended.exists()
    with alone._alone():
        assert ended.exists()


def test_status_tells_what_runs(alone):
    (node,) = alone.nodes
    status = json.loads(command("status", "--json").stdout)
    assert status["nodes"] == {"controller-1": node.address}
    cut(node)
    assert json.loads(command("status", "--json").stdout)["running"] == ["salt-master"]
    alone.boot()


def test_down_leaves_no_process_mount_namespace_cgroup_or_file(alone):
    alone.boot(1)
    for _ in range(2):  # again is fine
        done = command("down")
        assert done.returncode == 0, done.stderr
        assert traces() == {}
    assert "There is no lab" in command("status").stdout
