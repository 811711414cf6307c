"""
Manage kubeconfigs.
"""

from salt.exceptions import CommandExecutionError, SaltInvocationError


def managed(
    name,
    server,
    cluster,
    user,
    authority,
    certificate,
    key,
    embed=True,
    mode="0600",
    owner=None,
    group=None,
    keep=None,
    mended_before=False,
):
    """
    Ensure that the kubeconfig at ``name`` leads to ``server`` as the holder of ``certificate``.

    name
        Absolute path of the file. Its directory is made (0700) where it is missing.
    server
        URL of the API server, for instance ``https://10.8.0.101:6443``.
    cluster, user
        Names of the cluster and of the user in it.
    authority, certificate, key
        Absolute paths of PEM files, or pillar keys such as ``kubernetes_controller_pki:admin.crt``. Never the
        material itself: states' arguments are stored by Salt.
    embed
        True (default): the file holds the credentials. False: it names their paths.
    mode, owner, group
        Of the file: mode as an octal string (default "0600"), owner and group as they are when not given.
    keep
        The directory of certificates below which a file with another content is kept before it is overwritten; the five
        latest stay (default: it is not kept).
    mended_before
        True: an earlier step of the same run makes credentials that are missing, so a test run cannot know what follows
        from them (default False).

    .. code-block:: yaml

        The operator's kubeconfig is in place:
          k8s_kubeconfig.managed:
            - name: /root/.kube/config
            - server: https://k8s.example.com:6443
            - cluster: kubernetes
            - user: kubernetes-admin
            - authority: /srv/kubernetes_controller/pki/authorities/kubernetes-ca.crt
            - certificate: /srv/kubernetes_controller/pki/admin/admin.crt
            - key: /srv/kubernetes_controller/pki/admin/admin.key
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        wanted = __salt__["k8s_kubeconfig.from_references"](server, cluster, user, authority, certificate, key, embed=embed)
        changes = __salt__["k8s_kubeconfig.differences"](name, wanted, mode=mode, user=owner, group=group)
    except (CommandExecutionError, SaltInvocationError, OSError) as exc:
        if __opts__["test"] and mended_before and getattr(exc, "to_come", False):
            return ret | {"result": None, "comment": f"{name} would be written once this exists: {exc}"}
        return ret | {"result": False, "comment": str(exc)}
    if not changes:
        return ret | {"comment": f"{name} is as declared."}
    ret["changes"] = changes
    if __opts__["test"]:
        return ret | {"result": None, "comment": f"{name} would be written."}
    try:
        __salt__["k8s_kubeconfig.write"](name, wanted, mode=mode, user=owner, group=group, keep=keep)
    except (CommandExecutionError, OSError) as exc:
        return ret | {"result": False, "changes": {}, "comment": f"{name} was not written: {exc}"}
    return ret | {"comment": f"{name} was written."}
