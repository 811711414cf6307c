"""
The rehearsal: a node's prepared generations, started for seconds beside the cluster, must show that they work.

They run on the stage (``k8s_stage``) with exact binaries, flags, files, users and addresses, on a copy of the real
data; only etcd is exchanged. What passed is remembered beside the generation, and only that is ever promoted.
"""

import contextlib
import json
import math
import os
import time

import salt.utils.files
from salt.exceptions import CommandExecutionError

STAMPS = "rehearsed.json"
API, CONTROLLERS = "kube-apiserver", ("kube-controller-manager", "kube-scheduler")
ORDER = ("etcd", API, *CONTROLLERS)
LEAST_MIB, FOR_DATA, MIB = 2048, 4, 1 << 20  # four processes take 700 to 900 MiB, and what they read several times over
CORRECT = (
    "Correct what is declared: without a rehearsal the cluster would meet the same. What only lacked time gets more with "
    "kubernetes_controller:rollout:rehearsal:timeout_s."
)
SLOW_S = 12  # a copy of large data takes longer to be ready; until then it is looked why


class Failed(CommandExecutionError):
    """A generation did not pass, by its own fault; ``component`` is its name."""

    def __init__(self, component, said):
        self.component = component
        super().__init__(said)


class NoStage(CommandExecutionError):
    """The rehearsal could not be held, and nothing was judged."""

    dispensable = True


def due(components):
    """
    Return the declared generations to rehearse together before any is promoted: {component: digest}.

    components
        Rows of the configuration's ``components`` (dict).

    These are all that differ from what is live, unless they passed together, on the data that what is live now has written.
    One that failed its gate is not tried again, so it takes no part. Nothing is due on a node where nothing of it runs yet,
    nor a controller where there is no API server for it.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_rehearsal.due "$COMPONENTS"
    """
    if not any(__salt__["k8s_generation.links"](row["home"])["live"] for row in components.values()):
        return {}
    found = {}
    for name, row in components.items():
        changes = __salt__["k8s_generation.differences"](row) if row["rehearsal"]["enabled"] else {}
        if changes and not _failed(row, changes["generation"]["new"]):
            found[name] = changes["generation"]["new"]
    if API not in found:
        found = {name: generation for name, generation in found.items() if not _is_without_api(components[name])}
    stamps = [_stamp_of(components[name], generation) for name, generation in found.items()]
    together = all(found.items() <= stamp["cast"].items() for stamp in stamps)
    return {} if together and all(_still_holds(components, stamp) for stamp in stamps) else found


def needed(row, generation):
    """
    Tell whether a prepared generation must pass a rehearsal before it may be promoted.

    row
        A row of the configuration's ``components``.
    generation
        Its name.

    Not where nothing of the component is live that a fault could stop, nor what is live already, nor what passed before with
    the others as they are or are declared, on the data that what is live has written; nor a controller without an API server.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_rehearsal.needed "$ROW" 3f9c0d1e2b3a4c5d
    """
    live = __salt__["k8s_generation.links"](row["home"])["live"]
    if not row["rehearsal"]["enabled"] or not live or live == generation:
        return False
    return not _is_without_api(row) and not _still_holds(_with(row), _stamp_of(row, generation))


def alone(row):
    """
    Rehearse the declared generation of one component, with the others as they are live.

    row
        A row of the configuration's ``components``.

    Returns and raises what ``perform`` does.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_rehearsal.alone "$ROW"
    """
    return perform(_with(row), [row["name"]])


