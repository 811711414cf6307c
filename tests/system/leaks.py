"""
Looks for key material of a lab's cluster in every place where none belongs.

    with leaks.watched(cluster) as watch:
        watch.said(cluster.orchestrate(...))
    leaks.nowhere(cluster, watch)

What is looked for: the lines of every private key and every encryption key that the master keeps (those set aside by a
rotation, too), as they are and in base64 as a kubeconfig has them; and what ``secrets`` adds: tokens, bodies of Secrets.
Where: all files that a node or the master has since it was bare, also in /run and /tmp; the journals; what was said;
arguments and environments of processes; every event of the master's bus. A key may lie in the places of ``HOMES``,
readable by nobody else. A hit is told by its names, never by its content.
"""

import base64
import contextlib
import os
import re
import subprocess
import tempfile
import threading
from pathlib import Path

PKI = "srv/kubernetes_controller/pki"
RECORD, UNIT = "/var/tmp/event-record", "event-record"
# The generations of a controller; on the master the certificates, the operator's kubeconfig, and the pillar that Salt
# keeps of each minion (`minion_data_cache`), which only the master's user may read.
HOMES = {
    "controller": re.compile(r"var/lib/[\w-]+/generations/"),
    "master": re.compile(rf"{PKI}/|root/\.kube/config$|var/cache/salt/master/pillar/"),
}
ELSEWHERE = ("run", "tmp", "dev/shm")  # file systems of their own
TAP = """
import salt.config, salt.utils.event
opts = salt.config.master_config("/etc/salt/master")
with salt.utils.event.get_event("master", sock_dir=opts["sock_dir"], opts=opts, listen=True) as bus:
    bus.connect_pub()
    print("listening", flush=True)
    for event in bus.iter_events(full=True, auto_reconnect=True):
        print(event, flush=True)
"""


# -- what to look for --------------------------------------------------------------------------------------------------


def _encoded(text):
    """Return a text in base64, for each of the three places at which it may begin in a longer one; without its edges."""
    found = []
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + text.encode()).decode().rstrip("=")
        found.append(encoded[4 * bool(shift) : -2])
    return found


def needles(cluster, secrets=None):
    """Return {text that gives a secret away: its names}; a name is a file below the master's PKI, or a key of ``secrets``."""
    pki, found, public = cluster.lab.master.root / PKI, {}, ""
    for path in sorted(pki.rglob("*")):
        if not path.is_file():
            continue
        text, name = path.read_text(), str(path.relative_to(pki))
        if "PRIVATE KEY" in text:
            for pem in re.findall(r"-----BEGIN[^-]*PRIVATE KEY-----\n.*?-----END", text, re.S):
                lines = pem.splitlines()[1:-1]
                # Of the embedded form pieces from the middle: its beginning is the same for all keys.
                whole = [encoded[at : at + 56] for encoded in _encoded("\n".join(lines)) for at in (66, 800)]
                for part in [*lines, *whole]:
                    if len(part) > 30:
                        found.setdefault(part, set()).add(name)
        elif path.suffix in (".crt", ".pub"):
            public += text
        elif "BEGIN" not in text and 40 <= len(text.strip()) <= 64:
            for part in [text.strip(), *_encoded(text.strip())]:
                found.setdefault(part, set()).add(name)
    found = {part: names for part, names in found.items() if part not in public}  # the end of a key is its public half
    for name, text in (secrets or {}).items():
        for part in [text, *_encoded(text)]:
            found.setdefault(part, set()).add(name)
    return found


def given_away(looked_for, data):
    """Return the names of the secrets that are in ``data`` (bytes)."""
    return sorted({name for part, names in looked_for.items() if part.encode() in data for name in names})


# -- recording while something runs -------------------------------------------------------------------------------------


class Watch:
    """What was said, done and told while something ran."""

    def __init__(self):
        self.texts, self.arguments, self.ended = [], set(), threading.Event()
        self.known = {}  # keys that were in use then, and may have been replaced since

    def said(self, done):
        """Take the output of a finished process (or a text) to what is searched; returns ``done``."""
        self.texts.append(done if isinstance(done, str) else f"{done.stdout}\n{done.stderr}")
        return done

    def look(self):
        """Take down the arguments and the environment of every process that there is."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            for name in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    self.arguments.add(Path(f"/proc/{pid}/{name}").read_bytes())

    def run(self):
        while not self.ended.wait(0.25):
            self.look()


@contextlib.contextmanager
def watched(cluster):
    """Record the events of the master's bus and the arguments of all processes while the block runs."""
    master, watch = cluster.lab.master, Watch()
    watch.known = needles(cluster)
    master.exec(["systemctl", "stop", UNIT], check=False)
    master.write(RECORD, "", 0o600)
    unit = ["systemd-run", "--quiet", "--collect", f"--unit={UNIT}", "-p", f"StandardOutput=append:{RECORD}"]
    master.exec([*unit, "/opt/salt/bin/python", "-c", TAP])
    record = master.root / RECORD.lstrip("/")
    cluster.wait_for("the record of events", lambda: "listening" in record.read_text(), 30)
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.ended.set()
        thread.join()
        master.exec(["systemctl", "stop", UNIT], check=False)
        watch.known |= needles(cluster)


