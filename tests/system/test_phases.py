"""Every phase can be applied alone, to a minion that has never heard of the formula too."""

import pytest

PHASES = [
    "binaries", "preflight", "prepare", "rehearsal", "etcd", "apiserver", "objects", "links", "controller_manager", "scheduler",
    "encryption", "health",
]  # fmt: skip
COMPONENTS = {
    "etcd": "etcd", "apiserver": "kube-apiserver", "controller_manager": "kube-controller-manager", "scheduler": "kube-scheduler",
}  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_alone_changes_nothing_where_all_is_as_declared(cluster, phase):
    before = cluster.processes()
    answer = cluster.apply(sls=f"kubernetes_controller.{phase}", target="controller-1")["controller-1"]
    assert answer.ok, answer.failures
    assert not answer.changes
    assert cluster.processes() == before


def test_a_phase_renews_its_component_and_no_other(cluster, pillar):
    pillar({key: {"settings": {"heartbeat-interval": 120} if key == "etcd" else {"v": 1}} for key in COMPONENTS})
    for phase, component in COMPONENTS.items():
        before = cluster.processes()
        answer = cluster.apply(sls=f"kubernetes_controller.{phase}", target="controller-2")["controller-2"]
        assert answer.ok, answer.failures
        assert list(answer.changes) == [f"{component} runs as declared"]
        assert cluster.renewed(before) == {("controller-2", component)}
        old, new = before["controller-2", component], cluster.processes()["controller-2", component]
        assert not set(old) & set(new), "generation, process and start time are new"


# -- a minion that has never been synced ------------------------------------------------------------------------------


@pytest.fixture
def unsynced(cluster):
    """A controller whose minion has none of the formula's modules."""
    node = cluster.nodes[-1]
    node.exec(["systemctl", "stop", "salt-minion"])
    node.exec(["sh", "-c", "rm -rf /var/cache/salt/minion/extmods /var/cache/salt/minion/files/base/_[a-z]*"])
    node.exec(["systemctl", "start", "salt-minion"])
    cluster.lab.boot()  # which waits until all minions answer
    assert not cluster.salt("sys.list_functions", "k8s_config", target=node.name)[node.name]
    yield node
    cluster.salt("saltutil.sync_all", target=node.name)


@pytest.mark.parametrize("sls", ["kubernetes_controller", "kubernetes_controller.scheduler"])
def test_a_minion_without_the_modules_gets_them_by_the_first_run(cluster, unsynced, sls):
    before = cluster.processes()
    answer = cluster.apply(sls=sls, target=unsynced.name)[unsynced.name]
    assert answer.ok, answer.failures
    assert f"{sls} is applied with them" in {state["__id__"] for state in answer.states}
    assert list(answer.changes) == [
        f"The {kind} of kubernetes_controller are on this node for {sls}" for kind in ("modules", "states")
    ]
    again = cluster.apply(sls=sls, target=unsynced.name)[unsynced.name]
    assert again.ok and not again.changes, again.failures
    assert cluster.processes() == before


def test_a_test_run_on_a_minion_without_the_modules_says_what_to_run(cluster, unsynced):
    answer = cluster.apply("test=True", sls="kubernetes_controller.scheduler", target=unsynced.name)[unsynced.name]
    assert answer.ok and answer.pending and not answer.changes
    assert "Not knowable yet: this node has no modules of this version of the formula" in answer.comments
    assert f"`salt {unsynced.name} saltutil.sync_all`; then test again" in answer.comments
    assert not cluster.salt("sys.list_functions", "k8s_config", target=unsynced.name)[unsynced.name]


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        ({"schduler": {}}, "kubernetes_controller:schduler: no such key (nearest: scheduler)."),
        (
            {"scheduler": {"settings": {"bind-adress": "10.8.0.103"}}},
            "scheduler:settings:bind-adress: kube-scheduler 1.37.2 has no such flag (nearest: bind-address).",
        ),
    ],
)
def test_a_failure_on_a_minion_without_the_modules_is_a_failure(cluster, unsynced, declared, sentence):
    before = cluster.processes()
    cluster.pillar(declared)
    try:
        done = cluster.lab.salt(unsynced.name, "state.apply", "kubernetes_controller.scheduler", "--timeout=60", check=False)
    finally:
        cluster.pillar(None)
    assert done.returncode != 0
    assert sentence in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout + done.stderr
    assert cluster.processes() == before