def perform(components, names):
    """
    Rehearse the declared generations of ``names`` together, the other components as they are live.

    components
        Rows of the configuration's ``components`` (dict): all of this node.
    names
        Components (list) whose declared generation is rehearsed; it is prepared first.

    Returns ``seconds`` and ``said``. Raises CommandExecutionError with the reason: with the component at fault as its
    ``component`` where one is, and with ``dispensable`` where the machine had no stage for it.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_rehearsal.perform "$COMPONENTS" '["kube-scheduler"]'
    """
    tell, asked = __salt__["k8s_component.tell"], components[names[0]]["rehearsal"]
    started, cast = time.monotonic(), _cast(components, names)
    tell(", ".join(names), "rehearsal", f"of {', '.join(cast[name] for name in names)} begins")
    place = _build(_addresses(components), asked["timeout_s"] + asked["window_s"])
    deadline = time.monotonic() + asked["timeout_s"]
    try:
        data = _data(components, cast, names, place)
        memory_max_mib = asked["memory_max_mib"] or _enough_mib(data)
        __salt__["k8s_stage.bound"](memory_max_mib)
        said = _play(components, cast, names, data, deadline)
    except OSError as exc:  # no room in /run, for instance
        raise NoStage(f"{exc.filename or place}: {exc.strerror}") from exc
    except CommandExecutionError as exc:
        short = __salt__["k8s_stage.out_of_memory"]()
        said = NoStage(_out_of_memory(short, memory_max_mib)) if short else exc
        tell(getattr(said, "component", names[0]), "rehearsal", f"failed: {said}", result="failed")
        raise said from exc
    finally:
        __salt__["k8s_stage.leave"]()
    tell(", ".join(names), "rehearsal", said, seconds=round(time.monotonic() - started, 1))
    _stamp(components, cast, names, data)
    return {"seconds": round(time.monotonic() - started, 1), "said": said}


def way_out(error):
    """
    Return the sentences (str) that tell why a rehearsal failed and what leads on. An override is among them only where the
    machine had no stage for it: what failed there by its own fault, or on this cluster's data, would fail beside them, too.

    error
        What ``perform`` raised.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_rehearsal.way_out 'ip: no such command'
    """
    said, component = str(error), getattr(error, "component", None)
    if component:
        said = f"{component}: {said.rstrip('.')}. Nothing was touched. {CORRECT}"
    elif getattr(error, "dispensable", False):
        once = __salt__["k8s_skew.override"]({"rehearsal": {"enabled": False}})
        said = f"{said.rstrip('.')}. Nothing was touched. {once}"
    else:
        said = f"{said.rstrip('.')}. Nothing was touched."
    return said


def data_mib(components):
    """
    Return the size in MiB (int) of the data that a rehearsal would copy; 0 for none, also where etcd does not say.

    components
        Rows of the configuration's ``components`` (dict).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_rehearsal.data_mib "$COMPONENTS"
    """
    for row in _sources(components):
        if row["rehearsal"]["data"] == "empty":
            return 0
        with contextlib.suppress(CommandExecutionError):
            if size := __salt__["k8s_snapshot.size_mib"](row):
                return size
    return 0


# -- what there is to rehearse ----------------------------------------------------------------------------------------


def _cast(components, names):
    """Return the generation of each component that takes part: {component: name of the generation}."""
    cast = {}
    for name in ORDER:
        if name in names:
            cast[name] = __salt__["k8s_generation.prepare"](components[name])
        elif name in components and (live := __salt__["k8s_generation.links"](components[name]["home"])["live"]):
            cast[name] = live
    return cast


def _with(row):
    """Return the configuration's rows of components with this one as it is given."""
    return {**__salt__["k8s_config.load"]().get("components", {}), row["name"]: row}


def _is_without_api(row):
    """Tell whether this is a controller that has no API server beside it to be rehearsed with."""
    return row["name"] in CONTROLLERS and not (row["api"] and _live(row["api"]))


def _addresses(components):
    """Return the addresses (list of str) that the stage has: all those of the node, as a component may listen at any of them."""
    own = [*__salt__["network.ip_addrs"](), *__salt__["network.ip_addrs6"]()]
    found = {row["address"] for row in components.values()} | set(own)
    return sorted(address for address in found if not address.lower().startswith("fe80"))


