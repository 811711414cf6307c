"""What the master asks the declared controllers, and what it concludes from their answers; no minion is needed."""

import pytest
import yaml

NODES = {"controller-1": "10.8.0.101", "controller-2": "10.8.0.102"}
KEYS = {"minions": ["controller-1", "web-1"], "minions_pre": ["controller-2"], "minions_rejected": ["controller-3"]}
PKI = "kubernetes_controller_pki"


@pytest.fixture
def controllers(node):
    """A function of k8s_controllers by its name."""
    node.fake("k8s_config.present_pillar", return_value=node.opts["pillar"])
    return lambda name: node.modules[f"k8s_controllers.{name}"]


# -- what a controller tells of itself ----------------------------------------------------------------------------------


def test_a_controller_tells_fingerprints_and_never_what_it_holds(controllers, node, declared, material, resolve):
    pillar = {"kubernetes_controller": declared, PKI: {**material, "a": {"directory": "in it"}}}
    node.fake("k8s_config.present_pillar", return_value=pillar)
    node.fake("k8s_config.load", return_value=resolve())
    said = controllers("holds")()
    assert (said["errors"], said["controllers"]) == ([], declared["controllers"])
    assert set(said["files"]) == set(material)
    text = yaml.safe_dump(said)
    assert [name for name, content in material.items() if content.strip() in text] == []


def test_a_controller_whose_pillar_is_not_in_order_tells_that_alone(controllers, node):
    node.fake("k8s_config.load", return_value={"errors": ["kubernetes_controller:a: no such key."]})
    assert controllers("holds")() == {"formula": controllers("formula")(), "errors": ["kubernetes_controller:a: no such key."]}


def test_the_formula_is_told_from_another_version_of_it(controllers, node, tmp_path, monkeypatch):
    monkeypatch.setitem(controllers("formula").func.__globals__["__opts__"], "extension_modules", str(tmp_path))
    (tmp_path / "states").mkdir()
    seen = [controllers("formula")()]
    for name, text in [("k8s_a.py", "1"), ("k8s_a.py", "2"), ("k8s_b.py", "2"), ("other.py", "2"), ("k8s_b.pyc", "2")]:
        (tmp_path / "states" / name).write_text(text)
        seen.append(controllers("formula")())
    assert len(set(seen[:4])) == 4
    assert set(seen[4:]) == {seen[3]}
    ours, other = {"formula": seen[-1]}, {"formula": seen[0]}
    assert controllers("behind")({"a": ours, "b": other, "c": "no such function", "d": None, "e": {"errors": []}}) == [
        "b",
        "c",
        "e",
    ]


def test_a_file_is_the_same_whatever_white_space_ends_it_and_of_whatever_type(controllers):
    mark = controllers("mark")
    assert mark("a\n") == mark(b"a") == mark(" a\n\n")
    assert mark("a") != mark("b")


# -- asking -------------------------------------------------------------------------------------------------------------


def test_who_did_not_answer_is_not_waited_for_again_and_none_is_an_answer(controllers, node):
    said = {"a": {"ret": None}, "b": {"ret": "Minion did not return. [No response]"}, "c": {}, "d": {"ret": False, "retcode": 1}}
    asked = node.fake("saltutil.cmd", return_value=said)
    assert controllers("ask")(["a", "b", "c", "d", "e"], "test.ping") == {"a": None, "b": None, "c": None, "d": False, "e": None}
    controllers("ask")(["a", "b", "c", "d", "e"], "test.ping")
    assert [call.args[0] for call in asked.call_args_list] == [["a", "b", "c", "d", "e"], ["a", "d"]]
    assert controllers("ask")(["b"], "test.ping") == {"b": None}
    assert asked.call_count == 2


def test_who_is_accepted_and_was_passed_over_is_asked_again(controllers, node, monkeypatch):
    monkeypatch.setitem(controllers("ask").func.__globals__, "PAUSE_S", 0)
    monkeypatch.setitem(controllers("ask").func.__globals__, "_keys", lambda: {"minions": ["a", "b"], "minions_pre": ["c"]})
    asked = node.fake("saltutil.cmd", side_effect=[{"a": {"ret": 1}}, {}, {"b": {"ret": 2}}])
    assert controllers("ask")(["a", "b", "c"], "test.ping") == {"a": 1, "b": 2, "c": None}
    assert [call.args[0] for call in asked.call_args_list] == [["a", "b", "c"], ["b"], ["b"]]
    monkeypatch.setitem(controllers("ask").func.__globals__, "ANSWER_S", 0)
    node.fake("saltutil.cmd", return_value={})
    assert controllers("ask")(["a"], "test.ping") == {"a": None}


