"""
The configuration: what the pillar laid over ``defaults.yaml`` (``k8s_declared``) means, for a node or for the cluster.

``resolve`` and what it calls are plain functions without I/O; ``load`` feeds them with what this minion (or the
master) knows. Everything else in the formula reads only what comes out of here.
"""

import ipaddress
import json
import os
import re
import shlex
import traceback

import salt.pillar
import salt.utils.network
import yaml
from salt.exceptions import CommandExecutionError

VERSION = "0.1.0"  # of the formula; modules of another version than defaults.yaml are synced before they are used
PILLAR = "kubernetes_controller"
DEFAULTS = "salt://kubernetes_controller/defaults.yaml"
SYNCED = "kubernetes_controller_synced"  # in the pillar of a round whose modules this run has synced
OUTDATED = (
    "this salt-master caches pillars (pillar_cache: True), and gave this run one of {id} that is no longer the present one. It "
    "was taken out of the cache just now: run this again."
)
OURS = "look at what you changed last, sync the modules (saltutil.sync_all), and report it where that does not help."

CONTROL_PLANE = {
    "etcd": "etcd",
    "apiserver": "kube-apiserver",
    "controller_manager": "kube-controller-manager",
    "scheduler": "kube-scheduler",
}
# uname -m to the names that dl.k8s.io and etcd's releases use.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64"}
# What a member of etcd without data reads at its first start (k8s_etcd_members writes it).
FIRST_START_FILE = "/run/kubernetes-controller-first-start.env"
# Of a unit, in their order there.
SECTIONS = ("Unit", "Service", "Install")
# The order of a roll over nodes that serve: API servers first (Kubernetes' version-skew policy).
PHASES = [["apiserver", "objects", "links"], ["controller_manager", "scheduler"]]
# Flags that would part from what all else goes by: the word that says it, and the key of that.
GOVERNED = {
    "apiserver": {
        "secure-port": ("port", "apiserver:port"),
        "service-cluster-ip-range": ("service_cidr", "cluster:service_cidr"),
    },
    "controller_manager": {"secure-port": ("port", "controller_manager:port")},
}
# What has to serve on a node before the next component is started there.
AFTER = {"kube-apiserver": "etcd", "kube-controller-manager": "kube-apiserver", "kube-scheduler": "kube-apiserver"}
LONGEST_NAME = 64  # of a certificate's subject: ub-common-name of X.520
# How flags and a kube-scheduler's configuration name the leader's lease.
ELECTION = {
    "leader-elect": "leaderElect",
    "leader-elect-resource-name": "resourceName",
    "leader-elect-resource-namespace": "resourceNamespace",
}
# Flags of etcd that only a member without data reads (https://etcd.io/docs/v3.6/op-guide/configuration/): they are no part of a
# generation. ``state`` says what a member without data does while nothing allows it to start: it ends.
FIRST_START = ("initial-advertise-peer-urls", "initial-cluster", "initial-cluster-state", "initial-cluster-token")
NEVER_EMPTY = {"Environment": "ETCD_INITIAL_CLUSTER_STATE=existing", "EnvironmentFile": f"-{FIRST_START_FILE}"}
SYSTEM = "kube-system"
MARK = "cluster.json"  # that the cluster exists (k8s_cluster)
# Flags that Kubernetes takes once per element and never splits at commas: stringArray, namedCertKey and a mapStringString
# that is not split, in k8s.io/kubernetes pkg/kubeapiserver/options and k8s.io/apiserver pkg/server/options. Rendering has no
# binary to ask; the preflight asks it, and a test compares this with all of them.
REPEATED = ("oidc-required-claim", "service-account-issuer", "service-account-key-file", "tls-sni-cert-key")
# Flags by which the formula itself asks members of etcd; without one nobody could say whether etcd serves.
ASKED_BY = (
    *("advertise-client-urls", "listen-client-urls", "listen-peer-urls", "name"),
    *("peer-cert-file", "peer-key-file", "trusted-ca-file"),
)
SECRET_SOURCES = ("encryption", "kubeconfig", "pillar")
WORD = re.compile(r"\{([a-z_]+)\}")


class ConfigError(CommandExecutionError):
    """The declaration cannot be resolved; ``errors`` has one sentence per fault, each naming its pillar key."""

    def __init__(self, errors):
        self.errors = errors
        super().__init__("\n".join(errors))


