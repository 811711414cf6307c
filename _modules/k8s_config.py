"""
The formula's configuration: the pillar laid over ``defaults.yaml``, derived and validated.

``resolve`` and what it calls are plain functions without I/O; ``load`` feeds them with what this minion (or the
master) knows. Everything else in the formula reads only what comes out of here.
"""

import copy
import difflib
import ipaddress
import json
import math
import os
import re
import shlex
import traceback

import salt.pillar
import salt.utils.data
from salt.exceptions import CommandExecutionError

VERSION = "0.1.0"  # of the formula; modules of another version than defaults.yaml are synced before they are used
PILLAR = "kubernetes_controller"
DEFAULTS = "salt://kubernetes_controller/defaults.yaml"
SYNCED = "kubernetes_controller_synced"  # in the pillar of a round whose modules this run has synced
OURS = "look at what you changed last, sync the modules (saltutil.sync_all), and report it where that does not help."

# Tables in which the operator may add and remove entries; everywhere else a key must exist in the defaults.
OPEN = [
    "controllers",
    "binaries:checksums",
    "etcd:checksums",
    "(apiserver|controller_manager|scheduler|etcd):(settings|files|pairs|directories)",
    "(apiserver|controller_manager|scheduler|etcd):unit:.*",
    "scheduler:config",
    "unit:.*",
    "pki:files",
    "pki:certificates",
    "objects",
]
# Values whose type is not that of the default.
ANY_TYPE = ["rollout:(gate|turn|rehearsal):(timeout_s|neighbours_timeout_s|interval_s|window_s|settle_s)"]
CONTROL_PLANE = {
    "etcd": "etcd",
    "apiserver": "kube-apiserver",
    "controller_manager": "kube-controller-manager",
    "scheduler": "kube-scheduler",
}
# uname -m to the names that dl.k8s.io and etcd's releases use.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64"}
# The order of a roll over nodes that serve: API servers first (Kubernetes' version-skew policy).
SECTIONS = ("Unit", "Service", "Install")
PHASES = [["apiserver", "objects", "links"], ["controller_manager", "scheduler"]]
KEY_SIZES_BITS = {"ec": (256, 384, 521), "rsa": (2048, 3072, 4096)}
PLACES = ("conf_dir", "bin_dir", "release_dir", "log_dir", "data_dir", "directory", "record_dir")
CHOICES = {
    "rollout:mode": ("automatic", "manual"),
    "rollout:rehearsal:data": ("snapshot", "empty"),
    "binaries:algorithm": ("sha256", "sha512"),
}
# Numbers of which 0 makes no sense; none may be less than 0.
ABOVE_ZERO = [
    "binaries:timeout_s",
    "rollout:keep_generations",
    "rollout:preflight:max_clock_skew_s",
    "rollout:turn:(timeout_s|ttl_s)",
    "rollout:rehearsal:timeout_s",
    "rollout:gate:(timeout_s|interval_s|consecutive)",
]
UNITS = {"_s": " seconds", "_mib": " MiB", "days_remaining": " days", "days_warning": " days", "consecutive": " answers"}
MOST_DAYS = 36500  # a date has no room for a year of five digits
LONG = 32  # characters of a text that is shown; a key has more
LEAST_SERVICES = 8  # addresses that the API server wants to have for services
USAGES = ("serverAuth", "clientAuth")
# What has to serve on a node before the next component is started there.
AFTER = {"kube-apiserver": "etcd", "kube-controller-manager": "kube-apiserver", "kube-scheduler": "kube-apiserver"}
ROW_SOURCES = ("pki", "yaml", "text", "config", "encryption", "kubeconfig", "pillar")
SECRET_SOURCES = ("encryption", "kubeconfig", "pillar")
ROW_OPTIONS = ("reload", "mode", "fits")
# Refusals that the operator may overrule for one run (rollout:ignore).
IGNORABLE = ("turn", "neighbours", "skew", "downgrade", "etcd", "overlap", "etcd-ports")
WORD = re.compile(r"\{([a-z_]+)\}")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")  # of a file
# What a value in a row of an open table has to be: in words, and the test for it.
KINDS = {
    "anything": ("anything", lambda value: True),
    "text": ("a string", lambda value: isinstance(value, str)),
    "name": ("the name of a file", lambda value: isinstance(value, str) and NAME.fullmatch(value)),
    "texts": ("a list of strings", lambda value: isinstance(value, list) and _all_text(value)),
    "names": ("a name or a list of names", lambda value: _listed(value) and _all_text(_listed(value))),
    "usages": (
        "a list of serverAuth or clientAuth",
        lambda value: value and isinstance(value, list) and all(one in USAGES for one in value),
    ),
    "days": (f"1 to {MOST_DAYS} days", lambda value: type(value) is int and 0 < value <= MOST_DAYS),
    "mode": (
        'an octal mode in quotes, such as "0640"',
        lambda value: isinstance(value, str) and re.fullmatch("[0-7]{3,4}", value),
    ),
    "switch": ("true or false", lambda value: isinstance(value, bool)),
    "true": ("true", lambda value: value is True),
}
# The rows of open tables: the kind of each key, or what can be chosen from.
CERTIFICATE = {
    "authority": ("kubernetes", "signer", "etcd", "front-proxy"),
    "usage": "usages",
    "common_name": "text",
    "organization": "text",
    "sans": "texts",
    "for": ("master",),
    "days_valid": "days",
}
PAIR = {"key": "text", "authority": "text", "usage": USAGES, "sans": "texts"}
FILE = {
    "pki": "names",
    "yaml": "anything",
    "text": "text",
    "config": "true",
    "encryption": "true",
    "kubeconfig": "anything",
    "pillar": "text",
    "reload": "switch",
    "mode": "mode",
    "fits": "text",
}
KUBECONFIG = {
    "server": "text",
    "user": "text",
    "authority": "names",
    "certificate": "text",
    "key": "text",
    "cluster": "text",
    "embed": "switch",
}
ENCRYPTION = {"resources": "texts", "providers": "anything"}
PROVIDERS = {"aescbc": True, "aesgcm": True, "secretbox": True, "kms": False, "identity": False}  # whether it has keys