def test_who_has_just_got_the_function_is_asked_again_until_he_knows_it(controllers, node, monkeypatch):
    monkeypatch.setitem(controllers("hear").func.__globals__, "PAUSE_S", 0)
    unknown, good = {"ret": "'k8s_controllers.holds' is not available."}, {"ret": {"errors": []}}
    asked = node.fake("saltutil.cmd", side_effect=[{"a": unknown, "b": good}, {"a": unknown}, {"a": good}])
    assert controllers("hear")(["a", "b"], patience_s=5) == {"a": {"errors": []}, "b": {"errors": []}}
    assert [call.args[0] for call in asked.call_args_list] == [["a", "b"], ["a"], ["a"]]
    node.fake("saltutil.cmd", return_value={"a": unknown})
    assert isinstance(controllers("hear")(["a"])["a"], str)


def test_what_could_not_take_the_modules_is_told_with_the_last_line_of_why(controllers, node):
    good, bad = {"ret": ["states.k8s_pki"]}, {"ret": "Traceback\nOSError: no space left on device"}
    answers = [{"a": good, "b": good, "c": {"ret": ""}}, {"a": good, "b": bad, "c": {"ret": ""}}]
    node.fake("saltutil.cmd", side_effect=answers)
    assert controllers("sync")(["a", "b", "c", "d"]) == [
        "c: saltutil.sync_modules failed: no answer",
        "b: saltutil.sync_states failed: OSError: no space left on device",
        "c: saltutil.sync_states failed: no answer",
    ]


# -- faults -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minion", "says"),
    [
        ("controller-1", "Its key is accepted. Let salt-minion run there and reach this master (`salt controller-1 test.ping`)."),
        ("controller-2", "Its key waits to be accepted: `salt-key -a controller-2`."),
        ("controller-3", "Its key was rejected (`salt-key -L`)."),
        (
            "controler-1",
            "this master has no key of that id (nearest: controller-1). Correct the id, or accept the key of that minion "
            "(accepted: controller-1, web-1).",
        ),
        ("zzz", "this master has no key of that id. Correct the id, or accept"),
    ],
)
def test_of_who_is_silent_it_is_told_what_the_master_knows_of_its_key(controllers, minion, says):
    said = controllers("silence")(minion, KEYS)
    assert said.startswith(f"kubernetes_controller:controllers:{minion}: the minion did not answer within 20 s")
    assert says in said


def test_nobody_who_answers_and_agrees_is_a_fault(controllers):
    answers = dict.fromkeys(NODES, {"errors": [], "controllers": NODES, "files": {}})
    assert controllers("faults")(NODES, {**answers, "controller-3": "'k8s_controllers.holds' is not available."}) == []


def test_the_same_error_of_several_is_told_once_with_their_names(controllers):
    answers = dict.fromkeys(NODES, {"errors": ["a: no such key.", "b: no such key."]})
    assert controllers("faults")(NODES, answers) == [
        "controller-1, controller-2: a: no such key.",
        "controller-1, controller-2: b: no such key.",
    ]


@pytest.mark.parametrize(
    ("theirs", "differing"),
    [
        ({**NODES, "controller-2": "10.8.0.103"}, "controller-2"),
        ({"controller-1": "10.8.0.101"}, "controller-2"),
        ({**NODES, "controller-3": "10.8.0.103"}, "controller-3"),
    ],
)
def test_who_has_other_controllers_in_his_pillar_is_a_fault(controllers, theirs, differing):
    (said,) = controllers("faults")(NODES, {"controller-1": {"errors": [], "controllers": theirs, "files": {}}})
    assert said.startswith("controller-1: kubernetes_controller:controllers is another for the master's own id ")
    assert said.endswith(f"(different: {differing}). Give both the same pillar.")


# -- delivery -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shares(tmp_path):
    """{minion: directory} of two shares with two files each, and something that is none of them."""
    found = {}
    for minion in NODES:
        directory = tmp_path / minion
        directory.mkdir()
        for name in ("a.crt", "a.key", ".new-a.key"):
            (directory / name).write_text(f"{name} of {minion}\n")
        found[minion] = str(directory)
    return found