def load(defaults=None, fresh=False, pillar=None):
    """
    Return the resolved configuration of this minion, or of the cluster where this runs on the master.

    defaults
        The content of ``defaults.yaml`` (dict); by default it is read from the file server.
    fresh
        Ask the master for the pillar (default False: a run of states has a new one anyway, but what a minion keeps for
        other functions is as old as its last refresh).
    pillar
        The pillar (dict) where it is at hand.

    The answer has a key ``errors`` instead of a configuration when the declaration is not in order, so that a
    rendering SLS can show the sentences without a traceback.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_config.load
    """
    if pillar is None:
        pillar = present_pillar() if fresh and __opts__.get("file_client") == "remote" else __pillar__
    declared = json.dumps(pillar.get(PILLAR), sort_keys=True, default=str)
    known = __context__.get("k8s_config", {})
    if known.get("declared") != declared:  # many SLS of one run ask the same
        if __opts__.get("__role") == "master" and __salt__["k8s_controllers.outdated"]():
            return {"errors": [OUTDATED.format(id=__opts__["id"])]}
        known = {"declared": declared, "cfg": _load(defaults, pillar.get(PILLAR))}
        if "errors" not in known["cfg"]:
            __context__["k8s_config"] = known
    return known["cfg"]


def present_pillar():
    """
    Ask the master for the pillar of this minion (or compile that of the master's own id, where this runs there).

    This function is for other modules: the answer has secrets. ``k8s_controllers.holds`` asks it, and tells fingerprints only.

    CLI Example:

    .. code-block:: bash

        salt-call --out=quiet k8s_config.present_pillar  # it has secrets; k8s_controllers.holds tells fingerprints only
    """
    asked = salt.pillar.get_pillar(__opts__, __grains__, __opts__["id"], __opts__.get("saltenv"))
    return asked.compile_pillar()


def _load(defaults, pillar):
    if defaults is None:
        text = __salt__["cp.get_file_str"](DEFAULTS, saltenv=__opts__.get("saltenv") or "base")
        if not text:
            return {"errors": [f"{DEFAULTS} is not on the file server: is the formula in file_roots?"]}
        defaults = __salt__["slsutil.deserialize"]("yaml", text)
    if defaults.get("version") != VERSION:
        return {"stale": True, "errors": [f"this minion has version {VERSION} of the formula's modules; sync them."]}
    node = None
    if __opts__.get("__role") != "master":
        machine = __grains__.get("cpuarch", "x86_64")
        node = {
            "id": __opts__["id"],
            "arch": ARCHITECTURES.get(machine, machine),
            "interfaces": {name: _addresses(facts) for name, facts in __salt__["network.interfaces"]().items()},
        }
    try:
        return resolve(defaults, pillar, node)
    except ConfigError as exc:
        return {"errors": exc.errors}
    except Exception as exc:  # noqa: BLE001 (a fault of ours; or modules that are older than the defaults, which a sync heals)
        stale = {} if __opts__.get("test") or SYNCED in __pillar__ else {"stale": True}
        return {**stale, "errors": [f"the pillar of {PILLAR} is not understood ({_place(exc)}); {OURS}"]}


def _place(exc):
    """Return what happened and where in the formula, without the value, which may be a secret."""
    frames = traceback.extract_tb(exc.__traceback__)
    last = ([frame for frame in frames if os.path.basename(frame.filename).startswith("k8s_")] or frames)[-1]
    return f"{type(exc).__name__} in {os.path.basename(last.filename)}, {last.name}, line {last.lineno}"


def _addresses(facts):
    """Return the IPv4 and IPv6 addresses (list of str) in what Salt tells of an interface, the secondary ones last."""
    entries = [{"type": family, **entry} for family in ("inet", "inet6") for entry in facts.get(family) or []]
    return [entry["address"] for entry in [*entries, *(facts.get("secondary") or [])] if entry["type"] in ("inet", "inet6")]


def resolve(defaults, pillar, node=None):
    """
    Return the configuration that ``pillar`` over ``defaults`` means for ``node``.

    defaults
        The content of ``defaults.yaml`` (dict).
    pillar
        The pillar key ``kubernetes_controller`` (dict).
    node
        Facts of a minion: ``id`` (str), ``arch`` (str, as in dl.k8s.io's paths), ``interfaces`` (dict of name to
        list of addresses). Without it the answer is the cluster's: no components, but the certificates to make.

    Returns the merged dictionary with ``components`` and ``downloads`` beside it, or for the cluster
    with the rows that the master makes (``pki:certificates``) and hands to each minion (``pki:deliveries``).
    Raises ConfigError with every fault found.

    CLI Example:

    .. code-block:: bash

        salt-call --local k8s_config.resolve '{"release": "1.37.2"}' '{}'
    """
    if not isinstance(pillar, dict) or not pillar:
        whose = f"minion {node['id']}" if node else f"the master's own minion id, {__opts__['id']}"
        raise ConfigError(
            [
                f"Pillar has no key `{PILLAR}` for {whose}. Add it, with `controllers` at least "
                f"(see pillar.example), to a pillar SLS that top.sls gives to {whose}."
            ]
        )
    cfg, errors = __salt__["k8s_declared.over"](defaults, pillar, node)
    errors = errors or _pin_faults(cfg)
    if errors:
        raise ConfigError(errors)
    cfg["node"] = node and {**node, "address": cfg["controllers"][node["id"]]}
    cfg["etcd"]["servers"] = _etcd_servers(cfg)
    cfg["components"] = {}
    if not cfg["etcd"]["managed"]:
        cfg["pki"]["authorities"]["etcd"]["managed"] = False
    if not node:
        first, address = next(iter(cfg["controllers"].items()))
        alone = {**cfg, "node": {"id": first, "address": address}, "components": {}}
        _components(alone, errors, defaults)  # for its faults alone
        if errors:
            raise ConfigError(errors)
        cfg["admin"] = _admin(cfg)
        cfg["phases"] = [["etcd"]] * cfg["etcd"]["managed"] + PHASES
        cfg["pki"] |= {
            "certificates": [row for minion in [*cfg["controllers"], None] for row in _certificates(cfg, minion)],
            "deliveries": [row for minion in [*cfg["controllers"], None] for row in _deliveries(cfg, minion)],
            "encryption_keys": sorted(set(_encryption_keys(cfg["encryption"]))),
            "by_hand": _by_hand(cfg),
        }
        if errors := _subject_faults(cfg["pki"]):
            raise ConfigError(errors)
    else:
        _components(cfg, errors, defaults)
        if errors:
            raise ConfigError(errors)
        cfg["after"] = {name: AFTER[name] for name in cfg["components"] if AFTER.get(name) in cfg["components"]}
        cfg["downloads"] = _downloads(cfg)
        cfg["releases"] = _releases(cfg)
    return cfg


