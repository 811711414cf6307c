"""
The identity of the data that a component serves: the UID of the namespace ``kube-system``, and etcd's cluster id.

A good generation is remembered with it. What is declared is asked before anything is prepared, what runs is asked behind the
gate: a generation that serves other data, or none, is refused. Ids of etcd say less than the UID: an empty cluster has those
of the former one if names, URLs and token are the same, and a restored one may have others.
"""

import base64
import json
import os
import re

import salt.utils.files
from salt.exceptions import CommandExecutionError

FILE = "identity.json"
NAMESPACE = "/namespaces/kube-system"
PREFIX = "/registry"  # of kube-apiserver, where --etcd-prefix says nothing else
UID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
LOST = "Clients would find none of the objects of the present cluster, and kubelets would end every pod that they do not find."


def remembered(row):
    """
    Return whose data the good generation of a component serves (dict): ``kube_system``, ``etcd_cluster``, of etcd also
    ``member`` and ``data_dir``; what is not known is missing.

    row
        A row of the configuration's ``components``. What the node does not remember itself the mark of the cluster tells.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_identity.remembered "$ROW"
    """
    found = _stored(os.path.join(row["home"], FILE))
    told = _known(__salt__["k8s_cluster.mark"](row), "kube_system", "etcd_cluster")
    return {**told, **(found if isinstance(found, dict) else {})}


def remember(row):
    """
    Remember whose data the live generation of a component serves. Returns it (dict); {} if that is not known.

    row
        A row of the configuration's ``components``. Components without data of their own have nothing to remember.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_identity.remember "$ROW"
    """
    found = served(row)
    if row["name"] == "kube-apiserver":
        found = {**_known(_ask_etcd(row), "etcd_cluster", "kube_system"), **found}
    if not found.get("kube_system") and not found.get("etcd_cluster"):
        return {}
    path = os.path.join(row["home"], FILE)
    if _stored(path) != found:
        __salt__["k8s_durable.write"](path, json.dumps(found, sort_keys=True) + "\n")
    __salt__["k8s_cluster.keep"](row, **_known(found, "kube_system", "etcd_cluster"))
    return found


def learn(row):
    """
    Remember whose data a component serves that is as declared, if that was not remembered yet. Returns whether it was.

    row
        A row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_identity.learn "$ROW"
    """
    if row["name"] not in ("etcd", "kube-apiserver"):
        return False
    if (_stored(os.path.join(row["home"], FILE)) or {}).get("kube_system"):
        return False
    return bool(remember(row))


def served(row):
    """
    Return whose data a component serves now (dict, see ``remembered``), as far as it says so.

    row
        A row of the configuration's ``components``. One without data of its own returns {}.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_identity.served "$ROW"
    """
    if row["name"] == "kube-apiserver":
        return _known({"kube_system": _uid_by_api(row), "prefix": _prefix(row)}, "kube_system", "prefix")
    if row["name"] != "etcd":
        return {}
    flags = __salt__["k8s_generation.flags"](row["home"])
    found = {**_ask_etcd(row), "data_dir": flags.get("data-dir"), "wal_dir": flags.get("wal-dir")}
    return _known(found, "kube_system", "etcd_cluster", "member", "data_dir", "wal_dir")


def refusals(changing, drafts):
    """
    Return why declared generations must not take the place of the live ones: they would serve other data (list of sentences).

    changing
        Rows (dict) of those components that are to change.
    drafts
        {component: directory} where their declared generations are drafted.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_identity.refusals '{}' '{}'
    """
    row = changing.get("kube-apiserver")
    if not row or "identity" in row["ignore"]:
        return []
    live, declared = __salt__["k8s_generation.flags"](row["home"]), _ask_etcd(row, drafts[row["name"]])
    adopted = {} if live else __salt__["k8s_clients.adopted"](row)
    if adopted:
        asked = _ask(row, _access(adopted), adopted.get("etcd-prefix", PREFIX))
        said = judged({**asked, **remembered(row)}, declared, adopted, row["settings"])
        said = said or unlike(asked, declared, adopted, row["settings"])
    else:
        known = remembered(row) or ({**_ask_etcd(row), **served(row)} if live else {})
        said = judged(known, declared, live, row["settings"])
    return [f"{one} {__salt__['k8s_skew.override']('identity')}" for one in said]


