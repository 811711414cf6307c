"""k8s_rehearsal.passed with generations and stamps on disk real; only the stage, which needs systemd, is stood in for."""

import json
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

STATE, NAME = "k8s_rehearsal.passed", "generations passed"


class Stage:
    """The stage as the rehearsal finds it: everybody who is ``started`` there is well, but for those in ``sick``."""

    def __init__(self, minion, place):
        self.place, self.started, self.sick, self.up, self.left_out = place, [], {}, False, []
        self.without_memory, self.memory_max_mib = [], None
        for name in ("build", "bound", "out_of_memory", "leave", "restore", "leave_out", "dress", "start", "inside"):
            minion.fake(f"k8s_stage.{name}", getattr(self, name))
        for name in ("apiserver", "controllers"):
            minion.fake(f"k8s_scene.{name}", return_value=None)
        for name, value in {"process": {"pid": 1}, "tell": None, "complaint": "its last words"}.items():
            minion.fake(f"k8s_component.{name}", return_value=value)

    def build(self, addresses, patience_s):
        self.up, self.addresses = True, addresses
        self.place.mkdir(exist_ok=True)
        return str(self.place)

    def bound(self, memory_max_mib):
        self.memory_max_mib = memory_max_mib

    def out_of_memory(self):
        return self.without_memory

    def leave(self):
        self.up = False

    def restore(self, row, snapshot, member, peer_url=None):
        return f"{self.place}/data"

    def leave_out(self, environment, etcdctl, prefix, leases):
        self.left_out = leases

    def dress(self, row, generation, exchanged):
        return {**row, "unit_name": f"rehearsal-{row['name']}", "since": 0.0, "plays": generation}

    def start(self, row, data=None, environment=None):
        self.started.append((row["name"], row["plays"]))

    def inside(self, function, row, *args, **kwargs):
        return {"ok": row["name"] not in self.sick, "said": self.sick.get(row["name"], "fine")}


@pytest.fixture
def stage(node, tmp_path):
    return Stage(node, tmp_path / "stage")


@pytest.fixture
def declare(rows):
    """Return a function: the rows of a node for these layers, rehearsed at once and on empty data."""
    quick = {"rollout": {"rehearsal": {"data": "empty"}}}

    def made(*layers):
        components = rows(quick, *layers)
        for row in components.values():
            row["rehearsal"] |= {"window_s": 0, "timeout_s": 5}
        return components

    return made


@pytest.fixture
def live(node, declare):
    """All components are live as they are declared."""
    components = declare()
    for row in components.values():
        name = node.modules["k8s_generation.prepare"](row)
        for link in ("live", "good"):
            node.modules["k8s_generation.promote"](row["home"], name, link=link)
    return components


ONCE = 'To go on all the same, once: pillar=\'{"kubernetes_controller": {"rollout": '
OFF = ONCE + '{"rehearsal": {"enabled": false}}}}\'.'
CORRECT = (
    "Correct what is declared: without a rehearsal the cluster would meet the same. What only lacked time gets more with "
    "kubernetes_controller:rollout:rehearsal:timeout_s."
)
ASK = "let etcd answer first: `salt 'controller-*' k8s_health.status`"
CHANGED = {"scheduler": {"settings": {"v": 4}}}


def stamps(row):
    path = Path(row["home"]) / "rehearsed.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_what_differs_is_rehearsed_once_with_the_others_as_they_are_live(node, apply, testmode, stage, live, declare):
    components = declare(CHANGED)
    row = components["kube-scheduler"]
    digest = node.modules["k8s_generation.digest"](row)
    ret = apply(testmode, node, STATE, NAME, components=components)
    assert ret.result is (None if testmode else True)
    assert ret.changes == {}
    assert node.modules["k8s_generation.links"](row["home"])["live"] != digest
    assert not stage.up
    if testmode:
        assert ret.comment == "kube-scheduler would be rehearsed."
        assert stage.started == []
    else:
        said = "kube-scheduler passed on empty data, with etcd, kube-apiserver, kube-controller-manager as live, in "
        assert ret.comment.startswith(said)
        assert [name for name, _ in stage.started] == ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]
        assert dict(stage.started)["kube-scheduler"] == digest
        assert list(stamps(row)) == [digest]
        assert stamps(row)[digest]["data"] == "empty"


