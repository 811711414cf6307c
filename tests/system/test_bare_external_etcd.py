"""An etcd cluster that somebody else runs: three members with TLS and a CA that the formula never sees the key of."""

UNIT, PORT = "somebody-elses-etcd", 12379
BROUGHT = "/srv/kubernetes_controller/pki/brought"
OWN = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"]


def test_a_control_plane_stands_on_an_etcd_that_somebody_else_runs(bare, external_etcd, new_authority):
    ca, certificates = new_authority("somebody-else"), {}
    for node in bare.nodes:
        pair = ca.issue("member", ["serverAuth", "clientAuth"], [node.address])
        pem = {"ca": ca.crt, "server": pair.crt, "server_key": pair.key, "peer": pair.crt, "peer_key": pair.key}
        certificates[node.name] = pem
    servers = external_etcd(bare, PORT, certificates)
    bare.pillar({"etcd": {"managed": False, "servers": servers}})

    # What is not brought yet is asked for by name and place.
    refused, name = bare.steps(), "apiserver-etcd-client.crt"
    assert not refused.ok
    assert (
        f"{name} is declared to be brought, but is neither {BROUGHT}/controller-1/{name} nor {BROUGHT}/{name}."
        in refused.comments
    )

    client = ca.issue("kube-apiserver")
    bare.brought({"etcd-ca.crt": ca.crt, name: client.crt, "apiserver-etcd-client.key": client.key})
    done = bare.orchestrate()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    status, table = bare.health()
    assert status == 0, table
    for node in bare.nodes:
        assert list(table[node.name]) == [*OWN, *(f"etcd {server}" for server in servers)]
        assert not (node.root / "etc/systemd/system/etcd.service").exists()
        assert not (node.root / "var/lib/kubernetes-etcd").exists()
        assert node.exec(["pgrep", "-x", "etcd"]).stdout.split() == [main_pid(node)]
    assert not list((bare.lab.master.root / "srv/kubernetes_controller/pki/authorities").glob("etcd-ca*"))
    bare.kubectl("create", "configmap", "kept-outside")

    # A change is rehearsed on a copy of its data, by an etcd of the formula's own binaries.
    bare.pillar({"etcd": {"managed": False, "servers": servers}, "scheduler": {"settings": {"v": 3}}})
    changed = bare.orchestrate(sls=["k8s_rollout.deploy"])
    assert changed.returncode == 0, changed.stdout[-3000:] + changed.stderr[-2000:]
    passed = "kube-scheduler passed on a copy of the data, with kube-apiserver, kube-controller-manager as live"
    assert changed.stdout.count(passed) == len(bare.nodes)
    assert not [node for node in bare.nodes if (node.root / "run/kubernetes-rehearsal").exists()]

    # One member goes: the control plane serves on, and health names the one that is gone.
    bare.nodes[2].exec(["systemctl", "stop", UNIT])
    status, table = bare.health()
    assert status != 0
    for said in table.values():
        assert [who for who, line in said.items() if not line.startswith("ok")] == [f"etcd {servers[2]}"], said
    assert "kept-outside" in bare.kubectl("get", "configmap", "kept-outside").stdout


def main_pid(node):
    return node.exec(["systemctl", "show", "--value", "-p", "MainPID", UNIT]).stdout.strip()
