"""Bad input ends in one clear error, and the running cluster does not notice."""

import contextlib
import datetime
import hashlib
import shutil

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

NODE = "controller-1"
PKI = "srv/kubernetes_controller/pki"
ZEROS = "0" * 64


@pytest.fixture(autouse=True)
def untouched(cluster):
    """Whatever a test declares: afterwards every process is the one of before, and serves."""
    before = cluster.processes()
    yield
    cluster.pillar(None)
    assert cluster.processes() == before
    for node in cluster.nodes:
        assert cluster.get(node, "/readyz") == (200, "ok")


def refused(cluster, sentence, sls="kubernetes_controller"):
    """Apply and expect that every failure is ``sentence``, without a change or a traceback."""
    answer = cluster.apply(sls=sls, target=NODE)[NODE]
    assert answer.failures, answer.comments
    for failure in answer.failures:
        assert sentence in failure
    assert "Traceback" not in answer.comments
    assert not answer.changes
    return answer


# What needs no node to be seen is in tests/unit and tests/render, what a binary refuses in test_ask_binary.
PILLARS = {
    "unknown key": (
        {"apisever": {"port": 6443}},
        "kubernetes_controller:apisever: no such key (nearest: apiserver).",
    ),
    "text for a number": (
        {"apiserver": {"port": "6443"}},
        "kubernetes_controller:apiserver:port: expected a whole number, found '6443'.",
    ),
    "unknown flag of the API server": (
        {"apiserver": {"settings": {"aduit-log-maxage": 3}}},
        "kubernetes_controller:apiserver:settings:aduit-log-maxage: kube-apiserver 1.37.2 has no such flag "
        "(nearest: audit-log-maxage). Remove it or set it to null.",
    ),
    "interface that is not there": (
        {"interface": "tap9"},
        "kubernetes_controller:interface: controller-1 has no interface 'tap9' (it has lo, tap0).",
    ),
    "address that is not there": (
        {"controllers": {NODE: "10.8.0.99"}},
        "kubernetes_controller:controllers:controller-1: 10.8.0.99 is not an address of interface tap0 (it has 10.8.0.101",
    ),
    "controller that is not declared": (
        {"controllers": {NODE: None}},
        "kubernetes_controller:controllers: minion controller-1 is not in it (it has controller-2, controller-3). "
        "Add `controller-1: ADDRESS`, or target the controllers only.",
    ),
    "file that nobody delivers": (
        {"scheduler": {"files": {"extra.crt": {"pki": ["extra.crt"]}}}},
        "pillar kubernetes_controller_pki:extra.crt is missing, kube-scheduler needs it. On the master, run",
    ),
    "flag that names a removed file": (
        {"apiserver": {"files": {"audit-policy.yaml": None}}},
        "kubernetes_controller:apiserver:settings:audit-policy-file: /var/lib/kubernetes/live/audit-policy.yaml is not a file "
        "of the generation; add kubernetes_controller:apiserver:files:audit-policy.yaml.",
    ),
    "encryption key that is dropped": (
        {"encryption": [{"resources": ["secrets"], "providers": [{"identity": {}}]}]},
        "kubernetes_controller:encryption: secretbox key encryption-key1 of the live configuration is not declared any more",
    ),
    "wrong checksum": (
        {"binaries": {"checksums": {"kubectl": f"sha256:{ZEROS}"}}},
        f"but kubernetes_controller:binaries:checksums:kubectl says {ZEROS}. Nothing was installed.",
    ),
    "dead mirror": (
        {"release": "1.36.3", "binaries": {"mirror": "http://10.8.0.10:9"}},
        "kubernetes_controller:binaries:mirror: cannot fetch http://10.8.0.10:9/v1.36.3/bin/linux/",
    ),
    "release that the mirror has not": (
        {"release": "1.36.99"},
        "kubernetes_controller:binaries:mirror: cannot fetch http://10.8.0.10:8080/v1.36.99/bin/linux/",
    ),
}


@pytest.mark.parametrize("kind", PILLARS)
def test_the_pillar_is_refused_with(cluster, kind):
    declared, sentence = PILLARS[kind]
    cluster.pillar(declared)
    refused(cluster, sentence)


def test_a_dead_mirror_is_told_once(cluster):
    declared, sentence = PILLARS["dead mirror"]
    cluster.pillar(declared)
    (_,) = refused(cluster, sentence).failures


def test_a_test_run_refuses_with_the_same_sentence(cluster):
    for kind in ("unknown key", "unknown flag of the API server"):
        declared, sentence = PILLARS[kind]
        cluster.pillar(declared)
        answer = cluster.apply("test=True", target=NODE)[NODE]
        assert not answer.ok
        assert sentence in "\n".join(f"{state['name']}\n{state['comment']}" for state in answer.states)


