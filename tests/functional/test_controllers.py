"""The states that ask the controllers before anything changes, and after it; minions are stood in for."""

import pytest

NODES = {"controller-1": "10.8.0.101", "controller-2": "10.8.0.102"}
GOOD = {"errors": [], "controllers": NODES, "files": {}}
UNKNOWN = "Passed invalid function\n'k8s_controllers.holds' is not available."
NOTHING = "Nothing was changed, on the master and on any node."


@pytest.fixture
def agreed(node, testmode):
    """Return a function: the state's answer where the controllers answer this, and what could not be synced."""

    def ask(answers, unsynced=()):
        sync = node.fake("k8s_controllers.sync", return_value=list(unsynced))
        node.fake("k8s_controllers.hear", return_value=answers)
        ret = node.state("k8s_controllers.agreed", "agreed", test=testmode, controllers=NODES)
        assert sync.called is not testmode
        assert ret.changes == {}
        return ret

    return ask


def test_controllers_that_answer_and_agree_are_named(agreed):
    ret = agreed(dict.fromkeys(NODES, GOOD))
    assert (ret.result, ret.comment) == (True, "controller-1, controller-2: answered, and the pillar is in order.")


def test_one_that_has_the_masters_modules_is_not_synced(node):
    sync = node.fake("k8s_controllers.sync")
    ours = {**GOOD, "formula": node.modules["k8s_controllers.formula"]()}
    node.fake("k8s_controllers.hear", return_value=dict.fromkeys(NODES, ours))
    assert node.state("k8s_controllers.agreed", "agreed", controllers=NODES).result is True
    assert not sync.called


def test_one_that_is_silent_is_a_failure_in_a_test_run_too(agreed):
    ret = agreed({"controller-1": GOOD, "controller-2": None})
    assert ret.result is False
    assert ret.comment.startswith("kubernetes_controller:controllers:controller-2: the minion did not answer within 20 s")
    assert ret.comment.endswith(f"\n{NOTHING}")


def test_all_that_is_wrong_is_told_at_once(agreed):
    ret = agreed({"controller-1": {"errors": ["a: no such key."]}, "controller-2": {**GOOD, "controllers": {}}})
    assert ret.result is False
    first, second, last = ret.comment.splitlines()
    assert first == "controller-1: a: no such key."
    assert second.startswith("controller-2: kubernetes_controller:controllers is another for the master's own id ")
    assert last == NOTHING


def test_one_without_the_modules_gets_them_and_a_test_run_says_so(agreed, testmode):
    ret = agreed({"controller-1": GOOD, "controller-2": UNKNOWN})
    assert ret.result is (None if testmode else False)  # of a real run it has them by now
    if testmode:
        assert ret.comment == "Not knowable yet: controller-2 would get the formula's modules first."
    else:
        assert ret.comment == f"controller-2: 'k8s_controllers.holds' is not available.\n{NOTHING}"


@pytest.mark.parametrize("testmode", [False], indirect=True)
def test_one_that_cannot_take_the_modules_tells_why(agreed):
    ret = agreed({"controller-1": GOOD, "controller-2": UNKNOWN}, unsynced=["controller-2: saltutil.sync_states failed: full"])
    assert ret.comment == f"controller-2: saltutil.sync_states failed: full\n{NOTHING}"


@pytest.mark.parametrize("lacking", [{}, {"controller-2": [f"{number}.crt" for number in range(7)]}])
def test_what_did_not_arrive_is_a_failure_with_a_way_out(node, testmode, lacking):
    asked = node.fake("k8s_controllers.undelivered", return_value=lacking)
    node.fake("k8s_controllers.known", return_value=[])
    ret = node.state("k8s_controllers.delivered", "/srv/pki", test=testmode, controllers=list(NODES), key="pki")
    shares = {minion: f"/srv/pki/hosts/{minion}/pki" for minion in NODES}
    asked.assert_called_once_with(shares, **({"patience_s": 0} if testmode else {}))
    assert ret.changes == {}
    some = "0.crt, 1.crt, 2.crt, 3.crt, 4.crt and 2 more"
    if not lacking:
        assert (ret.result, ret.comment) == (True, "controller-1, controller-2: hold what the master handed out.")
    elif testmode:
        assert (ret.result, ret.comment) == (None, f"Does not hold yet what the master handed out: controller-2 ({some}).")
    else:
        assert ret.result is False
        assert ret.comment.startswith(f"controller-2: pillar pki has not {some} as in /srv/pki/hosts/controller-2/pki.\n")
        assert "have `file_tree` with root_dir /srv/pki in its ext_pillar" in ret.comment
        assert ret.comment.endswith("Then run this again.")


