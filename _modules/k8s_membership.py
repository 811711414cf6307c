"""
What the members of etcd should be: decisions on what ``k8s_etcd_members`` has heard. Plain functions, without I/O.

A controller is a member if a member has its peer address: etcd gives a member that was added no name before it starts.
"""

import posixpath
import urllib.parse

FOUNDING_S = 900  # so long after the master allowed it may members without data found a cluster
# What is heard at a controller where no cluster can be: nothing listens, or etcd waits there for the others to found it, too.
NOBODY, WAITS = "refuses", "waits for the others"
STRANGE = ("answers", "does not know this node", "does not answer")  # where one can be, if no member lists the others
ONCE = 'pillar=\'{"kubernetes_controller": {"rollout": {"found": true}}}\''
PAGE = 'docs/operations.md, "Members of etcd by hand"'
RESTORE = 'docs/operations.md, "Restore etcd from a snapshot by hand"'
DIFFER = 'Change nothing, and keep a copy of each data directory (docs/operations.md, "The members of etcd differ").'
MAKE_PKI = "`salt-run state.orchestrate kubernetes_controller.orchestrate.pki`"


def unwell(controllers, found):
    """
    Return which members do not do their work now (list of sentences). It may pass: one of them may be restarting.

    controllers
        {minion: address} of all that the pillar declares.
    found
        What ``k8s_etcd_members.survey`` returned.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_membership.unwell '{"controller-1": "10.8.0.101"}' '{"members": [], "asked": {}}'
    """
    if found["members"] is None:
        reasons = "; ".join(f"{url}: {answer['said']}" for url, answer in found["asked"].items() if answer["said"])
        return [f"etcd: no member says who the members are ({reasons or 'no answer'})."]
    said = []
    for one in found["members"]:
        who, answer = _who(one, controllers), _answer(one, found["asked"])
        if one["started"] and answer is not None and not answer.get("healthy"):
            said.append(f"etcd: member {one['id']} of {who} does not answer well: {answer['said'] or answer['state']}.")
        elif not one["started"] and _controller(one, controllers):
            said.append(
                f"etcd: member {one['id']} of {who} was added and has not started yet. Apply kubernetes_controller there."
            )
    return said + _not_compared(found["asked"])


def differences(controllers, members):
    """
    Return a sentence for each difference between what the pillar declares and what etcd lists.

    controllers
        See ``faults``.
    members
        What etcd lists (the key ``members`` of ``k8s_etcd_members.survey``).

    A member that was added and waits for its first start is no difference.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_membership.differences '{"controller-1": "10.8.0.101"}' '[]'
    """
    said = []
    for one in members:
        if not _controller(one, controllers):
            said.append(
                f"etcd: member {one['id']} ({one['name'] or 'no name'}, {', '.join(one['peer_urls'])}) is not in "
                "kubernetes_controller:controllers, but it is a member and counts for the quorum. If that machine is to go, on "
                f"a controller: `etcdctl member remove {one['id']}` ({PAGE}); otherwise declare it."
            )
        elif one["learner"] and one["started"]:
            said.append(
                f"etcd: member {one['id']} of {_who(one, controllers)} is a learner: it has no vote yet. When it has caught up, "
                f"on a controller: `etcdctl member promote {one['id']}` ({PAGE})."
            )
    for minion, address in controllers.items():
        if not any(address in addresses(one) for one in members):
            said.append(
                f"etcd: {minion} ({address}) is in kubernetes_controller:controllers, but is not a member of etcd, which has "
                f"{_list(members)}. Add it ({PAGE}), or take it out of the pillar."
            )
    return said


def of_another(me, data, members):
    """
    Return why this node's member must not start with the data that it has (a sentence), or None: another member wrote them.

    me
        See ``first_start``; ``address`` is this node's.
    data
        Id (str) of the member whose data they are; None if that is not known.
    members
        What etcd lists (the key ``members`` of ``k8s_etcd_members.survey``); None if nobody could be asked.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_membership.of_another '{"peers": [], "address": "10.8.0.101"}' 1f2e '[]'
    """
    mine = [one for one in members or [] if set(one["peer_urls"]) & set(me["peers"]) or me["address"] in addresses(one)]
    if not data or not mine or data in [one["id"] for one in mine]:
        return None
    listed = mine[0]
    way = (
        "move them away, and it joins"
        if not listed["started"]
        else f"that one has data elsewhere: bring them back, or replace the member ({PAGE})"
    )
    return (
        f"etcd: the data in {me['data_dir']} are those of member {data}, not of this one ({listed['id']}, as etcd lists "
        f"{', '.join(listed['peer_urls'])}): {way}."
    )


