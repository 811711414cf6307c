"""
The members of a managed etcd, as etcd itself lists them, and how a member without data starts.

``survey`` asks; ``k8s_membership`` decides.
"""

import concurrent.futures
import contextlib
import glob
import json
import os
import socket
import time
import urllib.parse

import salt.utils.files
from salt.exceptions import CommandExecutionError

TIMEOUT_S = 3
LOOKS = 3  # at data that could not be compared at once
# Read by systemd at the first start of a member only, and gone after a reboot.
FIRST_START = "/run/kubernetes-controller-first-start.env"
ANSWERS, REFUSES, SILENT = "answers", "refuses", "is silent"
# Of those that listen and tell nothing: they are not ready (as members are that wait for the others to found a cluster), they
# end the connection with this node's identity, or they take it.
WAITS, STRANGER, MUTE = "waits for the others", "does not know this node", "does not answer"


def survey(row, directory=None, hashes=False):
    """
    Ask the members of etcd, as this node, who they are and how they are.

    row
        etcd's row of the configuration's ``components``.
    directory
        Where the row's generation is drafted or prepared, if that is the identity to ask with (default: the live one).
    hashes
        Let the members compare their data at one revision, too (default False). It reads all keys once; where that decides
        nothing, it looks again, a second later, at most twice.

    Returns a dictionary:

    - ``members``: what etcd lists (list of dicts: ``id`` (hex), ``name``, ``peer_urls``, ``client_urls``, ``learner``,
      ``started``), None if no member could be asked
    - ``asked``: {URL: answer} of each declared controller and of each member. An answer has ``state`` (``answers``,
      ``refuses``: the machine answers and the port is closed; ``is silent``; ``waits for the others``: it listens and is not
      ready; ``does not know this node``: one of them does not believe the other's certificate; ``does not answer``: it believes
      it, and tells nothing), ``said`` (why there is no answer), and of one that answers ``cluster`` and ``member`` (hex),
      ``leads``, ``healthy`` (bool), ``revision`` and ``applied`` (int: of the data, of the log), ``hash`` (str or None),
      ``compacted`` (bool: beyond what another member has)
    - ``own``: this node's own URLs (list)
    - ``looks``: where voting members stood, one look after another (list of {URL: ``member``, ``revision``, ``applied``})

    Raises CommandExecutionError if this node has no identity to ask with.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcd_members.survey "$ROW"
    """
    access = __salt__["k8s_etcdctl.environment"](row, directory)
    own = access["ETCDCTL_ENDPOINTS"].split(",")
    asked = _ask(row, access, [*own, *__salt__["k8s_etcdctl.neighbours"](row)])
    members = _members(row, access, asked)
    if members is not None:
        known = {_place(url) for url in asked}
        others = [urls[0] for urls in (one["client_urls"] for one in members) if urls and not known & set(map(_place, urls))]
        asked |= _ask(row, access, others)
    looks = _compare(row, access, asked) if hashes else []
    return {"members": members, "asked": asked, "own": own, "looks": looks}


def problems(row, patience_s=0):
    """
    Return what is not in order with the members of etcd: lists of sentences, ``lasting`` (those that the pillar does not
    declare, that do not vote or hold other data) and ``passing`` (those that do not answer).

    row
        etcd's row of the configuration's ``components``.
    patience_s
        How long a member may be silent, in seconds (default 0): another controller may be restarting its own.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcd_members.problems "$ROW"
    """
    if not __salt__["k8s_generation.links"](row["home"])["live"]:
        return {"lasting": [], "passing": []}
    deadline = time.monotonic() + patience_s
    while True:
        try:
            found = survey(row, hashes=True)
        except CommandExecutionError as exc:
            return {"lasting": [], "passing": [f"etcd: the members could not be asked: {exc}."]}
        lasting, passing = _faults(row, found)
        if lasting or not passing or time.monotonic() >= deadline:
            return {"lasting": lasting, "passing": passing}
        time.sleep(1)


def external_problems(row):
    """
    Return a sentence, as a list, if the servers of an external etcd that the live API server asks are of several clusters.

    row
        The row of kube-apiserver in the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcd_members.external_problems "$ROW"
    """
    try:
        access = __salt__["k8s_etcdctl.environment"](row)
    except CommandExecutionError:
        return []  # no API server is live, which is told elsewhere
    urls = access["ETCDCTL_ENDPOINTS"].split(",")
    there = [url for url in urls if len(urls) > 1 and _reach(url)["state"] == ANSWERS]
    told = _statuses(row, access, there) if len(there) > 1 else {}
    asked = {url: {"cluster": format(one["header"]["cluster_id"], "x")} for url, one in told.items()}
    return __salt__["k8s_membership.data_faults"]({"members": None, "asked": asked})


