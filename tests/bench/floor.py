#!/usr/bin/env python3
"""
The floor: the formula's work by hand-tuned shell scripts (``floor/*.sh``), the yardstick of the benchmark.

What the scripts install is rendered by the formula's own ``k8s_config.resolve`` and ``k8s_generation``, so the two can
never drift apart; how they install it is the shortest way that we know. ``differences`` asks the formula itself
whether it would change anything of what the floor made.

    python3 tests/bench/floor.py [--name LAB] [--keep DIRECTORY]     resets the lab, and runs and checks the floor once
"""

import argparse
import base64
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "lab"))

from kclab import master  # noqa: E402
from kclab.binaries import ARCH  # noqa: E402
from kclab.lab import Lab  # noqa: E402
from kclab.node import ENVIRONMENT  # noqa: E402
from kclab.shell import LabError  # noqa: E402

GENERATION = "f100f100f100f100"
FIRST = ("etcd", "kube-apiserver")
MARK = re.compile(r"MARK-([\w./-]+?)-MARK")
TIMEOUT_S = 300


# -- what the formula wants, from the formula itself ------------------------------------------------------------------


def _module(name):
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "_modules" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Marks:
    """A pillar in which every certificate is a mark that the node's script replaces by the real one."""

    def get(self, key):
        return f"MARK-{key}-MARK"


class Salted(dict):
    """What the formula's modules find in ``__salt__``: each other, loaded when asked for."""

    def __init__(self, **own):
        super().__init__(own)
        self.modules = {}

    def module(self, name):
        if name not in self.modules:
            self.modules[name] = _module(name)
            self.modules[name].__salt__ = self
        return self.modules[name]

    def __missing__(self, function):
        name, _, attribute = function.partition(".")
        return getattr(self.module(name), attribute)


class Formula:
    """The formula's tables and texts for the lab's pillar, without Salt."""

    def __init__(self, pillar):
        salt = Salted(
            **{
                "k8s_certificate.fitting": lambda certificates, key: certificates,  # pki.sh makes pairs that fit
                "k8s_binary.checksum": lambda path: f"MARK-{os.path.basename(path)}.sha256-MARK",
            }
        )
        names = ("k8s_config", "k8s_generation", "k8s_kubeconfig", "k8s_health")
        self.config, self.generation, self.kubeconfig, self.health = map(salt.module, names)
        self.defaults = yaml.safe_load((ROOT / "kubernetes_controller/defaults.yaml").read_text())
        self.pillar = pillar

    def cluster(self):
        return self.config.resolve(self.defaults, self.pillar)

    def node(self, name, address):
        facts = {"id": name, "arch": ARCH, "interfaces": {self.pillar["interface"]: [address]}}
        cfg = self.config.resolve(self.defaults, self.pillar, facts)
        # Rows reach states through Jinja's json, which sorts dictionaries; the order of a unit's sections follows from it.
        return cfg | {
            "components": {row["name"]: json.loads(json.dumps(row, sort_keys=True)) for row in cfg["components"].values()}
        }

    def files(self, row):
        """Return the generation of a component, file name to {text, mode, group}, with marks for what is not known."""
        self.generation.__pillar__ = {row["pki"]["pillar"]: Marks()}
        return self.generation._build(row)


# -- the kit: everything that the operator has on disk before the clock starts -----------------------------------------


def prepare(lab, directory):
    """Write the kit for ``lab`` to ``directory``, and return it."""
    kit, pillar = Path(directory), lab.master.root / "srv/pillar/kubernetes_controller.sls"
    formula = Formula(yaml.safe_load(pillar.read_text())["kubernetes_controller"])
    cluster = formula.cluster()
    kit.mkdir(parents=True, exist_ok=True)
    for name in ("install.sh", "noop.sh"):
        (kit / name).write_text((HERE / "floor" / name).read_text())
    (kit / "pki.sh").write_text((HERE / "floor/pki.sh").read_text() + _pki(formula, cluster))
    (kit / "nodes").write_text("".join(f"{node.name}\n" for node in lab.nodes))
    for node in lab.nodes:
        (kit / node.name).mkdir(exist_ok=True)
        (kit / node.name / "pki").unlink(missing_ok=True)  # of a former run
        cfg = formula.node(node.name, node.address)
        (kit / node.name / "node.sh").write_text(_node(formula, cfg, first=node.name == lab.nodes[0].name))
        share = {os.path.dirname(row["target"]) for row in cluster["pki"]["deliveries"] if row["minion"] == node.name}
        (kit / node.name / "share").write_text(share.pop())
    _ssh(lab, kit / "ssh")
    return kit


