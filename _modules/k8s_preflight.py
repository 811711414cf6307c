"""
The preflight: what is wrong with a node's declaration, found before anything is prepared or touched.

``check`` is the whole of it. Each part returns sentences that name the pillar key or file, what was found, what was
expected and the way out; no part changes anything.
"""

import contextlib
import json
import os
import re
import shutil
import time
import urllib.parse

import salt.utils.files
from salt.exceptions import CommandExecutionError

CERTIFICATE_TROUBLE = re.compile(r"TLS|tls: |x509: |certificate|authentication|permission denied|user name")
PUBLISHED = "published.json"
EDITION = 2  # of what is published: grows with it, so that a node tells it anew at once
REPUBLISH_S = 3600  # etcd may have been restored from before
PATIENCE_S = 20
NO_ACCESS = (
    "An API server with it would reach no etcd: declare a certificate that a CA of etcd's (--trusted-ca-file) signed, and the CA "
    "that signed etcd's own."
)
OWN = ("service-account", "client-ca")
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 (compared with, not bound)


def check(changing, components):
    """
    Return what is wrong with what this node is to run.

    changing
        The rows (dict) of those components whose declared generation is not the good one. Nothing else is asked.
    components
        All rows of the configuration's ``components``.

    A dictionary of lists of sentences: ``errors``, ``warnings``, and ``notes`` (what could not be known).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_preflight.check '{}' '{}'
    """
    found = {"errors": [], "warnings": [], "notes": []}
    for row in changing.values():
        found["errors"] += _told(__salt__["k8s_host.ports"], row)
    found["errors"] += _told(__salt__["k8s_host.disk"], changing) + _told(_memory, components)
    try:
        with _drafted(changing) as drafts:
            _judge(changing, components, drafts, found)
    except (CommandExecutionError, OSError) as exc:
        found["errors"].append(str(exc))
    return found


def problems(row):
    """
    Return what does not fit together in the generation that ``row`` declares: lists ``errors`` and ``warnings`` of
    sentences that name the pillar key.

    row
        A row of the configuration's ``components``.

    Certificates are checked against keys, CAs, usage, names and dates (the row's ``pairs``); flags, feature gates and
    plugins against what the installed binary itself accepts.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_preflight.problems "$ROW"
    """
    try:
        with _drafted({row["name"]: row}) as drafts:
            return _problems(row, drafts[row["name"]])
    except CommandExecutionError as exc:
        return {"errors": [str(exc)], "warnings": []}


def versions(components, others):
    """
    Return why the declared releases may not follow what is live on this node and on the other controllers.

    components
        The configuration's ``components`` (dict of rows).
    others
        What ``k8s_skew.neighbours`` returned.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_preflight.versions '{}' '{}'
    """
    declared = {name: row["release"] for name, row in components.items()}
    live = {name: __salt__["k8s_generation.release"](row["home"]) for name, row in components.items()}
    ignore = next((row["ignore"] for row in components.values()), [])
    releases = {minion: answer["release"] for minion, answer in others.items()}
    return __salt__["k8s_skew.version_refusals"](declared, live, releases, ignore)


def etcd(components, directory=None):
    """
    Return a sentence when a majority of etcd does not answer the declared client certificate.

    components
        The configuration's ``components`` (dict of rows), with the API server's.
    directory
        Where the API server's declared generation is drafted; without it the live one counts.

    A cluster that is down can always be repaired: where this node's API server does not serve, only an external etcd that
    refuses the certificate is an error.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_preflight.etcd '{}'
    """
    row = components["kube-apiserver"]
    if "etcd" in row["ignore"] or not directory and not __salt__["k8s_generation.flags"](row["home"]):
        return []
    answers = __salt__["k8s_etcdctl.health"](row, directory)
    silent = {server: answer["said"] for server, answer in answers.items() if not answer["ok"]}
    if len(answers) > 2 * len(silent):
        return []
    if not __salt__["k8s_health.serves"](row):
        silent = {server: said for server, said in silent.items() if CERTIFICATE_TROUBLE.search(said)}
        if "etcd" in components or not silent:
            return []
    listed = "; ".join(f"{server}: {said}" for server, said in silent.items())
    refused = any(CERTIFICATE_TROUBLE.search(said) for said in silent.values())
    return [
        f"kubernetes_controller:etcd:servers: {len(answers) - len(silent)} of {len(answers)} answer the declared client "
        f"certificate of kube-apiserver, expected a majority. {listed}. "
        + (NO_ACCESS if refused else __salt__["k8s_etcdctl.must_answer"]())
    ]