def status(name="etcd"):
    """
    Return the members of etcd as etcd lists them, with what is not in order.

    name
        The component (default ``etcd``).

    Returns ``members`` (list of dicts, see ``survey``) and ``faults`` (list of sentences). The return code is not zero if
    there is a fault.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcd_members.status
    """
    cfg = __salt__["k8s_config.load"](fresh=True)
    if "errors" in cfg:
        raise CommandExecutionError("\n".join(cfg["errors"]))
    if name not in cfg["components"]:
        raise CommandExecutionError("kubernetes_controller:etcd:managed is false, so the members of etcd are not the formula's.")
    row = cfg["components"][name]
    found = survey(row, hashes=True)
    lasting, passing = _faults(row, found)
    said = lasting + passing
    if said:
        __context__["retcode"] = 1
    return {"members": found["members"], "faults": said}


def refusals(row, directory=None):
    """
    Return why etcd must not be changed on this node now (list of sentences): this member would lose its data, or the members
    are not those that the pillar declares.

    row
        etcd's row of the configuration's ``components``.
    directory
        See ``survey``.

    A member that does not answer is no reason (the turn counts those), nor is one that was added and waits for its first
    start. If no member can be asked there is nothing to compare.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcd_members.refusals "$ROW"
    """
    found, there, once = None, has_data(row), __salt__["k8s_skew.override"]
    good = __salt__["k8s_generation.flags"](row["home"], link="good")
    unclaimed = __salt__["k8s_etcd_data.unclaimed"](row)
    said = __salt__["k8s_membership.moved_data"](row, good, there, once("identity")) + ([unclaimed] if unclaimed else [])
    with contextlib.suppress(CommandExecutionError):
        found = survey(row, directory, hashes=bool(good))
    refusal = None if there or said else _first_start(row, found)["refusal"]
    said += [refusal] if refusal else []
    said += _of_another(row, found)
    if found is None:
        return said
    said += __salt__["k8s_membership.data_faults"](found)
    if found["members"] is not None and "members" not in row["ignore"]:
        asked = {minion: address for minion, address in _controllers(row).items() if not refusal or minion != __opts__["id"]}
        said += [f"{one} {once('members')}" for one in __salt__["k8s_membership.differences"](asked, found["members"])]
    return said


def ids(row):
    """
    Return the ids of the members of declared controllers: {minion: id (hex)}; {} if that cannot be asked.

    row
        etcd's row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcd_members.ids "$ROW"
    """
    addresses, listed = __salt__["k8s_membership.addresses"], []
    with contextlib.suppress(CommandExecutionError):
        listed = survey(row)["members"] or []
    found = {minion: [one["id"] for one in listed if where in addresses(one)] for minion, where in _controllers(row).items()}
    return {minion: members[0] for minion, members in found.items() if members}


def own_peers(row):
    """
    Return the peer URLs (list) by which the other members know this node's; [] if that cannot be asked.

    row
        etcd's row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcd_members.own_peers "$ROW"
    """
    with contextlib.suppress(CommandExecutionError):
        for one in survey(row)["members"] or []:
            if row["address"] in __salt__["k8s_membership.addresses"](one):
                return one["peer_urls"]
    return []


def quorum_refusals(row, directory=None):
    """
    Return why this node's member must not be interrupted now (list of sentences): etcd would lose its quorum, by the members
    that it really has.

    row
        etcd's row of the configuration's ``components``.
    directory
        See ``survey``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcd_members.quorum_refusals "$ROW"
    """
    found = survey(row, directory)
    if found["members"] is None:
        return []  # the neighbours say why
    return __salt__["k8s_membership.quorum_faults"](found, row["address"])


def has_data(row):
    """
    Tell whether the data directory that the pillar declares has the data of a member.

    row
        etcd's row of the configuration's ``components``.

    etcd itself judges by its write-ahead log (https://github.com/etcd-io/etcd, server/embed: ``isMemberInitialized``).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcd_members.has_data "$ROW"
    """
    return bool(glob.glob(os.path.join(glob.escape(wal_directory(row["settings"])), "*.wal")))


def wal_directory(settings):
    """
    Return the directory (str) of the write-ahead log that etcd's flags name.

    settings
        Flags of etcd (dict).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcd_members.wal_directory '{"data-dir": "/var/lib/etcd"}'
    """
    return settings.get("wal-dir") or f"{settings.get('data-dir', '')}/member/wal"