def data_faults(found):
    """
    Return a sentence, as a list, if those that answer are not one cluster or hold different data, or if a member answers where
    etcd lists another one.

    found
        What ``k8s_etcd_members.survey`` returned.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_membership.data_faults '{"asked": {}}'
    """
    clusters, hashes, looks = {}, {}, found.get("looks", [])
    for url, answer in found["asked"].items():
        if answer.get("cluster"):
            clusters.setdefault(answer["cluster"], []).append(url)
        if answer.get("hash"):
            hashes.setdefault(answer["hash"], []).append(url)
    if len(clusters) > 1:
        listed = "; ".join(f"{', '.join(urls)}: cluster {cluster}" for cluster, urls in clusters.items())
        return [f"etcd: the controllers run different clusters ({listed}): API servers answer with different data. {DIFFER}"]
    if len(hashes) > 1:
        listed = "; ".join(f"{', '.join(urls)}: {value}" for value, urls in hashes.items())
        return [f"etcd: the members hold different data at the same revision (hashkv, {listed}). {DIFFER}"]
    if len(looks) > 1 and (pairs := _parted(looks[-1]) & _parted(looks[-2])):  # one look may fall between log and data
        places = dict.fromkeys(url for pair in sorted(pairs) for url in pair)
        listed = "; ".join(f"{url}: revision {looks[-1][url]['revision']}" for url in places)
        return [f"etcd: the members made different data of the same entries of their log ({listed}). {DIFFER}"]
    return _strangers(found)


def is_open(asked, looks):
    """
    Tell whether one more look may decide whether members hold the same data.

    asked, looks
        Keys of what ``k8s_etcd_members.survey`` returned.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_membership.is_open '{}' '[{}]'
    """
    hashes = {answer["hash"] for answer in asked.values() if answer.get("hash")}
    if len(hashes) > 1 or _are_several(asked):
        return False
    parted = _parted(looks[-1])
    if len(looks) > 1 and parted & _parted(looks[-2]):
        return False
    return bool(parted or _not_compared(asked))


def quorum_faults(found, address):
    """
    Return why the member of ``address`` must not be interrupted (list of sentences): etcd would lose its quorum.

    found
        What ``k8s_etcd_members.survey`` returned.
    address
        Of this node.

    While all voters are healthy one of them may restart: with one or two voters that is an interruption, whatever is done.
    Otherwise a quorum of all voters must be left.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_membership.quorum_faults '{"members": [], "asked": {}}' 10.8.0.101
    """
    voters = [one for one in found["members"] if not one["learner"]]
    others = [(one, _answer(one, found["asked"]) or {}) for one in voters if address not in addresses(one)]
    unwell = [
        f"{one['name'] or one['id']} ({answer.get('said') or 'no answer'})" for one, answer in others if not answer.get("healthy")
    ]
    left, quorum = len(voters) - len(unwell) - 1, len(voters) // 2 + 1
    if not unwell or left >= quorum or len(others) == len(voters):
        return []
    return [
        f"etcd has {len(voters)} voting members and not all are well: {', '.join(unwell)}. With this one interrupted "
        f"{left} would be left, {quorum} are needed"
    ]


def unclaimed(declared, found, adopt):
    """
    Return why a cluster is not founded in the place of data of a member that this formula did not make (a sentence), or None.

    declared
        The declared data directory.
    found
        {"there": whether it has data, "foreign": another directory with data, which an etcd has that the formula did not
        start (None for none), "runs": whether that etcd runs, "beside": directories with data that nothing names (list)}.
    adopt
        Whether the operator said to adopt what is there.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_membership.unclaimed /var/lib/etcd '{"there": true, "foreign": null, "beside": []}' false
    """
    if found["foreign"] and (found["runs"] or not found["there"]):
        places = [found["foreign"]]
    elif found["there"]:
        places = [] if adopt else [declared]
    else:
        places = found["beside"]
    if not places:
        return None
    return (
        f"etcd: data of a member of etcd that this formula did not make lie in {', '.join(places)}. If they are this cluster's, "
        f"say so: kubernetes_controller:etcd:data_dir: {places[0]} and kubernetes_controller:rollout:adopt: true once; otherwise "
        f"move them away, out of {posixpath.dirname(declared)}, or choose a data_dir in a directory of its own."
    )