# -- derivation -------------------------------------------------------------------------------------------------------


def _url(address, port, scheme="https"):
    host = f"[{address}]" if ":" in str(address) else address
    return f"{scheme}://{host}:{port}"


def _etcd_servers(cfg):
    if cfg["etcd"]["managed"] and not cfg["etcd"]["servers"]:
        return [_url(address, cfg["etcd"]["client_port"]) for address in cfg["controllers"].values()]
    return cfg["etcd"]["servers"]


def _admin(cfg):
    """Return where the operator's kubeconfig goes and what it is made of, on the master."""
    pki, admin = cfg["pki"], cfg["admin"]
    made = pki["authorities"]["kubernetes"]["managed"]
    authority = "admin/kubernetes-ca.crt" if made else f"brought/{_file_name(cfg, 'kubernetes-ca.crt')}"
    pair = f"{pki['directory']}/{'admin' if made else 'brought'}"
    return {
        "kubeconfig": admin["kubeconfig"].replace("{directory}", pki["directory"]),
        "server": admin["server"] or _admin_server(cfg),
        "user": pki["certificates"].get("admin", {}).get("common_name", "kubernetes-admin"),
        "authority": f"{pki['directory']}/{authority}",
        "certificate": f"{pair}/{_file_name(cfg, 'admin.crt')}",
        "key": f"{pair}/{_file_name(cfg, 'admin.key')}",
        "made": _made_here(cfg, "admin"),
    }


def _admin_server(cfg):
    if cfg["endpoint"]["host"]:
        return _url(cfg["endpoint"]["host"], cfg["endpoint"]["port"])
    return _url(next(iter(cfg["controllers"].values())), cfg["apiserver"]["port"])


def _words(cfg, minion):
    """Return what the words in braces mean on ``minion`` (None: on the master)."""
    address = cfg["controllers"].get(minion, "")
    services = ipaddress.ip_network(cfg["cluster"]["service_cidr"].split(",")[0])
    return {
        "id": minion or "",
        "address": address,
        "release": cfg["release"],
        "domain": cfg["cluster"]["domain"],
        "cluster_name": cfg["cluster"]["name"],
        "pod_cidr": cfg["cluster"]["pod_cidr"],
        "service_cidr": cfg["cluster"]["service_cidr"],
        "service_ip": str(services[1]),
        "endpoint_host": cfg["endpoint"]["host"],
        "api_server": _url(address, cfg["apiserver"]["port"]),
        "log_dir": cfg["log_dir"],
        "data_dir": cfg["etcd"]["data_dir"],
        "etcd_servers": ",".join(cfg["etcd"]["servers"]),
        "etcd_client_url": _url(address, cfg["etcd"]["client_port"]),
        "etcd_peer_url": _url(address, cfg["etcd"]["peer_port"]),
        "etcd_initial_cluster": ",".join(
            f"{name}={_url(where, cfg['etcd']['peer_port'])}" for name, where in cfg["controllers"].items()
        ),
    }


def _fill(value, words):
    """Return ``value`` with the known words in braces filled in; a list loses entries that become empty."""
    if isinstance(value, str):
        return WORD.sub(lambda match: str(words.get(match[1], match[0])), value)
    if isinstance(value, dict):
        return {_fill(k, words): _fill(v, words) for k, v in value.items()}
    if isinstance(value, list):
        return [filled for filled, raw in ((_fill(v, words), v) for v in value) if filled != "" or raw == ""]
    return value


