"""
One lab for all system tests: three real systemd nodes, a real salt-master, real binaries.

Tests that take ``cluster`` share one control plane and leave it as they found it; tests that take ``bare`` get nodes
with nothing on them, those that take ``bare_shared`` share such nodes with their module, and all these run last.
KC_LAB names the lab, and each lane of a whole run has one of its own; KC_KEEP=1 leaves it for a look around.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from cryptography import x509

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
sys.path.insert(0, str(ROOT / "lab"))
sys.path.insert(0, str(HERE))  # also for the tests: leaks, hardening, faults

import leaks  # noqa: E402
from kclab import binaries, host, master  # noqa: E402
from kclab.lab import Lab  # noqa: E402

COMPONENTS = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]
HOMES = {
    "etcd": "/var/lib/kubernetes-etcd",
    "kube-apiserver": "/var/lib/kubernetes",
    "kube-controller-manager": "/var/lib/kube-controller-manager",
    "kube-scheduler": "/var/lib/kube-scheduler",
}
DEPLOY = ["state.orchestrate", "kubernetes_controller.orchestrate.deploy"]
HOW_TO_RUN = {"system": "on nodes; `tests/run --all` runs them", "soak": "long ones on nodes, by hand: tests/soak"}
PKI = ["state.orchestrate", "kubernetes_controller.orchestrate.pki"]


collect_ignore = [] if os.environ.get("KC_SOAK") else ["test_soak_rotations.py"]


@pytest.hookimpl(tryfirst=True)  # before -m chooses by these
def pytest_collection_modifyitems(config, items):
    soak = [] if os.environ.get("KC_SOAK") else [item for item in items if item.get_closest_marker("soak")]
    if soak:
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if item not in soak]
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("system")
            item.add_marker(pytest.mark.xdist_group("nodes"))  # where lanes are told apart by groups, these share a lab
    items.sort(key=lambda item: any(name.startswith("bare") for name in getattr(item, "fixturenames", ())))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and "lab" in item.fixturenames and "lab" in getattr(item, "funcargs", {}):
        directory = ROOT / "artifacts" / item.name.replace("/", "_")[:80]
        item.funcargs["lab"].evidence(directory)
        report.sections.append(("evidence", str(directory)))
    return report


class Told:
    """
    Tells what each lane is at, and of a failure when it happens: a run that is cut off never comes to its summary.

    At the end it tells how many tests were left out.
    """

    def __init__(self, config):
        self.config, self.at, self.left_out = config, {}, {}

    def pytest_deselected(self, items):
        for item in items:
            tier = "soak" if item.get_closest_marker("soak") else "system"
            self.left_out[tier] = self.left_out.get(tier, 0) + 1

    def pytest_sessionfinish(self):
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["left_out"] = self.left_out

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        self.left_out = getattr(node, "workeroutput", {}).get("left_out", self.left_out)

    def pytest_terminal_summary(self, terminalreporter):
        for tier, how in HOW_TO_RUN.items():
            if self.left_out.get(tier):
                terminalreporter.write_line(f"not run: {self.left_out[tier]} tests ({how})")

    def pytest_runtest_logreport(self, report):
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if not terminal:  # this is a lane; its reports come to who started it
            return
        lane, file = getattr(report, "worker_id", ""), report.nodeid.partition("::")[0]
        if lane and file.startswith("tests/system/") and self.at.get(lane) != file:
            self.at[lane] = file
            terminal.write_line(f"\n{time.strftime('%H:%M:%S')}  {lane}  {file}")
        if report.failed:
            terminal.write_line(f"\n{report.nodeid}, {report.when}: {report.longreprtext[-2000:]}")


def pytest_configure(config):
    config.pluginmanager.register(Told(config))


class Cluster:
    """What the tests ask and do; every answer comes from the real thing."""

    homes = HOMES

    def __init__(self, lab):
        self.lab = lab

    @property
    def nodes(self):
        return self.lab.nodes

    def pillar(self, declared=None):
        """Lay ``declared`` (what stands below kubernetes_controller) over the lab's pillar; None takes it away."""
        self.lab.pillar(None if declared is None else yaml.safe_dump({"kubernetes_controller": declared}))

    def salt(self, *args, target="controller-*", check=False, timeout=600):
        """Run a Salt command on the minions; return {minion: answer}."""
        # Patience before Salt asks whether a job still runs: on a busy machine the answer to that comes too late.
        options = ["--out=json", "--static", "--timeout=240"]
        done = self.lab.salt(*options, target, *args, check=check, timeout=timeout)
        start = done.stdout.find("{")
        assert start >= 0, f"salt {target} {args}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        answers = json.loads(done.stdout[start:])
        return {minion: one["ret"] if isinstance(one, dict) and "jid" in one else one for minion, one in answers.items()}

    def apply(self, *args, sls="kubernetes_controller", target="controller-*"):
        """Apply an SLS on the minions; return {minion: States}."""
        return {minion: States(answer) for minion, answer in self.salt("state.apply", sls, *args, target=target).items()}

    def go_back(self):
        """Bring the lab's own pillar to all nodes again, unrehearsed: it is what was there before."""
        self.pillar({"rollout": {"rehearsal": {"enabled": False}}})
        answers = self.apply()
        self.pillar(None)
        assert all(answer.ok for answer in answers.values()), {minion: answer.failures for minion, answer in answers.items()}

    def orchestrate(self, *args, sls=DEPLOY):
        """Run an orchestration on the master; return the finished process."""
        return self.lab.salt_run(*sls, *args, check=False, timeout=900)

    def lab_up(self):
        """Run the first command of the README for this lab; return the finished process."""
        words = [ROOT / "lab/lab", "--name", self.lab.name, "up"]
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)

    def steps(self, *args, sls=DEPLOY):
        """Run an orchestration on the master; return its own States."""
        said = self.orchestrate("--out=json", *args, sls=sls).stdout
        (answer,) = json.loads(said[said.index("{") :])["data"].values()
        return States(answer)

    def make_pki(self):
        """Make the certificates on the master, as the operator does who rolls out by hand."""
        done = self.orchestrate(sls=PKI)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]

    def health(self, target="controller-*"):
        """Return (exit status, {minion: {component: what it says}}) of the operator's health command."""
        # Not --static: with that, Salt's exit status is always 0.
        done = self.lab.salt("--out=json", "--timeout=120", target, "k8s_health.status", check=False)
        table, rest, decoder = {}, done.stdout, json.JSONDecoder()
        while (start := rest.find("{")) >= 0:
            answer, end = decoder.raw_decode(rest, start)
            table, rest = {**table, **answer}, rest[end:]
        return done.returncode, table

    def brought(self, files):
        """Put files {name: PEM} where the operator puts what he brings."""
        for name, text in files.items():
            self.lab.master.write(f"/srv/kubernetes_controller/pki/brought/{name}", text, 0o600)

    def processes(self):
        """Return {(node, component): (generation, pid, start time)} of everything that runs."""
        found = {}
        for node in self.nodes:
            for name in COMPONENTS:
                shown = node.exec(["systemctl", "show", f"{name}.service", "-p", "MainPID,ExecMainStartTimestampMonotonic"])
                live = node.exec(["readlink", f"{HOMES[name]}/live"], check=False).stdout.strip()
                found[node.name, name] = (live, *shown.stdout.split())
        return found

    def renewed(self, before):
        """
        Return the places, as in ``processes``, where something else runs than before.

        A leader that cannot renew its lease for 10 s, as on a busy machine, ends by itself: what systemd has started again
        since then is the same.
        """
        after, nodes = self.processes(), {node.name: node for node in self.nodes}
        found = {place for place in after if after[place] != before[place]}
        for node, name in [place for place in found if after[place][0] == before[place][0]]:
            again = nodes[node].exec(["systemctl", "show", "--value", "-p", "NRestarts", name]).stdout.strip()
            found -= {(node, name)} if again != "0" else set()
        return found

    def get(self, node, path, *curl, port=6443):
        """Ask a node's API server (or who else is at ``port``) from outside, as nobody; return (status, body)."""
        url = f"https://{node.address}:{port}{path}"
        inside = ["nsenter", f"--net=/run/netns/{self.lab.netns}", "curl", "-sk", "-m", "5", "-w", "\n%{http_code}", *curl, url]
        body, _, status = subprocess.run(inside, capture_output=True, text=True, check=False).stdout.rpartition("\n")
        return int(status or 0), body

    def serial(self, node, port):
        """Return the serial number of the certificate that is served."""
        said = node.exec(["openssl", "s_client", "-connect", f"{node.address}:{port}"], check=False).stdout
        return x509.load_pem_x509_certificate(said[said.index("-----BEGIN CERTIFICATE") :].encode()).serial_number

    def kubectl(self, *args, check=True, **kw):
        return self.lab.kubectl(*args, check=check, **kw)

    def token(self, namespace="default", *server):
        """Return a token of a namespace's default service account, which the controller manager makes a moment later."""
        words = [*server, "-n", namespace]
        asked = [*words, "get", "serviceaccount", "default"]
        self.wait_for(f"the service account of {namespace}", lambda: not self.kubectl(*asked, check=False).returncode)
        return self.kubectl(*words, "create", "token", "default").stdout.strip()

    def wait_for(self, what, question, timeout_s=60):
        """Ask until ``question()`` is true; return the answer."""
        deadline = time.monotonic() + timeout_s
        while not (answer := question()):
            assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
            time.sleep(0.5)
        return answer


