"""k8s_encryption.plan: from any live configurations to the declared one, readable by everybody at each moment."""

import base64
import itertools
import json
import traceback
from types import SimpleNamespace

import pytest
import yaml
from salt.exceptions import CommandExecutionError

NODES = ("controller-1", "controller-2", "controller-3")


def entry(*providers, resources=("secrets",)):
    return {"resources": list(resources), "providers": list(providers)}


def box(*keys):
    return {"secretbox": {"keys": list(keys)}}


PLAIN = {"identity": {}}
OLD, NEW, NONE = [entry(box("key1"), PLAIN)], [entry(box("key2"), PLAIN)], [entry(PLAIN)]


@pytest.fixture
def encryption(modules):
    class Encryption:
        def __getattr__(self, name):
            return modules[f"k8s_encryption.{name}"]

        def plan(self, declared, lives):
            answer = modules["k8s_encryption.plan"](declared, lives)
            assert answer["fault"] == ""
            return answer["steps"]

        def flat(self, entries):
            """What ``live`` says of a node that has this configuration."""
            found = {}
            for one in entries:
                pairs = []
                for provider in one["providers"]:
                    for kind, options in provider.items():
                        word = json.dumps(options, sort_keys=True) if options else ""
                        pairs += [[kind, key] for key in (options or {}).get("keys", [word])]
                found |= {resource: pairs for resource in one["resources"]}
            return found

        def lives(self, *configurations):
            return {node: self.flat(one) for node, one in zip(NODES, configurations, strict=True)}

    return Encryption()


def test_nothing_is_to_do_where_all_is_as_declared(encryption):
    assert encryption.plan(NEW, encryption.lives(NEW, NEW, NEW)) == []


def test_a_new_key_is_added_promoted_and_the_old_one_dropped_last(encryption):
    steps = encryption.plan(NEW, encryption.lives(OLD, OLD, OLD))
    assert [step["step"] for step in steps] == ["add", "promote", "rewrite", "drop"]
    add, promote, _, drop = (step["encryption"] for step in steps)
    assert add == [entry(box("key1"), PLAIN, box("key2"))]
    assert promote == [entry(box("key2"), PLAIN, box("key1"))]
    assert drop == NEW


def test_from_no_encryption_to_encryption(encryption):
    steps = encryption.plan(OLD, encryption.lives(NONE, NONE, NONE))
    assert [step["encryption"] for step in steps] == [[entry(PLAIN, box("key1"))], [entry(box("key1"), PLAIN)], None, OLD]


def test_a_resource_that_joins_is_read_everywhere_before_it_is_encrypted(encryption):
    both = [entry(box("key1"), PLAIN, resources=["secrets", "configmaps"])]
    add = encryption.plan(both, encryption.lives(OLD, OLD, OLD))[0]["encryption"]
    assert add == [entry(box("key1"), PLAIN), entry(PLAIN, box("key1"), resources=["configmaps"])]


@pytest.mark.parametrize(
    ("live", "declared", "names"),
    [
        ([entry(box("key1"), PLAIN, resources=["*.*"])], [entry(box("key2"), PLAIN)], "the keys of secrets, *.* would change"),
        ([entry(box("key1"), PLAIN, resources=["*."])], [entry(box("key2"), PLAIN)], "the keys of secrets, *. would change"),
        (
            [entry(box("key1"), PLAIN, resources=["*.*"])],
            [entry(box("key2"), PLAIN), entry(box("key1"), PLAIN, resources=["*.*"])],
            "the keys of secrets would change while *.* is live or declared",
        ),
        (OLD, [entry(box("key1"), PLAIN, resources=["*.*"])], "the keys of *.* would change"),
        (
            [*OLD, entry(box("key1"), PLAIN, resources=["*.apps"])],
            [entry(box("key2"), PLAIN, resources=["secrets"]), entry(box("key1"), PLAIN, resources=["*.apps"])],
            "the keys of secrets would change while *.apps is live or declared",
        ),
        (
            [entry(box("key1"), PLAIN, resources=["*.apps"])],
            [entry(box("key2"), PLAIN, resources=["deployments.apps"]), entry(box("key1"), PLAIN, resources=["*.apps"])],
            "the keys of deployments.apps would change while *.apps is live or declared",
        ),
    ],
)
def test_keys_are_not_exchanged_beside_a_wildcard(modules, encryption, live, declared, names):
    plan = modules["k8s_encryption.plan"](declared, encryption.lives(live, live, live))
    assert plan["steps"] == []
    assert plan["fault"].startswith(f"kubernetes_controller:encryption: {names}")


