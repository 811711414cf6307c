"""
Build, compare and write kubeconfigs.
"""

import base64
import os

import salt.utils.files
import yaml
from salt.exceptions import CommandExecutionError

SECRET = ("client-key-data", "token", "password")
KEPT = 5


class Missing(CommandExecutionError):
    """A credential is not there."""

    to_come = True  # if a step before makes it


def render(server, cluster, user, authority, certificate, key, embed=True):
    """
    Return the text of a kubeconfig with one context.

    server
        URL of the API server, for instance ``https://10.8.0.101:6443``.
    cluster, user
        Names of the cluster and of the user in it; the context is named after the cluster.
    authority, certificate, key
        PEM texts, or the absolute paths of such files where ``embed`` is False.
    embed
        True (default): the credentials are inside the file. False: it names their paths.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_kubeconfig.render https://10.8.0.101:6443 kubernetes me /a/ca.crt /a/me.crt /a/me.key embed=False
    """
    if embed:
        data = [base64.b64encode(text.encode()).decode() for text in (authority, certificate, key)]
        names = ("certificate-authority-data", "client-certificate-data", "client-key-data")
    else:
        data = [authority, certificate, key]
        names = ("certificate-authority", "client-certificate", "client-key")
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {"server": server, names[0]: data[0]}}],
        "users": [{"name": user, "user": {names[1]: data[1], names[2]: data[2]}}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
        "current-context": cluster,
    }
    return yaml.safe_dump(document, sort_keys=True, default_flow_style=False)


def from_references(server, cluster, user, authority, certificate, key, embed=True):
    """
    Return what ``render`` does, with the credentials taken by reference.

    authority, certificate, key
        Absolute path of a PEM file, or a pillar key such as ``kubernetes_controller_pki:admin.crt``. Paths only
        where ``embed`` is False.

    Raises CommandExecutionError that names a file or pillar key; with ``to_come`` where it is missing.

    This function is for other modules: what it returns holds a private key when ``embed`` is True.

    server, cluster, user, embed
        As for ``render``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_kubeconfig.from_references https://10.8.0.101:6443 kubernetes me /a/ca /a/crt /a/key embed=False
    """
    references = (authority, certificate, key)
    material = [_resolve(reference) if embed else _path(reference) for reference in references]
    return render(server, cluster, user, *material, embed=embed)


def differences(name, text, mode="0600", user=None, group=None):
    """
    Return how the file at ``name`` differs from ``text``, in words fit for an operator, or {} when it does not.

    mode, user, group
        What the file must have (user and group are not looked at when None).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_kubeconfig.differences /root/.kube/config "$(cat wanted)"
    """
    if not os.path.isfile(name):
        return {"file": {"old": None, "new": f"kubeconfig for {_facts(text)['server']}"}}
    changes = {}
    present = _read(name)
    if present != text:
        old, new = _facts(present), _facts(text)
        changes = {k: {"old": old.get(k), "new": new.get(k)} for k in new if old.get(k) != new.get(k)}
        changes = changes or {"layout": {"old": "other", "new": "as declared"}}
    stats = __salt__["file.stats"](name)
    for key, wanted in (("mode", mode), ("user", user), ("group", group)):
        if wanted and stats[key] != wanted:
            changes[key] = {"old": stats[key], "new": wanted}
    return changes


def write(name, text, mode="0600", user=None, group=None, keep=None):
    """
    Write ``text`` to ``name`` in one rename, never readable by others in between; a missing directory is made 0700.

    name, text
        Absolute path and content.

    mode, user, group
        Of the file: mode as an octal string (default "0600"), owner and group as they are when not given.

    keep
        Absolute path of the directory of certificates: what the file was is kept below it first (``k8s_kept``), as
        ``admin/kubeconfig``, where it is another; the five latest stay. Default: it is not kept.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_kubeconfig.write /root/.kube/config "$(cat wanted)"
    """
    try:
        os.makedirs(os.path.dirname(name), mode=0o700, exist_ok=True)
    except OSError as exc:
        raise CommandExecutionError(f"{exc.filename}: {exc.strerror}") from exc
    if keep and os.path.isfile(name) and _read(name) != text:
        with __salt__["k8s_kept.locked"](keep):
            __salt__["k8s_kept.keep"](keep, name, name="admin/kubeconfig", most=KEPT)
    try:
        return __salt__["k8s_durable.write"](name, text, mode=mode, user=user, group=group)
    except LookupError as exc:
        raise CommandExecutionError(f"{name}: {exc.args[0]}") from exc


