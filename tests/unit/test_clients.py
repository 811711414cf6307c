"""Promise 14: what clients hold on to is kept, or its loss is refused. Real generations, certificates and command lines."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

A, C = "kube-apiserver", "kube-controller-manager"
PKI = "kubernetes_controller_pki"
ISSUER = "https://kubernetes.default.svc.cluster.local"
OTHERS = {f"controller-{number}": {"serves": True, "said": "", "release": None, "clock": None} for number in (2, 3)}


def api(**settings):
    return {"apiserver": {"settings": {name.replace("_", "-"): value for name, value in settings.items()}}}


def ignore(*words):
    return {"rollout": {"ignore": list(words)}}


class Clients:
    """This node, with what was good on it."""

    def __init__(self, minion, rows):
        self.minion, self.rows, self.stored = minion, rows, {}
        minion.fake("k8s_health.api", self.get)

    def get(self, row, path, **_):
        found = self.stored.get("nodes" if "nodes" in path else path.rpartition("/")[0].rpartition("/")[2])
        return {"status": 200 if found else 403, "body": json.dumps(found if "nodes" in path else {"spec": found})}

    def good(self, *layers, link="good"):
        for row in self.rows(*layers).values():
            name = self.minion.modules["k8s_generation.prepare"](row)
            for one in {"live", link}:
                self.minion.modules["k8s_generation.promote"](row["home"], name, one)

    def refused(self, *layers, name=A):
        row = self.rows(*layers)[name]
        directory = self.minion.modules["k8s_generation.draft"](row)
        try:
            return self.minion.modules["k8s_clients.cut_off"](row, directory)
        finally:
            shutil.rmtree(directory)


@pytest.fixture
def clients(node, rows):
    return Clients(node, rows)


def overrides(sentences):
    return [re.search(r'"ignore": \["([\w-]+)"\]', line)[1] for line in sentences]


# -- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ({}, {}, []),
        ({}, api(v=3), []),
        ({}, api(service_account_issuer=[ISSUER, "https://new"]), []),
        ({}, api(service_account_issuer=["https://new", ISSUER]), []),
        (api(service_account_issuer=["https://new", ISSUER]), api(service_account_issuer=[ISSUER, "https://new"]), []),
        (api(service_account_issuer=["https://new", ISSUER]), {}, ["issuers"]),
        ({}, api(service_account_issuer="https://new"), ["issuers"]),
        ({}, api(service_account_issuer=f"https://new,{ISSUER}"), ["issuers"]),
        ({}, {"cluster": {"domain": "k8s.local"}}, ["issuers"]),
        ({}, api(api_audiences=[ISSUER, "vault"]), []),
        ({}, api(api_audiences="vault"), ["audiences"]),
        (api(api_audiences=["a", "b"]), api(api_audiences="b"), ["audiences"]),
        (api(api_audiences=["a", "b"]), {}, ["audiences"]),
        (api(api_audiences=["a"]), api(api_audiences=["a"], service_account_issuer="https://new"), ["issuers"]),
        ({}, api(api_audiences="vault", service_account_issuer="https://new"), ["issuers"]),
    ],
    ids=str,
)
def test_an_issuer_or_audience_that_tokens_have_is_not_dropped(clients, before, after, refused):
    clients.good(before)
    found = clients.refused(after)
    assert overrides(found) == refused
    assert clients.refused(after, ignore(*refused)) == []
    assert [line for kind in refused for line in clients.refused(after, ignore(*{"issuers", "audiences"} - {kind}))] == found


def test_a_refused_issuer_is_told_with_its_cause_and_the_way(clients):
    clients.good()
    (line,) = clients.refused({"cluster": {"domain": "k8s.local"}})
    assert line.startswith(
        "kubernetes_controller:cluster:domain, by kubernetes_controller:apiserver:settings:service-account-issuer: issuer "
        f"{ISSUER} is live and not declared any more (declared: https://kubernetes.default.svc.k8s.local), so each "
    )
    assert "list the new issuer behind the present one in kubernetes_controller:apiserver:settings:service-account-iss" in line
    assert line.endswith('once: pillar=\'{"kubernetes_controller": {"rollout": {"ignore": ["issuers"]}}}\'.')
    (line,) = clients.refused(api(service_account_issuer="https://new"))
    assert line.startswith("kubernetes_controller:apiserver:settings:service-account-issuer: issuer https://kubernetes.default")


def test_only_what_was_good_is_protected(clients):
    changed = {"cluster": {"domain": "k8s.local", "service_cidr": "10.96.0.0/16", "pod_cidr": "10.201.0.0/16"}}
    assert [clients.refused(changed, name=name) for name in (A, C)] == [[], []], "nothing is there yet"
    clients.good(link="live")
    assert [clients.refused(changed, name=name) for name in (A, C)] == [[], []], "a first one that never passed its gate"
    clients.good()
    assert overrides(clients.refused(changed)) == ["issuers", "service-cidr"]
    assert overrides(clients.refused(changed, name=C)) == ["pod-cidr"]
    assert clients.refused(changed, name="kube-scheduler") == []


def test_the_key_that_signs_is_accepted_until_another_one_signs(clients, node, material, new_authority):
    clients.good()
    pair = new_authority("sa").issue("sa")
    node.opts["pillar"][PKI] |= {"service-account.key": pair.key, "service-account.pub": pair.crt}
    (line,) = clients.refused()
    assert line.startswith(
        "kubernetes_controller:apiserver:settings:service-account-key-file: the key that signs service account"
    )
    assert overrides([line]) == ["service-account-key"]
    assert clients.refused(ignore("service-account-key")) == []
    node.opts["pillar"][PKI]["service-account.pub"] = pair.crt + material["service-account.pub"]
    assert clients.refused() == [], "a rotation's second step"
    clients.good()
    node.opts["pillar"][PKI]["service-account.pub"] = pair.crt
    assert clients.refused() == [], "and its third"


# -- CAs --------------------------------------------------------------------------------------------------------------

SIGNER_OFF = {"pki": {"authorities": {"signer": {"enabled": False}}}}


def trusting(node, **texts):
    node.opts["pillar"][PKI] |= {f"{name.replace('_', '-')}-ca.crt": text for name, text in texts.items()}


def test_a_ca_that_vouches_for_clients_is_not_switched_off(clients):
    assert clients.refused(SIGNER_OFF) == [], "a first rollout"
    clients.good()
    (line,) = clients.refused(SIGNER_OFF)
    assert line.startswith("kubernetes_controller:pki (kube-apiserver): client-ca-file loses CN=signer-ca, serial ")
    assert "kubelet-certificate-authority loses CN=signer-ca, " in line and "requestheader" not in line
    assert "`salt-run k8s_rollout.rotate_ca NAME`" in line and "files:client-ca.crt:pki" in line
    assert overrides([line]) == ["client-ca"]
    assert clients.refused(SIGNER_OFF, ignore("client-ca")) == []


def test_a_ca_that_is_switched_off_goes_on_to_be_trusted_by_the_way_that_the_refusal_names(clients, node, material):
    clients.good()
    node.opts["pillar"][PKI]["former-signer.crt"] = material["signer-ca.crt"]
    row = {"pki": ["kubernetes-ca.crt", "former-signer.crt"]}
    assert clients.refused(SIGNER_OFF, {"apiserver": {"files": {"client-ca.crt": row, "kubelet-ca.crt": row}}}) == []


@pytest.mark.parametrize("name", ["kubernetes", "signer", "front-proxy"])
@pytest.mark.parametrize("subject", ["another", "of the same name"])
def test_another_ca_is_refused_and_each_step_of_its_rotation_is_not(clients, node, material, new_authority, name, subject):
    new = new_authority("another" if subject == "another" else f"{name}-ca").crt
    old = material[f"{name}-ca.crt"]
    clients.good()
    trusting(node, **{name: new})
    assert overrides(clients.refused()) == ["client-ca"]
    assert clients.refused(ignore("client-ca")) == []
    for text in (old + new, new + old):  # trust and sign
        trusting(node, **{name: text})
        assert clients.refused() == []
        clients.good()
    trusting(node, **{name: new})  # drop
    assert overrides(clients.refused()) == ["client-ca"] * (subject == "another")


def test_a_cluster_of_one_is_as_strict_with_its_ca(clients, node, new_authority):
    alone = {"controllers": {"controller-2": None, "controller-3": None}}
    clients.good(alone)
    trusting(node, kubernetes=new_authority("kubernetes-ca").crt)
    assert overrides(clients.refused(alone)) == ["client-ca"]


def test_a_ca_that_has_expired_may_go_and_takes_nobodys_place(clients, node, material, new_authority):
    expired = new_authority("kubernetes-ca", days=(-9, -1))
    trusting(node, kubernetes=material["kubernetes-ca.crt"] + expired.crt)
    clients.good()
    trusting(node, kubernetes=material["kubernetes-ca.crt"])
    assert clients.refused() == []
    trusting(node, kubernetes=expired.crt)
    assert overrides(clients.refused()) == ["client-ca"]
    trusting(node, kubernetes="garbage", signer="garbage")
    assert clients.refused() == [], "which is told by itself"


def test_no_ca_at_all_is_a_loss_but_for_kubelets(clients):
    clients.good()
    (line,) = clients.refused(api(client_ca_file=None))
    assert "client-ca-file loses CN=kubernetes-ca, serial " in line and " and CN=signer-ca, serial " in line
    assert clients.refused(api(kubelet_certificate_authority=None)) == []


# -- ranges -----------------------------------------------------------------------------------------------------------


def ranges(services="10.32.0.0/16", pods="10.200.0.0/16"):
    return {"cluster": {"service_cidr": services, "pod_cidr": pods}}


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ("10.32.0.0/16", "10.32.0.0/16,fd01::/112", False),
        ("10.32.0.0/16", "10.96.0.0/16", True),
        ("10.32.0.0/16", "10.32.0.0/15", True),
        ("10.32.0.0/16", "10.32.0.0/24", True),
        ("10.32.0.0/16", "fd01::/112,10.32.0.0/16", True),
        ("10.32.0.0/16,fd01::/112", "10.32.0.0/16", True),
        ("fd01::/112", "fd01:0::/112", False),
        ("fd01::/112", "fd01::/112,10.32.0.0/16", False),
    ],
)
def test_the_service_range_is_kept_and_may_get_a_second_family(clients, before, after, refused):
    clients.good(ranges(before))
    found = clients.refused(ranges(after))
    assert overrides(found) == ["service-cidr"] * refused
    for line in found:
        assert line.startswith(f"kubernetes_controller:cluster:service_cidr: {', '.join(after.split(','))} is declared, ")
        assert "https://kubernetes.io/docs/tasks/network/extend-service-ip-ranges/" in line
    assert clients.refused(ranges(after), ignore("service-cidr")) == []


def test_a_service_range_that_is_what_the_cluster_has_stored_mends_a_flag(clients):
    clients.good(ranges("10.96.0.0/16"))
    assert overrides(clients.refused()) == ["service-cidr"]
    clients.stored["servicecidrs"] = {"cidrs": ["10.32.0.0/16"]}
    assert clients.refused() == []
    (line,) = clients.refused(ranges("10.97.0.0/16"))
    assert "10.97.0.0/16 is declared, 10.32.0.0/16 is live." in line


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ("10.200.0.0/16", "10.200.0.0/15", False),
        ("10.200.0.0/16", "10.200.0.0/16,fd02::/48", False),
        ("10.200.0.0/16,fd02::/48", "10.200.0.0/16,fd02::/40", False),
        ("10.200.0.0/16", "10.201.0.0/16", True),
        ("10.200.0.0/16", "10.200.0.0/17", True),
        ("10.200.0.0/16", "fd02::/48,10.200.0.0/16", True),
        ("10.200.0.0/16,fd02::/48", "10.200.0.0/16", True),
    ],
)
def test_the_pod_range_still_contains_what_nodes_hold(clients, before, after, refused):
    clients.good(ranges(pods=before))
    found = clients.refused(ranges(pods=after), name=C)
    assert overrides(found) == ["pod-cidr"] * refused
    for line in found:
        assert line.startswith("kubernetes_controller:cluster:pod_cidr: ")
    assert clients.refused(ranges(pods=after), ignore("pod-cidr"), name=C) == []


def test_a_pod_range_that_is_not_handed_out_may_change(clients):
    off = {"controller_manager": {"settings": {"allocate-node-cidrs": False}}}
    clients.good(off)
    assert clients.refused(ranges(pods="10.201.0.0/16"), name=C) == []
    clients.good()
    assert clients.refused(off, ranges(pods="10.201.0.0/16"), name=C) == []


def test_a_pod_range_that_is_handed_out_again_is_the_one_that_nodes_have(clients):
    """In two rollouts: nothing is handed out, and then another range."""
    clients.good({"controller_manager": {"settings": {"allocate-node-cidrs": False}}})
    moved = ranges(pods="10.77.0.0/16")
    assert clients.refused(moved, name=C) == [], "the API server cannot be asked"
    spec = [{}, {"podCIDRs": ["10.200.1.0/24"]}, {"podCIDRs": ["10.200.2.0/24"]}]
    clients.stored["nodes"] = {"items": [{"metadata": {"name": f"worker-{n}"}, "spec": one} for n, one in enumerate(spec)]}
    (line,) = clients.refused(moved, name=C)
    assert "10.77.0.0/16 is declared, 10.200.1.0/24 is what node worker-1 has, and is not within it." in line
    assert overrides([line]) == ["pod-cidr"]
    assert clients.refused(moved, ignore("pod-cidr"), name=C) == []
    assert clients.refused(name=C) == clients.refused(ranges(pods="10.200.0.0/15"), name=C) == []


# -- the port ---------------------------------------------------------------------------------------------------------


def test_a_port_that_clients_ask_at_is_not_left(clients):
    layer = {"apiserver": {"port": 7443}}
    assert clients.refused(layer) == [], "a first rollout"
    clients.good()
    (line,) = clients.refused(layer)
    assert line.startswith("kubernetes_controller:apiserver:port: 7443 is declared, 6443 is live: nothing would listen there")
    assert "load balancer (kubernetes_controller:endpoint) that has both ports" in line
    assert overrides([line]) == ["api-port"]
    assert clients.refused(layer, ignore("api-port")) == []


# -- names in the certificate -----------------------------------------------------------------------------------------

NAMES = ["kubernetes", "controller-1", "k8s.example.com", "10.8.0.101", "10.32.0.1"]


@pytest.fixture
def certified(node, authorities):
    """A function that declares a certificate of the API server with these names."""

    def declare(*names, name="apiserver"):
        pair = authorities["kubernetes"].issue("kube-apiserver", ["serverAuth"], names)
        node.opts["pillar"][PKI] |= {f"{name}.crt": pair.crt, f"{name}.key": pair.key}

    return declare


def test_the_address_of_the_service_stays_in_the_certificate(clients, certified):
    certified(*NAMES)
    clients.good()
    assert clients.refused() == []
    certified(*NAMES, "10.96.0.1")
    assert clients.refused() == []
    certified(*NAMES[:-1], "10.96.0.1")
    (line,) = clients.refused()
    assert line.startswith(
        "kubernetes_controller:pki:certificates:apiserver:sans (kube-apiserver, tls.crt): the declared certificate is not valid "
        "for 10.32.0.1, the address of the Service `kubernetes`"
    )
    assert "pillar=" not in line, "what cannot be right has no override"
    (line,) = clients.refused(ranges("10.96.0.0/16"), ignore("service-cidr", "names"))
    assert "not valid for 10.32.0.1, the address of the Service" in line


def test_it_is_the_cluster_that_knows_the_address_of_the_service(clients, certified):
    certified(*NAMES, "10.96.0.1")
    clients.good(ranges("10.96.0.0/16"))  # the flag was changed, the Service was not
    clients.stored |= {"services": {"clusterIPs": ["10.32.0.1"]}, "servicecidrs": {"cidrs": ["10.32.0.0/16"]}}
    certified(*NAMES)
    assert clients.refused() == [], "10.96.0.1 is nobody's"
    certified(*NAMES[:-1], "10.96.0.1")
    (line,) = clients.refused(ranges("10.96.0.0/16"))
    assert "not valid for 10.32.0.1, the address of the Service" in line


def test_a_name_that_clients_may_use_is_not_dropped(clients, certified, node):
    certified(*NAMES)
    clients.good()
    certified("kubernetes", "controller-1", "10.8.0.101", "10.32.0.1")
    (line,) = clients.refused()
    assert "not valid for k8s.example.com, as the present one is" in line
    assert overrides([line]) == ["names"]
    assert clients.refused(ignore("names")) == []
    certified("KUBERNETES", "controller-1", "*.example.com", *NAMES[3:])
    assert clients.refused() == []
    node.opts["pillar"][PKI]["apiserver.crt"] = "garbage"
    assert clients.refused() == [], "which is told by itself"


def test_the_former_address_of_the_node_is_no_loss(clients, certified):
    certified(*NAMES)
    clients.good()
    certified("kubernetes", "controller-1", "k8s.example.com", "10.8.0.111", "10.32.0.1")
    assert clients.refused({"controllers": {"controller-1": "10.8.0.111"}}) == []


def test_a_name_may_move_to_a_certificate_of_its_own_and_an_address_may_not(clients, certified):
    certified(*NAMES)
    clients.good()
    certified("kubernetes", "controller-1", *NAMES[3:])
    certified("k8s.example.com", name="public")
    files = {"public.crt": {"pki": ["public.crt"]}, "public.key": {"pki": ["public.key"]}}
    own = {"apiserver": {"files": files, "settings": {"tls-sni-cert-key": "{live}/public.crt,{live}/public.key"}}}
    assert clients.refused(own) == []
    certified("kubernetes", "controller-1", "10.8.0.101")
    certified("k8s.example.com", "10.32.0.1", name="public")
    (line,) = clients.refused(own)
    assert "not valid for 10.32.0.1" in line


# -- what is adopted, and what the others have ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["--{}={}", "--{}\0{}"])
def test_what_is_adopted_is_protected_by_the_flags_of_its_process(clients, node, tmp_path, form):
    flags = {"service-account-issuer": "https://controller-1:6443", "v": "2", "service-cluster-ip-range": "10.32.0.0/24"}
    words = [word for item in flags.items() for word in form.format(*item).split("\0")]
    binary = tmp_path / A
    shutil.copy(os.path.realpath(sys.executable), binary)
    code = ["-c", "import sys, time; print(1, flush=True); time.sleep(60)", *words, "--profiling"]
    with subprocess.Popen([binary, *code], stdout=subprocess.PIPE, env={"PYTHONHOME": sys.base_prefix}) as process:
        process.stdout.readline()
        found = {"pid": process.pid, "binary": str(binary), "state": "active"}
        node.fake("k8s_component.process", side_effect=lambda name: found)
        try:
            adopt = {"rollout": {"adopt": True}}
            assert clients.refused() == [], "it is not touched"
            assert overrides(clients.refused(adopt)) == ["issuers", "service-cidr"]
            same = [api(service_account_issuer="https://controller-1:6443"), ranges("10.32.0.0/24")]
            assert clients.refused(adopt, *same) == []
            found["binary"] = "/usr/bin/other"
            assert clients.refused(adopt) == []
        finally:
            process.kill()


@pytest.fixture
def records(clients, node):
    """What the others published: a dictionary in the place of etcd."""
    etcd = {}
    node.fake("k8s_etcdctl.get", side_effect=lambda row, prefix, directory=None: etcd)
    node.fake("k8s_skew.neighbours", return_value=OTHERS)
    of_others = ("k8s_preflight.etcd", "k8s_preflight.not_accepted", "k8s_etcd_members.refusals")
    for name in ("k8s_host.ports", "k8s_host.disk", *of_others):
        node.fake(name, return_value=[])
    node.fake("k8s_skew.clock_refusals", return_value=[])
    node.fake("k8s_skew.version_refusals", return_value=[])

    def publish(*layers, minions=OTHERS):
        components = clients.rows(*layers)
        drafts = {name: node.modules["k8s_generation.draft"](row) for name, row in components.items()}
        text = json.dumps(node.modules["k8s_overlap.accepts"](components, drafts))
        for directory in drafts.values():
            shutil.rmtree(directory)
        etcd.update({f"/kubernetes_controller/accepts/{minion}": text for minion in minions})

    return publish


def checked(clients, *layers, changing=(A, C)):
    components = clients.rows(*layers)
    return clients.minion.modules["k8s_preflight.check"]({name: components[name] for name in changing}, components)["errors"]


def test_a_node_that_joins_has_what_clients_of_the_others_hold_on_to(clients, records):
    changed = [api(service_account_issuer=[ISSUER, "https://old"]), ranges("10.32.0.0/24", "10.201.0.0/16")]
    records(*changed)
    found = checked(clients)
    assert sorted(overrides(found)) == ["issuers", "pod-cidr", "service-cidr"]
    assert all("is live on controller-2" in line for line in found)
    assert checked(clients, *changed) == []
    assert checked(clients, ignore("issuers", "pod-cidr", "service-cidr")) == []
    clients.good()
    assert checked(clients) == [], "its own say what counts"


def test_a_record_of_an_older_formula_refuses_nothing(clients, records, node):
    node.fake("k8s_etcdctl.get", side_effect=lambda *_: {"/kubernetes_controller/accepts/controller-2": "{}"})
    assert checked(clients) == []


def test_the_preflight_tells_what_would_be_cut_off_also_in_test_mode(clients, node, records, testmode):
    clients.good()
    node.fake("k8s_component.foreign", return_value=None)
    components = clients.rows({"cluster": {"domain": "k8s.local", "service_cidr": "10.96.0.0/16", "pod_cidr": "10.201.0.0/16"}})
    ret = node.state("k8s_preflight.passed", "fits together", test=testmode, components=components)
    assert (ret.result, ret.changes) == (False, {})
    lines = ret.comment.splitlines()
    assert sorted(overrides(lines[:-1])) == ["issuers", "pod-cidr", "service-cidr"]
    assert lines[-1] == "Nothing was touched."
