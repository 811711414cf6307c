"""
The table of hardening checks (``hardening.yaml``): how each is judged on a node, and how docs/security.md tells of it.
"""

import functools
import re
from pathlib import Path

import yaml

TABLE = Path(__file__).with_suffix(".yaml")
KUBE_BENCH = Path(__file__).parents[2] / "docs/kube-bench.yaml"
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd")


@functools.cache
def table():
    """Return the parsed table."""
    return yaml.safe_load(TABLE.read_text())


def rows():
    """Return the checks of the CIS benchmark."""
    return table()["cis"]


# -- judging -----------------------------------------------------------------------------------------------------------


class Facts:
    """What a node really runs and has: ``flags`` of its processes, modes and owners of files, its certificates."""

    def __init__(self, node):
        self.node, self._stats = node, {}
        self.flags = {name: self._flags(name) for name in COMPONENTS}

    def _flags(self, component):
        shown = self.node.exec(["systemctl", "show", "--value", "-p", "MainPID", component]).stdout.strip()
        words = self.node.exec(["cat", f"/proc/{shown}/cmdline"]).stdout.split("\0")
        pairs = (word.removeprefix("--").partition("=") for word in words if word.startswith("--"))
        return {name: value or "true" for name, _, value in pairs}

    def stat(self, pattern):
        """Return {path: (mode, user:group)} of what ``pattern`` names, links followed, as in the node."""
        if pattern not in self._stats:
            said = self.node.exec(["sh", "-c", f"stat -L -c '%n %a %U:%G' {pattern}"]).stdout
            self._stats[pattern] = {path: (mode, owner) for path, mode, owner in map(str.split, said.splitlines())}
        return self._stats[pattern]


def faults(row, facts, certificates=()):
    """
    Return what of a node does not satisfy a row (list of str).

    ``certificates`` are pairs of path and subject of all that the node has.
    """
    found = []
    for pattern in row.get("paths", ()):
        for path, (mode, owner) in facts.stat(pattern).items():
            if "mode" in row and int(mode, 8) & ~int(row["mode"], 8):
                found.append(f"{path} has mode {mode}")
            if "owner" in row and owner != row["owner"]:
                found.append(f"{path} is of {owner}")
    for flag, asked in row.get("flags", {}).items():
        value = facts.flags[row["component"]].get(flag)
        if not _satisfies(value, asked):
            found.append(f"{row['component']} has --{flag}={value}" if value else f"{row['component']} has no --{flag}")
    if "nowhere" in row:
        found += [f"{path} is of {subject}" for path, subject in certificates if row["nowhere"] in subject]
    return found


def _satisfies(value, asked):
    if asked in ("absent", "present"):
        return (value is None) == (asked == "absent")
    if value is None:
        return asked.get("or") == "absent"
    listed = value.split(",")
    return {
        "is": lambda wanted: value == wanted,
        "has": lambda wanted: wanted in listed,
        "lacks": lambda wanted: wanted not in listed,
        "at_least": lambda wanted: int(value) >= wanted,
        "within": lambda wanted: set(listed) <= set(wanted),
    }[next(key for key in asked if key != "or")](next(word for key, word in asked.items() if key != "or"))


# -- the benchmark's ids -------------------------------------------------------------------------------------------------


def automated():
    """Return the ids of the automated checks of sections 1 to 3 that concern a machine without a kubelet."""
    parts = {"1.1": [*range(1, 9), *range(11, 20)], "1.3": range(2, 8), "1.4": (1, 2), "2": range(1, 7)}
    parts["1.2"] = [2, *range(4, 9), 10, *range(12, 20), *range(21, 27), 30]
    return {f"{part}.{number}" for part, numbers in parts.items() for number in numbers}


# -- what is written -----------------------------------------------------------------------------------------------------


def deviations():
    """Return the table of deviations from the benchmark as docs/security.md has it."""
    lines, told = ["| check | asks for | kube-bench says | why it stays |", "|---|---|---|---|"], {}
    for row in rows():
        reason = row.get("deviation") or row.get("fixed")
        if reason:
            first = told.setdefault(reason, row["id"])
            reason = reason if first == row["id"] else f"as {first}"
            said = "WARN" if row.get("manual") else "FAIL"
            said += ", but it holds" if "fixed" in row else ""
            lines.append(f"| {row['id']} | {row['about']} | {said} | {reason} |")
    return "\n".join(lines) + "\n"


def points():
    """Return the table of what systemd counts against the units as docs/security.md has it."""
    lines = ["| systemd counts | why it stays |", "|---|---|"]
    lines += ["| `{}` | {} |".format(name.replace("|", "\\|"), reason) for name, reason in table()["systemd"].items()]
    return "\n".join(lines) + "\n"


def kube_bench_paths():
    """Return the absolute paths that docs/kube-bench.yaml names."""
    return sorted(set(re.findall(r"^[^#\n]*?(/\S+)$", KUBE_BENCH.read_text(), re.M)))