class ConfigError(CommandExecutionError):
    """The declaration cannot be resolved; ``errors`` has one sentence per fault, each naming its pillar key."""

    def __init__(self, errors):
        self.errors = errors
        super().__init__("\n".join(errors))


def load(defaults=None, fresh=False):
    """
    Return the resolved configuration of this minion, or of the cluster where this runs on the master.

    defaults
        The content of ``defaults.yaml`` (dict); by default it is read from the file server.
    fresh
        Ask the master for the pillar (default False: a run of states has a new one anyway, but what a minion keeps for
        other functions is as old as its last refresh).

    The answer has a key ``errors`` instead of a configuration when the declaration is not in order, so that a
    rendering SLS can show the sentences without a traceback.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_config.load
    """
    pillar = _fresh_pillar() if fresh and __opts__.get("file_client") == "remote" else __pillar__
    declared = json.dumps(pillar.get(PILLAR), sort_keys=True, default=str)
    known = __context__.get("k8s_config", {})
    if known.get("declared") != declared:  # many SLS of one run ask the same
        known = {"declared": declared, "cfg": _load(defaults, pillar.get(PILLAR))}
        if "errors" not in known["cfg"]:
            __context__["k8s_config"] = known
    return known["cfg"]


def _fresh_pillar():
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
    """Return what happened and where in this file, without the value, which may be a secret."""
    frames = traceback.extract_tb(exc.__traceback__)
    last = ([frame for frame in frames if os.path.basename(frame.filename) == "k8s_config.py"] or frames)[-1]
    return f"{type(exc).__name__} in k8s_config.{last.name}, line {last.lineno}"


