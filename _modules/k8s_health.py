"""
The gate: does a component really run, and is it really the generation that is live?

Everything is asked at the address and port that the live flags bind, verified against the generation's own CA, and
only the status 200 counts. Proxies of the environment are never used.
"""

import contextlib
import datetime
import http.client
import json
import os
import ssl
import time
import urllib.parse

from salt.exceptions import CommandExecutionError

TIMEOUT_S = 5
FULL_LOOK_S = 2
WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 (compared with, not bound)
# The API server believes the names that its own front proxy certificate presents (requestheader flags), so the
# gate needs no credentials beyond those that the API server has.
FORMULA_USER = {"X-Remote-User": "kubernetes-controller-formula", "X-Remote-Group": "system:masters"}


def status():
    """
    Return a table of this node's components: what each says of itself at the address it really binds, and certificates
    that end within ``pki:days_warning`` days (of short-lived ones, in the last sixth of their time).

    The return code is not zero when something is not healthy. ``kubectl get componentstatuses`` should have shown
    this, but asks 127.0.0.1 whatever the flags say.

    CLI Example:

    .. code-block:: bash

        salt '*' k8s_health.status
    """
    cfg = __salt__["k8s_config.load"](fresh=True)
    if "errors" in cfg:
        __context__["retcode"] = 1
        return {"pillar": cfg["errors"]}
    table = {name: _verdict(probe(row)) for name, row in cfg["components"].items()}
    ending = __salt__["k8s_certificate.expiry"](within_days=cfg["pki"]["days_warning"], short_lived=True)
    for component, files in ending.items():
        table[f"certificates of {component}"] = "NOT OK  " + "; ".join(f"{file} has {words}" for file, words in files.items())
    for number, fault in enumerate(sum(members(cfg["components"]).values(), []), 1):
        table[f"members of etcd ({number})"] = f"NOT OK  {fault}"
    if not cfg["etcd"]["managed"] and "kube-apiserver" in cfg["components"]:
        servers = _etcd_servers(cfg["components"]["kube-apiserver"])
        table |= {f"etcd {server}": _verdict(answer) for server, answer in servers.items()}
    # At the very end: each command that a probe runs sets it, too.
    __context__["retcode"] = int(not all(said.startswith("ok") for said in table.values()))
    return table


def members(components, patience_s=0):
    """
    Return what is not in order with the members of etcd: lists of sentences, ``lasting`` until somebody does something, and
    ``passing``; of an external one, whether its servers are of several clusters.

    components
        The configuration's ``components`` (dict of rows).
    patience_s
        How long a member may be silent, in seconds (default 0).

    The members of a managed etcd are those that etcd itself lists, whatever the pillar declares. If this node's member does
    not run nothing is asked, as its own row says so.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_health.members "$COMPONENTS"
    """
    row, api, found = components.get("etcd"), components.get("kube-apiserver"), {}
    if api and not api["etcd_managed"]:
        found = {"lasting": __salt__["k8s_etcd_members.external_problems"](api)}
    elif row and serves(row):
        found = __salt__["k8s_etcd_members.problems"](row, patience_s)
    return {"lasting": [], "passing": [], **found}


def _verdict(answer):
    return f"{'ok' if answer['ok'] else 'NOT OK'}  {answer['said']}"


def probe(row, since=None, thorough=False):
    """
    Ask one component once. Returns ``ok`` (bool) and ``said`` (str: what was found, fit for an operator).

    row
        A row of the configuration's ``components``; flags are read from the generation that is live.
    since
        The main process must have started after this moment (in seconds of ``time.monotonic``, which no clock that is
        set can move).
    thorough
        Ask also what costs the component something: which encryption configuration is in use (default False).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_health.probe "$ROW"
    """
    flags = _flags(row)
    if not flags:
        return _no("not installed: no generation is live")
    found = __salt__["k8s_component.process"](_unit(row))
    if not found["pid"]:
        complaint = __salt__["k8s_component.complaint"](_unit(row))
        return _no(f"no process (unit is {found['state']})" + (f": {complaint}" if complaint else ""))
    if since is not None and (found["started"] or 0) < since:
        return _no("the former process still runs")
    released = __salt__["k8s_generation.release"](row["home"])
    if found["binary"] and os.path.basename(found["binary"]).split(" ")[0] != row["name"]:
        return _no(f"process {found['pid']} is not {row['name']}, but {found['binary']}")
    if found["binary"] and f"/{released}/" not in found["binary"] and row["binary_managed"]:
        return _no(f"process {found['pid']} runs {found['binary']}, not release {released}")
    if __salt__["k8s_component.replaced"](row, found["pid"]):
        return _no(f"process {found['pid']} was started from another binary than release {released}'s; a run restarts it")
    try:
        said = CHECKS[row["name"]](row, flags, thorough)
    except (OSError, ssl.SSLError, http.client.HTTPException, ValueError, KeyError, CommandExecutionError) as exc:
        return _no(f"{_where(row, flags)}: {exc or type(exc).__name__}")
    return {"ok": True, "said": f"{_where(row, flags)}  {released}  {said}".rstrip()}


