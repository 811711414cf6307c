"""
Files that are whole and on disk, or as they were: after a crash of the writer, and after a loss of power.

One way to write each that something else relies on: owner and mode set before the first byte, written beside its place,
synced, renamed, and the rename synced.
"""

import contextlib
import grp
import os
import pwd
import re
import tempfile

SCRATCH = ".new-"
OF_PROCESS = re.compile(re.escape(SCRATCH) + r"(\d+)-")
EXACTLY = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # what is no text, too, is kept byte by byte


def write(path, text, mode="0600", user=None, group=None):
    """
    Write a file in one rename, and have it on disk before anything else happens.

    path, text
        Absolute path and content. Its directory must exist.
    mode
        Octal string (default "0600"). The file has it from its first byte on.
    user, group
        Names of owner and group (default: those of the file that is there, else of whoever writes it). The file has them, too.

    What another writer left there that was killed is removed. Raises OSError, and the file is as it was then; LookupError when
    there is no such user or group.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_durable.write /root/note 'some text'
    """
    directory, owner = os.path.dirname(path), _owner(path, user, group)
    sweep(directory)
    handle, scratch = tempfile.mkstemp(prefix=f"{SCRATCH}{os.getpid()}-", dir=directory)
    try:
        with os.fdopen(handle, "w", **EXACTLY) as file:
            os.fchown(handle, *owner)
            os.fchmod(handle, int(mode, 8))
            file.write(text)
        move(scratch, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
        raise
    return True


def move(source, target):
    """
    Rename a file within its directory: its content is on disk before, and the rename before anything else happens.

    source, target
        Absolute paths in one file system.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_durable.move /root/note /root/other
    """
    sync(source)
    os.replace(source, target)
    for directory in dict.fromkeys(map(os.path.dirname, (target, source))):
        sync(directory)
    return True


def sync(path):
    """
    Have a file, or the names in a directory, on disk before anything else happens.

    path
        Absolute path.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_durable.sync /root
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return True


def sweep(directory):
    """
    Remove what writers left in a directory that were killed. Returns the paths.

    directory
        Absolute path; one that is not there is as good as an empty one.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_durable.sweep /etc/systemd/system
    """
    found = []
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        writer = OF_PROCESS.match(name)
        if writer and not os.path.exists(f"/proc/{writer[1]}"):
            found.append(os.path.join(directory, name))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(found[-1])
    return found


def _owner(path, user, group):
    """Return the numbers of owner and group that a file is to have; -1 for those of whoever writes it."""
    try:
        there = os.stat(path)
        known = there.st_uid, there.st_gid
    except FileNotFoundError:
        known = -1, -1
    return pwd.getpwnam(user).pw_uid if user else known[0], grp.getgrnam(group).gr_gid if group else known[1]
