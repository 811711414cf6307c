"""
The process of a component: what systemd and /proc know of it, and how it is started, reloaded and restarted.
"""

import ipaddress
import os
import pwd
import re
import sys
import time

import salt.utils.files
from salt.exceptions import CommandExecutionError

UNITS = "/etc/systemd/system"
UNIT_MODE = 0o600  # nothing in it is secret, but the CIS benchmark wants it so (1.1.1 to 1.1.8)
PROGRESS = "kubernetes_controller/progress"
PROPERTIES = "LoadState,ActiveState,SubState,MainPID,NRestarts,ExecMainStartTimestampMonotonic,FragmentPath,UnitFileState,User"
# What a component says when it gives up, and what else may tell why.
VERDICT = re.compile(r"command failed|^Error: |^error: |^panic: ")
TELLING = re.compile(r"fatal|unknown flag|not defined|No such file|Permission denied|^F\d{4} ")


def process(name):
    """
    Return what systemd knows of the unit ``name``.

    A dictionary: ``state`` (active, activating, inactive, failed …), ``pid`` (int, 0 without a process),
    ``started`` (in seconds of ``time.monotonic``, or None), ``restarts`` (int), ``binary`` (path of the running executable or
    None), ``unit`` (path of the unit file or ""), ``user`` (that a start would have; "" for root), ``enabled`` (bool).

    name
        The component, which is also the name of its unit.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_component.process kube-apiserver
    """
    shown = dict(
        line.split("=", 1) for line in _systemctl("show", f"{name}.service", "-p", PROPERTIES).splitlines() if "=" in line
    )
    pid, since = int(shown.get("MainPID", 0)), int(shown.get("ExecMainStartTimestampMonotonic", 0) or 0)
    return {
        "state": shown.get("ActiveState", "unknown"),
        "substate": shown.get("SubState", "unknown"),
        "pid": pid,
        "started": since / 1e6 if pid and since else None,
        "restarts": int(shown.get("NRestarts", 0)),
        "binary": _executable(pid) if pid else None,
        "unit": shown.get("FragmentPath", ""),
        "user": shown.get("User", ""),
        "enabled": shown.get("UnitFileState") == "enabled",
    }


def foreign(row):
    """
    Return what runs in the place of a component although this formula did not start it, and how to adopt it (a
    sentence), or None. Where the operator said to adopt, it is None.

    row
        A row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_component.foreign "$ROW"
    """
    if row["adopt"] or __salt__["k8s_generation.links"](row["home"])["live"]:
        return None
    address = row["address"] if row["name"] == "etcd" else row["settings"].get("bind-address") or None
    unit, holder = process(row["name"]), listener(row["port"], address)
    if unit["pid"]:
        found = f"unit {row['name']} runs with process {unit['pid']} ({unit['binary']}, from {unit['unit'] or 'no file'})"
    elif holder:
        found = f"port {row['port']} is held by process {holder['pid']} ({holder['binary']})"
    else:
        return None
    pid = unit["pid"] or holder["pid"]
    place = __salt__["k8s_etcd_data.other_place"](row, pid) if row["name"] == "etcd" else None
    if place:
        return (
            f"etcd: {found}, but not from this formula; it was not touched. Its data directory is {place}, and "
            f"kubernetes_controller:etcd:data_dir is {row['settings'].get('data-dir', 'none')}, so another cluster would be "
            f"founded in its place. Declare kubernetes_controller:etcd:data_dir: {place} first, and run this again."
        )
    return (
        f"{row['name']}: {found}, but not from this formula; it was not touched. To hand it over, stop it yourself, or, where "
        f"it is the unit {row['name']}, let the formula replace it once with "
        'pillar=\'{"kubernetes_controller": {"rollout": {"adopt": true}}}\'.'
    )


def listener(port, address=None):
    """
    Return the process that listens on a TCP port: ``pid`` and ``binary``, or None when nothing does.

    port
        The TCP port.
    address
        The address (str) that it is asked for: whoever listens on this one or on all of them counts. By default, and for
        ``0.0.0.0`` and ``::``, whoever listens on any.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_component.listener 6443 10.8.0.101
    """
    inodes = _listening(port, address)
    if not inodes:
        return None
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for handle in os.scandir(f"/proc/{pid}/fd"):
                if os.readlink(handle.path) in inodes:
                    return {"pid": int(pid), "binary": _executable(pid)}
        except OSError:
            continue
    return {"pid": 0, "binary": "unknown"}


def unit_differs(row):
    """
    Tell whether the unit file that systemd has differs from that of the live generation.

    row
        A row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_component.unit_differs "$ROW"
    """
    return _text(f"{UNITS}/{row['name']}.service") != _text(f"{row['home']}/live/unit")


def unit_exposed(row):
    """
    Tell whether others than root may read the unit file that systemd has.

    row
        A row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_component.unit_exposed "$ROW"
    """
    try:
        return bool(os.stat(f"{UNITS}/{row['name']}.service").st_mode & 0o177)
    except OSError:
        return False


def replaced(row, pid):
    """
    Tell whether process ``pid`` was started from another binary than the live generation's: the file was exchanged, the
    process started from that, and the right one was put back since. Read only where the file of the process is gone.

    row
        A row of the configuration's ``components``.
    pid
        Its process (0 for none).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_component.replaced "$ROW" 4711
    """
    if not pid or not (_executable(pid) or "").endswith(" (deleted)"):
        return False
    try:
        started_from = __salt__["k8s_binary.checksum"](f"/proc/{pid}/exe")
    except (CommandExecutionError, OSError):  # it ended meanwhile
        return False
    return started_from != __salt__["k8s_generation.binary"](row["home"]).get("sha256", started_from)