def wait(row, since=None, timeout_s=None, consecutive=None, thorough=None):
    """
    Ask a component until it has answered well ``consecutive`` times in a row, or until ``timeout_s`` seconds passed.

    row
        A row of the configuration's ``components``; its ``gate`` has the defaults.
    since
        See ``probe``.
    timeout_s, consecutive
        Other than the gate's; with ``consecutive`` the probes are not thorough and no window has to pass.
    thorough
        See ``probe``; by default the opposite of whether ``consecutive`` is given.

    Returns ``ok``, ``said`` (the last answer; on failure with the telling line of the journal), ``seconds``, and
    ``away_s``, the seconds in which it did not answer its probe, as far as this was seen.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_health.wait "$ROW" timeout_s=10
    """
    gate = row["gate"] if consecutive is None else {**row["gate"], "consecutive": consecutive, "window_s": 0}
    thorough = consecutive is None if thorough is None else thorough
    deadline = time.monotonic() + (gate["timeout_s"] if timeout_s is None else timeout_s)
    started, in_a_row, steady, restarts, looked = time.monotonic(), 0, None, None, 0
    away, seen = 0.0, None
    while True:
        # A component that starts needs the processors itself: it is asked in full only when it answers at all.
        due, answers = time.monotonic() - looked > FULL_LOOK_S, serves(row)
        away += time.monotonic() - seen if seen and not answers else 0
        seen = time.monotonic()
        if due or in_a_row or answers:
            answer = probe(row, since=since, thorough=thorough)
            in_a_row, steady = (in_a_row + 1, steady or time.monotonic()) if answer["ok"] else (0, None)
            if in_a_row >= gate["consecutive"] and time.monotonic() - steady >= gate["window_s"]:
                break
        if due:
            looked = time.monotonic()
            found = __salt__["k8s_component.process"](_unit(row))
            restarts = found["restarts"] if restarts is None else restarts
        if time.monotonic() > deadline or found["restarts"] > restarts + 3 or found["state"] == "failed":
            complaint = __salt__["k8s_component.complaint"](_unit(row), since=since)
            said = answer["said"] + (f" (journal: {complaint})" if complaint and complaint not in answer["said"] else "")
            answer = {"ok": False, "said": said if not answer["ok"] else f"not steady: {said}"}
            break
        time.sleep(gate["interval_s"])
    return {**answer, "seconds": round(time.monotonic() - started, 1), "away_s": round(away, 1)}


def api(row, path, method="GET", body=None, content_type="application/json"):
    """
    Ask this node's API server as the formula, which its front proxy certificate allows. Returns status and body.

    row
        The row of kube-apiserver in the configuration's ``components``.
    path, method, body, content_type
        The request; ``body`` is a str.

    Raises CommandExecutionError when the API server has no front proxy certificate, and OSError when it does not answer.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_health.api "$ROW" /version
    """
    flags = _flags(row)
    if not flags:
        raise ConnectionError("no generation of the API server is live")
    pair = (flags.get("proxy-client-cert-file"), flags.get("proxy-client-key-file"))
    if not all(pair) or "requestheader-client-ca-file" not in flags:
        raise CommandExecutionError(
            "the API server has no front proxy certificate (flags proxy-client-cert-file, proxy-client-key-file and "
            "requestheader-client-ca-file), so the formula cannot ask it"
        )
    headers = {**FORMULA_USER, "Content-Type": content_type, "Accept": "application/json"}
    try:
        answer = _ask(row, flags, path, method=method, body=body, headers=headers, pair=pair)
    except http.client.InvalidURL as exc:
        raise CommandExecutionError(f"{path!r} is no path that can be asked for: {exc}") from exc
    except http.client.HTTPException as exc:
        raise ConnectionError(f"{path}: the API server's answer broke off: {str(exc) or type(exc).__name__}") from exc
    return {"status": answer["status"], "body": answer["body"]}


def lease(row, link="live"):
    """
    Return the leader lease that a component has to take, as NAMESPACE/NAME; "" where it elects no leader.

    row
        A row of the configuration's ``components``.
    link
        The generation, as seen from the row's home: another one than the declared may name another lease, unless the
        operator named it (``probe:lease``).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_health.lease "$ROW"
    """
    taken = row["probe"].get("lease", "")
    if row["probe"].get("by_flags"):
        flags, config = __salt__["k8s_generation.flags"](row["home"], link=link), None
        file = flags.get("config", "")
        if file.startswith(f"{row.get('stands_for', row['home'])}/live/"):
            file = os.path.join(row["home"], link, os.path.basename(file))
        with contextlib.suppress(OSError, ValueError), open(file, encoding="utf-8") as handle:
            config = handle.read()
        taken = __salt__["k8s_config.lease"](row["name"], flags, config)
    return taken if "/" in taken or not taken else f"kube-system/{taken}"


