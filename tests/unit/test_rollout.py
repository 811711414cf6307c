"""The runner's record and its text, from events as a master's bus had them; no master is needed."""

import copy
import importlib.util
import json
import os
import re
import stat
from pathlib import Path

import pytest

JID = "20261124205419274372"
BEGAN = 1795553659.0  # 2026-11-24T20:54:19Z
NODES = ["controller-1", "controller-2", "controller-3"]
PREFLIGHT = "What is declared for every controller fits together"
FIRST, SECOND = "controller_manager, scheduler of controller-1", "controller_manager, scheduler of controller-2"
OLD, NEW = ({"generation": digest, "release": "1.37.2"} for digest in ("8ec40bbe06dfb56a", "abc77f5a918ab38a.2"))


@pytest.fixture
def runner(tmp_path):
    """The runner's module, as Salt's loader fills it in."""
    path = Path(__file__).parents[2] / "_runners/k8s_rollout.py"
    spec = importlib.util.spec_from_file_location("k8s_rollout", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    directory = str(tmp_path / "records")
    pillar = {"kubernetes_controller": {"rollout": {"record_dir": directory}}}
    module.__opts__, module.__context__ = {"id": "salt_master"}, {}
    module.__salt__ = {"pillar.show_pillar": lambda minion: pillar}
    return module


@pytest.fixture
def record(runner):
    return runner._Record(JID, now=BEGAN)


def starts(name, nodes, kind="state"):
    return f"salt/run/{JID}/args", {"type": kind, "tgt": nodes, "name": name, "args": {"arg": []}}


def ended(name, result=True, comment="States ran successfully.", answers=None, number=0, jid=JID):
    state = {"__id__": name, "name": name, "result": result, "comment": comment, "duration": 1900.0, "changes": {}}
    if answers:
        state["changes"] = {"out": "highstate", "ret": answers}
    return f"salt/job/{jid}/prog/salt_master/{number}", {"ret": {**state, "__run_num__": number}, "len": 12}


def progress(node, step, component="kube-scheduler", said="as said", **facts):
    return "kubernetes_controller/progress", {"id": node, "data": {"component": component, "step": step, "said": said, **facts}}


def component_state(result, changes=None, comment="", name="kube-scheduler"):
    state_id = f"{name} runs as declared"
    body = {"__id__": state_id, "name": name, "result": result, "changes": changes or {}, "comment": comment}
    return {f"k8s_component_|-{state_id}_|-{name}_|-running": body}


def fold(record, *events):
    """Give the record these events, a second apart; return all lines."""
    return [line for i, event in enumerate(events, 1) for line in record.note(*copy.deepcopy(event), BEGAN + i)]


ROLLED = [
    starts("saltutil.sync_modules", NODES, "function"),
    starts(PREFLIGHT, NODES),
    ended(PREFLIGHT),
    starts(FIRST, NODES[:1]),
    progress("controller-1", "prepare", said="generation abc77f5a918ab38a.2: restart (flag v)"),
    progress("controller-1", "promote", said="live is abc77f5a918ab38a.2"),
    progress(
        "controller-1", "done", said="https://10.8.0.101:10259\n 1.37.2", result="new serving", process="restart (flag v)",
        seconds=1.04, away_s=0.52, **{"from": OLD, "to": NEW},
    ),
    ended(FIRST, answers={"controller-1": component_state(True, {"process": "restart (flag v)"})}),
]  # fmt: skip


def test_each_event_is_a_line_with_its_time(record):
    assert fold(record, *ROLLED) == [
        "20:54:20  master        saltutil.sync_modules: starts on controller-1, controller-2, controller-3",
        f"20:54:21  master        {PREFLIGHT}: starts on controller-1, controller-2, controller-3",
        f"20:54:22  master        {PREFLIGHT}: ended, nothing to change (1.9 s)",
        f"20:54:23  master        {FIRST}: starts",
        "20:54:24  controller-1  kube-scheduler           prepare   generation abc77f5a918ab38a.2: restart (flag v)",
        "20:54:25  controller-1  kube-scheduler           promote   live is abc77f5a918ab38a.2",
        "20:54:26  controller-1  kube-scheduler           done      https://10.8.0.101:10259 1.37.2",
        f"20:54:27  master        {FIRST}: ended, changed controller-1 (1.9 s)",
    ]


def test_the_table_has_what_changed_and_a_line_for_the_rest(runner, record):
    fold(record, *ROLLED)
    assert record.end({"states": {}, "retcode": 0}, now=BEGAN + 14) == []
    assert runner._summary(record.data).splitlines() == [
        "node          component       from             to                 took   not serving  result",
        "controller-1  kube-scheduler  1.37.2 8ec40bbe  1.37.2 abc77f5a.2  1.0 s  0.5 s        new serving",
        "",
        "unchanged: controller-2, controller-3",
        "",
        "The rollout of 2026-11-24T20:54:19Z ended well after 14.0 s: 1 component changed.",
    ]
    assert (record.data["result"], record.data["retcode"]) == ("ok", 0)


def test_facts_that_are_not_told_are_dashes_and_unknown_steps_are_steps(runner, record):
    lines = fold(
        record, starts(FIRST, NODES[:1]), progress("controller-1", "settle"), progress("controller-1", "done", result="new")
    )
    assert lines[1].endswith("kube-scheduler           settle    as said")
    table = runner._table(record.data["rows"]).splitlines()
    assert table[1].split() == ["controller-1", "kube-scheduler", "-", "-", "-", "-", "new"]


def test_what_other_clusters_and_other_runs_tell_is_not_taken(record):
    fold(record, starts(FIRST, NODES[:1]))
    others = [
        progress("elsewhere-1", "done", result="new serving"),
        ended(SECOND, jid="20261124000000000000"),
        (f"salt/run/{JID[::-1]}/args", {"type": "state", "tgt": ["elsewhere-1"], "name": "x"}),
        ("salt/auth", {"id": "elsewhere-1"}),
        ("kubernetes_controller/progress", {"id": "controller-1", "data": "said by hand"}),
        ("kubernetes_controller/progress", None),
    ]
    assert fold(record, *others) == []
    assert (record.data["rows"], record.data["nodes"], record.data["steps"]) == ([], ["controller-1"], [])


REFUSED = {
    "__id__": "What is declared for this node fits together",
    "result": False,
    "comment": "X: no such flag.\nNothing was touched.",
}
REQUISITE = {"__id__": "kube-scheduler runs as declared", "result": False, "comment": "One or more requisite failed: a.b"}


def test_the_sentence_of_each_state_that_failed_is_told_in_full_once(runner, record):
    states = {"k8s_preflight_|-a_|-b_|-passed": REFUSED, "k8s_component_|-c_|-kube-scheduler_|-running": REQUISITE}
    answers = dict.fromkeys(NODES, states)
    lines = fold(
        record, starts(PREFLIGHT, NODES), ended(PREFLIGHT, False, "Run failed on minions: …", answers),
        ended(FIRST, False, "One or more requisite failed: x"), ended(SECOND, False, "One or more requisite failed: x"),
    )  # fmt: skip
    assert lines[1:] == [f"20:54:21  master        {PREFLIGHT}: FAILED on controller-1, controller-2, controller-3 (1.9 s)"]
    record.end({"states": {}, "retcode": 1}, now=BEGAN + 5.5)
    assert runner._summary(record.data).splitlines() == [
        "unchanged: controller-1, controller-2, controller-3",
        "",
        "controller-1, controller-2, controller-3: What is declared for this node fits together",
        "    X: no such flag.",
        "    Nothing was touched.",
        "",
        f"The rollout of 2026-11-24T20:54:19Z FAILED after 5.5 s. Not started: 2 steps, the first is {FIRST!r}.",
    ]
    assert record.data["retcode"] == 1


@pytest.mark.parametrize("answer", [False, None, "Minion did not return. [No response]"])
def test_a_minion_that_does_not_answer_is_named_and_not_called_unchanged(runner, record, answer):
    comment = "Run failed on minions: controller-3\nMinion controller-3 did not return a state result."
    fold(record, starts(PREFLIGHT, NODES), ended(PREFLIGHT, False, comment, {"controller-3": answer}))
    assert record.data["failures"] == [
        {"node": "controller-3", "state": PREFLIGHT, "said": "The minion did not answer. The next rollout goes on from there."}
    ]
    assert "unchanged: controller-1, controller-2\n" in runner._summary(record.data)


def test_errors_of_a_minion_that_does_not_render_are_told(record):
    errors = ["Rendering SLS 'base:x' failed: a", "b"]
    fold(record, starts(FIRST, NODES[:1]), ended(FIRST, False, "Run failed", {"controller-1": errors}))
    assert record.data["failures"] == [{"node": "controller-1", "state": FIRST, "said": "\n".join(errors)}]


def test_a_failed_state_of_the_master_is_told(record):
    lines = fold(record, ended("The certificates are as declared", False, "kubernetes-ca.key is lost (but …)."))
    assert lines[0].endswith("The certificates are as declared: FAILED: kubernetes-ca.key is lost (but …). (1.9 s)")
    assert record.data["failures"][0]["node"] == "master"


def test_who_has_not_answered_is_named_while_one_waits(record):
    new = {"fun": "state.sls", "minions": NODES[:2]}
    fold(record, starts(PREFLIGHT, NODES), ("salt/job/7/new", new), ("salt/job/7/ret/controller-1", {"id": "controller-1"}))
    assert record.still(BEGAN + 46) == [
        f"20:55:05  master        waiting for {PREFLIGHT} (since 45 s); no answer yet from controller-2"
    ]


def test_a_component_that_was_cut_off_says_after_which_step(runner, record):
    fold(record, starts(FIRST, NODES), progress("controller-1", "promote"), progress("controller-2", "prepare"))
    record.end({"error": "killed"})
    summary = runner._summary(record.data)
    assert re.search(r"controller-1 +kube-scheduler .* cut off after promote\n", summary)
    assert "unchanged: controller-2, controller-3" in summary
    assert "master: the orchestration\n    killed" in summary


def test_a_test_run_says_what_would_happen(runner):
    record = runner._Record(JID, test=True, now=BEGAN)
    would = component_state(None, {"process": "restart (flag v)"}) | component_state(True, name="kube-controller-manager")
    fold(record, starts(FIRST, NODES[:1]), ended(FIRST, None, answers={"controller-1": would}))
    record.end({"states": {}, "retcode": 0}, now=BEGAN + 3)
    summary = runner._summary(record.data)
    assert re.search(r"controller-1 +kube-scheduler +- +- +- +- +would restart \(flag v\)\n", summary)
    assert "kube-controller-manager" not in summary
    assert summary.endswith("The test run of 2026-11-24T20:54:19Z ended well after 3.0 s: 1 component would change.")


ASKED = "Every controller answers and finds its pillar in order"


def asked(*answered):
    """Events of a step that asks all nodes, of whom these answer."""
    new = {"fun": "k8s_controllers.holds", "minions": NODES}
    return [starts(ASKED, NODES, "question"), ("salt/job/8/new", new)] + [(f"salt/job/8/ret/{one}", {}) for one in answered]


def returned(node, states, job="9"):
    """Events of a job that applies states on a node, with its answer."""
    return [("salt/job/9/new", {"fun": "state.sls", "minions": [node]}), (f"salt/job/{job}/ret/{node}", {"return": states})]


MISSING = "Not knowable yet: pillar kubernetes_controller_pki:tls.crt is missing"


def test_who_did_not_answer_the_first_question_is_named_while_one_waits(record):
    fold(record, *asked("controller-1", "controller-3"))
    assert record.still(BEGAN + 31)[0].endswith(f"waiting for {ASKED} (since 30 s); no answer yet from controller-2")


def test_the_answer_to_a_question_is_told_as_it_is(runner, record):
    lines = fold(record, *asked(*NODES), ended(ASKED, comment="a, b: answered."))
    assert lines[0].endswith(f"{ASKED}: starts on controller-1, controller-2, controller-3")
    assert lines[-1].endswith(f"{ASKED}: a, b: answered. (1.9 s)")
    fold(record, ended("another", False, "controller-2: a: no such key."))
    assert record.data["failures"][0]["said"] == "controller-2: a: no such key."


def test_what_a_test_run_cannot_know_is_shown_and_counted_and_not_called_unchanged(runner):
    record = runner._Record(JID, test=True, now=BEGAN)
    unknown = component_state(None, comment=MISSING) | component_state(True, name="kube-controller-manager")
    lines = fold(record, starts(FIRST, NODES[:2]), *returned("controller-1", unknown), ended(FIRST))
    assert lines[-1].endswith(f"{FIRST}: not knowable yet on controller-1 (1.9 s)")
    lines = fold(record, starts(SECOND, NODES[1:2]), ended(SECOND))
    assert lines[-1].endswith(f"{SECOND}: ended, nothing to change (1.9 s)")
    would = component_state(None, {"process": "restart (flag v)"}, name="etcd")
    fold(record, starts("etcd of controller-1", NODES[:1]), ended("etcd of controller-1", None, answers={"controller-1": would}))
    record.end({"states": {}, "retcode": 0}, now=BEGAN + 3)
    summary = runner._summary(record.data)
    assert re.search(r"controller-1 +kube-scheduler +- +- +- +- +not knowable yet\n", summary)
    assert f"controller-1: kube-scheduler runs as declared\n    {MISSING}" in summary
    assert "unchanged: controller-2\n" in summary
    assert summary.endswith("ended well after 3.0 s: 1 component would change, 1 not knowable yet.")
    assert record.data["retcode"] == 0


def test_what_is_as_declared_and_waits_for_something_else_is_not_knowable(runner):
    record = runner._Record(JID, test=True, now=BEGAN)
    comment = "kube-scheduler is as declared but does not serve: refused. What it needs does not serve either"
    fold(record, starts(FIRST, NODES[:1]), *returned("controller-1", component_state(None, comment=comment)), ended(FIRST))
    assert [(row["component"], row["result"]) for row in record.data["rows"]] == [("kube-scheduler", "not knowable yet")]
    assert record.data["unknown"][0]["said"] == comment


def test_files_that_would_be_made_on_the_master_are_not_knowable_for_who_gets_them(runner):
    record = runner._Record(JID, test=True, now=BEGAN)
    share = "/srv/kubernetes_controller/pki/hosts/{}/kubernetes_controller_pki/{}"
    made = {share.format("controller-1", name): {"old": "missing", "new": "as declared"} for name in ("a.crt", "a.key")}
    gone = {share.format("controller-2", "b.crt"): {"old": "declared no more", "new": "removed"}}
    others = {share.format("elsewhere-1", "a.crt"): {"old": "missing", "new": "as declared"}}
    event = ended("The certificates of the cluster are as declared", None, "2 files would be made, 1 files would be removed.")
    event[1]["ret"]["changes"] = {**made, **gone, **others}
    fold(record, starts(PREFLIGHT, NODES), event)
    assert [(row["node"], row["component"], row["result"]) for row in record.data["rows"]] == [
        ("controller-1", "certificates", "not knowable yet")
    ]
    record.end({"states": {}, "retcode": 0}, now=BEGAN + 3)
    assert runner._summary(record.data).endswith("0 components would change, 1 not knowable yet.")


def test_controllers_without_modules_are_not_knowable_and_the_sentence_is_shown(runner):
    record = runner._Record(JID, test=True, now=BEGAN)
    comment = "Not knowable yet: controller-2 would get the formula's modules first."
    fold(record, *asked(*NODES), ended(ASKED, None, comment))
    record.end({"states": {}, "retcode": 0}, now=BEGAN + 3)
    summary = runner._summary(record.data)
    assert re.search(r"master +all +- +- +- +- +not knowable yet\n", summary)
    assert f"master: {ASKED}\n    {comment}" in summary


def test_a_real_run_takes_nothing_for_not_knowable(record):
    fold(record, starts(FIRST, NODES[:1]), *returned("controller-1", component_state(None, comment=MISSING)), ended(FIRST))
    assert (record.data["rows"], record.data["unknown"]) == ([], [])


@pytest.mark.parametrize("answers", [None, {"controller-1": ""}])
def test_a_step_that_fails_without_a_reason_says_that(runner, record, answers):
    lines = fold(record, ended("a step", False, "", answers))
    assert "a step: FAILED" in lines[0]
    assert record.data["failures"][0]["said"] == runner.NO_REASON


def test_what_the_bus_lost_comes_from_the_orchestrations_answer(runner, record):
    changed = {"controller-1": component_state(True, {"process": "start"})}
    failed = {"controller-2": component_state(False, comment="kube-scheduler: the turn is held by controller-1.")}
    states = {
        "salt_|-a_|-a_|-state": ended(FIRST, answers=changed)[1]["ret"],
        "salt_|-b_|-b_|-state": ended(SECOND, False, "Run failed", failed, number=1)[1]["ret"],
    }
    fold(record, starts(PREFLIGHT, NODES), ended(FIRST, answers=changed))
    lines = record.end({"states": states, "retcode": 1}, now=BEGAN + 9)
    assert lines == [f"20:54:28  master        {SECOND}: FAILED on controller-2 (1.9 s)"]
    assert [(row["node"], row["result"]) for row in record.data["rows"]] == [("controller-1", "new serving")]
    assert record.data["failures"][0]["said"] == "kube-scheduler: the turn is held by controller-1."
    assert [step["name"] for step in record.data["steps"]] == [FIRST, SECOND]


def test_the_end_of_a_parallel_step_is_not_what_salt_tells_at_its_start(record):
    assert fold(record, ended("Every controller has the modules", None, "Started in a separate process")) == []
    assert record.data["steps"] == []


@pytest.mark.parametrize(("stopped", "total", "result"), [(True, 12, "stopped"), (True, 1, "ok"), (False, 12, "ok")])
def test_a_stopped_rollout_is_one_of_which_steps_are_left(runner, record, stopped, total, result):
    fold(record, starts(PREFLIGHT, NODES), ended(PREFLIGHT))
    record.total = total
    record.end({"states": {"one": {"__id__": PREFLIGHT, "result": True}}, "retcode": 0}, stopped=stopped)
    assert (record.data["result"], record.data["retcode"]) == (result, int(result != "ok"))
    assert ("STOPPED" in runner._summary(record.data)) is (result == "stopped")


def test_a_rotation_has_a_line_and_a_row_for_each_of_its_rollouts(runner):
    record = runner._Record(JID, now=BEGAN, what="rotation")
    outer = ended("trust, the files on the master")
    outer[1]["len"] = 5
    lines = fold(record, outer, *ROLLED, *ROLLED[3:])
    assert len([line for line in lines if f"master        {FIRST}: starts" in line]) == 2
    assert len([line for line in lines if f"master        {FIRST}: ended, changed controller-1" in line]) == 2
    assert [row["result"] for row in record.data["rows"]] == ["new serving", "new serving"]
    assert record.total == 5
    record.end({"states": {}, "retcode": 0}, now=BEGAN + 20)
    assert "The rotation of 2026-11-24T20:54:19Z ended well after 20.0 s: 2 components changed." in runner._summary(record.data)


def test_what_failed_in_a_rollout_within_a_rotation_is_told_once(runner, record):
    comment = "generation 1 failed before"
    fold(
        record, starts(FIRST, NODES[:1]), ended(FIRST, False, "Run failed", {"controller-1": component_state(False, {}, comment)})
    )
    outer = f"{FIRST}: Run failed\ncontroller-1: {comment}"
    fold(record, ended("trust, rolled out to every controller", False, outer))
    assert [failure["node"] for failure in record.data["failures"]] == ["controller-1"]


def test_an_orchestration_that_does_not_render_is_a_failure_with_its_errors(runner, record):
    record.end({"states": ["Rendering SLS failed: a", "b"], "retcode": 1})
    assert "master: the orchestration\n    Rendering SLS failed: a\n    b" in runner._summary(record.data)
    assert record.data["retcode"] == 1


# -- the record on the master -----------------------------------------------------------------------------------------


def test_the_record_is_the_masters_alone_and_last_leads_to_it(runner, record, capsys):
    with runner._Sink(runner._record_dir(), record) as sink:
        sink.lines(fold(record, *ROLLED))
        record.end({"states": {}, "retcode": 0}, now=BEGAN + 14)
        sink.save()
    directory = Path(runner._record_dir())
    assert {path.name: stat.S_IMODE(path.lstat().st_mode) for path in directory.iterdir() if not path.is_symlink()} == {
        "rollout-20261124T205419Z.json": 0o600,
        "rollout-20261124T205419Z.log": 0o600,
    }
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert os.readlink(directory / "last.json") == "rollout-20261124T205419Z.json"
    assert json.loads((directory / "last.json").read_text()) == record.data
    assert capsys.readouterr().out.count("\n") == 9
    assert runner.last() == record.data
    assert runner._summary(record.data) in capsys.readouterr().out
    assert runner.__context__["retcode"] == 0


def test_a_rollout_that_still_runs_and_one_that_was_cut_off_are_told_apart(runner, record):
    record.data["pids"] = [2**22 + 1]  # no such process
    assert "was cut off" in runner._summary(record.data)
    runner._is_salt = lambda pid: True
    assert "still runs" in runner._summary(record.data)


def test_only_the_newest_records_are_kept(runner, record):
    directory = Path(runner._record_dir())
    directory.mkdir()
    for number in range(120):
        for suffix in ("json", "log"):
            (directory / f"rollout-20250101T{number:06}Z.{suffix}").touch()
    (directory / "mine.txt").touch()
    with runner._Sink(str(directory), record):
        pass
    names = sorted(path.name for path in directory.glob("rollout-*.json"))
    assert (len(names), names[0], names[-1]) == (runner.KEEP, "rollout-20250101T000021Z.json", "rollout-20261124T205419Z.json")
    assert (directory / "mine.txt").exists()


def test_two_rollouts_of_the_same_second_have_a_record_each(runner, record):
    with runner._Sink(runner._record_dir(), record) as first, runner._Sink(runner._record_dir(), record) as second:
        first.save()
        second.save()
        assert (first.trouble, second.trouble) == (None, None)
    names = sorted(path.name for path in Path(runner._record_dir()).glob("rollout-*.json"))
    assert names == ["rollout-20261124T205419Z-2.json", "rollout-20261124T205419Z.json"]


def test_a_record_that_cannot_be_kept_is_a_sentence_and_not_the_end(runner, record, tmp_path, capsys):
    (tmp_path / "records").write_text("a file")
    with runner._Sink(runner._record_dir(), record) as sink:
        sink.lines(["a line"])
    said = capsys.readouterr().out
    assert said.startswith("a line\n")
    assert f"kubernetes_controller:rollout:record_dir: no record of this rollout can be kept in {tmp_path / 'records'}: " in said
    assert "install -d -m 0700" in said
    assert runner.last()["retcode"] == 1
    assert "last.json cannot be read" in capsys.readouterr().out


def test_a_minion_cannot_control_the_operators_terminal(runner, record, capsys):
    with runner._Sink(runner._record_dir(), record) as sink:
        tag, data = progress("controller-1", "done", said="\x1b[2Jwell")
        data["data"]["node"] = "controller-2"
        sink.lines(fold(record, starts(FIRST, NODES), (tag, data)))
    assert "?[2Jwell" in capsys.readouterr().out
    assert [row["node"] for row in record.data["rows"]] == ["controller-1"]


def test_where_the_record_itself_is_asked_for_lines_go_to_standard_error(runner, capsys):
    runner.__opts__["output"] = "json"
    runner._print("a line")
    assert capsys.readouterr() == ("", "a line\n")


class Bus:
    """A bus that has these events, and gives back what is sent to it after them."""

    def __init__(self, events=(), lost=0):
        self.events, self.lost = [{"tag": tag, "data": data} for tag, data in events], lost

    def fire_event(self, data, tag):
        self.lost -= 1
        if self.lost < 0:
            self.events.append({"tag": tag, "data": data})

    def get_event(self, wait, full):
        return self.events.pop(0) if self.events else None


def test_a_mark_comes_back_after_all_that_was_before_it_even_when_it_is_lost_at_first(runner, record, tmp_path):
    with runner._Sink(str(tmp_path), record) as sink:
        follow = runner._follower(Bus(ROLLED, lost=1), JID, record, sink)
        assert follow("end", 5) is True
    assert len(record.data["steps"]) == 2


def test_a_bus_that_does_not_answer_or_never_rests_holds_nobody_up(runner, record, tmp_path):
    with runner._Sink(str(tmp_path), record) as sink:
        assert runner._follower(Bus(lost=100), JID, record, sink)("start", 0.2) is False
        busy = Bus([("salt/auth", {})] * 3)
        assert runner._follower(busy, JID, record, sink)() is False
    assert len(busy.events) == 2


def test_the_default_place_is_that_of_the_formula(runner, defaults):
    runner.__salt__ = {"pillar.show_pillar": lambda minion: {}}
    assert runner._record_dir() == defaults["rollout"]["record_dir"]


def test_the_record_has_each_certificate_with_its_days_left(runner, record, defaults, monkeypatch):
    asked = []

    def execute(nodes, function, **_options):
        asked.append((nodes, function))
        return {"controller-1": {"etcd": {"peer.crt": "29 days, until 2026-12-24 (CN=a)"}}, "controller-2": "no such function"}

    def ends(directory):
        asked.append((directory, "k8s_certificate.ends"))
        return {"etcd-ca.crt": "364 days, until 2027-11-24 (CN=b)"} if directory.endswith("/authorities") else {}

    monkeypatch.setattr("salt.loader.minion_mods", lambda _opts, **_options: {"k8s_certificate.ends": ends})
    runner.__salt__ |= {"salt.execute": execute}
    found = runner._certificates(["controller-1", "controller-2"])
    assert list(found) == ["controller-1", "master"]
    assert found["master"] == {"authorities": {"etcd-ca.crt": "364 days, until 2027-11-24 (CN=b)"}}
    root = defaults["pki"]["directory"]
    assert asked[0] == (["controller-1", "controller-2"], "k8s_certificate.expiry")
    assert asked[1:] == [(f"{root}/{part}", "k8s_certificate.ends") for part in ("authorities", "admin")]
    record.data["certificates"] = found
    last = runner._summary(record.data).splitlines()[-1]
    assert last == "The first certificate to end is that of controller-1 etcd peer.crt: 29 days, until 2026-12-24 (CN=a)."


def test_a_certificate_that_cannot_be_read_does_not_hide_which_one_ends_first(runner):
    broken = {"controller-1": {"kube-apiserver": {"own.pem": "no certificate that can be read"}}}
    assert runner._first_to_end(broken) is None
    broken["controller-2"] = {"etcd": {"peer.crt": "29 days, until 2026-12-24 (CN=a)"}}
    assert "controller-2 etcd peer.crt: 29 days" in runner._first_to_end(broken)


def test_a_rollout_does_not_fail_because_nobody_tells_of_certificates(runner):
    assert runner._certificates(["controller-1"]) == {}  # neither function is there


@pytest.mark.parametrize("pillar", ['{"a": 1', ["a"]])
def test_a_pillar_that_is_no_dictionary_is_refused_of_every_run_as_of_a_deploy(runner, monkeypatch, pillar):
    asked = []
    monkeypatch.setattr(runner, "_roll", lambda sls, what, pillar, test: asked.append(pillar))
    for run, arguments in (
        *(("deploy", ()), ("renew", ()), ("rotate_ca", ("etcd",))),
        *(("rotate_service_account", ()), ("rotate_encryption", ())),
    ):
        getattr(runner, run)(*arguments, pillar=pillar)
    assert asked == [pillar] * 5
    runner.rotate_ca("etcd", pillar={"a": 1})
    assert asked[-1] == {"a": 1, "authority": "etcd", "until": None}
