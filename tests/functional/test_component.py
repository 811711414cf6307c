"""k8s_component.running with everything on disk real; only systemd, and the gate that asks the process, are stood in for."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

STATE = "k8s_component.running"


class Systemd:
    """One unit, as systemd would have it. A process is good when it started from what is live."""

    def __init__(self, minion, row):
        self.row, self.unit, self.pid, self.started, self.enabled, self.stranger = row, None, 0, None, False, None
        self.sick, self.refuses, self.log, self.steps, self.exposed = None, None, [], [], False
        self.other_binary = self.other_account = False
        asked = ("process", "unit_differs", "unit_exposed", "replaced", "foreign", "of_another_account")
        for name in (*asked, "restart", "install_unit"):
            minion.fake(f"k8s_component.{name}", getattr(self, name))
        self.wait = minion.fake("k8s_health.wait", self.gate)
        minion.fake("k8s_health.serves", return_value=False)
        self.tell = minion.fake("k8s_component.tell", lambda name, step, said, **facts: self.steps.append(step))
        self.rehearsal = minion.fake("k8s_rehearsal.alone", return_value={})
        self.published = minion.fake("k8s_preflight.publish", return_value=True)
        self.snapshot = minion.fake("k8s_snapshot.keep", return_value="/a/snapshot.db")

    @property
    def live_unit(self):
        return (Path(self.row["home"]) / "live/unit").read_text()

    def process(self, name):
        state = "active" if self.pid else "inactive"
        return {
            "state": state, "substate": "", "pid": self.pid, "started": self.started, "restarts": 0,
            "binary": self.row["binary"] if self.pid else None, "unit": "", "user": "", "enabled": self.enabled,
        }  # fmt: skip

    def restart(self, name):
        self.log.append("restart")
        self.pid, self.started = self.pid + 1, time.monotonic()
        self.other_binary = self.other_account = False
        return True

    def install_unit(self, row):
        if self.refuses and self.unit_differs(row):
            raise CommandExecutionError(self.refuses)
        self.unit, self.enabled, self.exposed = self.live_unit, True, False
        return True

    def unit_differs(self, row):
        return self.unit != self.live_unit

    def unit_exposed(self, row):
        return self.exposed

    def replaced(self, row, pid):
        return bool(pid) and self.other_binary

    def of_another_account(self, process):
        return bool(process["pid"]) and self.other_account

    def foreign(self, row):
        return None if row["adopt"] or (Path(row["home"]) / "live").is_symlink() else self.stranger

    def gate(self, row, since=None, timeout_s=None, consecutive=None, thorough=None):
        if self.sick or not self.pid:
            return {"ok": False, "said": self.sick or "no process", "seconds": 90.0, "away_s": 9.0}
        if since and self.started < since:
            return {"ok": False, "said": "the former process still runs", "seconds": 90.0, "away_s": 0.0}
        return {"ok": True, "said": "fine", "seconds": 0.1, "away_s": 0.0}


class Component:
    def __init__(self, minion, rows, apply, key):
        self.minion, self.rows, self.apply, self.key = minion, rows, apply, key
        self.name = {"apiserver": "kube-apiserver", "scheduler": "kube-scheduler"}[key]
        self.row = rows()[self.name]
        self.home = Path(self.row["home"])
        self.systemd = Systemd(minion, self.row)

    def declare(self, *layers):
        """The row for other words below this component's key of the pillar."""
        return self.rows(*({self.key: layer} for layer in layers))[self.name]

    def run(self, row=None):
        """Apply for real, whatever the mode of the test."""
        return self.minion.state(STATE, self.name, component=row or self.row)

    def try_(self, testmode, row=None, again=True):
        """Apply in the mode of the test."""
        return self.apply(testmode, self.minion, STATE, self.name, component=row or self.row, again=again)

    def links(self):
        return self.minion.modules["k8s_generation.links"](str(self.home))

    def digest(self, row=None):
        return self.minion.modules["k8s_generation.digest"](row or self.row)

    def promote(self, row=None, link="live"):
        """Do what a run does that is killed after its promotion."""
        name = self.minion.modules["k8s_generation.prepare"](row or self.row)
        self.minion.modules["k8s_generation.promote"](str(self.home), name, link=link)
        return name


@pytest.fixture
def scheduler(node, rows, apply):
    """With an API server beside it, without which a scheduler is not rehearsed."""
    api = rows()["kube-apiserver"]
    node.modules["k8s_generation.promote"](api["home"], node.modules["k8s_generation.prepare"](api))
    return Component(node, rows, apply, "scheduler")


@pytest.fixture
def apiserver(node, rows, apply):
    return Component(node, rows, apply, "apiserver")


def expected(testmode):
    return None if testmode else True


def test_a_first_start_installs_starts_and_is_good(scheduler, testmode):
    ret = scheduler.try_(testmode)
    name = scheduler.digest()
    assert ret.changes == {
        "generation": {"old": None, "new": name},
        "release": {"old": None, "new": "1.37.2"},
        "process": "start",
    }
    assert ret.result is expected(testmode)
    assert scheduler.links() == ({"live": None, "good": None} if testmode else {"live": name, "good": name})
    assert scheduler.systemd.log == ([] if testmode else ["restart"])
    assert scheduler.systemd.enabled is not testmode


def test_a_changed_flag_is_a_restart_and_exactly_that_flag(scheduler, testmode):
    scheduler.run()
    old, changed = scheduler.digest(), scheduler.declare({"settings": {"v": 4}})
    ret = scheduler.try_(testmode, changed)
    assert ret.changes == {
        "generation": {"old": old, "new": scheduler.digest(changed)},
        "flags": {"v": {"old": None, "new": "4"}},
        "process": "restart (flag v)",
    }
    assert ret.result is expected(testmode)
    assert scheduler.systemd.log == ["restart"] * (1 if testmode else 2)
    live = old if testmode else scheduler.digest(changed)
    assert scheduler.links() == {"live": live, "good": live}


