"""
Fetch released binaries by checksum, and know later whether they are still what was fetched.

Beside the binaries of a release lies ``.installed.json``: for each file its SHA-256 and the size, time and inode it
had when that was computed. A file whose stat is unchanged is not read again (400 MB of binaries per node). The time of
its last change of status is among them: nobody can set it back, as the time of its content.
"""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tarfile
import tempfile

import requests
import salt.utils.files
from salt.exceptions import CommandExecutionError

FETCH = ".fetch-"
RECORD = ".installed.json"
CHUNK = 1 << 20
MODE = 0o755
LENGTHS = {64: "sha256", 128: "sha512"}


def checksum(path):
    """
    Return the SHA-256 (hex) of the binary at ``path``; the file is read only when its stat changed since.

    Raises CommandExecutionError when it is not there.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_binary.checksum /opt/kubernetes/1.37.2/bin/kube-apiserver
    """
    try:
        stat = _stat(path)
    except FileNotFoundError as exc:
        raise CommandExecutionError(
            f"{path}: {exc.strerror}. Apply kubernetes_controller.binaries first, or put it there where "
            "kubernetes_controller:binaries:names has it not"
        ) from exc
    except OSError as exc:
        raise CommandExecutionError(f"{path}: {exc.strerror}") from exc
    directory, name = os.path.split(path)
    known = _record(directory).get(name, {})
    if known.get("stat") == stat:
        return known["sha256"]
    return _hash(path)["sha256"]


def missing(row):
    """
    Return what has to be done for a row of ``downloads``: a dictionary of file name to reason, {} when all is in place.

    row
        See ``install``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_binary.missing '{"name": "kubectl", "directory": "/opt/kubernetes/1.37.2/bin", ...}'
    """
    reasons, learned, record = {}, {}, _record(row["directory"])
    with _told(row["directory"]):
        for name in row["members"] or [row["name"]]:
            reason, known = _judge(row, os.path.join(row["directory"], name), record.get(name))
            if reason:
                reasons[name] = reason
            if known != record.get(name):
                learned[name] = known
        if learned and not __opts__["test"]:
            _remember(row["directory"], learned)
    return reasons


def unreachable(row):
    """
    Return why nothing of a row's mirror can be fetched (a sentence), or None. Any answer counts, that there is no such file too.

    row
        See ``install``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_binary.unreachable '{"source": "https://dl.k8s.io/v1.37.2/bin/linux/amd64/kubectl", ...}'
    """
    try:
        requests.head(row["source"], timeout=row["timeout_s"])
    except requests.RequestException as exc:
        return _no_fetch(row, row["source"], exc)
    return None


def closed(row):
    """
    Return which directories and files of a row of ``downloads`` not everybody may pass and execute: {path: mode}.

    row
        See ``install``. A release is nobody's secret, and components that are not root start from it.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_binary.closed '{"name": "kubectl", "directory": "/opt/kubernetes/1.37.2/bin", ...}'
    """
    found, places = {}, [row["directory"]]
    while places[0] not in (row["release_dir"], "/"):
        places.insert(0, os.path.dirname(places[0]))
    for path in (*places, *(os.path.join(row["directory"], name) for name in row["members"] or [row["name"]])):
        if os.path.exists(path) and (mode := os.stat(path).st_mode & 0o7777) & MODE != MODE:
            found[path] = f"{mode:04o}"
    return found


def open_up(row):
    """
    Let everybody pass and execute what ``closed`` names. Returns the paths.

    row
        See ``closed``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_binary.open_up '{"name": "kubectl", "directory": "/opt/kubernetes/1.37.2/bin", ...}'
    """
    found = closed(row)
    with _told(row["directory"]):
        for path, mode in found.items():
            os.chmod(path, int(mode, 8) | MODE)
    return sorted(found)


def links(row):
    """
    Return which of the row's ``links`` do not lead where they should: {link: where it leads now, or None}.

    row
        See ``install``; ``links`` (dict of link to target) are for people, nothing that runs goes through them.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_binary.links '{"links": {"/usr/local/bin/kubectl": "/opt/kubernetes/1.37.2/bin/kubectl"}}'
    """
    present = {path: _leads_to(path) for path in row["links"]}
    return {path: found for path, found in present.items() if found != row["links"][path]}