def _addresses(facts):
    """Return the IPv4 and IPv6 addresses (list of str) in what Salt tells of an interface."""
    return [entry["address"] for family in ("inet", "inet6") for entry in facts.get(family) or []]


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
        whose = f"minion {node['id']}" if node else "the master's own minion id (HOSTNAME_master)"
        raise ConfigError(
            [
                f"Pillar has no key `{PILLAR}` for {whose}. Add it, with `controllers` at least "
                f"(see pillar.example), to a pillar SLS that top.sls gives to {whose}."
            ]
        )
    errors = []
    cfg = _merge({key: value for key, value in defaults.items() if key != "version"}, pillar, PILLAR, errors)
    if not errors:
        errors += _faults(cfg, node)
    if errors:
        raise ConfigError(errors)
    cfg["node"] = node and {**node, "address": cfg["controllers"][node["id"]]}
    cfg["etcd"]["servers"] = _etcd_servers(cfg)
    cfg["components"] = {}
    if not cfg["etcd"]["managed"]:
        cfg["pki"]["authorities"]["etcd"]["managed"] = False
    if not node:
        first, address = next(iter(cfg["controllers"].items()))
        _components({**cfg, "node": {"id": first, "address": address}, "components": {}}, errors)  # for its faults alone
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
    else:
        _components(cfg, errors)
        if errors:
            raise ConfigError(errors)
        cfg["after"] = {name: AFTER[name] for name in cfg["components"] if AFTER.get(name) in cfg["components"]}
        cfg["downloads"] = _downloads(cfg)
        cfg["releases"] = _releases(cfg)
    return cfg


# -- merge ------------------------------------------------------------------------------------------------------------


def _open(path):
    relative = path.partition(":")[2]
    return any(re.fullmatch(pattern + "(:.*)?", relative) for pattern in OPEN)


def _merge(default, given, path, errors):
    """Return ``given`` over ``default``; faults are appended to ``errors`` with their path."""
    if not isinstance(given, dict):
        errors.append(f"{path}: expected a dictionary, found {given!r}.")
        return copy.deepcopy(default)
    merged = copy.deepcopy(default)
    for key, value in ((str(key), value) for key, value in given.items()):
        here = f"{path}:{key}"
        if _open(here):
            if value is None and _open(path):
                merged.pop(key, None)
                if ":unit:" in here:  # a component's null also takes away what all units have in common
                    merged[key] = None
                continue
            if isinstance(value, dict) and isinstance(merged.get(key), dict):
                merged[key] = _merge(merged[key], value, here, errors)
                continue
            if not (key in merged and isinstance(merged[key], dict) and not _open(path)):
                merged[key] = _without_null(value)
                continue
        if key not in merged:
            errors.append(f"{here}: no such key{_nearest(key, merged)}.")
        elif isinstance(merged[key], dict):
            merged[key] = _merge(merged[key], value, here, errors)
        else:
            problem = _wrong_type(merged[key], value, here)
            if problem:
                errors.append(f"{here}: {problem}.")
            else:
                merged[key] = value
    return merged


def _without_null(value):
    if isinstance(value, dict):
        return {str(k): _without_null(v) for k, v in value.items() if v is not None}
    return copy.deepcopy(value)


def _nearest(word, known):
    close = difflib.get_close_matches(str(word), [str(name) for name in known], n=1, cutoff=0.5)
    return f" (nearest: {close[0]})" if close else f" (known: {', '.join(sorted(map(str, known)))})"


def _wrong_type(default, value, path):
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", list: "a list"}
    wanted = type(default)
    relative = path.partition(":")[2]
    if any(re.fullmatch(pattern, relative) for pattern in ANY_TYPE):
        wanted, ok = float, isinstance(value, (int, float)) and not isinstance(value, bool)
    elif wanted is int:
        ok = isinstance(value, int) and not isinstance(value, bool)
    else:
        ok = isinstance(value, wanted)
    if ok:
        return None
    hint = ". Quote it" if wanted is str and isinstance(value, (int, float)) else ""
    return f"expected {names[wanted]}, found {value!r}{hint}"


# -- validation -------------------------------------------------------------------------------------------------------


