"""
Generations: everything that decides how a component behaves, in one directory named by its digest.

A generation is built in memory from a row of the configuration's ``components`` (references, never secrets),
compared with the one that is live, written beside it, and promoted by the rename of one link. Nothing here ever
returns the content of a secret file.
"""

import difflib
import glob
import grp
import hashlib
import json
import os
import pwd
import re
import shlex
import shutil
import tempfile
import time

import salt.utils.files
import yaml
from salt.exceptions import CommandExecutionError

FIXED = ("start", "unit")
FAILED = "failed.json"
DRAFT = "/run/kubernetes-controller-draft"
DIGITS = 16
DIRECTORY_MODE = 0o750
SECRET_MARKS = ("PRIVATE KEY", "client-key-data", "secret:")


class ToCome(CommandExecutionError):
    """What is missing is made by an earlier step of a whole run, so a test run cannot know what follows from it."""

    to_come = True


def digest(row):
    """
    Return the digest of the generation that ``row`` declares.

    row
        A row of the configuration's ``components``.

    Raises CommandExecutionError that names the pillar key or file when something is missing; with ``to_come`` where an
    earlier step of a whole run makes it.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.digest "$ROW"
    """
    return _digest(_build(row))


def draft(row):
    """
    Write the files of the generation that ``row`` declares to a directory on /run that only root may enter; return its path.

    They name each other there, not below ``live``. For those who have to read or try the files before they are
    prepared; whoever asked removes the directory, and ``sweep_drafts`` what a killed run left.

    row
        A row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.draft "$ROW"
    """
    files, directory = _build(row), None
    sweep_drafts()
    try:
        directory = tempfile.mkdtemp(prefix=f"{DRAFT}-{os.getpid()}-")
        for name, entry in files.items():
            text = entry["text"].replace(f"{row['home']}/live/", f"{directory}/")
            handle = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as exc:
        if directory:  # keys may be in it
            shutil.rmtree(directory, ignore_errors=True)
        raise CommandExecutionError(
            f"{directory or DRAFT}: {exc.strerror}. {row['name']} is drafted there before it is judged; make room in "
            f"{os.path.dirname(DRAFT)}."
        ) from exc
    return directory


def sweep_drafts():
    """
    Remove the drafts of processes that are gone: a killed run leaves declared files, keys among them. Returns their paths.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.sweep_drafts
    """
    leftovers = [path for path in glob.glob(f"{DRAFT}-*") if not os.path.isdir(f"/proc/{path.split('-')[-2]}")]
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
    return leftovers


def links(home):
    """
    Return the names of the generations that the links ``live`` and ``good`` below ``home`` lead to (None: no link).

    home
        Directory of the component's generations (its row's ``home``).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.links /var/lib/kubernetes
    """
    return {name: _target(home, name) for name in ("live", "good")}


def intact(home, name):
    """
    Tell whether generation ``name`` below ``home`` still has the digest that it is named after.

    home
        Directory of the component's generations (its row's ``home``).

    name
        Name of the generation.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.intact /var/lib/kubernetes 3f9c0d1e2b3a4c5d
    """
    present = _read(os.path.join(home, "generations", name))
    return bool(present) and _digest(present) == name.partition(".")[0]


def prepared_as(row, name):
    """
    Return owner and mode that a generation was prepared with: {file: {user, group, mode}}, the directory under ``""``; {}
    where its content is another, so that nobody knows.

    row
        A row of the configuration's ``components``.

    name
        Name of a generation below its home.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.prepared_as "$ROW" 3f9c0d1e2b3a4c5d
    """
    files = _as_prepared(row, name)
    if not files or _digest(files) != name.partition(".")[0]:
        return {}
    directory = {**files["start"], "mode": f"{DIRECTORY_MODE:04o}"}
    return {file: {key: entry[key] for key in ("user", "group", "mode")} for file, entry in {"": directory, **files}.items()}


def flags(home, link="live"):
    """
    Return the flags (dict) of the generation that ``link`` leads to, read from its ``start``; {} without one.

    A value is a str, and a list of str where the flag is there more than once.

    home
        Directory of the component's generations (its row's ``home``).

    link
        ``live`` (default) or ``good``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.flags /var/lib/kubernetes
    """
    present = _read(os.path.join(home, link))
    return _flags(present["start"]["text"]) if "start" in present else {}


