"""What the preflight finds on a node: real certificates and sockets, and small binaries that answer in odd ways."""

import base64
import json
import os
import resource
import socket
import stat
import sys
import time
from pathlib import Path

import pytest

PKI = "kubernetes_controller_pki"


def live(minion, row):
    """Do what a run does that prepared and promoted the row's generation."""
    name = minion.modules["k8s_generation.prepare"](row)
    minion.modules["k8s_generation.promote"](row["home"], name)
    return Path(row["home"]) / "live"


def problems(minion, row):
    answer = minion.modules["k8s_preflight.problems"](row)
    assert answer["warnings"] == []
    return answer["errors"]


def set_pillar(minion, name, text):
    minion.opts["pillar"][PKI][name] = text


def assert_no_secrets(text, material):
    for name, secret in material.items():
        if not name.endswith((".crt", ".pub")):
            lines = [line for line in secret.splitlines() if "-----" not in line]
            forms = [secret, *lines, base64.b64encode(secret.encode()).decode()]
            assert not [form for form in forms if form in text], name


@pytest.fixture(autouse=True)
def nothing_is_left_on_run():
    before = set(Path("/run").glob(f"kubernetes-controller-draft-{os.getpid()}-*"))
    yield
    assert set(Path("/run").glob(f"kubernetes-controller-draft-{os.getpid()}-*")) == before


# -- certificates and keys --------------------------------------------------------------------------------------------


def test_a_declaration_that_fits_has_no_problems(node, rows):
    for row in rows().values():
        assert node.modules["k8s_preflight.problems"](row) == {"errors": [], "warnings": []}


def test_each_problem_names_pillar_key_and_file(node, rows, material, authorities):
    set_pillar(node, "apiserver.key", material["admin.key"])
    set_pillar(node, "apiserver-etcd-client.crt", authorities["kubernetes"].issue("x").crt)
    rows()
    row = rows({"apiserver": {"settings": {"audit-log-maxage": None, "aduit-log-maxage": 40}}})["kube-apiserver"]
    found = problems(node, row)
    assert "kubernetes_controller_pki:apiserver.crt (kube-apiserver, tls.crt): the key belongs to another certificate." in found
    assert any(
        line.startswith("kubernetes_controller_pki:apiserver-etcd-client.crt (kube-apiserver, etcd-client.crt): none of")
        for line in found
    )
    flag = "kubernetes_controller:apiserver:settings:aduit-log-maxage: "
    said = "kube-apiserver 1.37.2 has no such flag (nearest: audit-log-maxage)."
    assert any(line.startswith(flag + said) for line in found), found


def test_the_certificate_inside_a_kubeconfig_is_checked(node, rows, authorities):
    set_pillar(node, "scheduler.crt", authorities["kubernetes"].issue("x", days=(-5, -1)).crt)
    (key, dates) = sorted(problems(node, rows()["kube-scheduler"]), key=len, reverse=True)
    for line in (key, dates):
        assert line.startswith("kubernetes_controller_pki:scheduler.crt (kube-scheduler, kubeconfig): ")


def test_a_kubeconfig_can_name_files_beside_it(node, rows, material):
    row = rows({"scheduler": {"files": {"kubeconfig": {"kubeconfig": {"embed": False}}}}})["kube-scheduler"]
    directory = live(node, row)
    assert (directory / "kubeconfig.key").read_text() == material["scheduler.key"]
    assert f"client-key: {row['home']}/live/kubeconfig.key" in (directory / "kubeconfig").read_text()
    assert problems(node, row) == []


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (
            {"encryption": [{"resources": ["secrets"], "providers": [{"secretbox": {"keys": ["encryption-key2"]}}]}]},
            "is not declared any more",
        ),
        ({"encryption": [{"resources": ["secrets"], "providers": [{"identity": {}}]}]}, "is not declared any more"),
        (
            {"apiserver": {"settings": {"encryption-provider-config": None}, "files": {"encryption.yaml": None}}},
            "is not declared any more",
        ),
        ({}, "is another under the same name"),
    ],
    ids=["other key", "identity only", "no encryption at all", "same name, other key"],
)
def test_an_encryption_key_in_use_is_not_lost_by_a_declaration(node, rows, material, layer, says):
    live(node, rows()["kube-apiserver"])
    if not layer:
        set_pillar(node, "encryption-key1", material["encryption-key2"])
    found = [line for line in problems(node, rows(layer)["kube-apiserver"]) if "encryption" in line]
    assert len(found) == 1, found
    assert found[0].startswith("kubernetes_controller:encryption: secretbox key encryption-key1 of the live configuration ")
    assert says in found[0]
    assert "Put it back." in found[0]
    assert "drop_encryption_keys" not in found[0], "a way to lose data is not offered"
    assert_no_secrets(found[0], material)
    allowed = rows(layer, {"rollout": {"drop_encryption_keys": True}})["kube-apiserver"]
    assert problems(node, allowed) == []