def _faults(cfg, node):
    """Return one sentence per fault of the merged configuration."""
    faults = []
    for key, release in (("release", cfg["release"]), ("etcd:release", cfg["etcd"]["release"])):
        if not re.fullmatch(r"\d+\.\d+\.\d+([-+][0-9A-Za-z.]+)?", release):
            faults.append(f"{PILLAR}:{key}: {release!r} is not a release, expected something like 1.37.2.")
    for key in ("pod_cidr", "service_cidr"):
        for part in cfg["cluster"][key].split(","):
            try:
                size = ipaddress.ip_network(part).num_addresses
            except ValueError as exc:
                faults.append(f"{PILLAR}:cluster:{key}: {exc}, expected something like 10.32.0.0/16.")
                continue
            if key == "service_cidr" and size < LEAST_SERVICES:
                faults.append(
                    f"{PILLAR}:cluster:{key}: {part} has {size} addresses and the API server takes {LEAST_SERVICES} at least, "
                    "expected something like 10.32.0.0/16."
                )
    for path, value in _scalars(cfg):
        if path.endswith("port") and not 0 < value < 65536:
            faults.append(f"{PILLAR}:{path}: {value} is not a port.")
        if path.rpartition(":")[2] in PLACES and not value.startswith("/"):
            faults.append(f"{PILLAR}:{path}: {value!r} is not an absolute path.")
    faults += _number_faults(cfg)
    for path, allowed in CHOICES.items():
        section, _, key = path.rpartition(":")
        value = salt.utils.data.traverse_dict(cfg, section)[key]
        if value not in allowed:
            faults.append(f"{PILLAR}:{path}: {value!r}, expected {' or '.join(allowed)}.")
    if cfg["pki"]["algorithm"] not in KEY_SIZES_BITS:
        faults.append(f"{PILLAR}:pki:algorithm: {cfg['pki']['algorithm']!r}, expected ec or rsa.")
    elif cfg["pki"]["key_size_bits"] not in (sizes := KEY_SIZES_BITS[cfg["pki"]["algorithm"]]):
        faults.append(f"{PILLAR}:pki:key_size_bits: {cfg['pki']['key_size_bits']}, expected one of {', '.join(map(str, sizes))}.")
    for name in cfg["rollout"]["ignore"]:
        if name not in IGNORABLE:
            faults.append(f"{PILLAR}:rollout:ignore: no such refusal as {name!r}{_nearest(name, IGNORABLE)}.")
    faults += _place_faults(cfg) + _controller_faults(cfg) + _table_faults(cfg)
    if not faults and node:
        faults += _node_faults(cfg, node)
    if not cfg["etcd"]["managed"] and not cfg["etcd"]["servers"]:
        faults.append(f"{PILLAR}:etcd:servers: empty. Name the URLs of an etcd cluster, or set {PILLAR}:etcd:managed to true.")
    for server in cfg["etcd"]["servers"]:
        if not str(server).startswith("https://"):
            faults.append(f"{PILLAR}:etcd:servers: {server!r} is not an https URL, such as https://10.8.0.101:2379.")
    return faults


def _place_faults(cfg):
    """Return a sentence for each place that two components would have to share, and for the operator's kubeconfig."""
    faults, homes = [], {}
    for key in CONTROL_PLANE:
        homes.setdefault(cfg[key].get("conf_dir", cfg["conf_dir"]), []).append(key)
    for home, keys in homes.items():
        if len(keys) > 1:
            faults.append(f"{PILLAR}: {' and '.join(keys)} have the same conf_dir {home}; each needs its own.")
    ports = {}
    for key in CONTROL_PLANE:
        for name, address, port in _listens(cfg, key):
            everywhere = address in ("", "0.0.0.0", "::")  # noqa: S104 (compared with, not bound)
            for other, elsewhere in ports.get(port, {}).items():
                if everywhere or elsewhere in ("", "0.0.0.0", "::", address):  # noqa: S104
                    faults.append(f"{PILLAR}: {other} and {name} are the same port {port} of one address; each needs its own.")
            ports.setdefault(port, {})[name] = address
    kubeconfig = cfg["admin"]["kubeconfig"]
    if kubeconfig and not kubeconfig.startswith(("/", "{directory}/")):
        faults.append(f"{PILLAR}:admin:kubeconfig: {kubeconfig!r} is not an absolute path.")
    return faults


