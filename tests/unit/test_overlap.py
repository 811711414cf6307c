"""Promise 3: what a new generation writes or signs, every live one already accepts. Real keys, certificates and files."""

import json
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as s

A, C, S = "kube-apiserver", "kube-controller-manager", "kube-scheduler"
PKI = "kubernetes_controller_pki"
OTHERS = {"controller-2": {"serves": True, "said": ""}, "controller-3": {"serves": True, "said": ""}}


def keys(*names, kind="secretbox", resources=("secrets",), plain=True):
    providers = [{kind: {"keys": list(names)}}] if names else []
    return {"encryption": [{"resources": list(resources), "providers": [*providers, *([{"identity": {}}] if plain else [])]}]}


class Cluster:
    """This node as it is live, and the other two with what they published; etcd is a dictionary."""

    def __init__(self, minion, rows):
        self.minion, self.rows, self.etcd, self.down = minion, rows, {}, None
        minion.fake("k8s_etcdctl.get", self.get)
        minion.fake("k8s_etcdctl.put", lambda row, key, value: self.etcd.update({key: value}))
        minion.fake("k8s_skew.neighbours", return_value=OTHERS)
        minion.fake("k8s_health.serves", return_value=True)

    def get(self, row, prefix, directory=None):
        if self.down:
            from salt.exceptions import CommandExecutionError

            raise CommandExecutionError(self.down)
        return {key: value for key, value in self.etcd.items() if key.startswith(prefix)}

    def live(self, *layers):
        for row in self.rows(*layers).values():
            self.minion.modules["k8s_generation.promote"](row["home"], self.minion.modules["k8s_generation.prepare"](row))

    def published(self, minion="controller-2", *layers, **pillar):
        """Let another controller have published what the present pillar and these layers make it accept."""
        components = self.rows(*layers)
        drafts = {name: self.minion.modules["k8s_generation.draft"](row) for name, row in components.items()}
        record = self.minion.modules["k8s_overlap.accepts"](components, drafts)
        import shutil

        for directory in drafts.values():
            shutil.rmtree(directory)
        self.etcd[f"/kubernetes_controller/accepts/{minion}"] = json.dumps(record | pillar)

    def all_published(self, *layers):
        for minion in OTHERS:
            self.published(minion, *layers)

    def refusals(self, *layers, names=(A, C, S, "etcd"), others=OTHERS):
        components = {name: row for name, row in self.rows(*layers).items() if name in names}
        return self.minion.modules["k8s_preflight.not_accepted"](components, others)


@pytest.fixture
def cluster(node, rows):
    return Cluster(node, rows)


def test_in_the_steady_state_nothing_is_asked(cluster):
    cluster.live()
    cluster.down = "no etcd"
    assert cluster.refusals() == []
    assert cluster.refusals({"apiserver": {"settings": {"v": 3}}}) == []


HELD = {  # by clients: no secrets
    "issuers": ["https://kubernetes.default.svc.cluster.local"],
    "audiences": ["https://kubernetes.default.svc.cluster.local"],
    "service-cidr": ["10.32.0.0/16"],
    "pod-cidr": ["10.200.0.0/16"],
}


def test_nothing_but_fingerprints_is_published_and_only_what_changed(cluster, node, material, rows):
    cluster.live()
    publish = node.modules["k8s_preflight.publish"]
    assert publish(rows()) is True
    ((key, text),) = cluster.etcd.items()
    assert key == "/kubernetes_controller/accepts/controller-1"
    record = json.loads(text)
    assert {kind: record.pop(kind) for kind in HELD} == HELD
    assert {kind: len(found) for kind, found in record.items()} == {
        "encryption": 2, "service-account": 1, "client-ca": 2, "front-proxy-ca": 1, "etcd-ca": 1, "serving-ca": 1,
    }  # fmt: skip
    for found in record.values():
        assert all(re.fullmatch(r"(secrets )?([0-9a-f]{64}|identity)", one) for one in found)
    for name, secret in material.items():
        assert secret.strip() not in text, name
    asked = node.fake("k8s_etcdctl.get", cluster.get)
    wrote = node.fake("k8s_etcdctl.put")
    publish(rows())
    asked.assert_not_called()
    cluster.live(keys("encryption-key2", "encryption-key1"))
    publish(rows())
    assert (asked.call_count, wrote.call_count) == (1, 1)


def test_what_was_published_is_looked_after_once_an_hour_and_by_hand(cluster, node, rows):
    cluster.live()
    node.modules["k8s_preflight.publish"](rows())
    memory = next(iter(rows().values())) and f"{rows()[A]['home']}/published.json"
    cluster.etcd.clear()
    node.modules["k8s_preflight.publish"](rows())
    assert cluster.etcd == {}
    with open(memory, encoding="utf-8") as handle:
        known = json.load(handle)
    with open(memory, "w", encoding="utf-8") as handle:
        json.dump(known | {"at": known["at"] - 4000}, handle)
    node.modules["k8s_preflight.publish"](rows())
    assert len(cluster.etcd) == 1
    cluster.etcd.clear()
    node.fake("k8s_config.load", return_value={"components": rows()})
    assert node.modules["k8s_preflight.publish"]() is True
    assert len(cluster.etcd) == 1