def kms(name, version="v2", endpoint="unix:///a"):
    one = {"kms": {"apiVersion": version, "name": name, "endpoint": endpoint}}
    return {"encryption": [{"resources": ["secrets"], "providers": [one, {"identity": {}}]}]}


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ({"encryption": [{"resources": ["secrets"], "providers": [{"identity": {}}]}]}, "is not declared any more"),
        (kms("two"), "is not declared any more"),
        (kms("one", "v1"), "is another under the same name"),
        (kms("one", endpoint="unix:///b"), None),
    ],
    ids=["dropped", "renamed", "v2 to v1", "endpoint only"],
)
def test_a_kms_in_use_is_not_lost_by_a_declaration(node, rows, layer, says):
    live(node, rows(kms("one"))["kube-apiserver"])
    found = [line for line in problems(node, rows(layer)["kube-apiserver"]) if "encryption" in line]
    assert len(found) == bool(says), found
    for line in found:
        assert line.startswith(f"kubernetes_controller:encryption: kms key one of the live configuration {says} for secrets")


def test_an_encryption_key_more_is_fine(node, rows):
    live(node, rows()["kube-apiserver"])
    keys = [{"secretbox": {"keys": ["encryption-key2", "encryption-key1"]}}, {"identity": {}}]
    row = rows({"encryption": [{"resources": ["secrets"], "providers": keys}]})["kube-apiserver"]
    assert problems(node, row) == []


def encrypted(*entries):
    """Return the layer in which each entry is resources, separated by spaces, and names of keys."""
    return {
        "encryption": [
            {"resources": resources.split(), "providers": [{"secretbox": {"keys": list(keys)}}, {"identity": {}}]}
            for resources, *keys in entries
        ]
    }


ONE, TWO = "encryption-key1", "encryption-key2"


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        ([("secrets configmaps", ONE)], [("secrets", TWO), ("configmaps", ONE)], "secrets"),
        ([("secrets configmaps", ONE)], [("secrets", ONE)], "configmaps"),
        ([("*.*", ONE)], [("secrets", TWO), ("*.*", ONE)], "secrets"),
        ([("*.*", ONE)], [("*.apps", TWO), ("*.*", ONE)], "*.apps"),
        ([("*.*", ONE)], [("secrets", ONE)], "*.*"),
        ([("*.", ONE)], [("*.apps", ONE)], "*."),
        ([("deployments.apps", ONE)], [("*.apps", TWO), ("*.", ONE)], "deployments.apps"),
        ([("secrets", ONE)], [("*.*", ONE)], None),
        ([("secrets configmaps", ONE)], [("*.", TWO, ONE)], None),
        ([("deployments.apps", ONE), ("*.*", TWO)], [("*.apps", TWO, ONE), ("*.*", TWO)], None),
    ],
)
def test_an_encryption_key_is_not_lost_for_one_resource_while_another_keeps_it(node, rows, before, after, lost):
    live(node, rows(encrypted(*before))["kube-apiserver"])
    found = [line for line in problems(node, rows(encrypted(*after))["kube-apiserver"]) if "encryption" in line]
    said = f"secretbox key {ONE} of the live configuration is not declared any more for {lost}: "
    assert [line.startswith(f"kubernetes_controller:encryption: {said}") for line in found] == [True] * bool(lost), found


ENCRYPTED = "resources:\n- resources: [secrets]\n  providers:\n  - secretbox:\n      keys:\n      - name: encryption-key1\n"
OWN = {"encryption": None, "pillar": "kubernetes_controller_pki:own"}


@pytest.mark.parametrize("text", ["{0}\tsecret: {1}\n", "{0}        secret: '{1}\n", "{1}\n", "[{1}]\n"])
def test_what_is_no_encryption_configuration_is_told_once_and_beside_the_rest(node, rows, material, text):
    """The whole state as an operator sees it: its comment goes to the events and the job cache."""
    live(node, rows()["kube-apiserver"])
    node.fake("k8s_component.foreign", return_value=None)
    node.fake("k8s_component.process", return_value={"pid": 0, "unit": "", "binary": None})
    node.fake("k8s_skew.neighbours", return_value={})
    node.fake("k8s_host.ports", return_value=[])
    node.fake("k8s_host.disk", return_value=["the disk is full"])
    node.fake("k8s_preflight.etcd", return_value=[])
    set_pillar(node, "own", text.format(ENCRYPTED, material["encryption-key1"]))
    components = rows({"apiserver": {"files": {"encryption.yaml": OWN}}})
    ret = node.state("k8s_preflight.passed", "fits together", components=components)
    assert ret.result is False
    said = "kubernetes_controller:apiserver:files:encryption.yaml is not an EncryptionConfiguration"
    lines = ret.comment.splitlines()
    assert [line.startswith(said) for line in lines].count(True) == 1, ret.comment
    assert "the disk is full" in lines
    assert_no_secrets(f"{ret.comment} {ret.changes}", material)
    assert material["encryption-key1"][:8] not in ret.comment