def _build(addresses, patience_s):
    try:
        return __salt__["k8s_stage.build"](addresses, patience_s)
    except OSError as exc:
        raise NoStage(f"{exc.filename or 'the stage'}: {exc.strerror}") from exc
    except CommandExecutionError as exc:
        raise NoStage(str(exc)) from exc


def _data(components, cast, names, place):
    """
    Return the path of a copy of the data that the declared API server will read, or None for none.

    A cluster that is down has none to give.
    """
    asked, reasons = components[names[0]]["rehearsal"], []
    if asked["data"] == "empty":
        return None
    for row in _sources(components):  # where the API server's identity has ended, a member's own may serve
        declared = f"{row['home']}/generations/{cast[API]}" if row["name"] == API and API in names else None
        try:
            return __salt__["k8s_snapshot.save"](row, f"{place}/snapshot.db", asked["max_mib"], directory=declared)
        except CommandExecutionError as exc:
            reasons.append(exc)
    if reasons and _data_serves(components):
        given = [reason for reason in reasons if not getattr(reason, "unanswered", False)]
        once = __salt__["k8s_skew.override"]({"rehearsal": {"data": "empty"}})
        raise CommandExecutionError(f"{str(given[0]).rstrip('.')}. {once}" if given else str(reasons[0])) from reasons[0]
    return None  # nothing serves here: a cluster that is down can always be repaired


def _enough_mib(data):
    """Return the MiB of memory that no rehearsal needs on this data (path of a snapshot, or None), its copy included."""
    return LEAST_MIB + FOR_DATA * math.ceil(os.path.getsize(data) / MIB if data else 0)


def _out_of_memory(units, memory_max_mib):
    return (
        f"{', '.join(units)} was ended as there was no memory left: all that is rehearsed may take {memory_max_mib} MiB "
        "(kubernetes_controller:rollout:rehearsal:memory_max_mib; 0 for a number that grows with etcd's data), and must find "
        "it on this node. Free memory here, or raise it; the generation itself was not judged"
    )


def _sources(components):
    """Return the rows by which the real data can be copied: the API server's, and etcd's where it is managed."""
    rows = [components[name] for name in (API, "etcd") if name in components]
    return [row for row in rows if __salt__["k8s_generation.links"](row["home"])["live"]]


def _data_serves(components):
    return any(__salt__["k8s_health.serves"](row) for row in _sources(components))


def _play(components, cast, names, data, deadline):
    """Start the cast in its order and ask of each what it has to show; raise Failed with the reason."""
    rows, ready = {}, {}
    environment = _start_etcd(components, cast, data, deadline, rows)
    ready["etcd"] = time.monotonic()
    if "kube-apiserver" in cast:
        leases = _leases(components, cast)
        api = _start_apiserver(components["kube-apiserver"], cast["kube-apiserver"], environment, leases, deadline, rows)
        ready["kube-apiserver"] = time.monotonic()
        for name in [name for name in ORDER[2:] if name in cast]:
            rows[name] = {**__salt__["k8s_stage.dress"](components[name], cast[name], {}), "api": api}
            __salt__["k8s_stage.start"](rows[name])
        if data:
            _serves_the_same(components["kube-apiserver"], api)
        _show("k8s_scene.apiserver", api, _encrypted(components["kube-apiserver"]))
        for name in [name for name in ORDER[2:] if name in cast]:
            _wait(rows[name], deadline)
            ready[name] = time.monotonic()
        _show("k8s_scene.controllers", api, rows, deadline - time.monotonic())
    _stay(rows, names, max(ready[name] for name in names) + components[names[0]]["rehearsal"]["window_s"])
    others = [name for name in cast if name not in names]
    beside = f", with {', '.join(others)} as live" if others else ""
    return f"{', '.join(names)} passed on {'a copy of the data' if data else 'empty data'}{beside}"


# -- the cast ---------------------------------------------------------------------------------------------------------