class States:
    """The answer of one state run."""

    def __init__(self, answer):
        self.answer = answer
        self.states = list(answer.values()) if isinstance(answer, dict) else []

    @property
    def ok(self):
        return bool(self.states) and all(state["result"] is not False for state in self.states)

    @property
    def pending(self):
        """Tell whether this is a test run that says that something would happen."""
        return any(state["result"] is None for state in self.states)

    @property
    def changes(self):
        """Return {ID: changes} of the states that changed, or in test mode would."""
        return {state["__id__"]: state["changes"] for state in self.states if state["changes"]}

    @property
    def comments(self):
        return "\n".join(map(str, (state["comment"] for state in self.states))) or str(self.answer)

    @property
    def failures(self):
        """Return the comments of the states that failed by their own fault."""
        failed = [state["comment"] for state in self.states if state["result"] is False]
        return [comment for comment in failed if not comment.startswith("One or more requisite")] or (
            [] if self.states else [str(self.answer)]
        )


@pytest.fixture(scope="session")
def code_blocks():
    """A function that returns the fenced code blocks of a document of the checkout: [(language and words, text)]."""
    fence = re.compile(r"^```(\S[^\n]*)\n(.*?)^```$", re.M | re.S)
    return lambda document: fence.findall((ROOT / document).read_text())


