"""What the members of etcd should be, and how one without data may start: decisions on what was heard."""

import pytest

CONTROLLERS = {f"controller-{number}": f"10.8.0.10{number}" for number in (1, 2, 3)}
NOW = 1_800_000_000
FOUNDING = {"state": "founding", "at": NOW - 60, "since": "then", "controllers": list(CONTROLLERS)}
FOUNDED = {"state": "founded", "at": NOW - 9, "since": "then"}


def member(number, *, started=True, learner=False, name=None):
    address = f"10.8.0.10{number}"
    return {
        "id": f"{number}" * 4,
        "name": (f"controller-{number}" if started else "") if name is None else name,
        "peer_urls": [f"https://{address}:2380"],
        "client_urls": [f"https://{address}:2379"] if started else [],
        "learner": learner,
        "started": started,
    }


def answer(number, **more):
    said = {
        "state": "answers",
        "said": "",
        "cluster": "c",
        "member": f"{number}" * 4,
        "healthy": True,
        "hash": "h",
        "learner": False,
    }
    return {f"https://10.8.0.10{number}:2379": {**said, **more}}


def silent(number, state="is silent", said="timed out"):
    return {f"https://10.8.0.10{number}:2379": {"state": state, "said": said}}


def heard(members, *answers):
    asked = {}
    for one in answers:
        asked |= one
    return {"members": members, "asked": asked}


ALL = heard([member(1), member(2), member(3)], answer(1), answer(2), answer(3))


@pytest.fixture
def faults(modules):
    def all_of(found):
        listed = found["members"]
        differences = modules["k8s_membership.differences"](CONTROLLERS, listed) if listed is not None else []
        return modules["k8s_membership.data_faults"](found) + differences + modules["k8s_membership.unwell"](CONTROLLERS, found)

    return all_of


def test_members_that_are_declared_vote_and_agree_are_in_order(faults):
    assert faults(ALL) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (heard([member(1), member(2)], answer(1), answer(2)), ["controller-3 (10.8.0.103)", "is not a member of etcd"]),
        (
            heard([member(1), member(2), member(3), member(4)], *(answer(number) for number in (1, 2, 3, 4))),
            ["member 4444 (controller-4", "is not in kubernetes_controller:controllers", "etcdctl member remove 4444"],
        ),
        (
            heard([member(1), member(2), member(3, learner=True)], answer(1), answer(2), answer(3)),
            ["member 3333 of controller-3 is a learner", "etcdctl member promote 3333"],
        ),
        (
            heard([member(1), member(2), member(3, started=False)], answer(1), answer(2)),
            ["controller-3 was added", "not started yet"],
        ),
        (
            heard([member(1), member(2), member(3)], answer(1), answer(2), silent(3)),
            ["controller-3 does not answer well: timed out"],
        ),
        (
            heard([member(1), member(2), member(3)], answer(1), answer(2), answer(3, cluster="other")),
            ["different clusters", "https://10.8.0.103:2379: cluster other", "Change nothing"],
        ),
        (
            heard([member(1), member(2), member(3)], answer(1), answer(2), answer(3, hash="g")),
            ["hold different data at the same revision", "https://10.8.0.103:2379: g"],
        ),
        (
            heard([member(1), member(2), member(3)], answer(1), answer(2), answer(3, member="2222")),
            ["at https://10.8.0.103:2379 member 2222 answers, where etcd lists member 3333", "move its data away"],
        ),
        (heard(None, silent(1), silent(2)), ["no member says who the members are", "https://10.8.0.101:2379: timed out"]),
    ],
    ids=["no member", "not declared", "learner", "not started", "silent", "two clusters", "other data", "of another", "nobody"],
)
def test_each_difference_is_one_sentence_with_the_way_out(faults, found, words):
    (said,) = faults(found)
    for word in words:
        assert word in said


def test_a_member_that_answers_by_a_name_or_on_the_loopback_is_where_etcd_lists_it(modules):
    by_name = {"https://etcd-2.example.com:2379": answer(2)["https://10.8.0.102:2379"]}
    loopback = {"https://127.0.0.1:2379": answer(1)["https://10.8.0.101:2379"]}
    found = heard([member(1), member(2), member(3)], answer(1), loopback, answer(2), by_name, answer(3))
    assert modules["k8s_membership.data_faults"](found) == []


