"""
The formula on a real salt-master and a minion of it, both on the loopback (pytest-salt-factories).

What is applied here touches nothing but the pytest directory: certificates on the master, and phases that only look.
"""

import json

import pytest
import yaml

MINION = "controller-1"
DEPLOY, PKI = ("kubernetes_controller.orchestrate.deploy", "kubernetes_controller.orchestrate.pki")
UNKNOWABLE = "no modules of this version of the formula. They are synced by the first real run, or now by"


@pytest.fixture(scope="session")
def salt_factories_config(tmp_path_factory):
    return {"root_dir": tmp_path_factory.mktemp("salt")}


class Salted:
    """A master, its minion, and what an operator does with them."""

    def __init__(self, master, directory):
        self.directory, self.pki = directory, directory / "pki"
        self._salt, self._run = master.salt_cli(timeout=120), master.salt_run_cli(timeout=120)
        self.declared = {
            "controllers": {MINION: "127.0.0.1"},
            "interface": "lo",
            "etcd": {"managed": True, "conf_dir": f"{directory}/node/etcd", "data_dir": f"{directory}/node/data"},
            "pki": {"directory": str(self.pki)},
            "conf_dir": f"{directory}/node/kubernetes",
            "admin": {"kubeconfig": f"{directory}/admin/config"},
        }

    def pillar(self, declared):
        """Give master and minion this below kubernetes_controller; None: a pillar without that."""
        text = yaml.safe_dump({} if declared is None else {"kubernetes_controller": declared})
        (self.directory / "pillar/declared.sls").write_text(f"#!yaml\n{text}")

    def apply(self, sls, *args):
        """Apply an SLS on the minion; return its states, {ID: state}."""
        return self._states(self._salt.run("state.apply", sls, *args, minion_tgt=MINION).data)

    def orchestrate(self, sls, *args):
        """Run an orchestration on the master; return its states, {ID: state}, and its exit status."""
        done = self._run.run("state.orchestrate", sls, *args)
        found = done.data if isinstance(done.data, dict) else json.loads(done.stdout[done.stdout.index("{") :])
        (answer,) = found["data"].values()
        return self._states(answer), done.returncode

    def functions(self):
        """Return the functions of the formula that the minion has."""
        return self._salt.run("sys.list_functions", "k8s_config", minion_tgt=MINION).data

    @staticmethod
    def _states(answer):
        assert isinstance(answer, dict), answer
        assert "Traceback" not in json.dumps(answer), answer
        return {state["__id__"]: state for state in answer.values()}


@pytest.fixture(scope="module")
def directory(tmp_path_factory, helpers):
    directory = tmp_path_factory.mktemp("salted")
    for name in ("formula", "pillar", "pki"):
        (directory / name).mkdir()
    # Links: a file root as wide as the checkout would make Salt walk all that lies in it.
    for part in ("kubernetes_controller", "_modules", "_states", "_runners"):
        (directory / "formula" / part).symlink_to(helpers.root / part)
    (directory / "pillar/top.sls").write_text(yaml.safe_dump({"base": {"*": ["declared"]}}))
    return directory


@pytest.fixture(scope="module")
def master(salt_factories, directory):
    overrides = {
        "file_roots": {"base": [str(directory / "formula")]},
        "pillar_roots": {"base": [str(directory / "pillar")]},
        "runner_dirs": [str(directory / "formula/_runners")],
        "ext_pillar": [{"file_tree": {"root_dir": str(directory / "pki"), "keep_newline": True}}],
    }
    master = salt_factories.salt_master_daemon("salt-master", overrides=overrides)
    with master.started():
        yield master


@pytest.fixture(scope="module")
def _salted(master, directory):
    """A minion that was never synced: it may not do so by itself when it starts."""
    (directory / "pillar/declared.sls").write_text("#!yaml\n{}\n")
    minion = master.salt_minion_daemon(MINION, overrides={"enable_fqdns_grains": False, "enable_gpu_grains": False})
    with minion.started():
        yield Salted(master, directory)


@pytest.fixture
def salted(_salted):
    _salted.pillar(_salted.declared)
    return _salted