def test_the_stage_has_all_addresses_of_the_node_as_a_component_may_listen_at_any(node, stage, live, declare):
    node.fake("network.ip_addrs", return_value=["10.8.0.101", "192.0.2.5"])
    node.fake("network.ip_addrs6", return_value=["2001:db8::5", "fe80::1"])
    assert node.state(STATE, NAME, components=declare(CHANGED)).result is True
    assert stage.addresses == ["10.8.0.101", "192.0.2.5", "2001:db8::5"]


@pytest.mark.parametrize(
    ("layer", "leases"),
    [
        (CHANGED, ["kube-system/kube-controller-manager", "kube-system/kube-scheduler"]),
        (
            {"scheduler": {"config": {"leaderElection": {"resourceName": "mine"}}}},
            ["kube-system/kube-controller-manager", "kube-system/mine"],
        ),
        ({"scheduler": {"config": {"leaderElection": {"leaderElect": False}}}}, ["kube-system/kube-controller-manager"]),
        ({"scheduler": {"settings": {"v": 4}, "probe": {"lease": "a/mine"}}}, ["kube-system/kube-controller-manager", "a/mine"]),
    ],
    ids=["as ever", "another lease", "no election", "the operator's"],
)
def test_the_leases_that_the_cast_takes_are_left_out_of_the_copy(node, stage, live, declare, layer, leases):
    components = declare(layer)
    assert node.state(STATE, NAME, components=components).result
    assert stage.left_out == leases


@pytest.fixture
def snapshot(tmp_path):
    """A copy of 3 MiB of data."""
    path = tmp_path / "snapshot.db"
    path.write_bytes(b"0" * 3 * 2**20)
    return str(path)


def test_a_pass_on_a_copy_of_the_data_is_remembered_as_one(node, stage, live, declare, snapshot):
    node.fake("k8s_snapshot.save", return_value=snapshot)
    components = declare(CHANGED, {"rollout": {"rehearsal": {"data": "snapshot"}}})
    ret = node.state(STATE, NAME, components=components)
    assert ret.comment.startswith("kube-scheduler passed on a copy of the data")
    (stamp,) = stamps(components["kube-scheduler"]).values()
    assert stamp["data"] == "snapshot"


def test_a_member_gives_the_copy_where_the_api_servers_identity_does_not(node, stage, live, declare, snapshot):
    def save(row, path, max_mib, directory=None):
        if row["name"] != "etcd":
            raise CommandExecutionError("certificate has expired")
        return snapshot

    node.fake("k8s_snapshot.save", save)
    ret = node.state(STATE, NAME, components=declare(CHANGED, {"rollout": {"rehearsal": {"data": "snapshot"}}}))
    assert ret.comment.startswith("kube-scheduler passed on a copy of the data")


def test_data_that_are_too_large_are_told_with_the_way_without_a_copy(node, stage, live, declare):
    complaint = "etcd holds 4711 MiB"
    node.fake("k8s_snapshot.save", side_effect=CommandExecutionError(complaint))
    node.fake("k8s_health.serves", return_value=True)
    ret = node.state(STATE, NAME, components=declare(CHANGED, {"rollout": {"rehearsal": {"data": "snapshot"}}}))
    empty = ONCE + '{"rehearsal": {"data": "empty"}}}}\''
    assert (ret.result, ret.comment) == (False, f"The rehearsal failed: {complaint}. {empty}. Nothing was touched.")


def test_an_etcd_that_gives_no_copy_has_to_answer_first(node, stage, live, declare):
    node.fake("k8s_health.serves", return_value=True)
    ret = node.state(STATE, NAME, components=declare(CHANGED, {"rollout": {"rehearsal": {"data": "snapshot"}}}))
    assert ret.result is False
    assert ret.comment.startswith("The rehearsal failed: etcd gives no copy of its data: ")
    assert ASK in ret.comment
    assert ONCE not in ret.comment


