"""
The data of members of etcd that lie on this node: whose they are, and those that this formula did not make.
"""

import glob
import os
import re

import salt.utils.files

WAL = ("member", "wal")
RECORD_BYTES = 8  # a length stands before each record of a write-ahead log
LENGTH_MASK = (1 << 56) - 1  # the highest byte counts the padding
METADATA = 1  # the kind of record that says which member of which cluster wrote the log
FLAG = re.compile(r"--?data-dir[= ]\s*[\"']?([^\s\"'$\\]+)")
VARIABLE = re.compile(r"(?:^|[\s\"'=])ETCD_DATA_DIR=[\"']?([^\s\"']+)", re.MULTILINE)
FILE = re.compile(r"(?:--?config-file[= ]\s*|ETCD_CONFIG_FILE=)[\"']?([^\s\"'$\\]+)")
KEY = re.compile(r"^data-dir:\s*[\"']?([^\s\"'#]+)", re.MULTILINE)
COMMENT = re.compile(r"^\s*[#;].*$", re.MULTILINE)
VARIABLES = re.compile(r"^EnvironmentFile=-?(\S+)", re.MULTILINE)


def unclaimed(row):
    """
    Return why this node founds no cluster, and starts no member (a sentence), or None: data of a member lie here that this
    formula did not make.

    row
        etcd's row of the configuration's ``components``.

    Where a generation of etcd is live here, or the cluster is known to exist, other things are asked.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcd_data.unclaimed "$ROW"
    """
    if __salt__["k8s_generation.links"](row["home"])["live"] or __salt__["k8s_cluster.mark"](row).get("state") == "founded":
        return None
    there, (place, runs) = __salt__["k8s_etcd_members.has_data"](row), _foreign(row)
    found = {"foreign": place, "runs": runs, "there": there, "beside": [] if there else beside(row)}
    return __salt__["k8s_membership.unclaimed"](row["settings"].get("data-dir", ""), found, row["adopt"])


def other_place(row, pid, unit=""):
    """
    Return the data directory of an etcd that this formula did not start (str), where it is not the declared one; else None.

    row
        etcd's row of the configuration's ``components``.
    pid
        Its process; 0 for none.
    unit
        Path of its unit file; "" for none.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcd_data.other_place "$ROW" 4711
    """
    found, declared = _place(pid, unit), row["settings"].get("data-dir", "")
    return found if found and os.path.realpath(found) != os.path.realpath(declared) else None


def beside(row):
    """
    Return the directories (list) with the data of a member that are below the declared data directory, or beside it, and
    that etcd would not start with.

    row
        etcd's row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcd_data.beside "$ROW"
    """
    declared = row["settings"].get("data-dir", "")
    own, parent = os.path.realpath(declared), os.path.dirname(os.path.realpath(declared))
    found = [directory for directory, _, files in os.walk(own) if any(name.endswith(".wal") for name in files)]
    for above in ("", "*", "*/*"):  # what was moved away as docs/operations.md says is none of these
        found += glob.glob(os.path.join(glob.escape(parent), above, *WAL))
    found = [directory for directory in found if _has_log(directory)]
    return sorted({directory.removesuffix("/wal").removesuffix("/member") for directory in found})


def member(row):
    """
    Return the id (str, hex) of the member whose data the declared directory has, as its write-ahead log says it; None if
    that is not known.

    row
        etcd's row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcd_data.member "$ROW"
    """
    directory = __salt__["k8s_etcd_members.wal_directory"](row["settings"])
    logs = sorted(glob.glob(os.path.join(glob.escape(directory), "*.wal")))
    try:
        with salt.utils.files.fopen(logs[-1], "rb") as handle:
            head = handle.read(4096)  # a checksum and the metadata begin each file
        found = _metadata(head)
    except (OSError, IndexError, ValueError):
        return None
    return format(found, "x") if found else None


# -- an etcd that somebody else started -------------------------------------------------------------------------------


def _foreign(row):
    """Return the other data directory of an etcd in this one's place, if it has data, and whether that etcd runs now."""
    unit = __salt__["k8s_component.process"](row["name"])
    holder = __salt__["k8s_component.listener"](row["port"], row["address"]) or {"pid": 0}
    pid = unit["pid"] or holder["pid"]
    place = other_place(row, pid, unit["unit"])
    inside = f"/proc/{pid}/root{place}" if pid else ""  # of a container
    for directory in (place, inside) if place else ():
        if directory and (_has_log(os.path.join(directory, *WAL)) or os.path.exists(os.path.join(directory, "member/snap/db"))):
            return place, bool(pid)
    return None, False


def _place(pid, unit):
    """Return the data directory (str) that a process of etcd has, or that a unit would give it; None if it is not known."""
    if pid:
        words = " ".join(_text(f"/proc/{pid}/cmdline").split("\0"))
        text = f"{words}\n" + "\n".join(_text(f"/proc/{pid}/environ").split("\0"))
    else:
        text = "\n".join(map(_text, [unit, *sorted(glob.glob(f"{unit}.d/*.conf"))])) if unit else ""
        text = COMMENT.sub("", "\n".join([text, *map(_text, VARIABLES.findall(COMMENT.sub("", text)))]))
    found = FLAG.search(text) or VARIABLE.search(text)
    if not found and (file := FILE.search(text)):
        found = KEY.search(_text(file[1]))
    if not found or not pid:
        return found[1] if found and found[1].startswith("/") else None
    try:
        return os.path.normpath(os.path.join(os.readlink(f"/proc/{pid}/cwd"), found[1]))
    except OSError:
        return None


def _has_log(directory):
    return bool(glob.glob(os.path.join(glob.escape(directory), "*.wal")))


# -- a write-ahead log ------------------------------------------------------------------------------------------------


def _metadata(head):
    """
    Return the member's id (int) from the begin of a write-ahead log, or None.

    https://github.com/etcd-io/etcd, server/storage/wal: records are protocol buffers, and so is the metadata in one.
    """
    at = 0
    while at + RECORD_BYTES <= len(head):
        length = int.from_bytes(head[at : at + RECORD_BYTES], "little")
        size = length & LENGTH_MASK
        padding = (length >> 56) & 7 if length >> 63 else 0
        at += RECORD_BYTES
        record = _fields(head[at : at + size])
        if not size or at + size > len(head):
            return None
        if record.get(1) == METADATA:
            return _fields(record.get(3, b"")).get(1)
        at += size + padding
    return None


def _fields(message):
    """Return {number: value} of a protocol buffer's numbers (int) and texts (bytes)."""
    found, at = {}, 0
    while at < len(message):
        key, at = _number(message, at)
        value, at = _number(message, at)
        if key & 7 == 2:
            value, at = message[at : at + value], at + value
        elif key & 7:
            raise ValueError("not a record of a write-ahead log")
        found[key >> 3] = value
    return found


def _number(message, at):
    value, shift = 0, 0
    while True:
        if at >= len(message):
            raise ValueError("not a record of a write-ahead log")
        value |= (message[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not message[at - 1] & 0x80:
            return value, at


def _text(path):
    try:
        with salt.utils.files.fopen(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return ""
