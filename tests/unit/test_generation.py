"""Generations on a real disk, from real certificates; the tests run as root because owners belong to a generation."""

import base64
import os
import re
import resource
import shutil
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError


class Generations:
    """The functions of k8s_generation for one component's row."""

    def __init__(self, minion, row):
        self.minion, self.row = minion, row

    def __getattr__(self, name):
        return self.minion.modules[f"k8s_generation.{name}"]

    @property
    def home(self):
        return Path(self.row["home"])

    def live(self):
        """Prepare and promote what the row declares."""
        name = self.prepare(self.row)
        self.promote(str(self.home), name)
        return name


@pytest.fixture
def scheduler(node, rows):
    return Generations(node, rows()["kube-scheduler"])


@pytest.fixture
def apiserver(node, rows):
    return Generations(node, rows()["kube-apiserver"])


def set_pillar(minion, name, text):
    minion.opts["pillar"]["kubernetes_controller_pki"][name] = text


# -- digest -----------------------------------------------------------------------------------------------------------


def test_the_same_declaration_is_the_same_generation(scheduler, rows):
    assert re.fullmatch(r"[0-9a-f]{16}", scheduler.digest(scheduler.row))
    assert scheduler.digest(scheduler.row) == scheduler.digest(rows()["kube-scheduler"])


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"v": 2}},
        {"settings": {"profiling": None}},
        {"files": {"extra.txt": {"text": "a"}}},
        {"files": {"ca.crt": {"mode": "0600"}}},
        {"files": {"ca.crt": {"pki": ["etcd-ca.crt"]}}},
        {"group": "adm"},
        {"unit": {"Service": {"Nice": 5}}},
        {"config": {"parallelism": 8}},
    ],
    ids=str,
)
def test_the_digest_covers_flags_files_modes_owners_and_unit(scheduler, rows, change):
    assert scheduler.digest(rows({"scheduler": change})["kube-scheduler"]) != scheduler.digest(scheduler.row)


def test_the_digest_covers_the_content_of_secrets_and_of_the_binary(scheduler, material):
    before = scheduler.digest(scheduler.row)
    set_pillar(scheduler.minion, "scheduler-server.key", material["scheduler.key"])
    other_key = scheduler.digest(scheduler.row)
    Path(scheduler.row["binary"]).write_text("#!/bin/sh\n")
    assert len({before, other_key, scheduler.digest(scheduler.row)}) == 3


def test_a_missing_binary_or_certificate_is_named(scheduler, rows):
    with pytest.raises(CommandExecutionError, match=re.escape(scheduler.row["binary"])):
        Path(scheduler.row["binary"]).unlink()
        scheduler.digest(scheduler.row)
    renamed = rows({"pki": {"files": {"kubernetes-ca.crt": "ca.pem"}}})["kube-scheduler"]
    with pytest.raises(CommandExecutionError) as raised:
        scheduler.digest(renamed)
    said = str(raised.value)
    assert said.startswith(
        "pillar kubernetes_controller_pki:ca.pem (kubernetes-ca.crt by kubernetes_controller:pki:files) is missing"
    )
    assert "salt-run state.orchestrate kubernetes_controller.orchestrate.pki" in said
    assert "/srv/kubernetes_controller/pki/brought/" in said


# -- prepare ----------------------------------------------------------------------------------------------------------


def test_a_prepared_generation_is_whole_and_owned_by_root_and_the_group(apiserver, material):
    import grp

    name = apiserver.prepare(apiserver.row)
    directory = apiserver.home / "generations" / name
    assert {path.name for path in directory.iterdir()} == {"start", "unit", *apiserver.row["files"]}
    assert name == apiserver.digest(apiserver.row)
    for path in [directory.parent, apiserver.home]:
        assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o7777) == (0, 0, 0o711), path
    for path in [directory, *directory.iterdir()]:
        assert (path.stat().st_uid, path.stat().st_gid) == (0, grp.getgrnam("daemon").gr_gid), path
    modes = {path.name: oct(path.stat().st_mode & 0o7777) for path in directory.iterdir()}
    assert (modes.pop("start"), modes.pop("unit")) == ("0o750", "0o644")
    assert set(modes.values()) == {"0o640"}
    assert (directory / "client-ca.crt").read_text() == material["kubernetes-ca.crt"] + material["signer-ca.crt"]
    assert apiserver.intact(str(apiserver.home), name)


def test_preparing_again_writes_nothing(apiserver, helpers):
    name = apiserver.prepare(apiserver.row)
    before = helpers.tree(apiserver.home)
    assert apiserver.prepare(apiserver.row) == name
    assert helpers.tree(apiserver.home) == before