def _certificates(cfg, minion):
    """Return the rows of certificates that the master makes for ``minion`` (None: for itself)."""
    words, rows = _words(cfg, minion), []
    for name, row in cfg["pki"]["certificates"].items():
        if (row.get("for") == "master") != (minion is None) or not _made_here(cfg, name):
            continue
        filled = _fill({k: v for k, v in row.items() if k != "for"}, words)
        directory = _delivered_to(cfg, minion) if minion else f"{cfg['pki']['directory']}/admin"
        sans = list(dict.fromkeys(filled.get("sans", [])))
        rows.append(
            {
                **filled,
                "name": name,
                "minion": minion,
                "days_valid": row.get("days_valid", cfg["pki"]["days_valid"]),
                "sans": [f"{'IP' if salt.utils.network.is_ip(san) else 'DNS'}:{san}" for san in sans],
                "path": f"{directory}/{_file_name(cfg, name + '.crt')}",
                "key": f"{directory}/{_file_name(cfg, name + '.key')}",
            }
        )
    return rows


def _subject_faults(pki):
    """Return a sentence for each CA and certificate that cannot be made as it is named, once the words are filled in."""
    faults, places, here = [], {}, f"{PILLAR}:pki:"
    subjects = [(f"{here}authorities:{name}", row) for name, row in pki["authorities"].items()]
    for row in pki["certificates"]:
        subjects.append((f"{here}certificates:{row['name']}", row))
        if places.setdefault(row["path"], row["name"]) != row["name"]:
            faults.append(f"{subjects[-1][0]}: is the same file as {places[row['path']]}, by {here}files; each needs its own.")
    for path, row in subjects:
        for key, value in ((key, row[key]) for key in ("common_name", "organization") if key in row):
            if not 0 < len(value) <= LONGEST_NAME:
                faults.append(f"{path}:{key}: {len(value)} characters, expected 1 to {LONGEST_NAME}.")
        for san in row.get("sans", []):
            if not san.isascii():
                faults.append(f"{path}:sans: {san.partition(':')[2]!r} is not in ASCII; write a name as DNS has it.")
    return list(dict.fromkeys(faults))  # what is wrong with a row is wrong on each node


def _made_here(cfg, name):
    """Tell whether the master makes the certificate ``name``: its CA is managed, and something uses it."""
    row = cfg["pki"]["certificates"].get(name)
    if not row or not cfg["pki"]["authorities"][row["authority"]]["managed"]:
        return False
    return row.get("for") == "master" or f"{name}.crt" in _references(cfg)


def _file_name(cfg, reference):
    return cfg["pki"]["files"].get(reference, reference)


def _delivered_to(cfg, minion):
    """Return the directory from which the file_tree external pillar hands ``minion`` its files."""
    return f"{cfg['pki']['directory']}/hosts/{minion}/{cfg['pki']['pillar']}"


def _deliveries(cfg, minion):
    """
    Return what is copied for ``minion``: CAs and shared keys that the master made, and whatever was brought.

    ``beside`` names what stands beside a CA during its rotation: all of it is handed out, in one file. The master itself
    (None) has a share, too: the CA for the operator's kubeconfig.
    """
    pki, rows = cfg["pki"], []
    if minion is None:
        name = "kubernetes-ca.crt"
        row = {"minion": None, "name": name, "target": f"{pki['directory']}/admin/{name}"}
        managed = pki["authorities"]["kubernetes"]["managed"]
        return [{**row, **_rotating(f"{pki['directory']}/authorities/{name}")}] if managed else []
    rows.append(
        {
            "minion": minion,
            "name": MARK,
            "target": f"{_delivered_to(cfg, minion)}/{MARK}",
            "sources": [f"{pki['directory']}/{MARK}"],
        }
    )
    brought = f"{pki['directory']}/brought"
    for reference in sorted(_references(cfg)):
        name = _file_name(cfg, reference)
        if _made_here(cfg, reference.rpartition(".")[0]):
            continue
        source = {"sources": [f"{brought}/{minion}/{name}", f"{brought}/{name}"]}
        if _managed_authority(cfg, reference):
            source = _rotating(f"{pki['directory']}/authorities/{reference}")
        elif _managed_secret(cfg, reference):
            source = _rotating(f"{pki['directory']}/shared/{reference}")
        rows.append({"minion": minion, "name": name, "target": f"{_delivered_to(cfg, minion)}/{name}", **source})
    return rows


def _by_hand(cfg):
    """Return the names of files that rows ``pillar:`` take from a minion's share, where the operator puts them himself."""
    asked = [row.get("pillar", "") for key in CONTROL_PLANE for row in cfg[key]["files"].values() if isinstance(row, dict)]
    return sorted({name for place, _, name in (str(one).partition(":") for one in asked) if place == cfg["pki"]["pillar"]})


def _rotating(path):
    """Return the source of a file that the master made, and of a public one what stands beside it during a rotation."""
    base, kind = os.path.splitext(path)
    beside = {"beside": [f"{base}.next{kind}", f"{base}.former{kind}"]} if kind in (".crt", ".pub") else {}
    return {"sources": [path], **beside}


