"""
The overlap of promise 3: what a generation writes or signs, and what one accepts. As fingerprints, never keys.

``writes``, ``accepts`` and ``encryption`` read generations, declared or live; ``differing`` and ``refusals`` only compare.
A fingerprint is a SHA-256 of key material with a label before it, so it is of no use where another hash of the same key is
known. What clients hold on to (``k8s_clients``) is no secret and told as it is.
"""

import glob
import hashlib
import os

import salt.utils.files
from salt.exceptions import CommandExecutionError

LABEL = "kubernetes-controller-formula"
PLAIN = "identity"  # what is written without encryption
ENCRYPTION = "encryption-provider-config"
SIGNS = {"kube-apiserver": "service-account-signing-key-file", "kube-controller-manager": "service-account-private-key-file"}
# Certificates that a generation presents to other controllers, and who accepts them there.
PRESENTS = {
    "kube-apiserver": {"tls-cert-file": "serving-ca", "proxy-client-cert-file": "front-proxy-ca", "etcd-certfile": "etcd-ca"},
    "etcd": {"cert-file": "etcd-ca", "peer-cert-file": "etcd-ca"},
}
TRUSTS_ETCD = {"kube-apiserver": ("etcd-cafile",), "etcd": ("trusted-ca-file", "peer-trusted-ca-file")}
WHERE = {"encryption": "encryption", "issuers": "apiserver:settings:service-account-issuer"}
WAYS = {
    "encryption": (
        "Add it behind the present key on all controllers first, apply, then move it to the front "
        "(salt-run state.orchestrate kubernetes_controller.orchestrate.rotate_encryption does that)"
    ),
    "service-account": (
        "Let all API servers verify with the new public key beside the present one first, apply, then sign with it "
        "(salt-run state.orchestrate kubernetes_controller.orchestrate.rotate_service_account does that with the master's key; "
        "one of your own goes into kubernetes_controller:apiserver:files:service-account.pub)"
    ),
    "issuers": (
        "List it behind the present one in kubernetes_controller:apiserver:settings:service-account-issuer first (the default "
        "has kubernetes_controller:cluster:domain in it), roll out, then put it first"
    ),
    "ca": (
        "Let all controllers trust the new CA beside the present one first, apply, then use its certificates "
        "(salt-run state.orchestrate kubernetes_controller.orchestrate.rotate_ca does that with the master's CAs; one of your "
        "own goes into the component's files, such as kubernetes_controller:apiserver:files:client-ca.crt)"
    ),
}


def writes(row, directory=None):
    """
    Return what a generation writes or signs that other controllers have to accept.

    row
        A row of the configuration's ``components``.
    directory
        Where the row's declared generation is drafted (``k8s_generation.draft``); without it the live one counts.

    A dictionary of what it is (such as ``encryption secrets``) to ``kind``, ``fingerprint`` and ``said`` (in words).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_overlap.writes "$ROW"
    """
    flags = _flags(row, directory)
    found = {}
    if row["name"] == "kube-apiserver":
        for resource, keys in encryption(row, directory).items():
            kind, name, fingerprint = keys[0]
            said = f"the first key for {resource} ({f'{kind} {name}'.strip()})"
            found[f"encryption {resource}"] = _thing("encryption", fingerprint, said, resource)
        for issuer in __salt__["k8s_clients.held"]({row["name"]: flags}).get("issuers", [])[:1]:
            found["issuer"] = _thing("issuers", issuer, f"the issuer of service account tokens ({issuer})")
    key = _read(flags.get(SIGNS.get(row["name"]), ""))
    for fingerprint in __salt__["k8s_certificate.public_keys"](key)[:1] if key else []:
        said = f"the key with which {row['name']} signs service account tokens"
        found[f"service-account {row['name']}"] = _thing("service-account", _marked("service-account", fingerprint), said)
    return found | _presented(row, flags, directory or os.path.join(row["home"], "live"))


