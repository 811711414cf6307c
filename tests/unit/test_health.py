"""What the gate asks, and where, by the generation that is live."""

import pytest


def live(node, row):
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
    return row


@pytest.mark.parametrize("section", ["controller_manager", "scheduler"])
def test_a_generation_that_is_taken_back_to_is_asked_for_the_lease_that_it_takes_itself(node, rows, section):
    name = section.replace("_", "-")
    live(node, rows({section: {"settings": {"leader-elect-resource-name": "mine"}}})[f"kube-{name}"])
    declared = rows({section: {"settings": {"leader-elect": False}}})[f"kube-{name}"]
    assert node.modules["k8s_health.lease"](declared) == "kube-system/mine"
    live(node, declared)
    assert node.modules["k8s_health.lease"](declared) == ""


def test_the_lease_is_read_from_the_configuration_that_is_live_or_on_the_stage(node, rows):
    row = live(node, rows({"scheduler": {"config": {"leaderElection": {"leaderElect": False}}}})["kube-scheduler"])
    declared = rows()["kube-scheduler"]
    assert node.modules["k8s_health.lease"](declared) == ""
    generation = node.modules["k8s_generation.prepare"](declared)
    assert node.modules["k8s_health.lease"](row, f"generations/{generation}") == "kube-system/kube-scheduler"
    staged = {**declared, "home": row["home"], "stands_for": "/var/lib/kube-scheduler"}
    assert node.modules["k8s_health.lease"](staged) == ""
    assert node.modules["k8s_health.lease"]({**declared, "probe": {"lease": "a/mine"}}) == "a/mine"
