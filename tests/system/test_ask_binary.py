"""What the real binaries say of flags, gates and plugins, asked without a node: promise 2's first and cheapest line."""

import os
import shutil
import socket

import pytest

GOOD = {"errors": [], "warnings": []}
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd")


@pytest.fixture
def ask(node, rows, real_binaries):
    """Return a function: what the preflight says of a component for a layer of the pillar, with the real binary."""

    def asked(name, *layers):
        row = rows(*layers, binaries=False)[name]
        os.makedirs(os.path.dirname(row["binary"]), exist_ok=True)
        if not os.path.exists(row["binary"]):
            os.symlink(real_binaries[name], row["binary"])
        directory = node.modules["k8s_generation.draft"](row)
        try:
            return node.modules["k8s_ask_binary.problems"](row, directory)
        finally:
            shutil.rmtree(directory)

    return asked


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize("address", ["{address}", "0.0.0.0", "127.0.0.1"])
def test_the_defaults_pass(ask, name, address, rows):
    key = rows(binaries=False)[name]["key"]
    flags = {"bind-address": address}
    if name == "etcd":
        flags = {f"listen-{kind}-urls": f"https://{address}:{port}" for kind, port in (("client", 2379), ("peer", 2380))}
    assert ask(name, {key: {"settings": flags}}) == GOOD


def api(**settings):
    return "kube-apiserver", {"apiserver": {"settings": {name.replace("_", "-"): value for name, value in settings.items()}}}


def manager(**settings):
    return "kube-controller-manager", {"controller_manager": {"settings": {k.replace("_", "-"): v for k, v in settings.items()}}}


def scheduler(**settings):
    return "kube-scheduler", {"scheduler": {"settings": {name.replace("_", "-"): value for name, value in settings.items()}}}


def etcd(**settings):
    return "etcd", {"etcd": {"settings": {name.replace("_", "-"): value for name, value in settings.items()}}}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (api(aduit_log_maxage=3), "aduit-log-maxage: kube-apiserver 1.37.2 has no such flag (nearest: audit-log-maxage)."),
        (api(audit_log_maxage="abc"), 'audit-log-maxage: kube-apiserver 1.37.2 refuses it: invalid argument "abc"'),
        (api(v="much"), 'v: kube-apiserver 1.37.2 refuses it: invalid argument "much" for "-v, --v" flag'),
        (
            api(feature_gates={"WachList": True}),
            "feature-gates: kube-apiserver 1.37.2 has no feature gate WachList (nearest: WatchList).",
        ),
        (api(feature_gates={"WatchList": "maybe"}), "feature-gates: invalid value of WatchList=maybe"),
        (
            api(enable_admission_plugins=["NodeRestriction", "PodSecurtiy"]),
            "enable-admission-plugins: kube-apiserver 1.37.2 has no admission plugin PodSecurtiy (nearest: PodSecurity).",
        ),
        (
            api(disable_admission_plugins=["Nope"]),
            "disable-admission-plugins: kube-apiserver 1.37.2 has no admission plugin Nope",
        ),
        (api(runtime_config={"nope/v1": True}), "settings: kube-apiserver 1.37.2 refuses it: unknown api groups nope/v1."),
        (
            api(authorization_mode=["Nope"]),
            'authorization-mode: kube-apiserver 1.37.2 refuses it: authorization-mode "Nope" is not',
        ),
        (api(goaway_chance=5), "goaway-chance: kube-apiserver 1.37.2 refuses it: --goaway-chance can not be"),
        (
            api(service_account_signing_key_file="/nope"),
            "service-account-signing-key-file: kube-apiserver 1.37.2 refuses it: failed to parse service-account-i",
        ),
        (
            ("kube-apiserver", {"apiserver": {"files": {"service-account.key": {"pki": None, "text": "garbage"}}}}),
            "service-account-signing-key-file: kube-apiserver 1.37.2 refuses it: failed to parse service-account-i",
        ),
        (
            manager(node_monitor_priod="6s"),
            "node-monitor-priod: kube-controller-manager 1.37.2 has no such flag (nearest: node-m",
        ),
        (
            manager(node_monitor_period="6"),
            'node-monitor-period: kube-controller-manager 1.37.2 refuses it: invalid argument "6"',
        ),
        (
            manager(controllers=["nope"]),
            'settings:controllers: kube-controller-manager 1.37.2 refuses it: "nope" is not in the list of known',
        ),
        (manager(feature_gates={"Nope": True}), "feature-gates: kube-controller-manager 1.37.2 has no feature gate Nope"),
        (
            scheduler(leader_elect_lease_duration="x"),
            'leader-elect-lease-duration: kube-scheduler 1.37.2 refuses it: invalid argument "x"',
        ),
        (
            ("kube-scheduler", {"scheduler": {"config": {"apiVersion": "kubescheduler.config.k8s.io/v1beta2"}}}),
            ':config: kube-scheduler 1.37.2 refuses it: no kind "KubeSchedulerConfiguration" is registered for version',
        ),
        (
            ("kube-scheduler", {"scheduler": {"config": {"parallelsm": 3}}}),
            ':config: kube-scheduler 1.37.2 refuses it: strict decoding error: unknown field "parallelsm"',
        ),
        (etcd(heartbeat_intervall=3), "heartbeat-intervall: etcd 3.7.3 has no such flag (nearest: heartbeat-interval)."),
        (etcd(heartbeat_interval="abc"), 'heartbeat-interval: etcd 3.7.3 refuses it: invalid value "abc"'),
        (etcd(auto_compaction_mode="nope"), 'auto-compaction-mode: etcd 3.7.3 refuses it: unknown auto-compaction-mode "nope"'),
        (etcd(election_timeout=10), "election-timeout: etcd 3.7.3 refuses it: --election-timeout[10ms] should be"),
        (etcd(feature_gates={"Nope": True}), "feature-gates: etcd 3.7.3 has no feature gate Nope"),
    ],
    ids=str,
)
def test_what_a_binary_refuses_is_one_sentence_with_its_pillar_key(ask, wrong, says):
    name, layer = wrong
    answer = ask(name, layer)
    assert len(answer["errors"]) == 1, answer
    assert says in answer["errors"][0]
    assert answer["errors"][0].startswith(
        f"kubernetes_controller:{next(iter(layer))}:{'config' if says.startswith(':config') else 'settings'}"
    )
    assert "/run/" not in answer["errors"][0]