def _listens(cfg, key):
    """Yield key, address and number of each port that a component is to listen at, where its flags do not say otherwise."""
    settings = cfg[key]["settings"]
    if key == "etcd":
        for name, flag in (("client_port", "listen-client-urls"), ("peer_port", "listen-peer-urls")):
            if cfg["etcd"]["managed"] and settings.get(flag) == f"{{etcd_{name.removesuffix('_port')}_url}}":
                yield f"etcd:{name}", "{address}", cfg["etcd"][name]
    elif cfg[key]["enabled"] and settings.get("secure-port") == "{port}":
        yield f"{key}:port", str(settings.get("bind-address", "")), cfg[key]["port"]


def _number_faults(cfg):
    """Return a sentence for each number that is less than it can be."""
    faults = []
    for path, value in _numbers(cfg):
        above = any(re.fullmatch(pattern, path) for pattern in ABOVE_ZERO)
        if path.endswith("days_valid"):
            if not KINDS["days"][1](value):
                faults.append(f"{PILLAR}:{path}: {value}, expected {KINDS['days'][0]}.")
        elif not path.endswith(("port", "_bits")) and not (value > 0 if above else value >= 0) or not math.isfinite(value):
            unit = next((unit for ending, unit in UNITS.items() if path.endswith(ending)), "")
            least = ("1 or more" if isinstance(value, int) else "more than 0") if above else "0 or more"
            faults.append(f"{PILLAR}:{path}: {value}, expected {least}{unit}.")
    return faults


def _numbers(tree, above=""):
    """Yield path and value of the numbers of the configuration that are not in an open table."""
    for key, value in tree.items():
        path = f"{above}{key}"
        if _open(f"{PILLAR}:{path}"):
            continue
        if isinstance(value, dict):
            yield from _numbers(value, f"{path}:")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield path, value


def _scalars(cfg):
    """Yield path and value of the scalars of the configuration's two upper levels."""
    for key, value in cfg.items():
        if not isinstance(value, dict):
            yield key, value
        elif not _open(f"{PILLAR}:{key}"):
            yield from ((f"{key}:{inner}", found) for inner, found in value.items() if not isinstance(found, (dict, list)))


def _table_faults(cfg):
    """Return a sentence for each row of an open table that has not the shape that the formula reads."""
    faults = []
    for section in cfg["unit"]:
        if section not in SECTIONS:
            faults.append(f"{PILLAR}:unit:{section}: no such key{_nearest(section, SECTIONS)}.")
    for key in CONTROL_PLANE:
        for section in cfg[key]["unit"]:
            if section not in SECTIONS:
                faults.append(f"{PILLAR}:{key}:unit:{section}: no such key{_nearest(section, SECTIONS)}.")
        for name, row in cfg[key]["files"].items():
            faults += _file_faults(name, row, f"{PILLAR}:{key}:files:{name}", key)
        for name, pair in cfg[key]["pairs"].items():
            faults += _row_faults(pair, PAIR, f"{PILLAR}:{key}:pairs:{name}")
        for name, mode in cfg[key]["directories"].items():
            if not name.startswith(("/", "{")):
                faults.append(f"{PILLAR}:{key}:directories:{name}: not an absolute path.")
            faults += _value_faults(mode, "mode", f"{PILLAR}:{key}:directories:{name}")
    for name, row in cfg["pki"]["certificates"].items():
        here = f"{PILLAR}:pki:certificates:{name}"
        faults += _row_faults(row, CERTIFICATE, here, required=("authority", "usage", "common_name"))
    for table, kind in (("pki:files", "name"), ("binaries:checksums", "text"), ("etcd:checksums", "text")):
        section, _, key = table.partition(":")
        for name, value in cfg[section][key].items():
            faults += _value_faults(value, kind, f"{PILLAR}:{table}:{name}")
    fetched = {"binaries": cfg["binaries"]["names"], "etcd": [_bundle(cfg, arch) for arch in sorted({*ARCHITECTURES.values()})]}
    for section, names in fetched.items():
        for name in cfg[section]["checksums"]:
            if name not in names:
                faults.append(f"{PILLAR}:{section}:checksums:{name}: nothing of this name is fetched{_nearest(name, names)}.")
    if not _all_text(cfg["binaries"]["names"]):
        faults.append(f"{PILLAR}:binaries:names: expected a list of strings, found {_outline(cfg['binaries']['names'])}.")
    for name, document in cfg["objects"].items():
        named = isinstance(document, dict) and isinstance(document.get("metadata"), dict) and "name" in document["metadata"]
        if not named or not {"apiVersion", "kind"} <= set(document):
            faults.append(f"{PILLAR}:objects:{name}: expected an object with apiVersion, kind and metadata:name.")
    return faults + _encryption_faults(cfg["encryption"])


