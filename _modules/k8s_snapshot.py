"""
Snapshots of etcd's data: for a rehearsal, and one to keep from before an upgrade.
"""

import glob
import json
import os
import shutil
import signal
import subprocess
import time

from salt.exceptions import CommandExecutionError

MIB = 1 << 20


class Unanswered(CommandExecutionError):
    """etcd could not be asked, or not for all of it; the sentence says what to do."""

    unanswered = True


ROOM = 2.2  # the snapshot, and what is restored from it


def save(row, target, max_mib=None, directory=None):
    """
    Save a snapshot of the cluster's data. Returns its path.

    row
        A row of the configuration's ``components``.
    target
        Absolute path of the file to write; its directory must exist.
    max_mib
        Size in MiB above which the data is not copied (default: none).
    directory
        Where the row's declared generation is prepared, if the data are those that it will read (default: the live one's).

    Raises CommandExecutionError with the pillar key when the data is too large; one with ``unanswered`` (True) when etcd
    cannot be asked, with how to make it answer.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_snapshot.save "$ROW" /root/etcd.db
    """
    environment = __salt__["k8s_etcdctl.environment"](row, directory)
    servers = environment["ETCDCTL_ENDPOINTS"].split(",")
    servers.sort(key=lambda url: f"//{row['address']}:" not in url)  # the member of this node first
    complaint = "no etcd server is declared"
    for server in servers:
        asked = {**environment, "ETCDCTL_ENDPOINTS": server}
        answer = _run([row["etcdctl"], "endpoint", "status", "--write-out=json"], asked)
        if answer.returncode == 0:
            _refuse_too_large(json.loads(answer.stdout)[0]["Status"]["dbSize"] / MIB, os.path.dirname(target), max_mib)
            answer = _run(_lesser([row["etcdctl"], "snapshot", "save", target]), asked)
        if answer.returncode == 0:
            os.chmod(target, 0o600)
            return target
        lines = [line for line in answer.stderr.splitlines() if line.strip()]
        complaint = _killed(answer) or (lines[-1][:300] if lines else f"etcdctl ended with status {answer.returncode}")
    raise Unanswered(f"etcd gives no copy of its data: {complaint.rstrip('.')}. {__salt__['k8s_etcdctl.must_answer']()}")


def size_mib(row):
    """
    Return the size of the cluster's data in MiB (int), or None where no server of etcd says.

    row
        A row of the configuration's ``components``; its live identity is used.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_snapshot.size_mib "$ROW"
    """
    environment = __salt__["k8s_etcdctl.environment"](row)
    for server in environment["ETCDCTL_ENDPOINTS"].split(","):
        asked = {**environment, "ETCDCTL_ENDPOINTS": server}
        answer = _run([row["etcdctl"], "endpoint", "status", "--write-out=json"], asked)
        if answer.returncode == 0:
            return round(json.loads(answer.stdout)[0]["Status"]["dbSize"] / MIB)
    return None


def keep(row, label):
    """
    Save and verify a snapshot to keep, and remove the oldest ones. Returns its path, or None where the pillar keeps none.

    row
        A row of the configuration's ``components``; its ``snapshots`` has ``directory`` and ``keep``.
    label
        What it was taken before, a part of the file's name.

    Raises CommandExecutionError when there is none to be had: without one nothing is upgraded.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_snapshot.keep "$ROW" 1.37.2
    """
    directory, number = row["snapshots"]["directory"], row["snapshots"]["keep"]
    once = __salt__["k8s_skew.override"]({"snapshots": {"keep": 0}})
    if not number:
        return None
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError as exc:
        said = f"{directory}: {exc.strerror} (kubernetes_controller:rollout:snapshots:directory). {once}"
        raise CommandExecutionError(said) from exc
    for left in glob.glob(f"{directory}/etcd-*-before-*.db.part"):  # of an etcdctl that was killed: the turn has one holder
        os.unlink(left)
    target = f"{directory}/etcd-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-before-{label}.db"
    try:
        save(row, target)
        etcdutl = os.path.join(os.path.dirname(row["etcdctl"]), "etcdutl")
        answer = _run(_lesser([etcdutl, "snapshot", "status", target, "--write-out=json"]), {})
        if killed := _killed(answer):
            raise Unanswered(f"{target} could not be verified: {killed}. Run this again.")
        if answer.returncode or not json.loads(answer.stdout).get("totalKey"):
            said = (answer.stderr or answer.stdout).strip()[-300:].rstrip(".")
            raise Unanswered(
                f"{target} is not a good snapshot: {said}. The data of this cluster may be damaged: compare its members (`salt "
                "'controller-*' k8s_etcd_members.status`) before anything else."
            )
    except CommandExecutionError as exc:
        if os.path.exists(target):
            os.unlink(target)
        if getattr(exc, "unanswered", False):
            raise
        raise CommandExecutionError(f"{str(exc).rstrip('.')}. {once}") from exc
    __salt__["k8s_durable.sync"](target)
    __salt__["k8s_durable.sync"](directory)
    for stale in sorted(glob.glob(f"{directory}/etcd-*-before-*.db"))[:-number]:
        os.unlink(stale)
    return target


def _refuse_too_large(size, directory, max_mib):
    free = shutil.disk_usage(directory).free / MIB
    if max_mib is not None and size > max_mib:
        raise CommandExecutionError(
            f"etcd holds {size:.0f} MiB, more than kubernetes_controller:rollout:rehearsal:max_mib ({max_mib}). Raise it, or "
            "rehearse without a copy: kubernetes_controller:rollout:rehearsal:data: empty."
        )
    if free < ROOM * size + 64:
        raise CommandExecutionError(f"{directory} has {free:.0f} MiB free, too little for a copy of etcd's {size:.0f} MiB.")


def _lesser(command):
    """Return the command by which one that reads or writes all of the data loses against what serves."""
    return __salt__["k8s_stage.lesser"](command, of="system.slice")


def _killed(answer):
    """Return how a program was ended before it could answer, or None."""
    if answer.returncode >= 0:
        return None
    return f"it was ended by {signal.Signals(-answer.returncode).name} (is there no memory left on this node?)"


def _run(command, environment):
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), **environment}
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return subprocess.CompletedProcess(command, 1, "", str(exc))