def accepts(components, drafts=None):
    """
    Return what this node accepts: {kind: list of fingerprints}, from its live generations.

    components
        The configuration's ``components`` (dict of rows); those of etcd and of the API server count.
    drafts
        {component: directory} of declared generations that count in the place of the live ones.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_overlap.accepts '{}'
    """
    drafts = drafts or {}
    flags = {name: _flags(row, drafts.get(name)) for name, row in components.items()}
    api = flags.get("kube-apiserver", {})
    encrypted = encryption(components["kube-apiserver"], drafts.get("kube-apiserver")) if api else {}
    etcd = [
        set(_authorities("etcd-ca", flags[name][flag]))
        for name, names in TRUSTS_ETCD.items()
        for flag in names
        if flags.get(name, {}).get(flag)
    ]
    # With these a node asks whether its neighbours are ready.
    serving = [
        set(_authorities("serving-ca", os.path.join(drafts.get(name) or f"{row['home']}/live", "ca.crt")))
        for name, row in components.items()
        if name != "etcd" and flags[name]
    ]
    return {
        "encryption": [f"{resource} {key}" for resource, keys in encrypted.items() for *_, key in keys],
        **__salt__["k8s_clients.held"](flags),
        "service-account": [
            _marked("service-account", key)
            for path in _listed(api.get("service-account-key-file") or api.get("tls-private-key-file", ""))
            for key in __salt__["k8s_certificate.public_keys"](_read(path))
        ],
        "client-ca": _authorities("client-ca", api.get("client-ca-file", "")),
        "front-proxy-ca": _authorities("front-proxy-ca", api.get("requestheader-client-ca-file", "")),
        "etcd-ca": sorted(set.intersection(*etcd)) if etcd else [],
        "serving-ca": sorted(set.intersection(*serving)) if serving else [],
    }


def encryption(row, directory=None):
    """
    Return what a generation of kube-apiserver reads stored objects with: {resource: list of kind, name and fingerprint}.

    row, directory
        See ``writes``.

    The first of a resource is what it writes with. Raises CommandExecutionError where what is declared is no
    EncryptionConfiguration; where what is live is none, it knows nothing.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_overlap.encryption "$ROW"
    """
    path = _flags(row, directory).get(ENCRYPTION, "")
    text, name, found = _read(path), os.path.basename(path), {}
    where = f"kubernetes_controller:{row['key']}:files:{name}" if directory and name in row["files"] else path
    try:
        entries = __salt__["k8s_encryption.parse"](text, where) if text else []
    except CommandExecutionError:
        if directory:
            raise
        return {}  # what is live may be what is to be repaired
    for entry in entries:
        keys = [
            key for provider in entry["providers"] for kind, options in provider.items() for key in _keys(kind, options or {})
        ]
        for resource in entry["resources"]:
            found.setdefault(resource, keys)
    return {resource: keys for resource, keys in found.items() if keys}


def differing(new, old):
    """
    Return those of what ``new`` writes that ``old`` does not write already.

    new, old
        What ``writes`` returned, of several components joined.

    What was encrypted and is written plain from now on differs, too.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_overlap.differing '{}' '{}'
    """
    found = {what: thing for what, thing in new.items() if thing["fingerprint"] != _written(old, what, thing)}
    for what, thing in old.items():
        if thing["kind"] == "encryption" and what not in new:
            resource = thing["resource"]
            if _written(new, what, thing) == PLAIN != thing["fingerprint"]:
                found[what] = _thing("encryption", PLAIN, f"{resource} without encryption", resource)
    return found


def refusals(things, records):
    """
    Return a sentence for each of ``things`` that not all accept, naming who does not and the safe way.

    things
        What ``differing`` returned.
    records
        {minion: what ``accepts`` returned there}. A kind that a record lacks is not judged by it.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_overlap.refusals '{}' '{}'
    """
    grouped = {}
    for thing in things.values():
        known = {minion: record for minion, record in records.items() if thing["kind"] in record}
        strangers = tuple(minion for minion, record in known.items() if not _accepted(thing, record))
        if strangers:
            grouped.setdefault((thing["kind"], thing["fingerprint"], strangers), []).append(thing["said"])
    found = []
    for (kind, _, strangers), said in grouped.items():
        where, way = WHERE.get(kind, "pki"), WAYS.get(kind, WAYS["ca"])
        found.append(
            f"kubernetes_controller:{where}: {' and '.join(said)} is not known to {', '.join(strangers)} yet, which could not "
            f"read or believe what comes from it. {way}. {__salt__['k8s_skew.override']('overlap')}"
        )
    return found