def allow_first_start(row, directory):
    """
    Let a member without data start as it must: with the members that are there, or, if this founds the cluster, with all.

    row
        etcd's row of the configuration's ``components``.
    directory
        Its generation that is about to start.

    Writes what etcd reads at a first start only to a file on /run, and removes that file for a member that has data.
    Returns ``found``, ``join`` or ``data``. Raises CommandExecutionError if the member must not start.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcd_members.allow_first_start "$ROW" /var/lib/kubernetes-etcd/generations/3f9c0d1e2b3a4c5d
    """
    unclaimed = __salt__["k8s_etcd_data.unclaimed"](row)
    if unclaimed or has_data(row):
        forbid_first_start()
    if unclaimed:
        raise CommandExecutionError(unclaimed)
    found = None
    with contextlib.suppress(CommandExecutionError):  # without an identity nobody can be asked, and then nothing is founded
        found = survey(row, directory)
    if has_data(row):
        for said in _of_another(row, found):
            raise CommandExecutionError(said)
        return "data"
    plan = _first_start(row, found)
    if plan["refusal"]:
        forbid_first_start()
        raise CommandExecutionError(plan["refusal"])
    flags = {**row["first_start"], "initial-cluster": plan["initial_cluster"], "initial-cluster-state": plan["state"]}
    lines = [f"ETCD_{flag.upper().replace('-', '_')}={value}\n" for flag, value in sorted(flags.items())]
    with salt.utils.files.fopen(FIRST_START, "w", encoding="utf-8", opener=_private) as handle:
        handle.write("".join(lines))
    return "found" if plan["state"] == "new" else "join"


def forbid_first_start():
    """
    Remove what a member without data reads at its first start: from now on it starts with its data or not at all.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcd_members.forbid_first_start
    """
    try:
        os.unlink(FIRST_START)
    except FileNotFoundError:
        return False
    return True


# -- asking -----------------------------------------------------------------------------------------------------------


def _me(row):
    """Return what ``k8s_membership`` has to know of this node."""
    first = row["first_start"]
    return {
        "id": __opts__["id"],
        "address": row["address"],
        "name": row["settings"].get("name", __opts__["id"]),
        "controllers": _controllers(row),
        "initial_cluster": first.get("initial-cluster", ""),
        "data_dir": row["settings"].get("data-dir"),
        "peers": first.get("initial-advertise-peer-urls", "").split(","),
    }


def _of_another(row, found):
    """Return a sentence, as a list, if the data here were written by another member than the one that etcd lists here."""
    if not found or not found["members"] or not has_data(row):
        return []
    said = __salt__["k8s_membership.of_another"](_me(row), __salt__["k8s_etcd_data.member"](row), found["members"])
    return [said] if said else []


def _first_start(row, found):
    mark = __salt__["k8s_cluster.mark"](row)
    remote = __opts__.get("file_client") == "remote"
    return __salt__["k8s_membership.first_start"](_me(row), mark, found, time.time(), has_master=remote, told=row["found"])


def _faults(row, found):
    """Return the sentences on what lasts until somebody does something, and on what may pass by itself."""
    controllers = _controllers(row)
    lasting = __salt__["k8s_membership.data_faults"](found)
    if found["members"] is not None:
        lasting += __salt__["k8s_membership.differences"](controllers, found["members"])
    return lasting, __salt__["k8s_membership.unwell"](controllers, found)


def _controllers(row):
    return {__opts__["id"]: row["address"], **row["neighbours"]}


def _place(url):
    where = urllib.parse.urlsplit(url)
    return where.hostname, where.port


