"""CAs and the service-account key are exchanged while clients of the former and of the new one are served."""

import json
import re
import threading
import time

import leaks
import pytest
import yaml
from cryptography import x509

ROTATE_CA = ["state.orchestrate", "kubernetes_controller.orchestrate.rotate_ca"]
ROTATE_SERVICE_ACCOUNT = ["state.orchestrate", "kubernetes_controller.orchestrate.rotate_service_account"]
PKI = ["state.orchestrate", "kubernetes_controller.orchestrate.pki"]
TOP = "/srv/kubernetes_controller/pki"
ALL = ["kubernetes", "signer", "etcd", "front-proxy", "service-account"]
# What controllers have of each CA: certificates that it signed, and files that are the CA itself, below /var/lib.
SIGNED = {
    "kubernetes": ["kubernetes/live/tls.crt", "kubernetes/live/kubelet-client.crt", "kube-scheduler/live/tls.crt"],
    "etcd": ["kubernetes/live/etcd-client.crt", "kubernetes-etcd/live/server.crt", "kubernetes-etcd/live/peer.crt"],
    "front-proxy": ["kubernetes/live/front-proxy-client.crt"],
}
TRUSTED = {
    "kubernetes": ["kubernetes/live/ca.crt", "kube-controller-manager/live/ca.crt", "kube-scheduler/live/ca.crt"],
    "signer": ["kube-controller-manager/live/signer.crt"],
    "etcd": ["kubernetes/live/etcd-ca.crt", "kubernetes-etcd/live/etcd-ca.crt"],
    "front-proxy": ["kubernetes/live/front-proxy-ca.crt", "kube-controller-manager/live/front-proxy-ca.crt"],
}
UNIT = "rotation"


def asked(**pillar):
    return f"pillar={json.dumps(pillar)}"


class Client:
    """Somebody who has credentials of one moment and never gets others: a kubeconfig, and a service account's token."""

    def __init__(self, cluster, directory):
        self.cluster, self.kubeconfig, self.authority = cluster, directory / "kubeconfig", directory / "ca.crt"
        directory.mkdir()
        top = cluster.lab.master.root / TOP.lstrip("/")
        self.kubeconfig.write_bytes((cluster.lab.master.root / "root/.kube/config").read_bytes())
        self.authority.write_bytes((top / "authorities/kubernetes-ca.crt").read_bytes())
        self.kubeconfig.chmod(0o600)
        self.token = cluster.token()
        self.with_token = directory / "with-token"  # not as an argument, which everybody on this machine could read
        self.with_token.touch(0o600)
        self.with_token.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "it", "cluster": {"certificate-authority": str(self.authority)}}],
                    "users": [{"name": "it", "user": {"token": self.token}}],
                    "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
                    "current-context": "it",
                }
            )
        )

    def by_certificate(self, node):
        return self._asks(node, "--kubeconfig", str(self.kubeconfig))

    def by_token(self, node):
        return self._asks(node, "--kubeconfig", str(self.with_token))

    def _asks(self, node, *who):
        """Return "" when the node's API server answers, and else what is wrong."""
        server = f"--server=https://{node.address}:6443"
        done = self.cluster.kubectl(*who, server, "--request-timeout=5s", "get", "--raw", "/version", check=False)
        return "" if done.returncode == 0 else done.stderr.strip() or "no reason"

    def refused(self):
        nodes = self.cluster.nodes
        return [how(node) for node in nodes for how in (self.by_certificate, self.by_token) if how(node)]


class Sampler:
    """Asks as a client all the time, of one node after the other as long as none answers; remembers when none did."""

    def __init__(self, client):
        self.client, self.asked, self.failed, self.over = client, 0, [], threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def _run(self):
        while not self.over.wait(3):
            for how in (self.client.by_certificate, self.client.by_token):
                said = []
                for node in self.client.cluster.nodes:
                    said.append(how(node))
                    if not said[-1]:
                        break
                self.asked += 1
                self.failed += [said] if all(said) else []


def stands(cluster):
    """Return where rotations stand, in the operator's words."""
    said = cluster.lab.salt_run("--out=json", "salt.cmd", "k8s_rotation.status", TOP).stdout
    return json.loads(said)


def is_green(cluster):
    status, table = cluster.health()
    return status == 0 and len(table) == len(cluster.nodes)


def secret_is_readable(cluster):
    for node in cluster.nodes:
        secret = cluster.kubectl("--server", f"https://{node.address}:6443", "get", "secret", "of-before", "-o", "json").stdout
        assert json.loads(secret)["data"] == {"word": "c2VzYW1l"}


def pairs(cluster):
    """Return what the master has of each CA and of the service account: {name of the file: content}."""
    top = cluster.lab.master.root / TOP.lstrip("/")
    files = [path for place in ("authorities", "shared") for path in (top / place).iterdir()]
    return {path.name: path.read_text() for path in files if re.match(r"[\w-]+-ca\.|service-account\.", path.name)}