def test_a_kubeconfig_that_is_none_is_told_without_its_key(node, rows, material):
    text = node.modules["k8s_kubeconfig.render"](
        "https://x", "c", "me", *(material[name] for name in ("kubernetes-ca.crt", "scheduler.crt", "scheduler.key"))
    )
    set_pillar(node, "own", text.replace("    client-key-data", "\tclient-key-data"))
    row = rows({"scheduler": {"files": {"kubeconfig": {"kubeconfig": None, "pillar": OWN["pillar"]}}}})["kube-scheduler"]
    (line, *_) = problems(node, row)
    said = "kubernetes_controller:scheduler:files:kubeconfig (kube-scheduler, kubeconfig): not a kubeconfig with a client's"
    assert line.startswith(said)
    assert base64.b64encode(material["scheduler.key"].encode()).decode()[:20] not in line


def test_what_is_staged_is_for_root_alone_and_names_itself(node, rows, material):
    row = rows({"scheduler": {"files": {"kubeconfig": {"kubeconfig": {"embed": False}}}}})["kube-scheduler"]
    leftover = Path("/run/kubernetes-controller-draft-999999999-x")
    leftover.mkdir()
    directory = Path(node.modules["k8s_generation.draft"](row))
    try:
        assert not leftover.exists()
        assert (directory.stat().st_mode & 0o7777, directory.stat().st_uid) == (0o700, 0)
        assert {oct(path.stat().st_mode & 0o7777) for path in directory.iterdir()} == {"0o600"}
        assert (directory / "kubeconfig.key").read_text() == material["scheduler.key"]
        for name in ("kubeconfig", "scheduler.yaml"):
            assert f"{directory}/kubeconfig" in (directory / name).read_text()
            assert "/live/" not in (directory / name).read_text()
    finally:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


# -- etcd's ports -----------------------------------------------------------------------------------------------------


def etcd_ports(minion, rows, layer, *, everything=None, **rollout):
    found = problems(minion, rows({"etcd": layer, "rollout": rollout}, everything or {})["etcd"])
    return [line.split(": ")[0].rpartition(":")[2] for line in found]


def go_live(minion, rows, layer):
    for name in ("etcd", "kube-apiserver"):
        live(minion, rows({"etcd": layer})[name])


def test_a_live_url_that_is_none_is_passed_over(node, rows):
    go_live(node, rows, {})
    declared = rows({"etcd": {"settings": {"listen-metrics-urls": "http://127.0.0.1:2381"}}})["etcd"]
    strange = "http://127.0.0.1:99999,https://[::1:2379,https://10.8.0.101:2379"
    node.fake("k8s_generation.flags", return_value={"listen-client-urls": strange, "listen-peer-urls": strange})
    assert node.modules["k8s_host.ports"]({**declared, "settings": {}}) == []
    said = problems(node, declared)
    assert [line for line in said if "where it would not listen any more" in line] == []


BOTH = {"listen-client-urls": ["https://{address}:2379", "https://{address}:12379"]}


def test_a_port_that_etcd_would_leave_is_refused_with_the_way_and_the_override(node, rows):
    assert etcd_ports(node, rows, {"client_port": 12379}) == [], "nothing is live yet"
    go_live(node, rows, {})
    client, peer = problems(node, rows({"etcd": {"client_port": 12379, "peer_port": 12380}})["etcd"])
    assert "clients ask etcd at https://10.8.0.101:2379, where it would not listen any more" in client
    assert "(declared: https://10.8.0.101:12379). Move it in three rollouts" in client
    assert "the other members know this one at https://10.8.0.101:2380" in peer
    assert "`etcdctl member update ID --peer-urls=URL`" in peer
    for line in (client, peer):
        assert line.endswith('pillar=\'{"kubernetes_controller": {"rollout": {"ignore": ["etcd-ports"]}}}\'.')
    assert etcd_ports(node, rows, {"client_port": 12379, "peer_port": 12380}, ignore=["etcd-ports"]) == []


def test_the_client_port_moves_in_the_three_steps_that_the_refusal_names(node, rows):
    go_live(node, rows, {})
    assert etcd_ports(node, rows, {"settings": BOTH}) == []
    live(node, rows({"etcd": {"settings": BOTH}})["etcd"])
    assert etcd_ports(node, rows, {"client_port": 12379}) == ["client_port"], "the API server still asks the old one"
    second = {"client_port": 12379, "settings": BOTH}
    assert etcd_ports(node, rows, second) == []
    assert rows({"etcd": second})["kube-apiserver"]["settings"]["etcd-servers"].startswith("https://10.8.0.101:12379,")
    go_live(node, rows, second)
    assert etcd_ports(node, rows, {"client_port": 12379}) == []