def in_the_way(row):
    """
    Return a sentence for the first of the row's ``links`` in whose place there is a file that is not a link, or None.

    row
        See ``links``; where its ``adopt`` is true, nothing is in the way.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_binary.in_the_way '{"links": {"/usr/local/bin/kubectl": "/opt/…/kubectl"}, "adopt": false}'
    """
    for path, present in links(row).items():
        if present and not os.path.islink(path) and not row["adopt"]:
            return f"{path}: {present}; move it away, or choose another kubernetes_controller:bin_dir."
    return None


def awaited(row):
    """
    Return why the row's ``links`` are not moved yet (a sentence), or None: what they lead to does not run here so far.

    row
        A row of ``downloads``; ``runs`` is the component (``name``, ``home``, ``release``) whose live generation must be of
        that release, or None where none has to.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_binary.awaited '{"runs": {"name": "etcd", "home": "/var/lib/kubernetes-etcd", ...}}'
    """
    runs = row["runs"]
    if not runs or __salt__["k8s_generation.release"](runs["home"]) == runs["release"]:
        return None
    return f"{', '.join(row['links'])}: moved once {runs['name']} of this node is promoted to {runs['release']}."


def link(row):
    """
    Let the row's ``links`` lead to the installed files, each by one rename. Returns the links that were moved.

    A file that is not a link is an error, or where ``adopt`` is true it is kept as ``NAME.before-adoption``.

    row
        See ``links``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_binary.link '{"links": {"/usr/local/bin/kubectl": "/opt/kubernetes/1.37.2/bin/kubectl"}}'
    """
    moved, hindrance = links(row), in_the_way(row)
    if hindrance:
        raise CommandExecutionError(hindrance)
    for path, present in moved.items():
        if present and not os.path.islink(path):
            os.rename(path, f"{path}.before-adoption")
        __salt__["k8s_owners.make"](os.path.dirname(path))
        scratch = f"{path}.new"
        if os.path.lexists(scratch):
            os.unlink(scratch)
        os.symlink(row["links"][path], scratch)
        os.rename(scratch, path)
    return sorted(moved)


def stale(row):
    """
    Return the releases (directories, list) of which so many are kept that these may go, the oldest first, and what fetches
    left that were killed.

    row
        A row of ``releases``: ``directory`` that has one directory for each release, ``declared`` (release), ``homes`` of
        the components' generations, ``keep`` (how many). What is declared or what a generation runs from always stays.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_binary.stale '{"directory": "/opt/kubernetes", "declared": "1.37.2", "homes": [], "keep": 3}'
    """
    try:
        found = [entry for entry in os.scandir(row["directory"]) if os.path.exists(os.path.join(entry.path, "bin", RECORD))]
    except FileNotFoundError:
        return []
    used = {row["declared"]}
    for home in row["homes"]:
        for path in glob.glob(os.path.join(home, "generations", "*")):
            used.add(__salt__["k8s_generation.release"](home, link=f"generations/{os.path.basename(path)}"))
    idle = sorted((entry for entry in found if entry.name not in used), key=lambda entry: entry.stat().st_mtime)
    surplus = len(found) - row["keep"]
    return [entry.path for entry in idle][: max(surplus, 0)] + _left(row["directory"])


def _left(directory):
    """Return the scratch directories of processes that are gone."""
    found = sorted(glob.glob(os.path.join(glob.escape(directory), "*", "bin", f"{FETCH}*")))
    return [path for path in found if not os.path.isdir(f"/proc/{os.path.basename(path).removeprefix(FETCH).split('-')[0]}")]


def remove(row):
    """
    Remove the releases that ``stale`` names. Returns them.

    row
        See ``stale``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_binary.remove '{"directory": "/opt/kubernetes", "declared": "1.37.2", "homes": [], "keep": 3}'
    """
    gone = stale(row)
    for path in gone:
        shutil.rmtree(path)
    return gone