def staged_flags(row, directory):
    """
    Return the flags (dict) that ``row`` declares, with the paths that its files have in ``directory``.

    row
        A row of the configuration's ``components``.
    directory
        Where its generation is drafted or prepared, but not live.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.staged_flags "$ROW" /var/lib/kubernetes/generations/3f9c0d1e2b3a4c5d
    """
    old, new = f"{row['home']}/live/", f"{directory}/"
    return {
        flag: [one.replace(old, new) for one in value] if isinstance(value, list) else value.replace(old, new)
        for flag, value in row["settings"].items()
    }


def with_flags(start, exchanged):
    """
    Return the text of a ``start`` with some flags exchanged.

    start
        Text of the script.
    exchanged
        Flags (dict, as of ``flags``); None takes a flag away. All that ``start`` has of such a flag is exchanged.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.with_flags "$(cat start)" '{"etcd-servers": "http://127.0.0.1:12379"}'
    """
    head, _, command = start.partition("\nexec ")
    flags = {flag: value for flag, value in {**_flags(start), **exchanged}.items() if value is not None}
    words = [shlex.split(command.splitlines()[0].removesuffix("\\"))[0], *__salt__["k8s_config.arguments"](flags)]
    return f"{head}\nexec " + " \\\n  ".join(map(shlex.quote, words)) + "\n"


def release(home, link="live"):
    """
    Return the release of the generation that ``link`` leads to (str), or None.

    home
        Directory of the component's generations (its row's ``home``).

    link
        ``live`` (default) or ``good``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.release /var/lib/kubernetes
    """
    present = _read(os.path.join(home, link))
    return _release(present["start"]["text"]) if "start" in present else None


def binary(home, link="live"):
    """
    Return the binary of the generation that ``link`` leads to: ``path`` and ``sha256`` (hex); {} without one.

    home
        Directory of the component's generations (its row's ``home``).

    link
        ``live`` (default) or ``good``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.binary /var/lib/kubernetes
    """
    start = _text(_read(os.path.join(home, link)), "start")
    checksum, command = re.search(r"^# \S+ \S+ sha256:([0-9a-f]{64})$", start, re.M), re.search(r"^exec (.*)$", start, re.M)
    if not checksum or not command:
        return {}
    return {"path": shlex.split(command[1].removesuffix("\\"))[0], "sha256": checksum[1]}


def differences(row, link="live"):
    """
    Return how the declared generation differs from the one that ``link`` leads to; {} when it does not.

    The answer is fit for a state's ``changes``: flags old and new, files by description or diff, secrets never. Owners and
    modes that somebody changed are no difference: they are put right where they are (``k8s_owners``).

    row
        A row of the configuration's ``components``.

    link
        ``live`` (default) or ``good``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.differences "$ROW"
    """
    wanted, present = _build(row), _as_prepared(row, _target(row["home"], link))
    if present and _digest(wanted) == _digest(present):
        return {}
    changes = {"generation": {"old": _target(row["home"], link), "new": _digest(wanted)}}
    old_start = present["start"]["text"] if "start" in present else ""
    old, new = _flags(old_start), _flags(wanted["start"]["text"])
    if not present:
        return changes | {"release": {"old": None, "new": row["release"]}}
    if _head(old_start) != _head(wanted["start"]["text"]):
        changes["release"] = {"old": _release(old_start), "new": row["release"]}
    flag_changes = {k: {"old": old.get(k), "new": new.get(k)} for k in sorted({*old, *new}) if old.get(k) != new.get(k)}
    if flag_changes:
        changes["flags"] = flag_changes
    if _text(present, "unit") != wanted["unit"]["text"]:
        changes["unit"] = _diff(_text(present, "unit"), wanted["unit"]["text"])
    files = {
        name: _file_change(present.get(name), wanted.get(name))
        for name in sorted({*present, *wanted} - {*FIXED})
        if _facts(present.get(name)) != _facts(wanted.get(name))
    }
    if files:
        changes["files"] = files
    if set(changes) == {"generation"}:
        changes["damage"] = "the live generation is not what it was prepared as"
    return changes