@pytest.mark.parametrize(
    ("layer", "refused"),
    [
        ({"settings": {"listen-peer-urls": ["https://{address}:2380", "https://{address}:12380"]}}, []),
        ({"settings": {"listen-peer-urls": "https://{address}:12380"}}, ["peer_port"]),
        ({"settings": {"initial-advertise-peer-urls": "https://{address}:12380"}}, ["peer_port"]),
        ({"settings": {"listen-peer-urls": "https://0.0.0.0:2380", "listen-client-urls": "https://0.0.0.0:2379"}}, []),
        ({"settings": {"listen-client-urls": "http://{address}:2379"}}, ["client_port"]),
    ],
)
def test_only_urls_by_which_etcd_would_be_lost_are_refused(node, rows, layer, refused):
    go_live(node, rows, {})
    assert etcd_ports(node, rows, layer) == refused


def test_a_single_member_may_change_its_peer_port(node, rows):
    only = {"controllers": {"controller-2": None, "controller-3": None}}
    go_live(node, rows, {})
    assert etcd_ports(node, rows, {"peer_port": 12380}) == ["peer_port"]
    assert etcd_ports(node, rows, {"peer_port": 12380}, everything=only) == []


# -- what a binary says -----------------------------------------------------------------------------------------------

HELP = """\
[ "$1" = --version ] && exit 0
if [ "$1" = --help ]; then
  for flag in {flags}; do echo "      --$flag string   What it does."; done
  echo "      --old-one string   DEPRECATED: gone soon."
  echo "      --feature-gates mapStringBool   A set of key=value pairs. Options are:"
  echo "                kube:WatchList=true|false (BETA - default=true)"
  echo "                kube:SizeMemory=true|false (ALPHA - default=false)"
  echo "      --enable-admission-plugins strings   On top of the defaults."
  echo "                Comma-delimited list of admission plugins: NodeRestriction, PodSecurity. Order is of no matter."
  exit 0
fi
"""


@pytest.fixture
def scheduler(rows):
    """Return a function: the scheduler's row for these settings, with a binary that does ``script`` when it starts."""

    def made(script="", layer=None, help=HELP):
        row = rows({"scheduler": {"settings": layer or {}}})["kube-scheduler"]
        known = [flag for flag in row["settings"] if flag not in ("old-one", "feature-gates", "enable-admission-plugins")]
        Path(row["binary"]).write_text("#!/bin/sh\n" + help.replace("{flags}", " ".join(known)) + script)
        return row

    return made


def patience(minion, monkeypatch, seconds):
    for modules in (minion.modules, minion.modules.pack["__salt__"]):  # each may have loaded the module for itself
        monkeypatch.setitem(modules["k8s_ask_binary.options"].func.__globals__, "TIMEOUT_S", seconds)


def test_help_is_read_as_data(node, scheduler):
    said = node.modules["k8s_ask_binary.options"](scheduler()["binary"])
    assert said["gates"] == {"WatchList": {"stage": "BETA", "default": True}, "SizeMemory": {"stage": "ALPHA", "default": False}}
    assert said["plugins"] == ["NodeRestriction", "PodSecurity"]
    assert said["flags"]["old-one"] == {"type": "string", "help": "DEPRECATED: gone soon.", "deprecated": True}
    assert [name for name, flag in said["flags"].items() if flag["deprecated"]] == ["old-one"]