# -- looking -----------------------------------------------------------------------------------------------------------


def _files(node, patterns):
    """Return the files of a node, below its roots, that contain a line of the file ``patterns``: [(root, path)]."""
    roots = [(node.directory / "upper", node.directory / "upper")]
    roots += [(Path(f"/proc/{node.pid}/root"), Path(f"/proc/{node.pid}/root/{name}")) for name in ELSEWHERE]
    found, looked_at = [], 0
    for root, start in roots:
        listed = subprocess.run(
            ["find", f"{start}/", "-xdev", "-path", "*/opt/*/bin/*", "-prune", "-o", "-type", "f", "-print0"],
            capture_output=True, check=False,
        ).stdout  # fmt: skip
        looked_at += listed.count(b"\0")
        searched = subprocess.run(
            ["xargs", "-0", "-r", "grep", "-laZF", "-f", patterns], input=listed, capture_output=True, check=False,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        found += [(root, Path(name.decode())) for name in filter(None, searched.stdout.split(b"\0"))]
    return found, looked_at


def _journal(node, patterns):
    """Return what of the patterns the journal of a node has (bytes)."""
    journal = subprocess.Popen(node.journal("-o", "export"), stdout=subprocess.PIPE)
    with journal:
        grep = ["grep", "-aoF", "-f", patterns]
        return subprocess.run(grep, stdin=journal.stdout, capture_output=True, check=False, env={"LC_ALL": "C"}).stdout


def _open(root, path):
    """Tell whether others than owner and group may read a file, by the modes of all that leads to it."""
    way = [root / part for part in list(path.relative_to(root).parents)[:-1]]
    return bool(path.stat().st_mode & 0o004) and all(step.stat().st_mode & 0o001 for step in way)


def _belongs(name, node):
    """Tell whether a controller may hold a key of the master's, a former one, too: its own, and what all of them share."""
    present = re.sub(r"^kept/[^/]+/", "", name)
    return present.startswith((f"hosts/{node.name}/", "shared/")) or re.fullmatch(r"authorities/signer-ca(\.\w+)*\.key", present)


def _faults(node, root, path, looked_for):
    """Tell what is wrong about a file that has something secret; nothing, where it belongs there and nobody else reads it."""
    inside, names = str(path.relative_to(root)), given_away(looked_for, path.read_bytes())
    kind = "master" if node.name == "salt-master" else "controller"
    if not names:  # it was rotated away meanwhile
        return []
    if not HOMES[kind].match(inside) or any("/" not in name for name in names):
        return [f"{node.name}: /{inside} has {', '.join(names)}"]
    if kind == "controller":
        held = path.read_bytes()
        strange = [sorted(names)[0] for part, names in looked_for.items() if part.encode() in held
                   and not any(_belongs(name, node) for name in names)]  # fmt: skip
        if strange:
            return [f"{node.name}: /{inside} has what is not its own: {', '.join(sorted(set(strange)))}"]
    if _open(root, path) or (kind == "master" and path.stat().st_mode & 0o040 and not inside.startswith(PKI)):
        return [f"{node.name}: /{inside} is readable by others"]
    return []


def found(cluster, watch=None, secrets=None):
    """Return (what is given away where it must not be: list of str, number of files that were looked at)."""
    watch = watch or Watch()
    looked_for, hits, number = {**watch.known, **needles(cluster, secrets)}, [], 0
    assert len(looked_for) > 50
    with tempfile.NamedTemporaryFile("w") as patterns:
        patterns.write("".join(f"{part}\n" for part in looked_for))
        patterns.flush()
        for node in [*cluster.nodes, cluster.lab.master]:
            files, looked_at = _files(node, patterns.name)
            number += looked_at
            hits += [fault for root, path in files for fault in _faults(node, root, path, looked_for)]
            names = given_away(looked_for, _journal(node, patterns.name))
            hits += [f"{node.name}: the journal has {', '.join(names)}"] * bool(names)
    watch.look()
    for what, texts in (("the output", map(str.encode, watch.texts)), ("the arguments of a process", watch.arguments)):
        names = given_away(looked_for, b"\n".join(texts))
        hits += [f"{what} has {', '.join(names)}"] * bool(names)
    return hits, number


def nowhere(cluster, watch=None, secrets=None):
    """
    Assert that no secret of the cluster lies, or went, where it does not belong.

    ``watch`` is what ``watched`` recorded; ``secrets`` (dict) are others that must be nowhere at all: tokens and the like.
    """
    hits, number = found(cluster, watch, secrets)
    assert not hits, "\n".join(hits)
    assert number > 500, f"only {number} files were looked at"