def certificates(node, file):
    return x509.load_pem_x509_certificates((node.root / "var/lib" / file).read_bytes())


def of_the_new_cas(cluster):
    """Every leaf that a component runs with was signed by the CA that is in authorities/ now, and trusts no other."""
    now = {
        name.removesuffix("-ca.crt"): x509.load_pem_x509_certificate(text.encode())
        for name, text in pairs(cluster).items()
        if name.endswith("-ca.crt")
    }
    for node in cluster.nodes:
        for name, files in SIGNED.items():
            for file in files:
                chain = certificates(node, file)
                assert len(chain) == 1, (node.name, file)
                chain[0].verify_directly_issued_by(now[name])
        for name, files in TRUSTED.items():
            for file in files:
                assert certificates(node, file) == [now[name]], (node.name, file)
        assert certificates(node, "kubernetes/live/client-ca.crt") == [now["kubernetes"], now["signer"]], node.name


def a_kubelet_lets_in(node, authority):
    """Tell whether a TLS server that trusts clients of one CA only, as a kubelet, lets the node's API server in."""
    node.write("/root/client-ca.crt", authority, 0o600)
    live, port = "/var/lib/kubernetes/live", "10999"
    server = ["openssl", "s_server", "-accept", port, "-www", "-Verify", "3", "-verify_return_error"]
    server += ["-CAfile", "/root/client-ca.crt", "-cert", f"{live}/tls.crt", "-key", f"{live}/tls.key"]
    node.exec(["systemd-run", "--quiet", "--collect", "--unit=fake-kubelet", *server])
    asked = ["curl", "-sk", "--retry", "9", "--retry-connrefused", "--cert", f"{live}/kubelet-client.crt"]
    asked += ["--key", f"{live}/kubelet-client.key", "-o", "/dev/null", "-w", "%{http_code}", f"https://127.0.0.1:{port}/"]
    try:
        return node.exec(asked, check=False).stdout.strip() == "200"
    finally:
        node.exec(["systemctl", "stop", "fake-kubelet"])


def kill_in_the_middle(cluster, *words):
    """Start a rotation; while the first node is at work on the step ``sign``, kill it, and another node with it."""
    live = cluster.nodes[0].root / cluster.homes["kube-scheduler"].lstrip("/") / "live"
    mark = cluster.lab.master.root / TOP.lstrip("/") / "authorities/kubernetes-ca.rotation"
    run = ["systemd-run", "--quiet", "--collect", f"--unit={UNIT}", "salt-run", *words]
    cluster.lab.master.exec(run)
    cluster.wait_for("the step sign", lambda: mark.exists() and yaml.safe_load(mark.read_text())["step"] == "sign", 600)
    before = live.readlink()
    cluster.wait_for("the first node", lambda: live.readlink() != before, 400)
    cluster.lab.master.exec(["systemctl", "kill", "--signal=KILL", UNIT])
    cluster.nodes[1].kill()
    time.sleep(1)
    cluster.lab.boot()
    cluster.wait_for("the health of all", lambda: is_green(cluster), 240)
    cluster.wait_for("the end of what still runs", lambda: not any(cluster.salt("saltutil.is_running", "state.*").values()), 240)


@pytest.fixture
def of_before(cluster):
    cluster.kubectl("create", "secret", "generic", "of-before", "--from-literal=word=sesame")
    yield
    cluster.kubectl("delete", "secret", "of-before")


