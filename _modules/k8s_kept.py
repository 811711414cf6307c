"""
Files of the master that nothing can replace: written safely, kept before they are replaced, and put back when lost.

What a file was before is kept below ``kept/STAMP/`` of the directory of certificates, under the path that it had there
(STAMP is the moment, UTC). Nothing removes that but the operator; of the operator's kubeconfig the latest stay. What is
declared no more is below ``kept/withdrawn/`` (``-2`` and so on, if there is some already), and comes back from there when it is
declared again and still fits.
"""

import base64
import contextlib
import datetime
import fcntl
import glob
import os
import re

import salt.utils.files
from salt.exceptions import CommandExecutionError, SaltInvocationError

KEPT = "kept"
WITHDRAWN = ("withdrawn", "withdrawn-2", "withdrawn-3", "withdrawn-4")  # in the place of a moment: what is declared no more
SCRATCH = ".new-"
EXACTLY = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # what is no text, too, is kept byte by byte
RESTORABLE = re.compile(r"(authorities|shared)/[A-Za-z0-9][\w.-]*")


def write(path, text):
    """
    Write a file in one rename, readable by its owner alone from its first byte on.

    path, text
        Absolute path and content. Its directory must exist.

    This function is for other modules.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_kept.write /srv/kubernetes_controller/pki/brought/NAME "$(cat certificate)"
    """
    return __salt__["k8s_durable.write"](path, text)


def move(source, target):
    """
    Rename a file, and have the rename on disk before anything else happens.

    source, target
        Absolute paths in one file system.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_kept.move /srv/kubernetes_controller/pki/brought/a.crt /srv/kubernetes_controller/pki/brought/b.crt
    """
    return __salt__["k8s_durable.move"](source, target)


def keep(directory, path, name=None, stamp=None, most=None):
    """
    Keep what ``path`` is at this moment, dated, before it is replaced or removed. Returns where it is kept.

    directory
        The directory of certificates.
    path
        The file, below ``directory``.
    name
        The path below ``directory`` under which it is kept (default: its own).
    stamp
        The moment (default now), so that what one run replaces is in one place.
    most
        How many files are kept under that name; the oldest go (default: all stay).

    What is kept under that name with the same content already is not kept twice.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_kept.keep /srv/kubernetes_controller/pki /srv/kubernetes_controller/pki/shared/service-account.key
    """
    name, text = name or os.path.relpath(path, directory), _read(path)
    for known in listed(directory, name):
        if known != path and _read(known) == text:
            return known
    stamp = stamp or now()
    for number in range(1, 1000):
        target = os.path.join(directory, KEPT, stamp if number == 1 else f"{stamp}-{number}", name)
        if not os.path.exists(target):
            break
    _make_directories(directory, os.path.dirname(target))
    write(target, text)
    for old in listed(directory, name)[most:] if most else ():
        os.unlink(old)
    return target


def withdraw(directory, path, stamp=None, spared=None):
    """
    Move a file that is declared no more to where it comes back from when it is declared again. Returns that path.

    directory
        The directory of certificates.
    path
        The file, below ``directory``.
    stamp
        See ``keep``: of more than four that were withdrawn the first is kept under it.
    spared
        What was withdrawn there and is about to be taken back (a path, default none): it stays.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_kept.withdraw /srv/kubernetes_controller/pki /srv/kubernetes_controller/pki/hosts/a/b/scheduler.crt
    """
    places = [_withdrawn_to(directory, path, place) for place in WITHDRAWN]
    target = next((place for place in places if not os.path.exists(place)), None)
    if target is None:
        target = min((place for place in places if place != spared), key=os.path.getmtime)
        _forgo(directory, path, target, stamp)
    _make_directories(directory, os.path.dirname(target))
    move(path, target)
    os.utime(target)
    return target


def forgo(directory, path, stamp=None):
    """
    Keep what was withdrawn of a file like all else that was replaced: it comes back no more. Returns whether there was any.

    directory, path, stamp
        See ``withdraw``.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_kept.forgo /srv/kubernetes_controller/pki /srv/kubernetes_controller/pki/hosts/a/b/scheduler.crt
    """
    found = withdrawn(directory, path)
    for former in found:
        _forgo(directory, path, former, stamp)
    return bool(found)


def withdrawn(directory, path):
    """
    Return where a file is that was declared no more (list of paths, the latest first).

    directory, path
        See ``withdraw``.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_kept.withdrawn /srv/kubernetes_controller/pki /srv/kubernetes_controller/pki/hosts/a/b/scheduler.crt
    """
    places = [_withdrawn_to(directory, path, place) for place in WITHDRAWN]
    return sorted(filter(os.path.exists, places), key=os.path.getmtime, reverse=True)


def _withdrawn_to(directory, path, place):
    return os.path.join(directory, KEPT, place, os.path.relpath(path, directory))


def _forgo(directory, path, former, stamp):
    keep(directory, former, name=os.path.relpath(path, directory), stamp=stamp)
    os.unlink(former)


def now():
    """
    Return this moment in the form that the names below ``kept/`` have.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_kept.now
    """
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")


def listed(directory, name="**"):
    """
    Return the paths of what is kept, the latest first.

    directory
        The directory of certificates.
    name
        Path below it of the file that was replaced (default: all).

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_kept.listed /srv/kubernetes_controller/pki authorities/kubernetes-ca.key
    """
    pattern = os.path.join(glob.escape(os.path.join(directory, KEPT)), "*", name if name == "**" else glob.escape(name))
    return sorted((path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)), reverse=True)


