"""What the pillar over the defaults means, and what is said when it means nothing."""

import subprocess
from pathlib import Path

import pytest
import yaml
from salt.exceptions import CommandExecutionError

FAULTS = yaml.safe_load(Path(__file__).with_name("config_faults.yaml").read_text())
EXTERNAL = {"etcd": {"managed": False, "servers": ["https://etcd-1.example.com:2379"]}}
SIGNER_OFF = {"pki": {"authorities": {"signer": {"enabled": False}}}}
BROUGHT = {"pki": {"authorities": {name: {"managed": False} for name in ("kubernetes", "signer", "etcd", "front-proxy")}}}


def settings(resolve, component, given):
    key = {"kube-apiserver": "apiserver", "kube-scheduler": "scheduler"}[component]
    return resolve({key: {"settings": given}})["components"][component]["settings"]


# -- merge ------------------------------------------------------------------------------------------------------------


def test_defaults_alone_are_enough_but_for_the_controllers(resolve, defaults):
    components = resolve()["components"]
    assert list(components) == ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]
    assert set(components["kube-apiserver"]["settings"]) == set(defaults["apiserver"]["settings"])


def test_dictionaries_merge_and_lists_and_scalars_replace(resolve):
    found = settings(resolve, "kube-apiserver", {"enable-admission-plugins": ["A", "B"], "audit-log-maxage": 40, "v": 2})
    assert (found["enable-admission-plugins"], found["audit-log-maxage"], found["v"]) == ("A,B", "40", "2")
    assert found["audit-log-maxbackup"] == "10"


def test_null_removes_an_entry_of_an_open_table_and_nothing_else(resolve):
    cfg = resolve(
        {
            "apiserver": {"settings": {"profiling": None}, "directories": {"{log_dir}/kube-apiserver": None}},
            "unit": {"Service": {"ProtectHome": None}},
            "objects": {"kubelet-client-role": None},
            "controllers": {"controller-3": None},
        }
    )
    row = cfg["components"]["kube-apiserver"]
    assert "profiling" not in row["settings"]
    assert row["directories"] == {}
    assert "ProtectHome" not in row["unit"]["Service"]
    assert list(cfg["objects"]) == ["kubelet-client-binding"]
    assert list(cfg["controllers"]) == ["controller-1", "controller-2"]


def test_the_defaults_are_never_changed_by_a_pillar(resolve, defaults, helpers):
    before = helpers.over(defaults, {})
    resolve(
        {
            "apiserver": {"settings": {"v": 1}, "files": {"ca.crt": {"pki": ["mine"]}}},
            "objects": {"x": {"apiVersion": "v1", "kind": "X", "metadata": {"name": "x"}}},
        }
    )
    assert defaults == before


@pytest.mark.parametrize("node", ["controller-1", None], ids=["node", "master"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault['at']} {fault['pillar']}"[:70])
def test_a_fault_is_one_sentence_that_names_its_place(resolve, fault, node):
    if fault.get("ok") or (fault.get("seen_by") == ("master" if node else "node")):
        resolve(fault["pillar"], node=node)
        return
    with pytest.raises(CommandExecutionError) as raised:
        resolve(fault["pillar"], node=node)
    (sentence,) = raised.value.errors
    assert sentence.startswith(f"kubernetes_controller{':' * bool(fault['at'])}{fault['at']}: "), sentence
    assert sentence.endswith((".", "Quote it.")), sentence
    assert [words for words in fault["says"] if words not in sentence] == [], sentence


def test_all_faults_are_told_at_once(resolve):
    with pytest.raises(CommandExecutionError) as raised:
        resolve({"release": 1, "apiserver": {"porrt": 1}, "interface": []})
    assert len(raised.value.errors) == 3


@pytest.mark.parametrize(
    ("node", "who"), [({"id": "web-1", "interfaces": {}}, "minion web-1"), (None, "the master's own minion id, controller-1")]
)
@pytest.mark.parametrize("pillar", [None, {}, "text", []])
def test_without_a_pillar_it_is_said_who_lacks_it(modules, defaults, node, who, pillar):
    with pytest.raises(CommandExecutionError) as raised:
        modules["k8s_config.resolve"](defaults, pillar, node)
    assert f"Pillar has no key `kubernetes_controller` for {who}." in str(raised.value)
    assert "pillar.example" in str(raised.value)


# -- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "flag"),
    [
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (0.001, "0.001"),
        ("", ""),
        ("text", "text"),
        (["b", "a", 1, True], "b,a,1,true"),
        ([], ""),
        ({"b": 2, "a": True}, "a=true,b=2"),
        ("{address}:{port}", "10.8.0.101:10259"),
        (["{id}", "{endpoint_host}", ""], "controller-1,"),
        ({"{id}": "{live}"}, "controller-1=/var/lib/kube-scheduler/live"),
        ("{release} {domain} {cluster_name} {service_ip}", "1.37.2 cluster.local kubernetes 10.32.0.1"),
        ("{user}:{group}", "kube-scheduler:kube-scheduler"),
        ("{Unknown} {} {A}", "{Unknown} {} {A}"),
    ],
)
def test_a_setting_becomes_one_flag(resolve, value, flag):
    assert settings(resolve, "kube-scheduler", {"x": value})["x"] == flag


