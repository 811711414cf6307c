"""One node: a bare Debian that boots real systemd, on an overlay of the image, in a network namespace of its own."""

import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

from . import network
from .cgroup import Cgroup
from .shell import LabError, last_lines, run

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": os.environ.get("TERM", "dumb"),
}


class Node:
    """
    A node of the lab. Its files are in ``root``, running or not, except what lies in its /run, /tmp, /proc and /sys.

    ``binds`` are directories of the host that it sees read-only: pairs of the host's path and the node's.
    """

    def __init__(self, lab, name, address, binds=()):
        self.lab, self.name, self.address, self.binds = lab, name, address, tuple(binds)
        self.unit = f"{lab.netns}-{name}"
        self.netns = self.unit
        self.directory = lab.directory / name
        self.root = self.directory / "root"
        self.console = self.directory / "console.log"
        self.cgroup = Cgroup(self.unit)

    def __repr__(self):
        return f"Node({self.name}, {self.address})"

    # Its life

    @property
    def pid(self):
        """The pid, on the host, of the node's PID 1; None where the node does not run."""
        return self.cgroup.init()

    def create(self, image):
        """Mount the overlay where it is not mounted. Returns whether the node is new, with nothing of its own yet."""
        new = not (self.directory / "upper").exists()
        if os.path.ismount(self.root):
            return new
        for name in ("upper", "work", "root"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        # Volatile: a power cut of the *host* may lose data of the lab, and in return no fsync waits for the disk.
        # The kernel leaves a mark that refuses the next mount after such a cut.
        shutil.rmtree(self.directory / "work/work/incompat", ignore_errors=True)
        layers = f"lowerdir={image},upperdir={self.directory}/upper,workdir={self.directory}/work"
        run(["mount", "-t", "overlay", self.unit, "-o", f"{layers},volatile", self.root])
        return new

    def write(self, path, text, mode=0o644):
        """Write a text file into the node, running or not."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
            file.write(text)
        target.chmod(mode)

    def enable(self, unit):
        """Let ``unit`` start at boot."""
        link = self.root / "etc/systemd/system/multi-user.target.wants" / unit
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"/etc/systemd/system/{unit}")

    def identify(self, hosts):
        """Give a new node its name, its own machine id and the names of all nodes."""
        self.write("/etc/hostname", f"{self.name}\n")
        self.write("/etc/machine-id", f"{uuid.uuid4().hex}\n", 0o444)
        self.write("/etc/hosts", hosts)

    def start(self):
        """Boot the node where it does not run, without waiting for it."""
        if self.pid:
            return
        power_off(self.unit)
        network.attach(self.lab.netns, self.netns, self.name, self.address)
        # Started from inside the namespace: otherwise the node would see the interfaces of the host in /sys.
        # CAP_NET_ADMIN and a writable /proc/sys/net, as a machine has: its network namespace is its own.
        argv = [
            *self.cgroup.launcher(), "nsenter", f"--net={network.NETNS / self.netns}", "systemd-nspawn",
            "--quiet", "--register=no", "--keep-unit", "--boot", "--settings=no", f"--directory={self.root}",
            f"--machine={self.unit}", f"--hostname={self.name}", "--capability=CAP_NET_ADMIN", "--link-journal=no",
            "--resolv-conf=off", "--timezone=off", "--console=read-only",
            *(f"--bind-ro={source}:{target}" for source, target in self.binds),
        ]  # fmt: skip
        with open(self.console, "ab") as console:
            # Not our child: whoever uses this library for hours would otherwise keep a zombie per power cut.
            subprocess.run(
                ["setsid", "--fork", *argv], stdin=subprocess.DEVNULL, stdout=console, stderr=console, check=True,
                env=os.environ | {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network", "SYSTEMD_NSPAWN_LOCK": "0"},
            )  # fmt: skip

    def wait(self, timeout=60):
        """Wait until the node's systemd takes orders."""
        deadline = time.monotonic() + timeout
        while not ((pid := self.pid) and Path(f"/proc/{pid}/root/run/systemd/private").exists()):
            if time.monotonic() > deadline:
                said = last_lines(self.console.read_bytes() if self.console.exists() else "", 3)
                raise LabError(f"{self.name} did not boot within {timeout} s; its console says: {said}")
            time.sleep(0.05)

    def kill(self):
        """Cut the node's power: everything in it dies at once. Its files stay."""
        power_off(self.unit)

    def wipe(self):
        """Take a dead node's files away; the next ``create`` finds a bare one."""
        unmount(self.root)
        shutil.rmtree(self.directory, ignore_errors=True)

    # Its cable

    def disconnect(self):
        """Pull the node's network cable."""
        network.set_cable(self.lab.netns, self.name, plugged=False)

    def connect(self):
        """Plug the node's network cable in again."""
        network.set_cable(self.lab.netns, self.name, plugged=True)

    # Commands in it

    def command(self, argv):
        """Return the words that run ``argv`` in the node, in all its namespaces and as one of its processes."""
        pid = self.pid
        if not pid:
            raise LabError(f"{self.name} of lab {self.lab.name} does not run; `lab --name {self.lab.name} boot` starts it.")
        return [*self.cgroup.joiner(), "nsenter", "-t", str(pid), "-a", "--", *map(str, argv)]

    def exec(self, argv, input=None, check=True, timeout=None, **kw):
        """
        Run ``argv`` in the node and return the finished process, its output as text.

        After ``timeout`` seconds it is killed, in the node too, and the exit status is 124 (137 where it resisted).
        """
        if timeout:
            argv = ["timeout", "--kill-after=2", str(timeout), *argv]
        kw.setdefault("capture_output", "stdout" not in kw and "stderr" not in kw)
        if input is None:
            kw.setdefault("stdin", subprocess.DEVNULL)
        else:
            kw["input"] = input
        done = subprocess.run(self.command(argv), text=True, env=ENVIRONMENT, check=False, **kw)
        if check and done.returncode:
            said = last_lines((done.stdout or "") + (done.stderr or ""))
            raise LabError(f"{self.name}: {' '.join(map(str, argv))} ended with status {done.returncode}: {said}")
        return done

    def attach(self, argv):
        """Run ``argv`` in the node on this terminal and return its exit status; signals reach it there."""
        process = subprocess.Popen(self.command(argv), env=ENVIRONMENT)

        def forward(number, _frame):
            # nsenter's only child is the command; nsenter itself does not pass signals on.
            for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                os.kill(int(child), number)

        # The terminal's own signals reach the command without us.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, forward)
        status = process.wait()
        return status if status >= 0 else 128 - status

    def journal(self, *args):
        """Return the words that read the node's journal, of a dead node too (from the files, by its own reader)."""
        if self.pid:
            return self.command(["journalctl", "--no-pager", *args])
        if not os.path.ismount(self.root):
            raise LabError(f"{self.name} of lab {self.lab.name} has no files; `lab --name {self.lab.name} boot` makes it.")
        return ["chroot", str(self.root), "journalctl", "--no-pager", "--directory=/var/log/journal", *args]


def power_off(unit):
    """Kill the node with the cgroup ``unit``, and remove what its nspawn had no time to."""
    Cgroup(unit).kill()
    for kind in ("propagate", "unix-export"):
        path = Path("/run/systemd/nspawn", kind, unit)
        if path.exists():
            unmount(path)
            path.rmdir()


def unmount(path):
    """Unmount ``path``, waiting a moment for the last process that had it."""
    deadline = time.monotonic() + 10
    while os.path.ismount(path):
        done = run(["umount", path], check=False)
        if done.returncode and time.monotonic() > deadline:
            raise LabError(f"{path} cannot be unmounted: {last_lines(done.stderr)}")
        if done.returncode:
            time.sleep(0.05)
