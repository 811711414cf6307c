"""
Owners and modes: what is live belongs to the account that runs it.

Generations are root's, and their own mode and group say who reads them. The directories above them are passable for all, so
generations of several accounts lie side by side, and no promotion, way back or kill locks one of them out. What a component
writes (``directories`` of its row) belongs to the account in the ``unit`` of the generation that is live: it goes over with
the promotion, and back with the way back.
"""

import contextlib
import functools
import grp
import itertools
import os
import pwd
import re
import stat as modes

import salt.utils.files
from salt.exceptions import CommandExecutionError

PASSABLE = 0o711
PARENT = 0o755
ROOT = {"user": "root", "group": "root"}
MOST = 1000  # entries below a directory that a run without changes looks at; etcd and an audit log have some twenty
SHOWN = 20
# Directories of the system, which no component has for itself.
SHARED = re.compile(
    r"/(bin|boot|dev|etc|home|lib|lib64|media|mnt|opt|proc|root|run|sbin|srv|sys|tmp|usr|var)?"
    r"|/usr/local|/var/(cache|lib|log|spool|tmp)"
)


def account(home):
    """
    Return the account of the live generation as its ``unit`` has it: ``user`` and ``group`` (None: the user's); {} without one.

    home
        Directory of the component's generations (its row's ``home``).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_owners.account /var/lib/kubernetes
    """
    try:
        with salt.utils.files.fopen(f"{home}/live/unit", encoding="utf-8") as handle:
            unit = handle.read()
    except (OSError, ValueError):
        return {}
    found = {key: re.findall(rf"^{key}=(.*)$", unit, re.M) for key in ("User", "Group")}
    return {"user": (found["User"] or ["root"])[-1].strip(), "group": (found["Group"] or [""])[-1].strip() or None}


def crossed(components, places):
    """
    Return a sentence for each directory of a component in which, or above which, there is what is not its own.

    components
        Rows of the configuration's ``components`` (dict).
    places
        Paths (list) that are no component's, such as that of the releases.

    All that lies in such a directory goes over to the component's account, so this is no place for anything else.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_owners.crossed "$COMPONENTS" '["/opt/kubernetes"]'
    """
    faults, homes = [], [row["home"] for row in components.values()]
    inner = [f"{home}/{name}" for home in homes for name in ("generations", "live", "good")]
    for row in components.values():
        others = [
            path
            for other in components.values()
            if (other["user"], other["group"]) != (row["user"], row["group"])
            for path in other["directories"]
        ]
        for directory in row["directories"]:
            taken = [path for path in (*homes, *places, *others) if _holds(directory, path)]
            taken += [path for path in (*inner, *others) if _holds(path, directory)]
            if SHARED.fullmatch(directory) or taken:
                said = f"{taken[0]} has another owner" if taken else "it belongs to the whole system"
                faults.append(
                    f"kubernetes_controller:{row['key']}:directories:{directory}: {said}, and {row['name']} gets all that lies "
                    "in its directories. Give it one of its own."
                )
    return faults


def make(path, mode="0755"):
    """
    Make a directory that is missing, and its missing parents with mode 0755, whatever the umask is; each is on disk before
    anything is put there. Returns what was made.

    path
        Absolute path.
    mode
        Its mode (octal, in quotes). A directory that is there stays as it is.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_owners.make /opt/kubernetes/1.37.2/bin
    """
    missing, at = [], path
    while not os.path.isdir(at):
        missing.insert(0, at)
        at = os.path.dirname(at)
    for directory in missing:
        os.mkdir(directory)
        os.chmod(directory, int(mode, 8) if directory == path else PARENT)
        __salt__["k8s_durable.sync"](os.path.dirname(directory))
    return missing


def provide(row):
    """
    Make the directories of a component that are missing, for the account that is live, or else declared. Returns them.

    row
        A row of the configuration's ``components``. Its directories that are there stay as they are, whoever's.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_owners.provide "$ROW"
    """
    made = []
    for directory in (row["home"], f"{row['home']}/generations"):
        made += make(directory, f"{PASSABLE:04o}")
    for directory, mode in row["directories"].items():
        if not os.path.isdir(directory):
            user, group = _ids(_account(row))
            made += make(directory, "0700")
            os.chown(directory, user, group)
            os.chmod(directory, int(mode, 8))
    return made