def test_what_can_be_reloaded_is_reloaded_by_touching_the_former_generation(apiserver, authorities, testmode):
    apiserver.run()
    former = apiserver.home / "generations" / apiserver.digest()
    for path in former.iterdir():
        os.utime(path, (1, 1))
    pid = apiserver.systemd.pid
    new = authorities["kubernetes"].issue("kube-apiserver", ["serverAuth"], ["10.8.0.101"])
    apiserver.minion.opts["pillar"]["kubernetes_controller_pki"] |= {"apiserver.crt": new.crt, "apiserver.key": new.key}
    ret = apiserver.try_(testmode)
    assert ret.changes["process"] == "reload (file tls.crt, file tls.key)"
    assert set(ret.changes["files"]) == {"tls.crt", "tls.key"}
    assert ret.changes["files"]["tls.key"] == "changed (secret, not shown)"
    assert ret.result is expected(testmode)
    assert apiserver.systemd.pid == pid
    assert {path.stat().st_mtime > 1 for path in former.iterdir()} == {not testmode}


def test_a_second_reload_reaches_a_process_that_watches_the_generation_it_started_from(apiserver, authorities):
    apiserver.run()
    first = apiserver.home / "generations" / apiserver.digest()
    for _ in range(2):
        for path in first.iterdir():
            os.utime(path, (1, 1))
        new = authorities["kubernetes"].issue("kube-apiserver", ["serverAuth"], ["10.8.0.101"])
        apiserver.minion.opts["pillar"]["kubernetes_controller_pki"] |= {"apiserver.crt": new.crt, "apiserver.key": new.key}
        assert apiserver.run().changes["process"].startswith("reload")
        assert all(path.stat().st_mtime > 1 for path in first.iterdir())


def test_what_was_started_from_another_binary_is_not_reloaded_but_restarted(apiserver, authorities, testmode):
    apiserver.run()
    apiserver.systemd.other_binary = True
    new = authorities["kubernetes"].issue("kube-apiserver", ["serverAuth"], ["10.8.0.101"])
    apiserver.minion.opts["pillar"]["kubernetes_controller_pki"] |= {"apiserver.crt": new.crt, "apiserver.key": new.key}
    ret = apiserver.try_(testmode)
    assert ret.changes["process"] == "restart (file tls.crt, file tls.key, and binary was replaced)"
    assert ret.result is expected(testmode)
    assert apiserver.systemd.log == ["restart"] * (1 if testmode else 2)


def test_what_cannot_be_reloaded_is_a_restart(apiserver, material, testmode):
    apiserver.run()
    apiserver.minion.opts["pillar"]["kubernetes_controller_pki"]["service-account.key"] = material["admin.key"]
    assert apiserver.try_(testmode).changes["process"] == "restart (file service-account.key)"


def test_nothing_declared_anew_is_no_change_and_a_look_whether_it_serves(scheduler, testmode):
    scheduler.run()
    ret = scheduler.try_(testmode)
    assert (ret.result, ret.changes) == (True, {})
    assert ret.comment == "kube-scheduler runs as declared: fine"


def test_as_declared_but_not_serving_is_a_failure(scheduler, testmode):
    scheduler.run()
    scheduler.systemd.sick = "/healthz said 500 [-]informer-sync"
    scheduler.minion.fake("k8s_health.api", return_value={"status": 200, "body": "ok"})
    ret = scheduler.try_(testmode)
    assert (ret.result, ret.changes) == (False, {})
    assert ret.comment == "kube-scheduler is as declared but does not serve: /healthz said 500 [-]informer-sync"


def test_a_test_run_does_not_fail_for_what_waits_for_its_api_server(scheduler, testmode):
    scheduler.run()
    scheduler.systemd.sick = "/healthz said 500 [-]informer-sync"
    scheduler.minion.fake("k8s_health.api", side_effect=ConnectionRefusedError("refused"))
    ret = scheduler.try_(testmode)
    assert (ret.result, ret.changes) == (None if testmode else False, {})
    assert ret.comment.startswith("kube-scheduler is as declared but does not serve: /healthz said 500 [-]informer-sync")


@pytest.mark.parametrize("sick", [None, "no leader"])
def test_a_member_may_found_a_cluster_for_as_long_as_its_change_takes(node, rows, sick, tmp_path, monkeypatch):
    """A failed gate left the permission behind: until the next boot, whatever emptied the directory founded a cluster."""
    row = rows({"controllers": {"controller-2": None, "controller-3": None}})["etcd"]
    for name, answer in (
        *(("k8s_etcd_data.unclaimed", None), ("k8s_identity.differs", None), ("k8s_identity.remember", {})),
        *(("k8s_rehearsal.needed", False), ("k8s_owners.belong", {})),
        ("k8s_membership.first_start", {"refusal": None, "state": "new", "initial_cluster": "ALL"}),
    ):
        node.fake(name, return_value=answer)
    module = node.modules.pack["__salt__"]["k8s_etcd_members.allow_first_start"].func.__globals__
    file = tmp_path / "first-start.env"
    monkeypatch.setitem(module, "FIRST_START", str(file))
    monkeypatch.setitem(module, "survey", lambda row, directory=None: {"members": None, "asked": {}, "own": []})
    systemd, seen = Systemd(node, row), []
    node.fake("k8s_component.restart", side_effect=lambda name: seen.append(file.read_text()) or systemd.restart(name))
    systemd.sick = sick
    ret = node.state(STATE, "etcd", component=row)
    assert ret.result is (sick is None), ret.comment
    assert "ETCD_INITIAL_CLUSTER_STATE=new\n" in seen[0]
    assert not file.exists()