def judged(known, declared, live, settings):
    """
    Compare the data of the cluster with those that a declared API server would serve (list of sentences). Plain function.

    known
        Whose data the cluster has (see ``remembered``); {} if there is nothing to compare with.
    declared
        What etcd says at the declared servers: ``clusters`` (ids, list), ``empty`` (no namespace ``kube-system`` there), and
        ``kube_system``; {} without an answer.
    live, settings
        Flags (dict) of the live generation ({} for none) and of the declared one.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_identity.judged '{}' '{}' '{}' '{}'
    """
    found = []
    old, new = (flags.get("etcd-prefix", PREFIX) for flags in (live, settings))
    key = "kubernetes_controller:apiserver:settings:etcd-prefix" if live and old != new else "kubernetes_controller:etcd:servers"
    what = f"{new} (live: {old})" if live and old != new else "the declared servers"
    if len(declared.get("clusters", [])) > 1:
        found.append(
            f"kubernetes_controller:etcd:servers: the declared servers are of {len(declared['clusters'])} etcd clusters (ids "
            f"{', '.join(declared['clusters'])}), so each request would be answered by one or the other. {LOST}"
        )
    elif declared.get("empty") and (known.get("kube_system") or known.get("empty") is False):
        found.append(
            f"{key}: {what}: there is no namespace kube-system, so this is not the data of the cluster, whose kube-system has "
            f"the UID {known.get('kube_system') or 'that is encrypted'}. {LOST} Lead the API server to the data of this cluster."
        )
    elif not same(known, declared):
        found.append(
            f"{key}: {what}: these are other data ({_said(declared)}) than those of this cluster ({_said(known)}). {LOST} "
            "Lead the "
            "API server to the data of this cluster."
        )
    flag = "etcd-servers-overrides"
    if live and live.get(flag) != settings.get(flag):
        found.append(
            f"kubernetes_controller:apiserver:settings:{flag}: {settings.get(flag, 'none')} (live: {live.get(flag, 'none')}): "
            "what "
            "is stored of these resources stays where it is, and clients would not find it any more. Copy it first."
        )
    return found


def unlike(known, declared, process, settings):
    """
    Compare the flags of an API server that is to be adopted with the declared ones, where its data or the declared ones could
    not be asked (list of sentences). Plain function.

    known, declared, settings
        See ``judged``.
    process
        Flags (dict) of the process to be adopted.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_identity.unlike '{}' '{}' '{"etcd-prefix": "/registry2"}' '{}'
    """
    if known and declared:
        return []
    found, keys = [], {"etcd-prefix": "apiserver:settings:etcd-prefix", "etcd-servers": "etcd:servers"}
    for flag, key in keys.items():
        old, new = (_places(flags, flag) for flags in (process, settings))
        if old != new:
            found.append(
                f"kubernetes_controller:{key}: {', '.join(sorted(new)) or 'none'} (the process to be adopted has "
                f"{', '.join(sorted(old)) or 'none'}), and etcd could not be asked whether these are the same data. {LOST} "
                "Declare what it has."
            )
    return found


def differs(row):
    """
    Return how the data behind a component's new process differ from those that the good generation served (a sentence), or
    None.

    row
        A row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_identity.differs "$ROW"
    """
    if "identity" in row["ignore"] or row["name"] not in ("etcd", "kube-apiserver"):
        return None
    known = remembered(row)
    found = served(row) if known else {}
    if found and same(known, found):
        found = {} if not known.get("kube_system") or not _is_empty(row) else {"empty": True}
    if not found:
        return None
    return f"it serves other data ({_said(found)}) than this cluster's ({_said(known)})"


def same(one, other):
    """
    Tell whether two identities can be those of the same data. Plain function.

    one, other
        See ``remembered``. What is not known on both sides is no difference; the UID counts more than etcd's id.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_identity.same '{"kube_system": "a"}' '{"kube_system": "b"}'
    """
    for key in ("kube_system", "etcd_cluster"):
        if one.get(key) and other.get(key):
            return one[key] == other[key]
    return True


def _said(found):
    if found.get("empty"):
        return "none: there is no namespace kube-system"
    parts = [f"kube-system has the UID {found['kube_system']}"] if found.get("kube_system") else []
    parts += [f"etcd cluster {found['etcd_cluster']}"] if found.get("etcd_cluster") else []
    return ", ".join(parts) or "not known"