@pytest.mark.parametrize(("layer", "mib"), [({}, 2048 + 4 * 3), ({"memory_max_mib": 777}, 777)], ids=["by the data", "declared"])
def test_the_memory_of_all_that_is_rehearsed_is_bounded(node, stage, live, declare, snapshot, layer, mib):
    node.fake("k8s_snapshot.save", return_value=snapshot)
    components = declare(CHANGED, {"rollout": {"rehearsal": {"data": "snapshot", **layer}}})
    assert node.state(STATE, NAME, components=components).result is True
    assert stage.memory_max_mib == mib


def test_a_lack_of_memory_is_no_fault_of_a_generation(node, stage, live, declare):
    stage.sick["kube-scheduler"], stage.without_memory = "no process", ["kubernetes-rehearsal-kube-scheduler.service"]
    ret = node.state(STATE, NAME, components=declare(CHANGED))
    assert ret.result is False
    said = "The rehearsal failed: kubernetes-rehearsal-kube-scheduler.service was ended as there was no memory left: "
    assert ret.comment.startswith(said)
    assert "2048 MiB (kubernetes_controller:rollout:rehearsal:memory_max_mib;" in ret.comment
    assert ret.comment.endswith(f"the generation itself was not judged. Nothing was touched. {OFF}")


@pytest.mark.parametrize("error", ["etcd gives no copy", "no place"])
def test_an_upgrade_without_a_snapshot_is_refused_with_the_way(node, live, tmp_path, error):
    row = {**live["kube-apiserver"], "snapshots": {"directory": str(tmp_path / "kept"), "keep": 3}}
    row["etcdctl"] = str(tmp_path / "etcdctl")
    if error == "no place":
        (tmp_path / "kept").touch()
    with pytest.raises(CommandExecutionError) as told:
        node.modules["k8s_snapshot.keep"](row, "kube-apiserver-1.37.3")
    assert error in str(told.value) or "rollout:snapshots:directory)" in str(told.value)
    if error == "no place":
        assert str(told.value).endswith(ONCE + '{"snapshots": {"keep": 0}}}}\'.')
    else:
        assert ASK in str(told.value)
        assert ONCE not in str(told.value)


@pytest.mark.parametrize("what", ["nothing differs", "nothing is live", "switched off"])
def test_nothing_is_rehearsed_where_there_is_nothing_to_protect(node, apply, testmode, stage, declare, request, what):
    if what != "nothing is live":
        request.getfixturevalue("live")
    off = {"rollout": {"rehearsal": {"enabled": False}}}
    components = declare(*([] if what == "nothing differs" else [CHANGED]), *([off] if what == "switched off" else []))
    ret = apply(testmode, node, STATE, NAME, components=components)
    assert (ret.result, ret.changes, ret.comment) == (True, {}, "Nothing is to be rehearsed.")
    assert stage.started == []


def test_who_does_not_pass_is_named_and_not_stamped(node, stage, live, declare):
    stage.sick["kube-scheduler"] = "no process"
    components = declare(CHANGED)
    for _ in range(2):
        ret = node.state(STATE, NAME, components=components)
        assert (ret.result, ret.changes) == (False, {})
        assert ret.comment == f"The rehearsal failed: kube-scheduler: no process. Nothing was touched. {CORRECT}"
        assert not stage.up
    assert stamps(components["kube-scheduler"]) == {}
    del stage.sick["kube-scheduler"]
    assert node.state(STATE, NAME, components=components).result is True


def test_a_stage_that_cannot_be_built_is_a_sentence(node, stage, live, declare):
    node.fake("k8s_stage.build", side_effect=CommandExecutionError("ip: no such command"))
    ret = node.state(STATE, NAME, components=declare(CHANGED))
    assert (ret.result, ret.changes) == (False, {})
    assert ret.comment == f"The rehearsal failed: ip: no such command. Nothing was touched. {OFF}"


def test_what_is_missing_fails_for_real_and_is_not_knowable_in_test_mode(node, apply, testmode, stage, live, declare):
    del node.opts["pillar"]["kubernetes_controller_pki"]["scheduler.key"]
    ret = apply(testmode, node, STATE, NAME, again=False, components=declare(CHANGED))
    assert (ret.result, ret.changes) == (None if testmode else False, {})
    assert "scheduler.key" in ret.comment
    assert ret.comment.startswith("Not knowable yet: " if testmode else "The rehearsal failed: ")
    assert stage.started == []
