"""Promises 4 and 5: what serves is interrupted one node at a time, and what does not pass its gate is taken back."""

import json
import subprocess
import sys

SAMPLER = """
import http.client, json, ssl, sys, threading, time
context, samples, asking = ssl._create_unverified_context(), [], []

def ready(address, answers):
    try:
        connection = http.client.HTTPSConnection(address, 6443, timeout=3, context=context)
        connection.request("GET", "/readyz")
        answers[address] = connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        answers[address] = False

until_stdin_ends = threading.Thread(target=sys.stdin.read)
until_stdin_ends.start()
began = time.monotonic()
while until_stdin_ends.is_alive():
    samples.append({})
    for address in sys.argv[1:]:  # nobody waits for the slow one
        asking.append(threading.Thread(target=ready, args=(address, samples[-1])))
        asking[-1].start()
    time.sleep(max(0, began + 0.1 * len(samples) - time.monotonic()))
[one.join() for one in asking]
print(json.dumps([sum(answers.values()) for answers in samples]))
"""


def test_three_runs_at_the_same_second_change_one_flag_and_never_leave_fewer_than_two_api_servers_ready(cluster, pillar):
    before = cluster.processes()
    inside = ["nsenter", f"--net=/run/netns/{cluster.lab.netns}", sys.executable, "-c", SAMPLER]
    sampler = subprocess.Popen(
        [*inside, *(node.address for node in cluster.nodes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pillar({"apiserver": {"settings": {"audit-log-maxage": 41}}})
    answers = cluster.apply()
    samples = json.loads(sampler.communicate("")[0])
    assert sorted(answers) == [node.name for node in cluster.nodes]
    for minion, answer in answers.items():
        assert answer.ok, (minion, answer.failures)
        assert list(answer.changes) == ["kube-apiserver runs as declared"], minion
        changes = answer.changes["kube-apiserver runs as declared"]
        assert changes["flags"] == {"audit-log-maxage": {"old": "30", "new": "41"}}, minion
        assert set(changes) == {"generation", "flags", "process"}, minion
    assert cluster.renewed(before) == {(node.name, "kube-apiserver") for node in cluster.nodes}
    assert min(samples) >= 2, f"{min(samples)} of 3 ready at worst, in {len(samples)} samples"
    assert min(samples) < 3, "no restart was seen, so nothing was proven"


def test_a_generation_that_does_not_pass_its_gate_is_taken_back_and_not_tried_again(cluster, pillar):
    node, before = cluster.nodes[0], cluster.processes()
    # Without a rehearsal only the gate is left to see it.
    nowhere = {"kubeconfig": {"kubeconfig": {"server": f"https://{node.address}:1"}}}
    rollout = {"rehearsal": {"enabled": False}, "gate": {"timeout_s": 20}}
    pillar({"rollout": rollout, "scheduler": {"files": nowhere}})
    first = cluster.apply(sls="kubernetes_controller.scheduler", target=node.name)[node.name]
    assert not first.ok
    said = "\n".join(first.failures)
    assert "did not pass its gate" in said
    assert "/readyz said 500 [-]" in said
    assert "is back and serves" in said
    assert first.changes == {}
    generation = cluster.processes()[node.name, "kube-scheduler"][0]
    assert generation == before[node.name, "kube-scheduler"][0]
    between = cluster.processes()
    second = cluster.apply(sls="kubernetes_controller.scheduler", target=node.name)[node.name]
    assert not second.ok
    assert "failed before and is not tried again" in "\n".join(second.failures)
    assert f"salt {node.name} k8s_component.retry kube-scheduler" in "\n".join(second.failures)
    assert cluster.processes() == between
    forgotten = cluster.salt("k8s_component.retry", "kube-scheduler", target=node.name)[node.name]
    assert len(forgotten) == 1


def test_what_serves_is_not_interrupted_while_a_neighbour_is_not_ready(cluster, pillar):
    first, second = cluster.nodes[0], cluster.nodes[1]
    before = cluster.processes()
    pillar({"scheduler": {"settings": {"v": 3}}, "rollout": {"turn": {"neighbours_timeout_s": 2}}})
    second.exec(["systemctl", "stop", "kube-apiserver"])
    refused = cluster.apply(sls="kubernetes_controller.scheduler", target=first.name)[first.name]
    assert not refused.ok
    said = "\n".join(refused.failures)
    assert f"{second.name} is not ready" in said
    assert '"ignore": ["neighbours"]' in said
    assert cluster.processes()[first.name, "kube-scheduler"] == before[first.name, "kube-scheduler"]
    repaired = cluster.apply(sls="kubernetes_controller.apiserver", target=second.name)[second.name]
    assert repaired.ok, repaired.failures


def etcdctl(node, *words):
    live = "/var/lib/kubernetes-etcd/live"
    files = [f"--cacert={live}/etcd-ca.crt", f"--cert={live}/peer.crt", f"--key={live}/peer.key"]
    return node.exec(["/usr/local/bin/etcdctl", f"--endpoints=https://{node.address}:2379", *files, *words]).stdout.strip()


def test_what_serves_is_adopted_under_the_turn_and_only_while_the_neighbours_are_ready(cluster, pillar):
    """Promises 4 and 11. Where conf_dir is another, what runs is to the formula what somebody else started."""
    first, second = cluster.nodes[0], cluster.nodes[1]
    home, key = "/var/lib/kubernetes-moved", (first.name, "kube-apiserver")
    before, api = cluster.processes(), "kubernetes_controller.apiserver"
    pillar({"conf_dir": home, "rollout": {"adopt": True, "turn": {"neighbours_timeout_s": 2}}})
    second.exec(["systemctl", "stop", "kube-apiserver"])
    refused = cluster.apply(sls=api, target=first.name)[first.name]
    second.exec(["systemctl", "start", "kube-apiserver"])
    said = "\n".join(refused.failures)
    assert f"{second.name} is not ready" in said, refused.comments
    assert "Nothing was changed. Waited 2 s (kubernetes_controller:rollout:turn:neighbours_timeout_s)." in said
    assert cluster.processes()[key] == before[key]
    cluster.wait_for("the neighbour", lambda: cluster.get(second, "/readyz") == (200, "ok"))

    holder = "/kubernetes_controller/turn-holder"
    etcdctl(second, "put", holder, "nobody")
    adopted = cluster.apply(sls=api, target=first.name)[first.name]
    assert adopted.ok, adopted.failures
    assert adopted.changes["kube-apiserver runs as declared"]["process"] == "restart (adopted)"
    assert etcdctl(second, "get", "--print-value-only", holder) == f"{first.name} for kube-apiserver"
    assert cluster.get(first, "/readyz") == (200, "ok")

    cluster.pillar(None)
    back = cluster.apply(sls=api, target=first.name)[first.name]
    assert back.ok, back.failures
    assert cluster.processes()[key][0] == before[key][0]
    first.exec(["rm", "-r", home])


def test_a_member_of_etcd_that_leads_hands_over_before_it_restarts(cluster, pillar):
    def leads(node):
        status = json.loads(etcdctl(node, "endpoint", "status", "--write-out=json"))[0]["Status"]
        return status["leader"] == status["header"]["member_id"]

    (leader,) = [node for node in cluster.nodes if leads(node)]
    begun = leader.exec(["date", "+%s"]).stdout.strip()
    pillar({"etcd": {"settings": {"max-txn-ops": 129}}})
    applied = cluster.apply(sls="kubernetes_controller.etcd", target=leader.name)[leader.name]
    assert applied.ok, applied.failures
    assert applied.changes["etcd runs as declared"]["process"].startswith("restart")
    said = leader.exec(["journalctl", "--no-pager", "-u", "etcd", "-o", "cat", f"--since=@{begun}"]).stdout
    assert "skipped leadership transfer; local server is not leader" in said
    assert not leads(leader)
