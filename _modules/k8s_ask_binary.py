"""
Ask a component's binary what it accepts: its ``--help`` as data, and a dry run that ends before it opens a port.

No table of flags, feature gates or plugins can go stale here. The dry run happens in a network namespace of its own,
where no address of the node exists and nothing can be reached: a component checks its flags, finds that it cannot bind
its address, and ends, all within a tenth of a second. All files are read-only there but for the draft of the generation, in
which the directories have a place that the component writes to, and whatever pipe or device a flag names; sockets are
covered. So whatever flags name, nothing is made, changed or told to anybody.

Each question is bounded: in time, in what is read of its answer, and by its rank among those that want processors or memory.
"""

import contextlib
import ctypes
import difflib
import errno
import fcntl
import functools
import json
import os
import re
import resource
import selectors
import signal
import socket
import stat
import struct
import subprocess
import time

import salt.utils.hashutils
from salt.exceptions import CommandExecutionError

TIMEOUT_S = 30  # 0.2 s of a processor's time are enough, which it has to get on a busy node
MOST_SAID = 4 << 20  # bytes; the longest --help has 150 KB
FIRST_TO_GO = 900  # the kernel's oom_score_adj; whatever serves has 0 or less
NICE = 10  # a tenth of the weight of what serves; with 19 a question starved beside six busy processes
LIMITS = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 64 << 20}  # bytes
# What a lack of means on this node says nothing of the file.
PASSING = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY)
TRIES = 6  # a component names one fault at a time; so many are collected
FLAG = re.compile(r"^ {2,6}(?:-\w, )?--([a-z0-9][\w.-]*)(?: (\S+))?(?: {2,}(.*))?$")
GATE = re.compile(r"(\w+)=(?:true\|false|false\|true) \((\w+) - default=(true|false)\)")
PLUGINS = re.compile(r"Comma-delimited list of admission plugins: ([\w, ]+)\.")
DEPRECATED = re.compile(r"^DEPRECATED:?\s*|\bDeprecated in v")
ADMISSION = ("enable-admission-plugins", "disable-admission-plugins")
# Types of one value, and the flags of these that take two, one of each IP family, without a word of it in --help.
ONE_VALUE = ("string", "stringArray", "namedCertKey")
FAMILIES = ("cluster-cidr", "service-cluster-ip-range")
# The CIS benchmark asks for the flag itself, although a scheduler with a configuration file takes it from there.
DEPRECATED_ON_PURPOSE = {("kube-scheduler", "profiling")}
# TEST-NET-1: an address that no host has.
NOWHERE = "192.0.2.1"
EVERYWHERE = re.compile(r"^(0\.0\.0\.0|127\..*|::|::1|localhost|)$")
EVERYWHERE_URL = re.compile(r"(://)(?:0\.0\.0\.0|127\.[\d.]+|\[::1?\]|localhost)(?=[:/,]|$)")
BOUND = re.compile(r"cannot assign requested address|address already in use|failed to create listener|address family not supp")
# What only the missing network, or files that cannot be written, explain is no fault of the flags.
OURS = re.compile(r"\bdial (tcp|udp|unix)|\blookup |network is unreachable|no such host|default route|read-only file system")
TELLING = (
    re.compile(r"^Error: (.*)$", re.M),
    re.compile(r'"command failed" err="((?:[^"\\]|\\.)*)"'),
    re.compile(r"^((?:invalid value .* for flag -|flag provided but not defined: -).*)$", re.M),
    re.compile(r"^((?:panic|fatal error|runtime): .*)$", re.M),
)
CLONE_NEWNET, CLONE_NEWNS, SIOCSIFFLAGS, IFF_UP = 0x40000000, 0x00020000, 0x8914, 0x1
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MS_BIND, MS_PRIVATE = 442, -100, 0x8000, 1 << 12, 1 << 18
READ_ONLY, NO_DEVICES = 1, 4
# Of what root may, a component that is asked keeps to read what is declared, and to bind any port: cap_dac_read_search,
# cap_net_bind_service.
KEPT = (2, 10)
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")  # by which nothing can be told or changed
ITS_OWN = ("/dev/null", "/dev/stdout", "/dev/stderr")
COMMANDS = ("/run/systemd", "/run/dbus")  # where sockets and pipes take orders


