"""
What an orchestration needs of the controllers before it changes anything, and before it goes on from what it changed.
"""

import salt.utils.event

SYNCED_S = 15  # until a minion uses what it was just sent
SOME = 5  # names of files that are told


def agreed(name, controllers):
    """
    Ensure that every controller has the formula's modules, answers, and finds its pillar in order; nothing else is changed.

    name
        A sentence.
    controllers
        Minion id to address, as the master's own pillar declares them.

    Only those are synced that have other modules than the master. In test mode nothing is, and who has none of them is
    passed over.

    .. code-block:: yaml

        Every controller answers and finds its pillar in order:
          k8s_controllers.agreed:
            - controllers: {{ cfg.controllers | json }}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    nodes, test = list(controllers), __opts__["test"]
    _tell(name, nodes)
    answers, found = __salt__["k8s_controllers.hear"](nodes), []
    behind = [] if test else __salt__["k8s_controllers.behind"](answers)
    if behind:
        found = __salt__["k8s_controllers.sync"](behind)
        answers |= __salt__["k8s_controllers.hear"](behind, patience_s=0 if found else SYNCED_S)
    unknown = [node for node, answer in answers.items() if isinstance(answer, str)]
    found += __salt__["k8s_controllers.faults"](controllers, answers)
    if not test:
        found += [f"{node}: {str(answers[node]).strip().splitlines()[-1]}" for node in unknown if not found]
    if found:
        return ret | {"result": False, "comment": "\n".join([*found, "Nothing was changed, on the master and on any node."])}
    if unknown:
        return ret | {"result": None, "comment": f"Not knowable yet: {', '.join(unknown)} would get the formula's modules first."}
    return ret | {"comment": f"{', '.join(nodes)}: answered, and the pillar is in order."}


def delivered(name, controllers, key):
    """
    Ensure that every controller holds what the master handed out to it; waits for a moment, and changes nothing.

    name
        The directory of certificates on the master.
    controllers
        Minion ids (list).
    key
        The pillar key under which they get their files.

    Only fingerprints travel. The master's pillar cache, where it has one, is emptied for them before they are asked. A test
    run cannot know it of files that the real one would make or remove before, and of who has other modules of the formula.

    .. code-block:: yaml

        Every controller holds what the master handed out:
          k8s_controllers.delivered:
            - name: {{ cfg.pki.directory }}
            - controllers: {{ cfg.controllers | list | json }}
            - key: {{ cfg.pki.pillar }}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    shares = {node: f"{name}/hosts/{node}/{key}" for node in controllers}
    lacking = __salt__["k8s_controllers.undelivered"](shares, **({"patience_s": 0} if __opts__["test"] else {}))
    if not lacking:
        return ret | {"comment": f"{', '.join(controllers)}: hold what the master handed out."}
    stays = _stays(shares, lacking) if __opts__["test"] else lacking
    if not stays:
        said = "; ".join(f"{node} ({_some(files)})" for node, files in lacking.items())
        return ret | {"result": None, "comment": f"Does not hold yet what the master handed out: {said}."}
    said = "\n".join(f"{node}: pillar {key} has not {_some(files)} as in {shares[node]}." for node, files in stays.items())
    return ret | {
        "result": False,
        "comment": f"{said}\nWhat was made did not reach these nodes, so nothing was rolled out. Let the master that they ask "
        f"have `file_tree` with root_dir {name} in its ext_pillar (README.md), and no other source of {key} above it; where "
        "it caches pillars (pillar_cache: True), `salt '*' saltutil.refresh_pillar` empties that. Then run this again.",
    }


def _stays(shares, lacking):
    """Return of ``lacking`` what a real run would find lacking, too: what is handed out already, and no step before exchanges."""
    to_come, found = __context__.get("k8s_pki_to_come", ()), {}
    for node in __salt__["k8s_controllers.known"](list(lacking)):
        files = [file for file in lacking[node] if f"{shares[node]}/{file}" not in to_come]
        found |= {node: files} if files else {}
    return found


def _some(files):
    return ", ".join(files[:SOME]) + (f" and {len(files) - SOME} more" if len(files) > SOME else "")


def _tell(name, nodes):
    """Say on the master's bus whom this step asks, as Salt's own steps of an orchestration do."""
    jid = globals().get("__orchestration_jid__")
    if jid:
        salt.utils.event.fire_args(__opts__, jid, {"type": "question", "tgt": nodes, "name": name}, "run")