@pytest.mark.parametrize("stopped", [[], ["https://10.8.0.103:2379"]], ids=["others serve", "another one is stopped"])
def test_a_member_of_etcd_waits_only_for_one_that_does_not_run(node, rows, stopped, monkeypatch):
    module = node.compiler.states[STATE].func.__globals__
    asked = {"k8s_etcdctl.neighbours": node.modules["k8s_etcdctl.neighbours"], "k8s_etcdctl.closed": stopped.__contains__}
    monkeypatch.setitem(module, "__salt__", asked)
    assert module["_waits"](rows()["etcd"]) is bool(stopped)


def test_a_component_that_stopped_is_started(scheduler, testmode):
    scheduler.run()
    scheduler.systemd.pid = 0
    ret = scheduler.try_(testmode)
    assert ret.changes == {"process": "start (unit was inactive)"}
    assert ret.result is expected(testmode)
    assert scheduler.systemd.log == ["restart"] * (1 if testmode else 2)


@pytest.mark.parametrize(
    ("edit", "changes", "restarts"),
    [
        ({"unit": "edited"}, {"unit": "not a copy of live/unit", "process": "restart (unit)"}, 1),
        ({"enabled": False}, {"unit": "not enabled", "process": "none (unit)"}, 0),
        ({"exposed": True}, {"unit": "readable by others", "process": "none (unit)"}, 0),
        (
            {"other_binary": True},
            {"binary": "not what the process was started from", "process": "restart (binary was replaced)"},
            1,
        ),
    ],
)
def test_an_edited_disabled_or_opened_unit_and_a_strange_binary_are_repaired(scheduler, testmode, edit, changes, restarts):
    scheduler.run()
    for name, value in edit.items():
        setattr(scheduler.systemd, name, value)
    ret = scheduler.try_(testmode)
    assert (ret.result, ret.changes) == (expected(testmode), changes)
    assert scheduler.systemd.log == ["restart"] * (1 if testmode else 1 + restarts)


def test_a_generation_that_somebody_edited_is_exchanged_and_left_for_him_to_see(scheduler, testmode, helpers):
    scheduler.run()
    name = scheduler.digest()
    (scheduler.home / "live/scheduler.yaml").write_text("edited: true\n")
    before = helpers.tree(scheduler.home / "generations" / name)
    ret = scheduler.try_(testmode)
    assert ret.result is expected(testmode)
    assert "-edited: true" in ret.changes["files"]["scheduler.yaml"]
    assert ret.changes["process"] == "restart (file scheduler.yaml)"
    assert helpers.tree(scheduler.home / "generations" / name) == before
    assert scheduler.links()["live"] == (name if testmode else f"{name}.2")


# -- killed runs ------------------------------------------------------------------------------------------------------


def test_a_run_killed_after_its_promotion_is_finished_by_the_next(scheduler, testmode):
    scheduler.run()
    good, changed = scheduler.digest(), scheduler.declare({"settings": {"v": 4}})
    time.sleep(0.02)  # the times of links are coarser than the clock
    live = scheduler.promote(changed)
    ret = scheduler.try_(testmode, changed)
    assert ret.changes == {"generation": {"old": good, "new": live}, "process": "restart (an earlier run was cut off)"}
    assert ret.result is expected(testmode)
    assert scheduler.systemd.log == ["restart"] * (1 if testmode else 2)
    assert scheduler.links()["good"] == (good if testmode else live)


def test_a_run_killed_during_its_gate_is_finished_without_another_restart(scheduler, testmode):
    scheduler.run()
    changed = scheduler.declare({"settings": {"v": 4}})
    live = scheduler.promote(changed)
    scheduler.systemd.install_unit(changed)
    time.sleep(0.02)
    scheduler.systemd.restart("kube-scheduler")
    before = list(scheduler.systemd.log)
    ret = scheduler.try_(testmode, changed)
    assert ret.result is expected(testmode)
    assert scheduler.systemd.log == before
    if not testmode:
        assert scheduler.links() == {"live": live, "good": live}


def test_a_node_that_lost_its_power_before_its_unit_was_installed_gets_a_restart_with_the_new_one(scheduler, testmode):
    """It booted with the old unit and the live generation, so its process is younger than the promotion."""
    scheduler.run()
    changed = scheduler.declare({"unit": {"Service": {"Nice": 5}}})
    live = scheduler.promote(changed)
    time.sleep(0.02)
    scheduler.systemd.restart("kube-scheduler")
    before = list(scheduler.systemd.log)
    ret = scheduler.try_(testmode, changed)
    assert ret.result is expected(testmode)
    assert scheduler.systemd.log == before + ([] if testmode else ["restart"])
    if not testmode:
        assert scheduler.links() == {"live": live, "good": live}
        assert scheduler.systemd.unit == scheduler.systemd.live_unit


def test_a_first_run_killed_after_its_promotion_is_finished(scheduler, testmode):
    live = scheduler.promote()
    ret = scheduler.try_(testmode)
    assert ret.changes["generation"] == {"old": None, "new": live}
    assert ret.result is expected(testmode)
    assert scheduler.links()["good"] == (None if testmode else live)


def test_a_declaration_changed_after_a_killed_run_is_a_restart(apiserver, authorities, testmode):
    apiserver.run()
    apiserver.promote(apiserver.declare({"settings": {"v": 4}}))
    apiserver.minion.opts["pillar"]["kubernetes_controller_pki"]["front-proxy-ca.crt"] += authorities["etcd"].crt
    ret = apiserver.try_(testmode, apiserver.declare({"settings": {"v": 4}}))
    assert ret.changes["process"] == "restart (file front-proxy-ca.crt, and an earlier run was cut off)"
    assert ret.result is expected(testmode)