ETCD_HOME, ETCD_UNIT = "/opt/somebody-elses", "somebody-elses-etcd"


@pytest.fixture(scope="session")
def external_etcd():
    """
    A function that runs an etcd member on each node, as a transient unit that the formula knows nothing of.

    ``certificates`` are the PEM texts ca, server, server_key, peer, peer_key of each node (by its name).
    """

    def start(cluster, port, certificates):
        mirror = cluster.lab.fill_mirror()
        archive = max(mirror.glob("etcd/v*/*.tar.gz")).relative_to(mirror)
        fetch = f"curl -sSf http://10.8.0.10:8080/{archive} | tar -xz -C {ETCD_HOME} --strip-components=1"
        members = ",".join(f"{node.name}=https://{node.address}:{port + 1}" for node in cluster.nodes)
        for node in cluster.nodes:
            for name, text in certificates[node.name].items():
                node.write(f"{ETCD_HOME}/{name}", text, 0o600)
            node.exec(["bash", "-eo", "pipefail", "-c", fetch])
            client, peer = f"https://{node.address}:{port}", f"https://{node.address}:{port + 1}"
            flags = {
                "name": node.name, "data-dir": f"{ETCD_HOME}/data", "initial-cluster": members,
                "listen-client-urls": client, "advertise-client-urls": client, "client-cert-auth": "true",
                "listen-peer-urls": peer, "initial-advertise-peer-urls": peer, "peer-client-cert-auth": "true",
                "trusted-ca-file": f"{ETCD_HOME}/ca", "peer-trusted-ca-file": f"{ETCD_HOME}/ca",
                "cert-file": f"{ETCD_HOME}/server", "key-file": f"{ETCD_HOME}/server_key",
                "peer-cert-file": f"{ETCD_HOME}/peer", "peer-key-file": f"{ETCD_HOME}/peer_key",
            }  # fmt: skip
            words = [f"--{flag}={value}" for flag, value in flags.items()]
            unit = ["systemd-run", "--quiet", "--no-block", f"--unit={ETCD_UNIT}", "-p", "Type=notify"]
            node.exec([*unit, f"{ETCD_HOME}/etcd", *words])
        for node in cluster.nodes:
            asked = ["systemctl", "is-active", ETCD_UNIT]
            cluster.wait_for(f"etcd of {node.name}", lambda node=node, asked=asked: not node.exec(asked, check=False).returncode)
        return [f"https://{node.address}:{port}" for node in cluster.nodes]

    return start


