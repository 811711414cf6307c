"""k8s_stage: what makes the copy of the data ready loses against what serves. systemd alone is stood in for."""

import os
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

SCOPE = """echo "$@" >> {told}
while [ "$1" != -- ]; do shift; done; shift
exec "$@"
"""
NETNS = 'shift 3; exec "$@"\n'


@pytest.fixture
def place(node, tmp_path, monkeypatch):
    """A directory with programs in the place of systemd's, ip's and etcd's; ``told`` is what systemd-run was asked for."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for modules in (node.modules, node.modules.pack["__salt__"]):  # each may have loaded the module for itself
        monkeypatch.setitem(modules["k8s_stage.clear"].func.__globals__, "PLACE", str(tmp_path))
    program(tmp_path / "systemd-run", SCOPE.replace("{told}", str(tmp_path / "told")))
    program(tmp_path / "ip", NETNS)
    program(tmp_path / "systemctl", "exit 0\n")
    return tmp_path


def program(path, script):
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)


def row(place):
    return {"etcdctl": str(place / "etcdctl"), "user": "root", "group": "root", "address": "10.8.0.101"}


def restore(node, place):
    (place / "snapshot.db").touch()
    return node.modules["k8s_stage.restore"](row(place), str(place / "snapshot.db"), "default")


NOTE = "cat /proc/self/oom_score_adj >> {place}/adj\n"


def test_the_copy_is_restored_and_changed_within_the_bounds_of_the_stage(node, place):
    for name in ("etcdutl", "etcdctl"):
        program(place / name, NOTE.format(place=place) + f'echo "$ETCDCTL_ENDPOINTS" >> {place}/environment\n')
    (place / "data").mkdir()
    assert restore(node, place) == str(place / "data")
    assert node.modules["k8s_stage.leave_out"]({"ETCDCTL_ENDPOINTS": "http://x"}, str(place / "etcdctl"), "/registry", ["a/b"])
    asked = (place / "told").read_text().splitlines()
    assert len(asked) == 1 + 5
    assert all("--scope --quiet --collect --slice=kubernetes_rehearsal.slice" in line for line in asked)
    assert all("--property=CPUWeight=20 --property=IOWeight=20 -- choom -n 900 --" in line for line in asked)
    assert (place / "adj").read_text().split() == ["900"] * 6
    assert (place / "environment").read_text().split() == ["http://x"] * 5
    assert not (place / "snapshot.db").exists()


def test_what_a_program_says_there_is_the_reason_and_a_killed_one_had_no_memory(node, place):
    program(place / "etcdutl", "echo some; echo 'Error: no space' >&2; exit 3\n")
    with pytest.raises(CommandExecutionError, match="^.*/etcdutl snapshot restore .*: Error: no space$"):
        restore(node, place)
    assert node.modules["k8s_stage.out_of_memory"]() == []
    program(place / "etcdutl", "kill -KILL $$\n")
    with pytest.raises(CommandExecutionError, match="/etcdutl snapshot restore .*: status -9$"):
        restore(node, place)
    assert node.modules["k8s_stage.out_of_memory"]() == ["etcdutl"]
    node.modules["k8s_stage.clear"]()
    assert node.modules["k8s_stage.out_of_memory"]() == []


def test_a_snapshot_is_saved_and_verified_with_little_weight(node, place):
    status = '[{"Status": {"dbSize": 1}}]'
    program(place / "etcdctl", NOTE.format(place=place) + f"[ $1 = endpoint ] && echo '{status}' || touch $3\n")
    program(place / "etcdutl", NOTE.format(place=place) + "echo '{\"totalKey\": 3}'\n")
    node.fake("k8s_etcdctl.environment", return_value={"ETCDCTL_ENDPOINTS": "http://x"})
    kept = {**row(place), "snapshots": {"directory": str(place / "kept"), "keep": 1}}
    path = Path(node.modules["k8s_snapshot.keep"](kept, "etcd-3.7.3"))
    assert path.parent == place / "kept"
    assert path.stat().st_mode & 0o777 == 0o600
    asked = (place / "told").read_text().splitlines()
    assert ["--slice=system.slice --property=CPUWeight=20 --property=IOWeight=20" in line for line in asked] == [True] * 2
    assert (place / "adj").read_text().split()[-2:] == ["900"] * 2


def test_a_snapshot_that_memory_did_not_suffice_for_is_not_called_damaged(node, place):
    status = '[{"Status": {"dbSize": 1}}]'
    program(place / "etcdctl", f"[ $1 = endpoint ] && echo '{status}' || touch $3\n")
    program(place / "etcdutl", "kill -KILL $$\n")
    node.fake("k8s_etcdctl.environment", return_value={"ETCDCTL_ENDPOINTS": "http://x"})
    kept = {**row(place), "snapshots": {"directory": str(place / "kept"), "keep": 1}}
    with pytest.raises(CommandExecutionError) as told:
        node.modules["k8s_snapshot.keep"](kept, "etcd-3.7.3")
    assert "could not be verified: it was ended by SIGKILL (is there no memory left on this node?). Run this again." in str(
        told.value
    )
    program(place / "etcdctl", f"[ $1 = endpoint ] && echo '{status}' || kill -KILL $$\n")
    with pytest.raises(CommandExecutionError, match="no copy of its data: it was ended by SIGKILL"):
        node.modules["k8s_snapshot.keep"](kept, "etcd-3.7.3")
