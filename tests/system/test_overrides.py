"""What the pillar overrides is what changes, on that node and in that component, and nothing else."""

import json
import re
import stat
import uuid

import pytest
from cryptography import x509

KEYS = {
    "etcd": "etcd",
    "kube-apiserver": "apiserver",
    "kube-controller-manager": "controller_manager",
    "kube-scheduler": "scheduler",
}
CIPHERS = ",".join(
    f"TLS_ECDHE_{key}_WITH_{cipher}"
    for key in ("ECDSA", "RSA")
    for cipher in ("AES_128_GCM_SHA256", "AES_256_GCM_SHA384", "CHACHA20_POLY1305_SHA256")
)
# Per component: a flag that is new, one that is another, and one that is taken away, of every type.
FLAGS = {
    "etcd": (
        {"heartbeat-interval": 120, "tls-min-version": "TLS1.3", "cipher-suites": None},
        {
            "cipher-suites": {"old": CIPHERS, "new": None},
            "heartbeat-interval": {"old": None, "new": "120"},
            "tls-min-version": {"old": "TLS1.2", "new": "TLS1.3"},
        },
    ),
    "kube-apiserver": (
        {
            "runtime-config": {"api/beta": False, "api/alpha": False},
            "enable-admission-plugins": ["NodeRestriction", "AlwaysPullImages"],
            "audit-log-maxage": 40,
            "watch-cache": False,
            "goaway-chance": None,
        },
        {
            "audit-log-maxage": {"old": "30", "new": "40"},
            "enable-admission-plugins": {"old": "NodeRestriction", "new": "NodeRestriction,AlwaysPullImages"},
            "goaway-chance": {"old": "0.001", "new": None},
            "runtime-config": {"old": None, "new": "api/alpha=false,api/beta=false"},
            "watch-cache": {"old": None, "new": "false"},
        },
    ),
    "kube-controller-manager": (
        {"node-monitor-period": "6s", "terminated-pod-gc-threshold": 12000, "profiling": None},
        {
            "node-monitor-period": {"old": None, "new": "6s"},
            "profiling": {"old": "false", "new": None},
            "terminated-pod-gc-threshold": {"old": "12500", "new": "12000"},
        },
    ),
    "kube-scheduler": (
        {"v": 2, "profiling": True, "requestheader-allowed-names": None},
        {
            "profiling": {"old": "false", "new": "true"},
            "requestheader-allowed-names": {"old": "front-proxy-client", "new": None},
            "v": {"old": None, "new": "2"},
        },
    ),
}
LEVELS = [
    {"level": "None", "users": ["nobody"]},
    {"level": "RequestResponse", "resources": [{"group": "", "resources": ["configmaps"]}]},
]
OTHERS = {
    "apiserver": {"settings": {"audit-log-maxsize": 1}, "files": {"audit-policy.yaml": {"yaml": {"rules": LEVELS}}}},
    "controller_manager": {"settings": {"bind-address": "0.0.0.0"}},
    "scheduler": {"config": {"percentageOfNodesToScore": 40}, "files": {"kubeconfig": {"kubeconfig": {"embed": False}}}},
}


class Story:
    """What one override did on one node: said by the test run, by the run, by a second run, and found afterwards."""

    def __init__(self, cluster, node, declared):
        self.cluster, self.node = cluster, node
        self.before = cluster.processes()
        cluster.pillar(declared)
        self.pending = cluster.apply("test=True", target=node.name)[node.name]
        self.tested = cluster.processes()
        self.real = cluster.apply(target=node.name)[node.name]
        self.after = cluster.processes()
        self.again = cluster.apply(target=node.name)[node.name]
        self.end = cluster.processes()

    def check(self, *renewed):
        """Expect that exactly ``renewed`` is new on the node, and that each run told the truth."""
        assert self.real.ok, self.real.failures
        assert self.pending.ok and self.pending.pending, self.pending.failures
        assert self.tested == self.before, "a test run touched something"
        assert self.pending.changes == self.real.changes
        assert list(self.real.changes) == [f"{name} runs as declared" for name in renewed]
        places = {place for place in self.after if self.after[place] != self.before[place]}
        assert places == {(self.node.name, name) for name in renewed}
        assert self.again.ok and not self.again.changes, self.again.failures
        assert self.end == self.after

    def changes(self, name):
        return self.real.changes[f"{name} runs as declared"]

    def arguments(self, name):
        """Return the flags of the running process."""
        pid = self.node.exec(["systemctl", "show", "--value", "-p", "MainPID", name]).stdout.strip()
        words = self.node.exec(["cat", f"/proc/{pid}/cmdline"]).stdout.split("\0")[1:-1]
        return dict(word.removeprefix("--").partition("=")[::2] for word in words)


