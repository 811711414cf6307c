"""Whose data a generation serves: promise 12."""

import pytest

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
