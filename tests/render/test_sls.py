"""Every SLS through Salt's real renderers, for many clusters and nodes, ready ones and ones that are not."""

import json
import re
import socket
from pathlib import Path

import pytest
import yaml

CLUSTERS = yaml.safe_load(Path(__file__).with_name("clusters.yaml").read_text())
SLS = {
    path.relative_to(path.parents[1]).with_suffix("") for path in Path(__file__).parents[2].glob("kubernetes_controller/*.sls")
}
SLS = sorted(str(name).replace("/", ".").removesuffix(".init") for name in SLS)
ORCHESTRATIONS = ("deploy", "controllers", "pki", "renew", "rotate_ca", "rotate_encryption", "rotate_service_account")
ORCHESTRATE = [f"kubernetes_controller.orchestrate.{name}" for name in ORCHESTRATIONS]
NO_ANSWER = "Minion did not return. [No response]"
LIVE = {"serves": True, "providers": {"secrets": [["secretbox", "the-former-key"], ["identity", ""]]}}
RESERVED = {"include", "extend"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refused(*args, **kw):
        raise AssertionError("rendering asked the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "create_connection", refused)


@pytest.fixture(scope="module")
def _kept():
    """Minions that were made already; each test gives them another pillar."""
    return {}


@pytest.fixture
def rendering(new_minion, _kept, declared, helpers):
    """Return a function: a minion (or the master) with this pillar, whose interface has its address."""
    used = []

    def made(
        layer=None,
        name="controller-1",
        pillar=None,
        serving=(),
        stale=(),
        silent=(),
        live=(),
        leads=(),
        runs=None,
        ending=None,
        **kw,
    ):
        key = (name, *sorted(kw.items()))
        if key not in _kept:
            _kept[key] = new_minion(name=name, **kw)
        one = _kept[key]
        used.append(one)
        if pillar is None:
            pillar = {"kubernetes_controller": helpers.over(declared, layer or {})}
        one.reset(pillar)
        addresses = pillar.get("kubernetes_controller", {}).get("controllers", {})
        facts = {"inet": [{"address": addresses.get(name, "10.9.9.9") or "10.9.9.9"}]}
        one.fake("network.interfaces", return_value={"lo": {"inet": [{"address": "127.0.0.1"}]}, "tap0": facts})
        told = {
            "service.status": lambda node: NO_ANSWER if node in silent else node in serving,
            "file.is_link": lambda node: NO_ANSWER if node in silent else node in live,
            "k8s_generation.release": lambda node: runs,
            "k8s_certificate.expiry": lambda node: ending or {},
            "k8s_etcdctl.leads": lambda node: node in leads,
            "k8s_encryption.live": lambda node: LIVE if node in serving else {"serves": False},
            "k8s_config.load": lambda node: {"stale": True, "errors": []} if node in stale else {"release": "1.37.2"},
        }
        nodes = [node for node, address in addresses.items() if address]
        one.asked = one.fake("saltutil.cmd", lambda tgt, fun, **kw: {node: {"ret": told[fun](node)} for node in nodes})
        return one

    yield made
    for one in used:
        one.reset({"something": "else"})


def nodes_of(cluster):
    changed = cluster["pillar"].get("controllers", {})
    return [node for node in ("controller-1", "controller-2", "controller-3") if changed.get(node, "kept")]


CASES = [(name, node, False) for name, cluster in CLUSTERS.items() for node in nodes_of(cluster)[::2]]
CASES += [(name, "controller-1", True) for name in CLUSTERS]


def assert_well_formed(sls, high):
    assert isinstance(high, dict) or high is None, sls
    for state_id, body in (high or {}).items():
        if state_id in RESERVED:
            continue
        assert re.match(r"\S+ \S+ \S+", state_id), f"{sls}: {state_id!r} is not a sentence"
        ((function, arguments),) = body.items()
        assert "." in function, f"{sls}: {state_id}"
        names = [next(iter(argument)) for argument in arguments]
        assert len(names) == len(set(names)), f"{sls}: {state_id}"


@pytest.mark.parametrize(("cluster", "node", "test"), CASES, ids=lambda word: str(word).replace(" ", "_"))
def test_every_sls_renders_for_every_cluster_and_node(rendering, cluster, node, test):
    one, said = rendering(CLUSTERS[cluster]["pillar"], name=node, test=test), ""
    ids = []
    for sls in SLS:
        text, high = one.render(sls)
        said += text
        assert_well_formed(sls, high)
        ids += [state_id for state_id in high or {} if state_id not in RESERVED]
    assert sorted(ids) == sorted(set(ids))
    started = [state_id.removesuffix(" runs as declared") for state_id in ids if state_id.endswith(" runs as declared")]
    assert sorted(started) == sorted(CLUSTERS[cluster]["components"])
    assert [words for words in CLUSTERS[cluster].get("absent", []) if words in said] == []


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda word: word.replace(" ", "_"))
def test_all_of_a_node_compiles_with_requisites_that_are_there(rendering, cluster):
    one = rendering(CLUSTERS[cluster]["pillar"])
    chunks, errors = one.low("kubernetes_controller")
    assert errors == []
    order = [chunk["__id__"] for chunk in chunks if chunk["state"] == "k8s_component"]
    assert [state_id.removesuffix(" runs as declared") for state_id in order] == CLUSTERS[cluster]["components"]
    assert chunks[-1]["state"] == "k8s_health"
    assert chunks[-1]["mended_before"] is True
    for chunk in chunks:
        for requisite in chunk.get("require", []):
            ((kind, name),) = requisite.items()
            there = [c for c in chunks if (c["state"], c["__id__"]) == (kind, name) or (kind, c["__sls__"]) == ("sls", name)]
            assert there, f"{chunk['__id__']} requires {requisite}, which is not there"


@pytest.mark.parametrize("sls", SLS)
def test_each_sls_can_be_applied_by_itself(rendering, sls):
    chunks, errors = rendering().low(sls)
    assert errors == []
    assert chunks


def test_an_account_that_is_there_is_left_as_it_is_and_only_a_missing_one_is_made(rendering, testmode):
    one = rendering({"apiserver": {"user": "operator", "group": "operators"}})
    facts = {"uid": 1000, "gid": 100, "groups": ["users"], "home": "/home/operator", "shell": "/bin/bash", "fullname": "O"}
    accounts = {"operator": {"name": "operator", **facts}}
    one.fake("user.info", lambda name, **kw: dict(accounts.get(name, {})))
    one.fake("user.add", lambda name, **kw: accounts.update({name: {"name": name, **facts, "shell": kw["shell"]}}) or True)
    for change in ("chshell", "chhome", "chgid", "chgroups"):
        one.fake(f"user.{change}", AssertionError(change))
    for again in (False, not testmode):
        low, errors = one.low("kubernetes_controller.prepare")
        assert errors == []
        chunks = {chunk["name"]: chunk for chunk in low if chunk["state"] == "user"}
        assert list(chunks) == ([] if again else ["etcd", "kube-controller-manager", "kube-scheduler"])
        for name, chunk in chunks.items():
            arguments = {key: value for key, value in chunk.items() if key not in ("name", "fun", "state", "require")}
            ret = one.state("user.present", name, test=testmode, **arguments)
            assert ret.result is (None if testmode else True), (name, ret)
            assert bool(ret.changes) is not testmode, (name, ret)
    assert accounts["operator"] == {"name": "operator", **facts}
    assert len(accounts) == (1 if testmode else 4)


def test_no_state_has_a_condition_that_makes_salt_load_every_state_module(rendering):
    chunks, _ = rendering().low("kubernetes_controller")
    assert [chunk["__id__"] for chunk in chunks if {"unless", "onlyif", "creates"} & set(chunk)] == []


@pytest.mark.parametrize(
    ("cluster", "serving", "test"),
    [(name, serving, False) for name in CLUSTERS for serving in ((), ("controller-1",))]
    + [("external etcd", serving, True) for serving in ((), ("controller-1",))],
    ids=lambda word: "_".join(word.split()) if isinstance(word, str) else str(bool(word)),
)
def test_the_orchestration_renders_on_the_master(rendering, cluster, serving, test):
    one, declared = rendering(CLUSTERS[cluster]["pillar"], master=True, serving=serving, test=test), CLUSTERS[cluster]
    for sls in ORCHESTRATE:
        assert_well_formed(sls, one.render(sls)[1])
    text, high = one.render(ORCHESTRATE[0])
    assert ("The operator has a kubeconfig" in text) is (declared["pillar"].get("admin") != {"kubeconfig": ""})
    states = {
        state_id: body["salt.state"]
        for state_id, body in high.items()
        if "salt.state" in (body if isinstance(body, dict) else {})
    }
    flat = {state_id: {k: v for argument in arguments for k, v in argument.items()} for state_id, arguments in states.items()}
    assert {name for arguments in flat.values() for name in arguments["tgt"]} == set(nodes_of(declared))
    for state_id, arguments in flat.items():
        assert arguments["expect_minions"] is True, state_id
        for name in [arguments["sls"]] if isinstance(arguments["sls"], str) else arguments["sls"]:
            assert name in SLS, f"{state_id}: there is no SLS {name}"
    rolled = [arguments["tgt"] for arguments in flat.values() if "kubernetes_controller.scheduler" in arguments["sls"]]
    order = sorted(nodes_of(declared), key=lambda node: node in serving)
    assert rolled == ([[node] for node in order] if serving else [])
    _, errors = one.low(ORCHESTRATE[0])
    assert errors == []


@pytest.mark.parametrize(
    ("serving", "test", "stale", "last"),
    [
        ((), False, (), "All controllers are set up at once, as nothing serves yet"),
        (("controller-1",), False, (), "Every component of every controller serves"),
        (("controller-1",), True, (), "Every component of every controller serves"),
        (("controller-1",), True, ("controller-2",), "What the controllers would change is not knowable yet"),
    ],
    ids=["idle", "serving", "test run", "unsynced test run"],
)
@pytest.mark.parametrize("sls", ["deploy", "renew"])
def test_the_operators_kubeconfig_waits_for_the_end_of_the_rollout(rendering, serving, test, stale, last, sls):
    one = rendering(master=True, serving=serving, test=test, stale=stale)
    chunks, errors = one.low(f"kubernetes_controller.orchestrate.{sls}")
    assert errors == []
    (chunk,) = (chunk for chunk in chunks if chunk["state"] == "k8s_kubeconfig")
    required = {name for requisite in chunk["require"] for name in requisite.values()}
    assert required == {"kubernetes_controller.orchestrate.pki", last}
    assert last in [chunk["__id__"] for chunk in chunks]
    assert chunk["keep"] == "/srv/kubernetes_controller/pki"
    assert chunk["mended_before"] is True


def test_only_behind_steps_that_mend_does_a_test_run_not_know_whether_a_component_serves(rendering, rotation, declared):
    key = "kubernetes_controller_mended_before"
    chunks, _ = rendering(master=True, serving=NODES, test=True).low(ORCHESTRATE[0])
    (last,) = (chunk for chunk in chunks if chunk.get("sls") == "kubernetes_controller.health")
    assert last["pillar"][key] is True
    first = next(arguments for _, arguments in rotation(authority="etcd").values())
    assert key not in first.get("pillar", {})
    for pillar, mended in (({}, False), ({key: True}, True)):
        one = rendering(pillar={"kubernetes_controller": declared, **pillar})
        (chunk,), _ = one.low("kubernetes_controller.health")
        assert chunk["mended_before"] is mended


def test_a_node_that_does_not_answer_may_serve(rendering):
    for silent in ([], ["controller-2"], ["controller-1", "controller-2", "controller-3"]):
        text, _ = rendering(master=True, silent=silent).render(ORCHESTRATE[0])
        assert ("All controllers are set up at once" in text) is (not silent)
        assert ("passed its rehearsal" in text) is bool(silent)


NODES = ("controller-1", "controller-2", "controller-3")


def order_of(one, phase):
    chunks, errors = one.low("kubernetes_controller.orchestrate.deploy")
    assert errors == []
    return [chunk["tgt"] for chunk in chunks if re.match(rf"{phase}\b.* of controller-", chunk["__id__"])]


def test_what_does_not_serve_is_repaired_first_and_the_leader_of_etcd_goes_last(rendering):
    one = rendering({"etcd": {"managed": True}}, master=True, serving=["controller-1", "controller-2"], leads=["controller-1"])
    assert order_of(one, "etcd") == [["controller-3"], ["controller-2"], ["controller-1"]]
    assert order_of(one, "apiserver") == [["controller-3"], ["controller-1"], ["controller-2"]]
    one = rendering({"etcd": {"managed": True}}, master=True, serving=NODES)
    assert order_of(one, "etcd") == order_of(one, "apiserver") == [[node] for node in NODES]


@pytest.mark.parametrize(("runs", "first"), [("1.38.0", "controller_manager"), ("1.37.3", "apiserver"), ("1.36.3", "apiserver")])
def test_api_servers_go_first_but_last_on_the_way_back_over_a_minor_release(rendering, runs, first):
    chunks, errors = rendering(master=True, serving=NODES, runs=runs).low(ORCHESTRATE[0])
    assert errors == []
    names = [chunk["__id__"].split(", ")[0].split(" of ")[0] for chunk in chunks if " of controller-" in chunk["__id__"]]
    assert list(dict.fromkeys(names)) == ["etcd", *sorted(["apiserver", "controller_manager"], key=lambda name: name != first)]


def test_a_dead_api_server_goes_first_on_the_way_back_too(rendering):
    one = rendering(master=True, serving=NODES[1:], runs="1.38.0")
    ids = [chunk["__id__"] for chunk in one.low(ORCHESTRATE[0])[0] if " of controller-1" in chunk["__id__"]]
    assert [name.split(",")[0].split(" of ")[0] for name in ids] == ["etcd", "apiserver", "controller_manager"]


def test_where_the_cluster_is_down_all_rehearse_before_all_are_repaired_at_once(rendering):
    chunks, errors = rendering(master=True, live=["controller-2"]).low(ORCHESTRATE[0])
    assert errors == []
    ids = [chunk["__id__"] for chunk in chunks if chunk["state"] == "salt" and chunk["fun"] == "state"]
    assert ids == [
        "What is declared for every controller fits together",
        "What is declared for every controller passed its rehearsal",
        "All controllers are set up at once, as nothing serves yet",
    ]


LEAF = "/srv/kubernetes_controller/pki/hosts/controller-1/kubernetes_controller_pki/apiserver.crt"


@pytest.mark.parametrize(
    ("found", "ending", "mode"),
    [
        ({}, {}, "manual"),
        ({LEAF: "12 days left"}, {}, "automatic"),
        ({}, {"kube-apiserver": {"tls.crt": "12 days"}}, "automatic"),
        ({}, {"kube-apiserver": {"client-ca.crt": "12 days"}}, "manual"),
        ({}, {"kube-apiserver": {"own.pem": "no certificate that can be read"}}, "manual"),
        ({"/srv/signer-ca.key": "declared no more; kept and removed"}, {}, "manual"),
    ],
    ids=["nothing due", "due", "renewed but not there yet", "a CA ends", "one is broken", "a share shrinks"],
)
def test_a_scheduled_renewal_promotes_only_for_what_it_renews_where_the_mode_is_manual(
    rendering, declared, helpers, found, ending, mode
):
    manual = helpers.over(declared, {"rollout": {"mode": "manual"}})
    for scheduled, expected in ((True, mode), (False, "automatic")):
        pillar = {"kubernetes_controller": manual, "scheduled": scheduled}
        one = rendering(pillar=pillar, master=True, serving=NODES, ending=ending)
        one.fake("k8s_pki.differences", return_value=found)
        chunks, errors = one.low("kubernetes_controller.orchestrate.renew")
        assert errors == []
        modes = {chunk["pillar"]["kubernetes_controller"]["rollout"]["mode"] for chunk in chunks if "pillar" in chunk}
        assert modes == {expected}


def told_to_exist(one, sls):
    """Return what each state of an orchestration is told of a cluster that is there already."""
    chunks, errors = one.low(f"kubernetes_controller.orchestrate.{sls}")
    assert errors == []
    return {chunk["exists"] for chunk in chunks if (chunk["state"], chunk["fun"]) == ("k8s_pki", "managed")}


@pytest.mark.parametrize("sls", ["pki", "renew", "deploy"])
@pytest.mark.parametrize(
    ("live", "silent", "says"),
    [
        ([], [], ""),
        (
            [],
            ["controller-2"],
            "controller-2 did not answer whether kube-apiserver is live there (a new cluster needs all minions)",
        ),
        (
            ["controller-1", "controller-3"],
            [],
            "kube-apiserver of this formula is live on controller-1, controller-3 (/var/lib/kubernetes/live)",
        ),
        (
            ["controller-1"],
            ["controller-2"],
            "kube-apiserver of this formula is live on controller-1 (/var/lib/kubernetes/live), and controller-2 did not answer",
        ),
        (
            [],
            ["controller-1", "controller-2", "controller-3"],
            "controller-1, controller-2, controller-3 did not answer whether kube-apiserver is live there "
            "(a new cluster needs all minions)",
        ),
    ],
)
def test_a_master_without_a_directory_asks_whether_the_cluster_is_there(rendering, tmp_path, sls, live, silent, says):
    layer = {"pki": {"directory": str(tmp_path / "pki")}}
    assert told_to_exist(rendering(layer, master=True, live=live, silent=silent), sls) == {says}


def test_what_somebody_else_installed_can_be_adopted_with_new_or_brought_cas(rendering, tmp_path):
    """Its API server serves, but nothing of the formula is live."""
    layer = {"pki": {"directory": str(tmp_path / "pki")}}
    nodes = ["controller-1", "controller-2", "controller-3"]
    assert told_to_exist(rendering(layer, master=True, serving=nodes), "deploy") == {""}


@pytest.mark.parametrize("there", ["authorities/kubernetes-ca.crt", "hosts/controller-1/kubernetes_controller_pki/ca.crt"])
def test_a_master_that_has_a_directory_goes_by_it(rendering, tmp_path, there):
    (tmp_path / there).parent.mkdir(parents=True)
    (tmp_path / there).touch()
    one = rendering({"pki": {"directory": str(tmp_path)}}, master=True, live=["controller-1"])
    assert told_to_exist(one, "renew") == {""}


@pytest.mark.parametrize("test", [False, True], ids=["real", "testmode"])
@pytest.mark.parametrize("sls", [*SLS, *ORCHESTRATE])
def test_a_node_without_the_modules_is_synced_first_or_says_so(rendering, sls, test):
    one = rendering(synced=False, test=test, master="orchestrate" in sls)
    _, high = one.render(sls)
    assert_well_formed(sls, high)
    *syncs, (_, last) = high.items()
    assert syncs
    assert all(next(iter(body)).startswith("saltutil.sync_") for _, body in syncs)
    ((function, arguments),) = last.items()
    if test:
        assert not function.startswith("k8s_")
        assert "Not knowable yet" in str(arguments)
        assert "saltutil.sync_all" in str(arguments)
    else:
        assert function == "k8s_sls.applied"
        assert {"name": sls} in arguments
        required = next(argument["require"] for argument in arguments if "require" in argument)
        assert required == [{"saltutil": state_id} for state_id, _ in syncs]


@pytest.mark.parametrize("sls", [*SLS, *ORCHESTRATE])
def test_modules_of_another_version_are_synced_too_but_only_once(rendering, defaults, declared, sls):
    master = "orchestrate" in sls
    one = rendering(master=master)
    older = yaml.safe_dump({**defaults, "version": "9.9.9"})
    one.fake("cp.get_file_str", return_value=older)
    assert next(iter(next(iter(one.render(sls)[1].values())))) == "saltutil.sync_modules"
    one = rendering(master=master, pillar={"kubernetes_controller": declared, "kubernetes_controller_synced": True})
    one.fake("cp.get_file_str", return_value=older)
    ((_, body),) = one.render(sls)[1].items()
    assert list(body) == ["test.configurable_test_state"]


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ({"apiserver": {"setings": {}}}, "kubernetes_controller:apiserver:setings: no such key (nearest: settings)."),
        ({"release": 'a "b": {{ c }} \\ d'}, "is not a release"),
        ({"interface": []}, "kubernetes_controller:interface: expected a string"),
        (None, "Pillar has no key `kubernetes_controller` for "),
    ],
)
@pytest.mark.parametrize(("sls", "test"), [*((sls, False) for sls in [*SLS, *ORCHESTRATE]), (SLS[0], True)])
def test_a_broken_pillar_is_one_failing_state_that_says_why(rendering, sls, layer, says, test):
    pillar = {"other": "key"} if layer is None else None
    _, high = rendering(layer, pillar=pillar, test=test, master="orchestrate" in sls).render(sls)
    ((state_id, body),) = high.items()
    assert_well_formed(sls, high)
    ((function, arguments),) = body.items()
    assert function == "test.configurable_test_state"
    assert says in next(argument["comment"] for argument in arguments if "comment" in argument)