def _prefix(row, directory=None):
    """Return the prefix of the API server's data; for etcd's own row that of the API server beside it."""
    if row["name"] == "kube-apiserver":
        flags = row["settings"] if directory else __salt__["k8s_generation.flags"](row["home"])
    else:
        flags = __salt__["k8s_generation.flags"](row["api"]["home"]) if row["api"] else {}
    return flags.get("etcd-prefix", PREFIX)


def _is_empty(row):
    """
    Tell whether the member of etcd that runs here has not the namespace that the live API server beside it asks for.

    All that was written before counts, so one that has not caught up yet is waited for; a learner cannot be asked so, and gives
    no answer.
    """
    if row["name"] != "etcd" or not row["api"] or not __salt__["k8s_generation.flags"](row["api"]["home"]):
        return False
    try:
        return _ask(row, __salt__["k8s_etcdctl.environment"](row), _prefix(row), "l").get("empty", False)
    except CommandExecutionError:
        return False


def _places(flags, flag):
    """Return the servers (set) that flags name, or the prefix."""
    if flag == "etcd-prefix":
        return {"/" + flags.get(flag, PREFIX).strip("/")}
    given = flags.get(flag, "")
    given = given if isinstance(given, list) else [given]
    return {one.strip().rstrip("/") for text in given for one in text.split(",") if one.strip()}


def _access(flags):
    """Return the environment in which etcdctl asks what an API server with ``flags`` asks."""
    names = ("etcd-cafile", "etcd-certfile", "etcd-keyfile")
    files = dict(zip(("ETCDCTL_CACERT", "ETCDCTL_CERT", "ETCDCTL_KEY"), (flags.get(name) for name in names), strict=True))
    servers = ",".join(sorted(_places(flags, "etcd-servers")))
    return {
        "PATH": os.environ.get("PATH", ""),
        "ETCDCTL_ENDPOINTS": servers,
        **{key: file for key, file in files.items() if file},
    }


def _ask_etcd(row, directory=None):
    """Ask etcd, as a generation of this node does, for its cluster ids and the namespace kube-system (see ``_ask``)."""
    try:
        access = __salt__["k8s_etcdctl.environment"](row, directory)
    except CommandExecutionError:
        return {}
    return _ask(row, access, _prefix(row, directory))


def _ask(row, access, prefix, consistency="s"):
    """Ask etcd for its cluster ids, and for the namespace kube-system as it is stored; {} without an answer."""
    above = f"/{prefix.strip('/')}" if prefix.strip("/") else ""
    arguments, told = ["get", f"{above}{NAMESPACE}", f"--consistency={consistency}", "--write-out=json"], []
    for server in access["ETCDCTL_ENDPOINTS"].split(","):
        try:
            if not __salt__["k8s_etcdctl.closed"](server):
                told.append(json.loads(__salt__["k8s_etcdctl.run"](row, arguments, {**access, "ETCDCTL_ENDPOINTS": server})))
        except (CommandExecutionError, ValueError):
            continue  # what etcd itself lacks is told elsewhere
    if not told:
        return {}
    stored = next((one["kvs"][0] for one in told if one.get("kvs")), None)
    uid = UID.search(base64.b64decode(stored.get("value", ""))) if stored else None
    clusters = list(dict.fromkeys(format(one["header"]["cluster_id"], "x") for one in told))
    return {
        "clusters": clusters,
        "etcd_cluster": clusters[0],
        "member": format(told[0]["header"]["member_id"], "x"),
        "kube_system": uid[0].decode() if uid else None,  # where namespaces are encrypted it cannot be read
        "empty": stored is None,
    }


def _known(found, *names):
    return {name: found[name] for name in names if found.get(name)}


def _uid_by_api(row):
    """Return the UID of kube-system as this node's API server tells it, or None."""
    try:
        answer = __salt__["k8s_health.api"](row, f"/api/v1{NAMESPACE}")
        return json.loads(answer["body"])["metadata"]["uid"] if answer["status"] == 200 else None
    except (OSError, ValueError, KeyError, CommandExecutionError):
        return None


def _stored(path):
    try:
        with salt.utils.files.fopen(path, encoding="utf-8") as handle:
            return json.load(handle)
    except (OSError, ValueError):
        return None