def _start_etcd(components, cast, data, deadline, rows):
    """Start the throw-away etcd: from etcd's own generation where it is managed. Return what etcdctl needs to reach it."""
    if "etcd" not in cast:
        row = components["kube-apiserver"]
        __salt__["k8s_stage.start_plain_etcd"](row, __salt__["k8s_stage.restore"](row, data, "default"))
        return {"ETCDCTL_ENDPOINTS": "http://127.0.0.1:12379"}
    row = components["etcd"]
    flags = __salt__["k8s_generation.flags"](row["home"], link=f"generations/{cast['etcd']}")
    member, peer = flags["name"], row["first_start"].get("initial-advertise-peer-urls") or flags["listen-peer-urls"]
    # A generation of an earlier release of the formula has flags of a first start; those of this one come from the environment.
    alone = {"initial-cluster": f"{member}={peer}", "initial-cluster-state": "new", "initial-advertise-peer-urls": peer}
    exchanged = {**{flag: None for flag in (*row["first_start"], *alone) if flag in flags}, "unsafe-no-fsync": "true"}
    rows["etcd"] = staged = __salt__["k8s_stage.dress"](row, cast["etcd"], exchanged)
    __salt__["k8s_stage.start"](staged, environment=alone, data=__salt__["k8s_stage.restore"](row, data, member, peer))
    _wait(staged, deadline)
    files = [
        flags[name].replace(row["home"], staged["home"], 1) for name in ("trusted-ca-file", "peer-cert-file", "peer-key-file")
    ]
    names = ("ETCDCTL_CACERT", "ETCDCTL_CERT", "ETCDCTL_KEY")
    return {"ETCDCTL_ENDPOINTS": flags["advertise-client-urls"], **dict(zip(names, files, strict=True))}


def _start_apiserver(row, generation, environment, leases, deadline, rows):
    """Start the API server against the throw-away etcd and wait until it is ready. Return the row to ask it by."""
    exchanged = {"etcd-servers": environment["ETCDCTL_ENDPOINTS"], "etcd-servers-overrides": None}
    staged = __salt__["k8s_stage.dress"](row, generation, exchanged)
    flags = __salt__["k8s_generation.flags"](staged["home"])
    __salt__["k8s_stage.leave_out"](environment, row["etcdctl"], flags.get("etcd-prefix", "/registry"), leases)
    rows["kube-apiserver"] = staged
    __salt__["k8s_stage.start"](staged)
    while True:
        try:
            _wait(staged, min(deadline, time.monotonic() + SLOW_S))
            return staged
        except Failed:
            # One that cannot decrypt what is stored is alive and never ready: its answer to a list says why.
            if time.monotonic() > deadline or not __salt__["k8s_component.process"](staged["unit_name"])["pid"]:
                raise
            if why := __salt__["k8s_scene.unreadable"](staged, _encrypted(row)):
                raise Failed(staged["name"], why) from None


def _leases(components, cast):
    """Return the leases that the copy has of who leads the cluster: the cast would wait until they end."""
    found = [__salt__["k8s_health.lease"](components[name], f"generations/{cast[name]}") for name in CONTROLLERS if name in cast]
    return [lease for lease in found if lease]


def _encrypted(row):
    """Return the resources of the declared and of the live encryption configuration, whose objects must all be readable."""
    listed = [name for file in row["files"].values() for entry in file.get("encryption") or [] for name in entry["resources"]]
    listed += __salt__["k8s_encryption.resources"](row)
    return [name for name in dict.fromkeys(["secrets", *listed]) if "*" not in name]


def _serves_the_same(row, api):
    """Raise Failed if the copy of the data, as the API server on the stage reads it, is not that of this cluster."""
    known = __salt__["k8s_identity.remembered"](row)
    found = __salt__["k8s_stage.inside"]("k8s_identity.served", api)
    if "identity" not in row["ignore"] and not __salt__["k8s_identity.same"](known, found):
        raise Failed(row["name"], f"on a copy of the data it serves other data than this cluster's: {found} instead of {known}")