@pytest.mark.parametrize(
    "declared",
    [
        [entry(box("key1"), PLAIN, resources=["*.*"])],
        [entry(box("key1"), PLAIN), entry(box("key1"), PLAIN, resources=["*.*"])],
        [entry(box("key1"), PLAIN, resources=["deployments.apps", "*."]), entry(box("key1"), PLAIN, resources=["*.*"])],
    ],
)
def test_what_a_wildcard_says_of_a_resource_counts(encryption, declared):
    live = [entry(box("key1"), PLAIN, resources=["*.*"])]
    assert encryption.plan(declared, encryption.lives(live, live, live)) == []


@pytest.mark.parametrize("declared", [NEW, [entry({"aescbc": {"keys": ["key9"]}}, box("key1"), PLAIN)], NONE])
def test_at_each_moment_each_node_reads_what_any_other_writes(encryption, declared):
    """Whatever is interrupted where: the next run plans from what it finds, and no step needs a key that a node lacks."""
    steps = [step["encryption"] for step in encryption.plan(declared, encryption.lives(OLD, OLD, OLD)) if step["encryption"]]
    states, chain = [], [OLD, *steps]
    for before, after in itertools.pairwise(chain):
        states += [[after] * done + [before] * (3 - done) for done in (1, 2, 3)]
    for state in states:
        flats = [encryption.flat(one)["secrets"] for one in state]
        assert all(other[0] in one for one in flats for other in flats), state
        rest = encryption.plan(declared, encryption.lives(*state))
        if rest:
            assert [step["step"] for step in rest][-2:] == ["rewrite", "drop"]
            following = next(step["encryption"] for step in rest if step["encryption"])
            after = encryption.flat(following)["secrets"]
            assert all(one[0] in after and after[0] in one for one in flats), (state, following)


@pytest.mark.parametrize("elsewhere", [["events", "secrets"], ["*."]])
def test_keys_are_not_exchanged_of_what_lies_in_an_etcd_of_its_own(modules, encryption, elsewhere):
    lives = encryption.lives(OLD, OLD, OLD)
    plan = modules["k8s_encryption.plan"](NEW, lives, elsewhere)
    assert plan["steps"] == []
    assert plan["fault"].startswith("kubernetes_controller:encryption: secrets is kept in an etcd of its own")
    assert modules["k8s_encryption.plan"](OLD, lives, elsewhere) == {"steps": [], "fault": ""}
    assert modules["k8s_encryption.plan"](NEW, lives, ["events", "*.apps"])["fault"] == ""


def kms(name, version="v2", endpoint="unix:///a"):
    return [entry({"kms": {"apiVersion": version, "name": name, "endpoint": endpoint}}, PLAIN)]


def test_a_kms_is_its_name_and_version_and_not_where_it_is_reached(encryption):
    live = kms("one")
    assert encryption.plan(kms("one", endpoint="unix:///b"), encryption.lives(live, live, live)) == []
    for other in (kms("two"), kms("one", "v1")):
        steps = encryption.plan(other, encryption.lives(live, live, live))
        assert [step["step"] for step in steps] == ["add", "promote", "rewrite", "drop"]
    other = [entry(*box_and(kms("one", endpoint="unix:///b")))]
    add = encryption.plan(other, encryption.lives(live, live, live))[0]["encryption"]
    names = [options["endpoint"] for provider in add[0]["providers"] for kind, options in provider.items() if kind == "kms"]
    assert names == ["unix:///b"]


