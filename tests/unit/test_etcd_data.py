"""Data of members of etcd that lie on a node: whose they are, and those that the formula did not make."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

PKI = "kubernetes_controller_pki"
NODES = ["controller-1", "controller-2", "controller-3"]
IDLE = {"pid": 0, "binary": None, "unit": "", "state": "inactive", "started": None, "restarts": 0}


def log(directory, member=0xCC4AC920D46FF089):
    """Write the begin of a write-ahead log, as etcd 3.7 does: a checksum, then who wrote it."""
    data = b"\x08" + varint(member) + b"\x10" + varint(7)
    records = (b"\x08\x04\x10\x00", b"\x08\x01\x10" + varint(0x63E84108) + b"\x1a" + varint(len(data)) + data)
    text = b""
    for record in records:
        padding = -len(record) % 8
        text += struct.pack("<Q", len(record) | ((0x80 | padding) << 56 if padding else 0)) + record + bytes(padding)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "0000000000000000-0000000000000000.wal").write_bytes(text + bytes(64))
    return directory


def varint(value):
    found = []
    while True:
        found.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(found)


@pytest.fixture
def etcd(node, rows, monkeypatch):
    """Return a function: etcd's row on a node to which the master said this; nobody answers, and nothing runs."""
    module = node.modules["k8s_etcd_members.refusals"].func.__globals__
    monkeypatch.setitem(node.opts, "file_client", "remote")
    monkeypatch.setitem(module, "survey", lambda row, directory=None, hashes=False: {"members": None, "asked": {}, "own": []})
    node.fake("k8s_component.process", side_effect=lambda name: dict(IDLE))
    node.fake("k8s_component.listener", return_value=None)

    def lay(state="founding", **rollout):
        told = {"state": state, "at": time.time(), "since": "now", "controllers": ["controller-1"]}
        node.opts["pillar"][PKI]["cluster.json"] = json.dumps(told)
        alone = {name: None for name in NODES[1:]}
        return rows({"controllers": alone, "rollout": rollout})["etcd"]

    yield lay
    node.opts["pillar"][PKI].pop("cluster.json", None)


@pytest.fixture
def refused(node, monkeypatch, tmp_path):
    """Return a function: what the preflight and the start itself say, which is the same."""
    module, file = node.modules["k8s_etcd_members.allow_first_start"].func.__globals__, tmp_path / "first-start.env"
    monkeypatch.setitem(module, "FIRST_START", str(file))

    def of(row):
        said = node.modules["k8s_etcd_members.refusals"](row)
        started = None
        try:
            node.modules["k8s_etcd_members.allow_first_start"](row, "/none")
        except Exception as exc:
            started = str(exc)
            assert not file.exists()
        assert [started] == (said or [None])
        return said

    return of


@pytest.mark.parametrize(
    "place", ["member/wal", "default/member/wal", "wal", "../etcd-old/member/wal", "../etcd/default/member/wal"]
)
def test_data_that_this_formula_did_not_make_are_no_place_for_a_new_cluster(etcd, refused, place):
    row = etcd()
    directory = log(Path(os.path.normpath(f"{row['settings']['data-dir']}/{place}")))
    (said,) = refused(row)
    where = str(directory).removesuffix("/wal").removesuffix("/member")
    assert f"data of a member of etcd that this formula did not make lie in {where}." in said
    assert f"kubernetes_controller:etcd:data_dir: {where} and kubernetes_controller:rollout:adopt: true once" in said


@pytest.mark.parametrize("place", ["default/member/wal", "../etcd-old/member/wal"])
def test_to_adopt_says_nothing_of_data_that_are_elsewhere(etcd, refused, place):
    row = etcd(adopt=True)
    log(Path(os.path.normpath(f"{row['settings']['data-dir']}/{place}")))
    assert "did not make lie in" in refused(row)[0]


def test_what_is_adopted_where_it_lies_starts_with_its_data(etcd, refused):
    row = etcd(adopt=True)
    log(Path(row["settings"]["data-dir"]) / "member/wal")
    log(Path(row["settings"]["data-dir"]).parent / "etcd-old/member/wal")
    assert refused(row) == []


def test_a_founding_that_was_cut_off_and_a_restored_snapshot_go_on(etcd, refused, node):
    restored = etcd("founded")
    log(Path(restored["settings"]["data-dir"]) / "member/wal")
    assert refused(restored) == []
    cut_off = etcd()
    node.modules["k8s_generation.promote"](cut_off["home"], node.modules["k8s_generation.prepare"](cut_off))
    assert refused(cut_off) == []


def test_bare_nodes_and_what_was_moved_away_as_the_docs_say_are_in_nobodys_way(etcd, refused):
    row = etcd()
    assert refused(row) == []
    log(Path(row["settings"]["data-dir"]).parent / "etcd.before-1800000000/wal")
    assert refused(row) == []


# -- an etcd that somebody else started -------------------------------------------------------------------------------