def install(row):
    """
    Fetch what a row of ``downloads`` names, check it, and put it in place by renames.

    row
        ``source`` (URL), ``directory`` (absolute path), ``name``; ``checksum`` (``sha256:HEX``, ``sha512:HEX`` or
        bare hex) or, where that is empty, ``sums``: the URL of the published sum; ``members``: for an archive, file
        name to path inside it; ``timeout_s``; ``checksum_key``, ``mirror_key`` and ``directory_key``: the pillar keys for
        messages; ``release_dir``, in or below which ``directory`` is; ``homes``: of the components' generations, whose
        binaries are not exchanged for others.

    Returns the names installed (list). Raises CommandExecutionError that names the pillar key, or the path that cannot be
    written; nothing that was in place is changed then.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_binary.install '{"name": "kubectl", "directory": "/opt/kubernetes/1.37.2/bin", ...}'
    """
    with _told(row["directory"]):
        __salt__["k8s_owners.make"](row["directory"])
        algorithm, wanted = _parse(row) if row["checksum"] else _published(row)
        with tempfile.TemporaryDirectory(prefix=f"{FETCH}{os.getpid()}-", dir=row["directory"]) as scratch:
            fetched = os.path.join(scratch, os.path.basename(row["source"]))
            _fetch(row, fetched)
            sums = _hash(fetched, algorithm)
            if sums[algorithm] != wanted:
                raise CommandExecutionError(
                    f"{row['source']}: {algorithm} is {sums[algorithm]}, but {_authority(row)} says {wanted}. "
                    "Nothing was installed."
                )
            if not row["members"]:
                return _place(row, {row["name"]: fetched}, sums)
            return _place(row, _extract(row, fetched, scratch), sums)


@contextlib.contextmanager
def _told(directory):
    """Let what the system refuses in ``directory`` be one sentence: path and reason."""
    try:
        yield
    except OSError as exc:
        path = exc.filename2 or exc.filename or directory
        raise CommandExecutionError(f"{path}: {exc.strerror or exc}") from exc


def _judge(row, path, known):
    """Return why a file is to be fetched, or None, and what is known of it now; it is read only for what is not recorded."""
    if not os.path.isfile(path):
        return "missing", known
    if known is None:
        return "not installed by the formula", None
    stat = _stat(path)
    if known["stat"] != stat:
        found = _hash(path)["sha256"]
        if found != known["sha256"]:
            return f"replaced: sha256 {found} instead of {known['sha256']}", known
        known = {**known, "stat": stat}
    if row["checksum"]:
        algorithm, wanted = _parse(row)
        source = known["source"]
        if algorithm not in source and not row["members"]:  # an archive is not kept
            source = {**source, algorithm: _hash(path, algorithm)[algorithm]}
        if source.get(algorithm) != wanted:
            return f"pinned: {algorithm} {wanted} instead of {source.get(algorithm, 'another')}", known
        known = {**known, "source": source}
    return None, known


def _leads_to(path):
    if os.path.islink(path):
        return os.readlink(path)
    return "a file that is not a link" if os.path.lexists(path) else None


def _authority(row):
    return row["checksum_key"] if row["checksum"] else row["sums"]


def _parse(row):
    """Return algorithm and digest of a pinned checksum."""
    text = row["checksum"].strip().lower()
    digest = text.rpartition(":")[2]
    algorithm = text.rpartition(":")[0] or LENGTHS.get(len(digest))
    if LENGTHS.get(len(digest)) != algorithm or not set(digest) <= set("0123456789abcdef"):
        raise CommandExecutionError(
            f"{row['checksum_key']}: {row['checksum']!r} is not a checksum, expected sha256:HEX or sha512:HEX."
        )
    return algorithm, digest


def _published(row):
    """Return algorithm and digest that the mirror publishes for ``row``: a bare digest, or lines ``DIGEST  NAME``."""
    text = _get(row, row["sums"]).text
    wanted = os.path.basename(row["source"])
    for line in text.splitlines():
        digest, _, name = line.strip().partition(" ")
        if LENGTHS.get(len(digest)) and name.strip().lstrip("*") in ("", wanted):
            return LENGTHS[len(digest)], digest.lower()
    raise CommandExecutionError(f"{row['sums']}: has no checksum for {wanted}. Pin one in {row['checksum_key']}.")


