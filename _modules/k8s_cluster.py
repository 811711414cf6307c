"""
The mark of a cluster: that it exists, since when, who founded it, and whose data it has. A cluster is founded once.

The master keeps the mark with the certificates and hands it out with them; nodes keep it beside etcd's generations. With
it no member ever founds an empty cluster in the place of one that is there: etcd derives the ids of a cluster from names and
URLs, so an empty one cannot be told from the former one by its ids.
"""

import datetime
import json
import os
import time

import salt.utils.files
from salt.exceptions import CommandExecutionError

FILE = "cluster.json"
FOUNDED, FOUNDING = "founded", "founding"
RENEW_S = 120  # a permission to found that is older is given again, for as long as nobody has used it


def mark(row):
    """
    Return what this node knows of its cluster (dict); {} for nothing.

    row
        etcd's or the API server's row of the configuration's ``components``.

    ``state`` is ``founding`` (the master allows the ``controllers`` to found it) or ``founded``; ``since`` and ``at`` (the same
    moment, seconds since the epoch) say when; ``members`` ({minion: id}), ``etcd_cluster`` and ``kube_system`` (a UID) whose
    data it has, as far as they are known. A cluster that exists does so whoever says it: the master or this node.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_cluster.mark "$ROW"
    """
    told = _parsed((__pillar__.get(row["pki"]["pillar"]) or {}).get(FILE))
    known = _parsed(_text(_kept(row)))
    if FOUNDED not in (told.get("state"), known.get("state")):
        return told or known
    return {**known, **told, "state": FOUNDED, "since": (known if known.get("state") == FOUNDED else told).get("since")}


def keep(row, **facts):
    """
    Keep on this node that its cluster exists. Returns whether this was new.

    row
        See ``mark``.
    facts
        What is known of it now: ``etcd_cluster``, ``kube_system`` (str).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_cluster.keep "$ROW"
    """
    present = mark(row)
    facts = {key: value for key, value in facts.items() if value and not key.startswith("__pub")}
    wanted = {**_now(), **present, **facts, "state": FOUNDED}
    if present.get("state") != FOUNDED:
        wanted |= _now()
    if _parsed(_text(_kept(row))) == wanted:
        return False
    __salt__["k8s_durable.write"](_kept(row), json.dumps(wanted, sort_keys=True) + "\n")
    return True


def report():
    """
    Return what this node knows of its cluster, for the master: ``members``, ``etcd_cluster``, ``kube_system``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_cluster.report
    """
    components = __salt__["k8s_config.load"](fresh=True).get("components", {})
    said = {}
    if "kube-apiserver" in components:
        said |= __salt__["k8s_identity.remember"](components["kube-apiserver"])
    if "etcd" in components:
        said["members"] = __salt__["k8s_etcd_members.ids"](components["etcd"])
    return {key: said[key] for key in ("members", "etcd_cluster", "kube_system") if said.get(key)}


def seen(cfg, begun=True):
    """
    Return what the master knows of the cluster, and asks the controllers as far as it does not know it.

    cfg
        The cluster's resolved configuration (dict).
    begun
        Whether the master's directory has anything of a cluster (``k8s_pki.begun``); default True.

    Only functions of Salt's own are asked, as nodes may have no modules yet. Returns ``exists``, what shows that a cluster is
    there whose CAs and keys the master does not have, in words that go on after "but" ("" for nothing), and ``mark``, what
    the master is to hand out ({} while this is not known).

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_cluster.seen "$CONFIGURATION"
    """
    present = _parsed(_text(os.path.join(cfg["pki"]["directory"], FILE)))
    if present.get("state") == FOUNDED and begun:
        return {"exists": "", "mark": present}
    links = {"kube-apiserver": f"{cfg['conf_dir']}/good"}
    if cfg["etcd"]["managed"]:
        links["etcd"] = f"{cfg['etcd']['conf_dir']}/good"
    nodes = list(cfg["controllers"])
    good = {component: __salt__["k8s_controllers.ask"](nodes, "file.is_link", link) for component, link in links.items()}
    live = f"{cfg['conf_dir']}/live"
    return {
        "exists": "" if begun else there(__salt__["k8s_controllers.ask"](nodes, "file.is_link", live), live),
        "mark": judged(present, good, time.time()),
    }


def there(answers, link):
    """
    Return what shows that the cluster is there already, in words that go on after "but"; "" for nothing. Plain function.

    answers
        {minion: whether ``link`` is there (bool); None without an answer}.
    link
        Path of the link to the API server's live generation.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_cluster.there '{"controller-1": true}' /var/lib/kubernetes/live
    """
    silent = ", ".join(node for node, said in answers.items() if said not in (True, False))
    found = ", ".join(node for node, said in answers.items() if said is True)
    if found:
        return f"kube-apiserver of this formula is live on {found} ({link})" + (
            f", and {silent} did not answer" if silent else ""
        )
    return f"{silent} did not answer whether kube-apiserver is live there (a new cluster needs all minions)" if silent else ""


