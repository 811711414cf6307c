"""What the rollout from bare nodes leaves behind, and that a second one leaves it alone."""

import json

import pytest

PORTS = {"etcd": {2379, 2380}, "kube-apiserver": {6443}, "kube-controller-manager": {10257}, "kube-scheduler": {10259}}
COMPONENTS = list(PORTS)

pytestmark = pytest.mark.smoke


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
    assert not changed
    assert cluster.processes() == before


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_listens_on_the_declared_address_only(cluster, component):
    for node in cluster.nodes:
        pid = node.exec(["systemctl", "show", "--value", "-p", "MainPID", component]).stdout.strip()
        sockets = node.exec(["ss", "-Hltunp"]).stdout.splitlines()
        bound = {words[4] for words in map(str.split, sockets) if f"pid={pid}," in words[-1]}
        assert bound == {f"{node.address}:{port}" for port in PORTS[component]}


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
