"""
The declared controllers as the master meets them: who answers, whose pillar is in order, and who holds what he was given.

``holds`` is what a controller tells of itself. All else is asked on the master, at the begin of an orchestration and again
when its files have changed, so that nothing goes on from what did not arrive.
"""

import hashlib
import os
import time

import salt.cache
import salt.key
import salt.utils.files

ANSWER_S = 20  # Salt's own 5 s are too few for nodes that are busy
DELIVERY_S = 30
PAUSE_S = 2
NO_ANSWER = "Minion did not return"
KINDS = ("modules", "states")  # what minions have of the formula
LABEL = "kubernetes-controller-formula"
KEYS = {
    "minions": "Its key is accepted. Let salt-minion run there and reach this master (`salt {node} test.ping`).",
    "minions_pre": "Its key waits to be accepted: `salt-key -a {node}`.",
    "minions_rejected": "Its key was rejected (`salt-key -L`).",
    "minions_denied": "Its key was denied, as another one of that id is known (`salt-key -L`).",
}


def holds():
    """
    Return what this controller finds in its pillar, asked for at this moment.

    A dictionary: ``formula`` (see there), ``errors`` (sentences; all else is missing then), ``controllers`` as its pillar
    declares them, and ``files``: of each file that the master handed out a SHA-256 with a label before it, never the content.

    CLI Example:

    .. code-block:: bash

        salt 'controller-*' k8s_controllers.holds
    """
    pillar = __salt__["k8s_config.present_pillar"]()
    cfg = __salt__["k8s_config.load"](pillar=pillar)
    if "errors" in cfg:
        return {"formula": formula(), "errors": cfg["errors"]}
    given = pillar.get(cfg["pki"]["pillar"])
    files = {name: text for name, text in given.items() if isinstance(text, (str, bytes))} if isinstance(given, dict) else {}
    marks = {name: mark(text) for name, text in files.items()}
    return {"formula": formula(), "errors": [], "controllers": cfg["controllers"], "files": marks}


def formula():
    """
    Return a SHA-256 (str) over the modules and states of the formula that this minion or master has.

    CLI Example:

    .. code-block:: bash

        salt 'controller-*' k8s_controllers.formula
    """
    total = hashlib.sha256()
    for kind in KINDS:
        directory = os.path.join(__opts__["extension_modules"], kind)
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
            if name.startswith("k8s_") and name.endswith(".py"):
                with salt.utils.files.fopen(os.path.join(directory, name), "rb") as handle:
                    total.update(f"{kind}/{name} ".encode() + hashlib.sha256(handle.read()).digest())
    return total.hexdigest()


def mark(text):
    """
    Return by what a file is compared (str): a SHA-256 with a label before it, which white space at its ends does not change.

    text
        The content (str or bytes).

    CLI Example:

    .. code-block:: bash

        salt-call --local k8s_controllers.mark "$(cat apiserver.crt)"
    """
    content = text.encode() if isinstance(text, str) else text
    return hashlib.sha256(LABEL.encode() + b" file " + content.strip()).hexdigest()


# -- on the master ----------------------------------------------------------------------------------------------------


def ask(nodes, function, *arguments):
    """
    Ask minions on the master; return {minion: answer}, None where there is no answer.

    nodes
        Minion ids (list).
    function, arguments
        What to call there.

    One that did not answer is not waited for again by this run. Salt may return before the time is up without some of them
    (seen after a restart of the master, for minions whose keys are accepted); those are asked again.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_controllers.ask '["controller-1", "controller-2"]' service.status kube-apiserver
    """
    silent, said = __context__.setdefault("k8s_controllers_silent", []), {}
    lacking, deadline = [node for node in nodes if node not in silent], time.monotonic() + ANSWER_S
    while lacking:
        returned = __salt__["saltutil.cmd"](lacking, function, tgt_type="list", arg=list(arguments), timeout=ANSWER_S)
        for node, one in returned.items():
            if "ret" in one and not str(one["ret"]).startswith(NO_ANSWER):  # what a function answers may be None, too
                said[node] = one["ret"]
        lacking = [node for node in lacking if node not in said]
        reachable = _keys().get("minions", ()) if lacking and time.monotonic() < deadline else ()
        silent += [node for node in lacking if node not in reachable]
        lacking = [node for node in lacking if node in reachable]
        time.sleep(PAUSE_S if lacking else 0)
    return {node: said.get(node) for node in nodes}


