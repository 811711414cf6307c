"""Binaries from a real mirror on the loopback: by published or pinned sums, never fetched nor read twice."""

import builtins
import errno
import hashlib
import io
import json
import os
import shutil
import tarfile

import pytest
from salt.exceptions import CommandExecutionError

CONTENT = b"#!/bin/sh\necho kubectl\n"


def digest(content, algorithm="sha512"):
    return hashlib.new(algorithm, content).hexdigest()


@pytest.fixture
def row(mirror, tmp_path):
    """A row of downloads whose file and sum the mirror has."""
    mirror.files |= {"/kubectl": CONTENT, "/kubectl.sha512": digest(CONTENT).encode()}
    return mirror.row("kubectl", tmp_path / "bin")


@pytest.fixture
def binary(modules):
    class Binary:
        def __getattr__(self, name):
            return modules[f"k8s_binary.{name}"]

    return Binary()


def test_a_binary_is_installed_when_its_published_sum_is_right(binary, row, mirror, tmp_path):
    assert binary.missing(row) == {"kubectl": "missing"}
    assert binary.install(row) == ["kubectl"]
    path = tmp_path / "bin/kubectl"
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o7777 == 0o755
    assert binary.missing(row) == {}
    assert mirror.asked == ["/kubectl.sha512", "/kubectl"]
    assert sorted(file.name for file in path.parent.iterdir()) == [".installed.json", "kubectl"]


@pytest.mark.parametrize("link", ["live", "good"])
def test_what_a_generation_runs_from_is_not_exchanged_for_another_file(binary, row, mirror, tmp_path, link):
    binary.install(row)
    path, home = tmp_path / "bin/kubectl", tmp_path / "home"
    (home / "generations/a").mkdir(parents=True)
    (home / link).symlink_to("generations/a")
    used = digest(CONTENT, "sha256")
    (home / "generations/a/start").write_text(f"#!/bin/sh\n# kubectl 1.37.2 sha256:{used}\nexec {path} \\\n  --v=2\n")
    mirror.files["/kubectl"] = b"another build"
    other = digest(b"another build", "sha256")
    row |= {"checksum": f"sha256:{other}", "homes": [str(home)]}
    with pytest.raises(CommandExecutionError, match=rf"{home}/{link} runs from it with sha256 {used}, and .* has {other}"):
        binary.install(row)
    assert path.read_bytes() == CONTENT
    path.unlink()
    mirror.files["/kubectl"] = CONTENT  # what is lost is put back
    row["checksum"] = f"sha256:{used}"
    assert binary.install(row) == ["kubectl"]


@pytest.mark.parametrize(
    "published",
    ["{sha512}", "{sha512}\n", "{sha256}  kubectl\n", "{sha256} *kubectl", "0000  other\n{sha512}  kubectl\n", "{SHA512}"],
)
def test_published_sums_come_in_several_forms(binary, row, mirror, published):
    sums = {"sha512": digest(CONTENT), "sha256": digest(CONTENT, "sha256"), "SHA512": digest(CONTENT).upper()}
    mirror.files["/kubectl.sha512"] = published.format(**sums).encode()
    assert binary.install(row) == ["kubectl"]


@pytest.mark.parametrize(
    "pin", ["sha256:{sha256}", "sha512:{sha512}", "{sha256}", "{sha512}", "SHA256:{sha256}", " sha256:{sha256} "]
)
def test_a_pinned_sum_needs_no_published_one(binary, row, mirror, pin):
    del mirror.files["/kubectl.sha512"]
    pin = pin.format(sha512=digest(CONTENT), sha256=digest(CONTENT, "sha256"))
    assert binary.install({**row, "checksum": pin}) == ["kubectl"]
    assert binary.missing({**row, "checksum": pin}) == {}
    assert mirror.asked == ["/kubectl"]