def publish(components=None):
    """
    Tell the other controllers, by a key in etcd, what the live generations of this node accept (fingerprints only).

    components
        The configuration's ``components`` (dict of rows); without it they are taken from the pillar, and etcd is asked
        whatever was published before.

    Costs one etcdctl call, and none within an hour while nothing changed. Returns whether the key is there; raises
    CommandExecutionError with etcd's reason.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_preflight.publish
    """
    by_hand = components is None
    if by_hand:
        cfg = __salt__["k8s_config.load"]()
        if "errors" in cfg:
            raise CommandExecutionError("\n".join(cfg["errors"]))
        components = cfg["components"]
    row = components.get("kube-apiserver")
    live = {name: __salt__["k8s_generation.links"](one["home"])["live"] for name, one in components.items()}
    if not row or not live["kube-apiserver"]:
        return False
    memory = os.path.join(row["home"], PUBLISHED)
    known = _remembered(memory)
    same = known.get("live") == live and known.get("edition") == EDITION
    if not by_hand and same and time.time() - known.get("at", 0) < REPUBLISH_S:
        return True
    text = json.dumps(__salt__["k8s_overlap.accepts"](components), sort_keys=True)
    key = _record(row, __opts__["id"])
    if __salt__["k8s_etcdctl.get"](row, key).get(key) != text:
        __salt__["k8s_etcdctl.put"](row, key, text)
    return __salt__["k8s_durable.write"](memory, json.dumps({"live": live, "edition": EDITION, "at": time.time()}))


def not_accepted(components, others=None, drafts=None):
    """
    Return why the declared generations may not write or sign yet: what the other controllers do not accept, a sentence each.

    components
        Rows (dict) of those components that are to change.
    others
        What ``k8s_skew.neighbours`` returned; asked when not given.
    drafts
        {component: directory} where their declared generations are drafted; made for the moment when not given.

    Only what differs from what this node's live generations write is asked. Every declared controller that published what
    it accepts counts, whether it runs or not; one that serves without having published is a refusal, too.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_preflight.not_accepted '{}'
    """
    row = components.get("kube-apiserver") or next(iter(components.values()), None)
    if row is None or "overlap" in row["ignore"] or not row["api"]:
        return []
    if drafts is None:
        with _drafted(components) as drafts:
            return not_accepted(components, others, drafts)
    new, old = {}, {}
    for name, one in components.items():
        new |= __salt__["k8s_overlap.writes"](one, drafts[name])
        old |= __salt__["k8s_overlap.writes"](one)
    live = __salt__["k8s_generation.links"](row["api"]["home"])["live"]
    things = __salt__["k8s_overlap.differing"](new, old) if live else new
    if not things:
        return []
    if row["name"] == "kube-apiserver":  # what its own API server does not take, no other does
        own = __salt__["k8s_overlap.accepts"]({row["name"]: row}, drafts)
        found = __salt__["k8s_overlap.refusals"](
            {what: thing for what, thing in things.items() if thing["kind"] in OWN}, {f"this node ({__opts__['id']})": own}
        )
        if found:
            return found
    if not row["neighbours"]:
        return []
    if others is None:
        others = __salt__["k8s_skew.neighbours"](row, drafts.get("kube-apiserver"))
    serving = [minion for minion, answer in others.items() if answer["serves"]]
    if not live and not serving:
        return []  # nothing to protect
    return _refused(row, things, serving, None if live else drafts.get("kube-apiserver"), live)