def action(row, changes):
    """
    Return what ``changes`` (see ``differences``) ask of the process: ``reload`` or ``restart``, and why.

    A reload is enough when nothing but files changed and each of their rows says that the component takes it up.

    row
        A row of the configuration's ``components``.

    changes
        What ``differences`` returned.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.action "$ROW" '{"files": {"tls.crt": "…"}}'
    """
    reasons = []
    if "release" in changes:
        reasons.append("release")
    reasons += [f"flag {name}" for name in changes.get("flags", {})]
    if "unit" in changes:
        reasons.append("unit")
    reasons += [f"file {name}" for name in changes.get("files", {})]
    if "damage" in changes:
        reasons.append("the live generation is damaged")
    only_files = set(changes) <= {"generation", "files"}
    reloadable = all(row["files"].get(name, {}).get("reload") for name in changes.get("files", {}))
    how = "reload" if changes.get("files") and only_files and reloadable else "restart"
    return {"how": how, "why": ", ".join(reasons)}


def prepare(row):
    """
    Write the declared generation beside the others, in a directory of its own, and return its name.

    It is written under another name, synced, and renamed, so that a directory with a generation's name is whole.
    Nothing is ever written into one that exists: a damaged one is left where it is and a new one gets a number; one that
    has only other owners or modes gets its own again. Directories that the component writes to are made where they are
    missing, and left as they are otherwise. Of generations that were never promoted no more are left than the pillar keeps.

    row
        A row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.prepare "$ROW"
    """
    files = _build(row)
    group, parent = _gid(row["group"]), os.path.join(row["home"], "generations")
    name = base = _digest(files)
    number = 1
    try:
        __salt__["k8s_owners.provide"](row)
        while os.path.isdir(os.path.join(parent, name)):
            if _digest(_as_prepared(row, name)) == base:
                __salt__["k8s_owners.restore"](row, name)
                return name
            number += 1
            name = f"{base}.{number}"
    except OSError as exc:
        raise CommandExecutionError(f"{exc.filename or parent}: {exc.strerror}. Nothing was promoted.") from exc
    for stale in os.listdir(parent):
        if stale.startswith(".prepare-"):
            shutil.rmtree(os.path.join(parent, stale))
    scratch = tempfile.mkdtemp(prefix=".prepare-", dir=parent)
    try:
        for file, entry in files.items():
            path, owner = os.path.join(scratch, file), {"user": "root", "group": row["group"]}
            __salt__["k8s_durable.write"](path, entry["text"], mode=entry["mode"], **owner)
        os.chown(scratch, 0, group)
        os.chmod(scratch, DIRECTORY_MODE)
        os.rename(scratch, os.path.join(parent, name))
    except OSError as exc:
        shutil.rmtree(scratch, ignore_errors=True)
        raise CommandExecutionError(f"{scratch}: {exc.strerror}. Nothing was promoted.") from exc
    __salt__["k8s_durable.sync"](parent)
    prune(row["home"], max(row["keep_generations"], 2) + 1)
    return name


def promote(home, name, link="live"):
    """
    Let ``link`` below ``home`` lead to generation ``name``, by one rename.

    home
        Directory of the component's generations (its row's ``home``).

    name
        Name of the generation.

    link
        ``live`` (default) or ``good``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.promote /var/lib/kubernetes 3f9c0d1e2b3a4c5d
    """
    target = os.path.join("generations", name)
    if not os.path.isdir(os.path.join(home, target)):
        raise CommandExecutionError(f"{home}/{target}: there is no such generation.")
    scratch = os.path.join(home, f".{link}.new")
    try:
        if os.path.lexists(scratch):
            os.unlink(scratch)
        os.symlink(target, scratch)
        os.rename(scratch, os.path.join(home, link))
    except OSError as exc:
        leads_to = _target(home, link) or "nothing"
        raise CommandExecutionError(f"{home}/{link}: {exc.strerror}; it still leads to {leads_to}, not to {name}.") from exc
    __salt__["k8s_durable.sync"](home)
    return True


