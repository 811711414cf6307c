"""
Install released binaries by checksum.
"""

from salt.exceptions import CommandExecutionError


def reachable(name, rows):
    """
    Ensure that a mirror answers, where something of it is missing, so that a dead one is told once.

    name
        The pillar key of the mirror, for people.
    rows
        The rows of the configuration's ``downloads`` that come from it.

    Nothing is asked when all files are in place, nor in test mode.

    .. code-block:: yaml

        The mirror of kubernetes_controller:binaries:mirror answers:
          k8s_binary.reachable:
            - name: kubernetes_controller:binaries:mirror
            - rows: [{name: kubectl, source: https://dl.k8s.io/…}]
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": f"{name}: nothing of it is needed."}
    if __opts__["test"]:
        return ret | {"comment": f"{name}: not asked in test mode."}
    try:
        wanted = next((row for row in rows if __salt__["k8s_binary.missing"](row)), None)
    except CommandExecutionError:  # each row's own state tells
        wanted = None
    if wanted is None:
        return ret
    reason = __salt__["k8s_binary.unreachable"](wanted)
    return ret | ({"result": False, "comment": reason} if reason else {"comment": f"{name} answers."})


def installed(name, row):
    """
    Ensure that the files of one download are in place, and are what was published or pinned.

    name
        The file in the directory, for people; what is done stands in ``row``.
    row
        A row of the configuration's ``downloads`` (see ``k8s_binary.install``).

    Nothing is fetched when the files are in place, nor in test mode. What was closed to others than root, as by a umask, is
    opened again. Links for people are moved later, by ``linked``; but a file where one of them is to be is an error at once.

    .. code-block:: yaml

        kubectl 1.37.2 is installed:
          k8s_binary.installed:
            - name: /opt/kubernetes/1.37.2/bin/kubectl
            - row: {name: kubectl, directory: /opt/kubernetes/1.37.2/bin, source: https://dl.k8s.io/…}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        hindrance = __salt__["k8s_binary.in_the_way"](row)
        if hindrance:
            return ret | {"result": False, "comment": hindrance}
        reasons, closed = __salt__["k8s_binary.missing"](row), __salt__["k8s_binary.closed"](row)
        if not reasons and not closed:
            return ret | {"comment": f"{row['directory']} has what {row['source']} published."}
        changes = {path: {"old": mode, "new": "open to all"} for path, mode in closed.items()}
        changes |= {file: {"old": reason, "new": row["source"]} for file, reason in reasons.items()}
        if __opts__["test"]:
            said = f"{row['source']} would be fetched." if reasons else f"{', '.join(closed)} would be opened to all."
            return ret | {"result": None, "changes": changes, "comment": said}
        __salt__["k8s_binary.open_up"](row)
        if not reasons:
            return ret | {"changes": changes, "comment": f"{', '.join(closed)} can be passed and executed by all again."}
        __salt__["k8s_binary.install"](row)
    except CommandExecutionError as exc:
        return ret | {"result": False, "comment": str(exc)}
    return ret | {"changes": changes, "comment": f"{row['source']} was fetched and its checksum is right."}


def linked(name, row):
    """
    Ensure that the links for people lead to the declared release, once that is what runs on this node.

    name
        The directory of the release, for people; what is done stands in ``row``.
    row
        A row of the configuration's ``downloads`` (see ``k8s_binary.links`` and ``k8s_binary.awaited``).

    A release that was refused, taken back, or in ``rollout:mode: manual`` not promoted, leaves the links as they are.

    .. code-block:: yaml

        kubectl 1.37.2 is what people get:
          k8s_binary.linked:
            - name: /opt/kubernetes/1.37.2/bin
            - row: {links: {/usr/local/bin/kubectl: /opt/kubernetes/1.37.2/bin/kubectl}, runs: null, adopt: false}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    moved = __salt__["k8s_binary.links"](row)
    if not moved:
        return ret | {"comment": f"{', '.join(row['links'])}: as declared."}
    awaited = __salt__["k8s_binary.awaited"](row)
    # In test mode the component, which comes first in a whole run, is still the old one.
    if awaited and not (__opts__["test"] and row["mode"] == "automatic"):
        return ret | {"comment": awaited}
    changes = {link: {"old": present, "new": row["links"][link]} for link, present in moved.items()}
    if __opts__["test"]:
        return ret | {"result": None, "changes": changes, "comment": f"{', '.join(moved)} would be linked."}
    try:
        __salt__["k8s_binary.link"](row)
    except (CommandExecutionError, OSError) as exc:
        return ret | {"result": False, "comment": str(exc)}
    return ret | {"changes": changes, "comment": f"{', '.join(moved)} were linked."}


def pruned(name, row):
    """
    Ensure that no more releases are kept on this node than the pillar says, the oldest going first, and nothing of a fetch
    that was killed.

    name
        The directory of the releases, for people; what is done stands in ``row``.
    row
        A row of the configuration's ``releases`` (see ``k8s_binary.stale``). What runs or may be gone back to stays.

    .. code-block:: yaml

        No more releases of Kubernetes are kept than declared:
          k8s_binary.pruned:
            - name: /opt/kubernetes
            - row: {directory: /opt/kubernetes, declared: 1.37.2, homes: [/var/lib/kubernetes], keep: 3}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    gone = __salt__["k8s_binary.stale"](row)
    if not gone:
        return ret | {"comment": f"{name} has no release too many."}
    changes = {"removed": gone}
    if __opts__["test"]:
        return ret | {"result": None, "changes": changes, "comment": f"{', '.join(gone)} would be removed."}
    try:
        __salt__["k8s_binary.remove"](row)
    except OSError as exc:
        return ret | {"result": False, "comment": f"{exc.filename}: {exc.strerror}"}
    return ret | {"changes": changes, "comment": f"{', '.join(gone)}: removed."}