def _ask(row, access, urls):
    """Return {URL: answer} (see ``survey``)."""
    urls = list(dict.fromkeys(urls))
    if not urls:
        return {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        asked = dict(zip(urls, pool.map(_reach, urls), strict=True))
    there = [url for url, answer in asked.items() if answer["state"] == ANSWERS]
    _hear(row, access, asked, there)
    return asked


def _hear(row, access, asked, urls):
    """Write into the answers what the members at ``urls`` say of themselves now."""
    told = _statuses(row, access, urls)
    for url in urls:
        if url not in told:
            asked[url] |= _unheard(url, access)
        if asked[url]["state"] == MUTE:  # it may have become ready just now
            told |= _statuses(row, access, [url])
        if url not in told:
            continue
        status = told[url]
        errors = [one for one in status.get("errors") or []]
        asked[url] |= {
            "state": ANSWERS,
            "cluster": format(status["header"]["cluster_id"], "x"),
            "member": format(status["header"]["member_id"], "x"),
            "leads": status.get("leader") == status["header"]["member_id"],
            "healthy": bool(status.get("leader")) and not errors,
            "learner": bool(status.get("isLearner")),
            "revision": status["header"].get("revision", 0),
            "applied": status.get("raftAppliedIndex", 0),
            "said": "; ".join(errors) or ("" if status.get("leader") else "it knows no leader"),
        }


def _statuses(row, access, urls):
    """Return {URL: what etcd says of itself} of those that answer."""
    return {one["Endpoint"]: one["Status"] for one in _tell(row, access, urls, "endpoint", "status")} if urls else {}


def _unheard(url, access):
    """Return the state of one that listens and gave no answer, and why."""
    how, reason = __salt__["k8s_etcdctl.greeting"](url, access, TIMEOUT_S)
    if how == "refused":
        return {"state": STRANGER, "said": reason}
    waits = {"state": WAITS, "said": "it is there, but has no answer yet"}
    return waits if how == "none" else {"state": MUTE, "said": "it takes this node's certificate, and answers no question"}


def _reach(url):
    """Tell whether somebody listens at a URL, whether at least its machine answers, or neither."""
    where = urllib.parse.urlsplit(url)
    try:
        socket.create_connection((where.hostname, where.port or 2379), timeout=TIMEOUT_S).close()
    except ConnectionRefusedError as exc:
        return {"state": REFUSES, "said": exc.strerror or str(exc)}
    except (OSError, ValueError, OverflowError) as exc:
        return {"state": SILENT, "said": getattr(exc, "strerror", None) or str(exc)}
    return {"state": ANSWERS, "said": ""}


def _members(row, access, asked):
    """Return what etcd lists, as the first member that can say so has it; one without a quorum tells what it knows."""
    urls = sorted((url for url, one in asked.items() if one["state"] == ANSWERS), key=lambda url: asked[url]["learner"])
    for consistency in ("l", "s"):
        for url in urls:
            arguments = ("member", "list", f"--consistency={consistency}", "--write-out=json")
            try:
                said = json.loads(__salt__["k8s_etcdctl.run"](row, arguments, {**access, "ETCDCTL_ENDPOINTS": url}))
            except (CommandExecutionError, ValueError):
                continue
            return [_member(one) for one in said["members"]]
    return None


def _member(listed):
    urls = listed.get("clientURLs") or []
    return {
        "id": format(listed["ID"], "x"),
        "name": listed.get("name", ""),
        "peer_urls": listed.get("peerURLs") or [],
        "client_urls": urls,
        "learner": bool(listed.get("isLearner")),
        "started": bool(urls),  # a member publishes them when it has started
    }


def _compare(row, access, asked):
    """Compare the data of the voting members, and look again while that decides nothing. Returns the looks (``survey``)."""
    looks = []
    while True:
        there = [url for url, one in asked.items() if one["state"] == ANSWERS and not one["learner"]]
        looks.append({url: {key: asked[url][key] for key in ("member", "revision", "applied")} for url in there})
        _hash(row, access, asked, there)
        if len(looks) == LOOKS or not __salt__["k8s_membership.is_open"](asked, looks):
            return looks
        time.sleep(1)
        _hear(row, access, asked, there)


def _hash(row, access, asked, there):
    """Add ``hash`` to the answers: of all data up to one revision that all have; None, and ``compacted``, if not all do."""
    for answer in asked.values():  # those of the look before were of another revision
        answer.pop("hash", None)
        answer.pop("compacted", None)
    revision = min((asked[url]["revision"] for url in there), default=0)
    if len(there) < 2 or not revision:
        return
    told = {one["Endpoint"]: one["HashKV"] for one in _tell(row, access, there, "endpoint", "hashkv", f"--rev={revision}")}
    compacted = {one.get("compact_revision", 0) for one in told.values()}
    for url in there:  # a member that has compacted further than another hashes less, or nothing
        asked[url]["hash"] = str(told[url]["hash"]) if url in told and len(compacted) == 1 else None
        further = url in told and told[url].get("compact_revision", 0) > min(compacted)
        asked[url]["compacted"] = further or url not in told and _has_compacted(row, access, url, revision)


def _has_compacted(row, access, url, revision):
    """Tell whether a member has no data of a revision any more."""
    try:
        arguments = ["get", "any", f"--rev={revision}", "--keys-only", "--consistency=s"]
        __salt__["k8s_etcdctl.run"](row, arguments, {**access, "ETCDCTL_ENDPOINTS": url})
    except CommandExecutionError as exc:
        return "compacted" in str(exc)
    return False  # it had no time for so many keys


def _tell(row, access, urls, *arguments):
    """Return what etcdctl tells of several endpoints (list), those left out that do not answer."""
    try:
        said = __salt__["k8s_etcdctl.run"](
            row, [*arguments, "--write-out=json"], {**access, "ETCDCTL_ENDPOINTS": ",".join(urls)}, partly=True
        )
        return json.loads(said) or []
    except (CommandExecutionError, ValueError):
        return []


def _private(path, flags):
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
