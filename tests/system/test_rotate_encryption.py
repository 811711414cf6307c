"""Keys of encryption at rest are exchanged while everybody reads, and the former one goes when nothing is under it."""

import concurrent.futures
import json
import re

import leaks
import pytest

ROTATE = ["state.orchestrate", "kubernetes_controller.orchestrate.rotate_encryption"]
NEW = {"encryption": [{"resources": ["secrets"], "providers": [{"secretbox": {"keys": ["encryption-key2"]}}, {"identity": {}}]}]}


def stored(cluster):
    """Return {key: what its value begins with} of all Secrets, from etcd itself."""
    node = cluster.nodes[0]
    live = f"{cluster.homes['kube-apiserver']}/live"
    command = ["/opt/etcd/3.7.3/bin/etcdctl", f"--endpoints=https://{node.address}:2379", f"--cacert={live}/etcd-ca.crt"]
    command += [f"--cert={live}/etcd-client.crt", f"--key={live}/etcd-client.key", "get", "--prefix", "/registry/secrets/"]
    said = node.exec(command, errors="replace").stdout
    return [line.split(":")[4] for line in said.splitlines() if line.startswith("k8s:enc:secretbox:v1:")]


def assert_readable(cluster):
    for node in cluster.nodes:
        server = ["--server", f"https://{node.address}:6443"]
        for name in ("first", "second"):
            secret = json.loads(cluster.kubectl(*server, "get", "secret", name, "-o", "json").stdout)
            assert secret["data"] == {"word": "c2VzYW1l"}


@pytest.fixture
def cluster(bare):
    """A cluster that nobody uses afterwards, so that no rotation need lead back."""
    done = bare.orchestrate()
    assert done.returncode == 0, done.stdout[-3000:]
    for name in ("first", "second"):
        bare.kubectl("create", "secret", "generic", name, "--from-literal=word=sesame")
    return bare


def rotate_with_a_minion_killed(cluster):
    """Rotate, and kill the second controller's minion when the first one's API server was told of the new key."""
    live = cluster.nodes[0].root / cluster.homes["kube-apiserver"].lstrip("/") / "live"
    before, minion = live.readlink(), "salt-minion"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        rotation = pool.submit(cluster.orchestrate, sls=ROTATE)
        cluster.wait_for("the first API server", lambda: live.readlink() != before or rotation.done(), 400)
        cluster.nodes[1].exec(["systemctl", "kill", "--signal=KILL", minion])
        cluster.nodes[1].exec(["systemctl", "stop", minion])
        done = rotation.result()
    cluster.nodes[1].exec(["systemctl", "start", minion])
    cluster.lab.boot()
    return done


def test_a_key_is_exchanged_in_steps_and_a_rotation_that_was_cut_off_is_finished(cluster):
    assert set(stored(cluster)) == {"encryption-key1"}
    with leaks.watched(cluster) as watch:
        cluster.pillar(NEW)

        # A plain rollout would make what is stored unreadable, and says what does it safely.
        refused = watch.said(cluster.orchestrate())
        assert refused.returncode != 0
        assert "encryption-key1 of the live configuration is not declared any more" in " ".join(refused.stdout.split())

        cut_off = watch.said(rotate_with_a_minion_killed(cluster))
        assert cut_off.returncode != 0
        assert "controller-2" in cut_off.stdout
        assert set(stored(cluster)) == {"encryption-key1"}
        assert_readable(cluster)

        done = watch.said(cluster.orchestrate(sls=["k8s_rollout.rotate_encryption"]))
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"^The rotation of .* ended well after ", done.stdout, re.M)
    leaks.nowhere(cluster, watch)
    assert set(stored(cluster)) == {"encryption-key2"}
    assert_readable(cluster)
    live = cluster.salt("k8s_encryption.live")
    assert {json.dumps(one["providers"]) for one in live.values()} == {
        json.dumps({"secrets": [["secretbox", "encryption-key2"], ["identity", ""]]})
    }

    # Again: nothing to do, and the declaration is what a plain run finds.
    before = cluster.processes()
    again = cluster.steps(sls=ROTATE)
    assert again.ok and not again.changes
    for answer in cluster.apply().values():
        assert answer.ok and not answer.changes, answer.failures
    assert cluster.processes() == before