def test_a_rotation_of_all_that_is_killed_goes_on_and_clients_of_both_are_served(cluster, of_before, tmp_path):
    old, before = Client(cluster, tmp_path / "old"), pairs(cluster)
    assert len(before) == 2 * len(ALL), sorted(before)
    with leaks.watched(cluster) as watch:
        with Sampler(old) as sampler:
            kill_in_the_middle(cluster, *ROTATE_CA, asked(authority=ALL))
            said = stands(cluster)
            assert sorted(said) == sorted(ALL)
            assert {sentence.partition(":")[2][:18] for sentence in said.values()} == {" step 2 of 3, sign"}
            assert said["kubernetes"].startswith("kubernetes CA: step 2 of 3, sign: ")
            assert said["service-account"].startswith("service-account key: step 2 of 3, sign: ")
            assert old.refused() == []

            done = watch.said(cluster.orchestrate(asked(authority=ALL, until="sign"), sls=ROTATE_CA))
            assert done.returncode == 0, done.stdout[-4000:]
            new = Client(cluster, tmp_path / "new")
            assert new.kubeconfig.read_text() != old.kubeconfig.read_text()
            assert new.authority.read_text() != old.authority.read_text()
            assert old.refused() == new.refused() == []
            assert [node.name for node in cluster.nodes if not a_kubelet_lets_in(node, old.authority.read_text())] == []
            secret_is_readable(cluster)
        assert sampler.asked > 20
        assert sampler.failed == []
        done = watch.said(cluster.orchestrate(json.dumps(ALL), sls=["k8s_rollout.rotate_ca"]))
    assert done.returncode == 0, done.stdout[-4000:]
    for node in cluster.nodes:  # what the rollout within the rotation does is told as it happens, and in the table
        for component in ("etcd", "kube-apiserver"):
            assert re.search(rf"^\d\d:\d\d:\d\d  {node.name} +{component} +gate ", done.stdout, re.M)
            assert re.search(rf"^{node.name} +{component} .* new serving$", done.stdout, re.M)
    assert re.search(r"^The rotation of .* ended well after ", done.stdout, re.M)
    tokens = {f"a token of {what}": one.token.rpartition(".")[2] for what, one in (("before", old), ("after", new))}
    leaks.nowhere(cluster, watch, tokens)
    assert "kubernetes CA: rotated. signer CA: rotated. etcd CA: rotated. front-proxy CA: rotated." in done.stdout
    assert not a_kubelet_lets_in(cluster.nodes[0], old.authority.read_text())
    assert len(old.refused()) == 2 * len(cluster.nodes)
    assert new.refused() == []
    for node in cluster.nodes:  # not by the name of the server alone: it knows the former CA's clients no more
        headers = ["-H", f"Authorization: Bearer {old.token}"]
        assert cluster.get(node, "/version", *headers)[0] == 401
    of_the_new_cas(cluster)
    secret_is_readable(cluster)
    cluster.wait_for("health, with leaders", lambda: is_green(cluster), 40)
    assert stands(cluster) == {}
    after = pairs(cluster)
    assert sorted(after) == sorted(before)  # nothing of the steps is left beside the new pairs
    assert [name for name in before if before[name] == after[name]] == []
    kept = {(path.name, path.read_text()) for path in (cluster.lab.master.root / TOP.lstrip("/") / "kept").glob("*/[as]*/*")}
    assert sorted(name for name, _ in set(before.items()) - kept) == []
    quiet = cluster.steps()
    assert quiet.ok, quiet.failures


def test_what_cannot_be_rotated_is_said_and_nothing_is_touched(cluster):
    before = cluster.processes()
    for words, says in (
        ([], 'Say which CA to rotate: pillar=\'{"authority": "kubernetes"}\'. It can be kubernetes, signer, etcd, front-proxy'),
        ([asked(authority="kubernets")], "There is no CA 'kubernets' to rotate."),
    ):
        refused = cluster.steps(*words, sls=ROTATE_CA)
        assert refused.failures[0].startswith(says), refused.failures
    for sls, words, what in (
        (ROTATE_CA, [asked(authority="all")], "front-proxy CA: step 3 of 3, drop: "),
        (ROTATE_SERVICE_ACCOUNT, [], "service-account key: step 2 of 3, sign: "),
    ):
        told = cluster.steps(*words, "test=True", sls=sls)
        assert told.ok and told.pending
        assert what in told.comments
    assert cluster.processes() == before
    assert stands(cluster) == {}


def test_a_rotation_does_not_begin_while_a_controller_does_not_serve(cluster):
    node = cluster.nodes[-1]
    node.exec(["systemctl", "stop", "kube-scheduler"])
    try:
        refused = cluster.steps(sls=ROTATE_SERVICE_ACCOUNT)
    finally:
        node.exec(["systemctl", "start", "kube-scheduler"])
        deadline = time.monotonic() + 60
        while cluster.health()[0]:
            assert time.monotonic() < deadline
    assert not refused.ok
    assert node.name in refused.failures[0]
    assert stands(cluster) == {}


def test_a_lost_ca_key_is_named_and_restored(cluster):
    top = cluster.lab.master.root / TOP.lstrip("/")
    lost, backup = top / "authorities/kubernetes-ca.key", cluster.lab.master.root / "root/backup.key"
    backup.write_bytes(lost.read_bytes())
    backup.chmod(0o600)
    lost.unlink()
    try:
        refused = cluster.steps(sls=PKI)
        command = f"k8s_kept.restore {TOP} authorities/kubernetes-ca.key"
        assert f"{TOP}/authorities/kubernetes-ca.key is lost" in refused.failures[0]
        assert f"`salt-run salt.cmd {command} FILE`" in refused.failures[0]
        wrong = cluster.lab.salt_run("salt.cmd", *command.split(), f"{TOP}/authorities/etcd-ca.key", check=False)
        assert "does not belong to" in wrong.stdout + wrong.stderr
        assert not lost.exists()
        said = cluster.lab.salt_run("salt.cmd", *command.split(), "/root/backup.key").stdout
        assert f"{TOP}/authorities/kubernetes-ca.key was restored from /root/backup.key." in said
    finally:
        lost.write_bytes(backup.read_bytes())
        backup.unlink()
    quiet = cluster.steps(sls=PKI)
    assert (quiet.ok, quiet.changes) == (True, {})
    cluster.wait_for("health, with leaders", lambda: is_green(cluster), 40)