def test_the_flags_that_are_repeated_are_those_that_the_binaries_say(modules, real_binaries):
    """By type, or by a word in --help: the table of the configuration cannot go stale."""
    table = set(modules["k8s_config.resolve"].func.__globals__["REPEATED"])
    words, found = ("Repeat this flag", "flag multiple times", "specified multiple times"), set()
    for name in COMPONENTS[:3]:
        for flag, said in modules["k8s_ask_binary.options"](real_binaries[name])["flags"].items():
            many = said["type"] in ("stringArray", "namedCertKey") or any(one in said["help"] for one in words)
            found |= {flag} if many else set()
    said = modules["k8s_ask_binary.options"](real_binaries["etcd"])["flags"]
    found |= {flag for flag, one in said.items() if "times" in one["help"].lower()}
    assert found == table


def test_repeated_flags_pass_with_their_order_and_a_list_for_one_value_does_not(ask, material):
    files = {
        name: {"text": material["apiserver.crt" if name.endswith("crt") else "apiserver.key"]} for name in ("b.crt", "b.key")
    }
    name, layer = api(
        service_account_issuer=["https://b", "https://a"],
        service_account_key_file=["{live}/service-account.pub", "{live}/b.pub"],
        tls_sni_cert_key=["{live}/tls.crt,{live}/tls.key", "{live}/b.crt,{live}/b.key:example.com"],
        authentication_config=None, oidc_issuer_url="https://oidc", oidc_client_id="me",
        oidc_required_claim={"a": "b,c", "d": "e"},
        service_cluster_ip_range=["10.32.0.0/16", "fd01::/112"],
    )  # fmt: skip
    layer["apiserver"]["files"] = {**files, "b.pub": {"text": material["service-account.pub"]}}
    assert ask(name, layer, {"cluster": {"service_cidr": "10.32.0.0/16,fd01::/112"}}) == GOOD
    (sentence,) = ask(*api(external_hostname=["a.example.com", "b.example.com"]))["errors"]
    assert sentence.startswith(
        "kubernetes_controller:apiserver:settings:external-hostname: kube-apiserver 1.37.2 takes one value"
    )


@pytest.mark.parametrize("name", COMPONENTS[:3])
def test_the_lists_of_the_defaults_are_lists_for_the_binaries(modules, real_binaries, rows, defaults, name):
    known = modules["k8s_ask_binary.options"](real_binaries[name])["flags"]
    declared = defaults[rows(binaries=False)[name]["key"]]["settings"]
    lists = {flag: known[flag]["type"] for flag, value in declared.items() if isinstance(value, (list, dict))}
    assert lists
    assert set(lists.values()) <= {"strings"}, lists


def test_all_faults_of_form_are_told_at_once(ask):
    name, layer = api(nope=1, audit_log_maxage="abc", feature_gates={"Nope": True, "Nopo": True}, v="x", goaway_chance=5)
    assert len(ask(name, layer)["errors"]) == 6