class Damaged(CommandExecutionError):
    """The fault lies in the file of the binary."""


def options(binary):
    """
    Return what ``binary`` says in ``--help``.

    binary
        Absolute path.

    A dictionary: ``flags`` (name to ``type``, ``help`` and ``deprecated``), ``gates`` (name to ``stage`` and
    ``default``), ``plugins`` (names of admission plugins). Raises CommandExecutionError when it does not answer or is damaged.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_ask_binary.options /opt/kubernetes/1.37.2/bin/kube-apiserver
    """
    answer = _run([binary, "--help"])
    flags, current = {}, None
    for line in answer["said"].splitlines():
        if match := FLAG.match(line):
            current = flags[match[1]] = {"type": match[2] or "bool", "help": match[3] or ""}
        elif current is not None and line.startswith("    "):
            current["help"] = f"{current['help']} {line.strip()}".strip()
    if not flags:
        raise Damaged(f"{binary} --help listed no flags (status {answer['status']}): is it damaged?")
    for flag in flags.values():
        flag["deprecated"] = bool(DEPRECATED.search(flag["help"]))
    gates = GATE.findall(flags.get("feature-gates", {}).get("help", ""))
    plugins = PLUGINS.search(flags.get(ADMISSION[0], {}).get("help", ""))
    return {
        "flags": flags,
        "gates": {name: {"stage": stage, "default": default == "true"} for name, stage, default in gates},
        "plugins": plugins[1].split(", ") if plugins else [],
    }


def unknown_flags(binary, settings):
    """
    Return the names in ``settings`` that ``binary`` does not accept as flags, each with its nearest known name.

    binary
        Absolute path. The binary itself is asked (``--help``), so no table of removed flags can go stale.
    settings
        Names of flags without dashes (list, or the keys of a dict).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_ask_binary.unknown_flags /opt/kubernetes/1.37.2/bin/kube-apiserver '["aduit-log-maxage"]'
    """
    return _unknown_flags(binary, settings, options(binary)["flags"])


def problems(row, directory):
    """
    Return what the binary of ``row`` does not accept of its flags, and what it accepts but warns of.

    row
        A row of the configuration's ``components``.
    directory
        Where the files of its generation are staged (``k8s_generation.draft``); the dry run reads them there.

    A dictionary of lists of sentences, ``errors`` and ``warnings``; each names the pillar key.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_ask_binary.problems "$ROW" /run/staged
    """
    try:
        known = options(row["binary"])
        strange = _other_release(row)
        if strange:
            return {"errors": [strange], "warnings": []}
        errors, settings = _by_help(row, known)
        found, warnings = _by_dry_run(row, directory, settings, known)
    except CommandExecutionError as exc:
        way_out = _way_out(row) if isinstance(exc, Damaged) else ""
        return {"errors": [f"{_who(row)}: {exc}{way_out}"], "warnings": []}
    return {"errors": [*errors, *found], "warnings": [*_deprecated(row, known), *warnings]}


def _way_out(row):
    """Return what to do with the file of a binary that is at fault; one that a generation needs to start again stays."""
    if not row["binary_managed"]:
        return " Replace it; the formula does not manage it (kubernetes_controller:binaries:names)."
    for link in ("live", "good"):
        if _starts_from(row, link):
            return (
                f" Leave it there: {row['home']}/{link} starts from it, and it is the same file as then. Run this again; if it "
                f"stays so, see what `{row['binary']} --version` says on this node, or declare another release."
            )
    return f" Remove {row['binary']}, and the next run fetches it again."


def _starts_from(row, link):
    """Tell whether the generation of this link starts from the binary as it is now; its content is read for that."""
    used = __salt__["k8s_generation.binary"](row["home"], link)
    try:
        return used.get("path") == row["binary"] and salt.utils.hashutils.get_hash(row["binary"], "sha256") == used["sha256"]
    except OSError:
        return False