@pytest.mark.parametrize("when", ["first start", "later"])
def test_a_run_killed_while_it_prepared_leaves_nothing_that_hurts(scheduler, testmode, when):
    if when == "later":
        scheduler.run()
    leftover = scheduler.home / "generations/.prepare-abc"
    leftover.mkdir(parents=True)
    (leftover / "start").write_text("half")
    ret = scheduler.try_(testmode, scheduler.declare({"settings": {"v": 4}}))
    assert ret.result is expected(testmode)
    assert leftover.exists() is testmode


@pytest.mark.parametrize("scratch", [".live.new", ".good.new"])
def test_a_run_killed_between_link_and_rename_leaves_nothing_that_hurts(scheduler, testmode, scratch):
    scheduler.run()
    (scheduler.home / scratch).symlink_to("generations/nowhere")
    ret = scheduler.try_(testmode, scheduler.declare({"settings": {"v": 4}}))
    assert ret.result is expected(testmode)


def test_a_prepared_generation_is_promoted_as_it_is(scheduler, testmode):
    scheduler.minion.modules["k8s_generation.prepare"](scheduler.row)
    ret = scheduler.try_(testmode)
    assert (ret.result, ret.changes["process"]) == (expected(testmode), "start")
    if not testmode:
        assert os.listdir(scheduler.home / "generations") == [scheduler.digest()]


def test_a_generation_that_vanished_while_live_is_made_again(scheduler, testmode):
    scheduler.run()
    shutil.rmtree(scheduler.home / "generations" / scheduler.digest())
    ret = scheduler.try_(testmode)
    assert ret.result is expected(testmode)
    if not testmode:
        assert scheduler.links() == {"live": scheduler.digest(), "good": scheduler.digest()}


# -- the order of things ----------------------------------------------------------------------------------------------


def test_the_steps_are_told_in_their_order(apiserver):
    apiserver.run()
    assert apiserver.systemd.steps == ["prepare", "promote", "take_up", "gate", "remember", "done"]
    apiserver.systemd.steps.clear()
    apiserver.minion.fake("k8s_health.serves", return_value=True)
    apiserver.minion.fake("k8s_turn.take", return_value=7)
    apiserver.minion.fake("k8s_turn.held", return_value=True)
    apiserver.minion.fake("k8s_turn.neighbours_ready", return_value=True)
    release = apiserver.minion.fake("k8s_turn.release", return_value=True)
    changed = apiserver.rows({"release": "1.37.3", "rollout": {"turn": {"settle_s": 0}}})["kube-apiserver"]
    assert apiserver.run(changed).result is True
    assert apiserver.systemd.steps == [
        "prepare", "rehearse", "snapshot", "turn", "promote", "take_up", "gate", "remember", "settle", "done",
    ]  # fmt: skip
    apiserver.systemd.snapshot.assert_called_once_with(changed, "kube-apiserver-1.37.3")
    release.assert_called_once_with(7)


@pytest.mark.parametrize("why", ["passed before", "switched off"])
def test_a_rehearsal_is_told_only_where_something_is_rehearsed(scheduler, why):
    scheduler.run()
    rehearsal = {"rollout": {"rehearsal": {"enabled": why != "switched off"}}}
    changed = scheduler.rows(rehearsal, {"scheduler": {"settings": {"v": 4}}})["kube-scheduler"]
    if why == "passed before":
        new, good = scheduler.digest(changed), scheduler.digest()
        passed = {new: {"cast": {"kube-scheduler": new}, "live": {"kube-scheduler": good}}}
        (scheduler.home / "rehearsed.json").write_text(json.dumps(passed))
    scheduler.systemd.steps.clear()
    scheduler.systemd.rehearsal.reset_mock()
    assert scheduler.run(changed).result is True
    assert "rehearse" not in scheduler.systemd.steps
    scheduler.systemd.rehearsal.assert_not_called()


def test_what_does_not_pass_its_rehearsal_is_not_promoted(scheduler):
    scheduler.run()
    good = scheduler.digest()
    fault = CommandExecutionError("no process (unit is failed): Error: unknown flag: --v")
    fault.component = "kube-scheduler"
    scheduler.systemd.rehearsal.side_effect = fault
    ret = scheduler.run(scheduler.declare({"settings": {"v": 4}}))
    assert (ret.result, ret.changes) == (False, {})
    assert "the rehearsal failed: kube-scheduler: no process (unit is failed): Error: unknown flag: --v." in ret.comment
    assert "pillar=" not in ret.comment, "the binary itself refused it: without a rehearsal it would, too"
    assert scheduler.links() == {"live": good, "good": good}
    assert scheduler.systemd.log == ["restart"]


def test_an_answer_that_hangs_is_not_all_the_patience_with_what_runs(scheduler):
    """Else an API server that is only busy is restarted without the turn and whatever its neighbours are."""
    scheduler.run()
    hangs_s = scheduler.minion.modules["k8s_health.ask"].func.__globals__["TIMEOUT_S"]
    asked = scheduler.minion.fake("k8s_health.serves", return_value=False)
    scheduler.run(scheduler.declare({"settings": {"v": 4}}))
    assert asked.call_args.kwargs["patience_s"] > 2 * hangs_s


