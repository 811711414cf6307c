"""One controller is a control plane too, and needs nobody else."""

import pytest
from kclab import binaries

COMPONENTS = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]
ETCD_36 = "3.6.16"


@pytest.fixture
def only(bare_shared):
    """Declare one controller and no other, and what else is given; return the node."""

    def declare(name, **more):
        chosen = bare_shared.lab.node(name)
        others = {node.name: None for node in bare_shared.nodes}
        bare_shared.pillar({"controllers": {**others, name: chosen.address}, **more})
        return chosen

    return declare


def assert_healthy_alone(cluster, node):
    status, table = cluster.health(node.name)
    assert status == 0, table
    assert list(table[node.name]) == COMPONENTS
    assert cluster.get(node, "/readyz") == (200, "ok")
    status = cluster.salt("k8s_etcd_members.status", target=node.name)[node.name]
    assert [one["peer_urls"] for one in status["members"]] == [[f"https://{node.address}:2380"]]
    assert status["faults"] == []


def main_pid(node, unit):
    return node.exec(["systemctl", "show", "--value", "-p", "MainPID", unit]).stdout.strip()


def assert_never_touched(node):
    for path in ("opt/kubernetes", "opt/etcd", "var/lib/kubernetes", "var/cache/salt/minion/extmods/modules/k8s_config.py"):
        assert not (node.root / path).exists(), f"{node.name}: {path}"


def test_one_controller_alone_becomes_a_healthy_control_plane(bare_shared, only):
    node = only("controller-1")
    done = bare_shared.orchestrate()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert_healthy_alone(bare_shared, node)
    bare_shared.kubectl("create", "configmap", "alone")
    for other in bare_shared.nodes[1:]:
        assert_never_touched(other)


def test_a_minion_that_was_never_synced_becomes_a_control_plane_by_one_state_apply_on_etcd_3_6(bare_shared, only):
    binaries.ensure(etcd=[ETCD_36])
    bare_shared.lab.reset()  # the cluster of the first test exists: another controller would not found one in its place
    node = only("controller-2", etcd={"release": ETCD_36})
    bare_shared.make_pki()  # which brings the modules to it
    node.exec(["rm", "-r", "/var/cache/salt/minion/extmods"])
    assert_never_touched(node)
    answer = bare_shared.apply(target=node.name)[node.name]
    assert answer.ok, answer.failures
    assert_healthy_alone(bare_shared, node)
    binary = f"/opt/etcd/{ETCD_36}/bin/etcd"
    assert f"etcd Version: {ETCD_36}" in node.exec([binary, "--version"]).stdout
    assert node.exec(["pgrep", "-f", f"^{binary} "]).stdout.split() == [main_pid(node, "etcd")]
    again = bare_shared.apply(target=node.name)[node.name]
    assert again.ok and not again.changes, again.failures


def test_a_node_that_is_not_declared_is_told_so(bare_shared, only):
    only("controller-1")
    answer = bare_shared.apply(target="controller-3")["controller-3"]
    assert not answer.ok
    assert "kubernetes_controller:controllers: minion controller-3 is not in it (it has controller-1)" in answer.comments
    assert not (bare_shared.lab.node("controller-3").root / "opt/kubernetes").exists()