def test_preparing_moves_no_link(scheduler):
    scheduler.prepare(scheduler.row)
    assert scheduler.links(str(scheduler.home)) == {"live": None, "good": None}


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "ca.crt").write_text("other"),
        lambda path: (path / "ca.crt").unlink(),
        lambda path: (path / "more").write_text("x"),
        lambda path: (path / "start").write_bytes(b"\xff\xfe"),
        lambda path: (path / "more").mkdir(),
        lambda path: (path / "more").symlink_to("nowhere"),
    ],
    ids=["content", "missing", "more", "binary", "directory", "dangling"],
)
def test_a_damaged_generation_is_left_alone_and_a_new_one_gets_a_number(scheduler, helpers, damage):
    name = scheduler.live()
    directory = scheduler.home / "generations" / name
    damage(directory)
    before = helpers.tree(directory)
    assert not scheduler.intact(str(scheduler.home), name)
    changes = scheduler.differences(scheduler.row)
    assert changes
    assert scheduler.action(scheduler.row, changes)["how"] == "restart"
    assert scheduler.prepare(scheduler.row) == f"{name}.2"
    assert scheduler.prepare(scheduler.row) == f"{name}.2"
    assert helpers.tree(directory) == before
    assert scheduler.intact(str(scheduler.home), f"{name}.2")
    scheduler.promote(str(scheduler.home), f"{name}.2")
    assert scheduler.differences(scheduler.row) == {}


@pytest.mark.parametrize(
    "damage",
    [lambda path: (path / "ca.crt").chmod(0o666), lambda path: os.chown(path / "start", 1, 1), lambda path: path.chmod(0o700)],
    ids=["mode", "owner", "directory"],
)
def test_a_generation_that_has_only_other_owners_or_modes_gets_its_own_again(scheduler, helpers, damage):
    name = scheduler.live()
    directory = scheduler.home / "generations" / name
    before = helpers.tree(scheduler.home)
    damage(directory)
    assert scheduler.differences(scheduler.row) == {}
    assert scheduler.prepare(scheduler.row) == name
    assert scheduler.intact(str(scheduler.home), name)
    assert helpers.tree(scheduler.home) == before


def test_a_file_whose_declared_mode_changes_is_a_new_generation(scheduler, rows):
    scheduler.live()
    changed = rows({"scheduler": {"files": {"scheduler.yaml": {"mode": "0600"}}}})["kube-scheduler"]
    assert scheduler.differences(changed)["files"] == {"scheduler.yaml": "root:daemon 0640 to root:daemon 0600"}


def test_another_group_is_a_new_generation_that_no_look_at_owners_hides(scheduler, rows):
    scheduler.live()
    changed = rows({"scheduler": {"user": "bin", "group": "bin"}})["kube-scheduler"]
    found = scheduler.differences(changed)
    assert "+User=bin" in found["unit"]
    assert set(found["files"].values()) == {"root:daemon 0640 to root:bin 0640"}
    assert scheduler.action(changed, found)["how"] == "restart"


def test_what_a_killed_run_left_half_written_is_removed(scheduler):
    parent = scheduler.home / "generations"
    leftover = parent / ".prepare-killed"
    leftover.mkdir(parents=True)
    (leftover / "start").write_text("half")
    name = scheduler.prepare(scheduler.row)
    assert [path.name for path in parent.iterdir()] == [name]


def test_a_disk_that_is_full_leaves_nothing_behind(scheduler, helpers):
    scheduler.live()
    before = helpers.tree(scheduler.home)
    scheduler.row = {**scheduler.row, "files": {**scheduler.row["files"], "big": {"text": "x" * 100_000}}}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(CommandExecutionError, match=r"\.prepare-.*: File too large\. Nothing was promoted\."):
            scheduler.prepare(scheduler.row)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert helpers.tree(scheduler.home) == before


@pytest.mark.parametrize("blocked", ["home", "generations"])
def test_a_place_that_cannot_be_written_is_a_sentence(scheduler, blocked):
    path = scheduler.home if blocked == "home" else scheduler.home / "generations"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a file")
    with pytest.raises(CommandExecutionError, match=re.escape(str(path))):
        scheduler.prepare(scheduler.row)


def test_a_missing_group_names_the_sls_that_makes_it(scheduler):
    with pytest.raises(CommandExecutionError, match="group nobodys does not exist; apply kubernetes_controller.prepare first"):
        scheduler.prepare({**scheduler.row, "group": "nobodys"})


# -- promote ----------------------------------------------------------------------------------------------------------


def test_promoting_is_one_rename_of_one_link(scheduler, rows, helpers, monkeypatch):
    first = scheduler.live()
    second = scheduler.prepare(rows({"scheduler": {"settings": {"v": 3}}})["kube-scheduler"])
    before, renames, rename = helpers.tree(scheduler.home), [], os.rename

    def seen(source, target):
        assert scheduler.links(str(scheduler.home))["live"] == first
        rename(source, target)
        renames.append(os.path.basename(target))
        assert scheduler.links(str(scheduler.home))["live"] == second

    monkeypatch.setattr(os, "rename", seen)
    (scheduler.home / ".live.new").symlink_to("left by a killed run")
    scheduler.promote(str(scheduler.home), second)
    assert renames == ["live"]
    after = helpers.tree(scheduler.home)
    assert {path for path in {*before, *after} if before.get(path) != after.get(path)} == {str(scheduler.home / "live")}


