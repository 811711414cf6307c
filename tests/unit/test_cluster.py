"""The mark of a cluster: a cluster is founded once."""

import json
from pathlib import Path

import pytest

NOW = 1_800_000_000
NODES = ["controller-1", "controller-2"]
FOUNDED = {"state": "founded", "at": 5, "since": "then", "kube_system": "uid"}


@pytest.fixture
def judged(modules):
    def decide(present, etcd, api):
        good = {"etcd": dict(zip(NODES, etcd, strict=True)), "kube-apiserver": dict(zip(NODES, api, strict=True))}
        return modules["k8s_cluster.judged"](present, good, NOW)

    return decide


def test_nodes_without_anything_may_found_a_cluster(judged):
    found = judged({}, (False, False), (False, False))
    assert (found["state"], found["at"], found["controllers"]) == ("founding", NOW, NODES)


@pytest.mark.parametrize("present", [{}, {"state": "founding", "at": NOW - 9, "controllers": NODES}], ids=["none", "founding"])
@pytest.mark.parametrize(("etcd", "api"), [((True, False), (False, False)), ((False, None), (False, True))])
def test_what_passed_its_gate_anywhere_is_a_cluster_that_exists(judged, present, etcd, api):
    assert judged(present, etcd, api)["state"] == "founded"


def test_a_cluster_that_exists_is_never_founding_again(judged):
    assert judged(FOUNDED, (False, False), (False, False)) == FOUNDED
    assert judged(FOUNDED, (None, None), (None, None)) == FOUNDED


def test_a_node_that_does_not_answer_may_be_of_a_cluster(judged):
    assert judged({}, (False, None), (False, None)) == {}


def test_a_permission_to_found_is_given_again_while_nobody_used_it(judged):
    fresh = {"state": "founding", "at": NOW - 60, "since": "then", "controllers": NODES}
    assert judged(fresh, (False, False), (False, False)) == fresh
    for other in ({**fresh, "at": NOW - 700}, {**fresh, "controllers": ["controller-1"]}):
        assert judged(other, (False, False), (False, False))["at"] == NOW


@pytest.fixture
def told(node):
    """Return a function: let the master hand this mark out; None for nothing."""

    def lay(mark):
        material = node.opts["pillar"]["kubernetes_controller_pki"]
        if mark is None:
            material.pop("cluster.json", None)
        else:
            material["cluster.json"] = json.dumps(mark)

    yield lay
    lay(None)


@pytest.mark.parametrize(
    ("master", "own", "state"),
    [
        (None, None, None),
        ({"state": "founding", "controllers": NODES}, None, "founding"),
        ({"state": "founding"}, FOUNDED, "founded"),
        (FOUNDED, None, "founded"),
        (None, FOUNDED, "founded"),
        (FOUNDED, {"state": "founding"}, "founded"),
        ({"state": "nonsense"}, None, None),
    ],
)
def test_a_cluster_exists_whoever_says_so(node, rows, told, master, own, state):
    row = rows()["etcd"]
    told(master)
    if own:
        Path(row["home"]).mkdir(parents=True, exist_ok=True)
        (Path(row["home"]) / "cluster.json").write_text(json.dumps(own))
    assert node.modules["k8s_cluster.mark"](row).get("state") == state


def test_a_node_keeps_that_its_cluster_exists_and_whose_data_it_has(node, rows, told):
    row = rows()["etcd"]
    Path(row["home"]).mkdir(parents=True, exist_ok=True)
    told({"state": "founding", "at": 1, "since": "then", "controllers": NODES})
    assert node.modules["k8s_cluster.keep"](row, kube_system="uid") is True
    told(None)
    kept = node.modules["k8s_cluster.mark"](row)
    assert (kept["state"], kept["kube_system"]) == ("founded", "uid")
    assert node.modules["k8s_cluster.keep"](row, kube_system="uid") is False


def test_a_master_that_lost_its_directory_is_told_what_shows_that_the_cluster_is_there(modules):
    there = modules["k8s_cluster.there"]
    assert there({"a": False, "b": False}, "/live") == ""
    assert there({"a": True, "b": None}, "/live") == "kube-apiserver of this formula is live on a (/live), and b did not answer"
    assert there({"a": False, "b": None}, "/live").startswith("b did not answer whether kube-apiserver is live there")


@pytest.mark.parametrize("written", [["/pki/cluster.json"], []], ids=["new", "as it was"])
def test_who_is_told_that_the_cluster_exists_gets_it_from_no_cache(node, written):
    cfg = {"pki": {"directory": "/pki"}, "controllers": dict.fromkeys(NODES, "10.8.0.1")}
    node.fake("k8s_cluster.settled", return_value=False)
    node.fake("k8s_cluster.learned", return_value=FOUNDED)
    node.fake("k8s_cluster.write", return_value=written)
    forget = node.fake("k8s_controllers.forget", return_value=True)
    assert node.state("k8s_cluster.known", "/pki", cfg=cfg).result is True
    assert [call.args for call in forget.call_args_list] == [(NODES,)] * bool(written)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (
            [{"kube_system": "a"}, {"kube_system": "b"}],
            ["controller-1: kube-system has the UID a; controller-2: kube-system has the UID b"],
        ),
        ([{"etcd_cluster": "c"}, {"etcd_cluster": "d"}], ["controller-1: etcd cluster c; controller-2: etcd cluster d"]),
        ([{"kube_system": "a", "etcd_cluster": "c"}, {"etcd_cluster": "d"}], ["UID a; controller-2: etcd cluster d"]),
        ([{"kube_system": "a", "etcd_cluster": "c"}, {"kube_system": "a", "etcd_cluster": "d"}], None),
        ([{"kube_system": "a"}, {"etcd_cluster": "d"}], None),
        ([{"kube_system": "a"}, None], None),
    ],
    ids=["two UIDs", "two ids", "an id beside a UID", "restored under another id", "not comparable", "one is silent"],
)
def test_controllers_that_serve_different_data_get_no_mark(node, tmp_path, told, words):
    """Three etcds were founded, and the mark of one of them was handed out to all."""
    cfg = {"pki": {"directory": str(tmp_path), "deliveries": []}, "controllers": dict.fromkeys(NODES), "etcd": {"managed": True}}
    cfg["rollout"] = {"ignore": []}
    node.fake("k8s_controllers.ask", return_value=dict(zip(NODES, told, strict=True)))
    ret = node.state("k8s_cluster.known", str(tmp_path), cfg=cfg)
    assert ret.result is (words is None)
    assert (tmp_path / "cluster.json").exists() is (words is None)
    assert all(word in ret.comment for word in words or ())
