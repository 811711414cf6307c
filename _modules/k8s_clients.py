"""
What clients hold on to (promise 14): issuer, audiences and key of their tokens, the CAs of their certificates, the ranges of
services and pods, the API server's port, and the names and addresses in its certificate.

``held`` and ``refusals`` are plain functions without I/O; ``cut_off`` compares what a node declares with what was good there,
and ``others`` with what the other controllers published.
"""

import http.client
import ipaddress
import json
import os
import re

import salt.utils.files
from salt.exceptions import CommandExecutionError

API, MANAGER = "kube-apiserver", "kube-controller-manager"
KINDS = ("issuers", "audiences", "service-cidr", "pod-cidr")  # also what rollout:ignore calls them
BY_DOMAIN = re.compile(r"https://kubernetes\.default\.svc\.[^/]+")  # the formula's issuer
SETTINGS = "kubernetes_controller:apiserver:settings"
SERVICE = "/api/v1/namespaces/default/services/kubernetes"
RANGES = "/apis/networking.k8s.io/v1/servicecidrs/kubernetes"
NODES = "/api/v1/nodes?limit=500"
PORT = "6443"  # of kube-apiserver, where --secure-port says nothing else
# Flags that name CAs, and what no longer works for those whose certificate one of them signed.
TRUSTS = {
    "client-ca-file": "each client with a certificate of it would get 401, kubelets included",
    "kubelet-certificate-authority": "kubectl logs and exec would fail on each kubelet that serves with a certificate of it",
    "requestheader-client-ca-file": "each front proxy with a certificate of it would get 401",
}


def held(flags):
    """
    Return what clients hold on to of components that run with ``flags``: a list of str for each of ``issuers`` (the first
    one signs), ``audiences``, ``service-cidr`` and ``pod-cidr``.

    flags
        {component: flags}; only kube-apiserver and kube-controller-manager count, and what has no flags is left out.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_clients.held '{"kube-apiserver": {"service-account-issuer": "https://issuer"}}'
    """
    found, api, manager = {}, flags.get(API), flags.get(MANAGER)
    if api:
        issuers = _listed(api.get("service-account-issuer", []))
        found |= {
            "issuers": issuers,
            "audiences": _split(api.get("api-audiences", [])) or issuers,
            "service-cidr": _split(api.get("service-cluster-ip-range", [])),
        }
    if manager and manager.get("allocate-node-cidrs") == "true":
        found["pod-cidr"] = _split(manager.get("cluster-cidr", []))
    return found


def refusals(old, new, ignore=(), where="is live"):
    """
    Return a sentence for each thing that clients hold on to of ``old`` and that ``new`` takes away, with the way and the
    override.

    old, new
        What ``held`` returned; what is in one of them only is not compared.
    ignore
        What the operator said to ignore for one run (list), see ``KINDS``.
    where
        Where ``old`` is so, in words.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_clients.refusals '{}' '{}'
    """
    asked = [kind for kind in KINDS if kind in old and kind in new]
    lost = {kind: [one for one in old[kind] if one not in new[kind]] for kind in asked}
    found = {}
    if lost.get("issuers"):
        found["issuers"] = _lost_issuers(lost["issuers"], new["issuers"], where)
    if set(lost.get("audiences", [])) - set(lost.get("issuers", [])):  # what is an issuer, too, is told as such
        found["audiences"] = _lost_audiences(lost["audiences"], new["audiences"], where)
    if "service-cidr" in asked and not _is_extended(old["service-cidr"], new["service-cidr"]):
        found["service-cidr"] = _moved_services(old["service-cidr"], new["service-cidr"], where)
    if "pod-cidr" in asked and not _contains(old["pod-cidr"], new["pod-cidr"]):
        found["pod-cidr"] = _moved_pods(old["pod-cidr"], new["pod-cidr"], where)
    return [f"{said} {__salt__['k8s_skew.override'](kind)}" for kind, said in found.items() if kind not in ignore]