def test_a_refusal_is_an_exit_status(cluster):
    cluster.pillar({"apisever": {}})
    assert cluster.lab.salt(NODE, "state.apply", "kubernetes_controller", check=False).returncode != 0
    assert cluster.orchestrate().returncode != 0


def test_a_binary_that_is_not_what_its_mirror_published_is_not_installed(cluster):
    master, port = cluster.lab.master, 8081
    arch = cluster.salt("k8s_config.load", target=NODE)[NODE]["node"]["arch"]
    names = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
    for name in names:
        master.write(f"/srv/wrong/v1.36.3/bin/linux/{arch}/{name}", "not what was published")
        master.write(f"/srv/wrong/v1.36.3/bin/linux/{arch}/{name}.sha256", "0" * 64)
    serve = ["/opt/salt/bin/python", "-m", "http.server", "--directory", "/srv/wrong", str(port)]
    master.exec(["systemd-run", "--unit=wrong-mirror", *serve])
    try:
        mirror = f"http://10.8.0.10:{port}"
        cluster.wait_for("the mirror", lambda: not master.exec(["curl", "-sf", f"{mirror}/"], check=False).returncode)
        cluster.pillar({"release": "1.36.3", "binaries": {"mirror": mirror}})
        answer = refused(cluster, ".sha256 says " + "0" * 64 + ". Nothing was installed.")
        assert len(answer.failures) == len(names)
        found = hashlib.sha256(b"not what was published").hexdigest()
        assert all(f"sha256 is {found}, but " in failure for failure in answer.failures)
        directory = cluster.lab.node(NODE).root / "opt/kubernetes/1.36.3"
        assert [path for path in directory.rglob("*") if path.is_file()] == []
        shutil.rmtree(directory)
    finally:
        master.exec(["systemctl", "stop", "wrong-mirror"])
        shutil.rmtree(master.root / "srv/wrong")


def test_a_binary_that_was_replaced_on_a_node_is_noticed_and_comes_from_the_mirror_again(cluster):
    node, directory = cluster.lab.node(NODE), "/opt/kubernetes/1.37.2/bin"
    names, evil = ("kube-scheduler", "kubectl"), {}
    sums = {name: node.exec(["sha256sum", f"{directory}/{name}"]).stdout.split()[0] for name in names}
    # One by the sum that the operator pins, the other by the one that the mirror publishes.
    cluster.pillar({"binaries": {"checksums": {"kube-scheduler": f"sha256:{sums['kube-scheduler']}"}}})
    for name in names:
        path = f"{directory}/{name}"
        node.exec(["sh", "-c", f"cp -p {path} {path}.evil && echo evil >> {path}.evil && touch -r {path} {path}.evil"])
        evil[name] = node.exec(["sha256sum", f"{path}.evil"]).stdout.split()[0]
        node.exec(["mv", f"{path}.evil", path])
    pending = cluster.apply("test=True", target=NODE)[NODE]
    told = {file: change["old"] for changes in pending.changes.values() for file, change in changes.items() if file in names}
    assert told == {name: f"replaced: sha256 {evil[name]} instead of {sums[name]}" for name in names}
    assert node.exec(["sha256sum", f"{directory}/kubectl"]).stdout.split()[0] == evil["kubectl"]
    answer = cluster.apply(target=NODE)[NODE]
    assert answer.ok, answer.failures
    assert {file for changes in answer.changes.values() for file in changes} == set(names)
    for name in names:
        assert node.exec(["sha256sum", f"{directory}/{name}"]).stdout.split()[0] == sums[name]
    again = cluster.apply(target=NODE)[NODE]
    assert again.ok and not again.changes


# -- certificates that do not fit -------------------------------------------------------------------------------------


@pytest.fixture
def share(cluster):
    """The directory from which the node gets its files; afterwards it is as it was."""
    hosts = cluster.lab.master.root / PKI / "hosts"
    directory, kept = hosts / NODE / "kubernetes_controller_pki", hosts.parent / "kept"
    shutil.copytree(directory, kept)
    yield directory
    shutil.rmtree(directory)
    kept.rename(directory)


def expired(share, name, authority):
    """Exchange a certificate for one that ended yesterday and is otherwise the same."""
    authorities = share.parents[2] / "authorities"
    old = x509.load_pem_x509_certificate((share / name).read_bytes())
    issuer = x509.load_pem_x509_certificate((authorities / f"{authority}.crt").read_bytes())
    key = serialization.load_pem_private_key((authorities / f"{authority}.key").read_bytes(), None)
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder(issuer.subject, old.subject, old.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=9)).not_valid_after(now - datetime.timedelta(days=1))
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    (share / name).write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def exchange(share, name, source):
    for suffix in (".crt", ".key"):
        shutil.copy(share / f"{source}{suffix}", share / f"{name}{suffix}")