def box_and(configuration):
    return [box("key1"), *configuration[0]["providers"]]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_what_a_kms_wrote_begins_with_its_version(encryption, etcd, version):
    held = etcd("secrets")
    held.config.write_text(yaml.safe_dump({"resources": kms("one", version)}))
    for one in ("v1", "v2"):
        held.held[f"/registry/secrets/a/{one}".encode()] = f"k8s:enc:kms:{one}:one:…".encode()
    assert encryption.left(held.row) == {"secrets": 1}


# -- what etcd holds ---------------------------------------------------------------------------------------------------


class Etcd:
    """What etcd holds, as etcdctl gives it page by page; and the API server that is asked for it, which encrypts."""

    def __init__(self, node, home, resources):
        self.held, self.asked, self.node = {}, [], node
        self.served = [resource.partition(".")[0] for resource in resources]
        self.config = home / "encryption.yaml"
        providers = [{"secretbox": {"keys": [{"name": "key2", "secret": "x"}, {"name": "key1", "secret": "y"}]}}, PLAIN]
        self.config.write_text(yaml.safe_dump({"resources": [{"resources": resources, "providers": providers}]}))
        node.fake("k8s_generation.flags", return_value={"encryption-provider-config": str(self.config)})
        node.fake("k8s_etcdctl.environment", return_value={})
        node.fake("k8s_health.api", self.api)
        self.row = {"home": str(home), "etcdctl": "etcdctl"}

    def run(self, command, **_):
        begin, end = command[2:4]
        limit = int(command[4].partition("=")[2])
        found = [(key, value) for key, value in sorted(self.held.items()) if begin <= key < end][:limit]
        kvs = [
            {what: base64.b64encode(text).decode() for what, text in zip(("key", "value"), pair, strict=True)} for pair in found
        ]
        return SimpleNamespace(returncode=0, stdout=json.dumps({"kvs": kvs}), stderr="")

    def put(self, key, name="key1"):
        self.held[key.encode()] = f"k8s:enc:secretbox:v1:{name}:…".encode()

    def api(self, row, path, method="GET", body=None):
        self.asked.append(f"{method} {path}")
        answer = {}
        if path.startswith("/apis/") and path.count("/") == 2:
            answer = {"versions": [{"groupVersion": f"{path[6:]}/{version}"} for version in ("v2", "v1")]}
        elif path.startswith("/apis/") and path.count("/") == 3:
            answer = {"resources": [{"name": name} for name in self.served if path.endswith("/v1")]}
        return {"status": 200, "body": json.dumps(answer)}


@pytest.fixture
def etcd(node, tmp_path, monkeypatch):
    def made(*resources):
        one = Etcd(node, tmp_path, list(resources))
        monkeypatch.setattr("subprocess.run", one.run)
        return one

    return made


