"""
Ask etcd by ``etcdctl``, as this node: with the identity that is live, or with the one that is declared.
"""

import base64
import concurrent.futures
import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import urllib.parse

from salt.exceptions import CommandExecutionError

TIMEOUT_S = 3
MEMBER = ("listen-client-urls", "trusted-ca-file", "peer-cert-file", "peer-key-file")
CLIENT = ("etcd-servers", "etcd-cafile", "etcd-certfile", "etcd-keyfile")
WILDCARDS = (None, "0.0.0.0", "::")  # noqa: S104 (compared with, not bound)
VARIABLES = ("ETCDCTL_ENDPOINTS", "ETCDCTL_CACERT", "ETCDCTL_CERT", "ETCDCTL_KEY")


def environment(row, directory=None):
    """
    Return the environment (dict) in which etcdctl reaches the cluster.

    row
        A row of the configuration's ``components``. The identity is that of the node's API server, or the member's own
        where the row is etcd's.
    directory
        Where the row's declared generation is drafted (``k8s_generation.draft``) or prepared, if that is the identity to
        use. Without it, and for components that have none, the live one counts.

    Raises CommandExecutionError where there is no identity.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcdctl.environment "$ROW"
    """
    etcd = row["name"] == "etcd"
    if directory and (etcd or row["name"] == "kube-apiserver"):
        flags = __salt__["k8s_generation.staged_flags"](row, directory)
    else:
        home = row["home"] if etcd else (row["api"] or {}).get("home", "")
        flags = __salt__["k8s_generation.flags"](home)
    access = [flags.get(name) for name in (MEMBER if etcd else CLIENT)]
    if not all(access):
        raise CommandExecutionError(f"no generation of {'etcd' if etcd else 'kube-apiserver'} with access to etcd is live here")
    if etcd:
        access[0] = ",".join(own_urls(row, flags))
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), **dict(zip(VARIABLES, access, strict=True))}


def own_urls(row, flags):
    """
    Return the URLs (list) at which this node's member can be asked: for one of all addresses, the node's own.

    row
        etcd's row of the configuration's ``components``.
    flags
        The member's flags (dict).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcdctl.own_urls "$ROW" '{"listen-client-urls": "https://0.0.0.0:2379"}'
    """
    found = []
    for url in filter(None, flags.get("listen-client-urls", "").split(",")):
        where = urllib.parse.urlsplit(url)
        port = f":{where.port}" if where.port else ""
        found.append(f"{where.scheme}://{_host(row['address'])}{port}" if where.hostname in WILDCARDS else url)
    return list(dict.fromkeys(found))


def whole(row, directory=None):
    """
    Return the environment (dict) in which etcdctl reaches the cluster by whichever member answers.

    row, directory
        See ``environment``, which for etcd's own row has this node's member alone: that one may be about to restart, and
        what has to outlive it (the turn) asks the members of the neighbours, too.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcdctl.whole "$ROW"
    """
    access = environment(row, directory)
    if row["name"] != "etcd":
        return access
    return access | {"ETCDCTL_ENDPOINTS": ",".join([access["ETCDCTL_ENDPOINTS"], *neighbours(row)])}


def neighbours(row):
    """
    Return the URLs (list) of the members of the other declared controllers.

    row
        etcd's row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcdctl.neighbours "$ROW"
    """
    return [f"https://{_host(address)}:{row['port']}" for address in row["neighbours"].values()]


def get(row, prefix, directory=None):
    """
    Return {key: value} of all keys that begin with ``prefix``.

    row, directory
        See ``environment``.
    prefix
        Beginning of the keys.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcdctl.get "$ROW" /kubernetes_controller/accepts/
    """
    answer = json.loads(run(row, ["get", "--prefix", "--write-out=json", prefix], whole(row, directory)))
    return {_plain(pair["key"]): _plain(pair.get("value", "")) for pair in answer.get("kvs", [])}