def test_a_member_that_goes_back_hands_the_lead_over_first(node, rows):
    """As one that goes forward: what a leader that stops was to pass on is lost."""
    done = []
    for name in ("k8s_generation.promote", "k8s_component.install_unit", "k8s_owners.belong", "k8s_etcdctl.hand_over"):
        node.fake(name, lambda *args, _name=name, **kw: done.append(_name))
    node.fake("k8s_component.restart", lambda name: done.append("restart"))
    put_back = node.compiler.states[STATE].func.__globals__["_put_back"]
    node.compiler.states.run(put_back, rows()["etcd"], "0123", time.monotonic())
    assert done[-2:] == ["k8s_etcdctl.hand_over", "restart"]
    done.clear()
    node.compiler.states.run(put_back, rows()["kube-apiserver"], "0123", time.monotonic())
    assert "k8s_etcdctl.hand_over" not in done


def test_a_turn_that_was_lost_is_not_used(scheduler):
    scheduler.run()
    good = scheduler.digest()
    scheduler.minion.fake("k8s_health.serves", return_value=True)
    scheduler.minion.fake("k8s_turn.take", return_value=7)
    scheduler.minion.fake("k8s_turn.held", return_value=False)
    scheduler.minion.fake("k8s_turn.neighbours_ready", return_value=True)
    release = scheduler.minion.fake("k8s_turn.release", return_value=True)
    ret = scheduler.run(scheduler.declare({"settings": {"v": 4}}))
    assert (ret.result, ret.changes) == (False, {})
    assert "the turn was lost while waiting" in ret.comment
    assert scheduler.links() == {"live": good, "good": good}
    release.assert_called_once_with(7)


def test_manual_mode_prepares_and_rehearses_and_leaves_the_rest_to_the_operator(scheduler, testmode):
    manual = {"rollout": {"mode": "manual"}}
    assert scheduler.run(scheduler.rows(manual)["kube-scheduler"]).changes["process"] == "start"  # nothing runs yet
    good = scheduler.digest()
    changed = scheduler.rows(manual, {"scheduler": {"settings": {"v": 4}}})["kube-scheduler"]
    ret = scheduler.try_(testmode, changed)
    assert (ret.result, ret.changes) == (True, {})
    assert "as rollout:mode is manual (restart (flag v))" in ret.comment
    assert '{"rollout": {"mode": "automatic"}}' in ret.comment
    assert scheduler.links() == {"live": good, "good": good}
    assert (scheduler.home / "generations" / scheduler.digest(changed)).exists() is not testmode


def test_manual_mode_starts_what_is_good_where_nothing_runs(scheduler, testmode):
    manual = {"rollout": {"mode": "manual"}}
    scheduler.run(scheduler.rows(manual)["kube-scheduler"])
    good = scheduler.digest()
    changed = scheduler.rows(manual, {"scheduler": {"settings": {"v": 4}}})["kube-scheduler"]
    scheduler.systemd.pid = 0
    ret = scheduler.try_(testmode, changed, again=False)
    assert (ret.result, ret.changes) == (True, {} if testmode else {"process": "start"})
    assert (f"Nothing ran: generation {good} was started and serves: fine" in ret.comment) is not testmode
    assert scheduler.links() == {"live": good, "good": good}
    assert bool(scheduler.systemd.pid) is not testmode


@pytest.mark.parametrize("pillar_says", ["another", "live", "good"])
def test_manual_mode_ends_a_run_that_was_cut_off_but_promotes_nothing_that_was_not_released(scheduler, testmode, pillar_says):
    manual = {"rollout": {"mode": "manual"}}
    wanted = {name: scheduler.rows(manual, {"scheduler": {"settings": {"v": v}}})["kube-scheduler"]
              for name, v in {"good": 3, "live": 4, "another": 5}.items()}  # fmt: skip
    scheduler.run(wanted["good"])
    scheduler.promote(wanted["live"])
    before = scheduler.links()
    ret = scheduler.try_(testmode, wanted[pillar_says])
    if pillar_says == "another":
        assert (ret.result, ret.changes) == (True, {})
        assert "as rollout:mode is manual (restart (flag v, and an earlier run was cut off))" in ret.comment
        assert scheduler.links() == before
        assert scheduler.systemd.log == ["restart"]
        return
    assert ret.result is expected(testmode)
    name = scheduler.digest(wanted[pillar_says])
    assert scheduler.links() == (before if testmode else {"live": name, "good": name})


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_gate_fails_with_the_reason_and_leaves_good(scheduler):
    scheduler.run()
    good, changed = scheduler.digest(), scheduler.declare({"settings": {"v": 4}})
    scheduler.systemd.sick = "no process (unit is failed): unknown flag: --v"
    ret = scheduler.run(changed)
    assert ret.result is False
    assert f"{scheduler.digest(changed)} (restart (flag v)) did not pass its gate in 90.0 s: no process" in ret.comment
    assert f"Generation {good} is back, but does not serve either" in ret.comment
    assert ret.changes == {}
    assert scheduler.links() == {"live": good, "good": good}
    scheduler.systemd.sick = None
    assert scheduler.run(changed).result is True
    assert scheduler.links()["good"] == scheduler.digest(changed)


@pytest.mark.parametrize("step", ["promote", "remember_failure"])
def test_what_fails_while_going_back_does_not_hide_why(scheduler, step):
    """As with no space left. What was tried, why it failed and what runs is said all the same, and a later run mends it."""
    scheduler.run()
    good, changed = scheduler.digest(), scheduler.declare({"settings": {"v": 4}})
    real = scheduler.minion.modules[f"k8s_generation.{step}"].func

    def full(home, name, *rest, **named):
        if step == "remember_failure" or name == good:
            raise OSError(28, "No space left on device", home)
        return real(home, name, *rest, **named)

    answer = {"ok": True, "said": "fine", "seconds": 1.0, "away_s": 0.0}
    scheduler.minion.fake("k8s_health.wait", side_effect=[{**answer, "ok": False, "said": "no answer"}, answer])
    fake = scheduler.minion.fake(f"k8s_generation.{step}", side_effect=full)
    ret = scheduler.run(changed)
    assert (ret.result, "did not pass its gate in 1.0 s: no answer." in ret.comment) == (False, True), ret.comment
    assert f"No space left on device: '{scheduler.home}'" in ret.comment
    if step == "promote":
        assert f"Generation {good} could not be put back: " in ret.comment
        assert scheduler.links() == {"live": scheduler.digest(changed), "good": good}
    else:
        assert f"Generation {good} is back and serves: fine. The next run tries the failed one again" in ret.comment
    fake.side_effect = real
    scheduler.minion.fake("k8s_health.wait", side_effect=[{**answer, "ok": False, "said": "no answer"}, answer])
    assert f"Generation {good} is back and serves: fine" in scheduler.run(changed).comment
    assert scheduler.links() == {"live": good, "good": good}