def test_a_gate_that_help_does_not_list_is_a_warning_where_the_binary_takes_it(ask):
    answer = ask(*api(feature_gates={"SELinuxMount": True, "WatchList": True}))
    assert answer["errors"] == []
    (warning,) = answer["warnings"]
    assert warning.startswith(
        "kubernetes_controller:apiserver:settings:feature-gates: kube-apiserver 1.37.2 does not list SELinuxMount"
    )


def test_a_deprecated_flag_is_a_warning(ask):
    answer = ask(*scheduler(kube_api_qps=50))
    assert answer["errors"] == []
    (warning,) = answer["warnings"]
    assert warning.startswith(
        "kubernetes_controller:scheduler:settings:kube-api-qps: kube-scheduler 1.37.2 calls the flag deprecated"
    )


def test_the_dry_run_reaches_no_etcd_and_writes_nothing(ask, tmp_path, helpers):
    """A listener in etcd's place sees no connection, also where the API server could bind its address here."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.5)
        server = f"https://127.0.0.1:{listener.getsockname()[1]}"
        ask(*api())
        before = helpers.tree(tmp_path)
        assert ask(*api(etcd_servers=server, bind_address="127.0.0.1"), {"apiserver": {"port": 10443}}) == GOOD
        assert ask(*api(etcd_servers=server, bind_address="127.0.0.1")) == GOOD
        assert helpers.tree(tmp_path) == before
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize("is_there", [True, False], ids=["there", "yet to be made"])
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "foreign"])
@pytest.mark.parametrize(
    ("name", "flag", "file"),
    [
        ("etcd", "log-outputs", "etcd.log"),
        ("etcd", "log-outputs", ["stderr", "etcd.log"]),
        ("etcd", "wal-dir", "wal"),
        ("etcd", "data-dir", "data"),
        ("kube-apiserver", "audit-log-path", "audit.log"),
        ("kube-apiserver", "cert-dir", "made"),
        ("kube-scheduler", "write-config-to", "config.yaml"),
    ],
    ids=str,
)
def test_no_flag_makes_the_dry_run_write_a_file(ask, rows, tmp_path, helpers, name, flag, file, listed, is_there):
    """Nor is a directory missed that only ``prepare`` makes; one that nobody makes is the binary's own complaint."""
    directory = tmp_path / "written"
    if is_there:
        directory.mkdir()
    value = [one if one == "stderr" else f"{directory}/{one}" for one in ([file] if isinstance(file, str) else file)]
    key = rows(binaries=False)[name]["key"]
    layer = {key: {"settings": {flag: value}, **({"directories": {str(directory): "0750"}} if listed else {})}}
    ask(name)
    before = helpers.tree(tmp_path)
    said = ask(name, layer)["errors"]
    assert helpers.tree(tmp_path) == before
    if listed or is_there:
        assert said == []


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [("etcd", "log-outputs", ["stderr", "{}"]), ("etcd", "log-outputs", "file://{}"), ("kube-apiserver", "audit-log-path", "{}")],
    ids=str,
)
def test_no_flag_makes_the_dry_run_write_to_a_pipe_or_wait_for_its_reader(ask, rows, tmp_path, name, flag, value):
    os.mkfifo(pipe := tmp_path / "pipe")
    value = [one.format(pipe) for one in value] if isinstance(value, list) else value.format(pipe)
    layer = {rows(binaries=False)[name]["key"]: {"settings": {flag: value}}}
    assert ask(name, layer) == GOOD  # nobody reads
    heard = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert ask(name, layer) == GOOD
    assert os.read(heard, 1) == b""
    os.close(heard)


@pytest.mark.parametrize("size", [0, 100, 1_000_000, 60_000_000])
def test_a_truncated_binary_is_one_sentence(node, rows, real_binaries, size, tmp_path):
    row = rows(binaries=False)["kube-apiserver"]
    os.makedirs(os.path.dirname(row["binary"]))
    with open(real_binaries["kube-apiserver"], "rb") as whole, open(row["binary"], "wb") as part:
        part.write(whole.read(size))
    os.chmod(row["binary"], 0o755)
    answer = node.modules["k8s_preflight.problems"](row)
    (sentence,) = answer["errors"]
    assert sentence.startswith(f"kube-apiserver 1.37.2: {row['binary']} ")
    assert "damaged" in sentence


def test_a_binary_of_another_release_is_refused(ask, rows):
    (sentence,) = ask("kube-scheduler", {"release": "1.36.3"})["errors"]
    assert "says that it is release 1.37.2, not 1.36.3." in sentence