@pytest.mark.parametrize(
    ("resource", "key", "path"),
    [
        ("secrets", "/registry/secrets/a/b", "/api/v1/namespaces/a/secrets/b"),
        ("services", "/registry/services/specs/a/b", "/api/v1/namespaces/a/services/b"),
        ("endpoints", "/registry/services/endpoints/a/b", "/api/v1/namespaces/a/endpoints/b"),
        ("nodes", "/registry/minions/b", "/api/v1/nodes/b"),
        ("replicationcontrollers", "/registry/controllers/a/b", "/api/v1/namespaces/a/replicationcontrollers/b"),
        ("ingresses.networking.k8s.io", "/registry/ingress/a/b", "/apis/networking.k8s.io/v1/namespaces/a/ingresses/b"),
        ("deployments.apps", "/registry/deployments/a/b", "/apis/apps/v1/namespaces/a/deployments/b"),
        ("roles.rbac.authorization.k8s.io", "/registry/roles/a/b", "/apis/rbac.authorization.k8s.io/v1/namespaces/a/roles/b"),
        ("services.example.com", "/registry/example.com/services/a/b", "/apis/example.com/v1/namespaces/a/services/b"),
        ("ingresses.example.com", "/registry/example.com/ingresses/a/b", "/apis/example.com/v1/namespaces/a/ingresses/b"),
        (
            "customresourcedefinitions.apiextensions.k8s.io",
            "/registry/apiextensions.k8s.io/customresourcedefinitions/b",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/b",
        ),
        (  # a custom one of the community's
            "gateways.gateway.networking.k8s.io",
            "/registry/gateway.networking.k8s.io/gateways/a/b",
            "/apis/gateway.networking.k8s.io/v1/namespaces/a/gateways/b",
        ),
        ("things.new.k8s.io", "/registry/things/a/b", "/apis/new.k8s.io/v1/namespaces/a/things/b"),  # perhaps compiled in
    ],
)
def test_what_is_under_a_former_key_is_found_where_the_api_server_puts_it(encryption, etcd, resource, key, path):
    held = etcd(resource)
    held.put(key)
    held.put(f"{key}2", "key2")
    assert encryption.left(held.row) == {resource: 1}
    assert encryption.rewrite(held.row) == {resource: 1}
    assert held.asked[-2:] == [f"GET {path}", f"PUT {path}"]


@pytest.mark.parametrize(
    ("resource", "key"),
    [
        ("services.example.com", "/registry/services/specs/a/b"),
        ("secrets.example.com", "/registry/secrets/a/b"),
        ("services", "/registry/services/endpoints/a/b"),
        ("services", "/registry/example.com/services/a/b"),
        ("deployments.apps", "/registry/apps/deployments/a/b"),
        ("customresourcedefinitions.apiextensions.k8s.io", "/registry/customresourcedefinitions/b"),
    ],
)
def test_what_only_has_the_same_plural_is_not_counted(encryption, etcd, resource, key):
    held = etcd(resource)
    held.put(key)
    assert encryption.left(held.row) == {}


def test_what_etcd_holds_is_asked_to_the_last_page(encryption, etcd):
    held = etcd("nodes")
    for number in range(450):
        held.put(f"/registry/minions/node-{number}", "key1" if number % 3 == 0 else "key2")
    assert encryption.left(held.row) == {"nodes": 150}


def test_no_name_is_left_out_between_two_pages(encryption, etcd):
    """Names of roles may go on with what sorts before all that other names have."""
    held = etcd("clusterroles.rbac.authorization.k8s.io")
    for number in range(199):
        held.put(f"/registry/clusterroles/a{number:03}", "key2")
    for name in ("foo", "foo\x01", "foo bar", "foo!"):
        held.put(f"/registry/clusterroles/{name}")
    assert encryption.left(held.row) == {"clusterroles.rbac.authorization.k8s.io": 4}


@pytest.mark.parametrize(
    ("name", "quoted"), [("who?", "who%3F"), ("a#b", "a%23b"), ("a b", "a%20b"), ("system:x", "system%3Ax"), ("é", "%C3%A9")]
)
def test_a_name_is_quoted_where_the_api_server_is_asked_for_it(encryption, etcd, name, quoted):
    held = etcd("roles.rbac.authorization.k8s.io")
    held.put(f"/registry/roles/a/{name}")
    assert encryption.rewrite(held.row) == {"roles.rbac.authorization.k8s.io": 1}
    assert held.asked[-1] == f"PUT /apis/rbac.authorization.k8s.io/v1/namespaces/a/roles/{quoted}"