@pytest.fixture(scope="module")
def story(cluster):
    """Tell the story of an override; what it changed is changed back at the end of the module."""
    yield lambda node, declared: Story(cluster, node, declared)
    cluster.go_back()


@pytest.fixture(scope="module")
def flags(story, cluster):
    return story(cluster.nodes[1], {KEYS[name]: {"settings": settings} for name, (settings, _) in FLAGS.items()})


@pytest.fixture(scope="module")
def others(story, cluster):
    return story(cluster.nodes[2], OTHERS)


# -- flags ------------------------------------------------------------------------------------------------------------


def test_flags_of_all_components_change_on_one_node_and_a_second_run_is_quiet(flags):
    flags.check(*FLAGS)


@pytest.mark.parametrize("name", FLAGS)
def test_exactly_the_overridden_flags_change(flags, name):
    settings, expected = FLAGS[name]
    changes = flags.changes(name)
    assert changes["flags"] == expected
    assert set(changes) == {"generation", "flags", "process"}
    assert changes["process"] == f"restart ({', '.join(f'flag {flag}' for flag in expected)})"
    assert changes["generation"] == {
        side: story[flags.node.name, name][0].removeprefix("generations/")
        for side, story in (("old", flags.before), ("new", flags.after))
    }


@pytest.mark.parametrize("name", FLAGS)
def test_the_process_has_the_overridden_flags(flags, name):
    arguments = flags.arguments(name)
    for flag, change in FLAGS[name][1].items():
        assert arguments.get(flag) == change["new"]


# -- files, addresses, configuration ----------------------------------------------------------------------------------


def test_overrides_other_than_flags_change_what_they_name(others):
    others.check("kube-apiserver", "kube-controller-manager", "kube-scheduler")
    assert list(others.changes("kube-apiserver")["files"]) == ["audit-policy.yaml"]
    assert others.changes("kube-controller-manager")["flags"] == {"bind-address": {"old": "10.8.0.103", "new": "0.0.0.0"}}
    names = ["kubeconfig", "kubeconfig.authority", "kubeconfig.certificate", "kubeconfig.key", "scheduler.yaml"]
    assert list(others.changes("kube-scheduler")["files"]) == names
    assert "files" not in others.changes("kube-controller-manager")


def test_no_change_shows_a_key(others):
    said = json.dumps([others.pending.answer, others.real.answer])
    assert others.changes("kube-scheduler")["files"]["kubeconfig"] == "changed (secret, not shown)"
    assert others.changes("kube-scheduler")["files"]["kubeconfig.key"] == "added"
    assert "PRIVATE KEY" not in said
    assert "client-key-data" not in said


def test_an_audit_policy_of_ones_own_decides_what_is_logged(others):
    cluster, marker = others.cluster, uuid.uuid4().hex
    words = ["create", "configmap", f"audited-{marker[:6]}", "--dry-run=server", f"--from-literal=said={marker}"]
    cluster.kubectl("--server", f"https://{others.node.address}:6443", *words)
    log = others.node.root / "var/log/kubernetes/kube-apiserver/audit.log"
    (line,) = [json.loads(line) for line in log.read_text().splitlines() if marker in line]
    assert line["level"] == "RequestResponse"


def test_the_audit_log_begins_anew_at_its_size_and_what_was_written_is_kept(others, tmp_path):
    """CIS 1.2.19. A megabyte here; request and answer of each of these objects are logged in full."""
    (tmp_path / "large").write_text("x" * 200_000)
    words = ["create", "configmap", "large", "--dry-run=server", f"--from-file={tmp_path}/large"]
    for _ in range(8):
        others.cluster.kubectl("--server", f"https://{others.node.address}:6443", *words)
    directory = others.node.root / "var/log/kubernetes/kube-apiserver"
    log = directory / "audit.log"
    kept = sorted(path for path in directory.iterdir() if re.fullmatch(r"audit-.*\.log", path.name))
    assert len(kept) > 1
    for path in [*kept, log]:
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (0o600, log.stat().st_uid)
    # The oldest was written before this limit was declared, and is as large as it was then.
    for path in [*kept[1:], log]:
        assert path.stat().st_size <= 1024 * 1024