def _managed_authority(cfg, reference):
    name = re.sub(r"-ca\.(crt|key)$", "", reference)
    return name != reference and cfg["pki"]["authorities"].get(name, {}).get("managed", False)


def _managed_secret(cfg, reference):
    if reference in ("service-account.key", "service-account.pub"):
        return cfg["pki"]["service_account"]["managed"]
    return reference in _encryption_keys(cfg["encryption"]) and cfg["pki"]["encryption"]["managed"]


def _references(cfg):
    """Return the names of certificate material that the components' rows refer to, in the words of the table."""
    names = set()
    for key in CONTROL_PLANE:
        if not _runs(cfg, key):
            continue
        for row in cfg[key]["files"].values():
            names |= set(_row_references(cfg, row))
    return names


def _row_references(cfg, row):
    if "pki" in row:
        names = [*_listed(row["pki"]), *_listed(row.get("fits", []))]
        return [name for name in names if not _switched_off(cfg, name)]
    if "kubeconfig" in row:
        asked = row["kubeconfig"]
        return [*_listed(asked["authority"]), asked["certificate"], asked["key"]]
    if "encryption" in row:
        return list(_encryption_keys(cfg["encryption"]))
    return []


def _encryption_keys(resources):
    for entry in resources:
        for provider in entry.get("providers", []):
            for options in provider.values():
                yield from (options or {}).get("keys", [])


def _listed(value):
    return value if isinstance(value, list) else [value]


def _switched_off(cfg, name):
    authority = re.sub(r"-ca\.(crt|key)$", "", name)
    return authority in cfg["pki"]["authorities"] and not cfg["pki"]["authorities"][authority].get("enabled", True)


def _runs(cfg, key):
    return cfg["etcd"]["managed"] if key == "etcd" else cfg[key]["enabled"]


def _components(cfg, errors, defaults):
    """Fill ``cfg["components"]``: one row per component of this node, with everything its states need."""
    minion = cfg["node"]["id"]
    for key, name in CONTROL_PLANE.items():
        if not _runs(cfg, key):
            continue
        declared = cfg[key]
        home = declared.get("conf_dir", cfg["conf_dir"])
        origin = declared if key == "etcd" else cfg
        release_dir, release = origin["release_dir"], origin["release"]
        port = declared["client_port"] if key == "etcd" else declared["port"]
        words = {
            **_words(cfg, minion),
            "live": f"{home}/live",
            "port": port,
            "user": declared["user"],
            "group": declared["group"],
        }
        first_start, files = {}, _files(cfg, key, words)
        settings = _settings(declared["settings"], words, f"{PILLAR}:{key}:settings", errors)
        errors += _unasked(settings) if key == "etcd" else []
        if key == "controller_manager" and not cfg["pki"]["authorities"]["signer"]["enabled"]:
            settings = {k: v for k, v in settings.items() if not k.startswith("cluster-signing-")}
        unit = _unit(cfg["unit"], declared["unit"], words)
        if key == "etcd":
            first_start = {flag: settings.pop(flag) for flag in FIRST_START if flag in settings}
            unit["Service"] |= {name: [*_options(unit["Service"], name), ours] for name, ours in NEVER_EMPTY.items()}
        errors += _dangling(settings, files, home, f"{PILLAR}:{key}") + _parted(settings, words, key)
        cfg["components"][name] = {
            "name": name,
            "key": key,
            "home": home,
            "address": cfg["node"]["address"],
            "port": port,
            "user": declared["user"],
            "group": declared["group"],
            "release": release,
            "binary": f"{release_dir}/{release}/bin/{name}",
            "binary_managed": key == "etcd" or name in cfg["binaries"]["names"],
            "settings": settings,
            "joined": _joined(declared["settings"], defaults[key]["settings"], settings),
            "files": files,
            "pairs": {k: _fill(v, words) for k, v in declared["pairs"].items() if k in files},
            "directories": _directories(declared["directories"], words, f"{PILLAR}:{key}:directories", errors),
            "unit": unit,
            "first_start": first_start,
            "probe": _probe(declared["probe"], name, settings, files, home),
            "gate": cfg["rollout"]["gate"],
            "adopt": cfg["rollout"]["adopt"],
            "found": cfg["rollout"]["found"],
            "drop_encryption_keys": cfg["rollout"]["drop_encryption_keys"],
            "api": _api_row(cfg),
            "etcd_managed": cfg["etcd"]["managed"],
            "etcdctl": f"{cfg['etcd']['release_dir']}/{cfg['etcd']['release']}/bin/etcdctl",
            "neighbours": {other: where for other, where in cfg["controllers"].items() if other != minion},
            "mode": cfg["rollout"]["mode"],
            "rehearsal": cfg["rollout"]["rehearsal"],
            "turn": cfg["rollout"]["turn"],
            "snapshots": cfg["rollout"]["snapshots"],
            "ignore": cfg["rollout"]["ignore"],
            "preflight": cfg["rollout"]["preflight"],
            "keep_generations": cfg["rollout"]["keep_generations"],
            "pki": {"pillar": cfg["pki"]["pillar"], "files": cfg["pki"]["files"], "directory": cfg["pki"]["directory"]},
        }
    places = [cfg["release_dir"], cfg["etcd"]["release_dir"], cfg["bin_dir"], cfg["rollout"]["snapshots"]["directory"]]
    errors += __salt__["k8s_owners.crossed"](cfg["components"], places)