def _file_faults(name, row, here, component):
    """Return what is wrong with a row of files, a sentence each."""
    if not NAME.fullmatch(name) or name in ("start", "unit"):
        return [f"{here}: not a file name that a generation can have."]
    sources = [source for source in ROW_SOURCES if source in (row if isinstance(row, dict) else {})]
    if len(sources) != 1 or set(row) - set(FILE):
        return [f"{here}: expected exactly one of {', '.join(ROW_SOURCES)} (and {' or '.join(ROW_OPTIONS)})."]
    if sources == ["config"] and component != "scheduler":
        return [f"{here}:config: {component} has no key `config`, only the scheduler has; write the content as yaml."]
    faults = _row_faults(row, FILE, here)
    if sources == ["kubeconfig"]:
        required = ("server", "user", "authority", "certificate", "key")
        faults += _row_faults(row["kubeconfig"], KUBECONFIG, f"{here}:kubeconfig", required)
    return faults


def _row_faults(row, shape, here, required=()):
    """Return what is wrong with a row of a table, a sentence each: keys that are unknown or missing, and values."""
    if not isinstance(row, dict):
        return [f"{here}: expected a dictionary of {', '.join(shape)}, found {_outline(row)}."]
    faults = [f"{here}:{key}: no such key{_nearest(key, shape)}." for key in row if key not in shape]
    for key, kind in shape.items():
        if key in row:
            faults += _value_faults(row[key], kind, f"{here}:{key}")
        elif key in required:
            faults.append(f"{here}:{key}: missing, expected {_wanted(kind)}.")
    return faults


def _value_faults(value, kind, here):
    """Return a sentence, as a list, where a value is not of its kind."""
    if isinstance(value, str) and value in kind if isinstance(kind, tuple) else KINDS[kind][1](value):
        return []
    quote = isinstance(value, (int, float)) and not isinstance(value, bool) and kind in ("text", "name", "mode")
    return [f"{here}: expected {_wanted(kind)}, found {_outline(value)}{'. Quote it' * quote}."]


def _wanted(kind):
    if isinstance(kind, tuple):
        return f"one of {', '.join(kind)}" if len(kind) > 1 else kind[0]
    return KINDS[kind][0]


def _all_text(values):
    return all(isinstance(value, str) for value in values)


def _encryption_faults(entries):
    """Return what is wrong with ``encryption``, a sentence each."""
    here, faults = f"{PILLAR}:encryption", []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("resources"), list):
            faults.append(f"{here}: expected a list of resources and providers, found {_outline(entry)}.")
            continue
        faults += _row_faults(entry, ENCRYPTION, here)
        several = isinstance(entry.get("providers"), list) and entry["providers"]
        for provider in several or [entry.get("providers")]:
            kind = next(iter(provider)) if several and isinstance(provider, dict) and len(provider) == 1 else None
            if kind is not None and kind not in PROVIDERS:
                faults.append(f"{here}: no such provider as {_outline(kind)}{_nearest(kind, PROVIDERS)}.")
            elif kind is None or not _is_provider(provider[kind], PROVIDERS[kind]):
                faults.append(
                    f"{here}: expected a provider such as `secretbox: {{keys: [NAME]}}`, where NAME is that of a "
                    f"file of certificate material, found {_outline(provider)}."
                )
    return faults


def _is_provider(options, keyed):
    """Tell whether ``options`` are those of a provider of the encryption configuration."""
    if not keyed:
        return options is None or isinstance(options, dict) and "keys" not in options
    keys = options.get("keys") if isinstance(options, dict) else None
    return isinstance(keys, list) and bool(keys) and all(isinstance(key, str) and NAME.fullmatch(key) for key in keys)