def said(states):
    """Return the comments of all states, and the names, as test runs put the sentence there."""
    return " ".join(" ".join(f"{state['name']} {state['comment']}" for state in states.values()).split())


# -- nothing is made, and nothing is synced yet ------------------------------------------------------------------------

BAD = {
    "no pillar": (
        None,
        "Pillar has no key `kubernetes_controller` for the master's own minion id",
    ),
    "no controllers": (
        {"interface": "lo"},
        "kubernetes_controller:controllers: empty. List each controller as `minion-id: address`.",
    ),
    "an unknown key": (
        {"controllers": {MINION: "127.0.0.1"}, "interfase": "lo"},
        "kubernetes_controller:interfase: no such key (nearest: interface).",
    ),
}


@pytest.mark.parametrize("mode", [[], ["test=True"]], ids=["real", "testmode"])
@pytest.mark.parametrize("sls", [DEPLOY, PKI])
@pytest.mark.parametrize("kind", BAD)
def test_a_master_whose_pillar_lacks_something_is_told_in_one_sentence(salted, helpers, kind, sls, mode):
    declared, sentence = BAD[kind]
    salted.pillar(declared)
    states, status = salted.orchestrate(sls, *mode)
    if mode and UNKNOWABLE in said(states):  # the first run of all: the master was not synced either
        assert not any(state["changes"] for state in states.values())
    else:
        assert status != 0
        assert said(states).count(sentence) == 1, said(states)
    assert helpers.tree(salted.pki) == {}


def test_a_test_run_of_the_rollout_changes_nothing_and_names_the_minion_that_was_never_synced(salted, helpers):
    salted.orchestrate(PKI, "test=True")
    states, _ = salted.orchestrate(DEPLOY, "test=True")
    assert f"{MINION}: {UNKNOWABLE} `salt -L {MINION} saltutil.sync_all`" in said(states)
    assert helpers.tree(salted.pki) == {}
    assert salted.functions() == []


def test_a_test_run_on_a_minion_that_was_never_synced_changes_nothing_and_says_what_to_run(salted):
    states = salted.apply("kubernetes_controller.encryption", "test=True")
    assert f"{UNKNOWABLE} `salt {MINION} saltutil.sync_all`" in said(states)
    assert not any(state["changes"] for state in states.values())
    assert salted.functions() == []


def test_a_minion_that_was_never_synced_gets_the_modules_by_state_apply_and_the_states_of_the_same_run_use_them(salted):
    sls = "kubernetes_controller.encryption"
    states = salted.apply(sls)
    assert all(state["result"] for state in states.values()), said(states)
    assert f"{sls} is applied with them" in states
    assert "k8s_config.load" in salted.functions()
    again = salted.apply(sls)
    assert list(again) == ["Every stored object is under the present key"]
    assert not any(state["changes"] for state in again.values())


# -- certificates -------------------------------------------------------------------------------------------------------

CERTIFICATES = "The certificates of the cluster are as declared"


@pytest.fixture
def synced(salted):
    """The master has the modules and states of the formula, as after its first run."""
    salted.orchestrate("kubernetes_controller.orchestrate.pki", "pillar={kubernetes_controller: {controllers: null}}")
    return salted


def test_a_test_run_says_what_would_be_made_and_makes_nothing(synced, helpers):
    states, status = synced.orchestrate(PKI, "test=True")
    assert status == 0
    assert states[CERTIFICATES]["result"] is None
    assert str(synced.pki / "authorities/kubernetes-ca.key") in states[CERTIFICATES]["changes"]
    assert helpers.tree(synced.pki) == {}


def test_certificates_are_made_once(synced, helpers):
    states, status = synced.orchestrate(PKI)
    assert status == 0, said(states)
    assert states[CERTIFICATES]["result"] is True
    made = helpers.tree(synced.pki)
    assert set(states[CERTIFICATES]["changes"]) <= {str(synced.pki), *made}
    for mode in ([], ["test=True"]):
        again, status = synced.orchestrate(PKI, *mode)
        assert (status, again[CERTIFICATES]["result"], again[CERTIFICATES]["changes"]) == (0, True, {}), said(again)
        assert helpers.tree(synced.pki) == made
