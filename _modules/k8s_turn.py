"""
The turn: the right to restart or reload something that is serving. One holder per cluster, by a lock in etcd.

The lock is ``etcdctl lock``, which keeps its lease alive while it runs. It ends with this process, so a minion that is
killed gives the turn back at once; a node that is cut off gives it back when its lease runs out, and learns so. It is kept
by whichever member of etcd answers, so it outlives a restart of the one on this node.
"""

import http.client
import os
import select
import ssl
import subprocess
import time

from salt.exceptions import CommandExecutionError

PATIENCE_S = 5  # between two looks at who holds the turn
SILENCE_S = 45  # an etcd that elects a leader, or a member that starts, is back before


class Held(CommandExecutionError):
    """Another node has the turn."""


def take(row, directory=None):
    """
    Take the turn for a component of this node, waiting for it up to the pillar's deadline.

    row
        A row of the configuration's ``components``; its ``turn`` has the lock's ``key``, ``timeout_s`` and ``ttl_s``.
    directory
        Where its generation is prepared, if nothing of it is live yet and something else is to be adopted.

    Returns a handle for ``release`` (the pid of the process that holds the lock). While it waits, the master is told
    who holds the turn. Raises CommandExecutionError when it is not to be had: with the holder and the override, or with what
    etcd says and how to make it answer.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_turn.take "$ROW"
    """
    turn = row["turn"]
    command = ["setpriv", "--pdeathsig", "TERM", row["etcdctl"], "lock", f"--ttl={turn['ttl_s']}", turn["key"]]
    holder = subprocess.Popen(
        command,
        env=__salt__["k8s_etcdctl.whole"](row, directory),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    __context__.setdefault("k8s_turn", {})[holder.pid] = holder
    try:
        _wait_for_turn(row, holder, directory)
        __salt__["k8s_etcdctl.put"](row, f"{turn['key']}-holder", f"{__opts__['id']} for {row['name']}", directory)
    except BaseException as exc:
        release(holder.pid)
        if not isinstance(exc, CommandExecutionError):
            raise
        way = __salt__["k8s_skew.override"]("turn") if isinstance(exc, Held) else __salt__["k8s_etcdctl.must_answer"]()
        raise CommandExecutionError(f"{exc}; nothing was touched. {way}") from exc
    return holder.pid


def held(handle):
    """
    Tell whether the turn is still held: the lock's lease may have run out while this node was cut off from etcd.

    handle
        What ``take`` returned.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_turn.held 4711
    """
    holder = __context__.get("k8s_turn", {}).get(handle)
    return holder is not None and holder.poll() is None


def release(handle):
    """
    Give the turn back.

    handle
        What ``take`` returned.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_turn.release 4711
    """
    holder = __context__.get("k8s_turn", {}).pop(handle, None)
    if holder is None:
        return False
    holder.terminate()
    try:
        holder.wait(5)
    except subprocess.TimeoutExpired:
        holder.kill()
        holder.wait()
    return True


def refusals(row, directory=None):
    """
    Return why what serves on this node must not be interrupted now: a sentence per neighbour that is not ready.

    row
        A row of the configuration's ``components``; its ``neighbours`` are asked (API servers, or etcd members for etcd).
    directory
        See ``take``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_turn.refusals "$ROW"
    """
    etcd, flags = row["name"] == "etcd", __salt__["k8s_generation.flags"](row["home"])
    if not etcd and not row["api"]:
        return []  # no API server is the formula's here
    if directory:
        flags = __salt__["k8s_generation.staged_flags"](row, directory)
    pair = (flags["peer-cert-file"], flags["peer-key-file"]) if etcd else _client(row, flags) if directory else None
    authority = flags["trusted-ca-file"] if etcd else os.path.join(directory or f"{row['home']}/live", "ca.crt")
    path, ports = ("/health", [row["port"]]) if etcd else ("/readyz", _ports(row))
    found = []
    for minion, address in row["neighbours"].items():
        faults = []
        for port in ports:
            try:
                answer = __salt__["k8s_health.ask"](address, port, path, authority, pair)
            except (OSError, ssl.SSLError, http.client.HTTPException) as exc:
                faults.append(str(exc))
                continue
            if answer["status"] == 200:
                break
            faults.append(f"{path} said {answer['status']}")
        else:
            found.append(f"{minion} is not ready ({'; '.join(dict.fromkeys(faults))})")
    return found + (__salt__["k8s_etcd_members.quorum_refusals"](row, directory) if etcd else [])


def neighbours_ready(row, directory=None):
    """
    Wait until every neighbour is ready; raise CommandExecutionError naming those that are not, and the override.

    row
        See ``refusals``; its ``turn`` has ``neighbours_timeout_s``, how long to wait, in seconds.
    directory
        See ``take``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_turn.neighbours_ready "$ROW"
    """
    timeout_s = row["turn"]["neighbours_timeout_s"]
    deadline = time.monotonic() + timeout_s
    while found := refusals(row, directory):
        if time.monotonic() > deadline:
            what = "Another etcd member would be down" if row["name"] == "etcd" else "Another API server would be down"
            raise CommandExecutionError(
                f"{'; '.join(found)}. {what}. Nothing was changed. Waited {timeout_s} s "
                f"(kubernetes_controller:rollout:turn:neighbours_timeout_s). Let it serve first: `salt 'controller-*' "
                f"k8s_health.status` says what it lacks. {__salt__['k8s_skew.override']('neighbours')}"
            )
        time.sleep(1)
    return True


def _ports(row):
    """Return where a neighbour's API server listens: as declared, or, where its turn is yet to come, as here until now."""
    live = __salt__["k8s_generation.flags"](row["api"]["home"])
    return list(dict.fromkeys([row["api"]["port"], int(live.get("secure-port", row["api"]["port"]))]))


def _client(row, flags):
    """Return the client pair of this node's API server, or None: neighbours that are yet to be adopted may not answer nobody."""
    if row["name"] != "kube-apiserver":
        flags = __salt__["k8s_generation.flags"](row["api"]["home"])
    pair = (flags.get("kubelet-client-certificate"), flags.get("kubelet-client-key"))
    return pair if all(pair) else None


def _wait_for_turn(row, process, directory):
    """Return when ``process`` holds the lock; raise CommandExecutionError with why it does not within the deadline."""
    timeout_s, key = row["turn"]["timeout_s"], f"{row['turn']['key']}-holder"
    deadline, heard, shown, who = time.monotonic() + timeout_s, time.monotonic(), None, "somebody"
    while True:
        ready, _, _ = select.select([process.stdout], [], [], min(PATIENCE_S, max(0, deadline - time.monotonic())))
        if ready and process.stdout.readline():
            return
        if process.poll() is not None or ready:
            process.wait()
            said = process.stderr.read().strip().splitlines()
            raise CommandExecutionError(f"etcd does not give the turn: {said[-1] if said else 'no reason given'}")
        try:
            who, heard = __salt__["k8s_etcdctl.get"](row, key, directory).get(key) or "somebody", time.monotonic()
        except CommandExecutionError as exc:
            if time.monotonic() - heard > SILENCE_S:
                raise CommandExecutionError(f"etcd does not give the turn: {exc}") from exc
        if time.monotonic() >= deadline:
            raise Held(
                f"the turn is held by {who}, after {timeout_s} s. Wait until that run has ended; one that was killed gives it "
                f"back within {row['turn']['ttl_s']} s"
            )
        if who != shown:
            shown = who
            __salt__["k8s_component.tell"](row["name"], "turn", f"waits for the turn, which {who} holds")