def covers(pattern, resource):
    """
    Tell whether a row of an EncryptionConfiguration that has ``pattern`` counts for a resource, if no row before it does.

    pattern, resource
        Such as ``secrets``, ``deployments.apps``, ``*.apps`` (all of that group), ``*.`` (all of the core group), ``*.*``.
        A resource that is a wildcard is covered by what covers all of it.

    See https://kubernetes.io/docs/tasks/administer-cluster/encrypt-data/.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_overlap.covers '*.apps' deployments.apps
    """
    group = resource.partition(".")[2]
    return pattern in (resource, "*.*") or pattern.startswith("*.") and pattern[2:] == group and not resource.startswith("*")


# -- reading generations ----------------------------------------------------------------------------------------------


def _thing(kind, fingerprint, said, resource=None):
    return {"kind": kind, "fingerprint": fingerprint, "said": said, "resource": resource}


def _flags(row, directory):
    if not directory:
        return __salt__["k8s_generation.flags"](row["home"])
    return __salt__["k8s_generation.staged_flags"](row, directory)


def _listed(value):
    return value if isinstance(value, list) else [value]


def _read(path):
    try:
        with salt.utils.files.fopen(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return ""


def _marked(kind, text):
    return hashlib.sha256(f"{LABEL} {kind}\0{text}".encode()).hexdigest()


def _authorities(kind, path):
    return [_marked(kind, one) for one in __salt__["k8s_certificate.authorities"](_read(path))]


def _keys(kind, options):
    """Return what a provider knows: kind, name and fingerprint of each key; a KMS is known by its name and version."""
    if kind == PLAIN:
        return [(PLAIN, "", PLAIN)]
    keys = options.get("keys") or [{"name": options.get("name", ""), "secret": options.get("apiVersion", "v1")}]
    return [(kind, key["name"], _marked("encryption", f"{kind}\0{key['name']}\0{key['secret']}")) for key in keys]


def _presented(row, flags, directory):
    """Return the CAs that signed the certificates which a generation presents to other controllers."""
    known = {path: _read(path) for path in sorted(glob.glob(os.path.join(glob.escape(directory), "*")))}
    certificates = {
        (flag, kind): _read(flags[flag])
        for flag, kind in PRESENTS.get(row["name"], {}).items()
        if flags.get(flag) and (row["etcd_managed"] or kind != "etcd-ca")  # an external etcd is asked itself
    }
    for name, file in row["files"].items():
        if "kubeconfig" in file:
            certificates[name, "client-ca"] = __salt__["k8s_kubeconfig.certificate"](known.get(os.path.join(directory, name), ""))
    found = {}
    for (name, kind), text in certificates.items():
        signer = __salt__["k8s_certificate.signed_by"](text, list(known.values())) if text else None
        if signer:
            said = f"the CA that signed the certificate of {row['name']} ({name})"
            found[f"{kind} {row['name']} {name}"] = _thing(kind, _marked(kind, signer), said)
    return found


# -- comparing --------------------------------------------------------------------------------------------------------


def _written(writes, what, thing):
    """Return the fingerprint that ``writes`` has for a thing; a resource that is not mentioned is written plain."""
    if thing["kind"] != "encryption":
        return writes.get(what, {}).get("fingerprint")
    mentioned = [one for one in writes.values() if one["kind"] == "encryption" and covers(one["resource"], thing["resource"])]
    return mentioned[0]["fingerprint"] if mentioned else PLAIN


def _accepted(thing, record):
    if thing["kind"] != "encryption":
        return thing["fingerprint"] in record.get(thing["kind"], [])
    known = [entry.split(" ", 1) for entry in record.get("encryption", [])]
    patterns = [pattern for pattern, _ in known if covers(pattern, thing["resource"])]
    if not patterns:
        return thing["fingerprint"] == PLAIN
    return thing["fingerprint"] in [key for pattern, key in known if pattern == patterns[0]]