def _probe(probe, name, settings, files, home):
    """Return what the gate asks, with the lease that flags and configuration name where the operator names none himself."""
    if probe.get("lease") != "{lease}":
        return probe
    file = files.get(settings.get("config", "").removeprefix(f"{home}/live/"), {})
    return {**probe, "lease": lease(name, settings, file.get("yaml", file.get("text"))), "by_flags": True}


def _api_row(cfg):
    """Return what it takes to ask this node's own API server, or None where there is none."""
    if not cfg["apiserver"]["enabled"]:
        return None
    address, port = cfg["node"]["address"], cfg["apiserver"]["port"]
    return {"name": "kube-apiserver", "home": cfg["conf_dir"], "address": address, "port": port}


def _files(cfg, key, words):
    """Return the file rows of a component with words filled in and what is switched off left out."""
    files = {}
    for name, row in cfg[key]["files"].items():
        filled = _fill(row, words)
        if "pki" in filled:
            filled["pki"] = _row_references(cfg, {"pki": filled["pki"]})
            if not filled["pki"]:
                continue
        if "kubeconfig" in filled:
            filled["kubeconfig"]["authority"] = _listed(filled["kubeconfig"]["authority"])
        if "config" in filled:
            filled = {**filled, "yaml": _fill(cfg[key]["config"], words)}
            del filled["config"]
        if "encryption" in filled:
            filled["encryption"] = cfg["encryption"]
        files[name] = filled
    return files


def _dangling(settings, files, home, path):
    """Return a sentence for each flag that names a file of the generation which no row declares."""
    known = {"start", "unit", *files}
    for name, row in files.items():
        if not row.get("kubeconfig", {}).get("embed", True):
            known |= {f"{name}.{part}" for part in ("authority", "certificate", "key")}
    faults = []
    for flag, value in settings.items():
        for name in re.findall(re.escape(f"{home}/live/") + r"([\w.-]+)", "\n".join(_listed(value))):
            if name not in known:
                faults.append(
                    f"{path}:settings:{flag}: {home}/live/{name} is not a file of the generation; add {path}:files:{name}."
                )
    return faults


def _unasked(settings):
    """Return a sentence for each flag of etcd by which nobody, or not the formula, could ask a member."""
    faults = [
        f"{PILLAR}:etcd:settings:{flag}: is missing, and the formula asks the members of etcd by it. Leave the key out, so that "
        "the default counts, or give it a value."
        for flag in ASKED_BY
        if not settings.get(flag)
    ]
    for flag, value in settings.items():
        urls = [url for url in ",".join(_listed(value)).split(",") if url] if flag.endswith("-urls") else []
        faults += [f"{PILLAR}:etcd:settings:{flag}: {why}." for why in map(__salt__["k8s_declared.url_fault"], urls) if why]
    return faults


def _parted(settings, words, key):
    """Return a sentence for each flag that is not what all else goes by, or that destroys data."""
    destroys = [
        f"{PILLAR}:{key}:settings:{flag}: makes one member a cluster of its own, and is never a flag of a service. Remove it. To "
        'restore a cluster see docs/operations.md, "Restore etcd from a snapshot by hand".'
        for flag in ("force-new-cluster", "force-new-cluster-bump-amount")
        if key == "etcd" and settings.get(flag, "false") != "false"
    ]
    if key == "etcd" and "config-file" in settings:  # etcd reads no flag and no variable beside it
        destroys.append(
            f"{PILLAR}:{key}:settings:config-file: with it etcd takes none of its flags from here, nor what keeps a member "
            f"without data from founding an empty cluster. Write what is in that file as {PILLAR}:{key}:settings, and leave this "
            "flag out."
        )
    return destroys + [
        f"{PILLAR}:{key}:settings:{flag}: is not {words[word]}, by which all else goes. "
        f"Use {PILLAR}:{path} instead, and leave this flag out."
        for flag, (word, path) in GOVERNED.get(key, {}).items()
        if settings.get(flag, str(words[word])) != str(words[word])
    ]