@pytest.fixture
def running(node, tmp_path):
    """Return a function: let something run in etcd's place with these words and variables."""
    processes, binary = [], tmp_path / "foreign/etcd"
    binary.parent.mkdir()
    shutil.copy(os.path.realpath(sys.executable), binary)

    def start(*words, **variables):
        code = ["-c", "import time; print(1, flush=True); time.sleep(60)", *map(str, words)]
        environment = {"PYTHONHOME": sys.base_prefix, **{name: str(value) for name, value in variables.items()}}
        process = subprocess.Popen([binary, *code], stdout=subprocess.PIPE, env=environment, cwd=tmp_path)
        processes.append(process)
        process.stdout.readline()
        known = {**IDLE, "pid": process.pid, "binary": str(binary), "unit": "/lib/etcd.service", "state": "active"}
        node.fake("k8s_component.process", side_effect=lambda name: known)

    yield start
    for process in processes:
        process.kill()
        process.wait()


def by_flag(running, place):
    running(f"--data-dir={place}")


def by_variable(running, place):
    running(ETCD_DATA_DIR=place)


def by_file(running, place):
    file = place.parents[1] / "etcd.yml"
    file.write_text(f"name: a\ndata-dir: {place}\n")
    running("--config-file", file)


def relative(running, place):
    running("--data-dir", "srv/etcd")


@pytest.mark.parametrize("how", [by_flag, by_variable, by_file, relative])
def test_data_that_another_etcd_has_elsewhere_are_not_left_behind(etcd, refused, running, tmp_path, how):
    log(tmp_path / "srv/etcd/member/wal")
    how(running, tmp_path / "srv/etcd")
    row = etcd(adopt=True)
    log(Path(row["settings"]["data-dir"]) / "member/wal")  # of whatever else: the one that runs serves other data
    assert f"did not make lie in {tmp_path}/srv/etcd." in refused(row)[0]
    declared = {**row, "settings": {**row["settings"], "data-dir": f"{tmp_path}/srv/etcd"}}
    assert refused(declared) == []


def test_an_etcd_that_is_stopped_is_known_by_its_unit(etcd, refused, node, tmp_path):
    place = log(tmp_path / "srv/etcd/member/wal").parents[1]
    (tmp_path / "variables").write_text(f"ETCD_NAME=a\nETCD_DATA_DIR={place}\n")
    for text in (
        f"ExecStart=/usr/bin/etcd --name a \\\n  --data-dir={place}\n",
        f"# EnvironmentFile=/none\nEnvironmentFile=-{tmp_path}/variables\n",
        f'#Environment=ETCD_DATA_DIR=/other\nEnvironment="ETCD_DATA_DIR={place}"\nExecStart=etcd --data-dir ${{ETCD_DATA_DIR}}\n',
    ):
        (tmp_path / "etcd.service").write_text(f"[Service]\n{text}")
        node.fake("k8s_component.process", side_effect=lambda name: {**IDLE, "unit": f"{tmp_path}/etcd.service"})
        assert f"did not make lie in {place}." in refused(etcd())[0]


@pytest.mark.parametrize("same", [False, True], ids=["another directory", "declared"])
def test_a_foreign_etcd_is_offered_for_adoption_where_its_directory_is_declared_alone(
    etcd, node, running, tmp_path, monkeypatch, same
):
    by_flag(running, tmp_path / "srv/etcd")
    foreign = node.modules["k8s_component.foreign"]
    for name in ("process", "listener"):
        monkeypatch.setitem(foreign.func.__globals__, name, node.modules[f"k8s_component.{name}"])
    row = etcd()
    if same:
        row = {**row, "settings": {**row["settings"], "data-dir": f"{tmp_path}/srv/etcd"}}
    said = foreign(row)
    assert ("stop it yourself" in said) is same
    assert (f"Declare kubernetes_controller:etcd:data_dir: {tmp_path}/srv/etcd first" in said) is not same


# -- whose data they are ----------------------------------------------------------------------------------------------


def test_the_log_says_which_member_wrote_it(etcd, node):
    row = etcd()
    assert node.modules["k8s_etcd_data.member"](row) is None
    directory = log(Path(row["settings"]["data-dir"]) / "member/wal")
    assert node.modules["k8s_etcd_data.member"](row) == "cc4ac920d46ff089"
    for text in (b"", b"\x04", b"\xff" * 64, bytes(64)):
        (directory / "0000000000000001-0000000000000009.wal").write_bytes(text)
        assert node.modules["k8s_etcd_data.member"](row) is None


@pytest.mark.parametrize("ours", [True, False], ids=["its own", "another's"])
def test_a_member_does_not_start_with_the_data_of_another(etcd, refused, node, monkeypatch, ours):
    """It was removed and added again while its machine was off: etcd ended, or two processes were one member."""
    row = etcd("founded")
    log(Path(row["settings"]["data-dir"]) / "member/wal", 0x1F2E if ours else 0xABCD)
    url = f"https://{row['address']}:2380"
    one = {"id": "1f2e", "name": "", "peer_urls": [url], "client_urls": [], "learner": False, "started": False}
    module = node.modules["k8s_etcd_members.refusals"].func.__globals__
    found = {"members": [one], "asked": {}, "own": []}
    monkeypatch.setitem(module, "survey", lambda row, directory=None, hashes=False: found)
    said = refused(row)
    assert said == [] if ours else "are those of member abcd, not of this one (1f2e, as etcd lists" in said[0]