def silence(node, known=None):
    """
    Return a sentence on a declared controller that did not answer, with what this master knows of its key.

    node
        Its minion id.
    known
        Keys (list of minion ids) by their state, as in ``salt-run salt.wheel``'s ``key.list_all`` (default: this master's).

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_controllers.silence controller-9
    """
    known = _keys() if known is None else known
    state = next((state for state in KEYS if node in known.get(state, ())), None)
    said = f"kubernetes_controller:controllers:{node}: the minion did not answer within {ANSWER_S} s"
    if state:
        return f"{said}. {KEYS[state].format(node=node)}"
    accepted = known.get("minions") or []
    some = ", ".join(accepted[:10]) + (f" and {len(accepted) - 10} more" if len(accepted) > 10 else "")
    nearest = __salt__["k8s_declared.nearest"](node, accepted)
    said += f": this master has no key of that id{nearest if 'nearest' in nearest else ''}."
    return f"{said} Correct the id, or accept the key of that minion (accepted: {some or 'none'})."


def _keys():
    try:
        with salt.key.get_key(__opts__) as keys:
            return keys.list_keys()
    except Exception:  # noqa: BLE001 (a hint; whatever keeps its keys elsewhere)
        return {}


def forget(nodes):
    """
    Empty the master's pillar cache for minions, where it has one (``pillar_cache: True``), and return whether it has.

    nodes
        Minion ids (list); the master's own id is one, too.

    What the master hands out is part of the pillar: from such a cache nobody would get it before an hour has passed.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_controllers.forget '["controller-1"]'
    """
    if not __opts__.get("pillar_cache"):
        return False
    cache = _pillar_cache()
    for key in cache.list("pillar"):
        if key.partition(":")[0] in nodes:  # MINION or MINION:PILLARENV
            cache.flush("pillar", key)
    return True


def _pillar_cache():
    return salt.cache.factory(__opts__, driver=__opts__.get("pillar.cache_driver"), expires=__opts__.get("pillar_cache_ttl"))


def outdated():
    """
    Tell, on the master, whether this run has got a pillar from the master's pillar cache that is not the present one.

    The cache is emptied for the master's own id with it, so that the next run has the present one.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_controllers.outdated
    """
    if not __opts__.get("pillar_cache"):
        return False
    name = __opts__["id"] if not __opts__.get("pillarenv") else f"{__opts__['id']}:{__opts__['pillarenv']}"
    used = _pillar_cache().fetch("pillar", name)
    forget([__opts__["id"]])
    present = __salt__["k8s_config.present_pillar"]()
    key = "kubernetes_controller"
    return bool(used) and used.get(key) != present.get(key)


def behind(answers):
    """
    Return the minions (list) that have other modules and states of the formula than this master, or none.

    answers
        What ``hear`` returned. One that did not answer is none of them.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_controllers.behind '{"controller-1": null}'
    """
    ours = formula()
    return [node for node, said in answers.items() if said and (not isinstance(said, dict) or said.get("formula") != ours)]


def sync(nodes):
    """
    Bring the formula's modules and states to minions. Returns a sentence (list of str) for each that could not take them.

    nodes
        Minion ids (list). One that does not answer is left to ``faults``.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_controllers.sync '["controller-1"]'
    """
    found = []
    for kind in KINDS:  # a job each: `salt-run jobs.list_jobs` fails on a job of several functions
        for node, said in ask(nodes, f"saltutil.sync_{kind}").items():
            if not (said is None or isinstance(said, list)):
                found.append(f"{node}: saltutil.sync_{kind} failed: {_last_line(said)}")
    return found


def _last_line(said):
    return (str(said).strip().splitlines() or ["no answer"])[-1]