def test_a_broken_pillar_fails_the_whole_node_once_per_sls_without_clashes(rendering):
    chunks, errors = rendering({"nonsense": 1}).low("kubernetes_controller")
    assert errors == []
    assert {chunk["fun"] for chunk in chunks} == {"configurable_test_state"}


def test_no_sls_renders_a_secret(rendering, declared, material):
    pillar = {"kubernetes_controller": declared, "kubernetes_controller_pki": material}
    said = ""
    for name in ("controller-1", "controller-2"):
        one = rendering(name=name, pillar=pillar)
        said += "".join(one.render(sls)[0] for sls in SLS) + json.dumps(one.low("kubernetes_controller")[0], default=str)
    one = rendering(pillar=pillar, master=True, serving=("controller-1",))
    said += "".join(one.render(sls)[0] for sls in ORCHESTRATE)
    assert "kubernetes_controller_pki" in said
    for name, text in material.items():
        assert not [line for line in text.splitlines() if "-----" not in line and line in said], name


@pytest.fixture
def rotation(rendering, tmp_path):
    """Return a function: {ID: (function, arguments)} of the rotation of a CA, on a master whose files are below tmp_path."""

    def rendered(*, test=False, **pillar):
        one = rendering({"pki": {"directory": str(tmp_path)}}, master=True, test=test)
        one.opts["pillar"].update(pillar)
        _, high = one.render("kubernetes_controller.orchestrate.rotate_ca")
        assert_well_formed("kubernetes_controller.orchestrate.rotate_ca", high)
        found = {}
        for state_id, body in high.items():
            if state_id in RESERVED:
                assert body == ["kubernetes_controller.orchestrate.controllers"]
                continue
            ((function, arguments),) = body.items()
            found[state_id] = function, {k: v for argument in arguments for k, v in argument.items()}
        return found

    return rendered


