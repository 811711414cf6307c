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


@pytest.mark.parametrize(
    ("urls", "address", "asked"),
    [
        ("https://0.0.0.0:2379", "10.8.0.101", ["https://10.8.0.101:2379"]),
        ("https://[::]:2379", "10.8.0.101", ["https://10.8.0.101:2379"]),
        ("https://[::]:2379", "fd00::101", ["https://[fd00::101]:2379"]),
        ("https://127.0.0.1:2379,https://0.0.0.0:12379", "10.8.0.101", ["https://127.0.0.1:2379", "https://10.8.0.101:12379"]),
        ("https://0.0.0.0:2379,https://[::]:2379", "10.8.0.101", ["https://10.8.0.101:2379"]),
    ],
)
def test_a_member_that_listens_at_all_addresses_is_asked_at_the_nodes_own(node, rows, urls, address, asked):
    declared = rows({"etcd": {"settings": {"listen-client-urls": urls}}})["etcd"]
    row = live(node, {**declared, "address": address})
    assert node.modules["k8s_etcdctl.environment"](row)["ETCDCTL_ENDPOINTS"] == ",".join(asked)
    node.fake("k8s_component.process", return_value={"pid": 1, "binary": "", "started": 1.0, "state": "active"})
    node.fake("k8s_component.replaced", return_value=False)
    answer = node.modules["k8s_health.probe"](row)
    assert answer["said"].startswith(f"{asked[0]}: "), answer