@pytest.mark.parametrize("held", [True, False])
def test_a_failure_is_remembered_unless_the_turn_was_lost_meanwhile(scheduler, held):
    scheduler.run()
    changed = scheduler.declare({"settings": {"v": 4}})
    scheduler.minion.fake("k8s_health.serves", return_value=True)
    scheduler.minion.fake("k8s_turn.take", return_value=7)
    scheduler.minion.fake("k8s_turn.held", side_effect=[True, held])
    scheduler.minion.fake("k8s_turn.neighbours_ready", return_value=True)
    scheduler.minion.fake("k8s_turn.release", return_value=True)
    answer = {"ok": True, "said": "fine", "seconds": 1.0, "away_s": 0.0}
    scheduler.minion.fake("k8s_health.wait", side_effect=[{**answer, "ok": False, "said": "no answer"}, answer])
    ret = scheduler.run(changed)
    assert ret.result is False
    assert "is back and serves: fine" in ret.comment
    assert ("The turn was lost meanwhile" in ret.comment) is not held
    known = scheduler.minion.modules["k8s_generation.failures"](str(scheduler.home))
    assert known == ({scheduler.digest(changed): "no answer"} if held else {})


def test_going_back_keeps_the_turn_until_load_balancers_use_the_api_server_again(apiserver):
    apiserver.run()
    apiserver.minion.fake("k8s_health.serves", return_value=True)
    apiserver.minion.fake("k8s_turn.take", return_value=7)
    apiserver.minion.fake("k8s_turn.held", return_value=True)
    apiserver.minion.fake("k8s_turn.neighbours_ready", return_value=True)
    apiserver.minion.fake("k8s_turn.release", lambda turn: apiserver.systemd.steps.append("release"))
    answer = {"ok": True, "said": "fine", "seconds": 1.0, "away_s": 0.0}
    apiserver.minion.fake("k8s_health.wait", side_effect=[{**answer, "ok": False, "said": "no answer"}, answer])
    changed = apiserver.rows({"apiserver": {"settings": {"v": 4}}, "rollout": {"turn": {"settle_s": 0}}})["kube-apiserver"]
    apiserver.systemd.steps.clear()
    assert "is back and serves: fine" in apiserver.run(changed).comment
    assert apiserver.systemd.steps[-4:] == ["go_back", "settle", "failed", "release"]


def test_what_failed_before_is_not_tried_again_but_the_good_generation_is_started_where_nothing_runs(scheduler, testmode):
    scheduler.run()
    good, changed = scheduler.digest(), scheduler.declare({"settings": {"v": 4}})
    name = scheduler.minion.modules["k8s_generation.prepare"](changed)
    scheduler.minion.modules["k8s_generation.remember_failure"](str(scheduler.home), name, "it crashed")
    ret = scheduler.try_(testmode, changed, again=False)
    assert (ret.result, ret.changes) == (False, {})
    assert ret.comment.endswith("The good generation goes on running.")
    scheduler.systemd.pid = 0
    ret = scheduler.try_(testmode, changed, again=False)
    assert ret.result is False
    assert testmode or ret.comment.endswith(f"Nothing ran: generation {good} was started and serves: fine")
    assert scheduler.links() == {"live": good, "good": good}


def test_a_failed_gate_after_a_reload_is_a_reload_of_the_good_generation(apiserver, authorities):
    apiserver.run()
    good, pid = apiserver.links()["good"], apiserver.systemd.pid
    new = authorities["kubernetes"].issue("kube-apiserver", ["serverAuth"], ["10.8.0.101"])
    apiserver.minion.opts["pillar"]["kubernetes_controller_pki"] |= {"apiserver.crt": new.crt, "apiserver.key": new.key}
    apiserver.systemd.sick = "it serves another certificate than the live one"
    ret = apiserver.run()
    assert ret.result is False
    assert f"Generation {good} is back" in ret.comment
    assert apiserver.links() == {"live": good, "good": good}
    assert apiserver.systemd.pid == pid


def test_a_gate_that_breaks_is_no_pass_and_no_reason_to_stay(apiserver):
    apiserver.run()
    good, changed = apiserver.links()["good"], apiserver.rows({"apiserver": {"settings": {"v": 4}}})["kube-apiserver"]
    answer = {"ok": True, "said": "fine", "seconds": 1.0, "away_s": 0.0}
    apiserver.minion.fake("k8s_health.wait", side_effect=[TypeError("no number"), answer])
    ret = apiserver.run(changed)
    assert ret.result is False
    assert "no number" in ret.comment
    assert f"Generation {good} is back" in ret.comment
    assert apiserver.links() == {"live": good, "good": good}