@pytest.mark.parametrize(
    ("data", "listed", "words"),
    [
        ("2222", member(2), None),
        (None, member(2), None),
        ("2222", member(2, started=False), None),
        ("9999", member(2, started=False), ": move them away, and it joins."),
        ("9999", member(2, started=False, learner=True), ": move them away, and it joins."),
        ("9999", member(2), "bring them back, or replace the member"),
    ],
    ids=["its own", "not known", "it has joined just now", "another's", "another's, as a learner", "it had other data"],
)
def test_data_of_another_member_are_not_started_with(modules, data, listed, words):
    me = {"data_dir": "/var/lib/etcd", "peers": ["https://10.8.0.102:2380"], "address": "10.8.0.102"}
    said = modules["k8s_membership.of_another"](me, data, [member(1), listed, member(3)])
    assert (said is None) is (words is None)
    if words:
        assert said.startswith("etcd: the data in /var/lib/etcd are those of member 9999, not of this one (2222, as")
        assert words in said
    assert modules["k8s_membership.of_another"](me, data, [member(1), member(3)]) is None
    assert modules["k8s_membership.of_another"](me, data, None) is None


def test_a_hash_that_is_not_known_is_no_difference(faults):
    assert faults(heard([member(1), member(2), member(3)], answer(1), answer(2, hash=None), answer(3))) == []


def look(*places):
    """Where voting members stand: (number, revision, applied)."""
    return {
        f"https://10.8.0.10{number}:2379": {"member": f"{number}" * 4, "revision": revision, "applied": applied}
        for number, revision, applied in places
    }


AGREED = look((1, 50, 90), (2, 50, 90), (3, 50, 90))
AHEAD = look((1, 51, 90), (2, 50, 90), (3, 50, 90))
LATER = look((1, 81, 120), (2, 80, 120), (3, 79, 119))
BUSY = look((1, 52, 92), (2, 51, 91), (3, 50, 90))


@pytest.mark.parametrize(
    ("looks", "fault", "again"),
    [
        ([AGREED], False, False),
        ([BUSY], False, False),
        ([AHEAD], False, True),
        ([AHEAD, AGREED], False, False),
        ([AHEAD, BUSY], False, False),
        ([AHEAD, LATER], True, False),
        ([AHEAD, look((1, 50, 91), (2, 51, 91), (3, 50, 90))], False, True),
        ([AGREED, AHEAD, AHEAD], True, False),
        ([look((1, 51, 0), (2, 50, 0))] * 2, False, False),
        ([{**look((1, 51, 90)), "https://127.0.0.1:2379": {"member": "1111", "revision": 50, "applied": 90}}] * 2, False, False),
    ],
    ids=[
        "the same", "busy", "seen once", "then the same", "then busy", "seen twice", "then the other way round",
        "twice in a row", "not told", "one member at two URLs",
    ],
)  # fmt: skip
def test_members_that_applied_the_same_log_have_the_same_revision(modules, looks, fault, again):
    found = modules["k8s_membership.data_faults"]({**ALL, "looks": looks})
    assert bool(found) is fault
    assert all("made different data of the same entries" in said and "Change nothing" in said for said in found)
    assert modules["k8s_membership.is_open"](ALL["asked"], looks) is again


@pytest.mark.parametrize("change", [{"hash": "g"}, {"cluster": "other", "hash": None, "compacted": True, "revision": 60}])
def test_what_is_decided_needs_no_second_look(modules, change):
    asked = answer(1, **change) | answer(2, compacted=False, revision=50)
    assert modules["k8s_membership.is_open"](asked, [AHEAD]) is False
    assert modules["k8s_membership.unwell"](CONTROLLERS, {"members": [member(1), member(2)], "asked": asked}) == []


FURTHER = {"hash": None, "compacted": True, "revision": 1409}
BEHIND = {"hash": None, "compacted": False, "revision": 434}


def test_what_could_not_be_compared_is_told_and_may_pass(modules, faults):
    members = [member(1), member(2), member(3)]
    found = heard(members, answer(1, **FURTHER), answer(2, **BEHIND), answer(3, **BEHIND))
    (said,) = faults(found)
    assert "could not be compared: https://10.8.0.101:2379 (revision 1409) compacted beyond what https://10.8.0.102:2379" in said
    assert "catches up by itself. If this stays, they may hold different data. Change nothing" in said
    assert modules["k8s_membership.data_faults"](found) == []
    assert modules["k8s_membership.is_open"](found["asked"], [BUSY]) is True
    ill = heard(members, answer(1, **FURTHER), answer(2, **FURTHER), answer(3, healthy=False, said="no leader", **BEHIND))
    (said,) = faults(ill)
    assert "controller-3 does not answer well" in said
    assert modules["k8s_membership.is_open"](ill["asked"], [BUSY]) is False