def _get(row, url, stream=False):
    try:
        answer = requests.get(url, stream=stream, timeout=row["timeout_s"])
        answer.raise_for_status()
    except requests.RequestException as exc:
        raise CommandExecutionError(_no_fetch(row, url, exc)) from exc
    return answer


def _no_fetch(row, url, exc):
    return f"{row['mirror_key']}: cannot fetch {url}: {_short(str(exc.args[0]) if exc.args else type(exc).__name__)}"


def _short(reason):
    """Return the telling end of an exception text of requests, which nests them."""
    return reason.rsplit(": ", 1)[-1].strip("'\")>") if "Max retries" in reason else reason


def _fetch(row, path):
    answer = _get(row, row["source"], stream=True)
    try:
        with salt.utils.files.fopen(path, "wb") as handle:
            for chunk in answer.iter_content(CHUNK):
                handle.write(chunk)
    except requests.RequestException as exc:
        raise CommandExecutionError(f"{row['mirror_key']}: {row['source']} broke off: {exc}") from exc


def _extract(row, archive, scratch):
    paths, wanted = {}, {member: name for name, member in row["members"].items()}
    try:
        with tarfile.open(archive, "r|*") as tar:  # one pass: looking members up would inflate it twice
            for entry in tar:
                name = wanted.get(entry.name)
                if name is None or not entry.isfile():
                    continue
                paths[name] = os.path.join(scratch, name)
                with salt.utils.files.fopen(paths[name], "wb") as handle:
                    shutil.copyfileobj(tar.extractfile(entry), handle, CHUNK)
    except (tarfile.TarError, OSError, EOFError) as exc:
        if getattr(exc, "errno", None):  # the disk's fault, not the archive's
            raise
        raise CommandExecutionError(f"{row['source']}: not the archive expected: {exc}") from exc
    missing_members = sorted(set(row["members"]) - set(paths))
    if missing_members:
        raise CommandExecutionError(f"{row['source']}: not the archive expected: it has no {', '.join(missing_members)}")
    return paths


def _place(row, paths, source):
    entries, found = {}, {name: source if not row["members"] else _hash(path) for name, path in paths.items()}
    _refuse_to_exchange(row, {os.path.join(row["directory"], name): sums["sha256"] for name, sums in found.items()})
    for name, path in paths.items():
        sums = found[name]
        os.chmod(path, MODE)
        target = os.path.join(row["directory"], name)
        __salt__["k8s_durable.move"](path, target)
        entries[name] = {"sha256": sums["sha256"], "source": source, "stat": _stat(target)}
    _remember(row["directory"], entries)
    return sorted(entries)


def _refuse_to_exchange(row, fetched):
    """What a generation runs from, or would be gone back to, is not exchanged for another file of the same name."""
    for home in row["homes"]:
        for link in ("live", "good"):
            used = __salt__["k8s_generation.binary"](home, link)
            if used and fetched.get(used["path"], used["sha256"]) != used["sha256"]:
                raise CommandExecutionError(
                    f"{used['path']}: {home}/{link} runs from it with sha256 {used['sha256']}, and {_authority(row)} has "
                    f"{fetched[used['path']]} for the same release. Nothing was installed. To have both side by side, give "
                    f"another release, or another {row['directory_key']}."
                )


def _hash(path, algorithm="sha256"):
    """Return the SHA-256 of a file, and the digest of ``algorithm``, as {name: hex}."""
    digests = {name: hashlib.new(name) for name in {"sha256", algorithm}}
    with salt.utils.files.fopen(path, "rb") as handle:
        while chunk := handle.read(CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _stat(path):
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns]


def _record(directory):
    try:
        with salt.utils.files.fopen(os.path.join(directory, RECORD), encoding="utf-8") as handle:
            return json.load(handle)
    except (OSError, ValueError):
        return {}


def _remember(directory, entries):
    text = json.dumps({**_record(directory), **entries}, indent=1, sort_keys=True)
    __salt__["k8s_durable.write"](os.path.join(directory, RECORD), text, mode="0644")
