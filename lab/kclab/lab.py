"""A lab: three bare nodes, a salt-master with a mirror, and the cable between them."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

from . import binaries, image, master, network
from .cgroup import Cgroup
from .node import Node, power_off, unmount
from .shell import LabError, run, say, shared_with_commands

STATE = Path("/var/lib/kubernetes-controller-lab")
LOCKS = Path("/run/kubernetes-controller-lab")
CHECKOUT = Path(__file__).resolve().parents[2]
NODE_NAME = r"(?:controller-\d+|salt-master)"
# A lab called like another lab's node would share its network namespace.
LAB_NAME = re.compile(rf"(?!.*-{NODE_NAME}$)[a-z0-9](?:[a-z0-9-]{{0,29}}[a-z0-9])?")
MAX_NODES = 9


class Lab:
    """
    The lab called ``name``, as it is now. Making the object starts nothing.

    ``nodes`` are the controllers, ``master`` is the salt-master; ``node(name)`` finds any of them.
    """

    def __init__(self, name="lab"):
        if not LAB_NAME.fullmatch(name):
            raise LabError(
                f"{name!r} is no name for a lab: up to 31 lower-case letters, digits and hyphens, and not like a node's."
            )
        self.name, self.netns, self.directory = name, f"kclab-{name}", STATE / name
        mirror = binaries.default_cache().absolute() / "mirror"
        self.master = Node(self, master.NAME, master.ADDRESS, [(CHECKOUT, master.CHECKOUT), (mirror, "/srv/mirror")])

    @property
    def record(self):
        """Return what the lab was made with, or {} where there is none."""
        try:
            return json.loads((self.directory / "lab.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}

    @property
    def nodes(self):
        """Return the controllers."""
        return self._controllers(self.record.get("nodes", 0))

    def _controllers(self, count):
        return [Node(self, f"controller-{i}", f"10.8.0.{100 + i}") for i in range(1, count + 1)]

    def node(self, name):
        """Return the node called ``name``."""
        found = {node.name: node for node in [*self.nodes, self.master]}
        if name not in found:
            raise LabError(f"Lab {self.name} has no node {name!r}; it has {', '.join(found) if self.record else 'none'}.")
        return found[name]

    @contextlib.contextmanager
    def _alone(self):
        """
        Hold the lab's lock: two verbs that change a lab go one after the other.

        It dies with its holder and the last command of that.
        """
        LOCKS.mkdir(parents=True, exist_ok=True)
        path, told = LOCKS / self.name, False
        while True:
            with open(path, "w", encoding="utf-8") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not told:
                        say(f"another command changes lab {self.name}; waiting for it")
                    told = True
                    time.sleep(0.2)
                    continue
                # `down` removes the file: a lock on a removed file protects from nobody.
                if path.exists() and os.fstat(lock.fileno()).st_ino == path.stat().st_ino:
                    with shared_with_commands(lock):
                        yield path
                    return

    # Life

    def boot(self, count=None, timeout=120):
        """
        Boot what does not run yet, and return when all minions answer.

        A lab that a kill left half-made is removed first. Twice is fine.
        """
        with self._alone():
            if (count or 1) not in range(1, MAX_NODES + 1):
                raise LabError(f"A lab has 1 to {MAX_NODES} nodes, not {count}.")
            if self.record and count and count != self.record["nodes"]:
                raise LabError(
                    f"Lab {self.name} has {self.record['nodes']} nodes; to have {count}, take it down first,"
                    " or give the other one another --name."
                )
            if not self.record:
                self._remove()
                self._create(count or 3)
            self._start([*self.nodes, self.master])
            master.link_formula(self.master)
            master.wait_for_minions(self.master, self.nodes, timeout)
        say(f"lab {self.name}: {len(self.nodes)} nodes and the salt-master are up")

    def _create(self, count):
        """Make all files of a new lab; the record comes last and says that they are complete."""
        base = image.ensure()
        controllers = self._controllers(count)
        self.directory.mkdir(parents=True)
        keys = self.directory / "keys"
        master.make_keys(base, keys, [master.NAME, *(node.name for node in controllers)])
        for node in [*controllers, self.master]:
            self._furnish(node, base, controllers)
        fresh = self.directory / "lab.json.new"
        fresh.write_text(json.dumps({"nodes": count, "image": str(base), "checkout": str(CHECKOUT)}))
        fresh.rename(self.directory / "lab.json")

    def _furnish(self, node, base, controllers):
        """Write what makes a bare node this one."""
        node.create(base)
        names = [(node.address, node.name) for node in controllers] + [(master.ADDRESS, f"{master.NAME} salt")]
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost", *(" ".join(pair) for pair in names)]
        node.identify("".join(f"{line}\n" for line in lines))
        keys = self.directory / "keys"
        if node.name == master.NAME:
            master.prepare_master(node, keys, controllers)
            master.write_pillar(node, controllers)
        else:
            master.prepare_minion(node, keys)

    def _start(self, nodes):
        """Start ``nodes`` all at once and wait until each takes orders."""
        for source, _ in self.master.binds:
            source.mkdir(parents=True, exist_ok=True)
        network.make_bridge(self.netns)
        for node in nodes:
            if node.pid and not network.attached(self.netns, node.netns, node.name):
                node.kill()
            if not node.pid:
                node.create(self.record["image"])
                node.start()
        for node in nodes:
            node.wait()

    def down(self):
        """Remove the lab: no process, mount, network namespace, cgroup or file of it is left."""
        with self._alone() as lock:
            self._remove()
            lock.unlink()
        with contextlib.suppress(OSError):
            LOCKS.rmdir()
        with contextlib.suppress(OSError):
            STATE.rmdir()

    def _remove(self):
        """Remove whatever there is, found by what the kernel shows: a record may be missing after a kill."""
        pattern = re.compile(rf"{re.escape(self.netns)}(-{NODE_NAME})?")
        for name in Cgroup.matching(pattern):
            power_off(name)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            path = Path(line.split()[4])
            if path.is_relative_to(self.directory):
                unmount(path)
        for name in network.names(pattern):
            network.remove(name)
        if self.directory.exists():
            shutil.rmtree(self.directory)

    def reset(self, names=(), timeout=120):
        """
        Make the controllers bare again and let the master forget the cluster. The master keeps running.

        With ``names`` only those are bare, as after a new installation, and the master forgets nothing.
        """
        if not self.record:
            raise LabError(f"There is no lab {self.name}; `lab --name {self.name} boot` makes it.")
        nodes = [self.node(name) for name in names] or self.nodes
        with self._alone():
            for node in nodes:
                node.kill()
            for node in nodes:
                node.wipe()
                self._furnish(node, self.record["image"], self.nodes)
                node.connect()
            self._start([*nodes, self.master])
            if not names:
                master.forget_cluster(self.master, self.nodes)
            master.wait_for_minions(self.master, nodes, timeout)
        say(f"lab {self.name}: {', '.join(node.name for node in nodes) if names else f'{len(nodes)} nodes'} bare again")

    def fill_mirror(self):
        """Fill the mirror with the releases that the lab's pillar declares."""
        return binaries.ensure(kubernetes=[master.RELEASE], etcd=[master.ETCD_RELEASE])

    def boot_with_mirror(self, count=None):
        """Boot while the mirror is being filled."""
        failures = []

        def fill():
            try:
                self.fill_mirror()
            except LabError as exc:
                failures.append(exc)

        filling = threading.Thread(target=fill, daemon=True)
        filling.start()
        self.boot(count)
        if filling.is_alive():
            say("the nodes are up; waiting for the mirror to be filled")
        filling.join()
        if failures:
            raise failures[0]

    # Use

    def salt(self, *args, **kw):
        """Run ``salt`` on the master; keywords as for ``Node.exec``."""
        return self.master.exec(["salt", *args], **kw)

    def salt_run(self, *args, **kw):
        """Run ``salt-run`` on the master; keywords as for ``Node.exec``."""
        return self.master.exec(["salt-run", *args], **kw)

    def pillar(self, text, source="the overlay"):
        """Lay the YAML ``text`` over the lab's pillar; None takes it away."""
        master.lay_over(self.master, text, source)

    def kubectl_command(self, *args):
        """Return the words that run kubectl on this machine's files, in the lab's network, as the operator."""
        kubectl = self.fill_mirror() / f"v{master.RELEASE}/bin/linux/{binaries.ARCH}/kubectl"
        kubeconfig = self.master.root / master.KUBECONFIG.lstrip("/")
        if not kubeconfig.exists():
            raise LabError(f"Lab {self.name} has no kubeconfig of an operator yet; `lab --name {self.name} up` makes it.")
        inside = ["nsenter", f"--net={network.NETNS / self.netns}", "env", f"KUBECONFIG={kubeconfig}"]
        return [*inside, str(kubectl), *args]

    def kubectl(self, *args, check=True, **kw):
        """Run kubectl as the operator and return the finished process."""
        return run(self.kubectl_command(*args), check=check, **kw)

    def status(self):
        """Return what the lab consists of and what of it runs."""
        nodes = [*self.nodes, self.master] if self.record else []
        return {
            "name": self.name,
            "netns": self.netns,
            "master": master.ADDRESS,
            "nodes": {node.name: node.address for node in self.nodes},
            "running": [node.name for node in nodes if node.pid],
        }

    def evidence(self, directory):
        """Write the journals of all nodes, Salt's logs, consoles and the pillar in use to ``directory``."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for node in [*self.nodes, self.master]:
            with contextlib.suppress(LabError), open(directory / f"{node.name}.journal", "wb") as out:
                subprocess.run(node.journal("-o", "short-precise"), stdout=out, stderr=out, check=False)
            files = {"console": node.console}
            files |= {path.name: path for path in (node.root / "var/log/salt").glob("*")}
            files |= {path.name: path for path in (node.root / "srv/pillar").glob("*.sls")}
            for name, path in files.items():
                with contextlib.suppress(OSError):
                    shutil.copyfile(path, directory / f"{node.name}.{name}")
