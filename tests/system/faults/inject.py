"""
How faults get into the lab: binaries, certificates, disks, ports, the network, and death at a named moment.

Each is a context manager that takes the world (``World``) and leaves the lab as it was, or a function that runs
something as an operator does and returns his ``Outcome``.
"""

import base64
import contextlib
import json
import secrets
import shutil
import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from .judge import Outcome

ROOT = Path(__file__).parents[3]
SHARES = "srv/kubernetes_controller/pki/hosts"
MIRROR, MIRROR_PORT, MIRROR_UNIT = "/srv/faulty-mirror", 8083, "faulty-mirror"
RELEASE, ARCHES = "1.37.2", {"x86_64": "amd64", "aarch64": "arm64"}
NAMES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
AT, HAPPENED = "var/tmp/fault-at", "var/tmp/fault-happened"


class World:
    """The lab as a fault meets it: ``node`` is the one that it is injected on, ``others`` are the rest."""

    def __init__(self, cluster, witness, new_authority, lasting):
        self.cluster, self.lab, self.witness, self.new_authority = cluster, cluster.lab, witness, new_authority
        self.lasting = lasting
        self.node, *self.others = cluster.nodes

    @property
    def share(self):
        """The directory from which the node gets its certificates."""
        return self.lab.master.root / SHARES / self.node.name / "kubernetes_controller_pki"


# -- what an operator runs ---------------------------------------------------------------------------------------------


def here(world, sls="kubernetes_controller", *args):
    """Apply an SLS on the node."""
    answer = world.cluster.apply(*args, sls=sls, target=world.node.name)[world.node.name]
    return Outcome(answer.ok, "\n".join(map(str, answer.failures)) if not answer.ok else answer.comments)


def part(name):
    """A function that applies one part of the formula on the node."""
    return lambda world: here(world, f"kubernetes_controller.{name}")


def deploy(world, *args):
    """Roll out over all nodes, as the operator does."""
    done = world.cluster.orchestrate(*args, sls=["k8s_rollout.deploy"])
    return Outcome(done.returncode == 0, done.stdout + done.stderr)


def in_background(run, world):
    """Start a run; return a function that waits for its Outcome."""
    found = []

    def call():
        try:
            found.append(run(world))
        except BaseException as exc:  # noqa: BLE001 (raised again where it is asked for)
            found.append(exc)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()

    def ended(timeout_s=600):
        thread.join(timeout_s)
        assert found, f"the run did not end within {timeout_s} s"
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    return ended


def ready(world, nodes, timeout_s=120):
    """Wait until the API servers of the nodes are ready."""
    for node in nodes:
        world.cluster.wait_for(
            f"API server of {node.name}", lambda node=node: world.cluster.get(node, "/readyz") == (200, "ok"), timeout_s
        )


# -- the machine around it ---------------------------------------------------------------------------------------------


def stopped(component, *numbers):
    """The component is stopped on the other nodes ``numbers``, as if its machine had it lost."""

    @contextlib.contextmanager
    def fault(world):
        nodes = [world.others[number] for number in numbers]
        for node in nodes:
            node.exec(["systemctl", "kill", "--signal=KILL", component])
            node.exec(["systemctl", "stop", component])
        try:
            yield
        finally:
            for node in nodes:
                node.exec(["systemctl", "start", "--no-block", component])
            ready(world, world.cluster.nodes)

    return fault


@contextlib.contextmanager
def port_taken(world):
    """Somebody else listens at 10999."""
    serve = ["python3", "-m", "http.server", "--bind", world.node.address, "--directory", "/srv", "10999"]
    world.node.exec(["systemd-run", "--quiet", "--unit=somebody-else", *serve])
    try:
        holds = ["ss", "-Hltn", "sport = :10999"]
        world.cluster.wait_for("port 10999", lambda: "10999" in world.node.exec(holds).stdout, 20)
        yield
    finally:
        world.node.exec(["systemctl", "stop", "somebody-else"], check=False)


@contextlib.contextmanager
def small_disk(world, home, options):
    """The home of a component lies on a small file system of its own, with what is in it now."""
    script = f"""
        set -e; mkdir -p /run/small; mount -t tmpfs -o {options} small /run/small
        cp -a {home}/. /run/small/; chown --reference={home} /run/small; chmod --reference={home} /run/small
        mount --bind /run/small {home}
    """
    world.node.exec(["bash", "-c", script])
    try:
        yield
    finally:
        world.node.exec(["bash", "-c", f"umount -l {home}; umount -l /run/small; rmdir /run/small"])


@contextlib.contextmanager
def full_while_preparing(world):
    """There is not a block left where the scheduler's generations are."""
    home = world.cluster.homes["kube-scheduler"]
    with small_disk(world, home, "size=2m,mode=0750"):
        world.node.exec(["bash", "-c", f"dd if=/dev/zero of={home}/filler bs=4096 2>/dev/null; exit 0"])
        yield