@pytest.mark.parametrize(
    ("flag", "value", "given"),
    [
        ("service-account-issuer", ["https://{id}", "https://a"], ["https://controller-1", "https://a"]),
        ("service-account-issuer", "https://b,https://a", "https://b,https://a"),
        ("service-account-issuer", ["https://{id}", "{endpoint_host}"], "https://controller-1"),
        ("service-account-key-file", ["/b.pub", "/a.pub"], ["/b.pub", "/a.pub"]),
        ("tls-sni-cert-key", ["/b.crt,/b.key:b.com", "/a.crt,/a.key"], ["/b.crt,/b.key:b.com", "/a.crt,/a.key"]),
        ("oidc-required-claim", {"b": 1, "a": "x,y"}, ["a=x,y", "b=1"]),
        ("oidc-required-claim", {"a": True}, "a=true"),
        ("oidc-required-claim", ["b=1", "a=2"], ["b=1", "a=2"]),
        ("api-audiences", ["b", "a"], "b,a"),
    ],
)
def test_a_flag_that_kubernetes_repeats_is_given_once_per_element(modules, resolve, flag, value, given):
    row = resolve({"apiserver": {"settings": {flag: value}}})["components"]["kube-apiserver"]
    assert row["settings"][flag] == given
    lines = [line for line in modules["k8s_config.start_script"](row, "abc").splitlines() if f"--{flag}=" in line]
    assert len(lines) == (len(given) if isinstance(given, list) else 1)


@pytest.mark.parametrize(
    ("flag", "value", "joined"),
    [
        ("x", ["a", "b"], True),
        ("x", {"a": 1, "b": 2}, True),
        ("x", ["a"], False),
        ("x", "a,b", False),
        ("tls-sni-cert-key", ["a", "b"], False),
    ],
)
def test_what_was_joined_is_known_so_that_the_binary_can_be_asked(resolve, flag, value, joined):
    row = resolve({"scheduler": {"settings": {"requestheader-allowed-names": "x", "tls-cipher-suites": "y", flag: value}}})
    assert row["components"]["kube-scheduler"]["joined"] == [flag] * joined


def test_flags_are_sorted_whatever_the_order_of_the_pillar(resolve):
    found = list(settings(resolve, "kube-scheduler", {"zz": 1, "aa": 1}))
    assert found == sorted(found)


@pytest.mark.parametrize(
    "value",
    [
        ["{live}/tls.crt", "{live}/tls.key"],
        "{live}/tls.crt,{live}/tls.key:example.com",
        "{live}/kubeconfig.authority",
        "/elsewhere/live/x",
    ],
)
def test_a_flag_may_name_several_files_of_the_generation(resolve, value):
    kubeconfig = {"kubeconfig": {"kubeconfig": {"embed": False}}}
    row = resolve({"scheduler": {"settings": {"x": value}, "files": kubeconfig}})["components"]["kube-scheduler"]
    assert "x" in row["settings"]


@pytest.mark.parametrize(
    "value", ["a b", "it's", '"quoted"', "$HOME", "`id`", "a\\b", "*", "#x", "a=b,c", "é", "--x", "", "; exit 1"]
)
def test_the_start_script_hands_every_value_to_the_binary_as_it_is(modules, resolve, tmp_path, value):
    row = resolve({"scheduler": {"settings": {"a-odd": value, "z-odd": value}}})["components"]["kube-scheduler"]
    spy = tmp_path / "spy"
    spy.write_text('#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done\n')
    spy.chmod(0o755)
    start = tmp_path / "start"
    start.write_text(modules["k8s_config.start_script"]({**row, "binary": str(spy)}, "abc"))
    seen = subprocess.run(["/bin/sh", str(start)], capture_output=True, check=True).stdout.decode().split("\0")[:-1]
    assert seen == [f"--{flag}={text}" for flag, text in row["settings"].items()]


