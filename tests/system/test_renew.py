"""Leaf certificates: renewed by the master's schedule as the document says, all of them when asked, and told of."""

import json

import yaml

RENEW = ["state.orchestrate", "kubernetes_controller.orchestrate.renew"]
SCHEDULE = "/etc/salt/master.d/kubernetes_controller_renew.conf"
KEYS = ["var/lib/kubernetes/live/tls.key", "var/lib/kubernetes/live/etcd-client.key", "var/lib/kubernetes-etcd/live/server.key"]
PORTS = {"etcd": 2379, "kube-apiserver": 6443, "kube-controller-manager": 10257, "kube-scheduler": 10259}


def restart_master(cluster):
    cluster.lab.master.exec(["systemctl", "restart", "salt-master"])
    up = ["--out=json", "--static", "--timeout=10", "controller-*", "test.ping"]
    cluster.wait_for("three minions", lambda: cluster.lab.salt(*up, check=False).stdout.count("true") == 3, timeout_s=120)


def test_a_schedule_of_the_master_renews_what_is_due(cluster, code_blocks):
    (text,) = [text for words, text in code_blocks("docs/operations.md") if SCHEDULE in text]
    declared = yaml.safe_load(text)
    (job,) = declared["schedule"].values()
    assert job["days"] == 1
    del job["days"]
    job["seconds"] = 20  # nobody waits for a day

    node, before = cluster.nodes[2], cluster.processes()
    cluster.pillar(None)
    old = cluster.serial(node, PORTS["kube-scheduler"])
    share = cluster.lab.master.root / "srv/kubernetes_controller/pki/hosts" / node.name / "kubernetes_controller_pki"
    (share / "scheduler-server.crt").unlink()
    cluster.lab.master.write(SCHEDULE, yaml.safe_dump(declared))
    try:
        restart_master(cluster)
        cluster.wait_for("a renewed certificate", lambda: cluster.serial(node, PORTS["kube-scheduler"]) != old, timeout_s=180)
    finally:
        (cluster.lab.master.root / SCHEDULE.lstrip("/")).unlink()
        restart_master(cluster)
    # A run of the schedule may have been cut off by the restart; the next one finishes it, and then nothing is to do.
    assert cluster.orchestrate(sls=RENEW).returncode == 0
    assert "Certificates that are due are renewed" not in cluster.steps(sls=RENEW).changes
    after = cluster.processes()
    assert {key: value[1:] for key, value in after.items()} == {key: value[1:] for key, value in before.items()}
    assert [key for key in after if after[key][0] != before[key][0]] == [(node.name, "kube-scheduler")]


def test_all_certificates_are_renewed_when_asked_and_the_record_has_them(cluster):
    cluster.pillar(None)
    keys = [(node, component) for node in cluster.nodes for component in PORTS]
    old = {(node.name, component): cluster.serial(node, PORTS[component]) for node, component in keys}
    key_paths = [node.root / path for node in cluster.nodes for path in KEYS]
    old_keys = [path.read_text() for path in key_paths]
    done = cluster.orchestrate('pillar={"force": true}', sls=RENEW)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    for node, component in keys:
        assert cluster.serial(node, PORTS[component]) != old[node.name, component], f"{component} of {node.name}"
    for path, key in zip(key_paths, old_keys, strict=True):
        assert path.read_text() != key, path
    # A leader that was restarted last has a lease that ends 15 s after that, until another one takes it.
    cluster.wait_for("a healthy table", lambda: cluster.health()[0] == 0, timeout_s=40)

    said = cluster.lab.salt_run("--out=json", "k8s_rollout.deploy")
    record = json.loads(said.stdout[said.stdout.index("{") :])
    assert record["rows"] == []
    assert set(record["certificates"]) == {"master", *(node.name for node in cluster.nodes)}
    for node in cluster.nodes:
        found = cluster.salt("k8s_certificate.expiry", target=node.name)[node.name]
        assert record["certificates"][node.name] == found
        assert {name: "tls.crt" in files or "server.crt" in files for name, files in found.items()} == dict.fromkeys(PORTS, True)
    assert {"kubernetes-ca.crt", "etcd-ca.crt"} <= set(record["certificates"]["master"]["authorities"])
    assert "The first certificate to end is that of " in said.stderr