def judged(present, good, now):
    """
    Return what the mark is to be (dict); {} while that is not known. Plain function.

    present
        The mark that the master has; {} for none.
    good
        {component: {minion: whether a generation of it has passed its gate there (bool); None without an answer}}.
    now
        Seconds since the epoch.

    A first rollout that was cut off is told from a cluster that exists: on no node has a component passed its gate.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_cluster.judged '{}' '{}' 0
    """
    answers = [said if said in (True, False) else None for nodes in good.values() for said in nodes.values()]
    if present.get("state") == FOUNDED:
        return present
    if True in answers:
        return {**_now(now), "state": FOUNDED}
    if None in answers:
        return present
    controllers = sorted({node for nodes in good.values() for node in nodes})
    if now - present.get("at", 0) < RENEW_S and present.get("controllers") == controllers:
        return present
    return {**_now(now), "state": FOUNDING, "controllers": controllers}


def settled(cfg):
    """
    Tell whether the master's mark says all that it can say: that the cluster exists, its members, and whose data it has.

    cfg
        See ``seen``.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_cluster.settled "$CONFIGURATION"
    """
    present = _parsed(_text(os.path.join(cfg["pki"]["directory"], FILE)))
    members = set(cfg["controllers"]) if cfg["etcd"]["managed"] else set()
    told = present.get("state") == FOUNDED and bool(present.get("kube_system")) and set(present.get("members", {})) == members
    return told and "identity" not in cfg["rollout"]["ignore"]


def learned(cfg):
    """
    Return the mark of a cluster whose rollout has ended, as its controllers report it. On the master.

    cfg
        See ``seen``.

    Raises CommandExecutionError if no controller reports, or if they report different data.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_cluster.learned "$CONFIGURATION"
    """
    present = _parsed(_text(os.path.join(cfg["pki"]["directory"], FILE)))
    said = __salt__["k8s_controllers.ask"](list(cfg["controllers"]), "k8s_cluster.report")
    told = {node: one for node, one in said.items() if isinstance(one, dict)}
    parted = parting(told)
    if parted:
        raise CommandExecutionError(parted)
    best = max(
        told.values(), key=lambda one: sum(bool(one.get(key)) for key in ("kube_system", "members", "etcd_cluster")), default=None
    )
    if not best:
        raise CommandExecutionError("no controller reported its cluster. The next rollout asks again")
    facts = {key: _plain(best[key]) for key in ("kube_system", "etcd_cluster", "members") if best.get(key)}
    return {**(present if present.get("state") == FOUNDED else _now()), **facts, "state": FOUNDED}


def parting(told):
    """
    Return the sentence, without a full stop, on controllers that serve different data; "" for none. Plain function.

    told
        {minion: what ``report`` returned}. The UID of kube-system counts, and etcd's cluster id where one has no UID.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_cluster.parting '{"controller-1": {"kube_system": "a"}, "controller-2": {"kube_system": "b"}}'
    """
    same, served = __salt__["k8s_identity.same"], {}
    if all(same(one, other) for one in told.values() for other in told.values()):
        return ""
    for node, one in told.items():
        uid = f"kube-system has the UID {one['kube_system']}" if one.get("kube_system") else ""
        served.setdefault(uid or f"etcd cluster {one.get('etcd_cluster', 'not known')}", []).append(node)
    listed = "; ".join(f"{', '.join(nodes)}: {what}" for what, nodes in served.items())
    return (
        f"the controllers serve different data ({listed}), so clients are answered from one or the other. Change nothing, and "
        "find out which are right: servers of an external etcd (kubernetes_controller:etcd:servers) have to be of one cluster; "
        'otherwise see docs/operations.md, "The members of etcd differ"'
    )


def write(pki, found):
    """
    Write the mark to the master's directory and to the share of each controller that has one. Returns the files written.

    pki
        The key ``pki`` of the cluster's resolved configuration.
    found
        The mark (dict).

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_cluster.write "$PKI" '{"state": "founded"}'
    """
    text, done = text_of(found), []
    targets = [row["target"] for row in pki["deliveries"] if row["name"] == FILE]
    for path in [os.path.join(pki["directory"], FILE), *(path for path in targets if os.path.isdir(os.path.dirname(path)))]:
        if _text(path) != text:
            __salt__["k8s_durable.write"](path, text)
            done.append(path)
    return done


def text_of(found):
    """
    Return a mark as the text that is handed out.

    found
        The mark (dict).

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_cluster.text_of '{"state": "founded"}'
    """
    return json.dumps(found, sort_keys=True) + "\n"


def _kept(row):
    return os.path.join(row["home"], FILE)


def _plain(value):
    return {str(key): str(one) for key, one in value.items()} if isinstance(value, dict) else str(value)


def _now(seconds=None):
    moment = int(time.time() if seconds is None else seconds)
    return {"since": datetime.datetime.fromtimestamp(moment, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), "at": moment}


def _parsed(text):
    try:
        found = json.loads(text or "")
    except (ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) and found.get("state") in (FOUNDED, FOUNDING) else {}


def _text(path):
    try:
        with salt.utils.files.fopen(path, encoding="utf-8") as handle:
            return handle.read()
    except OSError:
        return ""
