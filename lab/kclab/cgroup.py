"""
The processes of one node, as the kernel accounts for them.

A node's cgroup answers the two questions that a recorded pid cannot answer safely: what runs there now, and what
has to be killed. Nothing is ever signalled that is not a member.
"""

import os
import signal
import time
from pathlib import Path

from .shell import LabError

ROOT = Path("/sys/fs/cgroup")


def host_runs_systemd():
    """Return whether this machine's PID 1 is systemd, which then owns the cgroup tree."""
    return Path("/run/systemd/system").is_dir()


def hierarchies():
    """Return where the hierarchies that systemd uses are mounted: one with cgroup v2, two on a hybrid host."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    found = [path for path in (ROOT / "systemd", ROOT / "unified") if (path / "cgroup.procs").exists()]
    if not found:
        raise LabError(f"No cgroup hierarchy for systemd is mounted below {ROOT}; the nodes cannot boot without one.")
    return found


class Cgroup:
    """The cgroup called ``name``, in each hierarchy that systemd uses."""

    def __init__(self, name):
        self.name = name

    @property
    def directories(self):
        """Return its directories; below the host's systemd it is a scope, elsewhere a top-level group."""
        relative = f"system.slice/{self.name}.scope" if host_runs_systemd() else self.name
        return [path / relative for path in hierarchies()]

    def launcher(self):
        """
        Return the words that start a command as the first member.

        Each node needs a cgroup of its own: nodes started from one cgroup share their services' cgroups, and
        stopping a unit in one would hit another.
        """
        if host_runs_systemd():
            return ["systemd-run", "--scope", "--quiet", "--collect", f"--unit={self.name}", "--property=Delegate=yes"]
        for path in self.directories:
            path.mkdir(exist_ok=True)
        return self.joiner(self.directories)

    def joiner(self, directories=None):
        """Return the words that start a command as a further member, as a child of the node's own PID 1 would be."""
        if directories is None:
            directories = [path for top in self.directories for path in _inits(top)]
        script = 'while [ "$1" != -- ]; do echo 0 > "$1/cgroup.procs" || exit 125; shift; done; shift; exec "$@"'
        return ["sh", "-c", script, "sh", *map(str, directories), "--"]

    def pids(self):
        """Return the pids of all members, those of nested cgroups too."""
        found = set()
        for top in self.directories:
            for path, _, _ in os.walk(top):
                try:
                    found.update(int(line) for line in Path(path, "cgroup.procs").read_text().split())
                except OSError:
                    continue  # it was removed, or became threaded, since it was listed
        return found - {0}

    def init(self):
        """Return the pid of the node's PID 1, or None: the member that is 1 in the pid namespace below ours."""
        for pid in sorted(self.pids()):
            try:
                status = Path(f"/proc/{pid}/status").read_text(errors="replace")
            except OSError:
                continue
            ids = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
            if len(ids) == 2 and ids[1] == "1" and "\nState:\tZ" not in status:
                return pid
        return None

    def kill(self, timeout=20):
        """Kill all members at once, as a power cut does, and remove the cgroup."""
        deadline = time.monotonic() + timeout
        while pids := self.pids():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if time.monotonic() > deadline:
                raise LabError(f"Processes of {self.name} do not die: {sorted(pids)}.")
            time.sleep(0.01)
        for top in self.directories:
            for path, _, _ in sorted(os.walk(top), reverse=True):
                try:
                    os.rmdir(path)
                except OSError:
                    continue  # the host's systemd was faster

    @staticmethod
    def matching(pattern):
        """Return the names of all cgroups of nodes that ``pattern`` matches as a whole."""
        names = set()
        for path in hierarchies():
            parent, suffix = (path / "system.slice", ".scope") if host_runs_systemd() else (path, "")
            for entry in parent.glob(f"kclab-*{suffix}"):
                name = entry.name.removesuffix(suffix) if suffix else entry.name
                if entry.is_dir() and pattern.fullmatch(name):
                    names.add(name)
        return sorted(names)


def _inits(top):
    """Return the cgroup of the node's PID 1 below ``top``: a process there may talk to systemd like any other."""
    for path, names, _ in os.walk(top):
        if "init.scope" in names:
            return [Path(path, "init.scope")]
    return []