def failures(home):
    """
    Return the generations that failed their gate by their own fault: {digest: reason}.

    home
        Directory of the component's generations (its row's ``home``).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.failures /var/lib/kubernetes
    """
    try:
        with salt.utils.files.fopen(os.path.join(home, FAILED), encoding="utf-8") as handle:
            found = json.load(handle)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember_failure(home, name, reason):
    """
    Remember that generation ``name`` failed its gate, so that a scheduled run does not try it again.

    home
        Directory of the component's generations (its row's ``home``).

    name
        Name of the generation.

    reason
        Why it failed, for the operator.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.remember_failure /var/lib/kubernetes 3f9c0d1e2b3a4c5d 'it crashed'
    """
    text = json.dumps({**failures(home), name.partition(".")[0]: reason}, indent=1)
    return __salt__["k8s_durable.write"](os.path.join(home, FAILED), text)


def forget_failures(home):
    """
    Forget which generations failed; they may be tried again.

    home
        Directory of the component's generations (its row's ``home``).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.forget_failures /var/lib/kubernetes
    """
    known = failures(home)
    if known:
        os.unlink(os.path.join(home, FAILED))
    return sorted(known)


def prune(home, keep):
    """
    Remove the oldest generations but ``keep`` of them, never one that is live or good. Returns the names removed.

    home
        Directory of the component's generations (its row's ``home``).

    keep
        How many generations are left, live and good included.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.prune /var/lib/kubernetes 5
    """
    parent, linked = os.path.join(home, "generations"), set(links(home).values())
    idle = [name for name in os.listdir(parent) if not name.startswith(".") and name not in linked]
    idle.sort(key=lambda name: os.stat(os.path.join(parent, name)).st_ctime, reverse=True)
    stale = idle[max(keep - len(linked), 0) :]
    for name in stale:
        shutil.rmtree(os.path.join(parent, name))
    return stale


def promoted_at(home):
    """
    Return when the link ``live`` below ``home`` was last moved (in seconds of ``time.monotonic``, less than 0 for before
    this boot, never later than now), or None.

    home
        Directory of the component's generations (its row's ``home``).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.promoted_at /var/lib/kubernetes
    """
    try:
        return time.monotonic() - max(0, time.time() - os.lstat(os.path.join(home, "live")).st_mtime)
    except OSError:
        return None


def touch(home):
    """
    Touch the files of all generations, and no content, so that a process that watches them looks at ``live`` anew.

    A watch does not see a link that moves; it does see the files that it was set on. Those are of the generation that
    was live when the process started, however many reloads ago that was.

    home
        Directory of the component's generations (its row's ``home``).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.touch /var/lib/kubernetes
    """
    for directory, _, files in os.walk(os.path.join(home, "generations")):
        for file in files:
            os.utime(os.path.join(directory, file))
    return True


def sha256(home, file, link="live"):
    """
    Return the SHA-256 (hex) of a file of the generation that ``link`` leads to.

    home
        Directory of the component's generations (its row's ``home``).

    file
        Name of the file.

    link
        ``live`` (default) or ``good``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_generation.sha256 /var/lib/kubernetes encryption.yaml
    """
    with salt.utils.files.fopen(os.path.join(home, link, file), "rb") as handle:
        return hashlib.sha256(handle.read()).hexdigest()


# -- building ---------------------------------------------------------------------------------------------------------


def _build(row):
    """Return the declared generation: file name to {text, mode, user, group, secret}."""
    files = {
        "start": _entry(row, __salt__["k8s_config.start_script"](row, _checksum(row)), "0750"),
        "unit": _entry(row, __salt__["k8s_config.unit_text"](row), "0644"),
    }
    for name, file in row["files"].items():
        files.update(_file(row, name, file))
    return files


def _checksum(row):
    try:
        return __salt__["k8s_binary.checksum"](row["binary"])
    except CommandExecutionError as exc:
        if row["binary_managed"] and not os.path.lexists(row["binary"]):
            raise ToCome(str(exc)) from exc
        raise


def _entry(row, text, mode):
    secret = any(mark in text for mark in SECRET_MARKS)
    return {"text": text, "mode": mode, "user": "root", "group": row["group"], "secret": secret}