def test_the_start_script_names_release_and_checksum(modules, resolve):
    text = modules["k8s_config.start_script"](resolve()["components"]["kube-scheduler"], "abc123")
    assert text.startswith(
        "#!/bin/sh\n# kube-scheduler 1.37.2 sha256:abc123\n# never shown: kubeconfig\n"
        "exec /opt/kubernetes/1.37.2/bin/kube-scheduler \\\n"
    )
    assert text.endswith("\n")


# -- units ------------------------------------------------------------------------------------------------------------


def test_a_components_unit_lies_over_the_common_one(modules, resolve):
    layer = {"unit": {"Service": {"Nice": 5}}, "scheduler": {"unit": {"Service": {"Nice": 7, "Environment": ["A=1", "B=2"]}}}}
    components = resolve(layer)["components"]
    text = modules["k8s_config.unit_text"](components["kube-scheduler"])
    assert "\nNice=7\n" in text
    assert "\nEnvironment=A=1\nEnvironment=B=2\n" in text
    assert "\nExecStart=/bin/sh /var/lib/kube-scheduler/live/start\n" in text
    assert "\nUser=kube-scheduler\n" in text
    assert "\nNoNewPrivileges=true\n" in text
    assert text.index("[Unit]") < text.index("[Service]") < text.index("[Install]")
    assert "\nNice=5\n" in modules["k8s_config.unit_text"](components["kube-apiserver"])


# -- shapes of clusters -----------------------------------------------------------------------------------------------


def test_managed_etcd_is_named_by_all_controllers(resolve):
    components = resolve()["components"]
    servers = "https://10.8.0.101:2379,https://10.8.0.102:2379,https://10.8.0.103:2379"
    assert components["kube-apiserver"]["settings"]["etcd-servers"] == servers
    flags = components["etcd"]["settings"]
    assert flags["name"] == "controller-1"
    first = components["etcd"]["first_start"]
    assert first["initial-cluster"].split(",")[2] == "controller-3=https://10.8.0.103:2380"
    assert first["initial-cluster-token"] == "kubernetes"
    assert flags["listen-client-urls"] == "https://10.8.0.101:2379"


def test_external_etcd_is_not_run_and_its_certificates_are_brought(resolve):
    assert "etcd" not in resolve(EXTERNAL)["components"]
    cluster = resolve(EXTERNAL, node=None)
    assert ["etcd"] not in cluster["phases"]
    assert not {"apiserver-etcd-client", "etcd-server"} & {row["name"] for row in cluster["pki"]["certificates"]}
    brought = {row["name"]: row["sources"] for row in cluster["pki"]["deliveries"] if row["minion"] == "controller-1"}
    for name in ("etcd-ca.crt", "apiserver-etcd-client.crt", "apiserver-etcd-client.key"):
        base = "/srv/kubernetes_controller/pki/brought"
        assert brought[name] == [f"{base}/controller-1/{name}", f"{base}/{name}"]


def test_one_controller_is_a_cluster(resolve):
    cfg = resolve({"controllers": {"controller-2": None, "controller-3": None}})
    assert cfg["components"]["kube-apiserver"]["settings"]["etcd-servers"] == "https://10.8.0.101:2379"
    assert cfg["components"]["etcd"]["first_start"]["initial-cluster"] == "controller-1=https://10.8.0.101:2380"


def test_what_only_a_first_start_reads_is_no_part_of_a_members_generation(resolve, defaults):
    etcd = resolve()["components"]["etcd"]
    fewer = resolve({"controllers": {"controller-3": None}})["components"]["etcd"]
    assert not [flag for flag in etcd["settings"] if flag.startswith("initial-")]
    assert (etcd["settings"], etcd["unit"]) == (fewer["settings"], fewer["unit"])
    kept = resolve({"etcd": {"settings": {"initial-election-tick-advance": False}}})["components"]["etcd"]
    assert kept["settings"]["initial-election-tick-advance"] == "false"  # read at each start