def put(row, key, value, directory=None):
    """
    Set a key.

    row, directory
        See ``environment``.
    key, value
        Texts; no secrets, as they are arguments of a process.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcdctl.put "$ROW" /kubernetes_controller/note hello
    """
    run(row, ["put", key, value], whole(row, directory))
    return True


def run(row, arguments, access, partly=False):
    """
    Run etcdctl and return what it prints.

    row
        A row of the configuration's ``components``, which says where etcdctl is.
    arguments
        Of the program (list).
    access
        What ``environment`` or ``whole`` returned.
    partly
        True: what it prints counts although some of several endpoints did not answer (default False).

    Raises CommandExecutionError with etcd's own reason.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcdctl.run "$ROW" '[member, list]' "$ENVIRONMENT"
    """
    command = [row["etcdctl"], f"--dial-timeout={TIMEOUT_S}s", f"--command-timeout={TIMEOUT_S}s", *arguments]
    try:
        answer = subprocess.run(command, env=access, capture_output=True, text=True, check=False, timeout=4 * TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CommandExecutionError(f"{row['etcdctl']}: {getattr(exc, 'strerror', None) or 'no answer'}") from exc
    if answer.returncode and not (partly and answer.stdout.strip()):
        raise CommandExecutionError(_reason(answer.stderr + answer.stdout))
    return answer.stdout


def health(row, directory=None):
    """
    Return for each etcd server whether it answers and has a quorum: {url: {"ok": bool, "said": str}}.

    row, directory
        See ``environment``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcdctl.health "$ROW"
    """
    access = environment(row, directory)
    servers = access["ETCDCTL_ENDPOINTS"].split(",")
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        reasons = list(pool.map(lambda server: _trouble(row, server, access), servers))
    return {server: {"ok": reason is None, "said": reason or ""} for server, reason in zip(servers, reasons, strict=True)}


def closed(server):
    """
    Return why nothing can be asked at a URL (str), or None. etcdctl would wait out its time.

    server
        The URL of a member.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcdctl.closed https://10.8.0.102:2379
    """
    where = urllib.parse.urlsplit(server)
    try:
        socket.create_connection((where.hostname, where.port or 2379), timeout=TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as exc:
        return getattr(exc, "strerror", None) or str(exc)
    return None


def greeting(server, access, timeout_s=1):
    """
    Return how a member takes this node's identity, and why: ``("refused", reason)`` if one of them does not believe the other's
    certificate or it is no TLS, ``("taken", "")``, or ``("none", reason)`` without an answer (a member that is not ready listens,
    and says nothing).

    server
        The URL of a member.
    access
        What ``environment`` or ``whole`` returned.
    timeout_s
        How long to wait for each answer, in seconds (default 1).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcdctl.greeting https://10.8.0.102:2379 "$ENVIRONMENT"
    """
    where, greeted = urllib.parse.urlsplit(server), False
    try:
        context = ssl.create_default_context(cafile=access["ETCDCTL_CACERT"])
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # brought CAs often lack the extensions that it asks for
        context.load_cert_chain(access["ETCDCTL_CERT"], access["ETCDCTL_KEY"])
        raw = socket.create_connection((where.hostname, where.port or 2379), timeout=timeout_s)
        with raw, context.wrap_socket(raw, server_hostname=where.hostname) as one:
            greeted = True
            one.recv(1)  # with TLS 1.3 a certificate is refused after the handshake
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as exc:
        return "none", str(exc)
    except ssl.SSLError as exc:
        return "refused", f"{(exc.reason or str(exc)).replace('_', ' ').lower()} (TLS)"
    except TimeoutError as exc:
        return ("taken", "") if greeted else ("none", str(exc))
    except (OSError, ValueError) as exc:
        return "none", str(exc)
    return "taken", ""


def must_answer():
    """
    Return the sentence (str) for whoever must ask etcd before going on and got no answer: how to make it answer.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcdctl.must_answer
    """
    return (
        "Nothing goes on without that answer, so let etcd answer first: `salt 'controller-*' k8s_health.status` says which "
        "member or API server does not serve, and why. Then run this again."
    )


def leads():
    """
    Return whether this node's etcd member is the leader; False, too, where that cannot be told.

    CLI Example:

    .. code-block:: bash

        salt 'controller-*' k8s_etcdctl.leads
    """
    row = __salt__["k8s_config.load"]().get("components", {}).get("etcd")
    if not row:
        return False
    try:
        return _leads(_own_status(row, environment(row))[0])
    except (KeyError, ValueError, CommandExecutionError):
        return False


def hand_over(row):
    """
    Let another member lead where this node's does. Returns that member (str, hex), or None where this one did not lead.

    A leader that stops hands over by itself, but is gone a tenth of a second later. What a member that has not heard of
    it by then passes on to the former leader is lost, and the API answers that write with 500 after 7 s. A leader that
    stays passes it on. None, too, where no other member takes over: the restart does what it can.

    row
        etcd's row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_etcdctl.hand_over "$ROW"
    """
    found = []
    try:
        status, access = _own_status(row, environment(row))
        if not _leads(status):
            return None
    except (KeyError, ValueError, CommandExecutionError):
        return None
    for server in neighbours(row):
        with contextlib.suppress(KeyError, ValueError, CommandExecutionError):
            status = _status(row, access | {"ETCDCTL_ENDPOINTS": server})
            found.append((status["raftIndex"], format(status["header"]["member_id"], "x")))
    for _, member in sorted(found, reverse=True):  # one that lags would have to catch up first, and no write is taken meanwhile
        with contextlib.suppress(CommandExecutionError):
            run(row, ["move-leader", member], access)
            return member
    return None


def _host(address):
    """Return an address as a URL has it."""
    return f"[{address}]" if ":" in address else address


def _own_status(row, access):
    """
    Return what this node's member says of itself, and the environment with the first of its URLs at which it answers.

    The live flags may name one where it listens only after its restart. Raises where it answers at none.
    """
    *others, last = [access | {"ETCDCTL_ENDPOINTS": url} for url in access["ETCDCTL_ENDPOINTS"].split(",")]
    for one in others:
        with contextlib.suppress(KeyError, ValueError, CommandExecutionError):
            return _status(row, one), one
    return _status(row, last), last


def _status(row, access):
    """Return what one member, the only one that ``access`` names, says of itself."""
    (said,) = json.loads(run(row, ["endpoint", "status", "--write-out=json"], access))
    return said["Status"]


def _leads(status):
    return status["leader"] == status["header"]["member_id"]


def _trouble(row, server, access):
    """Return why one etcd server does not answer well, or None."""
    reason = closed(server)
    if reason is not None:
        return reason
    try:
        run(row, ["endpoint", "health"], access | {"ETCDCTL_ENDPOINTS": server})
    except CommandExecutionError as exc:
        return _alert(server, access) or str(exc)
    return None


def _alert(server, access):
    """Return the TLS alert with which etcd ends a connection, or None; etcdctl often writes too soon to see it."""
    how, reason = greeting(server, access)
    return reason if how == "refused" else None


def _plain(text):
    return base64.b64decode(text).decode()


def _reason(said):
    """Return the innermost reason in what etcdctl says of a failure."""
    lines = [line for line in said.splitlines() if line.strip() and "unhealthy cluster" not in line]
    found = []
    for line in lines:
        try:
            found.append(json.loads(line)["error"] if line.startswith("{") else line)
        except (ValueError, KeyError, TypeError):
            found.append(line)
    telling = [line for line in found if "desc = " in line] or found or ["no reason given"]
    return re.sub(r"^Error: ", "", telling[0].rpartition("desc = ")[2].replace('\\"', '"').strip().strip('"'))