def test_a_rotation_is_three_changes_of_files_each_before_its_rollout(rotation):
    found = list(rotation(authority=["kubernetes", "etcd"]).values())
    assert [function for function, _ in found] == [
        "salt.state", *["k8s_pki.rotated", "k8s_sls.applied"] * 3, "k8s_pki.rotated",
    ]  # fmt: skip
    assert [arguments["step"] for function, arguments in found if "step" in arguments] == ["trust", "sign", "drop", "end"]
    assert {tuple(arguments["authorities"]) for _, arguments in found if "step" in arguments} == {("kubernetes", "etcd")}
    assert all(arguments.get("require") for _, arguments in found)
    assert found[0][1]["sls"] == "kubernetes_controller.health"


def test_a_rotation_stops_where_it_is_told_to_and_goes_on_where_it_stands(rotation, tmp_path):
    assert [a["step"] for _, a in rotation(authority="etcd", until="trust").values() if "step" in a] == ["trust"]
    (tmp_path / "authorities").mkdir()
    (tmp_path / "authorities/etcd-ca.rotation").write_text("{step: sign, since: now, begun: then}")
    found = rotation(authority="etcd")
    assert [a["step"] for _, a in found.values() if "step" in a] == ["sign", "drop", "end"]
    assert "salt.state" not in [function for function, _ in found.values()]  # what does not serve, its rollout repairs
    ((_, (function, arguments)),) = rotation(authority="etcd", until="trust").items()
    assert (function, arguments["name"][:32]) == ("test.succeed_without_changes", "etcd CA: step 2 of 3, sign: the ")