def _outline(value):
    """Return what a value is, without what is in it where that may be a secret: a key, in the place of its name."""
    if isinstance(value, dict):
        return f"a dictionary of {', '.join(map(str, value))}" if value else "an empty dictionary"
    if isinstance(value, list):
        return f"[{', '.join(map(_outline, value))}]"
    return f"a text of {len(value)} characters" if isinstance(value, str) and len(value) > LONG else repr(value)


def _controller_faults(cfg):
    if not cfg["controllers"]:
        return [f"{PILLAR}:controllers: empty. List each controller as `minion-id: address`."]
    faults, seen = [], {}
    for minion, address in cfg["controllers"].items():
        if not isinstance(address, str) or not _is_address(address):
            faults.append(f"{PILLAR}:controllers:{minion}: {address!r} is not an IP address.")
            continue
        if address in seen:
            faults.append(f"{PILLAR}:controllers:{minion}: {address} belongs to {seen[address]} already.")
        seen[address] = minion
    return faults


def _node_faults(cfg, node):
    if node["id"] not in cfg["controllers"]:
        return [
            f"{PILLAR}:controllers: minion {node['id']} is not in it (it has {', '.join(cfg['controllers'])}). "
            f"Add `{node['id']}: ADDRESS`, or target the controllers only."
        ]
    address, name = cfg["controllers"][node["id"]], cfg["interface"]
    if name not in node["interfaces"]:
        return [f"{PILLAR}:interface: {node['id']} has no interface {name!r} (it has {', '.join(sorted(node['interfaces']))})."]
    if address not in node["interfaces"][name]:
        found = ", ".join(node["interfaces"][name]) or "none"
        return [
            f"{PILLAR}:controllers:{node['id']}: {address} is not an address of interface {name} (it has {found}). "
            f"Correct the address or {PILLAR}:interface."
        ]
    return []


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
                "sans": [f"{'IP' if _is_address(san) else 'DNS'}:{san}" for san in sans],
                "path": f"{directory}/{_file_name(cfg, name + '.crt')}",
                "key": f"{directory}/{_file_name(cfg, name + '.key')}",
            }
        )
    return rows


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


def _is_address(text):
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


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


def _components(cfg, errors):
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
        files = _files(cfg, key, words)
        settings = _settings(declared["settings"], words, f"{PILLAR}:{key}:settings", errors)
        if key == "controller_manager" and not cfg["pki"]["authorities"]["signer"]["enabled"]:
            settings = {k: v for k, v in settings.items() if not k.startswith("cluster-signing-")}
        errors += _dangling(settings, files, home, f"{PILLAR}:{key}")
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
            "files": files,
            "pairs": {k: _fill(v, words) for k, v in declared["pairs"].items() if k in files},
            "directories": _fill(declared["directories"], words),
            "unit": _unit(cfg["unit"], declared["unit"], words),
            "probe": declared["probe"],
            "gate": cfg["rollout"]["gate"],
            "adopt": cfg["rollout"]["adopt"],
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
        for name in re.findall(re.escape(f"{home}/live/") + r"([\w.-]+)", value):
            if name not in known:
                faults.append(
                    f"{path}:settings:{flag}: {home}/live/{name} is not a file of the generation; add {path}:files:{name}."
                )
    return faults


def _settings(settings, words, path, errors):
    """Return the flags as strings, sorted by name; lists joined by commas, dictionaries as k=v."""
    flags = {}
    for flag, value in sorted((str(flag), value) for flag, value in settings.items()):
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", flag):
            errors.append(f"{path}:{flag}: not a flag name; write it without leading dashes.")
            continue
        strange = [word for word in WORD.findall(json.dumps(value)) if word not in words]
        if strange:
            errors.append(f"{path}:{flag}: {{{strange[0]}}} is no word{_nearest(strange[0], words)}.")
        text = _flag_value(_fill(value, words))
        if text is None:
            errors.append(f"{path}:{flag}: expected a string, number, boolean, list or dictionary of those, found {value!r}.")
            continue
        if "\n" in text:
            errors.append(f"{path}:{flag}: a flag cannot have a line break.")
        flags[flag] = text
    return flags


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
    lines = [f"--{flag}={value}" for flag, value in row["settings"].items()]
    command = " \\\n  ".join(map(shlex.quote, [row["binary"], *lines]))
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