@contextlib.contextmanager
def full_while_promoting(world):
    """All is prepared and rehearsed; then there is no inode left for the new link."""
    home = world.cluster.homes["kube-scheduler"]
    once = 'pillar={"kubernetes_controller": {"rollout": {"mode": "manual"}}}'
    with small_disk(world, home, "size=8m,nr_inodes=400,mode=0750"):
        first = here(world, "kubernetes_controller", once)
        assert first.ok, first.said
        assert "prepared and rehearsed, but not promoted" in first.said
        world.node.exec(
            ["bash", "-c", f"mkdir {home}/filler; for i in $(seq 500); do : > {home}/filler/$i || break; done; exit 0"]
        )
        yield


def webhook(*but):
    """Every write of the cluster, but for those in the namespaces ``but``, waits for the word of an unreachable webhook."""

    @contextlib.contextmanager
    def fault(world):
        selector = {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [*but, "none"]}]}
        rule = {"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"], "scope": "*"}
        hook = {
            "name": "nobody.there.invalid", "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 2,
            "admissionReviewVersions": ["v1"], "rules": [rule], "namespaceSelector": selector,
            "clientConfig": {"url": "https://192.0.2.1/"},
        }  # fmt: skip
        head = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
        document = {**head, "metadata": {"name": "nobody-there"}, "webhooks": [hook]}
        world.cluster.kubectl("apply", "-f", "-", input=json.dumps(document))
        try:
            create = ["create", "configmap", "refused"]
            world.cluster.wait_for("the webhook", lambda: world.cluster.kubectl(*create, check=False).returncode, 20)
            yield
        finally:
            world.cluster.kubectl("delete", "validatingwebhookconfiguration", "nobody-there")
            world.cluster.kubectl("delete", "configmap", "refused", "--ignore-not-found", check=False)

    return fault


# -- binaries ----------------------------------------------------------------------------------------------------------

FAULTY_DIR = "/opt/faulty"
FAULTY = {"release_dir": FAULTY_DIR, "binaries": {"mirror": f"http://10.8.0.10:{MIRROR_PORT}"}}
# Answers as the real one, and lives for so long as the real one is ready.
SHORT_LIVED = """\
#!/bin/sh
case " $* " in *" --help "*|*" --version "*) exec {real} "$@";; esac
for word; do case $word in --bind-address=*) a=${{word#*=}};; --secure-port=*) p=${{word#*=}};; esac; done
({condition} until curl -sk -m 1 "https://$a:$p{path}" | grep -q ok; do sleep 0.2; done
  sleep {seconds}; kill -9 $$) </dev/null >/dev/null 2>&1 &
exec {real} "$@"
"""
HANGS = """\
#!/bin/sh
case " $* " in *" --help "*|*" --version "*) exec {real} "$@";; esac
{condition}
exec sleep 1000
"""
SAYS_ANOTHER_RELEASE = """\
#!/bin/sh
case " $* " in *" --version "*) echo "Kubernetes v1.36.3"; exit;; esac
exec {real} "$@"
"""
# Where the real network is; in a rehearsal and in the preflight's dry run it is not.
IN_EARNEST = "grep -q tap0 /proc/self/net/dev"


def binary(name, make):
    """The mirror publishes another file, with its sum, as the binary ``name``: ``make(path of the real one, path)``."""

    @contextlib.contextmanager
    def fault(world):
        master, arch = world.lab.master, ARCHES[world.node.exec(["uname", "-m"]).stdout.strip()]
        directory = f"{MIRROR}/v{RELEASE}/bin/linux/{arch}"
        real = Path(world.lab.fill_mirror()) / f"v{RELEASE}/bin/linux/{arch}"
        inside = master.root / directory.lstrip("/")
        inside.mkdir(parents=True)
        try:
            for each in NAMES:
                for suffix in ("", ".sha256"):
                    if each != name:
                        (inside / f"{each}{suffix}").symlink_to(f"/srv/mirror/v{RELEASE}/bin/linux/{arch}/{each}{suffix}")
            make(real / name, inside / name)
            master.exec(["bash", "-c", f"cd {directory} && sha256sum {name} | cut -d' ' -f1 > {name}.sha256"])
            serve = ["python3", "-m", "http.server", "--directory", MIRROR, str(MIRROR_PORT)]
            master.exec(["systemd-run", "--quiet", f"--unit={MIRROR_UNIT}", *serve])
            ask = ["curl", "-sf", f"http://10.8.0.10:{MIRROR_PORT}/"]
            world.cluster.wait_for("the mirror", lambda: not master.exec(ask, check=False).returncode)
            yield
        finally:
            master.exec(["systemctl", "stop", MIRROR_UNIT], check=False)
            shutil.rmtree(master.root / MIRROR.lstrip("/"))
            world.node.exec(["rm", "-rf", FAULTY_DIR])

    return fault