# -- the quorum of the members that there really are ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "refused"),
    [
        (ALL, False),
        (heard([member(1), member(2), member(3)], answer(1), answer(2), silent(3)), True),
        (heard([member(1), member(2), member(3)], answer(1), answer(2), answer(3, healthy=False, said="NOSPACE")), True),
        (heard([member(1)], answer(1)), False),
        (heard([member(1), member(2)], answer(1), answer(2)), False),
        (heard([member(1), member(2)], answer(1), silent(2)), True),
        (heard([member(n) for n in (1, 2, 3, 4, 5)], *(answer(n) for n in (1, 2, 3, 4)), silent(5)), False),
        (heard([member(n) for n in (1, 2, 3, 4, 5)], *(answer(n) for n in (1, 2, 3)), silent(4), silent(5)), True),
        (heard([member(n) for n in (1, 2, 3, 4)], *(answer(n) for n in (1, 2, 3)), silent(4)), True),
        (heard([member(1), member(2), member(3), member(4, learner=True)], *(answer(n) for n in (1, 2, 3)), silent(4)), False),
        (heard([member(2), member(3)], answer(2), silent(3)), False),
    ],
    ids=[
        "all well", "one of three silent", "one of three ill", "one", "two", "one of two", "one of five", "two of five",
        "one of four", "a learner has no vote", "this one has no vote",
    ],
)  # fmt: skip
def test_a_member_is_interrupted_only_if_a_quorum_of_all_voters_is_left(modules, found, refused):
    assert bool(modules["k8s_membership.quorum_faults"](found, "10.8.0.101")) is refused


def test_the_refusal_names_who_is_missing_and_counts(modules):
    found = heard([member(1), member(2), member(3)], answer(1), answer(2), silent(3))
    (said,) = modules["k8s_membership.quorum_faults"](found, "10.8.0.101")
    assert "etcd has 3 voting members" in said and "controller-3 (timed out)" in said and "1 would be left, 2 are needed" in said


# -- a member without data --------------------------------------------------------------------------------------------


@pytest.fixture
def start(modules):
    def decide(found, mark, has_master=True, now=NOW, node="controller-2", controllers=CONTROLLERS, told=False):
        me = {
            "id": node,
            "name": node,
            "controllers": controllers,
            "peers": [f"https://{controllers[node]}:2380"],
            "initial_cluster": "ALL",
            "data_dir": "/var/lib/etcd",
        }
        return modules["k8s_membership.first_start"](me, mark, found, now, has_master=has_master, told=told)

    return decide


NOBODY = heard(None, silent(1, "refuses", "Connection refused"), silent(3, "refuses", "Connection refused"))
ONE_IS_OFF = heard(None, silent(1), silent(3, "refuses", "Connection refused"))


@pytest.mark.parametrize("mark", [FOUNDED, FOUNDING, {}], ids=["founded", "founding", "no mark"])
def test_where_members_answer_one_that_never_started_joins_them(start, mark):
    members = [member(1), member(2, started=False), member(3)]
    plan = start(heard(members, answer(1), answer(3)), mark)
    assert plan["refusal"] is None and plan["state"] == "existing"
    assert plan["initial_cluster"] == (
        "controller-1=https://10.8.0.101:2380,controller-2=https://10.8.0.102:2380,controller-3=https://10.8.0.103:2380"
    )


@pytest.mark.parametrize("mark", [FOUNDED, FOUNDING, {}], ids=["founded", "founding", "no mark"])
@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([member(1), member(2), member(3)], ["lists it as member 2222, which had data", "etcdctl member remove 2222"]),
        ([member(1), member(3)], ["is not a member of etcd", "etcdctl member add controller-2 --learner"]),
    ],
    ids=["it had data", "it is no member"],
)
def test_where_members_answer_no_other_one_starts(start, mark, members, words):
    said = start(heard(members, answer(1), answer(3)), mark)["refusal"]
    assert said.startswith("controller-2 has no data in /var/lib/etcd")
    for word in words:
        assert word in said


@pytest.mark.parametrize("found", [NOBODY, ONE_IS_OFF, None], ids=["all refuse", "one is off", "no identity"])
@pytest.mark.parametrize("has_master", [True, False], ids=["master", "masterless"])
def test_a_cluster_that_exists_is_never_founded_again(start, found, has_master):
    said = start(found, FOUNDED, has_master)["refusal"]
    assert "this cluster exists (since then)" in said
    assert "never founded" in said