def _settings(settings, words, path, errors):
    """
    Return the flags as strings, sorted by name; lists joined by commas, dictionaries as k=v.

    A flag that Kubernetes repeats is a list of strings where it has more than one element.
    """
    flags = {}
    for flag, value in sorted((str(flag), value) for flag, value in settings.items()):
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", flag):
            errors.append(f"{path}:{flag}: not a flag name; write it without leading dashes.")
            continue
        errors += _strange(value, words, f"{path}:{flag}")
        filled = _fill(value, words)
        elements = _elements(filled) if flag in REPEATED else [_flag_value(filled)]
        if None in elements:
            errors.append(f"{path}:{flag}: expected a string, number, boolean, list or dictionary of those.")
            continue
        if any("\n" in text for text in elements):
            errors.append(f"{path}:{flag}: a flag cannot have a line break.")
        if not elements:
            errors.append(f"{path}:{flag}: is empty. Name an element, or set it to null.")
            continue
        flags[flag] = elements if len(elements) > 1 else elements[0]
    return flags


def _elements(value):
    """Return what a repeated flag is written with, once each (None: not a flag's value)."""
    if isinstance(value, dict):
        return [_flag_value({name: part}) for name, part in sorted(value.items())]
    return [None if isinstance(part, (list, dict)) else _flag_value(part) for part in _listed(value)]


def _joined(declared, defaults, settings):
    """Return the flags of which the operator's elements were joined to one value: the binary says whether it takes that."""
    own = {str(flag): value for flag, value in declared.items() if defaults.get(flag) != value}
    several = [flag for flag, value in own.items() if isinstance(value, (list, dict)) and len(value) > 1]
    return sorted(flag for flag in several if isinstance(settings.get(flag), str))


def _directories(directories, words, path, errors):
    """Return the directories with words filled in, as {path: mode}."""
    filled = {}
    for name, mode in directories.items():
        place, strange = _fill(name, words), _strange(name, words, f"{path}:{name}")
        errors += strange
        if not strange and not place.startswith("/"):
            errors.append(f"{path}:{name}: {'not' if place == name else f'means {place}, which is not'} an absolute path.")
        filled[place] = mode
    return filled


def _strange(value, words, path):
    """Return a sentence, as a list, where a word in braces is none."""
    strange = [word for word in WORD.findall(json.dumps(value, default=str)) if word not in words]
    return [f"{path}: {{{word}}} is no word{__salt__['k8s_declared.nearest'](word, words)}." for word in strange[:1]]


def _flag_value(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list):
        parts = [_flag_value(part) if not isinstance(part, (list, dict)) else None for part in value]
        return None if None in parts else ",".join(parts)
    if isinstance(value, dict):
        parts = {k: _flag_value(v) if not isinstance(v, (list, dict)) else None for k, v in value.items()}
        return None if None in parts.values() else ",".join(f"{k}={v}" for k, v in sorted(parts.items()))
    return None


def _unit(common, own, words):
    """Return the systemd unit as a dictionary of sections; the component's own options replace the common ones."""
    unit = {}
    for section in SECTIONS:
        options = {**common.get(section, {}), **own.get(section, {})}
        unit[section] = _fill({k: v for k, v in options.items() if v is not None}, words)
    return unit


def _options(section, name):
    """Return the values (list) that an option of a section of a unit has."""
    return _listed(section[name]) if name in section else []


def _downloads(cfg):
    """Return what has to be fetched: one row per file of a mirror, each with the links for people that lead to it."""
    arch, binaries, etcd = cfg["node"]["arch"], cfg["binaries"], cfg["etcd"]
    rows, homes = [], _homes(cfg)
    for name in binaries["names"]:
        source = f"{binaries['mirror'].rstrip('/')}/v{cfg['release']}/bin/linux/{arch}/{name}"
        rows.append(
            {
                "name": name,
                "directory": f"{cfg['release_dir']}/{cfg['release']}/bin",
                "source": source,
                "sums": f"{source}.{binaries['algorithm']}",
                "checksum": binaries["checksums"].get(name, ""),
                "checksum_key": f"{PILLAR}:binaries:checksums:{name}",
                "mirror_key": f"{PILLAR}:binaries:mirror",
                "directory_key": f"{PILLAR}:release_dir",
                "release_dir": cfg["release_dir"],
                "homes": homes,
                "members": {},
                "timeout_s": binaries["timeout_s"],
                "adopt": cfg["rollout"]["adopt"],
                "mode": cfg["rollout"]["mode"],
                "runs": _awaited(cfg, "kube-apiserver"),
                "links": {f"{cfg['bin_dir']}/{name}": f"{cfg['release_dir']}/{cfg['release']}/bin/{name}"},
            }
        )
    tools, etcd_bin = ("etcd", "etcdctl", "etcdutl"), f"{etcd['release_dir']}/{etcd['release']}/bin"
    base = f"{etcd['mirror'].rstrip('/')}/v{etcd['release']}"
    archive = _bundle(cfg, arch)
    bundle = archive.removesuffix(".tar.gz")
    rows.append(
        {
            "name": "etcd",
            "directory": etcd_bin,
            "source": f"{base}/{archive}",
            "sums": f"{base}/SHA256SUMS",
            "checksum": etcd["checksums"].get(archive, ""),
            "checksum_key": f"{PILLAR}:etcd:checksums:{archive}",
            "mirror_key": f"{PILLAR}:etcd:mirror",
            "directory_key": f"{PILLAR}:etcd:release_dir",
            "release_dir": etcd["release_dir"],
            "homes": homes,
            "members": {tool: f"{bundle}/{tool}" for tool in tools},
            "timeout_s": binaries["timeout_s"],
            "adopt": cfg["rollout"]["adopt"],
            "mode": cfg["rollout"]["mode"],
            "runs": _awaited(cfg, "etcd"),
            "links": {f"{cfg['bin_dir']}/{tool}": f"{etcd_bin}/{tool}" for tool in tools},
        }
    )
    return rows


