"""The gate: what has to be seen, how often and for how long, before a component counts as serving; on a clock of its own."""

from types import SimpleNamespace

import pytest

GATE = {"consecutive": 3, "window_s": 5, "interval_s": 1, "timeout_s": 60}
UNIT = {"pid": 7, "binary": "", "started": 1.0, "state": "active", "restarts": 0}


class World:
    """A clock, and a component whose answers and process follow it."""

    def __init__(self):
        self.now, self.answers, self.units, self.probed = 1000.0, lambda second: True, lambda second: UNIT, 0

    @property
    def second(self):
        return int(self.now - 1000)

    def monotonic(self):
        return self.now

    def time(self):
        """The wall clock, which somebody sets again and again."""
        return self.now + 3600 * (-1) ** self.second

    def sleep(self, seconds):
        self.now += seconds

    def probe(self, row, since=None, thorough=False):
        self.probed += 1
        ok = bool(self.answers(self.second))
        return {"ok": ok, "said": "served" if ok else "connection refused"}


@pytest.fixture
def world(node, monkeypatch):
    """The world of one gate; ``wait`` goes through it."""
    world, module = World(), node.modules["k8s_health.wait"].func.__globals__
    clock = SimpleNamespace(monotonic=world.monotonic, sleep=world.sleep, time=world.time)
    for name, fake in {"time": clock, "probe": world.probe, "serves": lambda row: bool(world.answers(world.second))}.items():
        monkeypatch.setitem(module, name, fake)
    node.fake("k8s_component.process", side_effect=lambda name: world.units(world.second))
    node.fake("k8s_component.complaint", return_value="panic: no such host")
    world.wait = lambda **gate: node.modules["k8s_health.wait"]({"name": "kube-scheduler", "gate": {**GATE, **gate}})
    return world


def test_one_good_answer_is_not_enough(world):
    assert world.wait()["ok"] is True
    assert (world.probed, world.second) == (6, 5)  # the window is longer than three answers


@pytest.mark.parametrize(("consecutive", "probed"), [(1, 1), (2, 2), (5, 5)])
def test_so_many_answers_in_a_row_are_asked_for(world, consecutive, probed):
    assert world.wait(consecutive=consecutive, window_s=0)["ok"] is True
    assert world.probed == probed


def test_an_answer_that_fails_in_between_begins_the_count_anew(world):
    world.answers = lambda second: second != 2
    assert world.wait(window_s=0)["ok"] is True
    assert world.second == 5


def test_an_answer_that_fails_in_the_window_begins_the_window_anew(world):
    world.answers = lambda second: second != 4
    assert world.wait()["ok"] is True
    assert world.second == 10


def test_one_that_never_answers_three_times_in_a_row_does_not_pass(world):
    world.answers = lambda second: second % 3
    found = world.wait()
    assert found["ok"] is False
    assert "(journal: panic: no such host)" in found["said"]
    assert 60 < world.second < 65


def test_one_that_answers_until_the_time_is_up_and_never_long_enough_is_called_not_steady(world):
    world.answers = lambda second: second % 6
    found = world.wait(window_s=10, timeout_s=20)
    assert (found["ok"], found["said"]) == (False, "not steady: served (journal: panic: no such host)")


def test_a_process_that_comes_and_goes_ends_the_gate_long_before_the_time_is_up(world):
    world.answers = lambda second: False
    world.units = lambda second: {**UNIT, "restarts": second // 2}
    found = world.wait()
    assert (found["ok"], "panic: no such host" in found["said"]) == (False, True)
    assert world.second < 15


def test_a_unit_that_systemd_gave_up_ends_the_gate_at_once(world):
    world.answers, world.units = lambda second: False, lambda second: {**UNIT, "pid": 0, "state": "failed"}
    assert world.wait()["ok"] is False
    assert world.second == 0


def test_a_late_start_passes_and_the_time_without_an_answer_is_told(world):
    world.answers = lambda second: second >= 20
    found = world.wait()
    assert (found["ok"], found["away_s"], found["seconds"]) == (True, 19.0, 25.0)


# -- one answer ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def probe(node, rows, monkeypatch, new_authority):
    """Return a function: what the probe of a scheduler finds for this answer, process and moment."""
    row = rows()["kube-scheduler"]
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
    module = node.modules["k8s_health.probe"].func.__globals__
    own = module["_first_certificate"](f"{row['home']}/live/tls.crt")
    node.fake("k8s_component.replaced", return_value=False)
    monkeypatch.setitem(module, "_leader", lambda row: "leader controller-2")

    def ask(status=200, certificate=own, since=None, **process):
        node.fake("k8s_component.process", return_value={**UNIT, "started": 50.0, **process})
        answer = {"status": status, "body": "[+]ping ok\n[-]leaderElection failed", "certificate": certificate}
        monkeypatch.setitem(module, "_request", lambda *args, **kw: answer)
        return node.modules["k8s_health.probe"](row, since=since)

    return ask


def test_an_answer_of_another_server_at_the_same_address_does_not_count(probe):
    assert probe()["ok"] is True
    found = probe(certificate=b"another")
    assert (found["ok"], "it serves another certificate than the live one" in found["said"]) == (False, True)


def test_the_former_process_does_not_count(probe):
    assert probe(since=49.0)["ok"] is True
    assert probe(since=51.0) == {"ok": False, "said": "the former process still runs"}


@pytest.mark.parametrize("status", [500, 503, 401, 301])
def test_only_200_counts_and_the_check_that_failed_is_told(probe, status):
    found = probe(status)
    assert (found["ok"], "[-]leaderElection failed" in found["said"]) == (False, True)


def test_another_program_in_the_components_place_does_not_count(probe):
    assert "is not kube-scheduler" in probe(binary="/usr/bin/nc")["said"]