def test_a_generation_that_is_not_there_is_not_promoted(scheduler):
    name = scheduler.live()
    with pytest.raises(CommandExecutionError, match="nothing: there is no such generation"):
        scheduler.promote(str(scheduler.home), "nothing")
    assert scheduler.links(str(scheduler.home))["live"] == name


# -- flags, differences, action ---------------------------------------------------------------------------------------


def test_flags_are_read_back_from_the_start_script_as_declared(node, rows):
    odd = {"a-space": "a b", "quote": 'it\'s "x"', "dollar": "$HOME", "dashes": "a --b=c", "empty": "", "equals": "a=b,c=d"}
    one = Generations(node, rows({"scheduler": {"settings": odd}})["kube-scheduler"])
    assert one.flags(str(one.home)) == {}
    assert one.release(str(one.home)) is None
    one.live()
    assert one.flags(str(one.home)) == one.row["settings"]
    assert one.release(str(one.home)) == "1.37.2"


def test_a_repeated_flag_is_read_back_compared_and_exchanged_as_a_whole(node, rows):
    two = {"service-account-issuer": ["https://b", "it's a"], "service-account-key-file": ["{live}/service-account.pub", "/x"]}
    one = Generations(node, rows({"apiserver": {"settings": two}})["kube-apiserver"])
    one.live()
    assert one.flags(str(one.home)) == one.row["settings"]
    start = (one.home / "live/start").read_text()
    assert start.index("--service-account-issuer=https://b") < start.index("--service-account-issuer=it")
    staged = node.modules["k8s_generation.staged_flags"](one.row, "/run/x")
    assert staged["service-account-key-file"] == ["/run/x/service-account.pub", "/x"]
    swapped = rows({"apiserver": {"settings": {**two, "service-account-issuer": ["it's a", "https://b"]}}})["kube-apiserver"]
    changes = one.differences(swapped)["flags"]
    assert changes == {"service-account-issuer": {"old": ["https://b", "it's a"], "new": ["it's a", "https://b"]}}
    with_flags = node.modules["k8s_generation.with_flags"]
    assert with_flags(start, {}) == start
    assert with_flags(start, {"service-account-issuer": None}).count("--service-account-issuer=") == 0
    other = with_flags(start, {"service-account-issuer": "https://c"})
    assert (other.count("--service-account-issuer="), other.count("--service-account-key-file=")) == (1, 2)


def test_nothing_differs_from_what_was_promoted(apiserver):
    apiserver.live()
    assert apiserver.differences(apiserver.row) == {}


@pytest.mark.parametrize("first", ["plain", "a b"])
@pytest.mark.parametrize("after", ["other", "c d"])
def test_a_changed_flag_is_that_flag_and_nothing_else(node, rows, first, after):
    one = Generations(node, rows({"scheduler": {"settings": {"a-first": first}}})["kube-scheduler"])
    name = one.live()
    changed = rows({"scheduler": {"settings": {"a-first": after, "profiling": None, "v": 2}}})["kube-scheduler"]
    found = one.differences(changed)
    assert found.pop("generation") == {"old": name, "new": one.digest(changed)}
    assert found == {
        "flags": {
            "a-first": {"old": first, "new": after},
            "profiling": {"old": "false", "new": None},
            "v": {"old": None, "new": "2"},
        }
    }
    assert one.action(changed, found) == {"how": "restart", "why": "flag a-first, flag profiling, flag v"}


def test_a_binary_exchanged_under_the_same_release_is_a_release_change(scheduler):
    scheduler.live()
    with Path(scheduler.row["binary"]).open("a") as binary:
        binary.write("# patched\n")
    found = scheduler.differences(scheduler.row)
    assert set(found) == {"generation", "release"}
    assert scheduler.action(scheduler.row, found)["how"] == "restart"


def test_differences_never_show_a_secret(node, rows, material):
    files = {"token.csv": {"pillar": "kubernetes_controller_pki:token"}, "note.txt": {"text": "old"}}
    set_pillar(node, "token", "password-of-old,me,1")
    one = Generations(node, rows({"apiserver": {"files": files}})["kube-apiserver"])
    one.live()
    for name in material:
        if name.endswith(".key"):
            set_pillar(node, name, material["admin.key"])
        elif name.startswith("encryption-key"):
            set_pillar(node, name, material["encryption-key2"])
    set_pillar(node, "token", "password-of-new,me,1")
    files = {**files, "note.txt": {"text": "new"}}
    found = one.differences(rows({"apiserver": {"files": files}})["kube-apiserver"])
    assert {"tls.key", "encryption.yaml", "token.csv", "note.txt"} <= set(found["files"])
    assert found["files"]["tls.key"] == "changed (secret, not shown)"
    assert "-old" in found["files"]["note.txt"]
    assert "+new" in found["files"]["note.txt"]
    assert_no_secrets(str(found), {**material, "a": "password-of-old", "b": "password-of-new"})


