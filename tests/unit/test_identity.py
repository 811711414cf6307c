"""Whose data a generation serves: promise 12."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

KNOWN = {"kube_system": "uid-1", "etcd_cluster": "c1"}
LIVE = {"etcd-prefix": "/registry"}


@pytest.fixture
def judged(modules):
    return modules["k8s_identity.judged"]


def data(uid="uid-1", cluster="c1", empty=False, clusters=None):
    return {"kube_system": uid, "etcd_cluster": cluster, "clusters": clusters or [cluster], "empty": empty}


@pytest.mark.parametrize(
    ("known", "declared", "words"),
    [
        (KNOWN, data(), None),
        ({}, data("uid-2"), None),
        (KNOWN, {}, None),
        (KNOWN, data("uid-1", "c2"), None),
        (KNOWN, data("uid-2"), "other data (kube-system has the UID uid-2, etcd cluster c1)"),
        (KNOWN, data(None, empty=True), "there is no namespace kube-system"),
        (KNOWN, data(None, "c2"), "other data (etcd cluster c2)"),
        ({"etcd_cluster": "c1"}, data("uid-2", "c1"), None),
        (KNOWN, data(clusters=["c1", "c2"]), "are of 2 etcd clusters"),
    ],
    ids=[
        "the same", "nothing known", "no answer", "restored under other ids", "other data", "empty", "another, encrypted",
        "the id alone", "two clusters",
    ],
)  # fmt: skip
def test_a_declaration_that_leads_to_other_data_is_one_sentence(judged, known, declared, words):
    said = judged(known, declared, LIVE, dict(LIVE))
    assert (
        (len(said) == 1 and words in said[0] and said[0].startswith("kubernetes_controller:etcd:servers: "))
        if words
        else not said
    )


def test_another_prefix_is_named_by_its_key(judged):
    (said,) = judged(KNOWN, data(None, empty=True), {}, {"etcd-prefix": "/registry2"}) or [""]
    assert said.startswith("kubernetes_controller:etcd:servers: ")  # nothing was live: where it leads counts
    (said,) = judged(KNOWN, data(None, empty=True), LIVE, {"etcd-prefix": "/registry2"})
    assert said.startswith("kubernetes_controller:apiserver:settings:etcd-prefix: /registry2 (live: /registry): ")
    assert "kubelets would end every pod" in said


def test_resources_that_move_to_another_etcd_are_left_behind(judged):
    moved = {**LIVE, "etcd-servers-overrides": "/events#https://10.8.0.9:2379"}
    (said,) = judged(KNOWN, data(), LIVE, moved)
    assert said.startswith("kubernetes_controller:apiserver:settings:etcd-servers-overrides: ")
    assert judged(KNOWN, data(), {}, moved) == []


def test_what_is_not_known_on_both_sides_is_no_difference(modules):
    same = modules["k8s_identity.same"]
    assert same({}, KNOWN) and same(KNOWN, {}) and same({"etcd_cluster": "c1"}, {"kube_system": "uid-1"})
    assert not same(KNOWN, {"kube_system": "uid-2"})


# -- an API server that is adopted -------------------------------------------------------------------------------------

API = "kube-apiserver"
UID = "0a3c4d5e-0000-4000-8000-00000000000{}"
# What etcd has: {server: (cluster id, {prefix: number of the UID, or None for a namespace that is encrypted})}.
OLD, NEW = "https://10.9.9.9:2379", "https://10.8.0.9:2379"
SAME = {OLD: (1, {"/registry": 1}), NEW: (1, {"/registry": 1})}


@pytest.fixture
def adopted(node, rows, tmp_path):
    """Return a function: what is refused where a process with these flags is to be adopted, and etcd has this."""

    def refused(stored, *words, settings=None, ignore=()):
        binary = tmp_path / API
        shutil.copy(os.path.realpath(sys.executable), binary)

        def run(row, arguments, access, partly=False):
            cluster, data = stored[access["ETCDCTL_ENDPOINTS"]]
            prefix = arguments[1].removesuffix("/namespaces/kube-system")
            said = {"header": {"cluster_id": cluster, "member_id": 6}}
            if prefix in data:
                text = f"uid {UID.format(data[prefix])}" if data[prefix] else "k8s:enc:"
                said["kvs"] = [{"value": base64.b64encode(text.encode()).decode()}]
            return json.dumps(said)

        node.fake("k8s_etcdctl.run", side_effect=run)
        node.fake("k8s_etcdctl.closed", side_effect=lambda server: None if server in stored else "Connection refused")
        code = ["-c", "import sys, time; print(1, flush=True); time.sleep(60)", *words]
        with subprocess.Popen([binary, *code], stdout=subprocess.PIPE, env={"PYTHONHOME": sys.base_prefix}) as process:
            process.stdout.readline()
            node.fake("k8s_component.process", return_value={"pid": process.pid, "binary": str(binary)})
            row = rows(
                {"etcd": {"managed": False, "servers": [NEW]}, "apiserver": {"settings": settings or {}}},
                {"rollout": {"adopt": True, "ignore": list(ignore)}},
            )[API]
            draft = node.modules["k8s_generation.draft"](row)
            try:
                return node.modules["k8s_identity.refusals"]({API: row}, {API: draft})
            finally:
                process.kill()
                shutil.rmtree(draft)

    return refused


PREFIX, SERVERS = "apiserver:settings:etcd-prefix", "etcd:servers"


@pytest.mark.parametrize(
    ("stored", "words", "settings", "key", "said"),
    [
        (SAME, [f"--etcd-servers={OLD}"], {}, None, None),
        (SAME, [f"--etcd-servers={NEW}", "--etcd-prefix=registry"], {}, None, None),
        ({**SAME, NEW: (2, {"/registry": 2})}, [f"--etcd-servers={OLD}"], {}, SERVERS, "these are other data"),
        ({**SAME, NEW: (2, {})}, ["--etcd-servers", OLD], {}, SERVERS, "there is no namespace kube-system"),
        ({NEW: (1, {"/k8s": 1})}, [f"--etcd-servers={NEW}", "--etcd-prefix=/k8s"], {}, PREFIX, "(live: /k8s): there is no"),
        ({NEW: (1, {"/k8s": None})}, [f"--etcd-servers={NEW}", "--etcd-prefix=/k8s"], {}, PREFIX, "that is encrypted"),
        ({NEW: (1, {"/k8s": 1})}, [f"--etcd-servers={NEW}", "--etcd-prefix=/k8s"], {"etcd-prefix": "/k8s"}, None, None),
        ({NEW: (1, {"/registry": 1})}, [f"--etcd-servers={OLD}"], {}, SERVERS, f"{NEW} (the process to be adopted has {OLD})"),
        ({}, [f"--etcd-servers={NEW}", "--etcd-prefix=/k8s"], {}, PREFIX, "/registry (the process to be adopted has /k8s)"),
        ({}, [f"--etcd-servers={NEW}/"], {}, None, None),
    ],
    ids=[
        "another name of the same", "the same", "other data", "empty", "another prefix", "another prefix, encrypted",
        "its prefix declared", "servers that do not answer", "nobody answers, another prefix", "nobody answers, the same",
    ],
)  # fmt: skip
def test_what_is_adopted_goes_on_with_its_data(adopted, stored, words, settings, key, said):
    found = adopted(stored, *words, settings=settings)
    assert [one.startswith(f"kubernetes_controller:{key}: ") and said in one for one in found] == [True] * bool(said), found
    assert all('"ignore": ["identity"]' in one for one in found)
    assert adopted(stored, *words, settings=settings, ignore=["identity"]) == []


# -- the gate of a member of etcd -------------------------------------------------------------------------------------


@pytest.fixture
def member(node, rows, monkeypatch):
    """Return a function: how a member differs that answers reads of these consistencies, with data or without."""

    def differs(stored, answers, empty=True, api=True, told=None):
        components = rows()
        for name in ("etcd", API) if api else ("etcd",):
            generation = node.modules["k8s_generation.prepare"](components[name])
            node.modules["k8s_generation.promote"](components[name]["home"], generation)
        row = components["etcd"]
        if stored is not None:
            Path(row["home"], "identity.json").write_text(json.dumps(stored))
        node.fake("k8s_cluster.mark", return_value=told or {})
        node.fake("k8s_etcdctl.closed", return_value=None)

        def run(row, arguments, access, partly=False):
            consistency = next(word for word in arguments if word.startswith("--consistency="))[-1]
            if consistency not in answers:
                raise CommandExecutionError("etcdserver: rpc not supported for learner")
            kvs = [] if empty else [{"value": base64.b64encode(UID.format(1).encode()).decode()}]
            return json.dumps({"header": {"cluster_id": 1, "member_id": 6}, "kvs": kvs})

        node.fake("k8s_etcdctl.run", side_effect=run)
        return node.modules["k8s_identity.differs"](row)

    return differs


OF_CLUSTER = {"kube_system": UID.format(1), "etcd_cluster": "1"}


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        ({"stored": OF_CLUSTER, "answers": "sl"}, True),
        ({"stored": {"etcd_cluster": "1"}, "answers": "sl", "told": OF_CLUSTER}, True),
        ({"stored": None, "answers": "sl", "told": OF_CLUSTER}, True),
        ({"stored": OF_CLUSTER, "answers": "sl", "empty": False}, False),
        ({"stored": OF_CLUSTER, "answers": "s"}, False),
        ({"stored": OF_CLUSTER, "answers": "sl", "api": False}, False),
        ({"stored": {"etcd_cluster": "1"}, "answers": "sl"}, False),
        ({"stored": None, "answers": "sl"}, False),
    ],
    ids=[
        "empty", "by the mark and its own memory", "by the mark", "not empty", "a learner, or without a leader",
        "nobody says which prefix", "no API server served yet", "being founded",
    ],
)  # fmt: skip
def test_a_member_that_is_empty_where_the_cluster_has_data_does_not_pass_its_gate(member, case, fault):
    """An empty cluster has the ids of the former one, if names, URLs and token are the same."""
    said = member(**case)
    assert bool(said) is fault
    if fault:
        assert said.startswith("it serves other data (none: there is no namespace kube-system) than this cluster's (kube-system")