def truncated(real, path):
    path.write_bytes(real.read_bytes()[: real.stat().st_size // 2])


def of_another_release(real, path):
    """The real one of 1.36.3 where the mirror has it; else one that says so."""
    other = Path(str(real).replace(f"v{RELEASE}", "v1.36.3"))
    if other.exists():
        shutil.copy(other, path)
    else:
        script(SAYS_ANOTHER_RELEASE)(real, path)


@contextlib.contextmanager
def exchanged_under_its_release(world):
    """The pillar pins another file for the release that runs."""
    with binary("kube-scheduler", truncated)(world):
        path = next((world.lab.master.root / MIRROR.lstrip("/")).rglob("kube-scheduler.sha256"))
        pinned = {"mirror": FAULTY["binaries"]["mirror"], "checksums": {"kube-scheduler": f"sha256:{path.read_text().strip()}"}}
        world.cluster.pillar({"binaries": pinned})
        yield


def script(text, **words):
    """A binary that is a script around the real one."""

    def make(real, path):
        name = real.name
        probe = "/healthz" if name == "kube-controller-manager" else "/readyz"
        path.write_text(text.format(**{"real": f"/opt/kubernetes/{RELEASE}/bin/{name}", "path": probe, "condition": "", **words}))

    return make


# -- certificates ------------------------------------------------------------------------------------------------------


def material(change):
    """The node's share of the certificates is changed by ``change(world, share)``; afterwards it is as it was."""

    @contextlib.contextmanager
    def fault(world):
        share, kept = world.share, world.share.parents[2] / "kept-by-a-test"
        shutil.copytree(share, kept)
        try:
            change(world, share)
            yield
        finally:
            shutil.rmtree(share)
            kept.rename(share)

    return fault


def authority(world, name):
    """Return a CA of the lab's master, able to sign."""
    directory = world.share.parents[2] / "authorities"
    found = object.__new__(world.new_authority)
    found.x509 = x509.load_pem_x509_certificate((directory / f"{name}.crt").read_bytes())
    found.private = serialization.load_pem_private_key((directory / f"{name}.key").read_bytes(), None)
    return found


def write_pair(share, name, pair):
    (share / f"{name}.crt").write_text(pair.crt)
    (share / f"{name}.key").write_text(pair.key)


def expired(world, share):
    sans = [world.node.address]
    pair = authority(world, "kubernetes-ca").issue("kube-apiserver", ("serverAuth",), sans, days=(-9, -1))
    write_pair(share, "apiserver", pair)


def for_another_host(world, share):
    pair = authority(world, "kubernetes-ca").issue("kube-apiserver", ("serverAuth",), [world.others[0].address])
    write_pair(share, "apiserver", pair)


def without_the_service(world, share):
    """Another range of services was declared, and the certificate made for that."""
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"]
    sans = [*names, world.node.name, "127.0.0.1", world.node.address, "10.96.0.1"]
    write_pair(share, "apiserver", authority(world, "kubernetes-ca").issue("kube-apiserver", ("serverAuth",), sans))


def of_another_certificate(world, share):
    pair = authority(world, "kubernetes-ca").issue("kube-apiserver", ("serverAuth",), [world.node.address])
    (share / "apiserver.key").write_text(pair.key)


def another_ca(world, share):
    (share / "kubernetes-ca.crt").write_text(world.new_authority("kubernetes-ca").crt)


def another_cluster(world, share):
    """A CA of its own, and all that it has to sign, consistent in itself: only the other controllers know better."""
    alien = world.new_authority("kubernetes-ca")
    (share / "kubernetes-ca.crt").write_text(alien.crt)
    for name, usage, common_name in (
        ("apiserver", "serverAuth", "kube-apiserver"),
        ("apiserver-kubelet-client", "clientAuth", "kube-apiserver-kubelet-client"),
        ("controller-manager", "clientAuth", "system:kube-controller-manager"),
        ("controller-manager-server", "serverAuth", "kube-controller-manager"),
        ("scheduler", "clientAuth", "system:kube-scheduler"),
        ("scheduler-server", "serverAuth", "kube-scheduler"),
    ):
        sans = ["kubernetes", "localhost", "127.0.0.1", "10.32.0.1", world.node.name, world.node.address]
        write_pair(share, name, alien.issue(common_name, (usage,), sans))


def etcd_client_of_another_ca(world, share):
    write_pair(share, "apiserver-etcd-client", world.new_authority("etcd-ca").issue("kube-apiserver"))


def new_encryption_key(_world, share):
    (share / "new-key").write_text(base64.b64encode(secrets.token_bytes(32)).decode())


def another_service_account_key(world, share):
    pair = world.new_authority("service-account")
    public = pair.private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (share / "service-account.key").write_text(pair.key)
    (share / "service-account.pub").write_bytes(public)