def test_a_component_that_binds_all_addresses_is_healthy_at_the_nodes_own(others):
    sockets = others.node.exec(["ss", "-Hltn", "sport = :10257"]).stdout.split()
    assert sockets[3] in ("*:10257", "0.0.0.0:10257")
    health = others.cluster.salt("k8s_health.status", target=others.node.name)[others.node.name]
    assert health["kube-controller-manager"].startswith(f"ok  https://{others.node.address}:10257")


def test_the_scheduler_uses_the_configuration_of_the_pillar(others):
    admin = others.cluster.lab.master.root / "srv/kubernetes_controller/pki/admin"
    identity = ["--cert", str(admin / "admin.crt"), "--key", str(admin / "admin.key")]
    status, body = others.cluster.get(others.node, "/configz", *identity, port=10259)
    assert status == 200, body
    assert json.loads(body)["componentconfig"]["percentageOfNodesToScore"] == 40


def test_a_kubeconfig_may_name_its_credentials_instead_of_holding_them(others):
    live = others.node.root / "var/lib/kube-scheduler/live"
    text = (live / "kubeconfig").read_text()
    assert "client-key: /var/lib/kube-scheduler/live/kubeconfig.key" in text
    assert "-data" not in text
    assert oct((live / "kubeconfig.key").stat().st_mode & 0o777) == "0o640"


# -- units ------------------------------------------------------------------------------------------------------------


def test_an_option_of_a_unit_restarts_that_component_only(story, cluster):
    one = story(cluster.nodes[0], {"scheduler": {"unit": {"Service": {"LimitNOFILE": 4096}}}})
    one.check("kube-scheduler")
    assert "+LimitNOFILE=4096" in one.changes("kube-scheduler")["unit"]
    assert one.changes("kube-scheduler")["process"] == "restart (unit)"
    pid = one.node.exec(["systemctl", "show", "--value", "-p", "MainPID", "kube-scheduler"]).stdout.strip()
    limits = one.node.exec(["cat", f"/proc/{pid}/limits"]).stdout
    assert next(line for line in limits.splitlines() if line.startswith("Max open files")).split()[3:5] == ["4096", "4096"]


# -- certificates -----------------------------------------------------------------------------------------------------

RENEWED = {
    "apiserver": ("kube-apiserver", "tls.crt", 6443),
    "controller-manager-server": ("kube-controller-manager", "tls.crt", 10257),
    "scheduler-server": ("kube-scheduler", "tls.crt", 10259),
    "etcd-server": ("etcd", "server.crt", 2379),
}


@pytest.fixture(scope="module")
def renewed(cluster):
    """New serving certificates for all components of one node: what was served before, and what the run said."""
    cluster.pillar(None)
    node = cluster.nodes[1]
    assert cluster.apply(target=node.name)[node.name].ok
    share = cluster.lab.master.root / "srv/kubernetes_controller/pki/hosts" / node.name / "kubernetes_controller_pki"
    serials = {name: cluster.serial(node, port) for name, (_, _, port) in RENEWED.items()}
    for name in RENEWED:
        (share / f"{name}.crt").unlink()
    done = cluster.orchestrate(sls=["state.orchestrate", "kubernetes_controller.orchestrate.pki"])
    assert done.returncode == 0, done.stdout
    assert "8 files were made." in done.stdout
    new = {name: x509.load_pem_x509_certificate((share / f"{name}.crt").read_bytes()).serial_number for name in RENEWED}
    before = cluster.processes()
    return node, before, serials, new, cluster.apply(target=node.name)[node.name]


@pytest.mark.parametrize("name", RENEWED)
def test_a_renewed_serving_certificate_is_served_without_a_restart(cluster, renewed, name):
    node, before, serials, new, answer = renewed
    component, file, port = RENEWED[name]
    assert answer.ok, answer.failures
    changes = answer.changes[f"{component} runs as declared"]
    assert changes["process"] == f"reload (file {file}, file {file.replace('.crt', '.key')})"
    assert f"serial {new[name]:x}" in changes["files"][file]["new"]
    after = cluster.processes()[node.name, component]
    assert after[0] != before[node.name, component][0]
    assert after[1:] == before[node.name, component][1:]
    assert serials[name] != new[name] == cluster.serial(node, port)