def candidates(directory, name):
    """
    Return the files of this master from which a lost one can be restored: they fit what is left of it.

    directory
        The directory of certificates.
    name
        Path below it, such as ``authorities/kubernetes-ca.key``.

    What is kept counts, and what minions have a share of. Of a key whose other half is lost, too, none can be known to fit.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_kept.candidates /srv/kubernetes_controller/pki authorities/kubernetes-ca.key
    """
    found = listed(directory, name)
    found += sorted(glob.glob(os.path.join(glob.escape(directory), "hosts/*/*", glob.escape(os.path.basename(name)))))
    return [path for path in found if _witness(directory, name) and not _misfit(directory, name, _read(path))]


def restore(directory, name, source=None):
    """
    Put a lost CA, key or certificate of the master back. Returns a sentence that says from where.

    directory
        The directory of certificates.
    name
        Path below it: ``authorities/…`` or ``shared/…``.
    source
        Absolute path of the file in a backup (default: what ``candidates`` finds first).

    Raises CommandExecutionError when the source does not fit what is left (the key of a certificate, the certificate of a
    key). A file that is there and another is kept first.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_kept.restore /srv/kubernetes_controller/pki authorities/kubernetes-ca.key
        salt-run salt.cmd k8s_kept.restore /srv/kubernetes_controller/pki authorities/kubernetes-ca.key /backup/kubernetes-ca.key
    """
    if not RESTORABLE.fullmatch(name):
        raise SaltInvocationError(f"{name}: expected authorities/NAME or shared/NAME, a path below {directory}.")
    path = os.path.join(directory, name)
    source = source or next(iter(candidates(directory, name)), None)
    if not source:
        raise CommandExecutionError(
            f"{path}: nothing on this master is known to fit it (neither in {directory}/{KEPT} nor a minion's share). "
            "Give the path of the file in your backup."
        )
    text = _read(source)
    misfit = _misfit(directory, name, text)
    if misfit:
        raise CommandExecutionError(f"{source}: {misfit}. {path} is as it was.")
    if not os.path.isdir(directory):
        raise CommandExecutionError(f"{directory}: there is no such directory. Mount it, or restore all of it from the backup.")
    try:
        with locked(directory):
            if os.path.exists(path):
                if _read(path) == text:
                    return f"{path} is what {source} is; nothing was done."
                keep(directory, path)
            _make_directories(directory, os.path.dirname(path))
            write(path, text)
    except OSError as exc:
        raise CommandExecutionError(f"{exc.filename or path}: {exc.strerror}. {path} was not restored.") from exc
    return f"{path} was restored from {source}."


def sweep(directory):
    """
    Remove what a write that was cut off has left. Returns how many files.

    directory
        The directory of certificates. No other run may be writing there (``locked``).

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_kept.sweep /srv/kubernetes_controller/pki
    """
    found = glob.glob(os.path.join(glob.escape(directory), "**", f"{SCRATCH}*"), recursive=True)
    for path in found:
        os.unlink(path)
    return len(found)


@contextlib.contextmanager
def locked(directory):
    """
    A context in which no other run changes the files of the directory of certificates.

    directory
        The directory; where it does not exist yet nothing is locked.

    This function is for other modules.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_kept.locked /srv/kubernetes_controller/pki
    """
    if not os.path.isdir(directory):
        yield
        return
    handle = os.open(os.path.join(directory, ".lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _make_directories(directory, path):
    missing = []
    while path != directory and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for one in reversed(missing):
        os.mkdir(one, 0o700)


def _read(path):
    try:
        with salt.utils.files.fopen(path, **EXACTLY) as handle:
            return handle.read()
    except OSError as exc:
        raise CommandExecutionError(f"{path}: {exc.strerror}") from exc


def _witness(directory, name):
    """Return what shows which file the lost one was: its other half, or a minion's share of it; None when nothing does."""
    base, kind = os.path.splitext(os.path.join(directory, name))
    if kind not in (".key", ".crt", ".pub"):
        shares = glob.glob(os.path.join(glob.escape(directory), "hosts/*/*", glob.escape(os.path.basename(name))))
        return next(iter(sorted(shares)), None)
    halves = (f"{base}.key",) if kind != ".key" else (f"{base}.crt", f"{base}.pub")
    return next((half for half in halves if os.path.exists(half)), None)


def _misfit(directory, name, text):
    """Return why ``text`` cannot be the file ``name``, or None. The text itself is never in the answer."""
    witness = _witness(directory, name)
    if not name.endswith((".key", ".crt", ".pub")):
        try:
            if not base64.b64decode(text.strip(), validate=True):
                raise ValueError
        except ValueError:
            return "not an encryption key (base64)"
        return f"another key than {witness}" if witness and _read(witness).strip() != text.strip() else None
    if name.endswith(".key") and (problem := __salt__["k8s_certificate.key_problem"](text)):
        return problem
    found = __salt__["k8s_certificate.public_keys"](text)
    if len(found) != 1:
        return f"expected one key or certificate, found {len(found)}"
    if witness and found != __salt__["k8s_certificate.public_keys"](_read(witness))[:1]:
        return f"it does not belong to {witness}"
    return None
