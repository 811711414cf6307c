"""A minor release up, and back when asked: node by node, with a snapshot from before, and nothing lost."""

import json
import os

import pytest
from kclab import binaries

UPGRADES = [("1.36.3", "1.37.2")]
if os.environ.get("KC_SOAK"):  # the oldest release that the defaults are made for: one more to build
    UPGRADES.append(("1.35.4", "1.36.3"))
SNAPSHOTS = "/var/backups/kubernetes_controller"
ETCDUTL = "/opt/etcd/3.7.3/bin/etcdutl"
BACK = {"rollout": {"ignore": ["downgrade"]}}


@pytest.fixture(params=UPGRADES, ids=" to ".join)
def upgrade(request):
    """The releases before and after."""
    return request.param


@pytest.fixture
def old_cluster(bare, upgrade):
    """A cluster of the older release, with objects in it."""
    binaries.ensure(kubernetes=upgrade)
    bare.pillar({"release": upgrade[0]})
    done = bare.orchestrate()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    bare.kubectl("create", "secret", "generic", "kept", "--from-literal=word=sesame")
    bare.kubectl("create", "configmap", "kept", "--from-literal=word=sesame")
    return bare


def releases(cluster):
    """Return what each API server says it is."""
    found = {}
    for node in cluster.nodes:
        answer = cluster.kubectl("--server", f"https://{node.address}:6443", "get", "--raw", "/version")
        found[node.name] = json.loads(answer.stdout)["gitVersion"].removeprefix("v")
    return found


def called_by_people(cluster):
    """Return the release of the kubectl that people get on each node."""
    return [str((node.root / "usr/local/bin/kubectl").readlink()).split("/")[3] for node in cluster.nodes]


def snapshots(node):
    return node.exec(["sh", "-c", f"ls {SNAPSHOTS} 2>/dev/null"], check=False).stdout.split()


def assert_nothing_is_lost(cluster):
    for node in cluster.nodes:
        server = ["--server", f"https://{node.address}:6443"]
        for kind in ("secret", "configmap"):
            assert json.loads(cluster.kubectl(*server, "get", kind, "kept", "-o", "json").stdout)["data"]


def test_an_upgrade_goes_node_by_node_keeps_a_snapshot_and_goes_back_only_when_asked(old_cluster, upgrade):
    cluster = old_cluster
    old, new = upgrade
    assert set(releases(cluster).values()) == {old}
    assert not any(snapshots(node) for node in cluster.nodes)

    cluster.pillar({"release": new})
    done = cluster.orchestrate()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert set(releases(cluster).values()) == set(called_by_people(cluster)) == {new}
    cluster.wait_for("health, with leaders", lambda: cluster.health()[0] == 0, timeout_s=40)
    assert_nothing_is_lost(cluster)
    for node in cluster.nodes:
        (name,) = snapshots(node)
        assert name.endswith(f"-before-kube-apiserver-{new}.db")
        status = node.exec([ETCDUTL, "snapshot", "status", f"{SNAPSHOTS}/{name}", "--write-out=json"]).stdout
        assert json.loads(status)["totalKey"] > 100
        assert node.exec(["stat", "-c", "%a %U", f"{SNAPSHOTS}/{name}"]).stdout.split() == ["600", "root"]

    # Back over a minor release is refused, with the way to ask for it, and nothing is touched.
    before = cluster.processes()
    cluster.pillar({"release": old})
    refused = cluster.orchestrate()
    assert refused.returncode != 0
    assert '"ignore": ["downgrade"]' in " ".join(refused.stdout.split())
    assert cluster.processes() == before
    assert all((node.root / f"opt/kubernetes/{old}/bin/kubectl").exists() for node in cluster.nodes)
    assert set(called_by_people(cluster)) == {new}

    asked = cluster.orchestrate("pillar=" + json.dumps({"kubernetes_controller": BACK}))
    assert asked.returncode == 0, asked.stdout[-3000:] + asked.stderr[-2000:]
    assert set(releases(cluster).values()) == set(called_by_people(cluster)) == {old}
    cluster.wait_for("health, with leaders", lambda: cluster.health()[0] == 0, timeout_s=40)
    assert_nothing_is_lost(cluster)