def _refused(row, things, serving, directory, live):
    """Return the refusals for ``things`` by what the others published; etcd is asked for it."""
    deadline = time.monotonic() + (0 if live or __opts__["test"] else PATIENCE_S)
    kinds = {thing["kind"] for thing in things.values()}
    while True:
        try:
            records = _records(row, directory)
        except (CommandExecutionError, ValueError) as exc:
            if not serving and not __salt__["k8s_health.serves"]({**row["api"], "probe": {"path": "/readyz"}}):
                return []  # a cluster that is down can always be repaired
            again = "Have it told anew: `salt 'controller-*' k8s_preflight.publish`."
            way = again if isinstance(exc, ValueError) else __salt__["k8s_etcdctl.must_answer"]()
            return [f"what the other controllers accept of the new keys or CAs could not be read from etcd: {exc}. {way}"]
        unknown = [minion for minion in serving if kinds - set(records.get(minion, {})) and not row["adopt"]]
        if not unknown or time.monotonic() > deadline:  # one that was just installed publishes after its gate
            break
        time.sleep(1)
    refusals = __salt__["k8s_overlap.refusals"](things, records)
    for minion in unknown:
        refusals.append(
            f"{minion}: not known what it accepts of {', '.join(thing['said'] for thing in things.values())}; apply the formula "
            f"there first, or say `salt {minion} k8s_preflight.publish`."
        )
    return refusals


def _unlike_others(components, others, drafts):
    """Return why clients of controllers that serve would be cut off here, where no API server was good yet."""
    row = components.get("kube-apiserver")
    serving = [minion for minion, answer in others.items() if answer["serves"]]
    if not row or not serving or __salt__["k8s_generation.links"](row["home"])["good"]:
        return []
    try:
        records = _records(row, drafts["kube-apiserver"])
    except (CommandExecutionError, ValueError):
        return []  # which is told where keys and CAs are asked
    return __salt__["k8s_clients.others"](components, drafts, {minion: records.get(minion, {}) for minion in serving})


def _records(row, directory):
    """Return what the other controllers published: {minion: what ``k8s_overlap.accepts`` returned there}."""
    found = __salt__["k8s_etcdctl.get"](row, _record(row, ""), directory)
    return {minion: json.loads(found[_record(row, minion)]) for minion in row["neighbours"] if _record(row, minion) in found}


def _record(row, minion):
    return f"{os.path.dirname(row['turn']['key'])}/accepts/{minion}"


def _remembered(path):
    try:
        with salt.utils.files.fopen(path, encoding="utf-8") as handle:
            return json.load(handle)
    except (OSError, ValueError):
        return {}


def _judge(changing, components, drafts, found):
    """Add to ``found`` what is wrong with generations that are drafted."""
    errors = found["errors"]
    for name, directory in drafts.items():
        answer = _problems(changing[name], directory)
        errors += answer["errors"]
        found["warnings"] += answer["warnings"]
    asked = components.get("kube-apiserver") or next(iter(components.values()))
    others = __salt__["k8s_skew.neighbours"](asked, drafts.get("kube-apiserver"))
    errors += _told(versions, components, others)
    if "kube-apiserver" in components:
        errors += _told(__salt__["k8s_preflight.etcd"], components, drafts.get("kube-apiserver"))
    if "etcd" in drafts or "etcd" in components and __salt__["k8s_generation.links"](components["etcd"]["home"])["live"]:
        errors += _told(__salt__["k8s_etcd_members.refusals"], components["etcd"], drafts.get("etcd"))
    errors += _told(__salt__["k8s_identity.refusals"], changing, drafts)
    errors += _told(__salt__["k8s_preflight.not_accepted"], changing, others, drafts)
    errors += _told(_unlike_others, changing, others, drafts)
    errors += __salt__["k8s_skew.clock_refusals"](others, asked["preflight"]["max_clock_skew_s"], here=__opts__["id"])
    if __salt__["k8s_generation.links"](asked["home"])["live"]:  # a first install has nobody to ask
        found["notes"] += [f"{minion} was not asked: {answer['said']}" for minion, answer in others.items() if answer["said"]]


