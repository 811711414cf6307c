"""
What the components have to show in a rehearsal: a piece of the work that they are there for.

The requests go to the API server on the stage, as an operator (the identity of ``k8s_health.api``).
"""

import base64
import json
import time
import urllib.parse
import uuid

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PAGE = 500
MANAGER, SCHEDULER = "kube-controller-manager", "kube-scheduler"
CSRS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
RESTRICTED = {  # what the strictest Pod Security level asks for
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


class _Refused(Exception):
    """The API server did not do as asked; the text says what and why."""


def apiserver(api, resources):
    """
    Let the API server read every stored object of some resources, and let an operator write and read.

    api
        The row that stands for kube-apiserver (see ``k8s_stage.dress``).
    resources
        Resources (list) as an EncryptionConfiguration names them, for instance ``secrets`` or ``deployments.apps``. A
        wrong encryption key shows here and nowhere else.

    Returns None, or what is at fault: ``component`` and ``said``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_scene.apiserver "$ROW" '["secrets"]'
    """
    name = _name()
    try:
        for resource in resources:
            _read_all(api, resource)
        _create_namespace(api, name)
        for kind, plural in (("ConfigMap", "configmaps"), ("Secret", "secrets")):
            path = f"/api/v1/namespaces/{name}/{plural}"
            body = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}}
            _ask(api, "POST", path, body, f"a {kind} cannot be created")
            _ask(api, "GET", f"{path}/{name}", None, f"a {kind} cannot be read")
            _ask(api, "DELETE", f"{path}/{name}", None, f"a {kind} cannot be deleted")
    except _Refused as exc:
        return {"component": api["name"], "said": str(exc)}
    return None


def unreadable(api, resources):
    """
    Return why stored objects cannot be read (str), or None where they can or nothing is known.

    An API server that cannot decrypt what is stored is alive, but never ready; its answer to a list says why.

    api, resources
        See ``apiserver``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_scene.unreadable "$ROW" '["secrets"]'
    """
    for resource in resources:
        try:
            _read_all(api, resource)
        except _Refused as exc:
            if "StorageError" in str(exc):
                return str(exc)
    return None


def controllers(api, rows, timeout_s):
    """
    Let the controller-manager make an account and sign a certificate, and the scheduler judge a pod.

    api
        See ``apiserver``.
    rows
        The rows that stand for the components which take part (dict by name); who is not in it has nothing to show.
    timeout_s
        How long they may take together, in seconds.

    Returns None, or what is at fault: ``component`` and ``said``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_scene.controllers "$ROW" "$ROWS" 30
    """
    deadline, name = time.monotonic() + timeout_s, _name()
    try:
        scenes = _scenes(api, rows, name, deadline)
    except _Refused as exc:
        return {"component": api["name"], "said": str(exc)}
    while scenes:
        scenes = [scene for scene in scenes if not scene[2]()]
        if scenes and time.monotonic() > deadline:
            component, said, _ = scenes[0]
            complaint = __salt__["k8s_component.complaint"](rows[component]["unit_name"], since=rows[component]["since"])
            return {"component": component, "said": f"{said}: {complaint}" if complaint else said}
        time.sleep(0.2)
    return None


def _scenes(api, rows, name, deadline):
    """Set the work; return who has to do it, what to say when it is not done, and a function that tells whether it is."""
    if MANAGER not in rows and SCHEDULER not in rows:
        return []
    _create_namespace(api, name)
    account, scenes = f"/api/v1/namespaces/{name}/serviceaccounts/default", []
    flags = __salt__["k8s_generation.flags"](rows[MANAGER]["home"]) if MANAGER in rows else None
    makes_accounts = flags is not None and _controls(flags, "serviceaccount-controller")
    if makes_accounts:
        scenes.append((MANAGER, "it made no default ServiceAccount in a new Namespace", lambda: _found(api, account)))
    if flags is not None and "cluster-signing-cert-file" in flags and _controls(flags, "csrsigning-controller"):
        _request_certificate(api, name)
        scenes.append((MANAGER, "it signed no approved CertificateSigningRequest", lambda: _is_signed(api, name)))
    if SCHEDULER in rows:
        _create_pod(api, name, _profile(rows[SCHEDULER]), None if makes_accounts else account, deadline)
        scenes.append((SCHEDULER, "it judged no new Pod", lambda: _is_judged(api, name)))
    return scenes