def of_another_account(process):
    """
    Tell whether a process runs as another account than its unit would start it as now: a run that put back the former
    account was cut off before its restart.

    process
        What ``process`` returned.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_component.of_another_account '{"pid": 4711, "state": "active", "user": "kube-apiserver"}'
    """
    if not process["pid"] or process["state"] != "active":  # while it starts it is root's for a moment
        return False
    try:
        return os.stat(f"/proc/{process['pid']}").st_uid != pwd.getpwnam(process["user"] or "root").pw_uid
    except (OSError, KeyError):  # it ended meanwhile; an account that is no name
        return False


def install_unit(row):
    """
    Copy the live generation's unit to systemd's directory, for root's eyes only, reload systemd, and enable the unit.

    row
        A row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_component.install_unit "$ROW"
    """
    path = f"{UNITS}/{row['name']}.service"
    if unit_differs(row):
        __salt__["k8s_durable.write"](path, _text(f"{row['home']}/live/unit"), mode=f"{UNIT_MODE:o}", user="root", group="root")
        if process(row["name"])["enabled"]:
            _systemctl("daemon-reload")
            return True
    os.chmod(path, UNIT_MODE)
    _systemctl("enable", "--quiet", f"{row['name']}.service")  # which reloads systemd, too
    return True


def restart(name):
    """
    Let systemd start or restart the unit ``name``, without waiting for it to be ready (the gate does that).

    name
        The component, which is also the name of its unit.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_component.restart kube-scheduler
    """
    _systemctl("reset-failed", f"{name}.service", check=False)
    _systemctl("restart", "--no-block", f"{name}.service")
    return True


def retry(name):
    """
    Let the next run try a generation of the component ``name`` again that failed its gate. Returns their digests.

    name
        The component, which is also the name of its unit.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_component.retry kube-apiserver
    """
    cfg = __salt__["k8s_config.load"](fresh=True)
    if "errors" in cfg:
        raise CommandExecutionError("\n".join(cfg["errors"]))
    if name not in cfg["components"]:
        raise CommandExecutionError(f"{name}: expected one of {', '.join(cfg['components'])}")
    return __salt__["k8s_generation.forget_failures"](cfg["components"][name]["home"])


def tell(name, step, said, **facts):
    """
    Tell the master at once how far a component's change is; the return of a run comes only at its end.

    name
        The component.
    step
        The step of ``k8s_component.running`` or ``k8s_rehearsal.passed`` that ended: prepare, rehearse, turn, promote,
        go_back, done ...
    said
        A line for the operator, without secrets.
    facts
        What else whoever listens may want: ``result``, ``process``, ``seconds`` ...

    Sends the event ``kubernetes_controller/progress``. A master that does not listen is no reason to fail.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_component.tell kube-scheduler done 'by hand'
    """
    data = {"component": name, "step": step, "said": said, **{k: v for k, v in facts.items() if not k.startswith("__")}}
    return __salt__["event.send"](PROGRESS, data)


def complaint(name, since=None):
    """
    Return the last line of the unit's journal that tells why it failed (str), or "" when none does.

    since
        Look only at lines from then on (in seconds of ``time.monotonic``).

    name
        The component, which is also the name of its unit.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_component.complaint kube-apiserver
    """
    command = ["journalctl", "--no-pager", "-o", "cat", "-n", "300", "-u", f"{name}.service"]
    if since:
        command.append(f"--since=@{int(time.time() - time.monotonic() + since)}")
    answer = __salt__["cmd.run_all"](command, python_shell=False, ignore_retcode=True, output_loglevel="quiet")
    lines = [line for line in answer["stdout"].splitlines() if line[:1].strip()]  # help texts are indented
    for telling in (VERDICT, TELLING):
        found = [line for line in lines if telling.search(line)]
        if found:
            return found[-1][:500]
    return ""


def _systemctl(*arguments, check=True):
    answer = __salt__["cmd.run_all"](["systemctl", *arguments], python_shell=False, ignore_retcode=True)
    if check and answer["retcode"]:
        raise CommandExecutionError(f"systemctl {' '.join(arguments)}: {answer['stderr'] or answer['stdout']}")
    return answer["stdout"]


def _executable(pid):
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None


def _listening(port, address=None):
    """Return the ``socket:[inode]`` names of the sockets that listen on ``port`` (state 0A in /proc/net/tcp)."""
    wanted, found = _address(address), set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _text(table).splitlines()[1:]:
            fields = line.split()
            host, _, number = fields[1].rpartition(":")
            if fields[3] != "0A" or int(number, 16) != port:
                continue
            if wanted is None or wanted.is_unspecified or _bound(host) in (wanted, None):
                found.add(f"socket:[{fields[9]}]")
    return found


def _address(text):
    """Return an IP address as an object, or None where ``text`` is none."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _bound(digits):
    """Return the address that stands in a table of /proc/net, words in the order of this machine; None for all of them."""
    words = (digits[start : start + 8] for start in range(0, len(digits), 8))
    found = ipaddress.ip_address(b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words))
    found = getattr(found, "ipv4_mapped", None) or found
    return None if found.is_unspecified else found


def _text(path):
    try:
        with salt.utils.files.fopen(path, encoding="utf-8") as handle:
            return handle.read()
    except OSError:
        return ""
