"""
Decide, on the master, in which order a rollout goes over the controllers.
"""

import re

from salt.exceptions import CommandExecutionError


def plan(cfg, scheduled=False, test=False):
    """
    Ask the controllers what they run, and return how a rollout is to go over them.

    cfg
        The cluster's resolved configuration (dict).
    scheduled
        Nobody starts this run: unless a certificate is due, it is left to ``rollout:mode`` whether anything is
        promoted (default False: the run promotes).
    test
        Whether it is a test run (default False). Such a run cannot sync the formula's modules.

    Returns a dictionary:

    - ``serving``: whether an API server may serve somewhere; if so, the controllers are rolled one after another. None does
      where a managed etcd has too few members that run: one that is started alone waits for the others
    - ``installed``: whether anything of the formula is live somewhere; if so, all rehearse before any moves
    - ``phases``: a list of ``[names of SLS, minion ids in their order]``. What does not serve comes first, since the
      others wait for it, and etcd's leader goes last. API servers come before what asks them, and after it on the way
      back over a minor release (https://kubernetes.io/releases/version-skew-policy/: nothing is newer than its API server),
      unless one does not run, which is then to be repaired before anything can pass its gate beside it
    - ``unsynced``: minions without this version's modules (only in a test run; one that does not answer is none)
    - ``mode``: the ``rollout:mode`` of this run

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_roll.plan "$CONFIGURATION"
    """
    nodes = list(cfg["controllers"])
    # Functions of Salt's own, so that nodes without the formula's modules answer, too; one that does not answer may serve.
    runs = _ask(nodes, "service.status", "kube-apiserver")
    idle = [node for node in nodes if runs[node] is False]
    runs_somewhere = len(idle) < len(nodes)
    lost = _lost_members(cfg, nodes) if runs_somewhere else []
    serving = runs_somewhere and len(nodes) - len(lost) > len(nodes) // 2
    installed = runs_somewhere or True in _ask(nodes, "file.is_link", f"{cfg['conf_dir']}/live").values()
    leads = _ask(nodes, "k8s_etcdctl.leads") if serving and cfg["etcd"]["managed"] else {}
    lives = _ask(nodes, "k8s_generation.release", cfg["conf_dir"]) if serving else {}
    back = not idle and any(_minor(live) > _minor(cfg["release"]) for live in lives.values())
    phases = sorted(cfg["phases"], key=lambda phase: (phase != ["etcd"], "apiserver" in phase)) if back else cfg["phases"]
    order = sorted(nodes, key=lambda node: node not in idle)
    last = sorted(order, key=lambda node: (node not in lost, leads.get(node) is True))
    return {
        "serving": serving,
        "installed": installed,
        "phases": [[phase, last if phase == ["etcd"] else order] for phase in phases],
        "unsynced": _unsynced(nodes) if test else [],
        "mode": cfg["rollout"]["mode"] if scheduled and not _due(nodes, cfg["pki"]) else "automatic",
    }


def _ask(nodes, function, *arguments):
    return __salt__["k8s_controllers.ask"](nodes, function, *arguments)


def _lost_members(cfg, nodes):
    """Return the nodes where a managed etcd is installed, and does not run."""
    if not cfg["etcd"]["managed"]:
        return []
    runs = _ask(nodes, "service.status", "etcd")
    stopped = [node for node in nodes if runs[node] is False]
    installed = _ask(stopped, "file.is_link", f"{cfg['etcd']['conf_dir']}/live") if stopped else {}
    return [node for node in stopped if installed[node] is True]


def _minor(release):
    """Return what a release is compared by; of what is none, what is below all."""
    found = re.match(r"(\d+)\.(\d+)\.", str(release))
    return [int(number) for number in found.groups()] if found else []


def _unsynced(nodes):
    said = _ask(nodes, "k8s_config.load")
    heard = {node: answer for node, answer in said.items() if answer is not None}
    return sorted(node for node, answer in heard.items() if not isinstance(answer, dict) or "stale" in answer)


def _due(nodes, pki):
    """Return whether leaf certificates are to be made, or were made and did not reach a node before their time."""
    try:
        found = __salt__["k8s_pki.differences"](pki)
    except (CommandExecutionError, OSError, ValueError):
        return False  # told by the state that makes them
    leaves = {row[part] for row in pki["certificates"] for part in ("path", "key")}
    if leaves & set(found):
        return True
    soon = min([pki["days_remaining"], *(row["days_valid"] / 3 for row in pki["certificates"])])
    ending = _ask(nodes, "k8s_certificate.expiry", soon) if leaves else {}
    ending = [said for said in ending.values() if isinstance(said, dict)]
    files = [(file, words) for said in ending for files in said.values() for file, words in files.items()]
    return any(" days" in words and not file.endswith("ca.crt") for file, words in files)
