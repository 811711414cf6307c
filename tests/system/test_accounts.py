"""Promises 2, 5 and 7: an account changes with its component and back; wrong owners are mended without a restart."""

import pytest

K8SAPI = {"apiserver": {"user": "k8sapi", "group": "k8sapi"}}
API_PLACES = "/var/lib/kubernetes /var/lib/kubernetes/* /var/lib/kubernetes/live/* /var/log/kubernetes/kube-apiserver{,/*}"
ETCD_PLACES = "/var/lib/kubernetes-etcd/live/* /var/lib/etcd{,/member,/member/*,/member/*/*}"
PREPARES = "kubernetes_controller.rehearsal"


def owners(node, places=f"{API_PLACES} {ETCD_PLACES}"):
    """Return {path: owner and mode} of all that API server and etcd have."""
    said = node.exec(["bash", "-c", f"stat -c '%n %U:%G %a' {places} 2>/dev/null; true"]).stdout
    return dict(line.split(" ", 1) for line in said.splitlines() if ".json" not in line)


def account(node, name):
    pid = node.exec(["systemctl", "show", "--value", "-p", "MainPID", name]).stdout.strip()
    return node.exec(["stat", "-c", "%U", f"/proc/{pid}"]).stdout.strip()


def change(answer):
    """Return the changes of the one component that has some."""
    assert answer.ok, answer.failures
    ((name, changes),) = answer.changes.items()
    assert name.endswith("runs as declared")
    return changes


def test_another_account_is_prepared_without_harm_promoted_and_taken_back(cluster, pillar):
    node, before = cluster.nodes[0], [owners(node) for node in cluster.nodes]
    pillar(K8SAPI)
    for answer in cluster.apply(sls=PREPARES).values():
        assert answer.ok, answer.failures
    for one, known in zip(cluster.nodes, before, strict=True):
        now = owners(one)
        assert {path: now[path] for path in known if path in now} == known
    node.exec(["systemctl", "restart", "kube-apiserver"])
    cluster.wait_for("the API server that is live", lambda: cluster.get(node, "/readyz")[0] == 200)
    assert account(node, "kube-apiserver") == "kube-apiserver"

    would = change(cluster.apply("test=True", target=node.name)[node.name])
    assert change(cluster.apply(target=node.name)[node.name]) == would
    assert account(node, "kube-apiserver") == "k8sapi"
    log = owners(node, "/var/log/kubernetes/kube-apiserver{,/*}")
    assert {owner.split()[0] for owner in log.values()} == {"k8sapi:k8sapi"}
    assert not cluster.apply(target=node.name)[node.name].changes
    cluster.go_back()
    now = owners(node)
    assert {path: now[path] for path in before[0] if path in now} == before[0]
    assert account(node, "kube-apiserver") == "kube-apiserver"


BY_HAND = """
chgrp games /var/lib/kubernetes{,/generations}; chmod 0750 /var/lib/kubernetes{,/generations}
chown games /var/lib/kubernetes/live/start; chmod 0666 /var/lib/kubernetes/live/tls.key; chmod 0700 /var/lib/kubernetes/live/
chown games:games /var/log/kubernetes/kube-apiserver; chown root:root /var/log/kubernetes/kube-apiserver/audit.log
chown root:root /var/lib/etcd/member/wal/*.wal
"""


@pytest.mark.parametrize("restarted", [False, True], ids=["runs", "ends at once"])
def test_owners_and_modes_put_wrong_by_hand_are_mended_without_a_restart_of_what_runs(cluster, restarted):
    node, before = cluster.nodes[1], owners(cluster.nodes[1])
    processes = cluster.processes()
    node.exec(["bash", "-ec", BY_HAND])
    if restarted:
        node.exec(["systemctl", "restart", "--no-block", "kube-apiserver"])
        cluster.wait_for("its end", lambda: cluster.get(node, "/readyz")[0] != 200)
    would = cluster.apply("test=True", target=node.name)[node.name]
    did = cluster.apply(target=node.name)[node.name]
    assert did.ok, did.failures
    assert would.ok or restarted, would.failures  # the controllers of this node miss their API server until it is mended
    components = ["etcd runs as declared", "kube-apiserver runs as declared"]
    for name in components:
        assert did.changes[name] == would.changes[name]
        assert did.changes[name]["process"] == "none (owners)"
    now = owners(node)
    assert {path: now[path] for path in before if path in now} == before
    assert not cluster.apply(target=node.name)[node.name].changes
    assert cluster.renewed(processes) <= ({(node.name, "kube-apiserver")} if restarted else set())