def cut_off(row, directory):
    """
    Return why clients of what was good on this node would be cut off by what ``row`` declares, a sentence each.

    row
        A row of the configuration's ``components``.
    directory
        Where its generation is drafted (``k8s_generation.draft``).

    What is to be adopted counts with the flags of its process. Where nothing was good yet, there is nothing to protect.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_clients.cut_off "$ROW" /run/staged
    """
    known = before(row)
    if not known:
        return []
    after = __salt__["k8s_generation.staged_flags"](row, directory)
    old, new = held({row["name"]: known}), held({row["name"]: after})
    if row["name"] != API:
        return refusals(old, new, row["ignore"]) + _taken_pods(row, old, new)
    services = old["service-cidr"]
    if not _is_extended(services, new["service-cidr"]):  # what is stored counts, not what a flag made of it
        old["service-cidr"] = _stored(row, RANGES, "cidrs") or services
    found = refusals(old, new, row["ignore"]) + _lost_key(row, known, after) + _lost_authorities(row, known, after)
    return found + _moved_port(row, known, after) + _lost_names(row, known, after, services)


def before(row):
    """
    Return the flags (dict) by which clients know a component: the good generation's, or, where the operator said to adopt what
    runs in its place, those of that process; {} for none.

    row
        A row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_clients.before "$ROW"
    """
    good = __salt__["k8s_generation.flags"](row["home"], link="good")
    if good:
        return __salt__["k8s_generation.staged_flags"]({**row, "settings": good}, os.path.join(row["home"], "good"))
    return adopted(row)


def adopted(row):
    """
    Return the flags (dict) of the process that is to be adopted; {} for none.

    row
        A row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_clients.adopted "$ROW"
    """
    if not row["adopt"] or row["name"] not in (API, MANAGER):
        return {}
    process = __salt__["k8s_component.process"](row["name"])
    if os.path.basename(process["binary"] or "") != row["name"]:
        return {}
    return _parsed(_text(f"/proc/{process['pid']}/cmdline").split("\0")[1:])


def others(components, drafts, records):
    """
    Return why clients of the other controllers would be cut off at this one, where nothing was good yet, a sentence each.

    components
        Rows (dict) of those components that are to change.
    drafts
        {component: directory} where their declared generations are drafted.
    records
        {minion: what ``k8s_overlap.accepts`` returned there}, of controllers that serve.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_clients.others '{}' '{}' '{}'
    """
    flags = {name: __salt__["k8s_generation.staged_flags"](row, drafts[name]) for name, row in components.items()}
    ignore, found = next((row["ignore"] for row in components.values()), []), {}
    for minion, record in records.items():
        for said in refusals(record, held(flags), ignore, f"is live on {minion}"):
            found.setdefault(said.replace(f" on {minion}", ""), said)  # one controller that says it is enough
    return list(found.values())


# -- in words ---------------------------------------------------------------------------------------------------------


def _lost_issuers(lost, declared, where):
    key = f"{SETTINGS}:service-account-issuer"
    if all(map(BY_DOMAIN.fullmatch, [*lost, *declared[:1]])):
        key = f"kubernetes_controller:cluster:domain, by {key}"
    return (
        f"{key}: issuer {', '.join(lost)} {where} and not declared any more (declared: {', '.join(declared) or 'none'}), so each "
        "service account token of it would get 401 from then on. Go in three rollouts: list the new issuer behind the present "
        f"one in {SETTINGS}:service-account-issuer; then put it first, so that it signs; take the former one out when no token "
        "of it is in use any more (pods take a new one within the hour, what was given a longer one does not)."
    )


def _lost_audiences(lost, declared, where):
    return (
        f"{SETTINGS}:api-audiences: {', '.join(lost)} {where} and not declared any more (declared: "
        f"{', '.join(declared) or 'none'}), so each token for it alone would get 401 from then on. List it beside the new one "
        "until no such token is in use any more; without this flag the issuers are the audiences."
    )


def _moved_services(live, declared, where):
    ranges = ", ".join(live) or "none"
    return (
        f"kubernetes_controller:cluster:service_cidr: {', '.join(declared) or 'none'} is declared, {ranges} {where}. Each "
        "Service keeps its address, and Kubernetes keeps the range in its ServiceCIDR `kubernetes`, whatever is declared. "
        f"Declare {ranges}; a range of the other IP family may stand behind it. More addresses come with one more ServiceCIDR "
        "(https://kubernetes.io/docs/tasks/network/extend-service-ip-ranges/)."
    )


