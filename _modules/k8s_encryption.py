"""
Encryption at rest: what the live configuration is, how to get from it to the declared one, and what etcd really holds.

``plan`` is pure: which configurations lead, one after another, from the live ones of all controllers to the declared
one, so that at each moment every API server can read what any other one writes. Nothing here but ``parse`` returns a key.
"""

import base64
import json
import subprocess
import time
import urllib.parse

import salt.utils.files
import yaml
from salt.exceptions import CommandExecutionError

FLAG = "encryption-provider-config"
PLAIN = ["identity", ""]
MARK = b"k8s:enc:"
PAGE = 200
TRIES = 3
# Where what the API server has compiled in lies in etcd, if not under its plural (k8s.io/kubernetes 1.37.2,
# pkg/kubeapiserver/default_storage_factory_builder.go, SpecialDefaultResourcePrefixes).
PLACES = {
    "replicationcontrollers": "controllers",
    "endpoints": "services/endpoints",
    "nodes": "minions",
    "services": "services/specs",
    "ingresses.networking.k8s.io": "ingress",
}
# The groups with a dot that it has compiled in and stores without the name of the group (pkg/apis/*/register.go there).
BUILT_IN = frozenset(
    f"{name}.k8s.io"
    for name in (
        "admissionregistration", "authentication", "authorization", "certificates", "coordination", "discovery", "events",
        "flowcontrol.apiserver", "internal.apiserver", "lifecycle", "networking", "node", "rbac.authorization", "resource",
        "scheduling", "storage", "storagemigration",
    )
)  # fmt: skip
WITH_GROUP = ("apiextensions.k8s.io", "apiregistration.k8s.io")  # of servers that are compiled in, stored as custom ones are


def live():
    """
    Return what this node's API server encrypts with: ``serves`` (bool), ``providers``, {resource: list of pairs}, and
    ``elsewhere``, the resources (list, wildcards too) that it keeps in an etcd of their own.

    A pair is a kind of provider and the name of a key (of a provider without keys: its options). The first one writes.

    CLI Example:

    .. code-block:: bash

        salt 'controller-*' k8s_encryption.live
    """
    row = _api()
    providers = _flat(_configured(row))
    return {"serves": __salt__["k8s_health.serves"](row), "providers": providers, "elsewhere": _elsewhere(row)}


def resources(row=None):
    """
    Return the resources that the live configuration names, also those that it stores plain; [] where it is not readable.

    row
        See ``left``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_encryption.resources
    """
    row = row or _api()
    try:
        return list(_flat(_configured(row)))
    except (OSError, CommandExecutionError):  # what is live may be what is to be repaired
        return []


def plan(declared, lives, elsewhere=()):
    """
    Return ``steps`` from the live configurations to the declared one, a list of ``step`` and ``encryption``, and ``fault``.

    declared
        The pillar's ``encryption`` (list): resources and providers with names of keys.
    lives
        {minion: ``providers`` of ``live``} of every controller.
    elsewhere
        ``elsewhere`` of ``live``, of all controllers.

    ``add``: the new keys are readable everywhere. ``promote``: they write. ``rewrite``: what is stored is written anew (it
    has no configuration of its own). ``drop``: the declared configuration, without the former keys. A rotation that was
    cut off goes on where it was; [] when nothing is to do. ``fault`` is the sentence for the operator when keys cannot be
    exchanged, "" otherwise: where a wildcard is live or declared, or a resource lies in
    an etcd of its own, nothing can prove that the former keys are out of use.

    CLI Example:

    .. code-block:: bash

        salt-call --local k8s_encryption.plan '[]' '{}'
    """
    wanted, steps = _flat(declared), []
    resources = list(dict.fromkeys([*wanted, *(resource for one in lives.values() for resource in one)]))
    target = {resource: _read_with(wanted, resource) for resource in resources}
    present = [{resource: _read_with(one, resource) for resource in resources} for one in lives.values()]
    forms = {}  # a KMS that is reached otherwise is the same, as it is declared
    for one in (target, *present):
        one |= {resource: [forms.setdefault(_identity(pair), pair) for pair in pairs] for resource, pairs in one.items()}
    if all(one == target for one in present):
        return {"steps": [], "fault": ""}
    wildcards = [resource for resource in resources if "*" in resource]
    if wildcards:
        changed = [resource for resource in resources if any(one[resource] != target[resource] for one in present)]
        return {"steps": [], "fault": _unprovable(wildcards, changed)}
    apart = [resource for resource in resources if _is_among(elsewhere, resource)]
    if apart:
        return {"steps": [], "fault": _not_asked(apart)}
    known = {resource: _union([one[resource] for one in present]) for resource in resources}
    promoted = {resource: _union([target[resource], known[resource]]) for resource in resources}
    if any(pair not in one[resource] for one in present for resource in resources for pair in target[resource]):
        added = {resource: _union([known[resource], target[resource]]) for resource in resources}
        steps.append({"step": "add", "encryption": _nested(added)})
    if steps or any(one[resource][: len(target[resource])] != target[resource] for one in present for resource in resources):
        steps.append({"step": "promote", "encryption": _nested(promoted)})
    steps.append({"step": "rewrite", "encryption": None})
    steps.append({"step": "drop", "encryption": declared})
    return {"steps": steps, "fault": ""}