def certificate(text):
    """
    Return the client certificate (PEM) that a kubeconfig presents; "" when it has none.

    text
        The kubeconfig. A certificate that it names by path is read there.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_kubeconfig.certificate "$(cat kubeconfig)"
    """
    try:
        user = yaml.safe_load(text)["users"][0]["user"]
        if "client-certificate-data" in user:
            return base64.b64decode(user["client-certificate-data"]).decode()
        with salt.utils.files.fopen(user["client-certificate"], encoding="utf-8") as handle:
            return handle.read()
    except (OSError, ValueError, AttributeError, KeyError, IndexError, RecursionError, TypeError, yaml.YAMLError):
        return ""


def pair(text):
    """
    Return the client certificate and its key (PEM) that are inside a kubeconfig.

    This function is for other modules: what it returns holds a private key.

    text
        The kubeconfig.

    Raises CommandExecutionError with the line where it has none, and quotes nothing.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_kubeconfig.pair "$(cat kubeconfig)"
    """
    try:
        user = yaml.safe_load(text)["users"][0]["user"]
        return [base64.b64decode(user[f"client-{part}-data"]).decode() for part in ("certificate", "key")]
    except (yaml.YAMLError, AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as exc:
        mark = getattr(exc, "problem_mark", None)
        raise CommandExecutionError(
            f"not a kubeconfig with a client's certificate and key{f' (line {mark.line + 1})' if mark else ''}"
        ) from None  # a parser's own words quote the text


def _read(name):
    with salt.utils.files.fopen(name, encoding="utf-8") as handle:
        return handle.read()


def _facts(text):
    """Return what identifies a kubeconfig without its secrets: server, user, and a description of the credentials."""
    try:
        document = yaml.safe_load(text)
        cluster, user = document["clusters"][0], document["users"][0]
        facts = {"server": cluster["cluster"].get("server"), "user": user["name"]}
        for section, key in ((cluster["cluster"], "certificate-authority"), (user["user"], "client-certificate")):
            if key in section:
                facts[key] = section[key]
            elif f"{key}-data" in section:
                facts[key] = __salt__["k8s_certificate.describe"](base64.b64decode(section[f"{key}-data"]).decode())
        secret = user["user"].get("client-key-data")
        facts["key"] = user["user"].get("client-key") or (_digest(secret) if secret else None)
        return facts
    except (yaml.YAMLError, AttributeError, KeyError, IndexError, RecursionError, TypeError, ValueError, CommandExecutionError):
        return {"server": "unreadable"}


def _digest(secret):
    import hashlib

    return "key " + hashlib.sha256(secret.encode()).hexdigest()[:12]


def _resolve(reference):
    if reference.startswith("/"):
        try:
            with salt.utils.files.fopen(reference, encoding="utf-8") as handle:
                return handle.read()
        except OSError as exc:
            kind = Missing if isinstance(exc, FileNotFoundError) else CommandExecutionError
            raise kind(f"{reference}: {exc.strerror}") from exc
        except UnicodeDecodeError:
            raise CommandExecutionError(f"{reference}: not a text (DER?). Put PEM there.") from None
    value = __pillar__
    for part in reference.split(":"):
        value = value.get(part) if hasattr(value, "get") else None
    if value is None:
        raise Missing(f"pillar {reference}: missing")
    if not isinstance(value, str):
        raise CommandExecutionError(f"pillar {reference}: not a text")
    return value


def _path(reference):
    if not reference.startswith("/"):
        raise CommandExecutionError(f"{reference}: with embed: false a path is needed, not a pillar key")
    return reference