def _ssh(lab, path):
    """Write the bench's ssh: ``ssh NODE COMMAND …``."""
    lines = ["#!/bin/sh", "node=$1", "shift", "case $node in"]
    environment = ["env", "-i", *(f"{key}={value}" for key, value in ENVIRONMENT.items())]
    for node in [*lab.nodes, lab.master]:
        lines.append(f'{node.name}) exec {shlex.join([*environment, *node.command([])])} "$@" ;;')
    path.unlink(missing_ok=True)
    path.write_text("\n".join([*lines, "esac", ""]))
    path.chmod(0o755)


def _pki(formula, cluster):
    """Render the calls that make what the master has: CAs, shared secrets, leaves, shares, the operator's kubeconfig."""
    pki, root = cluster["pki"], cluster["pki"]["directory"]
    shares = sorted({os.path.dirname(row["target"]) for row in pki["deliveries"]})
    request = "[req]\ndistinguished_name = name\n[name]\n"
    lines = [
        "",
        f"mkdir -m 0700 -p {root}",
        f"cd {root}",
        f"mkdir -m 0700 -p authorities shared admin brought hosts {shlex.join(shares)}",
        f"printf %s {shlex.quote(request)} > request.cnf",
    ]
    for name, row in pki["authorities"].items():
        if row["managed"] and row.get("enabled", True):
            lines.append(shlex.join(["authority", name, str(row["days_valid"]), f"/CN={row['common_name']}"]))
    lines += [
        "(openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out shared/service-account.key",
        " openssl pkey -in shared/service-account.key -pubout -out shared/service-account.pub) &",
        "running+=($!)",
        *(f"openssl rand -base64 32 > shared/{name}" for name in pki["encryption_keys"]),
        "all",
    ]
    for row in pki["certificates"]:
        organization = f"/O={row['organization']}" if row.get("organization") else ""
        words = [
            row["path"].removesuffix(".crt"), row["authority"], str(row["days_valid"]),
            f"{organization}/CN={row['common_name']}", ",".join(row["usage"]), ",".join(row["sans"]),
        ]  # fmt: skip
        if row["key"].removesuffix(".key") != words[0]:
            raise LabError(f"The floor expects key and certificate side by side, but {row['path']} has {row['key']}.")
        lines.append(shlex.join(["leaf", *words]))
    for share in shares:
        names = [row["sources"][0] for row in pki["deliveries"] if os.path.dirname(row["target"]) == share]
        lines.append(f"cp {shlex.join(names)} {share}/ &\nrunning+=($!)")
    lines += ["all", "rm request.cnf", *_operator(formula, cluster["admin"], cluster["cluster"]["name"])]
    return "\n".join([*lines, 'echo "@ salt-master pki $EPOCHREALTIME"', ""])


def _operator(formula, admin, cluster):
    material = {part: f"MARK-{admin[part]}-MARK" for part in ("authority", "certificate", "key")}
    text = formula.kubeconfig.render(admin["server"], cluster, admin["user"], **material)
    for part, mark in material.items():
        text = text.replace(base64.b64encode(mark.encode()).decode(), f"$(base64 -w0 < {admin[part]})")
    return [f"mkdir -m 0700 -p {os.path.dirname(admin['kubeconfig'])}", f"cat > {admin['kubeconfig']} <<END\n{text}END"]


def _node(formula, cfg, first):
    """Render the functions of one node."""
    functions = {
        "accounts": _accounts(cfg),
        "directories": _directories(cfg),
        "units": _units(formula, cfg),
        "links": [f"ln -sfn {target} {link}" for row in cfg["downloads"] for link, target in row["links"].items()],
        "downloads_first": _downloads([row for row in cfg["downloads"] if row["name"] in FIRST]),
        "downloads_rest": _downloads([row for row in cfg["downloads"] if row["name"] not in FIRST]),
        "good": [f"ln -s generations/{GENERATION} {row['home']}/good" for row in cfg["components"].values()],
        **_objects(formula, cfg, first),
        **_probes(cfg),
        "survey": _survey(formula, cfg),
    }
    for name, row in cfg["components"].items():
        functions[f"write_{name.replace('-', '_')}"] = _generation(formula, row)
    return "".join(f"{name}() {{\n{chr(10).join(lines or [':'])}\n}}\n\n" for name, lines in functions.items())


def _accounts(cfg):
    lines = []
    for row in cfg["components"].values():
        if row["user"] != row["group"]:
            raise LabError(f"The floor expects an account and its group to have one name, not {row['user']}, {row['group']}.")
        lines.append(f"u {row['user']} - - /nonexistent /usr/sbin/nologin")
    return [shlex.join(["systemd-sysusers", "--inline", *dict.fromkeys(lines)])]


def _directories(cfg):
    homes = dict.fromkeys(row["directory"] for row in cfg["downloads"])
    lines = [f"install -d -m 0755 {cfg['log_dir']} {cfg['bin_dir']} {' '.join(homes)}"]
    for row in cfg["components"].values():
        for path, mode in row["directories"].items():
            lines.append(f"install -d -m {mode} -o {row['user']} -g {row['group']} {path}")
        home = row["home"]
        lines.append(f"install -d -m 0750 -g {row['group']} {home} {home}/generations {home}/generations/{GENERATION}")
        lines.append(f"ln -s generations/{GENERATION} {home}/live")
    return lines