def test_a_member_without_data_ends_unless_it_was_allowed_to_start(resolve):
    service = resolve({"etcd": {"unit": {"Service": {"Environment": ["GOGC=50"]}}}})["components"]["etcd"]["unit"]["Service"]
    assert service["Environment"] == ["GOGC=50", "ETCD_INITIAL_CLUSTER_STATE=existing"]
    assert service["EnvironmentFile"] == ["-/run/kubernetes-controller-first-start.env"]


def test_a_flag_that_makes_one_member_a_cluster_of_its_own_is_refused(resolve):
    with pytest.raises(Exception, match="kubernetes_controller:etcd:settings:force-new-cluster: "):
        resolve({"etcd": {"settings": {"force-new-cluster": True}}})


def test_ipv6_controllers_have_brackets_in_urls_only(resolve):
    addresses = {f"controller-{number}": f"fd00::{number}" for number in (1, 2, 3)}
    layer = {"controllers": addresses, "cluster": {"service_cidr": "fd01::/112", "pod_cidr": "fd02::/48"}}
    flags = resolve(layer)["components"]["kube-apiserver"]["settings"]
    assert (flags["bind-address"], flags["advertise-address"]) == ("fd00::1", "fd00::1")
    assert flags["etcd-servers"].startswith("https://[fd00::1]:2379,https://[fd00::2]:2379")
    (api,) = [
        row
        for row in resolve(layer, node=None)["pki"]["certificates"]
        if (row["name"], row["minion"]) == ("apiserver", "controller-1")
    ]
    assert {"IP:fd00::1", "IP:fd01::1", "IP:127.0.0.1", "DNS:localhost"} <= set(api["sans"])
    assert resolve(layer, node=None)["admin"]["server"] == "https://[fd00::1]:6443"


def test_dual_stack_uses_the_first_service_range_for_the_first_address(resolve):
    cfg = resolve({"cluster": {"service_cidr": "10.32.0.0/16,fd01::/112", "pod_cidr": "10.200.0.0/16,fd02::/48"}}, node=None)
    assert "IP:10.32.0.1" in cfg["pki"]["certificates"][0]["sans"]


def test_without_the_signer_nothing_of_it_is_left(resolve):
    row = resolve(SIGNER_OFF)["components"]["kube-controller-manager"]
    assert not [flag for flag in row["settings"] if flag.startswith("cluster-signing-")]
    assert not {"signer.crt", "signer.key"} & set(row["files"])
    assert row["files"]["client-ca.crt"]["pki"] == ["kubernetes-ca.crt"]
    assert "signer.crt" not in row["pairs"]
    assert not [row for row in resolve(SIGNER_OFF, node=None)["pki"]["deliveries"] if "signer" in row["name"]]


def test_switched_off_components_are_not_there(resolve):
    cfg = resolve({"scheduler": {"enabled": False}, "apiserver": {"enabled": False}})
    assert list(cfg["components"]) == ["etcd", "kube-controller-manager"]
    assert cfg["components"]["kube-controller-manager"]["api"] is None
    assert cfg["after"] == {}


def test_each_component_waits_for_what_it_needs_on_its_node(resolve):
    assert resolve()["after"] == {
        "kube-apiserver": "etcd",
        "kube-controller-manager": "kube-apiserver",
        "kube-scheduler": "kube-apiserver",
    }


def test_an_endpoint_is_in_the_certificate_and_in_the_operators_kubeconfig(resolve):
    layer = {"endpoint": {"host": "k8s.example.com", "port": 443}}
    cluster = resolve(layer, node=None)
    assert cluster["admin"]["server"] == "https://k8s.example.com:443"
    assert "DNS:k8s.example.com" in cluster["pki"]["certificates"][0]["sans"]
    row = resolve(layer)["components"]["kube-apiserver"]
    assert row["pairs"]["tls.crt"]["sans"] == ["10.8.0.101", "k8s.example.com"]
    assert resolve()["components"]["kube-apiserver"]["pairs"]["tls.crt"]["sans"] == ["10.8.0.101"]


# -- certificates and deliveries --------------------------------------------------------------------------------------


