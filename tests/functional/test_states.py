"""The small states: the same changes in test mode and for real, and none in a second run."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import salt.utils.files
from salt.exceptions import CommandExecutionError

PKI = "kubernetes_controller_pki"


def expected(testmode):
    return None if testmode else True


# -- k8s_binary.installed ---------------------------------------------------------------------------------------------


@pytest.fixture
def download(mirror, tmp_path):
    mirror.files |= {"/kubectl": b"kubectl", "/kubectl.sha512": hashlib.sha512(b"kubectl").hexdigest().encode()}
    for path in (tmp_path, tmp_path.parent):  # pytest makes them for their owner alone; a way to binaries is open to all
        path.chmod(path.stat().st_mode | 0o055)
    return {"name": "kubectl", "row": mirror.row("kubectl", tmp_path / "opt/1.37.2/bin")}


def test_a_binary_is_fetched_once(node, apply, testmode, download, mirror):
    ret = apply(testmode, node, "k8s_binary.installed", **download)
    assert ret.changes == {"kubectl": {"old": "missing", "new": download["row"]["source"]}}
    assert ret.result is expected(testmode)
    assert len(mirror.asked) == (0 if testmode else 2)


def test_a_release_that_a_umask_closed_is_opened_again_and_not_fetched(node, apply, testmode, download, mirror, tmp_path):
    top = tmp_path / "opt/kubernetes"
    row = download["row"] | {"directory": str(top / "1.37.2/bin"), "release_dir": str(top)}
    before = os.umask(0o077)
    try:
        node.state("k8s_binary.installed", "kubectl", row=row)
    finally:
        os.umask(before)
    made = [top, top / "1.37.2", top / "1.37.2/bin", top / "1.37.2/bin/kubectl"]
    assert [oct(path.stat().st_mode & 0o777) for path in (top.parent, *made)] == ["0o755"] * 5
    for path in made:
        path.chmod(0o750)
    asked = len(mirror.asked)
    ret = apply(testmode, node, "k8s_binary.installed", name="kubectl", row=row)
    assert ret.changes == {str(path): {"old": "0750", "new": "open to all"} for path in made}
    assert ret.result is expected(testmode)
    assert len(mirror.asked) == asked


def test_a_replaced_binary_is_fetched_again(node, apply, testmode, download, tmp_path):
    node.state("k8s_binary.installed", **download)
    (tmp_path / "opt/1.37.2/bin/kubectl").write_text("evil")
    ret = apply(testmode, node, "k8s_binary.installed", **download)
    assert ret.changes["kubectl"]["old"].startswith("replaced: sha256 ")
    assert (tmp_path / "opt/1.37.2/bin/kubectl").read_text() == ("evil" if testmode else "kubectl")


def test_a_binary_with_another_time_is_no_change(node, apply, testmode, download, tmp_path):
    node.state("k8s_binary.installed", **download)
    os.utime(tmp_path / "opt/1.37.2/bin/kubectl", (1, 1))
    ret = apply(testmode, node, "k8s_binary.installed", **download)
    assert (ret.result, ret.changes) == (True, {})


@pytest.mark.parametrize("touched", [False, True])
def test_a_right_pin_of_another_algorithm_is_no_change(node, apply, testmode, download, mirror, tmp_path, touched):
    mirror.files["/kubectl.sha512"] = hashlib.sha256(b"kubectl").hexdigest().encode()
    node.state("k8s_binary.installed", **download)
    mirror.asked.clear()
    if touched:
        os.utime(tmp_path / "opt/1.37.2/bin/kubectl", (1, 1))
    pinned = download["row"] | {"checksum": hashlib.sha512(b"kubectl").hexdigest()}
    ret = apply(testmode, node, "k8s_binary.installed", "kubectl", row=pinned)
    assert (ret.result, ret.changes, mirror.asked) == (True, {}, [])
    known = json.loads((tmp_path / "opt/1.37.2/bin/.installed.json").read_text())["kubectl"]
    assert ("sha512" in known["source"]) is not testmode
    assert (known["stat"][1] == 1_000_000_000) is (touched and not testmode)


def test_a_wrong_checksum_fails_with_both_sums(node, download, mirror):
    mirror.files["/kubectl"] = b"evil"
    ret = node.state("k8s_binary.installed", **download)
    assert (ret.result, ret.changes) == (False, {})
    for content in (b"kubectl", b"evil"):
        assert hashlib.sha512(content).hexdigest() in ret.comment


@pytest.mark.parametrize("refused", ["mkdtemp", "write", "chmod", "sync", "replace", "remember"])
def test_a_place_that_cannot_be_written_fails_with_path_and_reason(node, download, tmp_path, monkeypatch, refused):
    place, function = {
        "mkdtemp": (tempfile, "mkdtemp"),
        "write": (salt.utils.files, "fopen"),
        "chmod": (os, "chmod"),
        "replace": (os, "replace"),
        "sync": (os, "open"),
        "remember": (tempfile, "mkstemp"),
    }[refused]
    real = getattr(place, function)

    def full(*args, **kw):
        if str(tmp_path / "opt/1.37.2/bin") in str((args, kw)) and (refused != "write" or "wb" in args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kw)

    monkeypatch.setattr(place, function, full)
    ret = node.state("k8s_binary.installed", **download)
    assert (ret.result, ret.changes, ret.comment) == (False, {}, f"{tmp_path}/opt/1.37.2/bin: No space left on device")


def test_a_dead_mirror_fails_naming_its_pillar_key(node, download):
    row = {**download["row"], "sums": "http://127.0.0.1:1/sums"}
    ret = node.state("k8s_binary.installed", "kubectl", row=row)
    assert (ret.result, ret.changes) == (False, {})
    assert ret.comment.startswith("kubernetes_controller:binaries:mirror: cannot fetch http://127.0.0.1:1/sums: ")


@pytest.mark.parametrize("dead", [False, True])
def test_a_mirror_is_asked_once_and_only_where_something_is_missing(node, testmode, download, mirror, dead):
    row = download["row"] | ({"source": "http://127.0.0.1:1/kubectl"} if dead else {"source": download["row"]["source"] + ".not"})
    ret = node.state("k8s_binary.reachable", "kubernetes_controller:binaries:mirror", test=testmode, rows=[row, row])
    assert (ret.result, ret.changes) == (testmode or not dead, {})
    if dead and not testmode:
        assert ret.comment.startswith("kubernetes_controller:binaries:mirror: cannot fetch http://127.0.0.1:1/kubectl: ")
    node.state("k8s_binary.installed", **download)
    mirror.asked.clear()
    node.state(
        "k8s_binary.reachable", "kubernetes_controller:binaries:mirror", rows=[download["row"] | {"source": row["source"]}]
    )
    assert mirror.asked == []


# -- k8s_binary.linked ------------------------------------------------------------------------------------------------


@pytest.fixture
def linked(mirror, tmp_path):
    """What the links for people are, which lead to another release so far, and a component that is live."""
    home, link = tmp_path / "home", tmp_path / "people/kubectl"
    (home / "generations/a").mkdir(parents=True)
    (home / "generations/a/start").write_text("#!/bin/sh\n# kube-apiserver 1.37.2 sha256:0\nexec /nowhere\n")
    (home / "live").symlink_to("generations/a")
    link.parent.mkdir()
    link.symlink_to("/opt/kubernetes/1.36.3/bin/kubectl")
    row = mirror.row("kubectl", tmp_path / "opt/1.37.2/bin")
    return row | {"links": {str(link): str(tmp_path / "opt/1.37.2/bin/kubectl")}, "runs": runs("1.37.2", home)}


def runs(release, home):
    return {"name": "kube-apiserver", "home": str(home), "release": release}


def test_links_for_people_follow_what_runs(node, apply, testmode, linked):
    ((link, target),) = linked["links"].items()
    ret = apply(testmode, node, "k8s_binary.linked", "kubectl", row=linked)
    assert ret.changes == {link: {"old": "/opt/kubernetes/1.36.3/bin/kubectl", "new": target}}
    assert ret.result is expected(testmode)
    assert os.readlink(link) == ("/opt/kubernetes/1.36.3/bin/kubectl" if testmode else target)


@pytest.mark.parametrize("mode", ["automatic", "manual"])
def test_links_for_people_wait_for_a_release_that_is_not_promoted(node, testmode, linked, tmp_path, mode):
    (link,) = linked["links"]
    row = linked | {"runs": runs("1.38.0", tmp_path / "home"), "mode": mode}
    ret = node.state("k8s_binary.linked", "kubectl", test=testmode, row=row)
    assert os.readlink(link) == "/opt/kubernetes/1.36.3/bin/kubectl"
    if testmode and mode == "automatic":  # the component would be promoted by the same run
        assert (ret.result, set(ret.changes)) == (None, {link})
    else:
        assert (ret.result, ret.changes) == (True, {})
        assert ret.comment == f"{link}: moved once kube-apiserver of this node is promoted to 1.38.0."


@pytest.mark.parametrize("adopt", [False, True])
def test_a_file_in_the_place_of_a_link_is_found_before_anything_is_fetched(node, testmode, linked, mirror, adopt):
    (link,) = linked["links"]
    Path(link).unlink()
    Path(link).write_text("somebody else's")
    mirror.files |= {"/kubectl": b"kubectl", "/kubectl.sha512": hashlib.sha512(b"kubectl").hexdigest().encode()}
    ret = node.state("k8s_binary.installed", "kubectl", test=testmode, row=linked | {"adopt": adopt})
    if not adopt:
        assert (ret.result, ret.changes, mirror.asked) == (False, {}, [])
        assert ret.comment == f"{link}: a file that is not a link; move it away, or choose another kubernetes_controller:bin_dir."
    elif not testmode:
        assert ret.result is True
        assert node.state("k8s_binary.linked", "kubectl", row=linked | {"adopt": True}).result is True
        assert Path(f"{link}.before-adoption").read_text() == "somebody else's"


# -- k8s_binary.pruned ------------------------------------------------------------------------------------------------


def release(directory, version, age):
    path = directory / version
    (path / "bin").mkdir(parents=True)
    (path / "bin/.installed.json").write_text("{}")
    os.utime(path, (1e9 - age, 1e9 - age))
    return str(path)


@pytest.mark.parametrize(("keep", "gone"), [(4, []), (3, [4]), (2, [4, 3]), (1, [4, 3])])
def test_the_oldest_releases_go_but_none_that_a_generation_runs_from(node, apply, testmode, tmp_path, keep, gone):
    releases, home = tmp_path / "opt", tmp_path / "home"
    paths = {age: release(releases, f"1.{40 - age}.0", age) for age in (1, 2, 3, 4)}
    (releases / "not-of-the-formula").mkdir()
    start = home / "generations/0123/start"
    start.parent.mkdir(parents=True)
    start.write_text("#!/bin/sh\n# kube-scheduler 1.38.0 sha256:0\nexec /opt/kubernetes/1.38.0/bin/kube-scheduler\n")
    row = {"directory": str(releases), "declared": "1.39.0", "homes": [str(home)], "keep": keep}
    ret = apply(testmode, node, "k8s_binary.pruned", str(releases), row=row)
    assert ret.changes == ({"removed": [paths[age] for age in gone]} if gone else {})
    assert ret.result is (None if testmode and gone else True)
    left = [path for age, path in paths.items() if testmode or age not in gone]
    assert sorted(str(path) for path in releases.iterdir()) == sorted([*left, str(releases / "not-of-the-formula")])


def test_what_a_killed_fetch_left_goes_and_one_at_work_stays(node, apply, testmode, tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    directory = tmp_path / "opt/1.39.0/bin"
    left, used = directory / f".fetch-{gone.pid}-abc", directory / f".fetch-{os.getpid()}-abc"
    for path in (left, used):
        path.mkdir(parents=True)
        (path / "kube-apiserver").write_text("half of it")
    row = {"directory": str(tmp_path / "opt"), "declared": "1.39.0", "homes": [], "keep": 3}
    ret = apply(testmode, node, "k8s_binary.pruned", str(tmp_path / "opt"), row=row)
    assert ret.changes == {"removed": [str(left)]}
    assert (left.exists(), used.exists()) == (testmode, True)


# -- k8s_kubeconfig.managed -------------------------------------------------------------------------------------------


@pytest.fixture
def kubeconfig(tmp_path):
    return {
        "name": str(tmp_path / "admin/config"),
        "server": "https://10.8.0.101:6443",
        "cluster": "kubernetes",
        "user": "kubernetes-admin",
        "authority": f"{PKI}:kubernetes-ca.crt",
        "certificate": f"{PKI}:admin.crt",
        "key": f"{PKI}:admin.key",
    }


def test_a_kubeconfig_is_written_once(node, apply, testmode, kubeconfig):
    ret = apply(testmode, node, "k8s_kubeconfig.managed", **kubeconfig)
    assert ret.changes == {"file": {"old": None, "new": "kubeconfig for https://10.8.0.101:6443"}}
    assert ret.result is expected(testmode)


def test_a_kubeconfig_that_was_another_is_kept_and_only_the_latest_are(node, apply, testmode, kubeconfig, tmp_path):
    kubeconfig |= {"keep": str(tmp_path / "pki")}
    (tmp_path / "pki").mkdir()
    (tmp_path / "admin").mkdir()
    Path(kubeconfig["name"]).write_text("of the operator, mode 0644")
    os.chmod(kubeconfig["name"], 0o644)
    apply(testmode, node, "k8s_kubeconfig.managed", **kubeconfig)
    kept = list((tmp_path / "pki/kept").glob("*/admin/kubeconfig"))
    assert [path.read_text() for path in kept] == ([] if testmode else ["of the operator, mode 0644"])
    assert [path.stat().st_mode & 0o777 for path in kept] == ([] if testmode else [0o600])
    for number in range(8):
        apply(testmode, node, "k8s_kubeconfig.managed", **{**kubeconfig, "user": f"user-{number}"})
    assert len(list((tmp_path / "pki/kept").glob("*/admin/kubeconfig"))) == (0 if testmode else 5)


def test_a_kubeconfig_with_another_mode_only_is_not_kept(node, kubeconfig, tmp_path):
    node.state("k8s_kubeconfig.managed", **kubeconfig)
    os.chmod(kubeconfig["name"], 0o644)
    assert node.state("k8s_kubeconfig.managed", keep=str(tmp_path / "pki"), **kubeconfig).changes
    assert not (tmp_path / "pki").exists()


@pytest.mark.parametrize(
    ("other", "changes"),
    [
        ({"server": "https://10.8.0.102:6443"}, {"server": {"old": "https://10.8.0.101:6443", "new": "https://10.8.0.102:6443"}}),
        ({"user": "me"}, {"user": {"old": "kubernetes-admin", "new": "me"}}),
        ({"mode": "0640"}, {"mode": {"old": "0600", "new": "0640"}}),
        (
            {"owner": "daemon", "group": "daemon"},
            {"user": {"old": "root", "new": "daemon"}, "group": {"old": "root", "new": "daemon"}},
        ),
        ({"cluster": "other"}, {"layout": {"old": "other", "new": "as declared"}}),
    ],
)
def test_what_a_kubeconfig_changes_in_is_told(node, apply, testmode, kubeconfig, other, changes):
    node.state("k8s_kubeconfig.managed", **kubeconfig)
    ret = apply(testmode, node, "k8s_kubeconfig.managed", **{**kubeconfig, **other})
    assert (ret.result, ret.changes) == (expected(testmode), changes)


def test_an_exchanged_key_is_told_without_the_key(node, apply, testmode, kubeconfig, material):
    node.state("k8s_kubeconfig.managed", **kubeconfig)
    node.opts["pillar"][PKI]["admin.key"] = material["scheduler.key"]
    ret = apply(testmode, node, "k8s_kubeconfig.managed", **kubeconfig)
    assert set(ret.changes) == {"key"}
    assert ret.changes["key"]["old"] != ret.changes["key"]["new"]
    for name in ("admin.key", "scheduler.key"):
        assert material[name].splitlines()[1] not in str(ret)


@pytest.mark.parametrize("mended_before", [False, True])
def test_a_missing_credential_fails_naming_it_unless_a_step_before_makes_it(node, apply, testmode, kubeconfig, mended_before):
    asked = {**kubeconfig, "key": "/nowhere/admin.key", "mended_before": mended_before}
    ret = apply(testmode, node, "k8s_kubeconfig.managed", again=False, **asked)
    assert (ret.result, ret.changes) == (None if testmode and mended_before else False, {})
    assert "/nowhere/admin.key: No such file or directory" in ret.comment


def test_a_credential_that_no_step_mends_fails_in_test_mode_too(node, testmode, kubeconfig, tmp_path):
    (tmp_path / "admin.crt").write_bytes(b"\x30\x82\xff")
    asked = {**kubeconfig, "certificate": str(tmp_path / "admin.crt"), "mended_before": True}
    ret = node.state("k8s_kubeconfig.managed", test=testmode, **asked)
    assert (ret.result, ret.changes) == (False, {})
    assert ret.comment == f"{tmp_path}/admin.crt: not a text (DER?). Put PEM there."


def test_an_owner_that_does_not_exist_is_a_failure(node, kubeconfig):
    ret = node.state("k8s_kubeconfig.managed", **kubeconfig, owner="nobody-of-that-name")
    assert ret.result is False
    assert "nobody-of-that-name" in ret.comment


def test_a_place_that_cannot_be_written_is_a_sentence(node, kubeconfig):
    Path(kubeconfig["name"]).parent.write_text("a file")
    ret = node.state("k8s_kubeconfig.managed", **kubeconfig)
    assert ret.result is False
    assert str(Path(kubeconfig["name"]).parent) in ret.comment


# -- k8s_preflight.passed ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_foreign(node):
    """This machine need not run systemd, has not the addresses of controller-1, no neighbours and no etcd."""
    node.fake("k8s_component.foreign", return_value=None)
    node.fake("k8s_host.ports", return_value=[])
    node.fake("k8s_skew.neighbours", return_value={})
    node.fake("k8s_preflight.etcd", return_value=[])
    node.fake("k8s_etcd_members.refusals", return_value=[])


def test_a_node_whose_declaration_fits_passes(node, apply, testmode, rows):
    ret = apply(testmode, node, "k8s_preflight.passed", "fits", components=rows())
    assert (ret.result, ret.changes) == (True, {})
    assert ret.comment == (
        "etcd, kube-apiserver, kube-controller-manager, kube-scheduler: certificates, files and flags fit together."
    )


def test_what_does_not_fit_fails_in_both_modes_and_tells_all(node, apply, testmode, rows, material):
    node.opts["pillar"][PKI] |= {"scheduler.key": material["admin.key"], "apiserver.crt": material["admin.crt"]}
    components = rows({"scheduler": {"settings": {"profilling": False}}}, binaries=False)
    rows()
    ret = apply(testmode, node, "k8s_preflight.passed", "fits", components=components)
    assert (ret.result, ret.changes) == (False, {})
    for part in (
        f"{PKI}:scheduler.crt (kube-scheduler, kubeconfig): the key belongs to another certificate.",
        f"{PKI}:apiserver.crt (kube-apiserver, tls.crt): its extended key usage does not include serverAuth.",
        "kubernetes_controller:scheduler:settings:profilling: kube-scheduler 1.37.2 has no such flag (nearest: profiling).",
    ):
        assert part in ret.comment
    assert ret.comment.endswith("\nNothing was touched.")


def test_what_is_missing_fails_for_real_and_is_not_knowable_in_test_mode(node, apply, testmode, rows):
    del node.opts["pillar"][PKI]["etcd-ca.crt"]
    ret = apply(testmode, node, "k8s_preflight.passed", "fits", again=False, components=rows())
    assert (ret.result, ret.changes) == (None if testmode else False, {})
    for name in ("etcd", "kube-apiserver"):
        assert f"pillar {PKI}:etcd-ca.crt is missing, {name} needs it." in ret.comment
    assert ret.comment.startswith("Not knowable yet: ") is testmode


def unmanaged(components):
    components["kube-scheduler"] |= {"binary": "/nowhere/kube-scheduler", "binary_managed": False}


FOREVER = {
    "a key of the pillar": (
        {"apiserver": {"files": {"extra.yaml": {"pillar": "nowhere:at-all"}}}},
        lambda components: None,
        "pillar nowhere:at-all: missing, or not a text.",
    ),
    "bytes": (
        {"apiserver": {"files": {"extra.yaml": {"pillar": "some:bytes"}}}},
        lambda components: None,
        "pillar some:bytes: its bytes are no UTF-8 text.",
    ),
    "a binary of the operator's": ({}, unmanaged, "/nowhere/kube-scheduler: No such file or directory."),
}


@pytest.mark.parametrize("fault", FOREVER)
def test_what_no_step_before_mends_is_an_error_in_test_mode_too_and_told_beside_what_is_to_come(node, testmode, rows, fault):
    layer, change, said = FOREVER[fault]
    components = rows(layer)
    change(components)
    node.opts["pillar"]["some"] = {"bytes": b"\xff\xfe"}
    del node.opts["pillar"][PKI]["etcd-server.crt"]
    ret = node.state("k8s_preflight.passed", "fits", test=testmode, components=components)
    assert ret.result is False
    assert said in ret.comment
    missing = [line for line in ret.comment.splitlines() if f"pillar {PKI}:etcd-server.crt is missing" in line]
    assert [line.startswith("Not knowable yet: ") for line in missing] == [testmode]


def test_one_part_of_the_preflight_that_cannot_go_on_leaves_the_others_their_sentences(node, rows):
    row = rows()["kube-apiserver"]
    for part in ("k8s_preflight.etcd", "k8s_identity.refusals", "k8s_preflight.not_accepted"):
        node.fake(part, side_effect=CommandExecutionError(f"{part} cannot go on"))
    node.fake("k8s_host.disk", side_effect=OSError(5, "Input/output error", "/var/lib"))
    ret = node.state("k8s_preflight.passed", "fits", components={"kube-apiserver": row})
    assert ret.result is False
    said = ("k8s_preflight.etcd cannot", "k8s_identity.refusals cannot", "k8s_preflight.not_accepted cannot", "'/var/lib'")
    assert [part for part in said if part not in ret.comment] == []


def test_a_draft_that_finds_no_room_is_a_sentence_and_leaves_no_key(node, rows, monkeypatch):
    real = os.fdopen

    def full(handle, mode="r", *args, **kw):
        if "draft" in os.readlink(f"/proc/self/fd/{handle}") and os.readlink(f"/proc/self/fd/{handle}").endswith("tls.key"):
            os.close(handle)
            raise OSError(28, "No space left on device")
        return real(handle, mode, *args, **kw)

    monkeypatch.setattr(os, "fdopen", full)
    ret = node.state("k8s_preflight.passed", "fits", components={"kube-scheduler": rows()["kube-scheduler"]})
    assert ret.result is False
    assert "No space left on device. kube-scheduler is drafted there before it is judged; make room in /run." in ret.comment
    assert not list(Path("/run").glob(f"kubernetes-controller-draft-{os.getpid()}-*"))


def test_a_foreign_process_is_found_before_anything_is_prepared(node, apply, testmode, rows):
    found = "port 10259 is held by process 7 (/usr/bin/kube-scheduler)"
    node.fake("k8s_component.foreign", return_value=found)
    components = {"kube-scheduler": rows()["kube-scheduler"]}
    ret = apply(testmode, node, "k8s_preflight.passed", "fits", again=False, components=components)
    assert (ret.result, ret.changes) == (False, {})
    assert found in ret.comment


@pytest.mark.parametrize("edited", [False, True], ids=["as prepared", "prepared again after a hand edit"])
def test_a_good_component_is_not_asked_again(node, rows, edited):
    row = rows()["kube-scheduler"]
    name = node.modules["k8s_generation.prepare"](row)
    if edited:
        with (Path(row["home"]) / "generations" / name / "start").open("a") as start:
            start.write("# by hand\n")
        name = node.modules["k8s_generation.prepare"](row)
        assert name.endswith(".2")
    for link in ("live", "good"):
        node.modules["k8s_generation.promote"](row["home"], name, link=link)
    check = node.fake("k8s_preflight.check")
    assert node.state("k8s_preflight.passed", "fits", components={"kube-scheduler": row}).result is True
    check.assert_not_called()


def test_what_a_killed_preflight_drafted_is_removed_by_the_next_run_even_when_nothing_is_to_be_asked(node, testmode):
    """Keys are in it. What belongs to a process that lives stays."""
    gone, alive = (Path(f"/run/kubernetes-controller-draft-{pid}-x") for pid in (999999999, 1))
    try:
        for draft in (gone, alive):
            draft.mkdir()
            (draft / "tls.key").write_text("a key")
        assert node.state("k8s_preflight.passed", "fits", test=testmode, components={}).result is True
        assert (gone.exists(), alive.exists()) == (testmode, True)
    finally:
        for draft in (gone, alive):
            shutil.rmtree(draft, ignore_errors=True)


def test_the_faults_of_all_components_and_of_the_node_are_told_at_once(node, apply, testmode, rows):
    components = rows(
        {"scheduler": {"settings": {"profilling": 1}}, "controller_manager": {"settings": {"nope": 1}}}, binaries=False
    )
    rows()
    components = {name: {**row, "release": "1.37.2"} for name, row in components.items()}
    far = {"serves": True, "release": "1.35.4", "clock": time.time() - 3600, "here": time.time(), "said": ""}
    node.fake("k8s_skew.neighbours", return_value={"controller-2": far})
    node.fake("k8s_host.ports", lambda row: [f"port of {row['name']}"] if row["name"] == "etcd" else [])
    node.fake("k8s_host.disk", return_value=["no room"])
    node.fake("k8s_preflight.not_accepted", return_value=["a key"])
    ret = apply(testmode, node, "k8s_preflight.passed", "fits", components=components)
    assert (ret.result, ret.changes) == (False, {})
    *found, last = ret.comment.splitlines()
    assert last == "Nothing was touched."
    for part in (
        "profilling: ",
        "settings:nope: ",
        "port of etcd",
        "no room",
        "that of controller-2 (1.35.4)",
        "3600 s ahead of",
    ):
        assert len([line for line in found if part in line]) == 1, (part, found)
    assert len(found) == 7


def test_a_neighbour_that_was_not_asked_and_a_deprecated_flag_are_told(node, rows):
    row = rows()["kube-apiserver"]
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
    silent = {"serves": False, "release": None, "clock": None, "here": None, "said": "timed out"}
    node.fake("k8s_skew.neighbours", return_value={"controller-2": silent})
    node.fake("k8s_ask_binary.problems", return_value={"errors": [], "warnings": ["an old flag"]})
    ret = node.state("k8s_preflight.passed", "fits", components={"kube-apiserver": row})
    assert ret.result is True
    assert ret.comment.splitlines()[1:] == ["an old flag", "controller-2 was not asked: timed out"]


def test_a_damaged_binary_fails_with_a_sentence(node, rows):
    row = rows()["kube-scheduler"]
    Path(row["binary"]).write_bytes(b"\0" * 100)
    ret = node.state("k8s_preflight.passed", "fits", components={"kube-scheduler": row})
    assert ret.result is False
    assert row["binary"] in ret.comment


# -- k8s_health.ready -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mended_before", [False, True])
@pytest.mark.parametrize("sick", [(), ("kube-scheduler",)])
def test_readiness_is_a_table_and_changes_nothing(node, testmode, rows, sick, mended_before):
    def answer(row, since=None, timeout_s=None, consecutive=None):
        assert (timeout_s == 0) is testmode
        return {"ok": row["name"] not in sick, "said": f"{row['name']} said so", "seconds": 0.1}

    node.fake("k8s_health.wait", answer)
    components = rows(binaries=False)
    ret = node.state("k8s_health.ready", "serves", test=testmode, components=components, mended_before=mended_before)
    assert ret.changes == {}
    assert ret.result is (True if not sick else None if testmode and mended_before else False)
    assert ret.comment.splitlines() == [f"{'NOT OK' if name in sick else 'ok    '} {name}  {name} said so" for name in components]


def test_what_was_never_installed_is_not_ready(node, rows):
    gone = {"state": "inactive", "pid": 0, "started": None, "restarts": 0, "binary": None, "unit": "", "enabled": False}
    node.fake("k8s_component.process", return_value=gone)
    node.fake("k8s_component.complaint", return_value="")
    components = {"kube-scheduler": rows()["kube-scheduler"]}
    ret = node.state("k8s_health.ready", "serves", test=True, components=components, mended_before=True)
    assert ret.result is None
    assert ret.comment == "NOT OK kube-scheduler  not installed: no generation is live"


@pytest.mark.parametrize(("kind", "result"), [("passing", None), ("lasting", False)])
def test_of_members_no_step_mends_what_lasts_so_a_test_run_fails_as_the_real_one(node, rows, testmode, kind, result):
    node.fake("k8s_health.wait", return_value={"ok": True, "said": "fine", "seconds": 0.1})
    node.fake("k8s_health.members", return_value={"lasting": [], "passing": [], kind: ["a member is a learner"]})
    components = rows(binaries=False)
    ret = node.state("k8s_health.ready", "serves", test=testmode, components=components, mended_before=True)
    assert ret.result is (result if testmode else False)
    assert ret.comment.splitlines()[-1] == "NOT OK a member is a learner"


def test_what_a_node_remembers_and_cannot_be_read_is_nothing(node, rows):
    row = rows()["kube-apiserver"]
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
    for text in ("null", "[]", '{"a": 1'):
        for name in ("failed.json", "rehearsed.json"):
            (Path(row["home"]) / name).write_text(text)
        assert node.modules["k8s_generation.failures"](row["home"]) == {}
        assert node.modules["k8s_rehearsal.needed"](row, "x") is True


# -- k8s_object.applied -----------------------------------------------------------------------------------------------

ROLE = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "reader"},
    "rules": [{"verbs": ["get"]}],
}


@pytest.fixture
def api(node):
    """An API server that has ``objects`` by path and can be made to ``refuse``."""
    import json

    class Api:
        objects, refuse, asked = {}, None, []

        def __call__(self, row, path, method="GET", body=None, content_type="application/json"):
            self.asked.append((method, path))
            if self.refuse:
                return self.refuse
            path, _, query = path.partition("?")
            if path in ("/api/v1", "/apis/rbac.authorization.k8s.io/v1"):
                kinds = [("namespaces/status", "Namespace"), ("namespaces", "Namespace"), ("clusterroles", "ClusterRole")]
                return {"status": 200, "body": json.dumps({"resources": [{"name": n, "kind": k} for n, k in kinds]})}
            if method == "PATCH":
                assert content_type == "application/apply-patch+yaml"
                assert query == "fieldManager=kubernetes-controller-formula&force=true"
                self.objects[path] = {**json.loads(body), "status": {"set": "by the server"}}
            found = self.objects.get(path)
            return {"status": 200, "body": json.dumps(found)} if found else {"status": 404, "body": "not found"}

    api = Api()
    api.objects, api.asked = {}, []
    node.fake("k8s_health.api", api)
    return api


def test_an_object_is_applied_once(node, apply, testmode, api):
    ret = apply(testmode, node, "k8s_object.applied", "reader", api={}, document=ROLE)
    assert (ret.result, ret.changes) == (expected(testmode), {"object": {"old": None, "new": "ClusterRole reader"}})
    assert list(api.objects) == ([] if testmode else ["/apis/rbac.authorization.k8s.io/v1/clusterroles/reader"])


def test_only_fields_that_are_declared_are_compared(node, apply, testmode, api):
    node.state("k8s_object.applied", "reader", api={}, document=ROLE)
    changed = {**ROLE, "rules": [{"verbs": ["list"]}]}
    ret = apply(testmode, node, "k8s_object.applied", "reader", api={}, document=changed)
    assert ret.changes == {"rules": {"old": [{"verbs": ["get"]}], "new": [{"verbs": ["list"]}]}}
    assert ret.result is expected(testmode)


def test_what_the_api_server_completes_in_a_list_is_no_difference(node, api):
    node.state("k8s_object.applied", "reader", api={}, document=ROLE)
    (path,) = api.objects
    api.objects[path]["rules"] = [{"verbs": ["get"], "apiGroups": [""]}]
    assert node.state("k8s_object.applied", "reader", api={}, document=ROLE).changes == {}
    api.objects[path]["rules"] += [{"verbs": ["list"]}]
    assert node.state("k8s_object.applied", "reader", api={}, document=ROLE).changes


@pytest.mark.parametrize(
    ("refuse", "document", "says"),
    [
        ({"status": 403, "body": "forbidden"}, ROLE, "ClusterRole reader: the API server said 403: forbidden"),
        (None, {**ROLE, "kind": "Rolle"}, "the API server knows no Rolle in rbac.authorization.k8s.io/v1"),
    ],
)
def test_what_the_api_server_refuses_is_told_in_test_mode_too(node, testmode, api, refuse, document, says):
    api.refuse = refuse
    ret = node.state("k8s_object.applied", "reader", test=testmode, api={}, document=document)
    assert (ret.result, ret.changes) == (False, {})
    assert says in ret.comment


def test_while_the_api_server_is_to_change_a_test_run_does_not_know_what_it_will_refuse(node, testmode, api, rows):
    api.refuse = {"status": 404, "body": "no such group"}
    node.fake("k8s_config.load", return_value={"components": rows()})
    ret = node.state("k8s_object.applied", "reader", test=testmode, api={}, document=ROLE)
    assert (ret.result, ret.changes) == (None if testmode else False, {})


def test_without_an_api_server_an_object_is_not_knowable(node, testmode, rows):
    row = rows(binaries=False)["kube-apiserver"]
    ret = node.state("k8s_object.applied", "reader", test=testmode, api=row["api"], document=ROLE)
    assert (ret.result, ret.changes) == (None if testmode else False, {})
    assert "no generation of the API server is live" in ret.comment


def test_an_answer_that_is_no_object_and_a_name_that_is_no_path_are_sentences(node, testmode, api):
    api.refuse = {"status": 200, "body": "<html>a proxy</html>"}
    ret = node.state("k8s_object.applied", "reader", test=testmode, api={}, document=ROLE)
    assert (ret.result, "answered with something else: <html>" in ret.comment) == (False, True)
    api.refuse = None
    spaced = {**ROLE, "metadata": {"name": "a reader"}}
    assert node.state("k8s_object.applied", "reader", test=testmode, api={}, document=spaced).changes
    assert api.asked[-1][1].split("?")[0].endswith("/clusterroles/a%20reader")


# -- k8s_pki.managed --------------------------------------------------------------------------------------------------


@pytest.fixture
def pki(resolve, tmp_path):
    """Return a function: the arguments of the state for a cluster of one, whose files are below tmp_path."""

    def declared(*layers):
        one = {"controllers": {"controller-2": None, "controller-3": None}, "pki": {"directory": str(tmp_path / "pki")}}
        return {"name": str(tmp_path / "pki"), "pki": resolve(one, *layers, node=None)["pki"]}

    return declared


def test_all_certificates_are_made_once_and_fit(node, apply, testmode, pki, resolve):
    node.state("k8s_pki.managed", test=True, **pki())
    before = node.modules["k8s_pki.differences"](pki()["pki"])
    ret = apply(testmode, node, "k8s_pki.managed", **pki())
    assert ret.changes == {path: {"old": why, "new": "as declared"} for path, why in before.items()}
    assert ret.result is expected(testmode)
    assert ret.comment == f"{len(before)} files {'would be' if testmode else 'were'} made."


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ({"endpoint": {"host": "k8s.example.com"}}, "names and addresses differ"),
        ({"pki": {"days_remaining": 400, "days_valid": 3000}}, " days left"),
        ({"pki": {"certificates": {"apiserver": {"common_name": "other"}}}}, "subject was CN=kube-apiserver"),
        ({"pki": {"certificates": {"apiserver": {"usage": ["serverAuth", "clientAuth"]}}}}, "usage differs"),
    ],
)
def test_a_certificate_that_is_declared_otherwise_gets_a_new_key_with_it(node, apply, testmode, pki, tmp_path, layer, reason):
    node.state("k8s_pki.managed", **pki())
    share = tmp_path / f"pki/hosts/controller-1/{PKI}"
    key, authority = (share / "apiserver.key").read_text(), (tmp_path / "pki/authorities/kubernetes-ca.crt").read_text()
    again = "days" not in reason  # a lifetime shorter than what has to remain is made anew every time
    ret = apply(testmode, node, "k8s_pki.managed", again=again, **pki(layer))
    for kind in ("crt", "key"):
        assert ret.changes[str(share / f"apiserver.{kind}")]["old"].endswith(reason)
    assert ((share / "apiserver.key").read_text() == key) is testmode
    assert (tmp_path / "pki/authorities/kubernetes-ca.crt").read_text() == authority


def test_a_renewal_that_is_asked_for_makes_every_leaf_anew_and_nothing_else(node, apply, testmode, pki, tmp_path):
    node.state("k8s_pki.managed", **pki())
    rows = pki()["pki"]["certificates"]
    leaves = {row[part]: Path(row[part]).read_bytes() for row in rows for part in ("key", "path")}
    kept = {path: path.read_bytes() for path in (tmp_path / "pki").rglob("*") if path.is_file() and str(path) not in leaves}
    assert tmp_path / "pki/authorities/kubernetes-ca.key" in kept
    assert tmp_path / "pki/shared/service-account.key" in kept
    ret = apply(testmode, node, "k8s_pki.managed", again=False, force=True, **pki())
    assert ret.result is (None if testmode else True)
    assert {change["old"] for change in ret.changes.values()} == {"its renewal was asked for"}
    assert set(ret.changes) == set(leaves)
    assert {path for path, old in leaves.items() if (Path(path).read_bytes() == old) is not testmode} == set()
    assert kept == {path: path.read_bytes() for path in kept}


@pytest.mark.parametrize(
    ("spoil", "key_why", "why"),
    [
        (lambda row: os.unlink(row["key"]), "missing", "its key was missing"),
        (lambda row: os.unlink(row["path"]), "missing", "missing"),
        (lambda row: Path(row["key"]).write_text(row["other"]), None, "the key is another"),
    ],
    ids=["key lost", "certificate lost", "another key"],
)
def test_a_pair_that_is_broken_is_mended_with_the_key_that_is_there_or_a_new_one(node, apply, testmode, pki, spoil, key_why, why):
    node.state("k8s_pki.managed", **pki())
    row, other = pki()["pki"]["certificates"][:2]
    spoil({**row, "other": Path(other["key"]).read_text()})
    ret = apply(testmode, node, "k8s_pki.managed", **pki())
    expected_changes = {row["key"]: key_why, row["path"]: why}
    assert {path: change["old"] for path, change in ret.changes.items()} == {k: v for k, v in expected_changes.items() if v}
    if not key_why:
        assert Path(row["key"]).read_text() == Path(other["key"]).read_text()


@pytest.mark.parametrize("lost", ["authorities/kubernetes-ca.key", "shared/service-account.key", "shared/encryption-key1"])
def test_what_must_never_be_made_anew_is_an_error_when_it_is_lost(node, apply, testmode, pki, tmp_path, lost):
    node.state("k8s_pki.managed", **pki())
    (tmp_path / "pki" / lost).unlink()
    ret = apply(testmode, node, "k8s_pki.managed", again=False, **pki())
    assert (ret.result, ret.changes) == (False, {})
    assert f"{tmp_path}/pki/{lost} is lost" in ret.comment
    assert f"restore it from a backup by `salt-run salt.cmd k8s_kept.restore {tmp_path}/pki {lost} FILE`" in ret.comment or (
        f"` from {tmp_path}/pki/hosts/controller-1/" in ret.comment
    )
    assert not (tmp_path / "pki" / lost).exists()


LIVE = "kube-apiserver of this formula is live on controller-1 (/var/lib/kubernetes/live)"


@pytest.mark.parametrize("left", ["nothing", "empty directories", "brought"])
@pytest.mark.parametrize("force", [False, True])
def test_nothing_is_made_anew_when_the_directory_of_a_cluster_is_lost(node, apply, testmode, pki, tmp_path, left, force):
    if left == "empty directories":
        for name in ("authorities", "shared", f"hosts/controller-1/{PKI}"):
            (tmp_path / "pki" / name).mkdir(parents=True)
    elif left == "brought":
        (tmp_path / "pki/brought").mkdir(parents=True)
        (tmp_path / "pki/brought/oidc-ca.crt").touch()
    before = sorted(tmp_path.rglob("*"))
    ret = apply(testmode, node, "k8s_pki.managed", exists=LIVE, force=force, **pki())
    assert (ret.result, ret.changes) == (False, {})
    assert ret.comment.startswith(f"{tmp_path}/pki has none of the cluster's CAs and keys, but {LIVE}. They are never made anew")
    assert "mount the directory, or restore all of it from the backup" in ret.comment
    assert [path for path in tmp_path.rglob("*") if path not in before and path.name != ".lock"] == []


def test_a_cluster_that_is_there_gets_a_ca_that_it_has_not_got_yet(node, apply, testmode, pki, tmp_path):
    node.state("k8s_pki.managed", **pki({"pki": {"authorities": {"signer": {"enabled": False}}}}))
    ret = apply(testmode, node, "k8s_pki.managed", exists=LIVE, **pki())
    assert ret.result is expected(testmode), ret.comment
    assert f"{tmp_path}/pki/authorities/signer-ca.key" in ret.changes


def test_a_cluster_of_which_all_is_brought_has_nothing_to_lose(node, pki):
    brought = {name: {"managed": False} for name in ("kubernetes", "signer", "etcd", "front-proxy")}
    layer = {"pki": {"authorities": brought, "service_account": {"managed": False}, "encryption": {"managed": False}}}
    ret = node.state("k8s_pki.managed", exists=LIVE, **pki(layer))
    assert "is declared to be brought" in ret.comment


def test_brought_files_that_are_not_there_are_named(node, apply, testmode, pki, tmp_path):
    ret = apply(testmode, node, "k8s_pki.managed", again=False, **pki(EXTERNAL))
    assert ret.result is False
    assert f"{tmp_path}/pki/brought/controller-1/apiserver-etcd-client.crt" in ret.comment
    assert "Put it there" in ret.comment


EXTERNAL = {"etcd": {"managed": False, "servers": ["https://10.0.0.9:2379"]}}


@pytest.fixture
def bring(tmp_path, new_authority):
    """A function: put what an external etcd needs into ``brought/``, of a new CA; return that CA."""

    def done(place="brought"):
        ca, top = new_authority("somebody-elses-etcd-ca"), tmp_path / "pki" / place
        pair = ca.issue("kube-apiserver")
        top.mkdir(parents=True, exist_ok=True)
        for name, text in {
            "etcd-ca.crt": ca.crt,
            "apiserver-etcd-client.crt": pair.crt,
            "apiserver-etcd-client.key": pair.key,
        }.items():
            (top / name).write_text(text)
        return ca

    return done


@pytest.mark.parametrize("place", ["brought", "brought/controller-1"])
def test_an_etcd_that_was_external_gets_a_ca_of_the_masters_and_gives_it_up_again(
    node, apply, testmode, pki, bring, tmp_path, place
):
    share, ca = tmp_path / f"pki/hosts/controller-1/{PKI}", bring(place)
    assert node.state("k8s_pki.managed", **pki(EXTERNAL)).result is True
    ret = apply(testmode, node, "k8s_pki.managed", **pki())
    assert ret.result is expected(testmode), ret.comment
    assert str(tmp_path / "pki/authorities/etcd-ca.key") in ret.changes
    assert ((share / "etcd-ca.crt").read_text() == ca.crt) is testmode
    assert node.state("k8s_pki.managed", **pki(EXTERNAL)).result is True
    for name in ("etcd-ca.crt", "apiserver-etcd-client.crt", "apiserver-etcd-client.key"):
        assert (share / name).read_text() == (tmp_path / "pki" / place / name).read_text()


def test_a_ca_that_is_in_no_place_of_what_was_brought_counts_as_lost(node, apply, testmode, pki, bring, tmp_path):
    former = bring()
    node.state("k8s_pki.managed", **pki(EXTERNAL))
    bring()  # another one in its place, which is kept
    node.state("k8s_pki.managed", **pki(EXTERNAL))
    ret = apply(testmode, node, "k8s_pki.managed", again=False, **pki())
    assert (ret.result, ret.changes) == (False, {})
    assert "authorities/etcd-ca.key is lost (but " in ret.comment and "/kept/" in ret.comment
    (tmp_path / "pki/brought/former").mkdir()
    (tmp_path / "pki/brought/former/etcd-ca.crt").write_text(former.crt)
    assert apply(testmode, node, "k8s_pki.managed", **pki()).result is expected(testmode)


def test_a_key_that_was_brought_is_never_made_anew(node, apply, testmode, pki, tmp_path):
    """What it encrypted is there: the same key has to go into its new place."""
    (tmp_path / "pki/brought").mkdir(parents=True)
    (tmp_path / "pki/brought/encryption-key1").write_text("c2VjcmV0LW9mLXRoZS1maXJzdC1rZXktMzItYnl0ZXM=")
    node.state("k8s_pki.managed", **pki({"pki": {"encryption": {"managed": False}}}))
    ret = apply(testmode, node, "k8s_pki.managed", again=False, **pki())
    assert (ret.result, ret.changes) == (False, {})
    assert "shared/encryption-key1 is lost (but " in ret.comment


def test_nobody_else_can_read_the_masters_files(node, pki, tmp_path):
    node.state("k8s_pki.managed", **pki())
    top = tmp_path / "pki"
    node.state("k8s_pki.managed", force=True, **pki())  # so that there is something kept
    rotate(node, pki(), "sign")
    assert (top / "kept").is_dir()
    closed = [top, *top.iterdir(), *(top / "kept").rglob("*"), *(path for path in top.rglob("*") if path.is_file())]
    assert [path for path in closed if path.stat().st_mode & 0o077] == []


# -- k8s_pki.rotated --------------------------------------------------------------------------------------------------

STEPS = ["trust", "sign", "drop", "end"]


def rotate(node, declared, step):
    for one in STEPS[: STEPS.index(step) + 1]:
        ret = node.state("k8s_pki.rotated", authorities=["kubernetes"], step=one, **declared)
        assert ret.result, ret.comment


@pytest.mark.parametrize("step", STEPS)
def test_a_rotation_is_brought_to_a_step_once(node, apply, testmode, pki, step):
    node.state("k8s_pki.managed", **pki())
    before = [None, *STEPS][STEPS.index(step)]
    if before:
        rotate(node, pki(), before)
    ret = apply(testmode, node, "k8s_pki.rotated", authorities=["kubernetes"], step=step, **pki())
    assert ret.changes == {"kubernetes": {"old": before, "new": step}}
    assert ret.result is expected(testmode)
    said = "kubernetes CA: rotated." if step == "end" else f"kubernetes CA: step {STEPS.index(step) + 1} of 3, {step}: "
    assert ret.comment.startswith("Would be next: " * testmode + said)


def test_a_rotation_that_is_beyond_a_step_stays_there_and_says_where(node, apply, testmode, pki):
    node.state("k8s_pki.managed", **pki())
    rotate(node, pki(), "sign")
    ret = apply(testmode, node, "k8s_pki.rotated", authorities=["kubernetes"], step="trust", **pki())
    assert (ret.result, ret.changes) == (True, {})
    assert ret.comment.startswith("kubernetes CA: step 2 of 3, sign: ")


def test_a_step_before_its_turn_fails(node, apply, pki):
    node.state("k8s_pki.managed", **pki())
    ret = node.state("k8s_pki.rotated", authorities=["kubernetes"], step="drop", **pki())
    assert (ret.result, ret.changes) == (False, {})
    assert "drop does not follow no rotation" in ret.comment


def test_the_state_of_the_certificates_says_that_a_rotation_is_under_way(node, apply, testmode, pki):
    node.state("k8s_pki.managed", **pki())
    rotate(node, pki(), "trust")
    ret = apply(testmode, node, "k8s_pki.managed", again=False, **pki())
    assert f"{'would be' if testmode else 'were'} made. kubernetes CA: step 1 of 3, trust: " in ret.comment
    assert {Path(path).name for path in ret.changes} == {"kubernetes-ca.crt"}


# -- k8s_sls.applied --------------------------------------------------------------------------------------------------

INNER = """\
{%- if pillar.get("kubernetes_controller_synced") %}
The pillar of this run is handed on:
  test.FUNCTION:
    - name: {{ pillar.kubernetes_controller.one_run }}
    - comment: inner comment
{%- endif %}
"""


@pytest.mark.parametrize(
    ("function", "result", "says"),
    [
        ("succeed_without_changes", True, "inner: 1 states, 0 with changes."),
        ("succeed_with_changes", True, "inner: 1 states, 1 with changes."),
        ("fail_without_changes", False, "The pillar of this run is handed on: "),
    ],
)
def test_an_inner_sls_answers_for_the_outer_state(minion, testmode, tmp_path, function, result, says):
    (tmp_path / "inner.sls").write_text(INNER.replace("FUNCTION", function))
    one = minion({"kubernetes_controller": {"one_run": "yes"}}, file_roots=[tmp_path])
    ret = one.state("k8s_sls.applied", "inner", test=testmode)
    changed = function == "succeed_with_changes"
    assert says in ret.comment, ret.comment
    assert ret.result is (None if testmode and changed else result)
    assert list(ret.changes) == (["The pillar of this run is handed on"] if changed else [])


@pytest.mark.parametrize("jid", [None, "20261125040000000000"])
def test_an_inner_sls_of_an_orchestration_belongs_to_it(minion, jid):
    one = minion({"kubernetes_controller": {}})
    sls = one.fake("state.sls", return_value={})
    one.state("k8s_sls.applied", "inner", **({"__orchestration_jid__": jid} if jid else {}))
    handed = {key: sls.call_args.kwargs.get(key) for key in ("orchestration_jid", "__pub_jid")}
    assert handed == dict.fromkeys(handed, jid)


def test_an_inner_sls_that_does_not_render_is_a_failure(minion, tmp_path):
    (tmp_path / "inner.sls").write_text("{{ nonsense.of.this }}")
    ret = minion({"kubernetes_controller": {}}, file_roots=[tmp_path]).state("k8s_sls.applied", "inner")
    assert ret.result is False
    assert "nonsense" in ret.comment


@pytest.mark.parametrize("result", [True, False])
def test_of_an_orchestration_inside_only_names_are_told_and_the_reasons_of_failures(minion, result):
    state = {"__id__": "What changed", "result": result, "comment": "why", "changes": {"diff": "long text"}}
    step = {"__id__": "On the nodes", "name": "x", "result": result, "comment": "Run on minions"}
    step["changes"] = {"out": "highstate", "ret": {"controller-1": {"a_|-b_|-c_|-d": state}, "controller-2": False}}
    one = minion({"kubernetes_controller": {}})
    one.fake("state.sls", return_value={"salt_|-x_|-x_|-state": step})
    ret = one.state("k8s_sls.applied", "inner")
    assert ret.result is result
    assert ret.changes == {"On the nodes": {"controller-1": ["What changed"], "controller-2": False}}
    assert ("controller-1: why" in ret.comment) is not result


def declared_no_more(tmp_path, pattern):
    return {str(path) for path in (tmp_path / "pki/hosts").glob(f"*/{PKI}/{pattern}")}


TWO = {"controllers": {"controller-2": "10.8.0.102"}}


@pytest.mark.parametrize(
    ("layer", "gone"),
    [
        ({"pki": {"authorities": {"signer": {"enabled": False}}}}, "signer-ca.*"),
        ({"controller_manager": {"enabled": False}}, "controller-manager*"),
        ({"controllers": {"controller-2": None}}, "../../controller-2/*/*"),
    ],
)
def test_what_is_declared_no_more_is_kept_and_leaves_the_shares(node, apply, testmode, pki, tmp_path, layer, gone):
    node.state("k8s_pki.managed", **pki(TWO))
    share = tmp_path / f"pki/hosts/controller-1/{PKI}"
    files = {path.resolve() for path in share.glob(gone)} | {path for path in (tmp_path / "pki/hosts").glob(f"*/{PKI}/{gone}")}
    files = {path.resolve(): path.read_text() for path in files if path.is_file()}
    assert len(files) >= 2
    ret = apply(testmode, node, "k8s_pki.managed", **pki(TWO, layer))
    removed = {path for path, change in ret.changes.items() if change["old"] == "declared no more; kept and removed"}
    assert {str(path) for path in files} <= removed
    for path, text in files.items():
        assert path.exists() is testmode
        kept = node.modules["k8s_kept.listed"](str(tmp_path / "pki"), str(path.relative_to(tmp_path / "pki")))
        assert [Path(one).read_text() for one in kept] == ([] if testmode else [text])
    assert declared_no_more(tmp_path, "kubernetes-ca.crt")


def test_an_etcd_that_is_managed_no_more_leaves_no_pairs_in_the_shares(node, apply, testmode, pki, tmp_path):
    node.state("k8s_pki.managed", **pki())
    brought = tmp_path / "pki/brought"
    for name in ("etcd-ca.crt", "apiserver-etcd-client.crt", "apiserver-etcd-client.key"):
        (brought / name).write_text("brought")
    before = declared_no_more(tmp_path, "etcd-*.key")
    assert len(before) == 2
    layer = {"etcd": {"managed": False, "servers": ["https://10.8.0.9:2379"]}}
    ret = apply(testmode, node, "k8s_pki.managed", **pki(layer))
    assert before < set(ret.changes)
    assert declared_no_more(tmp_path, "etcd-*.key") == (before if testmode else set())
    assert (brought / "etcd-ca.crt").exists()


NEW_KEY = {"encryption": [{"resources": ["secrets"], "providers": [{"secretbox": {"keys": ["key2"]}}, {"identity": {}}]}]}


def test_a_former_encryption_key_stays_in_the_shares_until_nobody_reads_with_it(node, apply, testmode, pki, tmp_path):
    node.state("k8s_pki.managed", **pki())
    former = tmp_path / f"pki/hosts/controller-1/{PKI}/encryption-key1"
    node.state("k8s_pki.managed", **pki(NEW_KEY))
    assert former.exists()
    ret = apply(testmode, node, "k8s_pki.managed", dropped=True, **pki(NEW_KEY))
    assert ret.changes == {str(former): {"old": "declared no more; kept and removed", "new": "removed"}}
    assert ret.comment == f"1 files {'would be' if testmode else 'were'} removed."
    assert former.exists() is testmode
    assert (tmp_path / "pki/shared/encryption-key1").exists()


def test_a_ca_whose_share_went_is_still_known_to_have_existed(node, pki, tmp_path):
    node.state("k8s_pki.managed", **pki())
    node.state("k8s_pki.managed", **pki({"pki": {"authorities": {"signer": {"enabled": False}}}}))
    for kind in ("crt", "key"):
        (tmp_path / f"pki/authorities/signer-ca.{kind}").unlink()
    ret = node.state("k8s_pki.managed", **pki())
    assert ret.result is False
    assert "signer-ca.key is lost (but " in ret.comment
    assert f"/hosts/controller-1/{PKI}/signer-ca.key exists" in ret.comment


@pytest.mark.parametrize("days", [1, 30, 90])
def test_a_certificate_for_a_short_time_is_not_due_from_its_first_day_on(node, pki, tmp_path, days):
    short = pki({"pki": {"days_valid": days}})
    assert node.state("k8s_pki.managed", **short).result is True
    assert node.state("k8s_pki.managed", **short).changes == {}


def test_what_is_no_text_is_kept_byte_by_byte(node, pki, tmp_path):
    node.state("k8s_pki.managed", **pki(TWO))
    blob, odd = tmp_path / f"pki/hosts/controller-2/{PKI}/blob", b"\xff\xfe\x00\r\n"
    blob.write_bytes(odd)
    assert node.state("k8s_pki.managed", **pki(TWO, {"controllers": {"controller-2": None}})).result is True
    (kept,) = node.modules["k8s_kept.listed"](str(tmp_path / "pki"), f"hosts/controller-2/{PKI}/blob")
    assert (Path(kept).read_bytes(), blob.exists()) == (odd, False)


def test_what_the_operator_puts_into_a_share_for_a_row_of_his_stays_there(node, pki, tmp_path):
    layer = {"apiserver": {"files": {"ours.pem": {"pillar": f"{PKI}:ours.pem"}}}}
    node.state("k8s_pki.managed", **pki(layer))
    (tmp_path / f"pki/hosts/controller-1/{PKI}/ours.pem").write_text("-----BEGIN OURS-----")
    assert node.state("k8s_pki.managed", **pki(layer)).changes == {}


def test_what_is_brought_in_der_and_a_row_that_no_certificate_can_have_are_sentences(node, testmode, pki, tmp_path):
    layer = {"pki": {"authorities": {"front-proxy": {"managed": False}}}}
    brought = tmp_path / "pki/brought"
    brought.mkdir(parents=True)
    for name in ("front-proxy-ca.crt", "front-proxy-client.crt", "front-proxy-client.key"):
        (brought / name).write_bytes(bytes([0x30, 0x82, 0xFF]))
    ret = node.state("k8s_pki.managed", test=testmode, **pki(layer))
    assert (ret.result, ret.comment) == (False, f"{brought}/front-proxy-ca.crt: not a text (DER?). Put PEM there.")
    strange = pki()
    strange["pki"]["certificates"][0]["sans"].append("DNS:k\u00fcbe.example.com")
    ret = node.state("k8s_pki.managed", **strange)
    assert ret.result is False
    assert "not to be made as kubernetes_controller:pki declares: " in ret.comment


def test_what_a_run_was_asked_for_is_handed_on_to_the_inner_sls(minion):
    asked = {"scheduled": True, "force": ["a.crt"], "authority": "etcd", "until": "trust"}
    one = minion({"kubernetes_controller": {}, "of_another_formula": "yes", **asked})
    sls = one.fake("state.sls", return_value={})
    one.state("k8s_sls.applied", "inner")
    assert sls.call_args.kwargs["pillar"] == {"kubernetes_controller": {}, "kubernetes_controller_synced": True, **asked}