def hear(nodes, patience_s=0):
    """
    Ask minions what they hold (``holds``); return {minion: answer}, a str where the function is not known there.

    nodes
        Minion ids (list).
    patience_s
        For so many seconds one that does not know the function is asked again (default 0: it is not).

    The answers are kept for the rest of the run (``known``).

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_controllers.hear '["controller-1"]'
    """
    deadline, known = time.monotonic() + patience_s, __context__.setdefault("k8s_controllers_heard", {})
    forget(nodes)
    asked = list(nodes)
    while asked:
        known |= ask(asked, "k8s_controllers.holds")
        asked = [node for node in asked if isinstance(known[node], str)]
        if time.monotonic() > deadline:
            break
        time.sleep(PAUSE_S if asked else 0)
    return {node: known[node] for node in nodes}


def known(nodes):
    """
    Return those minions (list) of which this run knows what they hold, as this master's modules tell it.

    nodes
        Minion ids (list).

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_controllers.known '["controller-1"]'
    """
    heard, ours = __context__.get("k8s_controllers_heard", {}), formula()
    answers = {node: heard[node] for node in nodes if isinstance(heard.get(node), dict)}
    return [node for node, answer in answers.items() if not answer["errors"] and answer.get("formula") == ours]


def faults(controllers, answers):
    """
    Return what keeps an orchestration from its first step: sentences on those who are silent or have another pillar.

    controllers
        Minion id to address, as the master's own pillar has them.
    answers
        What ``hear`` returned. Who does not know the function is passed over.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_controllers.faults '{"controller-1": "10.8.0.101"}' '{"controller-1": null}'
    """
    found, keys, same = [], None, {}
    for node, answer in answers.items():
        if answer is None:
            keys = _keys() if keys is None else keys
            found.append(silence(node, keys))
        elif isinstance(answer, dict):
            for error in answer["errors"]:
                same.setdefault(error, []).append(node)
            if not answer["errors"] and answer["controllers"] != controllers:
                same.setdefault(_other_pillar(controllers, answer["controllers"]), []).append(node)
    return found + [f"{', '.join(nodes)}: {error}" for error, nodes in same.items()]


def _other_pillar(ours, theirs):
    differing = ", ".join(node for node in dict.fromkeys([*ours, *theirs]) if ours.get(node) != theirs.get(node))
    return (
        f"kubernetes_controller:controllers is another for the master's own id {__opts__['id']} (different: {differing}). "
        "Give both the same pillar."
    )


def missing(shares, answers):
    """
    Return what controllers lack of what the master handed out: {minion: [file names]}.

    shares
        Minion id to the directory of its share on the master.
    answers
        What ``hear`` returned. What else a controller holds does not count.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_controllers.missing '{"controller-1": "/srv/…/kubernetes_controller_pki"}' '{}'
    """
    found = {}
    for node, directory in shares.items():
        answer = answers.get(node)
        held = answer.get("files", {}) if isinstance(answer, dict) else {}
        names = [name for name, text in _files(directory).items() if held.get(name) != mark(text)]
        found |= {node: names} if names else {}
    return found


def _files(directory):
    found = {}
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
        path = os.path.join(directory, name)
        if os.path.isfile(path) and not name.startswith("."):
            with salt.utils.files.fopen(path, "rb") as handle:
                found[name] = handle.read()
    return found


def undelivered(shares, patience_s=DELIVERY_S):
    """
    Wait until each controller holds what the master handed out; return {minion: [file names]} of what did not arrive.

    shares
        See ``missing``.
    patience_s
        For so many seconds those that lack something are asked again (default 30).

    What they said at the begin of this run counts first, so where nothing has changed since nobody is asked.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_controllers.undelivered '{"controller-1": "/srv/…/kubernetes_controller_pki"}'
    """
    deadline = time.monotonic() + patience_s
    lacking = missing(shares, __context__.get("k8s_controllers_heard", {}))
    while lacking:
        lacking = missing({node: shares[node] for node in lacking}, hear(list(lacking)))
        if not lacking or time.monotonic() > deadline:
            break
        time.sleep(PAUSE_S)
    return lacking