def _other_release(row):
    """Return a sentence when the binary says that it is of another release than its path and the pillar say."""
    said = _run([row["binary"], "--version"])["said"]
    found = re.search(r"(?:Kubernetes v|etcd Version: )(\d+\.\d+\.\d+\S*)", said)
    if found is None or found[1] == row["release"]:
        return None
    return f"{row['binary']} says that it is release {found[1]}, not {row['release']}.{_way_out(row)}"


# -- by --help --------------------------------------------------------------------------------------------------------


def _unknown_flags(binary, settings, known):
    return {flag: _nearest(flag, known) for flag in settings if flag not in known and not _hidden(binary, flag)}


def _nearest(word, known):
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.5)), None)


def _hint(word, known):
    nearest = _nearest(word, known)
    return f" (nearest: {nearest})" if nearest else ""


def _hidden(binary, flag):
    """Tell whether a flag that --help does not list is accepted all the same (deprecated ones are hidden)."""
    said = _run([binary, f"--{flag}=1", "--help"])["said"]
    return not re.search(r"unknown flag|not defined", said)


def _by_help(row, known):
    """Return sentences for what --help shows to be unknown, and the settings without it."""
    errors, settings = [], dict(row["settings"])
    for flag, nearest in _unknown_flags(row["binary"], settings, known["flags"]).items():
        hint = f" (nearest: {nearest})" if nearest else ""
        errors.append(f"{_key(row, flag)}: {_who(row)} has no such flag{hint}. Remove it or set it to null.")
        del settings[flag]
    for flag in ADMISSION if known["plugins"] else ():
        plugins = [name for name in settings.get(flag, "").split(",") if name]
        for name in plugins:
            if name not in known["plugins"]:
                errors.append(
                    f"{_key(row, flag)}: {_who(row)} has no admission plugin {name}{_hint(name, known['plugins'])}. Remove it."
                )
        if plugins:
            settings[flag] = ",".join(name for name in plugins if name in known["plugins"])
    return errors + _not_lists(row, known["flags"]), settings


def _not_lists(row, known):
    """Return a sentence for each list that was joined by commas for a flag of one value, which would take it for that."""
    found = []
    for flag in row["joined"] if row["name"] != "etcd" else ():  # whose --help has no types
        kind, said = (known.get(flag, {}).get(key, "") for key in ("type", "help"))
        if kind in ONE_VALUE and flag not in FAMILIES and "comma" not in said.lower():
            found.append(f"{_key(row, flag)}: {_who(row)} takes one value, found several, which it would read as one. Give one.")
    return found


def _deprecated(row, known):
    return [
        f"{_key(row, flag)}: {row['name']} {row['release']} calls the flag deprecated: "
        f"{DEPRECATED.sub('', known['flags'][flag]['help'])[:200]}"
        for flag in row["settings"]
        if known["flags"].get(flag, {}).get("deprecated") and (row["name"], flag) not in DEPRECATED_ON_PURPOSE
    ]


def _key(row, flag=None):
    if flag == "config" and row["name"] == "kube-scheduler":
        return "kubernetes_controller:scheduler:config"  # where the content of that file is declared
    return f"kubernetes_controller:{row['key']}:settings" + (f":{flag}" if flag else "")


def _who(row):
    return f"{row['name']} {row['release']}"


# -- by a dry run -----------------------------------------------------------------------------------------------------