def _moved_pods(live, declared, where):
    return (
        f"kubernetes_controller:cluster:pod_cidr: {', '.join(declared) or 'none'} is declared, {', '.join(live)} {where}, and "
        "is not within it. Nodes hold addresses of that for their pods, and the controller manager ends at a node whose "
        "addresses are none of its range. Declare a range that contains it; one of the other IP family may stand behind it."
    )


# -- ranges -----------------------------------------------------------------------------------------------------------


def _is_extended(old, new):
    """Tell whether ``new`` begins with all the ranges of ``old``, in their order."""
    old, new = _networks(old), _networks(new)
    return old is None or new is None or new[: len(old)] == old


def _contains(old, new):
    """Tell whether each range of ``old`` is within that of ``new`` in the same place: nodes have an address of each."""
    old, new = _networks(old), _networks(new)
    if old is None or new is None:
        return True
    pairs = zip(old, new, strict=False)
    return len(old) <= len(new) and all(one.version == other.version and one.subnet_of(other) for one, other in pairs)


def _taken_pods(row, old, new):
    """Return a sentence, as a list, where a range is handed out to nodes again, and one has addresses of another one."""
    if "pod-cidr" in old or "pod-cidr" not in new or not row["api"]:
        return []
    for node in (_asked(row["api"], NODES) or {}).get("items", []):
        ranges = {"pod-cidr": node.get("spec", {}).get("podCIDRs", [])}
        if found := refusals(ranges, new, row["ignore"], f"is what node {node['metadata']['name']} has"):
            return found
    return []


def _networks(ranges):
    try:
        return [ipaddress.ip_network(one) for one in ranges]
    except ValueError:
        return None  # the binary says what it thinks of it


# -- the key of tokens ------------------------------------------------------------------------------------------------


def _lost_key(row, before, after):
    """Return a sentence, as a list, where the key that signs tokens now is none of those that are accepted then."""
    public_keys = __salt__["k8s_certificate.public_keys"]
    signs = public_keys(_text(before.get("service-account-signing-key-file", "")))[:1]
    paths = _listed(after.get("service-account-key-file") or after.get("tls-private-key-file", ""))
    accepted = [key for path in paths for key in public_keys(_text(path))]
    if "service-account-key" in row["ignore"] or not signs or signs[0] in accepted:
        return []
    return [
        f"{SETTINGS}:service-account-key-file: the key that signs service account tokens now is none of those declared, so each "
        "token in use would get 401 from then on. Declare its public key beside the new one until no such token is in use any "
        "more (salt-run state.orchestrate kubernetes_controller.orchestrate.rotate_service_account does that with the master's "
        f"key). {__salt__['k8s_skew.override']('service-account-key')}"
    ]


# -- the CAs of clients and kubelets ----------------------------------------------------------------------------------


def _lost_authorities(row, before, after):
    """Return a sentence, as a list, where CAs that the API server trusts now are trusted no more then."""
    found = []
    for flag, harm in TRUSTS.items() if "client-ca" not in row["ignore"] else ():
        present, declared = (_listed(flags.get(flag, ""))[-1] for flags in (before, after))
        text = _text(declared)
        if declared and not text or not declared and flag == "kubelet-certificate-authority":
            continue  # what cannot be read is told by itself; without this flag every kubelet is believed
        lost = __salt__["k8s_certificate.lost_authorities"](_text(present), text)
        found += [f"{flag} loses {' and '.join(lost)}: {harm}"] if lost else []
    if not found:
        return []
    return [
        f"kubernetes_controller:pki ({row['name']}): {'; '.join(found)}. Both the former CA and the new one have to be trusted "
        "until nobody has a certificate of the former: `salt-run k8s_rollout.rotate_ca NAME` does that with a CA that the master "
        "made; of one that you bring put both into its one file in brought/; one that is switched off goes into brought/ under "
        "another name, and that name into kubernetes_controller:apiserver:files:client-ca.crt:pki (and kubelet-ca.crt). "
        f"{__salt__['k8s_skew.override']('client-ca')}"
    ]