def _show(scene, *args):
    """Let the cast show something; raise Failed when it does not."""
    fault = __salt__[scene](*args)
    if fault:
        raise Failed(fault["component"], fault["said"])


def _wait(row, deadline):
    """Wait until a component passes the gate on the stage."""
    patience = max(1, deadline - time.monotonic())
    answer = __salt__["k8s_stage.inside"](
        "k8s_health.wait", row, since=row["since"], timeout_s=patience, consecutive=1, thorough=True
    )
    if not answer["ok"]:
        raise Failed(row["name"], answer["said"])


def _stay(rows, names, until):
    """Watch for a while that what was rehearsed stays as it is: some faults show only after a component was ready."""
    while True:
        for name in names:
            if not __salt__["k8s_component.process"](rows[name]["unit_name"])["pid"]:
                complaint = __salt__["k8s_component.complaint"](rows[name]["unit_name"], since=rows[name]["since"])
                raise Failed(name, f"was ready and ended again: {complaint or 'its journal does not say why'}")
        if time.monotonic() > until:
            return
        time.sleep(0.3)


# -- stamps -----------------------------------------------------------------------------------------------------------


def _stamps(home):
    try:
        with salt.utils.files.fopen(os.path.join(home, STAMPS), encoding="utf-8") as handle:
            return {digest: stamp for digest, stamp in json.load(handle).items() if isinstance(stamp, dict)}
    except (OSError, ValueError, AttributeError):
        return {}


def _stamp_of(row, generation):
    """
    Return how a generation passed: ``cast``, the digests of all that took part, ``live``, of those that were live, and
    ``data``: snapshot or empty.
    """
    return _stamps(row["home"]).get(_bare(generation), {"cast": {}, "live": {}})


def _still_holds(components, stamp):
    """
    Tell whether what a stamp says can still be relied on.

    Each that took part must be live, or else declared, without a failed gate, while nothing became live in its place since:
    that would have written to the data, and the others would meet it. A pass on empty data counts where the pillar asks
    for no other, while the API server does not serve (what is down is to be repaired), and once it is live and serves them.
    """
    if not stamp["cast"] or not all(
        name in components and _is_as_then(components[name], generation, stamp["live"].get(name))
        for name, generation in stamp["cast"].items()
    ):
        return False
    asked = next(iter(components.values()))["rehearsal"]["data"]
    if stamp.get("data") == "snapshot" or asked == "empty":
        return True
    if API not in components:
        return not _data_serves(components)
    return stamp["cast"].get(API) == _live(components[API]) or not __salt__["k8s_health.serves"](components[API])


def _is_as_then(row, generation, before):
    live = _live(row)
    if live == generation or live != before or _failed(row, generation):
        return live == generation
    try:
        return __salt__["k8s_generation.digest"](row) == generation
    except CommandExecutionError:
        return False


def _failed(row, generation):
    return generation in __salt__["k8s_generation.failures"](row["home"])


def _live(row):
    return _bare(__salt__["k8s_generation.links"](row["home"])["live"] or "")


def _bare(generation):
    return generation.partition(".")[0]


def _stamp(components, cast, names, data):
    """Remember that generations passed, with what and on which data; those that are not there any more are forgotten."""
    stamp = {
        "passed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cast": {name: _bare(generation) for name, generation in cast.items()},
        "live": {name: _live(components[name]) for name in cast},
        "data": "snapshot" if data else "empty",
    }
    for name in names:
        home = components[name]["home"]
        there = {_bare(generation) for generation in os.listdir(os.path.join(home, "generations"))}
        known = {digest: known for digest, known in _stamps(home).items() if digest in there}
        try:
            text = json.dumps({**known, _bare(cast[name]): stamp}, indent=1)
            __salt__["k8s_durable.write"](os.path.join(home, STAMPS), text)
        except OSError as exc:
            raise CommandExecutionError(f"{home}/{STAMPS}: {exc.strerror}. Nothing was promoted.") from exc