@pytest.mark.parametrize("known", [True, False])
def test_what_is_handed_out_already_and_did_not_arrive_fails_a_test_run_too(node, testmode, pki, known):
    node.fake("saltutil.cmd", return_value={})
    node.fake("k8s_controllers.undelivered").side_effect = lambda shares, patience_s=0: missing(shares, held)
    missing, ours = node.modules["k8s_controllers.missing"], node.modules["k8s_controllers.formula"]()
    held = {minion: {**GOOD, "formula": ours if known else "another"} for minion in NODES}
    node.compiler.state_con["k8s_controllers_heard"] = held
    arguments = {"controllers": list(NODES), "key": "kubernetes_controller_pki"}
    directory = pki()["name"]
    ret = node.state("k8s_controllers.delivered", directory, test=testmode, **arguments)
    assert (ret.result, ret.changes) == (None if testmode and not known else False, {})
    assert ("What was made did not reach these nodes" in ret.comment) is (ret.result is False)


@pytest.mark.parametrize("testmode", [True], indirect=True)
def test_what_this_run_would_exchange_first_is_not_known_to_arrive(node, testmode, pki):
    directory, share = pki()["name"], "hosts/controller-1/kubernetes_controller_pki"
    other = {"endpoint": {"host": "k8s.example.com"}}
    assert node.state("k8s_pki.managed", test=True, **pki(other)).changes
    lacking = {"controller-1": ["apiserver.crt", "apiserver.key"]}
    node.fake("k8s_controllers.undelivered", return_value=lacking)
    node.fake("k8s_controllers.known", return_value=["controller-1"])
    deliver = {"controllers": list(NODES), "key": "kubernetes_controller_pki"}
    assert node.state("k8s_controllers.delivered", directory, test=True, **deliver).result is None
    lacking["controller-1"].append("scheduler.crt")
    ret = node.state("k8s_controllers.delivered", directory, test=True, **deliver)
    assert ret.result is False
    assert ret.comment.startswith(
        f"controller-1: pillar kubernetes_controller_pki has not scheduler.crt as in {directory}/{share}."
    )


# -- what a wrong pillar did to the master's files, the right one finds undone -----------------------------------------


@pytest.fixture
def pki(node, resolve, tmp_path):
    """Return a function: the arguments of the state for two controllers, whose files are below tmp_path."""

    def declared(*layers):
        two = {"controllers": {"controller-3": None}, "pki": {"directory": str(tmp_path / "pki")}}
        return {"name": str(tmp_path / "pki"), "pki": resolve(two, *layers, node=None)["pki"]}

    node.state("k8s_pki.managed", **declared())
    return declared


WRONG = {
    "a mistyped minion id": {"controllers": {"controller-2": None, "controler-2": "10.8.0.102"}},
    "a component of others": {"scheduler": {"enabled": False}},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_pairs_that_were_withdrawn_are_taken_back(node, apply, testmode, pki, tmp_path, helpers, wrong):
    hosts = tmp_path / "pki/hosts"
    before = {path: path.read_text() for path in hosts.rglob("*") if path.is_file()}
    node.state("k8s_pki.managed", **pki(WRONG[wrong]))
    gone = [path for path in before if not path.exists()]
    assert gone
    ret = apply(testmode, node, "k8s_pki.managed", **pki())
    pairs = {path for path in gone if "-ca" not in path.name and path.suffix in (".crt", ".key") and "service" not in path.name}
    back = {path for path, change in ret.changes.items() if change["old"] == "declared again; taken back"}
    assert back == {str(path) for path in pairs}
    assert f"{len(back)} files {'would be' if testmode else 'were'} taken back" in ret.comment
    if not testmode:
        assert {path: path.read_text() for path in before} == before
        withdrawn = tmp_path / "pki/kept/withdrawn/hosts"
        assert not [path for path in withdrawn.rglob("scheduler*") if path.is_file() and path.parts[-3] != "controler-2"]


def test_a_pair_that_does_not_fit_any_more_is_made_anew_and_kept(node, apply, testmode, pki, tmp_path):
    node.state("k8s_pki.managed", **pki(WRONG["a component of others"]))
    other = {"pki": {"certificates": {"scheduler": {"common_name": "other"}}}}
    (former,) = (tmp_path / "pki/kept/withdrawn/hosts/controller-1").rglob("scheduler.key")
    text = former.read_text()
    ret = apply(testmode, node, "k8s_pki.managed", **pki(other))
    (path,) = (path for path in ret.changes if path.endswith("controller-1/kubernetes_controller_pki/scheduler.key"))
    assert ret.changes[path]["old"] == "missing"
    if not testmode:
        kept = [one for one in (tmp_path / "pki/kept").rglob("scheduler.key") if one.read_text() == text]
        assert kept


@pytest.mark.parametrize("part", ["key", "crt"])
def test_a_run_that_was_cut_off_while_it_took_a_pair_back_is_finished(node, pki, tmp_path, part):
    share = tmp_path / "pki/hosts/controller-1/kubernetes_controller_pki"
    before = (share / "scheduler.crt").read_text()
    node.state("k8s_pki.managed", **pki(WRONG["a component of others"]))
    (former,) = (tmp_path / "pki/kept/withdrawn/hosts/controller-1").rglob("scheduler.key")
    if part == "key":
        (share / "scheduler.key").write_text(former.read_text())
        former.unlink()
    ret = node.state("k8s_pki.managed", **pki())
    assert ret.result is True
    assert (share / "scheduler.crt").read_text() == before
    again = node.state("k8s_pki.managed", **pki())
    assert (again.result, again.changes) == (True, {})