def arguments(pid):
    """Return the arguments of a process, or "" where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.parametrize("at", ["at --help", "when it starts"])
def test_a_binary_that_hangs_does_not_hang_the_preflight(node, scheduler, monkeypatch, at):
    patience(node, monkeypatch, 0.5)
    nap = f"60.{os.getpid()}"  # a length of its own: others on this machine sleep, too
    hang = f"sleep {nap} & sleep {nap}\n"
    row = scheduler(hang, help=HELP if at == "when it starts" else hang)
    started = time.monotonic()
    (found,) = problems(node, row)
    assert time.monotonic() - started < 60
    assert found.startswith(f"kube-scheduler 1.37.2: {row['binary']} ")
    assert found.endswith(
        "could not be asked: it did not end within 0.5 s (is the node busy, or out of memory?). Run this again."
    )
    deadline = time.monotonic() + 10  # what was killed goes when it gets a processor
    while left := [pid for pid in os.listdir("/proc") if pid.isdigit() and f"sleep\0{nap}" in arguments(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"\x7fELF" + b"\0" * 100, b"#!/bin/sh\nexit 0\n", b"#!/bin/sh\nkill -SEGV $$\n"], ids=range(5)
)
def test_a_damaged_binary_is_one_sentence_naming_file_and_release(node, rows, content):
    row = rows()["kube-scheduler"]
    Path(row["binary"]).write_bytes(content)
    (found,) = problems(node, row)
    assert found.startswith(f"kube-scheduler 1.37.2: {row['binary']} ")
    assert f"damaged? Remove {row['binary']}, and the next run fetches it again." in found


def test_a_binary_that_is_not_managed_is_not_said_to_be_fetched(node, rows):
    row = {**rows()["kube-scheduler"], "binary_managed": False}
    Path(row["binary"]).write_bytes(b"")
    assert "the formula does not manage it (kubernetes_controller:binaries:names)" in problems(node, row)[0]


@pytest.mark.parametrize("at", ["at --help", "when it starts"])
def test_a_binary_that_is_ended_by_the_kernel_is_to_be_asked_again_and_not_removed(node, scheduler, at):
    killed = "kill -KILL $$\n"
    (found,) = problems(node, scheduler(killed, help=HELP if at == "when it starts" else killed))
    assert found.endswith("could not be asked: it was ended by SIGKILL (is the node busy, or out of memory?). Run this again.")


def test_a_node_that_can_start_nothing_is_no_fault_of_the_binary(node, scheduler, monkeypatch):
    row = scheduler()
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: (_ for _ in ()).throw(OSError(12, "Cannot allocate memory")))
    (found,) = problems(node, row)
    assert "--help could not be asked: it cannot be run, Cannot allocate memory (is the node busy" in found
    assert "Remove" not in found


@pytest.mark.parametrize(
    "script", ["exit 0\n", "[ $1 = --version ] && echo Kubernetes v1.36.3\n" + HELP], ids=["no flags", "other"]
)
@pytest.mark.parametrize("link", ["live", "good"])
def test_the_file_that_a_generation_starts_from_is_not_said_to_be_removed(node, rows, link, script):
    row = rows()["kube-scheduler"]
    Path(row["binary"]).write_text("#!/bin/sh\n" + script)
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row), link=link)
    (found,) = problems(node, row)
    assert f"Leave it there: {row['home']}/{link} starts from it, and it is the same file as then. Run this again;" in found
    assert "Remove" not in found
    Path(row["binary"]).write_text("#!/bin/sh\n" + script + "\n")
    assert f"Remove {row['binary']}, and the next run fetches it again." in problems(node, row)[0]


@pytest.mark.parametrize("at", ["at --help", "when it starts"])
def test_a_binary_that_talks_without_end_is_ended_and_does_not_fill_the_minion(node, scheduler, at):
    endless, before = "exec yes and on and on\n", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (found,) = problems(node, scheduler(endless, help=HELP if at == "when it starts" else endless))
    assert found.endswith(" said more than 4 MiB and was ended.")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 << 10, "in KiB"


@pytest.mark.parametrize("namespaces", [True, False])
def test_a_question_loses_against_what_serves(node, scheduler, monkeypatch, namespaces):
    """Its place in line is what its --help says here, as flags."""
    looks = 'echo "  --adj-$(cat /proc/self/oom_score_adj)-nice-$(nice)-core-$(ulimit -c)-file-$(ulimit -f) string   one"\n'
    if not namespaces:
        monkeypatch.setitem(node.modules["k8s_ask_binary.options"].func.__globals__, "LIBC", Refusing)
    (flag,) = node.modules["k8s_ask_binary.options"](scheduler(help=looks)["binary"])["flags"]
    assert flag == f"adj-900-nice-{min(os.nice(0) + 10, 19)}-core-0-file-131072"


def klog(text):
    return f'echo \'E1124 20:44:33.15 28801 run.go:72] "command failed" err="{text}"\' >&2; exit 1\n'


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 0\n", None),
        (klog("failed to create listener: failed to listen on 1.2.3.4:1: bind: cannot assign requested address"), None),
        (klog("Get x: dial tcp 10.8.0.101:6443: connect: network is unreachable"), None),
        (
            'echo \'Error: invalid argument "x" for "-v, --v" flag: no number\'; exit 1\n',
            ":settings:v: kube-scheduler 1.37.2 refuses",
        ),
        (
            klog("--leader-elect and --profiling do not go together"),
            ":settings:leader-elect: kube-scheduler 1.37.2 refuses",
        ),
        (klog("something else entirely"), ":settings: kube-scheduler 1.37.2 refuses it: something else entirely."),
        ("echo 'panic: oh no'; exit 2\n", ":settings: kube-scheduler 1.37.2 refuses it: panic: oh no."),
        ('echo \'{"level":"fatal","error":"no"}\'; exit 2\n', ":settings: kube-scheduler 1.37.2 refuses it: no."),
    ],
)
def test_what_a_dry_run_says_is_one_sentence_with_its_pillar_key(node, scheduler, script, says):
    found = problems(node, scheduler(script, {"v": 2, "leader-elect": True}))
    assert len(found) == (0 if says is None else 1), found
    for line in found:
        assert line.startswith(f"kubernetes_controller:scheduler{says}")


GATES = """\
for word; do case $word in
  *Nope=*) echo 'E1 run.go:72] "command failed" err="unrecognized feature gate: Nope"'; exit 1;;
  *WachList=*) echo 'E1 run.go:72] "command failed" err="unrecognized feature gate: WachList"'; exit 1;;