def first_start(me, mark, found, now, has_master=True, told=False):
    """
    Decide how a member without data may start.

    me
        {"id": minion, "name": the member's name, "address": str, "controllers": {minion: address}, "peers": its peer URLs (list),
        "initial_cluster": str, "data_dir": str}.
    mark
        What is known of the cluster (``k8s_cluster.mark``); {} for nothing.
    found
        What ``k8s_etcd_members.survey`` returned, or None if nobody could be asked.
    now
        Seconds since the epoch.
    has_master
        False: without a master there is no mark, and the other declared controllers are asked alone (default True).
    told
        Whether the operator said that there is no cluster yet (``rollout:found``), which counts without a master only.

    Returns ``refusal`` (a sentence, or None), ``state`` (``new`` or ``existing``) and ``initial_cluster``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_membership.first_start '{"id": "a", "controllers": {}, "data_dir": "/var/lib/etcd"}' '{}' null 0
    """
    if found is not None and found["members"] is not None:
        return _join(me, found["members"])
    others = {minion: address for minion, address in me["controllers"].items() if minion != me["id"]}
    nothing = f"{me['id']} has no data in {me['data_dir']}, "
    if mark.get("state") == "founded":
        return _no(
            f"{nothing}but this cluster exists (since {mark.get('since', '?')}), and no member that has its data "
            f"answers{_silence(others, found)}. If the directory is a mount that is missing, mount it. Otherwise start etcd "
            "on the "
            f"other controllers first. If their data are lost for good, restore a snapshot ({RESTORE}). An empty cluster is "
            "never "
            "founded in the place of one that exists."
        )
    if has_master and mark.get("state") != "founding":
        return _no(
            f"{nothing}and the master has not told whether this cluster exists (pillar kubernetes_controller_pki:cluster.json). "
            f"On the master: {MAKE_PKI}, and then again."
        )
    if has_master and me["id"] not in mark.get("controllers", []):
        return _no(
            f"{nothing}and the cluster is being founded by {', '.join(mark.get('controllers', []))} without it. Run "
            "`salt-run k8s_rollout.deploy`, which asks all controllers first."
        )
    if has_master and abs(now - mark.get("at", 0)) > FOUNDING_S:
        return _no(
            f"{nothing}and the clock of this node is more than {FOUNDING_S // 60} minutes away from the moment at which the "
            f"master allowed to found the cluster ({mark.get('since', '?')}), so it may exist by now. On the master: {MAKE_PKI}, "
            "which asks all controllers, and then again. If the clocks of master and node differ, set them right first."
        )
    if not has_master and not told:
        return _no(
            f"{nothing}and without a master nobody knows whether this cluster exists: that no member answers is no proof, as the "
            "one that has its data may be stopped. If it never existed (no controller, stopped ones included, has data of it), "
            f"say so once, on all controllers at once: {ONCE}. If it exists, start etcd where the data are; if they are lost for "
            f"good, restore a snapshot ({RESTORE})."
        )
    founders = mark.get("controllers", []) if has_master else me["controllers"]
    strange = {
        minion: address
        for minion, address in me["controllers"].items()
        if (state := _state(address, found)) in STRANGE or state == WAITS and minion not in founders
    }
    if strange:
        return _no(
            f"{nothing}and something on {', '.join(strange)} listens at etcd's port and tells this node nothing"
            f"{_silence(strange, found)}, so it may be a cluster that exists. Nothing is founded beside it. If it is this one, "
            "let it answer: declare the CAs that it knows (kubernetes_controller:pki), and adopt it (docs/operations.md, "
            '"Adopting what already runs"). Otherwise stop it, and move its data away.'
        )
    silent = [minion for minion, address in others.items() if _state(address, found) not in (NOBODY, WAITS)]
    if silent:
        return _no(
            f"{nothing}and {', '.join(silent)} cannot be reached{_silence(others, found)}, so it is not known whether this "
            "cluster "
            "exists. A cluster is founded only while all its controllers are there. Bring them up, or take those that never were "
            "part of it out of kubernetes_controller:controllers."
        )
    return {"refusal": None, "state": "new", "initial_cluster": me["initial_cluster"]}


def moved_data(row, before, has_data, once):
    """
    Return why etcd's declared data directory must not be used (list of sentences).

    row
        etcd's row of the configuration's ``components``.
    before
        Flags (dict) of the good generation, which had data; {} for none.
    has_data
        Whether the declared directory has the data of a member.
    once
        The sentence that names the override.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_membership.moved_data "$ROW" '{}' true ''
    """
    found = []
    for flag in ("data-dir", "wal-dir") if before else ():
        old, new = before.get(flag, "none"), row["settings"].get(flag, "none")
        key = "kubernetes_controller:etcd:data_dir" if flag == "data-dir" else f"kubernetes_controller:etcd:settings:{flag}"
        if old != new and not has_data:
            found.append(
                f"{key}: {new} (live: {old}): there is no data of a member at the new place, so this member would lose all that "
                "it has. Move them there first, one node after another, while etcd is stopped on that node."
            )
        elif old != new and "identity" not in row["ignore"]:
            found.append(
                f"{key}: {new} (live: {old}): the data at the new place are known only when etcd runs on them. If you moved the "
                f"data of this member there, while etcd was stopped, say so. {once}"
            )
    return found