def test_a_secret_that_becomes_a_plain_text_is_not_shown_either(node, rows, material):
    set_pillar(node, "token", "password-of-old,me,1")
    one = Generations(
        node, rows({"apiserver": {"files": {"token.csv": {"pillar": "kubernetes_controller_pki:token"}}}})["kube-apiserver"]
    )
    one.live()
    found = one.differences(rows({"apiserver": {"files": {"token.csv": {"text": "nothing"}}}})["kube-apiserver"])
    assert "password-of-old" not in str(found)


def assert_no_secrets(text, material):
    for name, secret in material.items():
        if not name.endswith((".crt", ".pub")):
            lines = [line for line in secret.splitlines() if "-----" not in line]
            forms = [secret, *lines, base64.b64encode(secret.encode()).decode()]
            assert not [form for form in forms if form in text], name


def test_a_certificate_change_is_told_by_subject_serial_and_date(apiserver, authorities):
    apiserver.live()
    new = authorities["kubernetes"].issue("new-one", ["serverAuth"], ["10.8.0.101"])
    set_pillar(apiserver.minion, "apiserver.crt", new.crt)
    found = apiserver.differences(apiserver.row)["files"]
    assert set(found) == {"tls.crt"}
    assert found["tls.crt"]["old"].startswith("CN=kube-apiserver, serial ")
    assert found["tls.crt"]["new"].startswith("CN=new-one, serial ")


def test_a_second_certificate_of_a_bundle_is_told_too(apiserver, new_authority):
    apiserver.live()
    set_pillar(apiserver.minion, "signer-ca.crt", new_authority("new-signer").crt)
    found = apiserver.differences(apiserver.row)["files"]["client-ca.crt"]
    assert found["old"] != found["new"]


def test_a_structured_file_with_a_certificate_inside_is_told_by_what_changed_in_it(node, rows, authorities):
    def declared(url):
        document = {"jwt": [{"issuer": {"certificateAuthority": authorities["kubernetes"].crt, "url": url}}]}
        return rows({"apiserver": {"files": {"authentication.yaml": {"yaml": document}}}})["kube-apiserver"]

    one = Generations(node, declared("https://old"))
    one.live()
    found = one.differences(declared("https://new"))["files"]["authentication.yaml"]
    assert [line.strip() for line in found.splitlines() if "https" in line] == ["-    url: https://old", "+    url: https://new"]


@pytest.mark.parametrize(
    ("change", "how", "why"),
    [
        ({"files": {"tls.crt": "x"}}, "reload", "file tls.crt"),
        ({"files": {"tls.crt": "x", "tls.key": "x"}}, "reload", "file tls.crt, file tls.key"),
        ({"files": {"encryption.yaml": "x"}}, "restart", "file encryption.yaml"),
        ({"files": {"tls.crt": "x", "ca.crt": "x"}}, "restart", "file tls.crt, file ca.crt"),
        ({"files": {"gone.txt": "removed"}}, "restart", "file gone.txt"),
        ({"files": {"tls.crt": "x"}, "flags": {"v": {}}}, "restart", "flag v, file tls.crt"),
        ({"files": {"tls.crt": "x"}, "unit": "x"}, "restart", "unit, file tls.crt"),
        ({"release": {}}, "restart", "release"),
    ],
)
def test_only_what_the_component_takes_up_by_itself_is_a_reload(modules, resolve, change, how, why):
    row = resolve()["components"]["kube-apiserver"]
    assert modules["k8s_generation.action"](row, {"generation": {}, **change}) == {"how": how, "why": why}


def test_touching_changes_times_and_no_content(apiserver, helpers):
    directory = apiserver.home / "generations" / apiserver.live()
    for path in directory.iterdir():
        os.utime(path, (1, 1))
    before = helpers.tree(apiserver.home)
    apiserver.touch(str(apiserver.home))
    assert helpers.tree(apiserver.home) == before
    assert all(path.stat().st_mtime > 1 for path in directory.iterdir())


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_the_home_may_vanish_between_runs(scheduler):
    scheduler.live()
    shutil.rmtree(scheduler.home)
    assert scheduler.links(str(scheduler.home)) == {"live": None, "good": None}
    assert scheduler.differences(scheduler.row)["release"] == {"old": None, "new": "1.37.2"}