def _pin_faults(cfg):
    """Return a sentence for each pin of something that is not fetched: it would not count."""
    etcd = [_bundle(cfg, arch) for arch in sorted(ARCHITECTURES.values())]
    return [
        f"{PILLAR}:{section}:checksums:{name}: nothing of this name is fetched{__salt__['k8s_declared.nearest'](name, names)}."
        for section, names in (("binaries", cfg["binaries"]["names"]), ("etcd", etcd))
        for name in cfg[section]["checksums"]
        if name not in names
    ]


def _homes(cfg):
    """Return where generations may be: also those of a component that is not declared here any more, and still runs."""
    return [cfg[key].get("conf_dir", cfg["conf_dir"]) for key in CONTROL_PLANE]


def _bundle(cfg, arch):
    """Return the name of etcd's archive."""
    return f"etcd-v{cfg['etcd']['release']}-linux-{arch}.tar.gz"


def _awaited(cfg, name):
    """Return the component that has to be of the declared release before links lead there; None where it is not run here."""
    row = cfg["components"].get(name)
    return {key: row[key] for key in ("name", "home", "release")} if row else None


def _releases(cfg):
    """Return what may be kept of other releases than the declared ones: one row per directory of releases."""
    homes, keep = _homes(cfg), cfg["rollout"]["keep_releases"]
    return [
        {"directory": owner["release_dir"], "declared": owner["release"], "homes": homes, "keep": keep}
        for owner in (cfg, cfg["etcd"])
    ]


def lease(name, flags, config=None):
    """
    Return the leader lease that a component takes, NAME in kube-system or NAMESPACE/NAME; "" where it elects no leader.

    name
        Name of the component, which is that of its lease where nothing else is said.
    flags
        Its flags (dict of str). One that is given counts more than the configuration, as kube-scheduler has it.
    config
        Its configuration (dict, or a text with YAML), if it has one.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_config.lease kube-scheduler '{"leader-elect": "false"}'
    """
    if isinstance(config, str):
        try:
            config = yaml.safe_load(config)
        except (yaml.YAMLError, RecursionError, ValueError):
            config = None  # the component says what it thinks of it
    section = config.get("leaderElection") if hasattr(config, "get") else None
    section = section if hasattr(section, "get") else {}
    elects, own, namespace = (flags.get(flag, section.get(key)) for flag, key in ELECTION.items())
    if str(elects).lower() in ("false", "f", "0"):
        return ""
    return f"{namespace}/{own or name}" if namespace and namespace != SYSTEM else str(own or name)


def arguments(flags):
    """
    Return the command line (list of str) that ``flags`` mean, in their order; one with a list is there once per element.

    flags
        Flags (dict of str, or of a list of str where a flag is repeated).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_config.arguments '{"service-account-issuer": ["https://new", "https://old"]}'
    """
    return [f"--{flag}={one}" for flag, value in flags.items() for one in _listed(value)]


def start_script(row, checksum):
    """
    Return the text of a generation's ``start``: the exact binary and one flag per line.

    row
        A row of ``components``.
    checksum
        SHA-256 of the binary, so that the generation's digest covers it.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_config.start_script '{"name": "kube-scheduler", "release": "1.37.2", ...}' 3f9c…
    """
    command = " \\\n  ".join(map(shlex.quote, [row["binary"], *arguments(row["settings"])]))
    secret = " ".join(sorted(name for name, file in row["files"].items() if set(file) & set(SECRET_SOURCES)))
    head = f"#!/bin/sh\n# {row['name']} {row['release']} sha256:{checksum}\n# never shown: {secret}\n"
    return f"{head}exec {command}\n"


def unit_text(row):
    """
    Return the text of a component's systemd unit.

    row
        A row of ``components``; an option whose value is a list is written once per entry.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_config.unit_text '{"unit": {"Service": {"Type": "exec"}}}'
    """
    lines = ["# Written by the formula kubernetes_controller; a copy of live/unit."]
    for section in SECTIONS:  # not the order of the dictionary: rendering an SLS sorts it, and the digest must not change
        lines += ["", f"[{section}]"]
        for option, value in sorted(row["unit"].get(section, {}).items()):
            for part in _listed(value):
                lines.append(f"{option}={_flag_value(part)}")
    return "\n".join(lines) + "\n"
