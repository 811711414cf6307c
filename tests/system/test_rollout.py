"""What the rollout from bare nodes leaves behind, and that a second one leaves it alone."""

import base64
import json
import re

import pytest

PORTS = {"etcd": {2379, 2380}, "kube-apiserver": {6443}, "kube-controller-manager": {10257}, "kube-scheduler": {10259}}
COMPONENTS = list(PORTS)
# Where Salt, systemd and the operator's terminal keep what they were told.
TRACES = {
    "the master's jobs and logs": ("salt-master", ["var/cache/salt/master/jobs", "var/log", "run/log"]),
    "the minions' caches and logs": ("controller-", ["var/cache/salt", "var/log", "etc/systemd/system"]),
}


def test_one_orchestration_leads_from_bare_nodes_to_a_healthy_control_plane(cluster, rollout):
    assert rollout.returncode == 0
    assert cluster.lab.salt("controller-*", "k8s_health.status", check=False).returncode == 0
    table = cluster.salt("k8s_health.status")
    assert sorted(table) == [node.name for node in cluster.nodes]
    for said in table.values():
        assert list(said) == COMPONENTS
        assert all(line.startswith("ok ") for line in said.values()), said


def test_the_operators_kubeconfig_is_his_alone(cluster):
    path = cluster.lab.master.root / "root/.kube/config"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_uid == 0


def test_the_readiness_of_every_controller_is_complete(cluster):
    for node in cluster.nodes:
        said = cluster.kubectl("--server", f"https://{node.address}:6443", "get", "--raw", "/readyz?verbose").stdout
        assert "[+]etcd ok" in said
        assert "readyz check passed" in said
        assert "[-]" not in said


def test_a_second_run_changes_nothing_on_any_node(cluster):
    before = cluster.processes()
    for minion, answer in cluster.apply().items():
        assert answer.ok, (minion, answer.failures)
        assert not answer.changes, minion
    assert cluster.processes() == before


def test_a_second_orchestration_changes_nothing_either(cluster):
    before = cluster.processes()
    done = cluster.orchestrate("--out=json")
    assert done.returncode == 0, done.stdout[-3000:]
    (states,) = json.loads(done.stdout[done.stdout.index("{") :])["data"].values()
    changed = {state["__id__"]: state["changes"] for state in states.values() if state["changes"]}
    # Salt lists the answer of any execution module as a change; that nothing was synced is in it.
    synced = [changed.pop(f"Every controller has the {kind} of the formula", {"ret": {}}) for kind in ("modules", "states")]
    assert [list(filter(None, one["ret"].values())) for one in synced] == [[], []]
    assert not changed
    assert cluster.processes() == before


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_listens_on_the_declared_address_only(cluster, component):
    for node in cluster.nodes:
        pid = node.exec(["systemctl", "show", "--value", "-p", "MainPID", component]).stdout.strip()
        sockets = node.exec(["ss", "-Hltunp"]).stdout.splitlines()
        bound = {words[4] for words in map(str.split, sockets) if f"pid={pid}," in words[-1]}
        assert bound == {f"{node.address}:{port}" for port in PORTS[component]}


def test_nothing_else_listens_on_a_controller(cluster):
    ours = {str(port) for ports in PORTS.values() for port in ports}
    for node in cluster.nodes:
        sockets = [line.split() for line in node.exec(["ss", "-Hltunp"]).stdout.splitlines()]
        assert {words[4].rpartition(":")[2] for words in sockets} == ours, sockets


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_unit_is_sandboxed(cluster, component):
    node = cluster.nodes[0]
    said = node.exec(["systemd-analyze", "security", "--no-pager", f"{component}.service"]).stdout
    assert float(re.search(r"Overall exposure level for \S+: ([\d.]+)", said)[1]) <= 1.5


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_unit_in_use_is_that_of_the_live_generation(cluster, component):
    for node in cluster.nodes:
        unit = (node.root / f"etc/systemd/system/{component}.service").read_text()
        assert unit == (node.root / cluster.homes[component].lstrip("/") / "live/unit").read_text()
        assert node.exec(["systemctl", "is-enabled", component]).stdout.strip() == "enabled"


@pytest.mark.parametrize("component", COMPONENTS)
def test_keys_on_a_node_are_readable_by_root_and_their_component_only(cluster, component):
    for node in cluster.nodes:
        listing = node.exec(["find", f"{cluster.homes[component]}/live/", "-type", "f", "-printf", "%f %m %u %g\n"]).stdout
        assert listing
        for name, mode, user, group in map(str.split, listing.splitlines()):
            assert (user, group) == ("root", component), name
            assert int(mode, 8) & 0o027 == 0 or name == "unit", f"{name} has mode {mode}"


def test_the_keys_of_the_cas_never_leave_the_master(cluster):
    authorities = cluster.lab.master.root / "srv/kubernetes_controller/pki/authorities"
    # That of the CSR signer is made to be used by the controller-manager.
    keys = [path for path in authorities.glob("*.key") if path.name != "signer-ca.key"]
    assert [path.name for path in sorted(keys)] == ["etcd-ca.key", "front-proxy-ca.key", "kubernetes-ca.key"]
    for node in cluster.nodes:
        for path in keys:
            text = path.read_text().splitlines()[1]
            found = node.exec(["grep", "-rlF", "-e", text, "/var/lib", "/etc", "/var/cache/salt"], check=False).stdout
            assert not found, f"{path.name} is on {node.name}"


def fragments(cluster):
    """Return what gives a secret of this cluster away: lines of keys, plain and as a kubeconfig embeds them."""
    pki = cluster.lab.master.root / "srv/kubernetes_controller/pki"
    found = {}
    for path in pki.rglob("*"):
        if path.is_file() and "PRIVATE KEY" in (text := path.read_text()):
            lines = [line for line in text.splitlines() if not line.startswith("-----")]
            embedded = base64.b64encode(text.encode())
            found[path.name] = [line.encode() for line in lines if len(line) > 30] + [embedded[80:140]]
    key = (pki / "shared/encryption-key1").read_text().strip()
    return {**found, "encryption-key1": [key.encode(), base64.b64encode(key.encode())[:40]]}


def given_away(secrets, data):
    return [name for name, parts in secrets.items() if any(part in data for part in parts)]


def test_the_output_of_the_rollout_has_no_secret(cluster, rollout):
    secrets = fragments(cluster)
    assert len(secrets) > 10
    assert not given_away(secrets, (rollout.stdout + rollout.stderr).encode())


@pytest.mark.parametrize("place", TRACES)
def test_salt_stores_no_secret_in(cluster, place):
    secrets, (prefix, directories) = fragments(cluster), TRACES[place]
    looked_at = 0
    for node in [*cluster.nodes, cluster.lab.master]:
        for directory in directories if node.name.startswith(prefix) else ():
            for path in (node.root / directory).rglob("*"):
                if path.is_file() and not path.is_symlink():
                    looked_at += 1
                    assert not given_away(secrets, path.read_bytes()), path
    assert looked_at > 10


def test_no_process_has_a_secret_in_its_arguments_or_environment(cluster):
    secrets = fragments(cluster)
    for node in [*cluster.nodes, cluster.lab.master]:
        shown = node.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'"], check=False)
        assert "salt" in shown.stdout
        assert not given_away(secrets, shown.stdout.encode())