def test_the_master_makes_each_minions_certificates_and_its_own(resolve):
    pki = resolve(node=None)["pki"]
    made = {(row["minion"], row["name"]) for row in pki["certificates"]}
    assert (None, "admin") in made
    assert ("controller-1", "admin") not in made
    for minion in ("controller-1", "controller-2", "controller-3"):
        assert {name for who, name in made if who == minion} == {
            "apiserver", "apiserver-kubelet-client", "apiserver-etcd-client", "front-proxy-client", "controller-manager",
            "controller-manager-server", "scheduler", "scheduler-server", "etcd-server", "etcd-peer",
        }  # fmt: skip
    own = next(row for row in pki["certificates"] if (row["minion"], row["name"]) == ("controller-2", "etcd-peer"))
    directory = "/srv/kubernetes_controller/pki/hosts/controller-2/kubernetes_controller_pki"
    assert (own["path"], own["key"]) == (f"{directory}/etcd-peer.crt", f"{directory}/etcd-peer.key")
    assert own["sans"] == ["DNS:controller-2", "IP:10.8.0.102"]
    assert own["common_name"] == "controller-2"


def test_ca_keys_stay_on_the_master_but_for_the_signers(resolve):
    names = {row["name"] for row in resolve(node=None)["pki"]["deliveries"]}
    assert {name for name in names if name.endswith("-ca.key")} == {"signer-ca.key"}


def test_a_minion_gets_each_file_that_its_rows_name_once(resolve, defaults):
    pki = resolve(node=None)["pki"]
    targets = [row["target"] for row in pki["deliveries"] if row["minion"] == "controller-1"]
    targets += [row[key] for row in pki["certificates"] if row["minion"] == "controller-1" for key in ("path", "key")]
    assert len(targets) == len(set(targets))
    wanted = set()
    for row in resolve()["components"].values():
        for file in row["files"].values():
            asked = file.get("kubeconfig", {})
            wanted |= {
                *file.get("pki", []),
                *asked.get("authority", []),
                *([asked["certificate"], asked["key"]] if asked else []),
            }
    assert {target.rpartition("/")[2] for target in targets} == wanted | {"encryption-key1", "cluster.json"}


def test_brought_files_have_the_names_of_the_operator(resolve):
    files = {
        "kubernetes-ca.crt": "ca-k8s-apiserver.pem",
        "apiserver.crt": "cert-k8s-apiserver.pem",
        "admin.key": "cert-admin-key.pem",
    }
    cluster = resolve(BROUGHT, {"pki": {"files": files}}, node=None)
    assert cluster["pki"]["certificates"] == []
    rows = {row["name"]: row for row in cluster["pki"]["deliveries"] if row["minion"] == "controller-2"}
    assert "kubernetes-ca.crt" not in rows
    assert (
        rows["cert-k8s-apiserver.pem"]["sources"][0]
        == "/srv/kubernetes_controller/pki/brought/controller-2/cert-k8s-apiserver.pem"
    )
    assert cluster["admin"]["authority"] == "/srv/kubernetes_controller/pki/brought/ca-k8s-apiserver.pem"
    assert cluster["admin"]["made"] is False
    assert cluster["admin"]["key"] == "/srv/kubernetes_controller/pki/brought/cert-admin-key.pem"


def test_a_managed_ca_keeps_its_place_on_the_master_whatever_it_is_called_on_minions(resolve):
    cluster = resolve({"pki": {"files": {"kubernetes-ca.crt": "ca.pem"}}}, node=None)
    (row,) = [row for row in cluster["pki"]["deliveries"] if (row["minion"], row["name"]) == ("controller-1", "ca.pem")]
    assert row["sources"] == ["/srv/kubernetes_controller/pki/authorities/kubernetes-ca.crt"]
    (own,) = [row for row in cluster["pki"]["deliveries"] if row["minion"] is None]
    assert (own["sources"], cluster["admin"]["authority"]) == (row["sources"], own["target"])


def test_encryption_keys_are_made_once_each_and_delivered(resolve):
    keys = [{"secretbox": {"keys": ["new", "old"]}}, {"aescbc": {"keys": ["old"]}}, {"identity": {}}]
    layer = {"encryption": [{"resources": ["secrets"], "providers": keys}, {"resources": ["configmaps"], "providers": keys[:1]}]}
    pki = resolve(layer, node=None)["pki"]
    assert pki["encryption_keys"] == ["new", "old"]
    sources = {row["name"]: row["sources"] for row in pki["deliveries"]}
    assert sources["new"] == ["/srv/kubernetes_controller/pki/shared/new"]
    brought = resolve(layer, {"pki": {"encryption": {"managed": False}}}, node=None)["pki"]["deliveries"]
    assert {row["name"]: row["sources"] for row in brought}["old"][-1] == "/srv/kubernetes_controller/pki/brought/old"


