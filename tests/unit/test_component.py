"""The process of a component: which binary it was started from, and who holds its port, asked of real processes."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

S = "kube-scheduler"


@pytest.fixture
def started(node, rows):
    """Return a function: start the scheduler's binary (with other bytes at its end, where asked for); row and pid."""
    processes = []

    def start(strange=b""):
        row = rows()[S]
        binary = Path(row["binary"])
        put(binary)
        node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
        put(binary, strange)
        processes.append(subprocess.Popen([binary, "60"]))
        return row, processes[-1].pid

    yield start
    for process in processes:
        process.kill()
        process.wait()


def put(binary, strange=b""):
    """Put a binary to its place as a fetch does: a file of its own under the same name."""
    scratch = binary.with_suffix(".new")
    shutil.copy(shutil.which("sleep"), scratch)
    with scratch.open("ab") as handle:
        handle.write(strange)
    scratch.rename(binary)


def test_a_process_that_was_started_from_another_binary_is_found_once_the_right_one_is_back(node, started):
    row, pid = started(b"strange")
    put(Path(row["binary"]))
    assert node.modules["k8s_component.replaced"](row, pid) is True
    process = {"pid": pid, "binary": f"{row['binary']} (deleted)", "started": 1.0, "state": "active"}
    node.fake("k8s_component.process", return_value=process)
    answer = node.modules["k8s_health.probe"](row)
    said = f"process {pid} was started from another binary than release 1.37.2's; a run restarts it"
    assert answer == {"ok": False, "said": said}


def test_a_binary_that_was_fetched_again_as_it_was_is_nothing_to_a_process(node, started):
    row, pid = started()
    put(Path(row["binary"]))
    assert node.modules["k8s_component.replaced"](row, pid) is False


def test_a_binary_that_lies_where_its_process_was_started_from_is_not_read(node, started):
    row, pid = started()
    read = node.fake("k8s_binary.checksum")
    assert node.modules["k8s_component.replaced"](row, pid) is False
    assert node.modules["k8s_component.replaced"](row, 0) is False
    read.assert_not_called()


@pytest.fixture
def listening():
    """Return a function: listen on an address; the port."""
    sockets = []

    def listen(address):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sockets.append(socket.create_server((address, 0), family=family))
        return sockets[-1].getsockname()[1]

    yield listen
    for one in sockets:
        one.close()


@pytest.mark.parametrize(
    ("held", "asked", "counts"),
    [
        ("127.0.0.2", "127.0.0.2", True),
        ("127.0.0.2", "127.0.0.1", False),
        ("127.0.0.2", "0.0.0.0", True),
        ("127.0.0.2", "::", True),
        ("127.0.0.2", None, True),
        ("127.0.0.2", "::1", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("::", "127.0.0.1", True),
        ("::1", "::1", True),
        ("::1", "127.0.0.1", False),
    ],
)
def test_who_listens_on_another_address_does_not_hold_the_port(modules, listening, held, asked, counts):
    port = listening(held)
    holder = modules["k8s_component.listener"](port, asked)
    assert (holder["pid"] == os.getpid()) if counts else holder is None


@pytest.mark.parametrize("component", ["kube-apiserver", "etcd", S])
def test_a_load_balancer_on_the_port_of_another_address_is_nobody_in_the_place_of_a_component(
    node, rows, monkeypatch, listening, component
):
    row = {**rows()[component], "adopt": False, "port": listening("127.0.0.2"), "address": "127.0.0.1"}
    idle = {"pid": 0, "binary": None, "unit": "", "state": "inactive", "started": None, "restarts": 0}
    foreign = node.modules["k8s_component.foreign"]
    monkeypatch.setitem(foreign.func.__globals__, "process", lambda name: idle)
    for address, found in (("127.0.0.1", False), ("127.0.0.2", True)):
        row |= {"address": address, "settings": {"bind-address": address}}
        said = foreign(row)
        assert bool(said) is found
        assert not found or f"port {row['port']} is held by process {os.getpid()}" in said