def _by_dry_run(row, directory, settings, known):
    """Return sentences for what the binary refuses when it starts, and for what it warns of."""
    errors, warnings, gates, seen = [], [], _gates(settings), set()
    for _ in range(TRIES):
        said = _start(row, directory, settings)
        if said is None:
            lost = "no namespaces can be made here, so values and feature gates are not tried before the rehearsal."
            return errors, [f"{_who(row)}: {lost}"]
        warnings += re.findall(r"^(Flag --.* has been deprecated, .*)$", said, re.M)
        complaint = _complaint(said)
        if not complaint or complaint in seen:
            break
        seen.add(complaint)
        gate = re.search(r"unrecognized feature gate: (\w+)|cannot set feature gate (\w+)|invalid value of (\w+)=", complaint)
        flag = _blamed(complaint, settings)
        if gate and "feature-gates" in settings:
            name = next(filter(None, gate.groups()))
            unknown = f"{_who(row)} has no feature gate {name}{_hint(name, known['gates'])}. Remove it"
            errors.append(f"{_key(row, 'feature-gates')}: {unknown if gate[1] else complaint}.")
            kept = [pair for pair in settings["feature-gates"].split(",") if _gate(pair) != name]
            if kept == settings["feature-gates"].split(","):
                break
            settings = {**settings, "feature-gates": ",".join(kept)}
            gates.discard(name)
            continue
        errors.append(f"{_key(row, flag)}: {_who(row)} refuses it: {complaint}.")
        if flag is None or "invalid argument" not in complaint and "invalid value" not in complaint:
            break  # what is not a fault of one flag's form hides what comes after it
        settings = {name: value for name, value in settings.items() if name != flag}
    warnings = [f"{_key(row, _blamed(line, settings))}: {line}" for line in dict.fromkeys(warnings)]
    return errors, warnings + [
        f"{_key(row, 'feature-gates')}: {_who(row)} does not list {name} any more{_hint(name, known['gates'])}, and a later "
        "release will refuse it."
        for name in sorted(gates - set(known["gates"]))
        if known["gates"] and not errors
    ]


def _gate(pair):
    return pair.partition("=")[0].rpartition(":")[2]


def _gates(settings):
    return {_gate(pair) for pair in settings.get("feature-gates", "").split(",") if pair}


def _start(row, directory, settings):
    """
    Start the binary where it can reach, bind and write nothing; return what it said, or None where that is not possible.

    The directories that it writes to need not be there yet: each has a place in the draft, and so have pipes and devices.
    """
    moved = [*_no_files(settings), *sorted(row["directories"], reverse=True)]
    places = {path: f"{directory}/.place-{number:02}" for number, path in enumerate(moved)}
    for path, place in places.items():
        if path in row["directories"]:
            os.makedirs(place, mode=0o700, exist_ok=True)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o600))
    arguments = __salt__["k8s_config.arguments"](_without_effect(row, directory, settings, places))
    try:
        said = _run([row["binary"], *arguments], writable=directory)["said"]
    except subprocess.SubprocessError:
        return None
    for path, place in places.items():
        said = said.replace(place, path)
    return said.replace(directory, f"{row['home']}/live")


def _without_effect(row, directory, settings, places):
    """Return the settings with files where they are staged, others where they may be written, and no address to bind."""
    staged = __salt__["k8s_generation.staged_flags"]({**row, "settings": settings}, directory)
    changed = {flag: _moved(value, places) for flag, value in staged.items()}
    if row["name"] == "etcd":
        for flag in ("listen-peer-urls", "listen-client-urls"):
            if flag in changed:
                changed[flag] = EVERYWHERE_URL.sub(rf"\g<1>{NOWHERE}", changed[flag])
        return changed
    if EVERYWHERE.match(changed.get("bind-address", "")):
        changed["bind-address"] = NOWHERE
    if "tls-cert-file" not in changed:
        changed["cert-dir"] = directory  # where it would put a certificate of its own making
    return changed


def _moved(value, places):
    """Return the value of a flag (a string, or a list of them) with paths below ``places`` (dict) at theirs."""
    if isinstance(value, list):
        return [_moved(one, places) for one in value]
    for path, place in places.items():  # the deepest first
        value = re.sub(rf"(?<![^,:=])((?:file://)?){re.escape(path)}(?=[/,]|$)", rf"\g<1>{place}", value)
    return value