@pytest.mark.parametrize(
    ("files", "changed", "says"),
    [
        (
            {"/kubectl": b"evil"},
            {},
            ["sha512 is " + digest(b"evil"), "/kubectl.sha512 says " + digest(CONTENT), "Nothing was installed"],
        ),
        ({}, {"checksum": "sha256:" + "0" * 64}, ["kubernetes_controller:binaries:checksums:kubectl says 000"]),
        (
            {},
            {"checksum": "md5:" + "0" * 32},
            ["kubernetes_controller:binaries:checksums:kubectl", "expected sha256:HEX or sha512:HEX"],
        ),
        ({}, {"checksum": "sha256:" + "0" * 128}, ["is not a checksum"]),
        ({}, {"checksum": "sha256:" + "g" * 64}, ["is not a checksum"]),
        (
            {"/kubectl.sha512": b"<html>"},
            {},
            ["has no checksum for kubectl", "Pin one in kubernetes_controller:binaries:checksums:kubectl"],
        ),
        ({"/kubectl.sha512": digest(CONTENT).encode() + b"  kubelet\n"}, {}, ["has no checksum for kubectl"]),
        ({"/kubectl": None}, {}, ["kubernetes_controller:binaries:mirror: cannot fetch", "/kubectl: 404"]),
        ({"/kubectl.sha512": None}, {}, ["kubernetes_controller:binaries:mirror: cannot fetch", "/kubectl.sha512: 404"]),
        ({"/kubectl": ConnectionAbortedError}, {}, ["kubernetes_controller:binaries:mirror: ", "/kubectl broke off"]),
    ],
)
def test_a_fault_names_the_pillar_key_and_changes_nothing(binary, row, mirror, helpers, tmp_path, files, changed, says):
    binary.install(row)
    before = helpers.tree(tmp_path)
    for name, content in files.items():
        mirror.files[name] = content
    with pytest.raises(CommandExecutionError) as raised:
        binary.install({**row, **changed})
    assert [words for words in says if words not in str(raised.value)] == [], str(raised.value)
    assert {path: facts for path, facts in helpers.tree(tmp_path).items()} == before


def test_a_dead_mirror_is_one_sentence(binary, row):
    with pytest.raises(CommandExecutionError) as raised:
        binary.install({**row, "sums": "http://127.0.0.1:1/kubectl.sha512"})
    said = str(raised.value)
    assert said.startswith("kubernetes_controller:binaries:mirror: cannot fetch http://127.0.0.1:1/kubectl.sha512: ")
    assert "Connection refused" in said
    assert "0x" not in said


def test_a_place_that_cannot_be_written_is_a_sentence(binary, row, tmp_path):
    (tmp_path / "bin").write_text("a file")
    with pytest.raises(CommandExecutionError, match=str(tmp_path / "bin")):
        binary.install(row)