def _file(row, name, file):
    """Return the entry of one row of files (a kubeconfig that names paths is four)."""
    mode = file.get("mode", "0640")
    if "pki" in file:
        text = "".join(_material(row, reference) for reference in file["pki"])
        if "fits" in file:
            text = __salt__["k8s_certificate.fitting"](text, _material(row, file["fits"]))
        return {name: _entry(row, text, mode)}
    if "kubeconfig" in file:
        return _kubeconfig(row, name, file["kubeconfig"], mode)
    if "encryption" in file:
        text = _yaml(_encryption(row, file["encryption"]))
    elif "yaml" in file:
        text = _yaml(file["yaml"])
    elif "pillar" in file:
        return {name: {**_entry(row, _pillar(file["pillar"]), mode), "secret": True}}
    else:
        text = file["text"]
    return {name: _entry(row, text, mode)}


def _yaml(document):
    """Return a document as YAML, sorted; arguments of states arrive with dictionaries of Salt's own kind."""
    return yaml.safe_dump(json.loads(json.dumps(document)), sort_keys=True)


def _kubeconfig(row, name, asked, mode):
    material = {
        "authority": "".join(_material(row, reference) for reference in asked["authority"]),
        "certificate": _material(row, asked["certificate"]),
        "key": _material(row, asked["key"]),
    }
    beside, embed = {}, asked.get("embed", True)
    if not embed:
        beside = {f"{name}.{part}": _entry(row, text, mode) for part, text in material.items()}
        material = {part: f"{row['home']}/live/{name}.{part}" for part in material}
    text = __salt__["k8s_kubeconfig.render"](
        asked["server"], asked.get("cluster", "kubernetes"), asked["user"], **material, embed=embed
    )
    return {name: _entry(row, text, mode), **beside}


def _encryption(row, resources):
    """Return the EncryptionConfiguration with the names of keys replaced by keys."""
    filled = []
    for entry in resources:
        providers = []
        for provider in entry["providers"]:
            kind, options = next(iter(provider.items()))
            options = dict(options or {})
            if "keys" in options:
                options["keys"] = [{"name": key, "secret": _material(row, key).strip()} for key in options["keys"]]
            providers.append({kind: options})
        filled.append({"resources": entry["resources"], "providers": providers})
    return {"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration", "resources": filled}


def _material(row, reference):
    """Return a piece of certificate material with exactly one line break at its end."""
    name = row["pki"]["files"].get(reference, reference)
    text = _pillar(f"{row['pki']['pillar']}:{name}", missing_ok=True)
    if text is None:
        renamed = f" ({reference} by kubernetes_controller:pki:files)" if name != reference else ""
        raise ToCome(
            f"pillar {row['pki']['pillar']}:{name}{renamed} is missing, {row['name']} needs it. On the master, run "
            "`salt-run state.orchestrate kubernetes_controller.orchestrate.pki`, after putting it into "
            f"{row['pki']['directory']}/brought/ where it is a file of your own (docs/operations.md)."
        )
    return text.strip() + "\n"


def _pillar(reference, missing_ok=False):
    value = __pillar__
    for part in reference.split(":"):
        value = value.get(part) if hasattr(value, "get") else None
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise CommandExecutionError(f"pillar {reference}: its bytes are no UTF-8 text.") from None
    if isinstance(value, str) or (value is None and missing_ok):
        return value
    raise CommandExecutionError(f"pillar {reference}: missing, or not a text.")


# -- on disk ----------------------------------------------------------------------------------------------------------


def _target(home, link):
    try:
        return os.path.basename(os.readlink(os.path.join(home, link)))
    except OSError:
        return None


def _read(directory):
    """Return a generation from disk in the form that ``_build`` returns; {} when there is none."""
    if not os.path.isdir(directory):
        return {}
    files = {}
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        stat, text = os.lstat(path), "(not a file)"
        if os.path.isfile(path) and not os.path.islink(path):
            with salt.utils.files.fopen(path, encoding="utf-8", errors="replace") as handle:
                text = handle.read()
        files[name] = {
            "text": text,
            "mode": f"{stat.st_mode & 0o7777:04o}",
            "user": _name(pwd.getpwuid, stat.st_uid),
            "group": _name(grp.getgrgid, stat.st_gid),
            "secret": any(mark in text for mark in SECRET_MARKS),
        }
    for name in _never_shown(files):
        files[name]["secret"] = True
    return files