def _problems(row, directory):
    errors = _unfit_pairs(row, directory) + _told(_lost_keys, row, directory) + _moved_ports(row)
    errors += _told(__salt__["k8s_clients.cut_off"], row, directory)
    answer = __salt__["k8s_ask_binary.problems"](row, directory)
    return {"errors": errors + answer["errors"], "warnings": answer["warnings"]}


def _memory(components):
    return __salt__["k8s_host.memory"](components, __salt__["k8s_rehearsal.due"](components))


def _told(part, *args):
    """
    Return the sentences of a part; of one that cannot go on the reason, so that the others are told beside it.

    What is yet to come is told by who compares the generation that lacks it.
    """
    try:
        return part(*args)
    except (CommandExecutionError, OSError) as exc:
        return [] if getattr(exc, "to_come", False) else [str(exc)]


@contextlib.contextmanager
def _drafted(rows):
    """Hold the declared files of ``rows`` in directories of root's alone; give {component: directory}."""
    directories = {}
    try:
        for name, row in rows.items():
            directories[name] = __salt__["k8s_generation.draft"](row)
        yield directories
    finally:
        for directory in directories.values():
            shutil.rmtree(directory, ignore_errors=True)


def _text(*path):
    with salt.utils.files.fopen(os.path.join(*path), encoding="utf-8", errors="replace") as handle:
        return handle.read()


# -- etcd's ports -----------------------------------------------------------------------------------------------------


def _moved_ports(row):
    """Return a sentence for each URL of a live etcd by which its clients or the other members would lose it."""
    present, declared = __salt__["k8s_generation.flags"](row["home"]), row["settings"]
    if row["name"] != "etcd" or not present or "etcd-ports" in row["ignore"]:
        return []
    found, once = [], __salt__["k8s_skew.override"]("etcd-ports")
    old, new = (_urls(flags, "listen-client-urls") for flags in (present, declared))
    asked = _urls(__salt__["k8s_generation.flags"](row["api"]["home"]), "etcd-servers") if row["api"] else []
    used = [url for url in asked if _is_among(url, old)] or old
    if not any(_is_among(url, new) for url in used):
        found.append(
            f"kubernetes_controller:etcd:client_port: clients ask etcd at {', '.join(used)}, where it would not listen any more "
            f"(declared: {', '.join(new)}). Move it in three rollouts: list both URLs, each as "
            "https://{address}:PORT, in kubernetes_controller:etcd:settings:listen-client-urls; with both listed, change "
            "kubernetes_controller:etcd:client_port (and kubernetes_controller:etcd:servers where it is set); then take "
            f"listen-client-urls out again. {once}"
        )
    heard, hears = (_urls(flags, "listen-peer-urls") for flags in (present, declared))
    old, new = __salt__["k8s_etcd_members.own_peers"](row) or heard, _urls(row["first_start"], "initial-advertise-peer-urls")
    if row["neighbours"] and (set(old) != set(new) or not any(_is_among(url, hears) for url in old)):
        found.append(
            f"kubernetes_controller:etcd:peer_port: the other members know this one at {', '.join(old)} and keep that, whatever "
            f"is declared ({', '.join(new)}, listening at {', '.join(hears)}), so etcd would lose its quorum. First list both "
            "URLs, each as https://{address}:PORT, in kubernetes_controller:etcd:settings:listen-peer-urls, roll out, and say "
            f"`etcdctl member update ID --peer-urls=URL` for each member; then overrule this once. {once}"
        )
    return found


