"""
Versions and clocks: what the declared releases and this node's clock may differ from, before anything is touched.

The rules are those of Kubernetes' version-skew policy; etcd has the same one-minor rule.
"""

import concurrent.futures
import email.utils
import http.client
import json
import os
import re
import ssl
import time

TIMEOUT_S = 3
# The API server believes the names that its own front proxy certificate presents (as in k8s_health).
HEADERS = {"X-Remote-User": "kubernetes-controller-formula", "X-Remote-Group": "system:masters", "Accept": "application/json"}
API = "kube-apiserver"


def neighbours(row, directory=None):
    """
    Return what the API servers of the other controllers say: {minion: answer}.

    row
        A row of the configuration's ``components``; its ``neighbours`` are asked, all at once, with this node's front
        proxy identity (all trust the same front proxy CA).
    directory
        Where the API server's declared generation is staged; for a node on which none is live yet.

    An answer has ``release`` (None when it was not to be had), ``clock`` (its ``Date``, seconds since the epoch, or None),
    ``here`` (this node's clock then), ``serves`` (bool: anything answered) and ``said`` (why not).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_skew.neighbours "$ROW"
    """
    access = _access(row, directory)
    if access is None:
        return {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        answers = pool.map(lambda address: _ask(address, *access), row["neighbours"].values())
        return dict(zip(row["neighbours"], answers, strict=True))


def version_refusals(declared, live, others, ignore=()):
    """
    Return why the declared releases may not follow the live ones, a sentence each.

    declared
        {component: release} of this node's declaration.
    live
        {component: release} of what is live on this node; None, or no entry, where nothing is.
    others
        {minion: release} of the API servers on the other controllers; None where it is not known.
    ignore
        What the operator said to ignore for one run (list): ``skew``, ``downgrade``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_skew.version_refusals '{"kube-apiserver": "1.37.2"}' '{"kube-apiserver": "1.35.4"}' '{}'
    """
    found, moves = [], {}
    for name, release in declared.items():
        if live.get(name):
            moves.setdefault(("etcd:release" if name == "etcd" else "release", release, live[name]), []).append(name)
    for (key, release, before), names in moves.items():
        where, steps = f"kubernetes_controller:{key}: {', '.join(names)} {release}", _minor(release) - _minor(before)
        if steps < 0 and "downgrade" not in ignore:
            first = _told_to_go_back(release) if key == "etcd:release" else ""
            found.append(f"{where} would go back over a minor release, {before} is live. {first}{override('downgrade')}")
        if abs(steps) > 1 and "skew" not in ignore:
            between = _minor(before) + (1 if steps > 0 else -1)
            found.append(
                f"{where} is {abs(steps)} minor releases from the live {before}; one at a time is supported, go to "
                f"{between // 1000}.{between % 1000} first. {override('skew')}"
            )
    if "skew" not in ignore:
        found += _skew(declared, live, others)
    return found


def newer_than_api(row):
    """
    Return why a component must not start yet: it would be newer than its node's API server is (a sentence), or None.

    row
        A row of the configuration's ``components``. Only what is live counts, so an API server has to be first.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_skew.newer_than_api "$ROW"
    """
    if row["name"] in (API, "etcd") or not row["api"] or "skew" in row["ignore"]:
        return None
    live = __salt__["k8s_generation.release"](row["api"]["home"])
    if live is None or _minor(row["release"]) <= _minor(live):
        return None
    return (
        f"{row['name']} {row['release']} would be newer than this node's kube-apiserver {live}; apply "
        f"kubernetes_controller.apiserver first. {override('skew')}"
    )


def clock_refusals(answers, limit_s, here="this node"):
    """
    Return a sentence for each neighbour whose clock differs from this node's by more than ``limit_s`` seconds.

    answers
        What ``neighbours`` returned.
    limit_s
        Seconds (``rollout:preflight:max_clock_skew_s``); a ``Date`` is known to the second only, which is allowed for.
    here
        The name of this node.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_skew.clock_refusals '{}' 5
    """
    found = []
    for minion, answer in answers.items():
        if answer["clock"] is None:
            continue
        ahead = answer["here"] - answer["clock"] - 0.5
        if abs(ahead) > limit_s + 0.5:
            found.append(
                f"the clock of {here} is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} that of {minion} (at most "
                f"{limit_s} s, kubernetes_controller:rollout:preflight:max_clock_skew_s): certificates, tokens and leases "
                "would be judged differently. Set the clock that is wrong, and see that both run NTP. "
                f"{override({'preflight': {'max_clock_skew_s': int(abs(ahead)) + 2}})}"
            )
    return found


def override(name):
    """
    Return the sentence that tells how to overrule a refusal once.

    name
        What to put into ``rollout:ignore`` (str), or else what to put below ``rollout`` (dict).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_skew.override skew
    """
    pillar = {"kubernetes_controller": {"rollout": {"ignore": [name]} if isinstance(name, str) else name}}
    return f"To go on all the same, once: pillar='{json.dumps(pillar)}'."


def _told_to_go_back(release):
    """Return what has to be done first where etcd goes back: none starts on data that a later minor release still writes."""
    minor = release.rpartition(".")[0]
    return (
        f"An etcd of {minor} does not start on these data before etcd was told to write them as {minor} does: say `etcdctl "
        f"downgrade enable {minor}` on one controller, and wait until `etcdctl endpoint status --cluster --write-out=json` shows "
        f"storageVersion {minor}.0 for each member. After that, and not before: "
    )


def _skew(declared, live, others):
    """Return sentences for the rules between API servers, and between a node's API server and its other components."""
    found, api = [], declared.get(API) or live.get(API)
    far = {
        minion: release
        for minion, release in others.items()
        if release and API in declared and abs(_minor(declared[API]) - _minor(release)) > 1
    }
    if far:
        listed = ", ".join(f"{minion} ({release})" for minion, release in far.items())
        found.append(
            f"kubernetes_controller:release: {API} {declared[API]} would be more than one minor release from that of "
            f"{listed}. Bring all to the release between first. {override('skew')}"
        )
    for name in ("kube-controller-manager", "kube-scheduler"):
        if name in declared and api and _minor(declared[name]) > _minor(api):
            found.append(
                f"kubernetes_controller:release: {name} {declared[name]} would be newer than this node's {API} {api}. "
                f"{override('skew')}"
            )
    return found


def _minor(release):
    """Return a number that grows by one from one minor release to the next."""
    major, minor = re.match(r"(\d+)\.(\d+)", release).groups()
    return int(major) * 1000 + int(minor)


# -- asking -----------------------------------------------------------------------------------------------------------


def _access(row, directory):
    """Return port, CA file and client pair for the neighbours' API servers: the live ones, or those that are staged."""
    if not row["api"]:
        return None
    flags, home = __salt__["k8s_generation.flags"](row["api"]["home"]), os.path.join(row["api"]["home"], "live")
    if not flags and directory and row["name"] == API:
        flags, home = __salt__["k8s_generation.staged_flags"](row, directory), directory
    pair = [flags.get(flag) for flag in ("proxy-client-cert-file", "proxy-client-key-file")]
    authority = os.path.join(home, "ca.crt")
    if not all(path and os.path.exists(path) for path in (*pair, authority)):
        return None
    return int(flags.get("secure-port", row["api"]["port"])), authority, pair


def _ask(address, port, authority, pair):
    answer = {"release": None, "clock": None, "here": None, "serves": False, "said": ""}
    try:
        context = ssl.create_default_context(cafile=authority)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # brought CAs often lack the extensions that it asks for
        context.load_cert_chain(*pair)
        connection = http.client.HTTPSConnection(address, port, timeout=TIMEOUT_S, context=context)
    except (OSError, ssl.SSLError) as exc:
        return {**answer, "said": str(exc)}
    try:
        connection.request("GET", "/version", headers=HEADERS)
        got = connection.getresponse()
        answer |= {"serves": True, "here": time.time()}
        if got.getheader("Date"):
            answer["clock"] = email.utils.parsedate_to_datetime(got.getheader("Date")).timestamp()
        body = got.read()
        if got.status == 200:
            answer["release"] = json.loads(body)["gitVersion"].removeprefix("v")
        else:
            answer["said"] = f"/version said {got.status}"
    except (OSError, ssl.SSLError, http.client.HTTPException, ValueError, KeyError) as exc:
        answer["said"] = str(exc) or type(exc).__name__
    finally:
        connection.close()
    return answer
