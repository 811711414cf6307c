"""
Install released binaries by checksum.
"""

from salt.exceptions import CommandExecutionError


def installed(name, row):
    """
    Ensure that the files of one download are in place, are what was published or pinned, and have their links.

    name
        The file in the directory, for people; what is done stands in ``row``.
    row
        A row of the configuration's ``downloads`` (see ``k8s_binary.install``).

    Nothing is fetched when the files are in place, nor in test mode.

    .. code-block:: yaml

        kubectl 1.37.2 is installed:
          k8s_binary.installed:
            - name: /opt/kubernetes/1.37.2/bin/kubectl
            - row: {name: kubectl, directory: /opt/kubernetes/1.37.2/bin, source: https://dl.k8s.io/…}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        reasons = __salt__["k8s_binary.missing"](row)
        links = __salt__["k8s_binary.links"](row)
        if not reasons and not links:
            return ret | {"comment": f"{row['directory']} has what {row['source']} published."}
        changes = {file: {"old": reason, "new": row["source"]} for file, reason in reasons.items()}
        changes |= {link: {"old": present, "new": row["links"][link]} for link, present in links.items()}
        if __opts__["test"]:
            verb = "fetched" if reasons else "linked"
            return ret | {"result": None, "changes": changes, "comment": f"{row['source']} would be {verb}."}
        if reasons:
            __salt__["k8s_binary.install"](row)
        __salt__["k8s_binary.link"](row)
    except CommandExecutionError as exc:
        return ret | {"result": False, "comment": str(exc)}
    verb = "was fetched and its checksum is right" if reasons else "has its links"
    return ret | {"changes": changes, "comment": f"{row['source']} {verb}."}


def pruned(name, row):
    """
    Ensure that no more releases are kept on this node than the pillar says, the oldest going first.

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
    return ret | {"changes": changes, "comment": f"{', '.join(gone)} was removed."}
