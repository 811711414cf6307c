"""One controller is a control plane too, and needs nobody else."""

import pytest

COMPONENTS = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]


@pytest.fixture
def only(bare_shared):
    """Declare one controller and no other; return the node."""

    def declare(name):
        chosen = bare_shared.lab.node(name)
        others = {node.name: None for node in bare_shared.nodes}
        bare_shared.pillar({"controllers": {**others, name: chosen.address}})
        return chosen

    return declare


def assert_healthy_alone(cluster, node):
    status, table = cluster.health(node.name)
    assert status == 0, table
    assert list(table[node.name]) == COMPONENTS
    assert cluster.get(node, "/readyz") == (200, "ok")
    members = node.exec(["grep", "-e", "--initial-cluster=", "/var/lib/kubernetes-etcd/live/start"]).stdout
    assert members.split()[0] == f"--initial-cluster={node.name}=https://{node.address}:2380"


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


def test_a_minion_that_was_never_synced_becomes_a_control_plane_by_one_state_apply(bare_shared, only):
    node = only("controller-2")
    bare_shared.make_pki()
    assert_never_touched(node)
    answer = bare_shared.apply(target=node.name)[node.name]
    assert answer.ok, answer.failures
    assert_healthy_alone(bare_shared, node)


def test_a_node_that_is_not_declared_is_told_so(bare_shared, only):
    only("controller-1")
    answer = bare_shared.apply(target="controller-3")["controller-3"]
    assert not answer.ok
    assert "kubernetes_controller:controllers: minion controller-3 is not in it (it has controller-1)" in answer.comments
    assert not (bare_shared.lab.node("controller-3").root / "opt/kubernetes").exists()