def _units(formula, cfg):
    lines = []
    for name, row in cfg["components"].items():
        path = f"/etc/systemd/system/{name}.service"
        lines += [_here(path, formula.config.unit_text(row)), f"chmod 0600 {path}"]
        lines.append(f"ln -s {path} /etc/systemd/system/multi-user.target.wants/")
    return lines


def _downloads(rows):
    """Render fetches that run at once and fail together; SHA-256 is published everywhere and cheaper than SHA-512."""
    lines = ["local running=()"]
    for row in rows:
        sums = re.sub(r"\.sha512$", ".sha256", row["sums"])
        words = ["fetch", row["name"], row["directory"], row["source"], sums, *row["members"].values()]
        lines.append(f"{shlex.join(words)} & running+=($!)")
    return [*lines, 'for process in "${running[@]}"; do wait "$process"; done']


def _generation(formula, row):
    """Render the writing of a component's generation."""
    lines, modes = [f"cd {row['home']}/generations/{GENERATION}"], {}
    for name, entry in formula.files(row).items():
        lines.append(_here(name, entry["text"]))
        modes.setdefault(entry["mode"], []).append(name)
    lines += [f"chmod {mode} {' '.join(names)}" for mode, names in modes.items()]
    return [*lines, f"chgrp {row['group']} *", "cd /"]


def _here(path, text):
    """Render the writing of a text; a mark becomes the content of a file that came from the master."""
    text = re.sub(r"([\\$`])", r"\\\1", text)
    # In a kubeconfig a mark is inside base64.
    for coded in set(re.findall(r"[A-Za-z0-9+/]{12,}={0,2}", text)):
        try:
            found = MARK.fullmatch(base64.b64decode(coded, validate=True).decode().strip())
        except ValueError:
            continue
        if found:
            text = text.replace(coded, f"$(base64 -w0 < /run/floor/pki/{found[1]})")
    text = MARK.sub(lambda mark: f"$(< /run/floor/{'' if mark[1].endswith('.sha256') else 'pki/'}{mark[1]})", text)
    return f"cat > {path} <<END\n{text.rstrip(chr(10))}\nEND"


def _url(row):
    return f"https://{row['address']}:{row['port']}"


def _ask(row, *words, pair=None):
    """Render a request that verifies the server and fails on any status but a good one."""
    authority = "etcd-ca.crt" if row["name"] == "etcd" else "ca.crt"
    live = f"{row['home']}/live"
    identity = [f"--cert {live}/{pair}.crt", f"--key {live}/{pair}.key"] if pair else []
    return " ".join(["curl -sf --max-time 5", f"--cacert {live}/{authority}", *identity, *map(shlex.quote, words)])


def _ask_as_formula(formula, row, *words):
    headers = [word for key, value in formula.health.FORMULA_USER.items() for word in ("-H", f"{key}: {value}")]
    return _ask(row, *headers, *words, pair="front-proxy-client")


def _probes(cfg):
    """Render what each component has to show, as ``k8s_health`` asks it."""
    probes = {}
    for name, row in cfg["components"].items():
        url, function = f"{_url(row)}{row['probe']['path']}", f"probe_{name.replace('-', '_')}"
        if name == "etcd":
            probes[function] = [f"""{_ask(row, url, pair="peer")} | grep -q '"health":"true"'"""]
        else:
            probes[function] = [f"{_ask(row, url)} > /dev/null"]
    return probes


def _objects(formula, cfg, first):
    """Render the first node's application of the cluster's objects, and what is asked of the API server."""
    row, applied, present = cfg["components"]["kube-apiserver"], [], []
    for document in cfg["objects"].values():
        path = f"{_url(row)}/apis/{document['apiVersion']}/{document['kind'].lower()}s/{document['metadata']['name']}"
        words = ["-X", "PATCH", "-H", "Content-Type: application/apply-patch+yaml", "-d", json.dumps(document)]
        query = "?fieldManager=kubernetes-controller-formula&force=true"
        applied.append(f"{_ask_as_formula(formula, row, *words, path + query)} > /dev/null")
        present.append(f"{_ask_as_formula(formula, row, path)} > /dev/null")
    leases, version = f"{_url(row)}/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/", f"{_url(row)}/version"
    held = [
        f"{_ask_as_formula(formula, row, leases + other['probe']['lease'])} | "
        f"""grep -q '"holderIdentity": *"[^"]' || return 1"""
        for other in cfg["components"].values()
        if other["probe"].get("lease")
    ]
    said = f"""{_ask_as_formula(formula, row, version)} | grep -q '"gitVersion": *"v{cfg["release"]}"'"""
    return {"objects": applied if first else [], "objects_present": present, "leases": [*held, said]}