def test_service_account_keys_can_be_brought(resolve):
    pki = resolve({"pki": {"service_account": {"managed": False}}}, node=None)["pki"]
    sources = {row["name"]: row["sources"] for row in pki["deliveries"]}
    assert sources["service-account.key"][-1] == "/srv/kubernetes_controller/pki/brought/service-account.key"


# -- downloads --------------------------------------------------------------------------------------------------------


# -- leaders ----------------------------------------------------------------------------------------------------------


def election(**words):
    return {"config": {"leaderElection": words}}


@pytest.mark.parametrize(
    ("section", "layer", "lease"),
    [
        ("controller_manager", {}, "kube-controller-manager"),
        ("controller_manager", {"settings": {"leader-elect": False}}, ""),
        ("controller_manager", {"settings": {"leader-elect": "False"}}, ""),
        ("controller_manager", {"settings": {"leader-elect": "true", "leader-elect-resource-name": "mine"}}, "mine"),
        ("controller_manager", {"settings": {"leader-elect-resource-namespace": "a"}}, "a/kube-controller-manager"),
        ("controller_manager", {"settings": {"leader-elect": False}, "probe": {"lease": "theirs"}}, "theirs"),
        ("controller_manager", {"probe": {"lease": ""}}, ""),
        ("scheduler", {}, "kube-scheduler"),
        ("scheduler", election(leaderElect=False), ""),
        ("scheduler", election(leaderElect="false"), ""),
        ("scheduler", election(resourceName="mine", resourceNamespace="kube-system"), "mine"),
        ("scheduler", election(resourceName="mine", resourceNamespace="a"), "a/mine"),
        ("scheduler", {"settings": {"leader-elect": False}}, ""),
        ("scheduler", {"settings": {"leader-elect": True}, **election(leaderElect=False)}, "kube-scheduler"),
        ("scheduler", {"settings": {"config": None, "kubeconfig": "/x"}, **election(leaderElect=False)}, "kube-scheduler"),
        ("scheduler", {"config": {"leaderElection": None}}, "kube-scheduler"),
        ("scheduler", {"files": {"scheduler.yaml": {"config": None, "text": "leaderElection: {leaderElect: false}"}}}, ""),
        ("scheduler", {"files": {"scheduler.yaml": {"config": None, "text": "a: ["}}}, "kube-scheduler"),
    ],
    ids=str,
)
def test_the_lease_that_is_looked_at_is_the_one_that_is_taken(resolve, section, layer, lease):
    name = {"controller_manager": "kube-controller-manager", "scheduler": "kube-scheduler"}[section]
    assert resolve({section: layer})["components"][name]["probe"]["lease"] == lease


# -- downloads --------------------------------------------------------------------------------------------------------


def test_downloads_are_at_the_mirror_for_this_architecture(resolve):
    rows = {row["name"]: row for row in resolve({"binaries": {"mirror": "http://mirror/"}})["downloads"]}
    assert rows["kubectl"]["source"] == "http://mirror/v1.37.2/bin/linux/amd64/kubectl"
    assert rows["kubectl"]["sums"] == "http://mirror/v1.37.2/bin/linux/amd64/kubectl.sha256"
    assert rows["kubectl"]["links"] == {"/usr/local/bin/kubectl": "/opt/kubernetes/1.37.2/bin/kubectl"}
    assert rows["etcd"]["members"]["etcdctl"] == "etcd-v3.7.3-linux-amd64/etcdctl"


@pytest.mark.parametrize(("machine", "arch"), [("aarch64", "arm64"), ("ppc64le", "ppc64le"), ("sparc", "sparc")])
def test_a_node_fetches_for_its_own_architecture(minion, declared, defaults, machine, arch):
    one = minion({"kubernetes_controller": declared}, grains={"cpuarch": machine})
    one.fake("network.interfaces", return_value={"tap0": {"inet": [{"address": "10.8.0.101"}]}})
    rows = {row["name"]: row for row in one.modules["k8s_config.load"](defaults)["downloads"]}
    assert rows["kubectl"]["source"] == f"https://dl.k8s.io/v1.37.2/bin/linux/{arch}/kubectl"
    assert rows["etcd"]["source"].endswith(f"/v3.7.3/etcd-v3.7.3-linux-{arch}.tar.gz")
    assert rows["etcd"]["members"]["etcdctl"] == f"etcd-v3.7.3-linux-{arch}/etcdctl"