def _no_files(settings):
    """Return what ``settings`` name that takes what is written to it although it is mounted read-only: pipes and devices."""
    elements = [part for value in settings.values() for one in _elements(value) for part in re.split(r"[,=]", one)]
    paths = dict.fromkeys(element.removeprefix("file://") for element in elements)
    kinds = (stat.S_ISFIFO, stat.S_ISCHR, stat.S_ISBLK)
    return [path for path in paths if path.startswith("/") and path not in ITS_OWN and _is(path, *kinds)]


def _is(path, *kinds):
    """Tell whether there is something of one of these ``kinds`` (functions of ``stat``), as links lead to it."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return any(kind(mode) for kind in kinds)


def _complaint(said):
    """Return why a component ended, in its own words; None when it got as far as binding its address, or does not say."""
    if BOUND.search(said):
        return None
    found = [match for pattern in TELLING for match in pattern.findall(said)] + _logged(said)
    complaint = found[-1].replace('\\"', '"').strip().rstrip(".") if found else None
    return None if complaint and OURS.search(complaint) else complaint


def _logged(said):
    """Return the errors of a log in JSON."""
    found = []
    for line in said.splitlines():
        try:
            entry = json.loads(line) if line.startswith("{") else {}
        except ValueError:
            continue
        error = entry.get("error") or entry.get("err")
        if error and (entry.get("level") in ("warn", "error", "fatal", "panic") or entry.get("msg") == "command failed"):
            found.append(str(error))
    return found


def _blamed(complaint, settings):
    """Return the flag among ``settings`` that a complaint is about, or None: by its form, by the first name, by a file."""
    named = re.search(r'for "(?:-\w, )?--([\w-]+)" flag|for flag -([\w-]+)|^Flag --([\w-]+) has', complaint)
    if named:
        name = next(filter(None, named.groups()))
        return name if name in settings else None
    found = {}
    for flag, value in settings.items():
        place = re.search(rf"(?:^|[^\w-]|--){re.escape(flag)}(?![\w-])", complaint)
        if place and ("-" in flag or "--" in place[0]):
            found[flag] = (place.start(), -len(flag))
        elif any(one.startswith("/") and re.search(re.escape(one) + r"(?![\w.-])", complaint) for one in _elements(value)):
            found[flag] = (len(complaint), 0)
    if not found and re.search(r"decoding error|KubeSchedulerConfiguration", complaint) and "config" in settings:
        return "config"
    quoted = set(re.findall(r'"([^"]+)"', complaint))
    for flag, value in settings.items() if not found else ():
        if quoted & {part for one in _elements(value) for part in one.split(",")}:
            found[flag] = (len(complaint), 0)
    return min(found, key=found.get, default=None) if found else None


def _elements(value):
    return value if isinstance(value, list) else [value]


# -- running ----------------------------------------------------------------------------------------------------------


def _run(command, writable=None):
    """
    Run a command for at most TIMEOUT_S seconds, where it can reach and bind nothing, and write to the directory ``writable``
    only; return ``status`` and ``said`` (both streams).

    Raises subprocess.SubprocessError where no namespace can be had; then only the questions that start nothing are asked
    without one.
    """
    is_question = command[-1] in ("--help", "--version")
    try:
        try:
            process = _popen(command, functools.partial(_alone, writable, _sockets()))
        except subprocess.SubprocessError:
            if not is_question:
                raise
            process = _popen(command, _step_back)
    except OSError as exc:
        if exc.errno in PASSING:
            raise _unasked(command, f"it cannot be run, {exc.strerror}") from exc
        raise Damaged(f"{command[0]} cannot be run ({exc.strerror}): is it damaged?") from exc
    try:
        said = _answer(process, command)
    finally:
        _end(process)
    if process.returncode == -signal.SIGKILL:
        raise _unasked(command, "it was ended by SIGKILL")
    if process.returncode < 0:
        ended = f"{_asked(command)} was ended by {signal.Signals(-process.returncode).name}"
        raise Damaged(f"{ended}: is it damaged?") if is_question else CommandExecutionError(f"{ended}.")
    return {"status": process.returncode, "said": said}


def _popen(command, before):
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent"}
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        cwd="/", start_new_session=True, preexec_fn=before,  # noqa: PLW1509
    )  # fmt: skip


def _answer(process, command):
    """Return what a process says until it ends, both streams. What is read is in the minion's memory, so it has a bound, too."""
    said, deadline = b"", time.monotonic() + TIMEOUT_S
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0 and selector.select(left):
            part = os.read(process.stdout.fileno(), 1 << 16)
            said += part
            if len(said) > MOST_SAID:
                raise CommandExecutionError(f"{_asked(command)} said more than {MOST_SAID >> 20} MiB and was ended.")
            if not part:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(left)
                    return said.decode(errors="replace")
    raise _unasked(command, f"it did not end within {TIMEOUT_S} s")