def test_a_test_run_of_a_rotation_rolls_nothing_out(rotation):
    found = rotation(authority="all", test=True)
    assert [function for function, _ in found.values()] == ["salt.state", *["k8s_pki.rotated"] * 3]


@pytest.mark.parametrize("authority", [None, "nonsense", ["etcd", "nonsense"]])
def test_what_cannot_be_rotated_is_one_failing_state(rotation, authority):
    ((_, (function, arguments)),) = rotation(authority=authority).items()
    assert function == "test.configurable_test_state"
    assert "It can be kubernetes, signer, etcd, front-proxy, service-account; " in arguments["comment"]


@pytest.mark.parametrize("test", [False, True], ids=["real", "testmode"])
def test_keys_that_cannot_be_exchanged_are_one_failing_state(rendering, declared, test):
    entry = {"resources": ["*."], "providers": [{"secretbox": {"keys": ["another-key"]}}, {"identity": {}}]}
    one = rendering({"encryption": [entry]}, master=True, serving=list(declared["controllers"]), test=test)
    ((state_id, body),) = one.render("kubernetes_controller.orchestrate.rotate_encryption")[1].items()
    ((function, arguments),) = body.items()
    assert function == "test.configurable_test_state"
    said = {name: value for argument in arguments for name, value in argument.items()}
    assert (said["result"], said["allow_test_mode_failure"]) == (False, True)
    assert said["comment"].startswith("kubernetes_controller:encryption: the keys of *., secrets would change while *. is live ")


def test_while_a_controller_does_not_serve_nothing_is_touched_not_even_the_masters_files(rendering, declared):
    one = rendering(master=True, serving=list(declared["controllers"])[1:])
    high = one.render("kubernetes_controller.orchestrate.rotate_encryption")[1]
    assert list(high) == ["Every controller serves before keys are exchanged"]


def test_keys_are_exchanged_in_steps_each_after_the_one_before(rendering, declared):
    one = rendering(master=True, serving=list(declared["controllers"]))
    high = one.render("kubernetes_controller.orchestrate.rotate_encryption")[1]
    assert high.pop("include") == ["kubernetes_controller.orchestrate.pki"]
    assert [state_id.partition(",")[0] for state_id in high if "rehearsal" in state_id or "rewrite" in state_id] == [
        "add", "promote", "rewrite", "drop",
    ]  # fmt: skip
    (arguments,) = (
        body["k8s_pki.managed"] for state_id, body in high.items() if state_id.startswith("The former keys are handed")
    )
    flat = {name: value for argument in arguments for name, value in argument.items()}
    assert flat["dropped"] is True
    assert flat["require"][1] == {"salt": "drop, the API server of controller-3"}