def _survey(formula, cfg):
    """Render a description of all that the rollout made: digests, owners, modes, links, and the binaries' stat."""
    files, directories, links = [], [cfg["log_dir"]], []
    for name, row in cfg["components"].items():
        files += [f"{row['home']}/live/{file}" for file in formula.files(row)] + [f"/etc/systemd/system/{name}.service"]
        directories += [row["home"], f"{row['home']}/generations", f"{row['home']}/live/", *row["directories"]]
        links += [f"{row['home']}/live", f"{row['home']}/good", f"/etc/systemd/system/multi-user.target.wants/{name}.service"]
    binaries = [f"{row['directory']}/{name}" for row in cfg["downloads"] for name in row["members"] or [row["name"]]]
    links += [link for row in cfg["downloads"] for link in row["links"]]
    users = " ".join(dict.fromkeys(row["user"] for row in cfg["components"].values()))
    units = " ".join(cfg["components"])
    return [
        f"sha256sum {' '.join(files)}",
        f"stat -c '%n %a %U %G' {' '.join([*files, *directories])}",
        f"stat -Lc '%n %s %Y %i %a %U' {' '.join(binaries)}",
        f"readlink -v {' '.join(links)}",
        f"getent passwd {users}",
        f"systemctl show -p Id,ActiveState,UnitFileState,NeedDaemonReload {units}",
    ]


# -- running it ---------------------------------------------------------------------------------------------------------


def run(lab, kit):
    """Run the floor on bare nodes. Returns the seconds that it took and, by name, those after which each phase was over."""
    argv = [*lab.master.cgroup.joiner(), "bash", str(HERE / "floor/host.sh"), str(kit)]
    started, moment = time.monotonic(), time.time()
    # In the master's cgroup, so that its processor time is counted too.
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    seconds = time.monotonic() - started
    if process.returncode:
        raise LabError(f"The floor ended with status {process.returncode} after {seconds:.0f} s: {err.strip()[-1500:]}")
    phases = {}
    for line in filter(lambda line: line.startswith("@ "), out.splitlines()):
        _, node, phase, at = line.split()
        name = "pki made" if node == master.NAME else phase
        phases[name] = max(phases.get(name, 0), round(float(at) - moment, 2))
    return seconds, dict(sorted(phases.items(), key=lambda item: item[1]))


def differences(lab):
    """Return what the formula would still change on the floor's nodes, as ``node: state: why``; binaries are not its record."""
    lab.salt("--timeout=60", "*", "saltutil.sync_all", timeout=120)
    words = ["state.apply", "kubernetes_controller", "test=True", "--out=json", "--static"]
    answer = lab.salt("--timeout=60", "*", *words, check=False, timeout=180)
    nodes = json.loads(answer.stdout or "{}")
    found = [f"{node.name}: no answer: {answer.stderr}" for node in lab.nodes if node.name not in nodes]
    for node, states in nodes.items():
        if not isinstance(states, dict):
            found.append(f"{node}: {states}")
            continue
        for key, state in states.items():
            # The floor keeps no record of checksums; that its binaries are right it has checked itself.
            if state["result"] is not True and not key.startswith("k8s_binary_"):
                found.append(f"{node}: {state['__id__']}: {state['comment']} {json.dumps(state['changes'])[:1500]}")
    return found


def manifest(lab, kit):
    """Write down what the nodes are like now; ``noop`` compares with it."""
    for node in lab.nodes:
        script = (kit / node.name / "node.sh").read_text() + "survey\n"
        (kit / node.name / "manifest").write_text(node.exec(["bash", "-euc", script]).stdout)


def noop(lab, kit):
    """Compare all nodes with their manifest and ask for their health, all at once. Returns the seconds that it took."""
    argv = [*lab.master.cgroup.joiner(), "bash", str(HERE / "floor/again.sh"), str(kit)]
    started = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise LabError(f"The floor's second run found something: {done.stdout} {done.stderr}")
    return time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="lab", help="the lab; it must be booted")
    parser.add_argument("--keep", metavar="DIRECTORY", help="leave the rendered scripts there")
    arguments = parser.parse_args()
    lab = Lab(arguments.name)
    with tempfile.TemporaryDirectory() as scratch:
        lab.reset()
        kit = prepare(lab, arguments.keep or tempfile.mkdtemp(dir=scratch))
        seconds, phases = run(lab, kit)
        print(f"{seconds:.1f} s: " + ", ".join(f"{name} {at:.1f}" for name, at in phases.items()))
        found = differences(lab)
        print("\n".join(found) or "the formula would change nothing")
    return bool(found)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as exc:
        sys.exit(f"Error: {exc}")
