"""What the gate asks, and where, by the generation that is live."""

import json
import socket

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


# -- the exit status ----------------------------------------------------------------------------------------------------


PARTS = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]


@pytest.fixture
def status(node, rows, monkeypatch):
    """Return a function: (exit status, table) of the health command, where these say NOT OK and are asked in this order."""
    module, context = node.modules["k8s_health.status"].func.__globals__, {}
    monkeypatch.setitem(module, "__context__", context)

    def probe(row, sick):
        context["retcode"] = int(row["name"] in sick)  # as each command that a probe runs does
        return {"ok": row["name"] not in sick, "said": "as said"}

    def asked(sick=(), order=PARTS, ending=None, members=()):
        components = rows(binaries=False)
        cfg = {"components": {name: components[name] for name in order}, "pki": {"days_warning": 60}, "etcd": {"managed": True}}
        node.fake("k8s_config.load", return_value=cfg)
        node.fake("k8s_certificate.expiry", return_value=ending or {})
        monkeypatch.setitem(module, "probe", lambda row: probe(row, sick))
        monkeypatch.setitem(module, "members", lambda components: context.update(retcode=0) or {"lasting": list(members)})
        said = node.modules["k8s_health.status"]()
        return context["retcode"], said

    return asked


@pytest.mark.parametrize("order", [PARTS[turn:] + PARTS[:turn] for turn in range(4)], ids=lambda order: order[0])
@pytest.mark.parametrize("sick", [(), *((part,) for part in PARTS), tuple(PARTS)], ids=lambda sick: "-".join(sick) or "none")
def test_the_exit_status_is_that_of_the_whole_table_in_whichever_order(status, sick, order):
    code, table = status(sick, order)
    assert code == int(bool(sick))
    assert {name: said.startswith("NOT OK") for name, said in table.items()} == {name: name in sick for name in order}


@pytest.mark.parametrize("other", [{"ending": {"etcd": {"peer.crt": "9 days, until x"}}}, {"members": ["a learner"]}])
def test_certificates_that_end_and_members_that_differ_are_an_exit_status(status, other):
    code, table = status(**other)
    assert code == 1
    assert [said for said in table.values() if said.startswith("NOT OK")]


# -- an external etcd -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clusters", "fault"),
    [([1, 1, 1], False), ([1, 1, 2], True), ([1, 2, None], True), ([1, None, None], False), ([None] * 3, False)],
)
def test_servers_of_an_external_etcd_that_are_several_clusters_are_a_fault(node, rows, tmp_path, clusters, fault):
    """Each of three servers was a cluster of its own: all was green, and clients got one answer or the other."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in clusters]
    urls = [f"https://127.0.0.1:{one.getsockname()[1]}" for one in servers]
    row = rows({"etcd": {"managed": False, "servers": urls}})["kube-apiserver"]
    said = [{"Endpoint": url, "Status": {"header": {"cluster_id": id_}}} for url, id_ in zip(urls, clusters, strict=True) if id_]
    (tmp_path / "etcdctl").write_text(f"#!/bin/sh\necho '{json.dumps(said)}'\nexit 1\n")
    (tmp_path / "etcdctl").chmod(0o755)
    row["etcdctl"] = str(tmp_path / "etcdctl")
    members = node.modules["k8s_health.members"]
    assert members({"kube-apiserver": row}) == {"lasting": [], "passing": []}, "no API server is live"
    found = members({"kube-apiserver": live(node, row)})["lasting"]
    for one in servers:
        one.close()
    assert len(found) == fault
    assert all("different clusters" in one and f"{urls[0]}: cluster 1" in one.replace(f", {urls[1]}", "") for one in found)