def test_a_foreign_process_is_an_error_and_not_touched_until_it_is_adopted(scheduler, testmode, helpers):
    scheduler.systemd.stranger = "kube-scheduler: port 10259 is held by process 7, but not from this formula."
    ret = scheduler.try_(testmode, again=False)
    assert (ret.result, ret.changes) == (False, {})
    assert ret.comment == scheduler.systemd.stranger
    assert not scheduler.home.exists()
    adopted = scheduler.rows({"rollout": {"adopt": True}})["kube-scheduler"]
    assert scheduler.try_(testmode, adopted).result is expected(testmode)


@pytest.mark.parametrize("serves", [True, False])
def test_what_serves_is_adopted_under_the_turn_and_what_does_not_without(scheduler, serves):
    scheduler.systemd.restart("kube-scheduler")  # whatever it is, it was not the formula
    adopted = scheduler.rows({"rollout": {"adopt": True}})["kube-scheduler"]
    staged = f"{scheduler.home}/generations/{scheduler.digest(adopted)}"
    asked = scheduler.minion.fake("k8s_health.foreign_serves", return_value=serves)
    take = scheduler.minion.fake("k8s_turn.take", return_value=7)
    scheduler.minion.fake("k8s_turn.held", return_value=True)
    release = scheduler.minion.fake("k8s_turn.release", return_value=True)
    neighbours = scheduler.minion.fake(
        "k8s_turn.neighbours_ready", side_effect=CommandExecutionError("controller-2 is not ready")
    )
    ret = scheduler.run(adopted)
    asked.assert_called_once_with(adopted, staged)
    if not serves:
        assert (ret.result, ret.changes["process"]) == (True, "restart (adopted)")
        take.assert_not_called()
        return
    assert (ret.result, ret.changes) == (False, {})
    assert "controller-2 is not ready" in ret.comment
    assert scheduler.systemd.log == ["restart"]
    take.assert_called_once_with(adopted, staged)
    neighbours.assert_called_once_with(adopted, staged)
    release.assert_called_once_with(7)
    neighbours.side_effect = None
    assert scheduler.run(adopted).result is True
    assert scheduler.systemd.log == ["restart", "restart"]


@pytest.mark.parametrize("missing", ["material", "binary"])
def test_what_is_not_there_yet_is_an_error_for_real_and_unknowable_in_test_mode(scheduler, testmode, missing):
    if missing == "binary":
        Path(scheduler.row["binary"]).unlink()
        what = f"{scheduler.row['binary']}: No such file or directory. Apply kubernetes_controller.binaries first"
    else:
        del scheduler.minion.opts["pillar"]["kubernetes_controller_pki"]["scheduler.key"]
        what = "pillar kubernetes_controller_pki:scheduler.key is missing, kube-scheduler needs it."
    ret = scheduler.try_(testmode, again=False)
    assert (ret.result, ret.changes) == (None if testmode else False, {})
    assert ret.comment.startswith(("Not knowable yet: " if testmode else "kube-scheduler: ") + what)


def test_what_no_step_before_mends_is_an_error_in_test_mode_too(scheduler, testmode):
    scheduler.row["files"]["extra.yaml"] = {"pillar": "nowhere:at-all"}
    ret = scheduler.try_(testmode, again=False)
    assert (ret.result, ret.changes) == (False, {})
    assert ret.comment == "kube-scheduler: pillar nowhere:at-all: missing, or not a text."


def test_an_error_after_the_promotion_is_a_way_back_and_not_remembered(scheduler):
    """As with no space left in systemd's directory. Else the next restart would run what never passed a gate."""
    scheduler.run()
    good = scheduler.digest()
    scheduler.systemd.refuses = "/etc/systemd/system/kube-scheduler.service: No space left on device"
    changed = scheduler.declare({"unit": {"Service": {"Nice": 5}}})
    ret = scheduler.run(changed)
    assert (ret.result, ret.changes) == (False, {})
    assert f"{scheduler.systemd.refuses}. Generation {good} is back and serves: fine" in ret.comment
    assert "the next run tries it again" in ret.comment
    assert scheduler.links() == {"live": good, "good": good}
    scheduler.systemd.refuses = None
    assert scheduler.run(changed).result is True
    assert scheduler.links()["good"] == scheduler.digest(changed)


def test_a_place_that_cannot_be_written_is_a_sentence(scheduler):
    scheduler.home.parent.mkdir(parents=True, exist_ok=True)
    scheduler.home.write_text("a file")
    ret = scheduler.run()
    assert (ret.result, ret.changes) == (False, {})
    assert str(scheduler.home) in ret.comment


def test_no_secret_is_in_what_a_state_answers(apiserver, material):
    apiserver.run()
    pillar = apiserver.minion.opts["pillar"]["kubernetes_controller_pki"]
    for name in material:
        if name.endswith(".key"):
            pillar[name] = material["admin.key"]
    ret = apiserver.run()
    for name, text in material.items():
        if not name.endswith((".crt", ".pub")):
            assert not [line for line in text.splitlines() if "-----" not in line and line in str(vars(ret))], name


# -- owners and modes -------------------------------------------------------------------------------------------------

BIN = {"user": "bin", "group": "bin"}


@pytest.fixture
def logging(apiserver):
    """An API server that runs, and its audit log."""
    apiserver.run()
    log = Path(next(iter(apiserver.row["directories"]))) / "audit.log"
    log.write_text("{}")
    log.chmod(0o600)
    shutil.chown(log, "daemon", "daemon")
    return apiserver, log