@pytest.mark.parametrize(
    ("found", "mark", "words"),
    [
        (NOBODY, {}, ["the master has not told whether this cluster exists", "kubernetes_controller.orchestrate.pki"]),
        (NOBODY, {**FOUNDING, "controllers": ["controller-1"]}, ["is being founded by controller-1 without it"]),
        (NOBODY, {**FOUNDING, "at": NOW - 901}, ["more than 15 minutes away", "the clocks of master and node"]),
        (NOBODY, {**FOUNDING, "at": NOW + 901}, ["more than 15 minutes away"]),
        (
            ONE_IS_OFF,
            FOUNDING,
            ["controller-1 cannot be reached (controller-1: timed out", "not known whether this cluster exists"],
        ),
        (None, FOUNDING, ["controller-1, controller-3 cannot be reached"]),
    ],
    ids=["no mark", "not among the founders", "long ago", "a clock that is behind", "one is off", "nobody could be asked"],
)
def test_only_the_first_rollout_founds_all_nodes_at_once(start, found, mark, words):
    said = start(found, mark)["refusal"]
    for word in words:
        assert word in said


def test_the_first_rollout_founds(start):
    assert start(NOBODY, FOUNDING) == {"refusal": None, "state": "new", "initial_cluster": "ALL"}
    alone = {"controller-2": "10.8.0.102"}
    mark = {**FOUNDING, "controllers": ["controller-2"]}
    assert start(heard(None), mark, controllers=alone)["state"] == "new"


@pytest.mark.parametrize("found", [NOBODY, ONE_IS_OFF, None], ids=["all refuse", "one is off", "no identity"])
def test_without_a_master_a_closed_port_is_no_proof_that_there_is_no_cluster(start, found):
    """The one that had the data was stopped, and the other two founded an empty cluster."""
    said = start(found, {}, has_master=False)["refusal"]
    assert "the one that has its data may be stopped" in said
    assert 'pillar=\'{"kubernetes_controller": {"rollout": {"found": true}}}\'' in said


def test_without_a_master_the_operator_says_once_that_there_is_no_cluster_yet(start):
    assert start(NOBODY, {}, has_master=False, told=True)["state"] == "new"
    assert "controller-1 cannot be reached" in start(ONE_IS_OFF, {}, has_master=False, told=True)["refusal"]
    assert "this cluster exists" in start(NOBODY, FOUNDED, has_master=False, told=True)["refusal"]
    assert "the master has not told" in start(NOBODY, {}, told=True)["refusal"], "where there is a master it alone says so"


WAITING = "waits for the others"


@pytest.mark.parametrize(
    ("state", "founders", "founded"),
    [
        (WAITING, list(CONTROLLERS), True),
        (WAITING, ["controller-2", "controller-3"], False),
        ("does not know this node", list(CONTROLLERS), False),
        ("does not answer", list(CONTROLLERS), False),
        ("answers", list(CONTROLLERS), False),
    ],
)
@pytest.mark.parametrize("number", [1, 2])
def test_what_listens_and_tells_nothing_may_be_a_cluster_unless_it_is_being_founded(start, state, founders, founded, number):
    found = heard(
        None, silent(number, state, "unknown ca (TLS)"), silent(3, "refuses"), *([silent(1, "refuses")] * (number == 2))
    )
    plan = start(found, {**FOUNDING, "controllers": [*founders, "controller-2"]})
    if founded or (state, number) == (WAITING, 2):
        assert plan["state"] == "new"
    else:
        assert f"something on controller-{number} listens" in plan["refusal"]
        assert "unknown ca (TLS)" in plan["refusal"]
    if state == WAITING:
        assert start(found, {}, has_master=False, told=True)["state"] == "new"


# -- another directory ------------------------------------------------------------------------------------------------

BEFORE = {"data-dir": "/var/lib/etcd"}


@pytest.mark.parametrize(
    ("settings", "has_data", "ignore", "words"),
    [
        ({"data-dir": "/var/lib/etcd"}, False, [], None),
        ({"data-dir": "/srv/etcd"}, False, [], "etcd:data_dir: /srv/etcd (live: /var/lib/etcd): there is no data of a member"),
        ({"data-dir": "/srv/etcd"}, False, ["identity"], "there is no data of a member"),
        ({"data-dir": "/srv/etcd"}, True, [], "ONCE"),
        ({"data-dir": "/srv/etcd"}, True, ["identity"], None),
        ({"data-dir": "/var/lib/etcd", "wal-dir": "/srv/wal"}, False, [], "etcd:settings:wal-dir: /srv/wal (live: none)"),
    ],
    ids=["the same", "empty", "empty and ignored", "filled", "filled and overruled", "wal"],
)
def test_another_data_directory_never_loses_the_data(modules, settings, has_data, ignore, words):
    row = {"settings": settings, "ignore": ignore}
    said = modules["k8s_membership.moved_data"](row, BEFORE, has_data, "ONCE")
    assert (words in said[0]) if words else said == []
    assert modules["k8s_membership.moved_data"](row, {}, has_data, "ONCE") == []