@pytest.fixture(scope="session")
def real_binaries(tmp_path_factory):
    """{name: path} of the real binaries of the lab's releases on this machine, for tests that need no node."""
    mirror = binaries.ensure(kubernetes=[master.RELEASE], etcd=[master.ETCD_RELEASE])
    directory = tmp_path_factory.mktemp("etcd")
    (archive,) = (mirror / f"etcd/v{master.ETCD_RELEASE}").glob("*.tar.gz")
    shutil.unpack_archive(archive, directory)
    kubernetes = (mirror / f"v{master.RELEASE}/bin/linux/{binaries.ARCH}").glob("kube*[!26]")
    return {path.name: path for path in [*directory.glob("*/etcd*"), *kubernetes] if not path.suffix}


@pytest.fixture(scope="session")
def lab():
    host.check()
    lane = os.environ.get("PYTEST_XDIST_WORKER")
    lab = Lab(os.environ.get("KC_LAB", "systest") + (f"-{lane}" if lane else ""))
    if not os.environ.get("KC_KEEP"):
        lab.down()
    lab.boot_with_mirror()
    yield lab
    if not os.environ.get("KC_KEEP"):
        lab.down()


@pytest.fixture(scope="session")
def watched_rollout(lab):
    """The fresh rollout that the cluster of this session comes from, and what was recorded meanwhile (``leaks``)."""
    cluster = Cluster(lab)
    with leaks.watched(cluster) as watch:
        return watch.said(cluster.orchestrate()), watch


@pytest.fixture(scope="session")
def rollout(watched_rollout):
    """The fresh rollout that the cluster of this session comes from."""
    return watched_rollout[0]


@pytest.fixture(scope="session")
def cluster(lab, rollout):
    assert rollout.returncode == 0, rollout.stdout[-3000:] + rollout.stderr[-2000:]
    return Cluster(lab)


@pytest.fixture
def bare(lab):
    """The lab with bare nodes and a master that knows of no cluster."""
    lab.reset()
    yield Cluster(lab)
    lab.pillar(None)


@pytest.fixture(scope="module")
def bare_shared(lab):
    """Nodes that are bare when the module's first test gets them."""
    lab.reset()
    yield Cluster(lab)
    lab.pillar(None)


@pytest.fixture
def pillar(cluster):
    """Lay a pillar over the lab's; afterwards it is taken away and applied away."""
    used = []

    def lay(declared):
        used.append(declared)
        cluster.pillar(declared)

    yield lay
    if used:
        cluster.go_back()