# -- archives ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(mirror, tmp_path):
    """A row of downloads for an archive with etcd and etcdctl."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in ("etcd", "etcdctl", "README.md"):
            entry = tarfile.TarInfo(f"etcd-v3/{name}")
            entry.size = len(name)
            tar.addfile(entry, io.BytesIO(name.encode()))
        tar.addfile(tarfile.TarInfo("etcd-v3/dir/"))
    content = packed.getvalue()
    mirror.files |= {"/etcd.tar.gz": content, "/SHA256SUMS": f"{digest(content, 'sha256')}  etcd.tar.gz\n".encode()}
    row = mirror.row("etcd", tmp_path / "etcd/bin", source="/etcd.tar.gz", sums="/SHA256SUMS")
    return {**row, "members": {name: f"etcd-v3/{name}" for name in ("etcd", "etcdctl")}}


def test_of_an_archive_only_the_members_are_installed(binary, archive, tmp_path):
    assert binary.install(archive) == ["etcd", "etcdctl"]
    assert (tmp_path / "etcd/bin/etcdctl").read_text() == "etcdctl"
    assert sorted(path.name for path in (tmp_path / "etcd/bin").iterdir()) == [".installed.json", "etcd", "etcdctl"]
    assert binary.missing(archive) == {}


@pytest.mark.parametrize("member", ["etcd-v3/etcdutl", "etcd-v3/dir"])
def test_an_archive_without_its_members_installs_nothing(binary, archive, tmp_path, member):
    with pytest.raises(CommandExecutionError, match=r"etcd\.tar\.gz: not the archive expected"):
        binary.install({**archive, "members": {**archive["members"], "etcdutl": member}})
    assert list((tmp_path / "etcd/bin").iterdir()) == []


def test_what_is_no_archive_is_said(binary, archive, mirror):
    mirror.files |= {"/etcd.tar.gz": b"x", "/SHA256SUMS": digest(b"x", "sha256").encode()}
    with pytest.raises(CommandExecutionError, match="not the archive expected"):
        binary.install(archive)


def test_a_full_disk_is_not_blamed_on_the_archive(binary, archive, tmp_path, monkeypatch):
    def full(source, target, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(CommandExecutionError, match=f"^{tmp_path}/etcd/bin: No space left on device$"):
        binary.install(archive)
    assert list((tmp_path / "etcd/bin").iterdir()) == []


@pytest.mark.parametrize("present", ["kubectl", ".installed.json"])
def test_a_directory_in_the_place_of_a_file_is_named(binary, row, tmp_path, present):
    (tmp_path / "bin" / present).mkdir(parents=True)
    with pytest.raises(CommandExecutionError, match=f"^{tmp_path}/bin.*: Is a directory$"):
        binary.install(row)


# -- later ------------------------------------------------------------------------------------------------------------


def test_a_replaced_file_is_detected_with_both_digests(binary, row, tmp_path):
    binary.install(row)
    (tmp_path / "bin/kubectl").write_bytes(b"evil")
    old, new = digest(CONTENT, "sha256"), digest(b"evil", "sha256")
    assert binary.missing(row) == {"kubectl": f"replaced: sha256 {new} instead of {old}"}
    assert binary.checksum(str(tmp_path / "bin/kubectl")) == new


def test_a_file_that_was_changed_in_place_with_its_size_and_time_kept_is_detected(binary, row, tmp_path):
    binary.install(row)
    path = tmp_path / "bin/kubectl"
    before = path.stat()
    with open(path, "r+b") as handle:
        handle.write(bytes([CONTENT[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert binary.missing(row)["kubectl"].startswith("replaced: sha256 ")


def test_a_file_that_the_formula_did_not_install_is_not_trusted(binary, row, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/kubectl").write_bytes(CONTENT)
    assert binary.missing(row) == {"kubectl": "not installed by the formula"}


def test_a_new_pin_is_a_reason_to_fetch_again(binary, row):
    binary.install(row)
    pinned = {**row, "checksum": "sha256:" + "0" * 64}
    assert binary.missing(pinned) == {"kubectl": f"pinned: sha256 {'0' * 64} instead of {digest(CONTENT, 'sha256')}"}


@pytest.mark.parametrize(("published", "pinned"), [("sha256", "sha512"), ("sha512", "sha256"), ("sha512", "sha512")])
def test_a_right_pin_of_another_algorithm_is_read_once(binary, row, mirror, tmp_path, monkeypatch, published, pinned):
    mirror.files["/kubectl.sha512"] = digest(CONTENT, published).encode()
    binary.install(row)
    path, opened, real = str(tmp_path / "bin/kubectl"), [], builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *a, **kw: opened.append(str(file)) or real(file, *a, **kw))
    for _ in range(2):
        assert binary.missing({**row, "checksum": f"{pinned}:{digest(CONTENT, pinned)}"}) == {}
    assert opened.count(path) == (1 if (published, pinned) == ("sha256", "sha512") else 0)


def test_a_wrong_pin_of_another_algorithm_is_not_remembered(binary, row, mirror, helpers, tmp_path):
    mirror.files["/kubectl.sha512"] = digest(CONTENT, "sha256").encode()
    binary.install(row)
    before = helpers.tree(tmp_path)
    pinned = {**row, "checksum": "sha512:" + "0" * 128}
    assert binary.missing(pinned) == {"kubectl": f"pinned: sha512 {'0' * 128} instead of {digest(CONTENT)}"}
    assert helpers.tree(tmp_path) == before


def test_an_archive_that_is_pinned_by_another_algorithm_is_fetched_as_it_was_not_kept(binary, archive, mirror):
    binary.install(archive)
    pin = digest(mirror.files["/etcd.tar.gz"])
    pinned = {**archive, "checksum": f"sha512:{pin}"}
    assert binary.missing(pinned) == dict.fromkeys(("etcd", "etcdctl"), f"pinned: sha512 {pin} instead of another")
    binary.install(pinned)
    assert binary.missing(pinned) == {}


@pytest.mark.parametrize("record", ["", "{"])
def test_a_damaged_record_means_fetching_again(binary, row, tmp_path, record):
    binary.install(row)
    (tmp_path / "bin/.installed.json").write_text(record)
    assert binary.missing(row) == {"kubectl": "not installed by the formula"}
    assert binary.checksum(str(tmp_path / "bin/kubectl")) == digest(CONTENT, "sha256")


def test_an_unchanged_file_is_not_read_again(binary, row, tmp_path, monkeypatch):
    binary.install(row)
    path, opened, real = str(tmp_path / "bin/kubectl"), [], builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *a, **kw: opened.append(str(file)) or real(file, *a, **kw))
    assert binary.checksum(path) == digest(CONTENT, "sha256")
    assert binary.missing(row) == {}
    assert path not in opened
    os.utime(path, (1, 1))
    assert binary.checksum(path) == digest(CONTENT, "sha256")
    assert path in opened


def test_a_file_that_only_got_another_time_is_read_once(binary, row, tmp_path):
    binary.install(row)
    os.utime(tmp_path / "bin/kubectl", (1, 1))
    assert binary.missing(row) == {}
    record = json.loads((tmp_path / "bin/.installed.json").read_text())
    assert record["kubectl"]["stat"][1] == 1_000_000_000


def test_the_checksum_of_nothing_names_the_file(binary):
    with pytest.raises(CommandExecutionError, match="/nowhere/kubectl: No such file or directory. Apply kubernetes_controller"):
        binary.checksum("/nowhere/kubectl")
