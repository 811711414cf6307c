"""
The stage of a rehearsal: a network namespace with the node's addresses and no way out, units that run prepared
generations in it as the real ones run, and a throw-away etcd with a copy of the data. Everything is below /run.

All that runs there, and what makes the copy ready, is in one slice, with bounded memory and little weight: what serves comes
first, and where the machine runs out of memory all the same, the kernel ends the rehearsal.

Nothing here decides anything; ``k8s_rehearsal`` does. ``clear`` removes whatever an earlier rehearsal left.
"""

import contextvars
import copy
import ctypes
import fcntl
import glob
import os
import shutil
import signal
import subprocess
import threading
import time

import salt.utils.files
from salt.exceptions import CommandExecutionError

PLACE = "/run/kubernetes-rehearsal"
NAMESPACE = "kubernetes-rehearsal"
UNIT = "kubernetes-rehearsal-{}"
UNITS = "/run/systemd/system"
SLICE = "kubernetes_rehearsal.slice"  # beside system.slice: one with a hyphen would be within another
LITTLE = 20  # of processor time and disk, where system.slice has 100
FIRST_TO_GO = 900  # the kernel's oom_score_adj; whatever serves has 0 or less
SPARE_S = 60  # beyond the rehearsal's own deadlines; an abandoned process ends by itself
PASSABLE = 0o711  # what lies below is for its component alone
CLONE_NEWNET = 0x40000000
ETCD_URL = "http://127.0.0.1:12379"
PEER_URL = "http://127.0.0.1:12380"
# What would make a copy behave otherwise than the cluster: calls to what cannot be reached, policies that are not made for
# what a rehearsal writes. (A key has the name of the resource, not of its API group.) The leases of leaders go, too.
LEFT_OUT = (
    "validatingwebhookconfigurations/",
    "mutatingwebhookconfigurations/",
    "validatingadmissionpolicybindings/",
    "mutatingadmissionpolicybindings/",
)


def clear():
    """
    Remove the stage: processes, units, network namespace and the copy of the data. Fine where there is none.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_stage.clear
    """
    names = [os.path.basename(path) for path in glob.glob(f"{UNITS}/{UNIT.format('*')}.service")]
    if names:
        _run(["systemctl", "kill", "--signal=KILL", *names])
        _run(["systemctl", "stop", *names])
        _run(["systemctl", "reset-failed", *names])
        for name in names:
            os.unlink(f"{UNITS}/{name}")
    __context__.pop("k8s_stage_short", None)
    if os.path.exists(f"{UNITS}/{SLICE}"):
        _run(["systemctl", "kill", "--signal=KILL", SLICE])  # what a killed minion let restore the copy is in it, too
        _run(["systemctl", "stop", SLICE])
        os.unlink(f"{UNITS}/{SLICE}")
        names.append(SLICE)
    if names:
        _run(["systemctl", "daemon-reload"])
    if os.path.exists(f"/run/netns/{NAMESPACE}"):
        _checked(["ip", "netns", "delete", NAMESPACE])
    shutil.rmtree(PLACE, ignore_errors=True)
    return True


