"""
The judgement that every fault has to stand, whatever it was: who serves what, and that nothing is lost.
"""

import base64
import dataclasses
import hashlib
import json
import re
import secrets
import time

COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
# What comes and goes by itself.
PASSING = ("/registry/events/", "/registry/leases/", "/registry/masterleases/", "/kubernetes_controller/")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the operator got: whether the run said ok, and all that it said."""

    ok: bool
    said: str


class Witness:
    """A ConfigMap and a Secret, written before all faults."""

    def __init__(self, cluster):
        self.cluster, self.name, self.word = cluster, f"witness-{secrets.token_hex(4)}", secrets.token_hex(16)
        for kind in (["configmap"], ["secret", "generic"]):
            cluster.kubectl("create", *kind, self.name, f"--from-literal=word={self.word}")

    def is_read_through(self, node):
        server = f"https://{node.address}:6443"
        shown = self.cluster.kubectl("--server", server, "get", f"configmap/{self.name}", f"secret/{self.name}", "-o", "json")
        config, secret = json.loads(shown.stdout)["items"]
        assert config["data"] == {"word": self.word}, node.name
        assert base64.b64decode(secret["data"]["word"]).decode() == self.word, node.name

    def undo(self):
        self.cluster.kubectl("delete", f"configmap/{self.name}", f"secret/{self.name}", check=False)


class Judge:
    """
    What the cluster was before a fault, to compare with.

    ``witness`` was written before; it, every key of etcd and every key of the master's CAs must be there after.
    """

    def __init__(self, cluster, witness):
        self.cluster, self.witness = cluster, witness
        self.running, self.links = self._running(), self._links()
        self.keys, self.material = self._keys(), self._material()
        self.binaries = {path: same(path) for path in self._run_from()}

    def nothing_is_lost(self):
        """The witness is readable through every API server; no key of etcd or of the master, and no binary, is gone."""
        for node in self.cluster.nodes:
            self.witness.is_read_through(node)
        lost = self.keys - self._keys()
        assert not lost, f"etcd lost {len(lost)} keys, such as {sorted(lost)[:3]}"
        material = self._material()
        changed = [name for name in self.material if material.get(name) != self.material[name]]
        assert not changed, f"changed on the master: {changed}"
        exchanged = [path for path, before in self.binaries.items() if same(path) != before]
        assert not exchanged, f"binaries that components run from were exchanged: {exchanged}"

    def all_serve(self, patience_s=0):
        """Every component of every node says that it is well, after an outage within a time."""
        deadline = time.monotonic() + patience_s
        while True:
            status, table = self.cluster.health()
            if status == 0 and sorted(table) == sorted(node.name for node in self.cluster.nodes):
                return
            assert time.monotonic() < deadline, table

    def old_serves(self, touched):
        """Every component runs the generation of before; but for ``touched`` ({(node, component)}), the very process."""
        links, running = self._links(), self._running()
        for key, before in self.links.items():
            assert links[key] == before, f"{key}: live and good are {links[key]}, before {before}"
            assert running[key] == self.running[key] or key in touched, f"{key} was restarted"

    def new_serves(self, changed):
        """The components ``changed`` ({(node, component)}) run another generation, which is good; the others their own."""
        for key, (live, good) in self._links().items():
            assert live == good, f"{key}: live is {live}, but good is {good}"
            assert (live != self.links[key][0]) == (key in changed), f"{key} runs {live}, before {self.links[key][0]}"

    def _running(self):
        found = {}
        asked = ["systemctl", "show", "-p", "MainPID,ExecMainStartTimestampMonotonic", *COMPONENTS]
        for node in self.cluster.nodes:
            shown = node.exec(asked).stdout.strip().split("\n\n")
            found |= {(node.name, name): tuple(text.split()) for name, text in zip(COMPONENTS, shown, strict=True)}
        return found

    def _links(self):
        found = {}
        for node in self.cluster.nodes:
            for name in COMPONENTS:
                home = node.root / self.cluster.homes[name].lstrip("/")
                links = [home / link for link in ("live", "good")]
                found[node.name, name] = tuple(link.readlink().name if link.is_symlink() else None for link in links)
        return found

    def _keys(self):
        listed = etcdctl(self.cluster.nodes[-1], "get", "/", "--prefix", "--keys-only").stdout.split()
        return {key for key in listed if not key.startswith(PASSING)}

    def _run_from(self):
        """Return the files (paths) that the components run from."""
        found = set()
        for (node, name), (live, _) in self.links.items():
            root = self.cluster.lab.node(node).root
            start = root / self.cluster.homes[name].lstrip("/") / "generations" / live / "start"
            found.add(root / re.search(r"^exec (\S+)", start.read_text(), re.M)[1].lstrip("/"))
        return found

    def _material(self):
        pki = self.cluster.lab.master.root / "srv/kubernetes_controller/pki"
        files = [path for part in ("authorities", "shared") for path in (pki / part).rglob("*") if path.is_file()]
        return {str(path.relative_to(pki)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def same(path):
    """Return what tells whether a file is the same one; None where there is none."""
    return (path.stat().st_size, path.stat().st_mtime) if path.exists() else None


def etcdctl(node, *words, check=True, timeout=30):
    """Ask etcd as the member of ``node``, through that member."""
    home = "/var/lib/kubernetes-etcd/live"
    files = ["--cacert", f"{home}/etcd-ca.crt", "--cert", f"{home}/peer.crt", "--key", f"{home}/peer.key"]
    command = ["/opt/etcd/3.7.3/bin/etcdctl", "--endpoints", f"https://{node.address}:2379", *files, *words]
    return node.exec(command, check=check, timeout=timeout)
