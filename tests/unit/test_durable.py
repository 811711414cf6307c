"""k8s_durable: whole and on disk, with the owner and mode that it is to have from its first byte on."""

import os
import stat
import subprocess

import pytest


@pytest.fixture
def calls(modules, monkeypatch):
    """What is done, in its order, with the name that it is done to: the calls that a loss of power depends on."""
    found, real = [], {name: getattr(os, name) for name in ("fsync", "fchmod", "fchown", "replace", "write")}

    def path(handle):
        return os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))

    def recorded(name):
        def call(first, *rest):
            found.append((name, os.path.basename(first) if name == "replace" else path(first)))
            return real[name](first, *rest)

        return call

    for name in real:
        monkeypatch.setattr(os, name, recorded(name))
    return found


def test_owner_and_mode_come_first_and_the_name_after_the_content_is_on_disk(modules, tmp_path, calls):
    assert modules["k8s_durable.write"](str(tmp_path / "file"), "text\n", mode="0640", user="root", group="root")
    assert [name for name, _ in calls] == ["fchown", "fchmod", "fsync", "replace", "fsync"]
    assert calls[-1][1] == tmp_path.name, "the rename is on disk, too"
    written = tmp_path / "file"
    assert written.read_text() == "text\n"
    assert stat.S_IMODE(written.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [written]


def test_what_is_there_keeps_its_owner_and_one_that_fails_leaves_it_as_it_was(modules, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("before")
    os.chown(path, 65534, 65534)
    assert modules["k8s_durable.write"](str(path), "after")
    there = path.stat()
    assert (there.st_uid, there.st_gid, stat.S_IMODE(there.st_mode)) == (65534, 65534, 0o600)
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        modules["k8s_durable.write"](str(path), "too much")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_an_account_that_is_not_there_is_told_and_nothing_is_written(modules, tmp_path):
    with pytest.raises(LookupError, match="nobody-of-this-name"):
        modules["k8s_durable.write"](str(tmp_path / "file"), "text", user="nobody-of-this-name")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_goes_with_the_next_write_and_what_one_at_work_has_stays(modules, tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / f".new-{gone.pid}-abc").write_text("half a")
    (tmp_path / f".new-{os.getpid()}-abc").write_text("half a")
    (tmp_path / ".new-of-another-kind").write_text("whole")
    assert modules["k8s_durable.write"](str(tmp_path / "file"), "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f".new-{os.getpid()}-abc", ".new-of-another-kind", "file"])
    assert modules["k8s_durable.sweep"](str(tmp_path / "not there")) == []