def test_what_an_older_formula_published_is_told_anew_at_once(cluster, node, rows):
    cluster.live()
    node.modules["k8s_preflight.publish"](rows())
    memory = f"{rows()[A]['home']}/published.json"
    with open(memory, encoding="utf-8") as handle:
        known = json.load(handle)
    del known["edition"]
    with open(memory, "w", encoding="utf-8") as handle:
        json.dump(known, handle)
    (key,) = cluster.etcd
    cluster.etcd[key] = "{}"
    node.modules["k8s_preflight.publish"](rows())
    assert json.loads(cluster.etcd[key])["issuers"] == HELD["issuers"]


def test_a_node_without_an_api_server_publishes_nothing(cluster, node, rows):
    assert node.modules["k8s_preflight.publish"](rows()) is False
    assert cluster.etcd == {}


# -- encryption -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "new", "refused"),
    [
        (keys("encryption-key1"), keys("encryption-key2", "encryption-key1"), True),
        (keys("encryption-key1", "encryption-key2"), keys("encryption-key2", "encryption-key1"), False),
        (keys("encryption-key1"), keys("encryption-key1", "encryption-key2"), False),
        (keys("encryption-key1"), keys("encryption-key1", kind="aesgcm"), True),
        (keys("encryption-key1"), keys("encryption-key1", resources=["secrets", "configmaps"]), True),
        (keys("encryption-key1", resources=["*.*"]), keys("encryption-key1", resources=["secrets", "configmaps"]), False),
        (keys("encryption-key1", resources=["*."]), keys("encryption-key1", resources=["secrets", "apps.x"]), True),
        (
            keys("encryption-key1", resources=["*.apps", "secrets"]),
            keys("encryption-key1", resources=["secrets", "x.apps"]),
            False,
        ),
        (keys("encryption-key1"), keys(), False),
        (keys("encryption-key1", plain=False), keys(), True),
        (
            keys("encryption-key1", plain=False),
            {"encryption": [], "apiserver": {"settings": {"encryption-provider-config": None}}},
            True,
        ),
    ],
)
def test_the_key_that_a_node_writes_with_must_be_known_to_all(cluster, theirs, new, refused):
    cluster.live(keys("encryption-key1"))
    cluster.all_published(theirs)
    found = [line for line in cluster.refusals(new, names=[A])]
    assert bool(found) is refused, found
    for line in found:
        assert line.startswith("kubernetes_controller:encryption: ")
        assert "is not known to controller-2, controller-3 yet" in line
        assert "orchestrate.rotate_encryption" in line
        assert '{"ignore": ["overlap"]}' in line


def kms(name, version="v2", endpoint="unix:///a"):
    one = {"kms": {"apiVersion": version, "name": name, "endpoint": endpoint}}
    return {"encryption": [{"resources": ["secrets"], "providers": [one, {"identity": {}}]}]}


@pytest.mark.parametrize(
    ("new", "refused"), [(kms("two"), True), (kms("one", "v1"), True), (kms("one", endpoint="unix:///b"), False)]
)
def test_a_kms_is_its_name_and_version(cluster, new, refused):
    cluster.live(kms("one"))
    cluster.all_published(kms("one"))
    assert bool(cluster.refusals(new, names=[A])) is refused


def test_a_key_exchanged_under_its_name_is_another_key(cluster, node, material):
    cluster.live()
    cluster.published("controller-2")
    node.opts["pillar"][PKI]["encryption-key1"] = material["encryption-key2"]
    cluster.published("controller-3")
    (line,) = cluster.refusals(names=[A])
    assert "the first key for secrets (secretbox encryption-key1) is not known to controller-2 yet" in line
    assert material["encryption-key2"] not in line
    assert cluster.refusals({"rollout": {"ignore": ["overlap"]}}, names=[A]) == []


@pytest.mark.parametrize("garbage", ["garbage", "[1]", "resources: '", "\udcff"])
def test_what_is_live_and_unreadable_knows_nothing_and_is_repaired(cluster, node, rows, garbage):
    """A reload of garbage, and the node died before the way back: the pillar is right again, and its key is judged anew."""
    cluster.live()
    cluster.all_published()
    live = Path(rows()[A]["home"], "live/encryption.yaml")
    live.write_bytes(garbage.encode(errors="surrogateescape"))
    assert node.modules["k8s_preflight.problems"](rows()[A]) == {"errors": [], "warnings": []}
    assert cluster.refusals() == []
    assert "secretbox encryption-key2" in cluster.refusals(keys("encryption-key2"), names=[A])[0]
    node.modules["k8s_preflight.publish"](rows())
    assert json.loads(cluster.etcd["/kubernetes_controller/accepts/controller-1"])["encryption"] == []