def restore(row, name):
    """
    Give a generation and its files the owner and mode that they were prepared with, where their content is. Returns paths.

    row
        A row of the configuration's ``components``.
    name
        Name of a generation below its home.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_owners.restore "$ROW" 3f9c0d1e2b3a4c5d
    """
    mended = []
    for path, _, _, mend in _generation(row, name):
        mend()
        mended.append(path)
    return mended


def wrong(row):
    """
    Return what of a component's live generation has another owner or mode than it has to: {path: {"old": …, "new": …}}.

    These are its home, the generation and its files (where their content is as prepared), the directories that it writes to,
    and what is in them. Nothing is read but the generation, and no more than the first thousand entries are looked at.

    row
        A row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_owners.wrong "$ROW"
    """
    if not _knowable(row):
        return {}
    found = {path: {"old": old, "new": new} for path, old, new, _ in itertools.islice(_astray(row, MOST), MOST)}
    if len(found) > SHOWN:
        rest = len(found) - SHOWN
        found = {**dict(itertools.islice(found.items(), SHOWN)), "more": rest}
    return found


def belong(row):
    """
    Give what ``wrong`` names, however much it is, the owner and mode that it has to have. Returns the paths.

    row
        A row of the configuration's ``components``.

    All that can be mended is, before CommandExecutionError says what cannot.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_owners.belong "$ROW"
    """
    mended, faults = [], []
    for path, old, new, mend in _astray(row):
        try:
            mend()
            mended.append(path)
        except OSError as exc:
            if isinstance(exc, FileNotFoundError) and old:  # a component's own file that is gone meanwhile
                continue
            faults.append(f"{path}: {exc.strerror}; it is {old or 'missing'}, and has to be {new}")
        except CommandExecutionError as exc:
            faults.append(str(exc))
    if faults:
        raise CommandExecutionError(faults[0] + (f" (and {len(faults) - 1} more like it)" if faults[1:] else ""))
    return mended


# -- what is astray ---------------------------------------------------------------------------------------------------


def _knowable(row):
    """Tell whether there is a live generation whose account is there, or is declared and so about to be."""
    if not __salt__["k8s_generation.links"](row["home"])["live"]:
        return False
    user = _account(row)["user"]
    return user in (row["unit"]["Service"].get("User"), row["user"]) or _id(pwd.getpwnam, user) is not None


def _astray(row, most=None):
    """Yield path, what it is, what it has to be, and the function that mends it."""
    home, owner = row["home"], _account(row)
    live = __salt__["k8s_generation.links"](home)["live"]
    if not live:
        return
    yield from _generation(row, live)
    opened = list(_judge(home, ROOT, PASSABLE))
    if opened:
        yield from _beside(home, row["directories"])
    yield from opened
    yield from _judge(f"{home}/generations", ROOT, PASSABLE)
    needed = _named_by_flags(home)
    for directory, mode in row["directories"].items():
        yield from _judge(directory, owner, int(mode, 8))
        yield from _below(directory, owner, needed, most)


def _generation(row, name):
    """Yield the directory and the files of a generation that have not the owner and mode that they were prepared with."""
    directory = f"{row['home']}/generations/{name}"
    for file, entry in __salt__["k8s_generation.prepared_as"](row, name).items():
        path, owner, mode = f"{directory}/{file}" if file else directory, entry, int(entry["mode"], 8)
        there = os.lstat(path)
        if (there.st_uid, there.st_gid) != _known_ids(owner) or modes.S_IMODE(there.st_mode) != mode:
            yield path, _told(there), _meant(owner, mode), functools.partial(_set, path, owner, mode, os.O_NOFOLLOW)


def _beside(home, directories):
    """Yield what else lies in a home that is about to be passable for all, and is not closed to others by itself."""
    for entry in sorted(os.scandir(home), key=lambda entry: entry.name):
        if entry.is_symlink() or entry.name == "generations" or any(_holds(entry.path, path) for path in directories):
            continue
        there = entry.stat(follow_symlinks=False)
        mode = modes.S_IMODE(there.st_mode)
        if mode & 0o007:
            closed = mode & ~0o007
            told = _told(there)
            yield entry.path, told, f"{told.partition(' ')[0]} {closed:04o}", functools.partial(os.chmod, entry.path, closed)


def _judge(path, owner, mode):
    """Yield a directory that has not exactly the owner and mode that it has to have; a link of root's to it is followed."""
    new = _meant(owner, mode)
    if not os.path.isdir(path):
        yield path, None, new, functools.partial(_found, path, owner, mode)
        return
    there = os.stat(path)
    if _is_laid(path):
        yield path, "a link that is not root's", new, functools.partial(_refuse, path)
    elif (there.st_uid, there.st_gid) != _known_ids(owner) or modes.S_IMODE(there.st_mode) != mode:
        yield path, _told(there), new, functools.partial(_set, path, owner, mode)