# -- what each component has to show ----------------------------------------------------------------------------------


def _check_apiserver(row, flags, thorough):
    _expect_ok(row, flags, row["probe"]["path"])
    version = json.loads(_formula_gets(row, "/version"))["gitVersion"]
    released = __salt__["k8s_generation.release"](row["home"])
    if version.removeprefix("v") != released:
        raise ValueError(f"says it is {version}, not {released}")
    other = None if "stands_for" in row else __salt__["k8s_identity.differs"](row)
    if other:
        raise ValueError(other)
    if thorough and flags.get("encryption-provider-config-automatic-reload") == "true":
        file = os.path.basename(flags["encryption-provider-config"])
        wanted = "sha256:" + __salt__["k8s_generation.sha256"](row["home"], file)
        if wanted not in _metric_hashes(_formula_gets(row, "/metrics")):
            raise ValueError("the encryption configuration in use is not the live one")
    return ""


def _check_controller(row, flags, thorough):
    _expect_ok(row, flags, row["probe"]["path"])
    return _leader(row)


def _check_etcd(row, flags, thorough):
    answer = _expect_ok(row, flags, row["probe"]["path"], pair=(flags["peer-cert-file"], flags["peer-key-file"]))
    if '"health":"true"' not in answer["body"]:
        raise ValueError(f"{row['probe']['path']} said {answer['body'].strip()[:200]}")
    return ""


CHECKS = {
    "kube-apiserver": _check_apiserver,
    "kube-controller-manager": _check_controller,
    "kube-scheduler": _check_controller,
    "etcd": _check_etcd,
}


def _expect_ok(row, flags, path, pair=None):
    """Ask for ``path``; raise unless it answers 200 with the certificate of the live generation."""
    answer = _ask(row, flags, path, pair=pair)
    if answer["status"] != 200:
        failed = [line for line in answer["body"].splitlines() if line.startswith("[-]")]
        raise ValueError(f"{path} said {answer['status']} {'; '.join(failed) or answer['body'].strip()[:200]}")
    certificate = flags.get("tls-cert-file") or flags.get("cert-file")
    if certificate and answer["certificate"] != _first_certificate(certificate):
        raise ValueError("it serves another certificate than the live one")
    return answer


def _first_certificate(path):
    end = "-----END CERTIFICATE-----"
    with open(path, encoding="utf-8") as handle:
        return ssl.PEM_cert_to_DER_cert(handle.read().partition(end)[0] + end)


def _formula_gets(row, path):
    answer = api(row, path)
    if answer["status"] != 200:
        raise ValueError(f"{path} said {answer['status']} {answer['body'].strip()[:200]}")
    return answer["body"]


def _metric_hashes(text):
    name = "apiserver_encryption_config_controller_last_config_info"
    return {
        label.split('"')[1]
        for line in text.splitlines()
        if line.startswith(name + "{")
        for label in line[line.index("{") + 1 : line.index("}")].split(",")
        if label.startswith("hash=")
    }


def _leader(row):
    """Return who holds the component's leader lease, read through this node's API server; raise unless it is renewed."""
    namespace, _, name = lease(row).partition("/")
    if not row["api"] or not name:
        return ""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}"
    found = json.loads(_formula_gets(row["api"], path))["spec"]
    renewed = datetime.datetime.fromisoformat(found["renewTime"].replace("Z", "+00:00"))
    age = (datetime.datetime.now(datetime.timezone.utc) - renewed).total_seconds()
    holder = found.get("holderIdentity", "")
    if not holder or age > found["leaseDurationSeconds"]:
        raise ValueError(f"leader lease {name} was last renewed {age:.0f} s ago by {holder or 'nobody'}")
    return f"leader {holder.partition('_')[0]}"


def _etcd_servers(row):
    """Ask each etcd server of the live API server, with the API server's own identity."""
    flags = _flags(row)
    answers = {}
    for server in filter(None, flags.get("etcd-servers", "").split(",")):
        try:
            where = urllib.parse.urlsplit(server)
            pair = (flags["etcd-certfile"], flags["etcd-keyfile"])
            answer = _request(where.hostname, where.port or 2379, "/health", flags["etcd-cafile"], pair)
            ok = answer["status"] == 200 and '"health":"true"' in answer["body"]
            answers[server] = {"ok": ok, "said": "" if ok else answer["body"].strip()[:200]}
        except (OSError, ssl.SSLError, http.client.HTTPException, KeyError, ValueError) as exc:
            answers[server] = _no(str(exc))
    return answers