def _as_prepared(row, name):
    """
    Return a generation from disk, with the owners and modes that it was prepared with where only those were changed since.

    Its name tells: it is a digest of them, too.
    """
    present = _read(os.path.join(row["home"], "generations", name)) if name else {}
    if not present or _digest(present) == name.partition(".")[0]:
        return present
    groups = {*re.findall(r"^Group=(.*)$", _text(present, "unit"), re.M), row["group"]}
    for group in groups:
        meant = {file: {**entry, "user": "root", "group": group, "mode": _mode(row, file)} for file, entry in present.items()}
        if _digest(meant) == name.partition(".")[0]:
            return meant
    return present


def _mode(row, file):
    """Return the mode of a file of a generation (what lies beside a kubeconfig has the kubeconfig's)."""
    known = {"start": {"mode": "0750"}, "unit": {"mode": "0644"}, **row["files"]}
    return known.get(file, known.get(file.rpartition(".")[0], {})).get("mode", "0640")


def _never_shown(files):
    """Return the names that a generation's ``start`` lists as secret, as far as they are there."""
    found = re.search(r"^# never shown: (.*)$", _text(files, "start"), re.M)
    return [name for name in (found[1].split() if found else []) if name in files]


def _name(look_up, number):
    try:
        return look_up(number)[0]
    except KeyError:
        return str(number)


def _gid(group):
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as exc:
        raise CommandExecutionError(f"group {group} does not exist; apply kubernetes_controller.prepare first.") from exc


# -- comparing --------------------------------------------------------------------------------------------------------


def _digest(files):
    whole = hashlib.sha256()
    for name in sorted(files):
        entry = files[name]
        content = hashlib.sha256(entry["text"].encode()).hexdigest()
        whole.update(f"{name} {entry['user']} {entry['group']} {entry['mode']} {content}\n".encode())
    return whole.hexdigest()[:DIGITS]


def _facts(entry):
    """Return what of a file belongs to the digest."""
    return entry and [entry[key] for key in ("user", "group", "mode", "text")]


def _text(files, name):
    return files[name]["text"] if name in files else ""


def _head(start):
    """Return the lines of a start script that name the release, its checksum and the binary."""
    lines = start.splitlines()
    return [line.removesuffix(" \\") for line in lines if line.startswith("exec ") or " sha256:" in line]


def _release(start):
    found = re.search(r"^# \S+ (\S+) sha256:", start, re.M)
    return found[1] if found else None


def _flags(start):
    found = {}
    for line in start.partition("\nexec ")[2].split(" \\\n")[1:]:
        word = shlex.split(line)[0] if "'" in line else line.strip()  # shlex is slow, and hardly ever needed
        name, _, value = word.removeprefix("--").partition("=")
        found.setdefault(name, []).append(value)
    return {name: values if len(values) > 1 else values[0] for name, values in found.items()}


def _diff(old, new):
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "live", "declared", lineterm="", n=1)
    return "\n".join(lines)


def _file_change(old, new):
    """Describe how one file changes, without secrets: certificates by serial, texts by diff, the rest by word."""
    if old is None or new is None:
        return "added" if old is None else "removed"
    if old["text"] == new["text"]:
        return f"{old['user']}:{old['group']} {old['mode']} to {new['user']}:{new['group']} {new['mode']}"
    if old["secret"] or new["secret"]:
        return "changed (secret, not shown)"
    if __salt__["k8s_certificate.is_file"](new["text"]):
        return {"old": _described(old["text"]), "new": _described(new["text"])}
    return _diff(old["text"], new["text"])


def _described(text):
    """Return a line for each certificate of a text; a text without any is only said to be another."""
    end = "-----END CERTIFICATE-----"
    try:
        parts = [part + end for part in text.split(end) if part.strip()]
        return "; ".join(__salt__["k8s_certificate.describe"](part) for part in parts)
    except CommandExecutionError:
        return "not a certificate"