esac; done
"""


def test_each_unknown_gate_and_plugin_is_told_and_an_old_gate_only_warned_of(node, scheduler):
    layer = {"feature-gates": {"WachList": True, "Nope": False, "WatchList": True}, "enable-admission-plugins": ["PodSecurty"]}
    found = problems(node, scheduler(GATES, layer))
    key, who = "kubernetes_controller:scheduler:settings", "kube-scheduler 1.37.2"
    assert sorted(found) == [
        f"{key}:enable-admission-plugins: {who} has no admission plugin PodSecurty (nearest: PodSecurity). Remove it.",
        f"{key}:feature-gates: kube-scheduler 1.37.2 has no feature gate Nope. Remove it.",
        f"{key}:feature-gates: kube-scheduler 1.37.2 has no feature gate WachList (nearest: WatchList). Remove it.",
    ]
    row = scheduler(
        "echo 'Flag --v has been deprecated, use another'\n", {"feature-gates": {"Locked": True}, "v": 2, "old-one": 1}
    )
    answer = node.modules["k8s_preflight.problems"](row)
    assert answer["errors"] == []
    assert answer["warnings"] == [
        f"{key}:old-one: kube-scheduler 1.37.2 calls the flag deprecated: gone soon.",
        f"{key}:v: Flag --v has been deprecated, use another",
        f"{key}:feature-gates: kube-scheduler 1.37.2 does not list Locked any more, and a later release will refuse it.",
    ]


@pytest.mark.parametrize(
    ("kind", "help", "refused"), [("string", "One.", True), ("strings", "Some.", False), ("string", "Comma-separated.", False)]
)
def test_a_list_for_a_flag_of_one_value_is_refused_by_what_help_says(node, scheduler, kind, help, refused):
    lines = HELP.replace('echo "      --old', f'echo "      --mine {kind}   {help}"\n  echo "      --old').replace("{flags}", "v")
    row = scheduler("", {"mine": ["a", "b"]}, lines)
    row["settings"] = {"mine": row["settings"]["mine"]}
    key = "kubernetes_controller:scheduler:settings:mine"
    said = f"{key}: kube-scheduler 1.37.2 takes one value, found several, which it would read as one. Give one."
    assert problems(node, row) == [said] * refused
    assert problems(node, {**row, "joined": []}) == []


def test_a_binary_of_another_release_is_told(node, scheduler):
    row = scheduler(help='[ "$1" = --version ] && { echo Kubernetes v1.36.3; exit; }\n' + HELP)
    (found,) = problems(node, row)
    assert found.startswith(f"{row['binary']} says that it is release 1.36.3, not 1.37.2. Remove ")


def test_a_dry_run_can_reach_and_bind_nothing(node, scheduler, tmp_path):
    """The binary looks around: no interface but the loopback, no listener of this machine, no file to write, no secret."""
    os.mkfifo(told := tmp_path / "told")
    heard = os.open(told, os.O_RDONLY | os.O_NONBLOCK)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"""\
(exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null && echo reached > {told}
for directory in {tmp_path} /run /tmp /dev/shm /etc; do echo > $directory/written; done
echo "$@" > {told}; cat /proc/net/dev > {told}
"""
        row = scheduler(script, {"bind-address": "0.0.0.0"})
        Path(row["binary"]).write_text(Path(row["binary"]).read_text().replace("#!/bin/sh", "#!/bin/bash"))
        assert problems(node, row) == []
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
    arguments, *devices = os.read(heard, 1 << 16).decode().splitlines()
    os.close(heard)
    assert [line.split(":")[0].strip() for line in devices if ":" in line] == ["lo"]
    assert arguments != "reached"
    assert not [one for one in (str(tmp_path), "/run", "/tmp", "/dev/shm", "/etc") if os.path.exists(f"{one}/written")]  # noqa: S108
    assert "--bind-address=192.0.2.1" in arguments
    assert row["home"] not in arguments


class Refusing:
    """A C library where no namespace is to be had."""

    prctl = staticmethod(lambda *_: 0)
    unshare = staticmethod(lambda *_: 1)


@pytest.mark.parametrize("kind", ["fifo", "device"])
@pytest.mark.parametrize("form", ["{}", "stderr,{}", "file://{}", "a={}", "a=/dev/null,b={}"])
def test_no_flag_makes_a_dry_run_write_to_a_pipe_or_a_device(node, scheduler, tmp_path, kind, form):
    """Nor does it wait there for a reader. The file that has its place is the binary's to write."""
    path = tmp_path / "special"
    os.mknod(path, 0o666 | (stat.S_IFIFO if kind == "fifo" else stat.S_IFCHR), os.makedev(1, 7))  # full: an error for who writes
    (tmp_path / "link").symlink_to(path)
    script = f"""
for word; do case $word in *place*)
  echo leaked > "/${{word#*/}}" && echo 'Error: written, not there'
esac; case $word in *{tmp_path}*|*dev/null/*) echo Error: told; esac; done
"""
    script = script.replace('"/${word#*/}"', '"$(echo "$word" | sed "s,.*[=:/]/*run/,/run/,")"')
    for named in (path, tmp_path / "link"):
        row = scheduler(script, {"log-dir": form.format(named)})
        (found,) = problems(node, row)
        assert found.endswith(f"{row['name']} 1.37.2 refuses it: written, not there."), found


def test_a_dry_run_tells_nobody_who_listens_and_opens_no_device(node, scheduler, tmp_path):
    """Not who starts services, nor any other socket of this machine: a log, a bus, a container engine."""
    os.mknod(tmp_path / "device", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    script = f"""
import os, socket
seen = []
for kind, path in ((socket.SOCK_STREAM, "{tmp_path}/stream"), (socket.SOCK_DGRAM, "{tmp_path}/datagrams")):
    try:
        socket.socket(socket.AF_UNIX, kind).connect(path)
        seen.append(path)
    except OSError:
        pass
for path in ("{tmp_path}/device", "/dev/null", "/dev/urandom"):
    try:
        os.close(os.open(path, os.O_RDWR))
        seen.append(path)
    except OSError:
        pass
seen += [path for path in ("/run/systemd", "/run/dbus") if os.path.isdir(path) and os.listdir(path)]
print("Error: saw", *seen)
"""
    row = scheduler("exec " + sys.executable + f" - <<'END'\n{script}\nEND\n")
    with socket.socket(socket.AF_UNIX) as stream, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        stream.bind(str(tmp_path / "stream"))
        stream.listen()
        datagrams.bind(str(tmp_path / "datagrams"))
        (found,) = problems(node, row)
    assert found.endswith("refuses it: saw /dev/null /dev/urandom."), found


def test_where_no_namespace_can_be_had_the_binary_is_not_started(node, scheduler, tmp_path, monkeypatch):
    row = scheduler(f"touch {tmp_path}/started\n")
    monkeypatch.setitem(node.modules["k8s_ask_binary.options"].func.__globals__, "LIBC", Refusing)
    answer = node.modules["k8s_preflight.problems"](row)
    assert answer["errors"] == []
    assert "no namespaces can be made here" in answer["warnings"][0]
    assert not (tmp_path / "started").exists()


# -- disk and ports ---------------------------------------------------------------------------------------------------


def test_a_disk_with_too_little_room_is_named_with_its_directories(node, rows):
    assert node.modules["k8s_host.disk"](rows()) == []
    wanting = rows({"rollout": {"preflight": {"min_free_mib": 10**9}}})
    (found,) = node.modules["k8s_host.disk"](wanting)
    for row in wanting.values():
        assert row["home"] in found
        assert os.path.dirname(row["binary"]) in found
        assert all(directory in found for directory in row["directories"])
    assert "MiB free, expected at least 1000000000 (kubernetes_controller:rollout:preflight:min_free_mib)." in found
    assert found.endswith('once: pillar=\'{"kubernetes_controller": {"rollout": {"preflight": {"min_free_mib": 0}}}}\'.')


@pytest.mark.parametrize(
    ("least", "data", "due", "wanted"),
    [
        (10**9, 100, {"etcd": "0123"}, 10**9 + 300),
        (1, 10**9, {"etcd": "0123"}, 1 + 3 * 10**9),
        (10**9, 100, {}, None),
        (0, 10**9, {"etcd": "0123"}, None),
        (1, 0, {"etcd": "0123"}, None),
    ],
    ids=["little", "much data", "nothing to rehearse", "not looked at", "enough"],
)
def test_memory_is_asked_for_where_something_is_to_be_rehearsed(node, rows, least, data, due, wanted):
    node.fake("k8s_rehearsal.data_mib", return_value=data)
    found = node.modules["k8s_host.memory"](rows({"rollout": {"preflight": {"min_available_memory_mib": least}}}), due)
    if wanted is None:
        assert found == []
        return
    (line,) = found
    assert f"expected at least {wanted} for the rehearsal of etcd: {least} (kubernetes_controller:rollout:preflight:" in line
    once = '{"kubernetes_controller": {"rollout": {"preflight": {"min_available_memory_mib": 0}}}}'
    assert line.endswith(f"once: pillar='{once}'.")


def test_one_answer_of_etcd_says_how_large_the_data_are(node, rows, tmp_path):
    row = rows({"rollout": {"rehearsal": {"data": "snapshot"}}})["kube-apiserver"]
    live(node, row)
    row["etcdctl"] = str(tmp_path / "etcdctl")
    Path(row["etcdctl"]).write_text('#!/bin/sh\necho \'[{"Status": {"dbSize": 543162368}}]\'\n')
    os.chmod(row["etcdctl"], 0o755)
    assert node.modules["k8s_rehearsal.data_mib"]({row["name"]: row}) == 518
    empty = {**row, "rehearsal": {**row["rehearsal"], "data": "empty"}}
    assert node.modules["k8s_rehearsal.data_mib"]({row["name"]: empty}) == 0
    Path(row["etcdctl"]).write_text("#!/bin/sh\nexit 1\n")
    assert node.modules["k8s_rehearsal.data_mib"]({row["name"]: row}) == 0


@pytest.mark.parametrize("directory", ["", "x", "not/there", "/not/there", "//not/there"])
def test_the_room_of_any_path_is_found(node, rows, directory):
    row = rows()["kube-scheduler"] | {"directories": {directory: "0750"}}
    assert node.modules["k8s_host.disk"]({"kube-scheduler": row}) == []


@pytest.fixture
def bound(node, rows):
    """Return a function: what is said of the scheduler's port, for an address, while this process listens there."""
    unit = {"state": "active", "pid": 0, "binary": None}
    node.fake("k8s_component.process", side_effect=lambda name: unit)

    def asked(listening, declared, own=False, port=None):
        with socket.create_server((listening, 0)) as server:
            unit["pid"] = os.getpid() if own else 0
            settings = {"bind-address": declared, "secure-port": port or server.getsockname()[1]}
            row = rows({"scheduler": {"settings": settings}}, binaries=False)["kube-scheduler"]
            return server.getsockname()[1], node.modules["k8s_host.ports"](row)

    return asked


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_another_process_holds_is_named_with_pid_and_binary(bound, address):
    port, (found,) = bound("127.0.0.1", address)
    where = "127.0.0.1" if address == "127.0.0.1" else "all addresses"
    held = f"port {port} of {where} is held by process {os.getpid()} ({os.readlink('/proc/self/exe')})"
    assert found.startswith(f"kubernetes_controller:scheduler:settings:secure-port: {held}")
    assert found.endswith("Stop that process, or choose another port by kubernetes_controller:scheduler:port.")


@pytest.mark.parametrize(("address", "own"), [("127.0.0.1", True), ("127.0.0.2", False)], ids=["its own", "another address"])
def test_a_port_of_its_own_process_or_of_another_address_is_fine(bound, address, own):
    assert bound("127.0.0.1", address, own)[1] == []


def test_an_address_that_the_node_has_not_is_named(bound):
    _, (found,) = bound("127.0.0.1", "192.0.2.7", port=10259)
    assert "kube-scheduler cannot bind 192.0.2.7:10259 here (Cannot assign requested address)." in found


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_all_ports_of_etcd_are_looked_at(node, rows, scheme):
    node.fake("k8s_component.process", return_value={"pid": 0})
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        urls = {f"listen-{kind}-urls": f"{scheme}://127.0.0.1:{port}" for kind in ("client", "peer", "metrics")}
        found = node.modules["k8s_host.ports"](rows({"etcd": {"settings": urls}}, binaries=False)["etcd"])
    assert [line.split(": ")[0].rpartition(":")[2] for line in found] == [*urls]


# -- from an external etcd to a managed one ---------------------------------------------------------------------------


@pytest.fixture
def moving(node, rows, monkeypatch):
    """A function: what the preflight has against a managed etcd with restored data, where an external one was good."""
    for name in ("k8s_host.ports", "k8s_host.disk", "k8s_host.memory"):
        node.fake(name, return_value=[])
    node.fake("k8s_ask_binary.problems", side_effect=lambda *_: {"errors": [], "warnings": []})
    node.fake("k8s_etcdctl.closed", return_value="Connection refused")
    mark = {"state": "founded", "since": "then", "at": 1, "kube_system": "uid"}
    node.opts["pillar"]["kubernetes_controller_pki"]["cluster.json"] = json.dumps(mark)
    for modules in (node.modules, node.modules.pack["__salt__"]):  # each may have loaded the module for itself
        its = modules["k8s_etcd_members.survey"].func.__globals__
        monkeypatch.setitem(its, "_reach", lambda url: {"state": "refuses", "said": "Connection refused"})
    external = {"etcd": {"managed": False, "servers": ["https://10.9.9.9:2379"]}}
    for row in rows(external).values():
        name = node.modules["k8s_generation.prepare"](row)
        for link in ("live", "good"):
            node.modules["k8s_generation.promote"](row["home"], name, link)
    home = Path(rows(external)["kube-apiserver"]["home"])
    (home / "identity.json").write_text(json.dumps({"kube_system": "uid", "etcd_cluster": "of-the-external-one"}))

    def errors(serves, data=True):
        components = rows()
        wal = Path(components["etcd"]["settings"]["data-dir"]) / "member/wal"
        wal.mkdir(parents=True, exist_ok=True)
        (wal / "0.wal").touch() if data else (wal / "0.wal").unlink(missing_ok=True)
        others = {minion: {"serves": serves, "said": "", "release": None, "clock": None} for minion in ("controller-2",)}
        node.fake("k8s_skew.neighbours", return_value=others)
        node.fake("k8s_health.serves", return_value=serves)
        changing = {name: components[name] for name in ("etcd", "kube-apiserver")}
        return node.modules["k8s_preflight.check"](changing, components)["errors"]

    return errors


def test_a_managed_etcd_with_the_restored_data_takes_the_place_of_an_external_one_while_the_api_servers_are_stopped(moving):
    assert moving(serves=False) == []
    assert any(line.startswith("kubernetes_controller:etcd:servers: 0 of 3 answer") for line in moving(serves=True))


def test_a_managed_etcd_without_the_data_is_never_founded_in_the_place_of_an_external_one(moving, node):
    node.opts["file_client"] = "remote"
    try:
        (line,) = moving(serves=False, data=False)
    finally:
        node.opts["file_client"] = "local"
    assert "controller-1 has no data in " in line and "but this cluster exists (since then)" in line