def addresses(member):
    """
    Return the hosts (set) of a member's peer URLs.

    member
        One of the key ``members`` of ``k8s_etcd_members.survey``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_membership.addresses '{"peer_urls": ["https://10.8.0.101:2380"]}'
    """
    return {urllib.parse.urlsplit(url).hostname for url in member["peer_urls"]}


def _are_several(asked):
    """Tell whether the members that answer are of several clusters, which is told as such."""
    return len({answer["cluster"] for answer in asked.values() if answer.get("cluster")}) > 1


def _parted(look):
    """Return the pairs of URLs (set) whose members have applied the same log, the first of them with more data."""
    pairs = set()
    for url, one in look.items():
        for other_url, other in look.items():
            same = one["applied"] and one["applied"] == other["applied"] and one["member"] != other["member"]
            if same and one["revision"] > other["revision"]:
                pairs.add((url, other_url))
    return pairs


def _not_compared(asked):
    """Return a sentence, as a list, if healthy members could not be compared: one has not what another has compacted away."""
    listed = {True: [], False: []}
    for url, answer in asked.items():
        if answer.get("healthy") and "compacted" in answer:
            listed[answer["compacted"]].append(f"{url} (revision {answer['revision']})")
    if not listed[True] or not listed[False] or _are_several(asked):
        return []
    return [
        f"etcd: the data of the members could not be compared: {', '.join(listed[True])} compacted beyond what "
        f"{', '.join(listed[False])} has. A member that was away catches up by itself. If this stays, they may hold different "
        f"data. {DIFFER}"
    ]


def _strangers(found):
    """Return a sentence for each host at which another member answers than the one that etcd lists there."""
    listed, said = {}, []
    for one in found.get("members") or []:
        for host in addresses(one):
            listed.setdefault(host, []).append(one["id"])
    for url, answer in found["asked"].items():
        here = listed.get(urllib.parse.urlsplit(url).hostname, [])
        if answer.get("member") and here and answer["member"] not in here:
            said.append(
                f"etcd: at {url} member {answer['member']} answers, where etcd lists member {', '.join(here)}: that machine has "
                f"data of another member. Stop etcd there, move its data away, and replace the member ({PAGE})."
            )
    return said


def _join(me, members):
    """Decide for a cluster that answers."""
    mine = next((one for one in members if set(one["peer_urls"]) & set(me["peers"])), None)
    nothing = f"{me['id']} has no data in {me['data_dir']}"
    add = f"`etcdctl member add {me['name']} --learner --peer-urls={','.join(me['peers'])}`"
    if mine is None:
        return _no(
            f"{nothing} and is not a member of etcd, which has {_list(members)}. Add it first, on one of those: {add} ({PAGE})."
        )
    if mine["started"]:
        return _no(
            f"{nothing}, but this cluster exists, and etcd lists it as member {mine['id']}, which had data. If the directory "
            "is a "
            "mount that is missing, mount it. Otherwise replace the member. On another controller: `etcdctl member remove "
            f"{mine['id']}`, then {add}, and then again here ({PAGE})."
        )
    pairs = [f"{me['name'] if one is mine else one['name'] or one['id']}={url}" for one in members for url in one["peer_urls"]]
    return {"refusal": None, "state": "existing", "initial_cluster": ",".join(pairs)}


def _no(sentence):
    return {"refusal": sentence, "state": None, "initial_cluster": ""}


def _silence(others, found):
    """Return in brackets what those that were asked said, or ""."""
    asked = (found or {"asked": {}})["asked"]
    said = [
        f"{minion}: {answer['said'] or answer['state']}"
        for minion, address in others.items()
        for url, answer in asked.items()
        if urllib.parse.urlsplit(url).hostname == address
    ]
    return f" ({'; '.join(said)})" if said else ""


def _state(address, found):
    asked = (found or {"asked": {}})["asked"]
    return next((answer["state"] for url, answer in asked.items() if urllib.parse.urlsplit(url).hostname == address), None)


def _controller(member, controllers):
    """Return the minion to which a member belongs, or None."""
    return next((minion for minion, address in controllers.items() if address in addresses(member)), None)


def _who(member, controllers):
    return _controller(member, controllers) or member["name"] or ", ".join(member["peer_urls"])


def _list(members):
    return ", ".join(f"{one['name'] or 'no name yet'} ({one['id']}, {', '.join(one['peer_urls'])})" for one in members)


def _answer(member, asked):
    """Return what was heard from a member, by its own id or at one of its URLs; None for nothing."""
    by_id = next((answer for answer in asked.values() if answer.get("member") == member["id"]), None)
    places = {urllib.parse.urlsplit(url).netloc for url in member["client_urls"]}
    return by_id or next((answer for url, answer in asked.items() if urllib.parse.urlsplit(url).netloc in places), None)