def test_a_binary_that_is_not_fetched_is_not_the_formulas(resolve):
    cfg = resolve({"binaries": {"names": ["kubectl"]}})
    assert cfg["components"]["kube-scheduler"]["binary_managed"] is False
    assert "kube-scheduler" not in [row["name"] for row in cfg["downloads"]]


@pytest.mark.parametrize("layer", [{}, {"scheduler": {"enabled": False}}, EXTERNAL], ids=["all", "no scheduler", "no etcd"])
def test_the_release_of_what_still_runs_stays_though_it_is_not_declared_any_more(resolve, layer):
    cfg = resolve(layer)
    homes = ["kubernetes-etcd", "kubernetes", "kube-controller-manager", "kube-scheduler"]
    for row in [*cfg["releases"], *cfg["downloads"]]:
        assert row["homes"] == [f"/var/lib/{home}" for home in homes]


# -- load -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(minion, declared):
    """Return a function: k8s_config.load on a minion whose tap0 has controller-1's address."""
    facts = {"tap0": {"up": True, "inet": [{"address": "10.8.0.101"}], "inet6": [{"address": "fd00::1"}]}, "lo": {"up": True}}

    def load(layer=None, defaults=None, synced_now=False, secondary=(), **kw):
        facts["tap0"]["secondary"] = list(secondary)
        again = {"kubernetes_controller_synced": True} if synced_now else {}
        one = minion({"kubernetes_controller": {**declared, **(layer or {})}, **again}, **kw)
        one.fake("network.interfaces", return_value=facts)
        return one.modules["k8s_config.load"](defaults)

    return load


def test_load_reads_the_defaults_from_the_file_server_and_the_nodes_facts(loaded):
    cfg = loaded()
    assert "errors" not in cfg, cfg
    assert cfg["node"] == {
        "id": "controller-1",
        "arch": "amd64",
        "interfaces": {"tap0": ["10.8.0.101", "fd00::1"], "lo": []},
        "address": "10.8.0.101",
    }


@pytest.mark.parametrize("address", ["10.8.0.111", "fd00::11"])
def test_a_secondary_address_of_the_interface_can_be_a_controllers(loaded, address):
    secondary = [{"type": "inet", "address": "10.8.0.111"}, {"type": "inet6", "address": "fd00::11"}]
    cfg = loaded({"controllers": {"controller-1": address}}, secondary=secondary)
    assert "errors" not in cfg, cfg
    assert cfg["node"]["interfaces"]["tap0"] == ["10.8.0.101", "fd00::1", "10.8.0.111", "fd00::11"]
    (sentence,) = loaded({"controllers": {"controller-1": address}})["errors"]
    assert "(it has 10.8.0.101, fd00::1)" in sentence


def test_load_on_the_master_is_the_clusters_view(loaded):
    assert loaded(master=True)["components"] == {}


def test_load_tells_faults_instead_of_raising(loaded):
    assert loaded({"interface": "eth9"})["errors"][0].startswith("kubernetes_controller:interface: ")


def test_modules_of_another_version_than_the_defaults_are_stale(loaded, defaults):
    assert loaded(defaults={**defaults, "version": "9.9.9"})["stale"] is True


class Broken(dict):
    """Defaults that the modules do not understand; what they say of it is a secret."""

    def items(self):
        raise KeyError("c2VjcmV0")


@pytest.mark.parametrize("master", [False, True], ids=["node", "master"])
@pytest.mark.parametrize(
    ("synced", "test", "stale"),
    [(False, False, True), (True, False, False), (False, True, False), (True, True, False)],
    ids=["first round", "synced", "testmode", "synced testmode"],
)
def test_what_is_not_understood_is_an_error_unless_a_sync_may_heal_it(loaded, defaults, master, synced, test, stale):
    answer = loaded(defaults=Broken(defaults), synced_now=synced, test=test, master=master)
    assert answer.get("stale", False) is stale
    (sentence,) = answer["errors"]
    assert sentence.startswith("the pillar of kubernetes_controller is not understood (KeyError in k8s_declared.py, over, line ")
    assert "saltutil.sync_all" in sentence
    assert "c2VjcmV0" not in sentence