def parse(text, where):
    """
    Return the ``resources`` (list) of an EncryptionConfiguration.

    This function is for other modules: what it returns holds keys.

    text
        The configuration, as YAML.
    where
        The file or pillar key that it is from, for the operator.

    Raises CommandExecutionError that names the place and the line where it is something else, and quotes nothing.

    CLI Example:

    .. code-block:: bash

        salt-call --local k8s_encryption.parse "$(cat encryption.yaml)" encryption.yaml
    """
    try:
        entries = yaml.safe_load(text)["resources"]
        for entry in entries:
            options = [one for provider in entry["providers"] for one in provider.values() if one]
            keys = [key for one in options for key in one.get("keys") or []]
            names = [*entry["resources"], *(key[part] for key in keys for part in ("name", "secret"))]
            if isinstance(entry["resources"], str) or not all(isinstance(name, str) for name in names):
                raise TypeError
        return entries
    except (yaml.YAMLError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as exc:
        mark = getattr(exc, "problem_mark", None)
        raise CommandExecutionError(
            f"{where} is not an EncryptionConfiguration{f' (line {mark.line + 1})' if mark else ''}. Correct it where it is "
            "declared; its text is not shown, as it holds keys."
        ) from None  # a parser's own words quote the text


def left(row=None):
    """
    Return how many stored objects are not under the key that the live configuration writes with: {resource: number}.

    row
        The row of kube-apiserver in the configuration's ``components``, or its ``api`` part; without it, it is taken from
        the pillar.

    etcd itself is asked; {} says that it holds none.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_encryption.left
    """
    row = row or _api()
    found = {resource: len(_strangers(row, resource, pairs)) for resource, pairs in _flat(_configured(row)).items()}
    return {resource: number for resource, number in found.items() if number}


def rewrite(row=None):
    """
    Write what ``left`` counts anew, so that it is stored under the first key. Returns {resource: number written}.

    row
        See ``left``.

    Each object is read and put back as it is, which the API server stores encrypted anew
    (https://kubernetes.io/docs/tasks/administer-cluster/encrypt-data/#rotating-a-decryption-key). Raises
    CommandExecutionError when an object cannot be written.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_encryption.rewrite
    """
    row, done = row or _api(), {}
    for resource, pairs in _flat(_configured(row)).items():
        places = _strangers(row, resource, pairs)
        collection = _collection(row, resource) if places else None
        for place in places:
            _put_back(row, collection, place)
            done[resource] = done.get(resource, 0) + 1
    return done


# -- configurations ---------------------------------------------------------------------------------------------------


def _api():
    cfg = __salt__["k8s_config.load"](fresh=True)
    if "errors" in cfg:
        raise CommandExecutionError("\n".join(cfg["errors"]))
    if "kube-apiserver" not in cfg["components"]:
        raise CommandExecutionError("this node runs no kube-apiserver")
    return cfg["components"]["kube-apiserver"]


def _configured(row):
    """Return the resources of the live EncryptionConfiguration (list), with names of keys only."""
    path = __salt__["k8s_generation.flags"](row["home"]).get(FLAG)
    if not path:
        return []
    try:
        with salt.utils.files.fopen(path, encoding="utf-8", errors="replace") as handle:
            text = handle.read()
    except OSError as exc:
        raise CommandExecutionError(
            f"{path}: {exc.strerror}. The API server was started with it; apply kubernetes_controller here, which puts the live "
            "generation right."
        ) from exc
    entries = parse(text, path)
    for entry in entries:
        for provider in entry["providers"]:
            for options in provider.values():
                if options and "keys" in options:
                    options["keys"] = [key["name"] for key in options["keys"]]
    return entries


def _flat(entries):
    """Return {resource: list of pairs (kind, key or options)} of a configuration's resources."""
    found = {}
    for entry in entries:
        pairs = []
        for provider in entry["providers"]:
            for kind, options in provider.items():
                if options and "keys" in options:
                    pairs += [[kind, key] for key in options["keys"]]
                else:
                    pairs.append([kind, json.dumps(options, sort_keys=True) if options else ""])
        for resource in entry["resources"]:
            found.setdefault(resource, pairs)
    return found


def _nested(flat):
    """Return a configuration's resources for {resource: pairs}; resources that have the same share an entry."""
    entries = []
    for resource, pairs in flat.items():
        providers = []
        for kind, word in pairs:
            keyed = kind != "identity" and not word.startswith("{")
            last = providers[-1].get(kind) if providers and keyed else None
            if last:
                last["keys"].append(word)
            else:
                providers.append({kind: {"keys": [word]} if keyed else json.loads(word or "{}")})
        same = next((entry for entry in entries if entry["providers"] == providers), None)
        if same:
            same["resources"].append(resource)
        else:
            entries.append({"resources": [resource], "providers": providers})
    return entries


def _read_with(flat, resource):
    """Return the pairs of the first row that counts for a resource; what no row counts for is plain."""
    return next((pairs for pattern, pairs in flat.items() if __salt__["k8s_overlap.covers"](pattern, resource)), [PLAIN])


def _unprovable(wildcards, changed):
    return (
        f"kubernetes_controller:encryption: the keys of {', '.join(changed)} would change while {', '.join(wildcards)} is live "
        "or declared, and of a wildcard it cannot be proven that etcd holds nothing under a former key; name each resource, or "
        "exchange the keys by hand (docs/operations.md, Rotating encryption keys)."
    )


def _not_asked(apart):
    return (
        f"kubernetes_controller:encryption: {', '.join(apart)} is kept in an etcd of its own "
        "(kubernetes_controller:apiserver:settings:etcd-servers-overrides), which is not asked whether it holds anything under "
        "a former key; take it out of the flag, or exchange the keys by hand (docs/operations.md, Rotating encryption keys)."
    )


def _union(lists):
    """Return what is in any of the lists, in the order in which it first stands there."""
    found = []
    for pair in (pair for one in lists for pair in one):
        if pair not in found:
            found.append(pair)
    return found


# -- what is stored ---------------------------------------------------------------------------------------------------


def _written_as(pair):
    """
    Return what a value begins with that was written with a pair; None for one that is plain.

    See k8s.io/apiserver, pkg/server/options/encryptionconfig.
    """
    kind, name, version = _identity(pair)
    return None if kind == "identity" else f"k8s:enc:{kind}:{version}:{name}:".encode()


def _identity(pair):
    """Return what of a pair decides who can read what it wrote: kind, name and version; of a KMS not where it is reached."""
    kind, word = pair
    options = json.loads(word) if word.startswith("{") else {"name": word}
    return kind, options.get("name", ""), options.get("apiVersion", "v1")


def _strangers(row, resource, pairs):
    """Return the places (namespace/name, or name) of stored objects that were not written with the first pair."""
    if "*" in resource:
        raise CommandExecutionError(
            f"kubernetes_controller:encryption: {resource}: what etcd holds of it is not known; name each resource."
        )
    if _is_among(_elsewhere(row), resource):
        raise CommandExecutionError(_not_asked([resource]))
    begin, found = _written_as(pairs[0]), []
    for prefix in _prefixes(row, resource):
        for key, value in _stored(row, prefix):
            right = value.startswith(begin) if begin else not value.startswith(MARK)
            if not right:
                found.append(key[len(prefix) :].decode())
    return found


def _elsewhere(row):
    """Return the resources that the API server keeps in other etcds; the flag lists them as group/resource#servers."""
    listed = __salt__["k8s_generation.flags"](row["home"]).get("etcd-servers-overrides", "")
    named = [one.partition("#")[0].partition("/") for one in listed.split(",") if one]
    return [f"{name}.{group}" if group or name == "*" else name for group, _, name in named]


def _is_among(patterns, resource):
    return any(__salt__["k8s_overlap.covers"](pattern, resource) for pattern in patterns)


def _prefixes(row, resource):
    """
    Return the prefixes under which etcd may hold a resource.

    What is compiled in lies under its plural, but for ``PLACES``, which are those of the API server's storage factory;
    a custom resource under its group and its plural (k8s.io/apiserver, pkg/server/options/etcd.go, SimpleStorageFactory). A
    group below k8s.io that is not known may be one of the community's custom ones, or compiled into a newer API server: both
    places count.
    """
    root = __salt__["k8s_generation.flags"](row["home"]).get("etcd-prefix", "/registry")
    name, _, group = resource.partition(".")
    places = []
    if "." not in group or group.endswith(".k8s.io") and group not in WITH_GROUP:
        places.append(PLACES.get(resource, name))
    if "." in group and group not in BUILT_IN:
        places.append(f"{group}/{name}")
    return [f"{root}/{place}/".encode() for place in places]


def _stored(row, prefix):
    """Yield key and value of all that etcd holds below a prefix, page by page."""
    end, last = prefix[:-1] + bytes([prefix[-1] + 1]), None
    while True:  # each page begins with the last key of the one before: what follows it at once is no argument of a process
        command = [row["etcdctl"], "get", last or prefix, end, f"--limit={PAGE}", "--write-out=json"]
        environment = __salt__["k8s_etcdctl.environment"](row)
        try:
            answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise CommandExecutionError(f"etcd cannot be asked what it holds: {exc}") from exc
        if answer.returncode:
            raise CommandExecutionError(f"etcd cannot be asked what it holds: {answer.stderr.strip()[-300:]}")
        pairs = json.loads(answer.stdout).get("kvs", [])
        for pair in pairs:
            key = base64.b64decode(pair["key"])
            if key != last:
                yield key, base64.b64decode(pair.get("value", ""))
        if len(pairs) < PAGE:
            return
        last = key


def _collection(row, resource):
    """Return the API path of a resource's version, and its plural (what stands before and after the namespace)."""
    name, _, group = resource.partition(".")
    if not group:
        return "/api/v1", name
    for version in _asked(row, resource, f"/apis/{group}")["versions"]:
        root = f"/apis/{version['groupVersion']}"
        if name in [one["name"] for one in _asked(row, resource, root)["resources"]]:
            return root, name
    raise CommandExecutionError(f"{resource}: the API server has no such resource, but etcd holds some of it.")


def _asked(row, resource, path):
    answer = _answer(row, path)
    if answer["status"] != 200:
        raise CommandExecutionError(f"{resource}: the API server said {answer['status']} to {path}")
    return json.loads(answer["body"])


def _answer(row, path, **words):
    """Return the API server's answer; of thousands of connections one may break, so it is asked again."""
    for left in reversed(range(TRIES)):
        try:
            return __salt__["k8s_health.api"](row, path, **words)
        except OSError as exc:
            if not left:
                raise CommandExecutionError(f"{path}: the API server does not answer: {exc}. Run this again.") from exc
            time.sleep(1)


def _put_back(row, collection, place):
    root, plural = collection
    namespace, _, name = place.rpartition("/")
    path = f"{root}/{f'namespaces/{namespace}/' if namespace else ''}{plural}/{urllib.parse.quote(name, safe='')}"
    for _ in range(5):
        answer = _answer(row, path)
        if answer["status"] == 404:  # removed meanwhile
            return
        if answer["status"] == 200:
            answer = _answer(row, path, method="PUT", body=answer["body"])
        if answer["status"] in (200, 404):
            return
        if answer["status"] != 409:  # somebody else wrote it meanwhile
            break
    raise CommandExecutionError(f"{plural} {place} cannot be written anew: {answer['status']} {answer['body'][:300]}")