@pytest.mark.parametrize(
    ("resource", "flag", "elsewhere"),
    [
        ("secrets", "/secrets#https://a:2379;https://b:2379,/events#https://c:2379", True),
        ("leases.coordination.k8s.io", "coordination.k8s.io/leases#https://a:2379", True),
        ("deployments.apps", "apps/*#https://a:2379", True),
        ("secrets", "/*#https://a:2379", True),
        ("deployments.apps", "/*#https://a:2379,/events#https://a:2379", False),
        ("secrets", "/events#https://a:2379", False),
    ],
)
def test_what_lies_in_an_etcd_of_its_own_is_told_and_not_counted_as_none(encryption, etcd, node, resource, flag, elsewhere):
    held = etcd(resource)
    flags = {"encryption-provider-config": str(held.config), "etcd-servers-overrides": flag}
    node.fake("k8s_generation.flags", return_value=flags)
    if not elsewhere:
        assert encryption.left(held.row) == {}
        return
    with pytest.raises(CommandExecutionError, match=f"^kubernetes_controller:encryption: {resource} is kept in an etcd of its"):
        encryption.left(held.row)


def test_the_row_of_the_pillar_is_the_one_that_is_asked_by_hand(encryption, etcd, node):
    """As docs/security.md has it: salt controller-1 k8s_encryption.left"""
    held = etcd("secrets")
    held.put("/registry/secrets/a/b")
    node.fake("k8s_config.load", return_value={"components": {"kube-apiserver": held.row}})
    assert encryption.left() == encryption.rewrite() == {"secrets": 1}


def test_what_etcd_holds_and_the_api_has_not_is_named(encryption, etcd):
    held = etcd("things.example.com")
    held.put("/registry/example.com/things/a/b")
    held.served = ["others"]
    with pytest.raises(CommandExecutionError, match="^things.example.com: the API server has no such resource"):
        encryption.rewrite(held.row)


# -- what is no configuration -------------------------------------------------------------------------------------------

SECRET = "c2VjcmV0LW9mLXRoZS1maXJzdC1rZXktMzItYnl0ZXM="
HEAD = "kind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n"
KEYS = HEAD + "  - secretbox:\n      keys:\n      - name: key1\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{KEYS}\tsecret: {SECRET}\n", " (line 8)"),
        (f"{KEYS}        secret: '{SECRET}\n", " (line 9)"),
        (f"{KEYS}        secret: {SECRET}: {SECRET}\n", " (line 8)"),
        (f"{KEYS}        secret: [{SECRET}]\n", ""),
        (f"{KEYS}        secrt: {SECRET}\n", ""),
        (f"{HEAD}  - secretbox: {SECRET}\n", ""),
        (f"{HEAD}  - {SECRET}\n", ""),
        (f"resources: {SECRET}\n", ""),
        (f"resources: [{{resources: {SECRET}, providers: []}}]", ""),
        (f"[{SECRET}]\n", ""),
        (f"{SECRET}\n", ""),
        (f"\0{SECRET}", ""),
        ("", ""),
    ],
)
def test_what_is_no_configuration_is_one_sentence_that_quotes_nothing(modules, text, line):
    with pytest.raises(CommandExecutionError) as raised:
        modules["k8s_encryption.parse"](text, "/etc/enc.yaml")
    said = f"/etc/enc.yaml is not an EncryptionConfiguration{line}. Correct it where it is declared; its text is not shown"
    assert str(raised.value).startswith(said)
    assert SECRET[:8] not in "".join(traceback.format_exception(raised.value))


def test_what_is_live_and_unreadable_is_told_without_a_key(encryption, etcd, node):
    held = etcd("secrets")
    held.config.write_text(f"{KEYS}\tsecret: {SECRET}\n")
    assert encryption.resources(held.row) == []
    for asked in (encryption.left, encryption.rewrite):
        with pytest.raises(CommandExecutionError, match=rf"^{held.config} is not an EncryptionConfiguration \(line 8\)"):
            asked(held.row)
