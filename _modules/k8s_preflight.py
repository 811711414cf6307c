"""
The preflight: what is wrong with a node's declaration, found before anything is prepared or touched.

``check`` is the whole of it. Each part returns sentences that name the pillar key or file, what was found, what was
expected and the way out; no part changes anything.
"""

import base64
import contextlib
import errno
import os
import shutil
import socket
import urllib.parse

import salt.utils.files
import yaml
from salt.exceptions import CommandExecutionError

ENCRYPTION_FLAG = "encryption-provider-config"
MIB = 1024 * 1024


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
    with _staged(changing) as staged:
        for name, directory in staged.items():
            answer = _problems(changing[name], directory)
            found["errors"] += answer["errors"]
            found["warnings"] += answer["warnings"]
            found["errors"] += __salt__["k8s_preflight.ports"](changing[name])
        found["errors"] += __salt__["k8s_preflight.disk"](changing)
        asked = components.get("kube-apiserver") or next(iter(components.values()))
        others = __salt__["k8s_skew.neighbours"](asked, staged.get("kube-apiserver"))
        found["errors"] += versions(components, others)
        found["errors"] += __salt__["k8s_skew.clock_refusals"](
            others, asked["preflight"]["max_clock_skew_s"], here=__opts__["id"]
        )
        if __salt__["k8s_generation.links"](asked["home"])["live"]:  # a first install has nobody to ask
            found["notes"] += [f"{minion} was not asked: {answer['said']}" for minion, answer in others.items() if answer["said"]]
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
        with _staged({row["name"]: row}) as staged:
            return _problems(row, staged[row["name"]])
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


def disk(components):
    """
    Return a sentence for each file system of the components' directories that has too little free space.

    components
        Rows of the configuration's ``components`` (dict).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_preflight.disk '{}'
    """
    found, seen = [], {}
    for row in components.values():
        for directory in (row["home"], os.path.dirname(row["binary"]), *row["directories"]):
            present = _existing(directory)
            _, _, directories = seen.setdefault(os.stat(present).st_dev, (present, row["preflight"]["min_free_mib"], []))
            directories.append(directory)
    for present, least, directories in seen.values():
        stat = os.statvfs(present)
        free = stat.f_bavail * stat.f_frsize // MIB
        if free < least:
            found.append(
                f"{', '.join(dict.fromkeys(directories))}: {free} MiB free, expected at least {least} "
                "(kubernetes_controller:rollout:preflight:min_free_mib). Make room, with old releases first."
            )
    return found


def ports(row):
    """
    Return a sentence for each address and port that a component will bind and cannot, as another process has it.

    row
        A row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_preflight.ports "$ROW"
    """
    found, live = [], _bound(row, __salt__["k8s_generation.flags"](row["home"]))
    for address, port, flag in _bound(row, row["settings"]):
        reason = _cannot_bind(address, port)
        if reason is None or (address, port) in [bound[:2] for bound in live] and _runs(row):
            continue
        key = f"kubernetes_controller:{row['key']}:settings:{flag}"
        if reason == errno.EADDRINUSE:
            holder = __salt__["k8s_component.listener"](port) or {"pid": 0, "binary": "unknown"}
            if holder["pid"] and holder["pid"] == __salt__["k8s_component.process"](row["name"])["pid"]:
                continue
            found.append(
                f"{key}: port {port} of {address or 'all addresses'} is held by process {holder['pid']} ({holder['binary']}), so "
                f"{row['name']} could not start. Stop that process, or choose another port."
            )
        else:
            found.append(f"{key}: {row['name']} cannot bind {address}:{port} here ({os.strerror(reason)}).")
    return found


def _problems(row, directory):
    errors = _unfit_pairs(row, directory) + _lost_keys(row, directory)
    answer = __salt__["k8s_ask_binary.problems"](row, directory)
    return {"errors": errors + answer["errors"], "warnings": answer["warnings"]}


@contextlib.contextmanager
def _staged(rows):
    """Hold the declared files of ``rows`` in directories of root's alone; give {component: directory}."""
    directories = {}
    try:
        for name, row in rows.items():
            directories[name] = __salt__["k8s_generation.stage"](row)
        yield directories
    finally:
        for directory in directories.values():
            shutil.rmtree(directory, ignore_errors=True)


def _text(*path):
    with salt.utils.files.fopen(os.path.join(*path), encoding="utf-8", errors="replace") as handle:
        return handle.read()


# -- certificates and keys --------------------------------------------------------------------------------------------


def _unfit_pairs(row, directory):
    found = []
    for name, pair in row["pairs"].items():
        certificate, key = _pair(directory, name, pair)
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
        user = yaml.safe_load(text)["users"][0]["user"]
        return [base64.b64decode(user[f"client-{part}-data"]).decode() for part in ("certificate", "key")]
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
    """Return a sentence for each encryption key that is in use and that the declaration drops or exchanges."""
    live = __salt__["k8s_generation.flags"](row["home"]).get(ENCRYPTION_FLAG)
    if not live or row["drop_encryption_keys"] or not os.path.exists(live):
        return []
    declared = os.path.join(directory, os.path.basename(row["settings"].get(ENCRYPTION_FLAG, "none")))
    kept = _encryption_keys(_text(declared)) if os.path.exists(declared) else set()
    return [
        f"kubernetes_controller:encryption: {kind} key {key} of the live configuration is "
        f"{'another under the same name' if (kind, key) in {pair[:2] for pair in kept} else 'not declared any more'}: "
        "what it encrypted would be unreadable. Put it back, or, when nothing is stored under it any more, say so for "
        'one run with pillar=\'{"kubernetes_controller": {"rollout": {"drop_encryption_keys": true}}}\'.'
        for kind, key, secret in sorted(_encryption_keys(_text(live)))
        if (kind, key, secret) not in kept
    ]


def _encryption_keys(text):
    """Return {(provider, name, secret)} of the keys in an EncryptionConfiguration."""
    return {
        (kind, key["name"], key["secret"])
        for entry in yaml.safe_load(text).get("resources", [])
        for provider in entry["providers"]
        for kind, options in provider.items()
        for key in (options or {}).get("keys", [])
    }


# -- the node ---------------------------------------------------------------------------------------------------------


def _existing(path):
    """Return the nearest directory on the way to ``path`` that is there."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _bound(row, flags):
    """Return [(address, port, flag)] that a component binds with ``flags``; an address "" is all of them."""
    if row["name"] == "etcd":
        found = []
        for flag in ("listen-client-urls", "listen-peer-urls"):
            for url in filter(None, flags.get(flag, "").split(",")):
                where = urllib.parse.urlsplit(url)
                found.append((where.hostname or "", where.port or 0, flag))
        return found
    port = flags.get("secure-port", str(row["port"]))
    address = flags.get("bind-address", "")
    address = "" if address in ("0.0.0.0", "::") else address  # noqa: S104 (compared with, not bound)
    return [(address, int(port), "secure-port")] if flags and port.isdigit() and int(port) else []


def _runs(row):
    return bool(__salt__["k8s_component.process"](row["name"])["pid"])


def _cannot_bind(address, port):
    """Return why (errno) a TCP address cannot be bound, or None. It is bound for a moment, and never listened at."""
    try:
        ((family, kind, _, _, where), *_) = socket.getaddrinfo(
            address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
        )
        with socket.socket(family, kind) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(where)
    except socket.gaierror:
        return None  # a name, or no address at all: the binary says what it thinks of it
    except (OSError, OverflowError) as exc:
        return getattr(exc, "errno", None) or errno.EINVAL
    return None