def held(controllers, minion, **other):
    files = {name: f"{name} of {minion}" for name in ("a.crt", "a.key")} | other
    return {"errors": [], "controllers": NODES, "files": {name: controllers("mark")(text) for name, text in files.items()}}


@pytest.mark.parametrize(
    ("other", "lacking"),
    [
        ({}, []),
        ({"b.crt": "of an earlier release"}, []),
        ({"a.crt": "the one of before"}, ["a.crt"]),
    ],
)
def test_what_a_controller_lacks_is_what_the_master_gave_out_and_it_does_not_hold(controllers, shares, other, lacking):
    answers = {minion: held(controllers, minion) for minion in NODES}
    answers["controller-2"]["files"] |= {name: controllers("mark")(text) for name, text in other.items()}
    assert controllers("missing")(shares, answers) == ({"controller-2": lacking} if lacking else {})


@pytest.mark.parametrize("answer", [None, "no such function", {"errors": ["wrong"]}])
def test_who_does_not_tell_what_it_holds_lacks_all(controllers, shares, answer):
    answers = {"controller-1": held(controllers, "controller-1"), "controller-2": answer}
    assert controllers("missing")(shares, answers) == {"controller-2": ["a.crt", "a.key"]}


def test_a_share_that_is_not_made_yet_lacks_nothing(controllers, tmp_path):
    assert controllers("missing")({"controller-1": str(tmp_path / "nowhere")}, {}) == {}


def test_where_all_was_held_at_the_begin_nobody_is_asked_again(controllers, node, shares):
    answers = {minion: {"ret": held(controllers, minion)} for minion in NODES}
    asked = node.fake("saltutil.cmd", return_value=answers)
    controllers("hear")(list(NODES))
    assert controllers("undelivered")(shares) == {}
    assert asked.call_count == 1


def test_only_those_that_lack_something_are_asked_until_it_arrives(controllers, node, shares, monkeypatch):
    monkeypatch.setitem(controllers("hear").func.__globals__, "PAUSE_S", 0)
    old, new = held(controllers, "controller-2"), held(controllers, "controller-2")
    old["files"]["a.key"] = "another"
    first = {"controller-1": {"ret": held(controllers, "controller-1")}, "controller-2": {"ret": old}}
    asked = node.fake("saltutil.cmd", side_effect=[first, {"controller-2": {"ret": old}}, {"controller-2": {"ret": new}}])
    controllers("hear")(list(NODES))
    assert controllers("undelivered")(shares) == {}
    assert [call.args[0] for call in asked.call_args_list] == [list(NODES), ["controller-2"], ["controller-2"]]
    node.fake("saltutil.cmd", return_value={"controller-2": {"ret": old}})
    controllers("hear")(["controller-2"])
    assert controllers("undelivered")(shares, patience_s=0) == {"controller-2": ["a.key"]}


# -- the master's pillar cache --------------------------------------------------------------------------------------------


class Cache:
    def __init__(self, **kept):
        self.kept = kept

    def list(self, bank):
        return list(self.kept)

    def flush(self, bank, key):
        del self.kept[key]

    def fetch(self, bank, key):
        return self.kept.get(key) or {}


@pytest.fixture
def cache(controllers, node, monkeypatch):
    made = Cache()
    module = controllers("forget").func.__globals__
    monkeypatch.setitem(module, "_pillar_cache", lambda: made)
    monkeypatch.setitem(module, "__opts__", {**node.opts, "pillar_cache": True, "id": "salt_master", "pillarenv": None})
    return made


def test_only_the_asked_minions_are_taken_out_of_the_cache(controllers, cache):
    cache.kept = {"controller-1": {}, "controller-1:base": {}, "controller-10": {}, "web-1": {}}
    assert controllers("forget")(["controller-1"]) is True
    assert list(cache.kept) == ["controller-10", "web-1"]


@pytest.mark.parametrize(("cached", "outdated"), [({}, False), ({"release": "1"}, False), ({"release": "0"}, True)])
def test_a_run_that_has_the_pillar_of_before_knows_it_and_the_next_one_has_the_present_one(
    controllers, cache, node, cached, outdated
):
    cache.kept = {"salt_master": {"kubernetes_controller": cached} if cached else {}}
    node.fake("k8s_config.present_pillar", return_value={"kubernetes_controller": {"release": "1"}})
    assert controllers("outdated")() is outdated
    assert cache.kept == {}


def test_a_master_without_a_cache_is_not_looked_at(controllers):
    assert controllers("forget")(["controller-1"]) is False
    assert controllers("outdated")() is False