def _create_namespace(api, name):
    """Create a Namespace of the rehearsal's own: there is no quota in it, and no policy for it."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    _ask(api, "POST", "/api/v1/namespaces", body, "a Namespace cannot be created")


def _controls(flags, controller):
    """Tell whether ``--controllers`` leaves a controller on (kube-controller-manager's reference)."""
    listed = flags.get("controllers", "*").split(",")
    return f"-{controller}" not in listed and ("*" in listed or controller in listed)


def _request_certificate(api, name):
    """Create and approve a CertificateSigningRequest."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    spec = {
        "request": base64.b64encode(request.public_bytes(serialization.Encoding.PEM)).decode(),
        "signerName": "kubernetes.io/kube-apiserver-client",
        "usages": ["client auth"],
    }
    head = {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name}}
    made = _ask(api, "POST", CSRS, {**head, "spec": spec}, "a CertificateSigningRequest cannot be created")
    approval = {"type": "Approved", "status": "True", "reason": "Rehearsal", "message": "by a rehearsal"}
    made["status"] = {"conditions": [approval]}
    _ask(api, "PUT", f"{CSRS}/{name}/approval", made, "a CertificateSigningRequest cannot be approved")


def _is_signed(api, name):
    return (_found(api, f"{CSRS}/{name}") or {}).get("status", {}).get("certificate")


def _create_pod(api, name, profile, account, deadline):
    """Create a pod that no node can take; also the account it needs, where nobody else makes it."""
    if account:
        body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        _ask(api, "POST", account.rpartition("/")[0], body, "a ServiceAccount cannot be created")
    spec = {
        "containers": [{"name": "none", "image": "none.invalid/none", "securityContext": RESTRICTED}],
        "nodeSelector": {"rehearsal": name},
        "automountServiceAccountToken": False,
        "schedulerName": profile,
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    while True:
        try:
            return _ask(api, "POST", f"/api/v1/namespaces/{name}/pods", pod, "a Pod cannot be created")
        except _Refused as exc:
            if "serviceaccount" not in str(exc) or time.monotonic() > deadline:  # admission waits for the account
                raise
        time.sleep(0.2)


def _is_judged(api, name):
    pod = _found(api, f"/api/v1/namespaces/{name}/pods/{name}") or {}
    return any(condition["type"] == "PodScheduled" for condition in pod.get("status", {}).get("conditions", []))


def _profile(row):
    """Return the name by which pods ask for the scheduler."""
    for file in row["files"].values():
        for profile in (file.get("yaml") or {}).get("profiles") or []:
            return profile.get("schedulerName", "default-scheduler")
    return "default-scheduler"


def _read_all(api, resource):
    path, following = _collection(api, resource), ""
    while path and following is not None:
        query = urllib.parse.urlencode({"limit": PAGE, **({"continue": following} if following else {})})
        listed = _ask(api, "GET", f"{path}?{query}", None, f"stored {resource} cannot be read")
        following = listed["metadata"].get("continue") or None


def _collection(api, resource):
    """Return the path of all objects of a resource; None where the API has none."""
    name, _, group = resource.partition(".")
    if not group:
        return f"/api/v1/{name}"
    known = _found(api, f"/apis/{group}")
    for version in known["versions"] if known else ():
        listed = _found(api, f"/apis/{version['groupVersion']}")
        if listed and name in [one["name"] for one in listed["resources"]]:
            return f"/apis/{version['groupVersion']}/{name}"
    return None


def _name():
    return f"rehearsal-{uuid.uuid4().hex[:10]}"


def _found(api, path):
    answer = _request(api, path)
    return json.loads(answer["body"]) if answer["status"] == 200 else None


def _ask(api, method, path, body, why):
    answer = _request(api, path, method=method, body=None if body is None else json.dumps(body))
    if answer["status"] in (200, 201, 202):
        return json.loads(answer["body"])
    try:
        said = json.loads(answer["body"]).get("message", "")
    except ValueError:
        said = answer["body"].strip()
    raise _Refused(f"{why}: {answer['status']} {said[:300]}")


def _request(api, path, **words):
    try:
        return __salt__["k8s_stage.inside"]("k8s_health.api", api, path, **words)
    except OSError as exc:
        raise _Refused(f"{path}: {exc}") from exc