def _urls(flags, name):
    return [url for url in flags.get(name, "").split(",") if url]


def _is_among(url, urls):
    """Tell whether one who asks at ``url`` is heard by one who listens at ``urls``."""
    return any(
        one[:2] == asked[:2] and (one[2] == asked[2] or {one[2], asked[2]} & {*WILDCARDS})
        for asked in _places([url])
        for one in _places(urls)
    )


def _places(urls):
    """Return (scheme, port, host) of each URL, those left out that are none."""
    found = []
    for url in urls:
        with contextlib.suppress(ValueError):
            where = urllib.parse.urlsplit(url)
            found.append((where.scheme, where.port, where.hostname))
    return found


# -- certificates and keys --------------------------------------------------------------------------------------------


def _unfit_pairs(row, directory):
    found = []
    for name, pair in row["pairs"].items():
        try:
            certificate, key = _pair(directory, name, pair)
        except CommandExecutionError as exc:
            found.append(f"{_origin(row, name)} ({row['name']}, {name}): {exc}.")
            continue
        authority = pair.get("authority")
        for problem in __salt__["k8s_certificate.problems"](
            certificate,
            key=key,
            authority=_text(directory, authority) if authority in row["files"] else None,
            usage=pair.get("usage"),
            sans=pair.get("sans"),
        ):
            found.append(f"{_origin(row, name)} ({row['name']}, {name}): {problem}.")
    return found


def _pair(directory, name, pair):
    """Return certificate and key of a pair; a kubeconfig holds both (or names files beside it)."""
    if os.path.exists(os.path.join(directory, f"{name}.certificate")):
        return _text(directory, f"{name}.certificate"), _text(directory, f"{name}.key")
    text = _text(directory, name)
    if "client-certificate-data" in text:
        return __salt__["k8s_kubeconfig.pair"](text)
    key = pair.get("key")
    return text, _text(directory, key) if key and os.path.exists(os.path.join(directory, key)) else None


def _origin(row, name):
    """Return where the content of a file comes from, in the operator's words."""
    file = row["files"][name]
    if "pki" in file:
        names = [row["pki"]["files"].get(reference, reference) for reference in file["pki"]]
    elif "kubeconfig" in file:
        names = [row["pki"]["files"].get(file["kubeconfig"]["certificate"], file["kubeconfig"]["certificate"])]
    else:
        return f"kubernetes_controller:{row['key']}:files:{name}"
    return f"{row['pki']['pillar']}:{'+'.join(names)}"


def _lost_keys(row, directory):
    """Return a sentence for each encryption key that a resource is read with and that the declaration drops or exchanges."""
    if row["drop_encryption_keys"]:
        return []
    declared, present = __salt__["k8s_overlap.encryption"](row, directory), __salt__["k8s_overlap.encryption"](row)
    lost = {}
    for resource in dict.fromkeys([*present, *declared]) if present else ():
        kept = _read_with(declared, resource)
        for kind, key, _ in [known for known in _read_with(present, resource) if known not in kept and known[0] != "identity"]:
            what = "another under the same name" if (kind, key) in {known[:2] for known in kept} else "not declared any more"
            lost.setdefault((kind, key, what), []).append(resource)
    return [
        f"kubernetes_controller:encryption: {kind} key {key} of the live configuration is {what} for {', '.join(resources)}: "
        "what it encrypted would be unreadable. Put it back. Another key takes its place step by step, and all is written anew "
        "before the old one goes: docs/operations.md, Rotating encryption keys."
        for (kind, key, what), resources in sorted(lost.items())
    ]


def _read_with(rows, resource):
    """Return the keys of the first row that counts for a resource."""
    return next((keys for pattern, keys in rows.items() if __salt__["k8s_overlap.covers"](pattern, resource)), [])