def from_another(share, name):
    shutil.copy(share.parents[1] / "controller-2" / share.name / name, share / name)


SHARES = {
    "the certificate of another node": (
        lambda share: [from_another(share, name) for name in ("apiserver.crt", "apiserver.key")],
        "kubernetes_controller_pki:apiserver.crt (kube-apiserver, tls.crt): it is not valid for 10.8.0.101 (it has kubernetes, ",
    ),
    "the key of another certificate": (
        lambda share: from_another(share, "apiserver.key"),
        "kubernetes_controller_pki:apiserver.crt (kube-apiserver, tls.crt): the key belongs to another certificate.",
    ),
    "an expired certificate": (
        lambda share: expired(share, "scheduler.crt", "kubernetes-ca"),
        "kubernetes_controller_pki:scheduler.crt (kube-scheduler, kubeconfig): it expired on ",
    ),
    "an expired certificate of etcd": (
        lambda share: expired(share, "etcd-server.crt", "etcd-ca"),
        "kubernetes_controller_pki:etcd-server.crt (etcd, server.crt): it expired on ",
    ),
    "a certificate of another CA": (
        lambda share: exchange(share, "front-proxy-client", "apiserver-kubelet-client"),
        "kubernetes_controller_pki:front-proxy-client.crt (kube-apiserver, front-proxy-client.crt): none of the CAs it is used "
        "with signed it (issuer CN=kubernetes-ca; CA CN=kubernetes-front-proxy-ca).",
    ),
    "a certificate for another use": (
        lambda share: exchange(share, "controller-manager", "controller-manager-server"),
        "kubernetes_controller_pki:controller-manager.crt (kube-controller-manager, kubeconfig): its extended key usage does "
        "not include clientAuth.",
    ),
    "a key that is none": (
        lambda share: (share / "etcd-peer.key").write_text("no key\n"),
        "kubernetes_controller_pki:etcd-peer.crt (etcd, peer.crt): its key is not a usable private key (ValueError).",
    ),
    "a certificate that is none": (
        lambda share: (share / "scheduler-server.crt").write_text("no certificate\n"),
        "kubernetes_controller_pki:scheduler-server.crt (kube-scheduler, tls.crt): it is not a PEM certificate.",
    ),
    "a missing file": (
        lambda share: (share / "scheduler.key").unlink(),
        "pillar kubernetes_controller_pki:scheduler.key is missing, kube-scheduler needs it. On the master, run "
        "`salt-run state.orchestrate kubernetes_controller.orchestrate.pki`",
    ),
}


@pytest.mark.parametrize("kind", SHARES)
def test_the_preflight_refuses(cluster, share, kind):
    spoil, sentence = SHARES[kind]
    spoil(share)
    refused(cluster, sentence)


# -- the master -------------------------------------------------------------------------------------------------------


def test_a_master_without_pillar_is_told_what_to_add_where(cluster):
    top = cluster.lab.master.root / "srv/pillar/top.sls"
    text = top.read_text()
    top.write_text(text.replace("controller-* or salt-master_master", "controller-*"))
    try:
        done = cluster.orchestrate()
    finally:
        top.write_text(text)
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "Pillar has no key `kubernetes_controller` for the master's own minion id" in said
    assert "salt-master_master" in said
    assert "to a pillar SLS that top.sls gives to" in said


@contextlib.contextmanager
def lost(cluster, name):
    path = cluster.lab.master.root / PKI / name
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    try:
        yield path
        assert not path.exists()
    finally:
        aside.rename(path)


LOST = [
    "authorities/kubernetes-ca.key", "authorities/etcd-ca.key", "authorities/signer-ca.key",
    "authorities/front-proxy-ca.key", "shared/service-account.key", "shared/encryption-key1",
]  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_what_was_made_once_is_never_made_anew(cluster, name):
    with lost(cluster, name) as path:
        done = cluster.orchestrate(sls=["state.orchestrate", "kubernetes_controller.orchestrate.pki"])
        assert done.returncode != 0
        assert f"/{PKI}/{name} is lost (but " in " ".join(done.stdout.split())
        assert "restore it from a backup" in " ".join(done.stdout.split())
        assert list(path.parent.glob(".new-*")) == []


def test_a_rollout_without_a_ca_key_touches_no_node(cluster):
    with lost(cluster, LOST[0]):
        done = cluster.orchestrate()
    assert done.returncode != 0
    assert "kubernetes-ca.key is lost" in done.stdout
    done = cluster.orchestrate(sls=["state.orchestrate", "kubernetes_controller.orchestrate.pki"])
    assert done.returncode == 0
    assert "is as declared." in done.stdout