def _unasked(command, reason):
    said = f"{_asked(command)} could not be asked: {reason} (is the node busy, or out of memory?). Run this again."
    return CommandExecutionError(said)


def _asked(command):
    return f"{command[0]} {command[-1] if command[-1] in ('--help', '--version') else 'with its flags'}"


def _end(process):
    """End what is left of a command and of what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()


LIBC = ctypes.CDLL(None, use_errno=True)


class MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user_namespace")]


def _step_back():
    """Let this process, between fork and exec, lose against all that serves: where processors, memory and disks are short."""
    for name, value in {"oom_score_adj": FIRST_TO_GO, "autogroup": NICE}.items():
        with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w", encoding="ascii") as handle:
            handle.write(str(value))
    os.nice(NICE)
    for kind, most in LIMITS.items():
        resource.setrlimit(kind, (most, most))


def _sockets():
    """Return the paths (set) at which somebody of this machine may be told something."""
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as handle:
        fields = [line.rstrip("\n").split(maxsplit=7) for line in handle]
    return {field[7] for field in fields if len(field) == 8 and field[7].startswith("/") and _is(field[7], stat.S_ISSOCK)}


def _alone(writable, sockets):
    """
    Move this process, between fork and exec, to namespaces of its own: a network that has nothing but a loopback, and the
    files of this machine, read-only but for the directory ``writable`` (None for none), without devices and without those
    who listen at ``sockets`` (paths); and give up most of what root may.

    Without the loopback up, Linux would let it bind any address. That it cannot is tried, not believed: a component
    that could bind would go on and start.
    """
    _step_back()
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _checked(LIBC.unshare(CLONE_NEWNET | CLONE_NEWNS), "unshare")
    _set_mounts("/", MountAttributes(set=READ_ONLY | NO_DEVICES, propagation=MS_PRIVATE))
    for path in filter(os.path.exists, DEVICES):
        _bind(path, path)
        _set_mounts(path, MountAttributes(clear=NO_DEVICES))
    for path in filter(os.path.isdir, COMMANDS):
        _checked(LIBC.mount(b"none", os.fsencode(path), b"tmpfs", READ_ONLY, None), "mount")
    for path in sockets:
        with contextlib.suppress(FileNotFoundError):  # covered already, or gone
            _bind("/dev/null", path)
    if writable:
        _bind(writable, writable)
        _set_mounts(writable, MountAttributes(clear=READ_ONLY))
    for capability in range(64):
        if capability not in KEPT and LIBC.prctl(PR_CAPBSET_DROP, capability):
            break
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _without_network()


def _set_mounts(path, attributes):
    size = ctypes.sizeof(attributes)
    path, flags = os.fsencode(path), AT_RECURSIVE
    _checked(LIBC.syscall(MOUNT_SETATTR, AT_FDCWD, path, flags, ctypes.byref(attributes), size), "mount_setattr")


def _bind(source, target):
    _checked(LIBC.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND, None), "mount")


def _checked(failed, call):
    if failed:
        raise OSError(ctypes.get_errno(), call)


def _without_network():
    with socket.socket() as one:
        fcntl.ioctl(one, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
        try:
            one.bind((NOWHERE, 0))
        except OSError:
            return
    raise OSError("an address that is nobody's can be bound")