def test_owners_and_modes_of_what_is_live_are_mended_without_a_restart(logging, testmode):
    apiserver, log = logging
    shutil.chown(apiserver.home, "root", "games")
    apiserver.home.chmod(0o750)
    shutil.chown(apiserver.home / "live/start", "games")
    log.chmod(0)
    links = apiserver.links()
    ret = apiserver.try_(testmode)
    assert ret.changes == {
        "owners": {
            str(apiserver.home / f"generations/{links['live']}/start"): {"old": "games:daemon 0750", "new": "root:daemon 0750"},
            str(apiserver.home): {"old": "root:games 0750", "new": "root:root 0711"},
            str(log): {"old": "daemon:daemon 0000", "new": "daemon:daemon 0600"},
        },
        "process": "none (owners)",
    }
    assert ret.result is expected(testmode)
    assert (apiserver.links(), apiserver.systemd.log) == (links, ["restart"])
    assert (log.stat().st_mode & 0o777) == (0 if testmode else 0o600)


@pytest.mark.parametrize("why", ["stopped", "another flag", "manual", "failed before", "not rehearsed"])
def test_they_are_mended_whatever_else_there_is_to_do_or_to_refuse(logging, testmode, why):
    apiserver, log = logging
    layers = [{"settings": {"v": 4}}] if why not in ("stopped",) else []
    row = apiserver.declare(*layers)
    if why == "stopped":
        apiserver.systemd.pid = 0
    if why == "manual":
        row = {**row, "mode": "manual"}
    if why == "failed before":
        apiserver.minion.modules["k8s_generation.remember_failure"](str(apiserver.home), apiserver.digest(row), "it crashed")
    if why == "not rehearsed":
        apiserver.systemd.rehearsal.side_effect = CommandExecutionError("it did not start")
    shutil.chown(log, "games", "games")
    ret = apiserver.try_(testmode, row, again=False)
    process = {"stopped": "start (unit was inactive)", "another flag": "restart (flag v)", "not rehearsed": "restart (flag v)"}
    if why == "not rehearsed" and not testmode or why in ("manual", "failed before"):
        process = {}
    assert ret.changes.get("process") == process.get(why)
    assert ret.changes["owners"] == {str(log): {"old": "games:games 0600", "new": "daemon:daemon 0600"}}
    assert ret.result is (False if why == "failed before" else None if testmode else why != "not rehearsed")
    assert log.owner() == ("games" if testmode else "daemon")


def test_what_cannot_be_mended_is_a_failure_and_nothing_is_promoted(logging):
    apiserver, log = logging
    links = apiserver.links()
    apiserver.minion.fake("k8s_owners.belong", side_effect=CommandExecutionError(f"{log}: Operation not permitted"))
    shutil.chown(log, "games", "games")
    ret = apiserver.run(apiserver.declare({"settings": {"v": 4}}))
    assert (ret.result, ret.changes, ret.comment) == (False, {}, f"kube-apiserver: {log}: Operation not permitted")
    assert (apiserver.links(), apiserver.systemd.log) == (links, ["restart"])


def test_another_account_gets_what_the_component_writes_with_the_promotion(logging, testmode):
    apiserver, log = logging
    row = apiserver.declare(BIN)
    ret = apiserver.try_(testmode, row)
    assert ret.changes["process"].startswith("restart (unit, file ")
    assert "owners" not in ret.changes
    assert ret.result is expected(testmode)
    owner = "daemon" if testmode else "bin"
    assert [(path.owner(), path.group()) for path in (log.parent, log)] == [(owner, owner)] * 2
    assert (apiserver.home / "live/start").group() == owner
    if not testmode:
        assert apiserver.run(apiserver.row).result is True
        assert [(path.owner(), path.group()) for path in (log.parent, log)] == [("daemon", "daemon")] * 2


def test_they_go_back_with_a_failed_gate(logging):
    apiserver, log = logging
    good = apiserver.links()["good"]
    given = []

    def gate(row, since=None, **options):
        given.append(log.owner())
        return {"ok": len(given) > 1, "said": "no answer", "seconds": 1.0, "away_s": 0.0}

    apiserver.minion.fake("k8s_health.wait", gate)
    ret = apiserver.run(apiserver.declare(BIN))
    assert f"Generation {good} is back and serves" in ret.comment
    assert given == ["bin", "daemon"]
    assert [(path.owner(), path.group()) for path in (log.parent, log)] == [("daemon", "daemon")] * 2
    assert apiserver.links() == {"live": good, "good": good}


def test_what_cannot_be_given_back_keeps_nobody_from_starting_the_good_generation(logging):
    apiserver, log = logging
    good = apiserver.links()["good"]
    apiserver.minion.fake("k8s_owners.belong", side_effect=CommandExecutionError(f"{log}: Operation not permitted"))
    ret = apiserver.run(apiserver.declare(BIN))
    assert f"Generation {good} could not be put back: {log}: Operation not permitted" in ret.comment
    assert apiserver.links() == {"live": good, "good": good}
    assert apiserver.systemd.log == ["restart", "restart"]


@pytest.mark.parametrize("pillar", ["as it was killed", "as before"])
def test_a_run_killed_between_promotion_and_owners_is_finished_or_taken_back(logging, testmode, pillar):
    apiserver, log = logging
    row = apiserver.declare(BIN)
    apiserver.promote(row)
    ret = apiserver.try_(testmode, row if pillar == "as it was killed" else apiserver.row)
    assert "an earlier run was cut off" in ret.changes["process"]
    assert "owners" not in ret.changes  # the process may still be the former account's
    owner = "bin" if pillar == "as it was killed" and not testmode else "daemon"
    assert [(path.owner(), path.group()) for path in (log.parent, log)] == [(owner, owner)] * 2


def test_a_process_of_the_account_that_was_taken_back_is_restarted(apiserver, testmode):
    """The run that took it back was killed before its restart."""
    apiserver.run()
    apiserver.systemd.other_account = True
    ret = apiserver.try_(testmode)
    assert ret.changes == {"account": "not the one that the process has", "process": "restart (account)"}
    assert ret.result is expected(testmode)
    assert apiserver.systemd.log == ["restart"] * (1 if testmode else 2)