def _named_by_flags(home):
    """Return the paths (list) that flags of the live generation name, such as an audit log and the data of etcd."""
    values = __salt__["k8s_generation.flags"](home).values()
    return [path for value in values for path in (value if isinstance(value, list) else [value]) if str(path).startswith("/")]


def _below(directory, owner, needed, most):
    """
    Yield what lies in a component's directory and is not its own to read and write.

    Left are links; a file that has a second name, as that may lie anywhere and be anybody's; and what root put there, except
    where a flag names it or what it lies in (``needed``): a log that root compressed is none of the component's business.
    """
    wanted, seen = _known_ids(owner), 0
    if _is_laid(directory) or not os.path.isdir(directory):
        return
    for top, directories, files, handle in os.fwalk(os.path.realpath(directory)):
        with contextlib.suppress(ValueError):
            directories.remove("lost+found")
        for name in sorted([*directories, *files]):
            seen += 1
            if most and seen > most:
                return
            try:
                there = os.stat(name, dir_fd=handle, follow_symlinks=False)
            except FileNotFoundError:  # it is in use, and things come and go
                continue
            mode, least = modes.S_IMODE(there.st_mode), 0o700 if modes.S_ISDIR(there.st_mode) else 0o600
            if not modes.S_ISDIR(there.st_mode) and not (modes.S_ISREG(there.st_mode) and there.st_nlink == 1):
                continue
            if there.st_uid == 0 != wanted[0] and not any(_holds(path, os.path.join(top, name)) for path in needed):
                continue
            if (there.st_uid, there.st_gid) != wanted or mode & least != least:
                mend = functools.partial(_set, name, owner, mode | least, os.O_NOFOLLOW, within=handle)
                yield os.path.join(top, name), _told(there), _meant(owner, mode | least), mend


def _holds(path, other):
    """Tell whether ``other`` is ``path`` or lies below it."""
    return other == path or other.startswith(f"{path}/")


def _is_laid(path):
    """Tell whether this is a link that root did not lay: a component may have, to anywhere."""
    return os.path.islink(path) and os.lstat(path).st_uid != 0


# -- accounts ---------------------------------------------------------------------------------------------------------


def _account(row):
    """Return user and group (names) of the live generation, or where there is none of the declared one."""
    service = row["unit"]["Service"]
    found = account(row["home"]) or {"user": service.get("User") or "root", "group": service.get("Group")}
    return {"user": found["user"], "group": found["group"] or row["group"]}


def _id(look_up, name):
    try:
        return look_up(name)[2]
    except KeyError:
        return int(name) if name.isdecimal() else None


def _known_ids(owner):
    """Return user id and group id of an account; None for what does not exist (yet)."""
    return _id(pwd.getpwnam, owner["user"]), _id(grp.getgrnam, owner["group"])


def _ids(owner):
    """Return user id and group id of an account that has to exist."""
    found = _known_ids(owner)
    for kind, number in zip(("user", "group"), found, strict=True):
        if number is None:
            raise CommandExecutionError(f"{kind} {owner[kind]} does not exist; apply kubernetes_controller.prepare first.")
    return found


def _told(there):
    names = [_name(pwd.getpwuid, there.st_uid), _name(grp.getgrgid, there.st_gid)]
    return f"{':'.join(names)} {modes.S_IMODE(there.st_mode):04o}"


def _meant(owner, mode):
    return f"{owner['user']}:{owner['group']} {mode:04o}"


def _name(look_up, number):
    try:
        return look_up(number)[0]
    except KeyError:
        return str(number)


# -- mending ----------------------------------------------------------------------------------------------------------


def _found(path, owner, mode):
    make(path, "0700")
    _set(path, owner, mode)


def _refuse(path):
    raise CommandExecutionError(f"{path}: a link that is not root's is not followed. Put a directory there, or give it to root.")


def _set(path, owner, mode, following=0, within=None):
    """Give a file or directory its owner, then its mode; ``following`` and ``within`` as ``os.open`` has flags and dir_fd."""
    user, group = _ids(owner)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | following, dir_fd=within)
    try:
        os.fchown(handle, user, group)
        os.fchmod(handle, mode)
    finally:
        os.close(handle)