def sweep():
    """
    Remove what a killed rehearsal left, where none is under way. Returns whether it was not.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_stage.sweep
    """
    with open(f"{PLACE}.lock", "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return clear()


def build(addresses, patience_s):
    """
    Make an empty stage: the directory, and the network namespace with ``addresses`` on its loopback. Returns the directory.

    addresses
        Of the node (list of str).
    patience_s
        One rehearsal has the stage at a time; another one of this node waits for it for so many seconds, and what a rehearsal
        at most takes.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_stage.build '["10.8.0.101"]' 120
    """
    _own_the_stage(patience_s + SPARE_S)
    clear()
    try:
        os.makedirs(PLACE)
        os.chmod(PLACE, PASSABLE)
        _checked(["ip", "netns", "add", NAMESPACE])
        _checked(["ip", "-n", NAMESPACE, "link", "set", "lo", "up"])
        for address in addresses:
            bits = 128 if ":" in address else 32
            _checked(["ip", "-n", NAMESPACE, "addr", "add", f"{address}/{bits}", "dev", "lo"])
    except (OSError, CommandExecutionError):
        leave()
        raise
    return PLACE


def bound(memory_max_mib):
    """
    Bound what all that runs on the stage takes from the machine: its memory, and its share of processors and disks.

    memory_max_mib
        MiB. Who takes more is ended; nothing of it is swapped out.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_stage.bound 2048
    """
    limits = {"CPUWeight": LITTLE, "IOWeight": LITTLE, "MemoryMax": f"{memory_max_mib}M", "MemorySwapMax": 0}
    text = __salt__["k8s_config.unit_text"]({"unit": {"Unit": {"Description": "Rehearsal"}, "Slice": limits}})
    os.makedirs(UNITS, exist_ok=True)
    with salt.utils.files.fopen(f"{UNITS}/{SLICE}", "w", encoding="utf-8") as handle:
        handle.write(text)
    _checked(["systemctl", "daemon-reload"])
    return True


def lesser(command, of=SLICE):
    """
    Return the command (list) by which another one loses against what serves: in a scope of its own, with little weight, and the
    first to go where memory runs out. It keeps its streams, its environment and its exit status.

    command
        The program and its arguments (list).
    of
        The slice that the scope is in (default: that of the stage, which ``bound`` makes).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_stage.lesser '["/opt/etcd/3.7.3/bin/etcdutl", "version"]' of=system.slice
    """
    weights = [f"--property={name}={LITTLE}" for name in ("CPUWeight", "IOWeight")]
    scope = ["systemd-run", "--scope", "--quiet", "--collect", f"--slice={of}", *weights]
    return [*scope, "--", "choom", "-n", str(FIRST_TO_GO), "--", *command]


def out_of_memory():
    """
    Return what of the stage, units and programs (list), was ended as there was no memory left, for it or on the machine.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_stage.out_of_memory
    """
    names = [os.path.basename(path) for path in sorted(glob.glob(f"{UNITS}/{UNIT.format('*')}.service"))]
    shown = {name: _run(["systemctl", "show", "--value", "-p", "Result", name]).stdout.strip() for name in names}
    return [*__context__.get("k8s_stage_short", []), *(name for name, result in shown.items() if result == "oom-kill")]


def leave():
    """
    Remove the stage and let another rehearsal of this node have it.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_stage.leave
    """
    clear()
    lock = __context__.pop("k8s_stage_lock", None)
    if lock:
        lock.close()
    return True


def restore(row, snapshot, member, peer_url=PEER_URL):
    """
    Make the data directory of the rehearsal's etcd from a snapshot (None: an empty one).

    row
        The row of the component as whose user that etcd will run.
    snapshot
        Path of the snapshot, or None.
    member, peer_url
        Name and peer URL of the only member.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_stage.restore "$ROW" /run/kubernetes-rehearsal/snapshot.db default
    """
    data = f"{PLACE}/data"
    if snapshot:
        command = [os.path.join(os.path.dirname(row["etcdctl"]), "etcdutl"), "snapshot", "restore", snapshot]
        command += [f"--data-dir={data}", f"--name={member}", f"--initial-cluster={member}={peer_url}"]
        _bounded([*command, f"--initial-advertise-peer-urls={peer_url}"])
        os.unlink(snapshot)
    else:
        os.makedirs(data, mode=0o700)
    for path in [data, *(os.path.join(top, name) for top, dirs, files in os.walk(data) for name in dirs + files)]:
        shutil.chown(path, row["user"], row["group"])
    return data


def leave_out(environment, etcdctl, prefix, leases):
    """
    Remove from the copy what must not be in a rehearsal: admission webhooks and policies, and leader leases.

    environment
        What etcdctl needs to reach the rehearsal's etcd (dict of str).
    etcdctl
        Path of the program.
    prefix
        The API server's ``--etcd-prefix``.
    leases
        The leases of leaders (list), each as NAMESPACE/NAME.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_stage.leave_out "$ENVIRONMENT" /opt/etcd/3.7.3/bin/etcdctl /registry '["kube-system/one"]'
    """
    for part in (*LEFT_OUT, *(f"leases/{lease}" for lease in leases)):
        _bounded(["ip", "netns", "exec", NAMESPACE, etcdctl, "del", "--prefix", f"{prefix}/{part}"], environment)
    return True


def dress(row, generation, exchanged):
    """
    Put a copy of a prepared generation on the stage, its flags exchanged as asked. Returns the row that stands for it.

    row
        A row of the configuration's ``components``.
    generation
        Name of the generation below the row's home.
    exchanged
        Flags to exchange (dict of str; None takes one away).

    The row that is returned can be asked with ``k8s_health`` and started with ``start``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_stage.dress "$ROW" 3f9c0d1e2b3a4c5d '{}'
    """
    home = f"{PLACE}/{row['name']}"
    source, target = f"{row['home']}/generations/{generation}", f"{home}/generations/{generation}"
    os.makedirs(f"{home}/generations")
    shutil.copytree(source, target)
    for path in [home, f"{home}/generations", target, *(entry.path for entry in os.scandir(target))]:
        os.chmod(path, 0o750 if os.path.isdir(path) else os.stat(path).st_mode & 0o750)
        shutil.chown(path, "root", row["group"])
    os.symlink(f"generations/{generation}", f"{home}/live")
    start = f"{target}/start"
    with salt.utils.files.fopen(start, "r+", encoding="utf-8") as handle:
        text = __salt__["k8s_generation.with_flags"](handle.read(), exchanged)
        handle.seek(0)
        handle.truncate()
        handle.write(text)
    return {**row, "home": home, "stands_for": row["home"], "unit_name": UNIT.format(row["name"]), "since": time.monotonic() - 1}


def start(row, data=None, environment=None):
    """
    Start a component on the stage, without waiting for it.

    row
        What ``dress`` returned.
    data
        Path of etcd's data (see ``restore``), for etcd itself.
    environment
        Flags of etcd (dict) that it takes from its environment, in the place of those of its unit.

    The unit is the component's own, with the stage in the place of its home, its log directories and its network.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_stage.start "$ROW"
    """
    unit = copy.deepcopy(dict(row["unit"]))
    service = dict(unit["Service"])
    binds, scratch = [f"{row['home']}:{row['stands_for']}"], list(row["directories"])
    if data:
        kept = __salt__["k8s_generation.flags"](row["home"])["data-dir"]
        service["BindPaths"] = [*_listed(service.get("BindPaths")), f"{data}:{kept}"]
        scratch = [path for path in scratch if path != kept]
    if environment:
        ours = [f"ETCD_{flag.upper().replace('-', '_')}={value}" for flag, value in environment.items()]
        service["Environment"] = [*_listed(service.get("Environment")), *ours]  # the last of a name counts
        service["EnvironmentFile"] = _listed(service.get("EnvironmentFile"))[:-1]  # without that of a first start
    service |= {
        "BindReadOnlyPaths": [*_listed(service.get("BindReadOnlyPaths")), *binds],
        "TemporaryFileSystem": [*_listed(service.get("TemporaryFileSystem")), *(f"{path}:mode=1777" for path in scratch)],
        # To systemd a path that is writable is not one that is replaced, too: what is live would be written to.
        "ReadWritePaths": [path for path in _listed(service.get("ReadWritePaths")) if path.lstrip("-+") not in scratch],
        "NetworkNamespacePath": f"/run/netns/{NAMESPACE}",
        "Restart": "no",
        **_lesser(row),
    }
    service = {key: value for key, value in service.items() if value != []}
    unit = {"Unit": {"Description": f"Rehearsal of {row['name']}"}, "Service": service}
    return _start_unit(row["unit_name"], __salt__["k8s_config.unit_text"]({"unit": unit}))


def start_plain_etcd(row, data):
    """
    Start a throw-away etcd without TLS on the stage's loopback, for a cluster whose etcd this formula does not manage.

    row
        The row of kube-apiserver: its user and its sandbox are used.
    data
        What ``restore`` returned.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_stage.start_plain_etcd "$ROW" /run/kubernetes-rehearsal/data
    """
    etcd = os.path.join(os.path.dirname(row["etcdctl"]), "etcd")
    flags = {
        "data-dir": data,
        "listen-client-urls": ETCD_URL,
        "advertise-client-urls": ETCD_URL,
        "listen-peer-urls": PEER_URL,
        "initial-advertise-peer-urls": PEER_URL,
        "initial-cluster": f"default={PEER_URL}",
        "unsafe-no-fsync": "true",
    }
    service = {
        "Type": "notify",
        "ExecStart": " ".join([etcd, *(f"--{flag}={value}" for flag, value in flags.items())]),
        "User": row["user"],
        "Group": row["group"],
        "NetworkNamespacePath": f"/run/netns/{NAMESPACE}",
        "PrivateTmp": True,
        "ProtectSystem": "full",
        "NoNewPrivileges": True,
        **_lesser(row),
    }
    unit = {"Unit": {"Description": "Rehearsal of an etcd"}, "Service": service}
    return _start_unit(UNIT.format("etcd"), __salt__["k8s_config.unit_text"]({"unit": unit}))


def inside(function, *args, **kwargs):
    """
    Call an execution module's ``function`` (name) in the stage's network and return what it returns.

    args, kwargs
        Its arguments.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_stage.inside k8s_health.ask 10.8.0.101 6443 /readyz
    """
    kwargs = {key: value for key, value in kwargs.items() if not key.startswith("__pub_")}
    answer = {}

    def call():
        try:
            with open(f"/run/netns/{NAMESPACE}", "rb") as namespace:  # noqa: SIM115
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            answer["value"] = __salt__[function](*args, **kwargs)
        except Exception as exc:  # noqa: BLE001 (raised again where the caller is)
            answer["error"] = exc

    # A thread has a network namespace of its own; Salt's loader needs the context of the one that called.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(call,))
    thread.start()
    thread.join()
    if "error" in answer:
        raise answer["error"]
    return answer["value"]


def _lesser(row):
    """Return the settings of a unit by which it loses against what serves, and ends by itself when nobody ends it."""
    lifetime_s = sum(row["rehearsal"][key] for key in ("timeout_s", "window_s")) + SPARE_S
    return {"Slice": SLICE, "OOMScoreAdjust": FIRST_TO_GO, "RuntimeMaxSec": lifetime_s}


def _own_the_stage(patience_s):
    """Wait for the lock; the kernel releases it when its holder dies."""
    if "k8s_stage_lock" in __context__:
        return
    lock = open(f"{PLACE}.lock", "w", encoding="ascii")  # noqa: SIM115 (open as long as the stage is ours)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise CommandExecutionError(f"another rehearsal of this node holds {PLACE}.lock") from None
            time.sleep(0.3)
    __context__["k8s_stage_lock"] = lock


def _start_unit(name, text):
    os.makedirs(UNITS, exist_ok=True)
    with salt.utils.files.fopen(f"{UNITS}/{name}.service", "w", encoding="utf-8") as handle:
        handle.write(text)
    _checked(["systemctl", "daemon-reload"])
    _checked(["systemctl", "start", "--no-block", f"{name}.service"])
    return name


def _listed(value):
    return [] if value is None else value if isinstance(value, list) else [value]


def _run(command, env=None):
    environment = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), **(env or {})}
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CommandExecutionError(f"a rehearsal needs {command[0]}: {exc}") from exc


def _checked(command):
    return _stdout(command, _run(command))


def _bounded(command, env=None):
    """Run a command within the bounds of the stage; one that is killed there had no memory left (see ``out_of_memory``)."""
    answer = _run(lesser(command), env)
    if answer.returncode == -signal.SIGKILL:
        __context__.setdefault("k8s_stage_short", []).append(os.path.basename(command[0]))
    return _stdout(command, answer)


def _stdout(command, answer):
    if answer.returncode:
        said = _last_line(answer.stderr) or _last_line(answer.stdout) or f"status {answer.returncode}"
        raise CommandExecutionError(f"{' '.join(command[:4])} …: {said}")
    return answer.stdout


def _last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