# -- service account keys and CAs -------------------------------------------------------------------------------------


@pytest.fixture
def other_key(new_authority):
    """Another service account key pair, as the pillar has it."""
    key = new_authority("sa").issue("sa").key
    public = s.load_pem_private_key(key.encode(), None).public_key()
    return key, public.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo).decode()


def test_a_signing_key_must_be_known_to_all_first(cluster, node, other_key, material):
    cluster.live()
    cluster.published("controller-2")
    both = {"service-account.pub": material["service-account.pub"] + other_key[1]}
    node.opts["pillar"][PKI] |= both
    cluster.published("controller-3")
    assert cluster.refusals() == []
    node.opts["pillar"][PKI] |= {"service-account.key": other_key[0]}
    (line,) = cluster.refusals()
    assert line.startswith(
        "kubernetes_controller:pki: the key with which kube-apiserver signs service account tokens and the key"
    )
    assert "is not known to controller-2 yet" in line
    assert "verify with the new public key beside the present one first" in line
    assert len(cluster.refusals(names=[C])) == 1
    cluster.published("controller-2")
    assert cluster.refusals() == []


ISSUER = HELD["issuers"][0]


def issuers(*listed):
    return {"apiserver": {"settings": {"service-account-issuer": list(listed)}}}


def test_an_issuer_signs_once_all_accept_it(cluster):
    cluster.live()
    cluster.all_published()
    assert cluster.refusals(issuers(ISSUER, "https://new")) == [], "it signs nothing yet"
    (line,) = cluster.refusals(issuers("https://new", ISSUER))
    assert line.startswith(
        "kubernetes_controller:apiserver:settings:service-account-issuer: the issuer of service account tokens (https://new) is "
        "not known to controller-2, controller-3 yet"
    )
    assert "List it behind the present one in kubernetes_controller:apiserver:settings:service-account-issuer first" in line
    cluster.live(issuers(ISSUER, "https://new"))
    cluster.published("controller-2", issuers(ISSUER, "https://new"))
    (line,) = cluster.refusals(issuers("https://new", ISSUER))
    assert "is not known to controller-3 yet" in line
    cluster.published("controller-3", issuers(ISSUER, "https://new"))
    assert cluster.refusals(issuers("https://new", ISSUER)) == []


def test_what_an_older_formula_published_of_issuers_is_not_known(cluster):
    cluster.live()
    cluster.all_published()
    key = "/kubernetes_controller/accepts/controller-3"
    cluster.etcd[key] = json.dumps({kind: found for kind, found in json.loads(cluster.etcd[key]).items() if kind not in HELD})
    assert cluster.refusals() == []
    refused, unknown = cluster.refusals(issuers("https://new", ISSUER))
    assert "is not known to controller-2 yet" in refused
    assert unknown.startswith("controller-3: not known what it accepts of the issuer of service account tokens (https://new)")


def test_a_public_key_may_be_in_a_file_of_its_own(cluster, node, other_key, material):
    layer = {
        "apiserver": {
            "files": {"other.pub": {"text": other_key[1]}},
            "settings": {"service-account-key-file": ["{live}/service-account.pub", "{live}/other.pub"]},
        }
    }
    cluster.live(layer)
    accepts = node.modules["k8s_overlap.accepts"]
    assert len(accepts(cluster.rows(layer))["service-account"]) == 2
    cluster.all_published(layer)
    node.opts["pillar"][PKI] |= {"service-account.key": other_key[0]}
    assert cluster.refusals(layer) == []


def test_a_signing_key_that_the_own_api_server_does_not_take_is_refused(cluster, node, other_key):
    cluster.live()
    cluster.all_published()
    node.opts["pillar"][PKI] |= {"service-account.key": other_key[0]}
    (line,) = cluster.refusals()
    assert "is not known to this node (controller-1) yet" in line


def test_a_single_controller_is_asked_what_it_takes_itself(cluster, node, other_key, new_authority):
    alone = {"controllers": {"controller-2": None, "controller-3": None}}
    assert cluster.refusals(alone) == [], "a first rollout"
    cluster.live(alone)
    pair = new_authority("alien").issue("system:kube-scheduler")
    alien = {"service-account.key": other_key[0], "apiserver-kubelet-client.crt": pair.crt, "scheduler.crt": pair.crt}
    node.opts["pillar"][PKI] |= {**alien, "scheduler.key": pair.key}
    (line,) = cluster.refusals(alone)
    assert "is not known to this node (controller-1) yet" in line