# -- the port ---------------------------------------------------------------------------------------------------------


def _moved_port(row, before, after):
    """Return a sentence, as a list, where clients would not find the API server at its port any more."""
    old, new = (_listed(flags.get("secure-port", PORT))[-1] for flags in (before, after))
    if old == new or "api-port" in row["ignore"]:
        return []
    return [
        f"kubernetes_controller:apiserver:port: {new} is declared, {old} is live: nothing would listen there any more, and each "
        "kubelet, kubeconfig and load balancer that asks at it would be refused. First let clients ask a load balancer "
        "(kubernetes_controller:endpoint) that has both ports of each controller behind it and asks each for /readyz; who asks "
        f"an API server itself has to be given {new} during the rollout. {__salt__['k8s_skew.override']('api-port')}"
    ]


# -- names in the certificate -----------------------------------------------------------------------------------------


def _lost_names(row, before, after, services):
    """Return a sentence for names and addresses that the present certificate is valid for and the declared one is not."""
    present, declared = ([_text(path) for path in _certificates(flags)] for flags in (before, after))
    own = {before.get(flag) for flag in ("advertise-address", "bind-address")}  # of a node that has another one now
    lost = [name for name in __salt__["k8s_certificate.lost_names"](present, declared) if name not in own]
    if not lost:
        return []
    where = f"kubernetes_controller:pki:certificates:apiserver:sans ({row['name']}, tls.crt)"
    way = (
        "Add what is missing to this list (it replaces the formula's, so name those, too), or to a certificate of your own, and "
        "have it made: salt-run state.orchestrate kubernetes_controller.orchestrate.pki."
    )
    first = [str(network[1]) for network in _networks(services) or [] if network.num_addresses > 1]
    addresses, found = _stored(row, SERVICE, "clusterIPs") or first, []
    if kept := [name for name in lost if name in addresses]:
        found.append(
            f"{where}: the declared certificate is not valid for {', '.join(kept)}, the address of the Service `kubernetes`, as "
            f"the present one is: no pod could ask the API server any more. {way}"
        )
    names = [name for name in lost if name not in kept and name not in first]  # the first of a range is for that Service alone
    if names and "names" not in row["ignore"]:
        found.append(
            f"{where}: the declared certificate is not valid for {', '.join(names)}, as the present one is: clients that use "
            f"it there would end the connection. {way} {__salt__['k8s_skew.override']('names')}"
        )
    return found


def _certificates(flags):
    """Return the files of the certificates that an API server with ``flags`` serves, the one for all names first."""
    by_name = [one.partition(",")[0] for one in _listed(flags.get("tls-sni-cert-key", []))]
    return [flags.get("tls-cert-file", ""), *by_name]


# -- reading ----------------------------------------------------------------------------------------------------------


def _stored(row, path, key):
    """Return a key of the ``spec`` of an object as the live API server has it, or None where it cannot be asked."""
    return (_asked(row, path) or {}).get("spec", {}).get(key)


def _asked(row, path):
    """Return what the live API server says at a path (dict), or None where it cannot be asked."""
    try:
        answer = __salt__["k8s_health.api"](row, path)
        return json.loads(answer["body"]) if answer["status"] == 200 else None
    except (OSError, http.client.HTTPException, ValueError, CommandExecutionError):
        return None


def _parsed(words):
    """Return the flags in the words of a command line, as ``k8s_generation.flags`` does; --NAME VALUE is known, too."""
    found, words = {}, [word for word in words if word]
    for position, word in enumerate(words):
        if not word.startswith("-"):
            continue
        name, given, value = word.lstrip("-").partition("=")
        following = words[position + 1] if position + 1 < len(words) else "-"
        found.setdefault(name, []).append(value if given else "true" if following.startswith("-") else following)
    return {name: values if len(values) > 1 else values[0] for name, values in found.items()}


def _listed(value):
    return value if isinstance(value, list) else [value]


def _split(value):
    return [part.strip() for one in _listed(value) for part in one.split(",") if part.strip()]


def _text(path):
    try:
        with salt.utils.files.fopen(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return ""
