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