@pytest.mark.parametrize(
    ("authority", "certificates", "says"),
    [
        ("kubernetes", ["controller-manager", "scheduler"], "the certificate of kube-controller-manager (kubeconfig) and"),
        ("kubernetes", ["apiserver"], "the certificate of kube-apiserver (tls-cert-file)"),
        ("front-proxy", ["front-proxy-client"], "the certificate of kube-apiserver (proxy-client-cert-file)"),
        ("etcd", ["apiserver-etcd-client", "etcd-server", "etcd-peer"], "the certificate of kube-apiserver (etcd-certfile)"),
    ],
)
def test_a_new_ca_must_be_trusted_by_all_first(cluster, node, new_authority, material, authority, certificates, says):
    cluster.live()
    cluster.all_published()
    new, name = new_authority(f"new-{authority}"), f"{authority}-ca.crt"
    node.opts["pillar"][PKI][name] = material[name] + new.crt
    assert cluster.refusals() == []
    for one in certificates:
        pair = new.issue(one, ["clientAuth"])
        node.opts["pillar"][PKI] |= {f"{one}.crt": pair.crt, f"{one}.key": pair.key}
    (line,) = cluster.refusals()
    assert says in line
    assert "is not known to controller-2, controller-3 yet" in line
    assert "trust the new CA beside the present one first" in line
    cluster.all_published()
    assert cluster.refusals() == []


def test_an_external_etcd_may_take_clients_of_another_ca(cluster, node, new_authority):
    external = {"etcd": {"managed": False, "servers": ["https://10.8.0.1:2379"]}}
    cluster.live(external)
    cluster.all_published(external)
    pair = new_authority("clients-ca").issue("kube-apiserver", ["clientAuth"])
    node.opts["pillar"][PKI] |= {"apiserver-etcd-client.crt": pair.crt, "apiserver-etcd-client.key": pair.key}
    assert cluster.refusals(external) == []


def test_a_ca_renewed_with_its_key_is_the_same(node, authorities, material):
    known = node.modules["k8s_certificate.authorities"]
    assert known(material["kubernetes-ca.crt"]) != known(material["etcd-ca.crt"])
    assert (
        node.modules["k8s_certificate.signed_by"](material["scheduler.crt"], ["garbage", material["kubernetes-ca.crt"]])
        == (known(material["kubernetes-ca.crt"])[0])
    )
    assert node.modules["k8s_certificate.signed_by"](material["scheduler.crt"], [material["etcd-ca.crt"]]) is None


# -- who counts -------------------------------------------------------------------------------------------------------


def test_one_that_serves_without_a_record_is_not_known(cluster):
    cluster.live()
    cluster.published("controller-2", keys("encryption-key2"))
    (line,) = cluster.refusals(keys("encryption-key2"), names=[A])
    assert line.startswith("controller-3: not known what it accepts of the first key for secrets (secretbox encryption-key2)")
    assert "apply the formula there first, or say `salt controller-3 k8s_preflight.publish`" in line
    assert cluster.refusals(keys("encryption-key2"), {"rollout": {"adopt": True}}, names=[A]) == []
    silent = {**OTHERS, "controller-3": {"serves": False, "said": "refused"}}
    assert cluster.refusals(keys("encryption-key2"), names=[A], others=silent) == []


def test_one_that_is_down_counts_by_its_record(cluster):
    cluster.live()
    cluster.all_published()
    silent = {minion: {"serves": False, "said": "refused"} for minion in OTHERS}
    assert len(cluster.refusals(keys("encryption-key2"), names=[A], others=silent)) == 1


def test_a_first_install_asks_nobody_and_a_node_that_joins_does(cluster, monkeypatch):
    silent = {minion: {"serves": False, "said": "refused"} for minion in OTHERS}
    cluster.down = "no etcd"
    assert cluster.refusals(others=silent) == []
    cluster.down = None
    cluster.all_published(keys("encryption-key2"))
    (line,) = cluster.refusals()
    assert "secretbox encryption-key1" in line
    assert cluster.refusals(keys("encryption-key2")) == []


def test_without_etcd_it_refuses_while_something_serves_and_never_otherwise(cluster, node):
    cluster.live()
    cluster.down = "context deadline exceeded"
    (line,) = cluster.refusals(keys("encryption-key2"), names=[A])
    assert "could not be read from etcd: context deadline exceeded. Nothing goes on without that answer" in line
    assert "To go on all the same" not in line
    silent = {minion: {"serves": False, "said": "refused"} for minion in OTHERS}
    assert len(cluster.refusals(keys("encryption-key2"), names=[A], others=silent)) == 1
    node.fake("k8s_health.serves", return_value=False)
    assert cluster.refusals(keys("encryption-key2"), names=[A], others=silent) == []