# -- asking -----------------------------------------------------------------------------------------------------------


def _unit(row):
    return row.get("unit_name", row["name"])


def _flags(row):
    """Return the live flags; files of a row that stands for another home (a rehearsal's) are where they lie now."""
    flags = __salt__["k8s_generation.flags"](row["home"])
    if "stands_for" in row:
        former = {"home": row["stands_for"], "settings": flags}
        flags = __salt__["k8s_generation.staged_flags"](former, os.path.join(row["home"], "live"))
    return flags


def _no(reason):
    return {"ok": False, "said": reason}


def _bound(row, flags):
    """Return the address and port at which the live flags let the component be asked."""
    if flags.get("listen-client-urls"):
        where = urllib.parse.urlsplit(__salt__["k8s_etcdctl.own_urls"](row, flags)[0])
        return where.hostname, where.port
    address = flags.get("bind-address", "")
    return row["address"] if address in WILDCARDS else address, int(flags.get("secure-port", row["port"]))


def _where(row, flags):
    address, port = _bound(row, flags)
    return f"https://[{address}]:{port}" if ":" in address else f"https://{address}:{port}"


def _authority(row, flags):
    """Return the CA file to verify the component against; None where it makes its own certificate."""
    if row["name"] == "etcd":
        return flags["trusted-ca-file"]
    return os.path.join(row["home"], "live", "ca.crt") if "tls-cert-file" in flags else None


def _ask(row, flags, path, method="GET", body=None, headers=None, pair=None, verify=True):
    address, port = _bound(row, flags)
    return _request(address, port, path, _authority(row, flags) if verify else None, pair, method, body, headers)


def ask(address, port, path, authority=None, pair=None):
    """
    Make one GET request with TLS; return ``status`` and ``body``.

    address, port, path
        Where.
    authority
        File of the CA to verify against; None for not at all.
    pair
        Files of a client certificate and its key (list or tuple).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_health.ask 10.8.0.102 6443 /readyz /var/lib/kubernetes/live/ca.crt
    """
    answer = _request(address, port, path, authority, pair)
    return {"status": answer["status"], "body": answer["body"]}


def serves(row, patience_s=0):
    """
    Tell whether a component answers its probe right now, whatever generation it runs.

    row
        A row of the configuration's ``components``.
    patience_s
        How long one that runs may be silent until it counts as one that does not serve, in seconds (default 0).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_health.serves "$ROW"
    """
    flags = _flags(row)
    if not flags:
        return False
    pair = (flags["peer-cert-file"], flags["peer-key-file"]) if row["name"] == "etcd" else None
    deadline = time.monotonic() + patience_s
    while True:
        with contextlib.suppress(OSError, ssl.SSLError, http.client.HTTPException):
            if _ask(row, flags, row["probe"]["path"], pair=pair, verify=False)["status"] == 200:
                return True
        if time.monotonic() >= deadline or not __salt__["k8s_component.process"](_unit(row))["pid"]:
            return False
        time.sleep(0.5)


def foreign_serves(row, directory):
    """
    Tell whether what runs in a component's place, and was not started by this formula, serves right now.

    row
        A row of the configuration's ``components``.
    directory
        Its generation that is prepared, with the identity by which etcd is asked.

    It is asked at the declared port, on the node's address and on the loopback. It is not known whom it answers and what,
    so all but silence and an error of its own (5xx) counts.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_health.foreign_serves "$ROW" /var/lib/kubernetes/generations/3f9c0d1e2b3a4c5d
    """
    flags = __salt__["k8s_generation.staged_flags"](row, directory)
    pair = (flags["peer-cert-file"], flags["peer-key-file"]) if row["name"] == "etcd" else None
    for address in (row["address"], "127.0.0.1"):
        try:
            if _request(address, row["port"], row["probe"]["path"], None, pair)["status"] < 500:
                return True
        except (ssl.SSLError, ConnectionResetError):  # it wants another client than this one
            return True
        except (OSError, http.client.HTTPException):
            continue
    return False


def _request(address, port, path, authority, pair=None, method="GET", body=None, headers=None):
    """Make one request on a connection of its own; return status, body and the certificate served (DER)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the default context reads all CAs of the system where it is given none
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # brought CAs often lack the extensions that it asks for
    if authority is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        context.load_verify_locations(cafile=authority)
    if pair:
        context.load_cert_chain(*pair)
    connection = http.client.HTTPSConnection(address, port, timeout=TIMEOUT_S, context=context)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        certificate = connection.sock.getpeercert(binary_form=True)
        answer = connection.getresponse()
        return {
            "status": answer.status,
            "body": answer.read().decode("utf-8", "replace"),
            "certificate": certificate,
        }
    finally:
        connection.close()
