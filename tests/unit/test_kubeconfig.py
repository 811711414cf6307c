"""Kubeconfigs: rendered, compared without showing secrets, written by one rename."""

import base64
import stat
import traceback

import pytest
import yaml
from salt.exceptions import CommandExecutionError

SERVER = "https://10.8.0.101:6443"


@pytest.fixture
def parts(material):
    return [material["kubernetes-ca.crt"], material["admin.crt"], material["admin.key"]]


def test_a_kubeconfig_has_its_credentials_inside(modules, parts):
    found = yaml.safe_load(modules["k8s_kubeconfig.render"](SERVER, "kubernetes", "me", *parts))
    assert found["current-context"] == "kubernetes"
    assert found["contexts"] == [{"name": "kubernetes", "context": {"cluster": "kubernetes", "user": "me"}}]
    cluster, user = found["clusters"][0], found["users"][0]
    assert (cluster["name"], cluster["cluster"]["server"], user["name"]) == ("kubernetes", SERVER, "me")
    inside = [
        cluster["cluster"]["certificate-authority-data"],
        *(user["user"][f"client-{k}-data"] for k in ("certificate", "key")),
    ]
    assert [base64.b64decode(text).decode() for text in inside] == parts


def test_a_kubeconfig_can_name_the_files_instead(modules):
    found = yaml.safe_load(modules["k8s_kubeconfig.render"](SERVER, "c", "me", "/ca", "/crt", "/key", embed=False))
    assert found["clusters"][0]["cluster"] == {"server": SERVER, "certificate-authority": "/ca"}
    assert found["users"][0]["user"] == {"client-certificate": "/crt", "client-key": "/key"}


def test_rendering_is_the_same_every_time(modules, parts):
    one, other = (modules["k8s_kubeconfig.render"](SERVER, "c", "me", *parts) for _ in range(2))
    assert one == other


def test_references_are_paths_or_pillar_keys(node, material, tmp_path):
    path = tmp_path / "ca.crt"
    path.write_text(material["kubernetes-ca.crt"])
    keys = [f"kubernetes_controller_pki:admin.{kind}" for kind in ("crt", "key")]
    text = node.modules["k8s_kubeconfig.from_references"](SERVER, "c", "me", str(path), *keys)
    expected = [material[name] for name in ("kubernetes-ca.crt", "admin.crt", "admin.key")]
    assert text == node.modules["k8s_kubeconfig.render"](SERVER, "c", "me", *expected)


@pytest.mark.parametrize(
    ("references", "embed", "says"),
    [
        (["/nowhere/ca.crt", "a:b", "a:b"], True, "/nowhere/ca.crt: No such file or directory"),
        (["kubernetes_controller_pki:ca.crt"] * 3, True, "pillar kubernetes_controller_pki:ca.crt: missing"),
        (["kubernetes_controller_pki"] * 3, True, "pillar kubernetes_controller_pki: not a text"),
        (["a:b", "/crt", "/key"], False, "a:b: with embed: false a path is needed"),
    ],
)
def test_a_missing_reference_is_named(node, references, embed, says):
    with pytest.raises(CommandExecutionError, match=says):
        node.modules["k8s_kubeconfig.from_references"](SERVER, "c", "me", *references, embed=embed)


def test_differences_name_what_changed_and_show_no_secret(modules, parts, material, tmp_path):
    path = tmp_path / "config"
    old = modules["k8s_kubeconfig.render"](SERVER, "c", "me", *parts)
    new_parts = [parts[0], material["scheduler.crt"], material["scheduler.key"]]
    new = modules["k8s_kubeconfig.render"]("https://10.8.0.102:6443", "c", "me", *new_parts)
    modules["k8s_kubeconfig.write"](str(path), old)
    assert modules["k8s_kubeconfig.differences"](str(path), old) == {}
    found = modules["k8s_kubeconfig.differences"](str(path), new)
    assert found["server"] == {"old": SERVER, "new": "https://10.8.0.102:6443"}
    assert found["client-certificate"]["new"].startswith("CN=system:kube-scheduler, serial ")
    assert set(found) == {"server", "client-certificate", "key"}
    for key in (parts[2], new_parts[2]):
        assert base64.b64encode(key.encode()).decode() not in str(found)
        assert key not in str(found)


def test_a_kubeconfig_is_its_owners_alone_in_a_directory_of_his(modules, tmp_path):
    path = tmp_path / "new/config"
    modules["k8s_kubeconfig.write"](str(path), "x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["config"]


@pytest.mark.parametrize(
    "present", ["", "garbage: [", "[]", "a: 1", "clusters: []", "{clusters: [{cluster: a}], users: [{name: b}]}"]
)
def test_an_unreadable_file_is_a_difference_and_no_traceback(modules, parts, tmp_path, present):
    path = tmp_path / "config"
    path.write_text(present)
    found = modules["k8s_kubeconfig.differences"](str(path), modules["k8s_kubeconfig.render"](SERVER, "c", "me", *parts))
    assert found["server"] == {"old": "unreadable", "new": SERVER}


@pytest.mark.parametrize(
    ("break_it", "line"),
    [(lambda text: text.replace("    client-key-data", "\tclient-key-data"), " (line 18)"), (lambda text: f"[{text!r}]", "")],
)
def test_a_kubeconfig_that_is_none_is_told_without_its_key(modules, parts, break_it, line):
    text = break_it(modules["k8s_kubeconfig.render"](SERVER, "c", "me", *parts))
    with pytest.raises(CommandExecutionError) as raised:
        modules["k8s_kubeconfig.pair"](text)
    assert str(raised.value) == f"not a kubeconfig with a client's certificate and key{line}"
    assert base64.b64encode(parts[2].encode()).decode()[:20] not in "".join(traceback.format_exception(raised.value))
