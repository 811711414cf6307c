"""
What the operator declared: the pillar laid over ``defaults.yaml``, and whether it can be meant. Plain functions without I/O.
"""

import copy
import difflib
import ipaddress
import math
import posixpath
import re
import urllib.parse

import salt.utils.data
import salt.utils.network

PILLAR = "kubernetes_controller"
COMPONENTS = ("etcd", "apiserver", "controller_manager", "scheduler")
SECTIONS = ("Unit", "Service", "Install")
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
LONG = 21  # characters of a text that is shown; a key in base64 has more
LEAST_SERVICES = 8  # addresses that the API server wants to have for services
USAGES = ("serverAuth", "clientAuth")
ROW_SOURCES = ("pki", "yaml", "text", "config", "encryption", "kubeconfig", "pillar")
ROW_OPTIONS = ("reload", "mode", "fits")
# Refusals that the operator may overrule for one run (rollout:ignore).
IGNORABLE = (
    *("turn", "neighbours", "skew", "downgrade", "etcd", "overlap", "etcd-ports", "members", "identity"),
    *("issuers", "audiences", "service-account-key", "client-ca", "service-cidr", "pod-cidr", "api-port", "names"),
)
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")  # of a file
# Options of a unit that decide on a process's variables, and those that etcd reads.
VARIABLES = ("Environment", "PassEnvironment", "UnsetEnvironment")
ETCD_VARIABLE = re.compile(r"\bETCD_\w+")
# What a value in a row of an open table has to be: in words, and the test for it.
KINDS = {
    "anything": ("anything", lambda value: True),
    "text": ("a string", lambda value: isinstance(value, str)),
    "name": ("the name of a file", lambda value: isinstance(value, str) and NAME.fullmatch(value)),
    "texts": ("a list of strings", lambda value: isinstance(value, list) and _all_text(value)),
    "reference": (
        "the name of certificate material",
        lambda value: isinstance(value, str) and re.fullmatch(r"[\w{][\w.{}-]*", value),
    ),
    "names": (
        "a name or a list of names",
        lambda value: value != [] and all(map(KINDS["reference"][1], value if isinstance(value, list) else [value])),
    ),
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
    "certificate": "reference",
    "key": "reference",
    "cluster": "text",
    "embed": "switch",
}
ENCRYPTION = {"resources": "texts", "providers": "anything"}
PROVIDERS = {"aescbc": True, "aesgcm": True, "secretbox": True, "kms": False, "identity": False}  # whether it has keys


def over(defaults, pillar, node=None):
    """
    Return ``pillar`` over ``defaults``, and a sentence for each fault of it, which names its key.

    defaults
        The content of ``defaults.yaml`` (dict).
    pillar
        The pillar key ``kubernetes_controller`` (dict).
    node
        Facts of a minion, as for ``k8s_config.resolve``; without it nothing is compared with a node.

    CLI Example:

    .. code-block:: bash

        salt-call --local k8s_declared.over '{"release": "1.37.2"}' '{}'
    """
    faults = []
    cfg = _merge({key: value for key, value in defaults.items() if key != "version"}, pillar, PILLAR, faults)
    return cfg, faults or _faults(cfg, node)


def nearest(word, known):
    """
    Return what to add to a sentence about a word that is not known.

    word
        What was written.
    known
        What could have been meant (list).

    CLI Example:

    .. code-block:: bash

        salt-call --local k8s_declared.nearest kube-apisever '[kube-apiserver, kubectl]'
    """
    close = difflib.get_close_matches(str(word), [str(name) for name in known], n=1, cutoff=0.5)
    return f" (nearest: {close[0]})" if close else f" (known: {', '.join(sorted(map(str, known)))})"


def url_fault(url):
    """
    Return why nobody could ask or listen at a URL (str), or None.

    url
        What was written, with words filled in.

    CLI Example:

    .. code-block:: bash

        salt-call --local k8s_declared.url_fault https://10.8.0.101:99999
    """
    try:
        where = urllib.parse.urlsplit(url)
        port = where.port
    except ValueError as exc:
        return f"{_outline(url)} is no URL ({exc}), expected something like https://10.8.0.101:2379"
    if port == 0 or where.scheme in ("http", "https") and not where.hostname:
        what = "port 0" if port == 0 else "no host"
        return f"{_outline(url)} is no URL that can be asked ({what}), expected something like https://10.8.0.101:2379"
    return None


# -- merge -------------------------------------------------------------------------------------------------------------


def _open(path):
    relative = path.partition(":")[2]
    return any(re.fullmatch(pattern + "(:.*)?", relative) for pattern in OPEN)


def _merge(default, given, path, errors):
    """Return ``given`` over ``default``; faults are appended to ``errors`` with their path."""
    if not isinstance(given, dict):
        errors.append(f"{path}: expected a dictionary, found {_outline(given)}.")
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
            errors.append(f"{here}: no such key{nearest(key, merged)}.")
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
    return f"expected {names[wanted]}, found {_outline(value)}{hint}"


# -- validation -------------------------------------------------------------------------------------------------------


def _faults(cfg, node):
    """Return one sentence per fault of the merged configuration."""
    faults = []
    for key, release in (("release", cfg["release"]), ("etcd:release", cfg["etcd"]["release"])):
        if not re.fullmatch(r"\d+\.\d+\.\d+([-+][0-9A-Za-z.]+)?", release):
            faults.append(f"{PILLAR}:{key}: {_outline(release)} is not a release, expected something like 1.37.2.")
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
            faults.append(f"{PILLAR}:{path}: {_outline(value)} is not an absolute path.")
        elif path.rpartition(":")[2] in PLACES and value != posixpath.normpath(value):
            faults.append(f"{PILLAR}:{path}: {_outline(value)} is not in its plain form; write {posixpath.normpath(value)}.")
    faults += _number_faults(cfg)
    for path, allowed in CHOICES.items():
        section, _, key = path.rpartition(":")
        value = salt.utils.data.traverse_dict(cfg, section)[key]
        if value not in allowed:
            faults.append(f"{PILLAR}:{path}: {_outline(value)}, expected {' or '.join(allowed)}.")
    if cfg["pki"]["algorithm"] not in KEY_SIZES_BITS:
        faults.append(f"{PILLAR}:pki:algorithm: {_outline(cfg['pki']['algorithm'])}, expected ec or rsa.")
    elif cfg["pki"]["key_size_bits"] not in (sizes := KEY_SIZES_BITS[cfg["pki"]["algorithm"]]):
        faults.append(f"{PILLAR}:pki:key_size_bits: {cfg['pki']['key_size_bits']}, expected one of {', '.join(map(str, sizes))}.")
    for name in cfg["rollout"]["ignore"]:
        if name not in IGNORABLE:
            faults.append(f"{PILLAR}:rollout:ignore: no such refusal as {_outline(name)}{nearest(name, IGNORABLE)}.")
    faults += _place_faults(cfg) + _controller_faults(cfg) + _table_faults(cfg) + _variable_faults(cfg)
    if not faults and node:
        faults += _node_faults(cfg, node)
    if not cfg["etcd"]["managed"] and not cfg["etcd"]["servers"]:
        faults.append(f"{PILLAR}:etcd:servers: empty. Name the URLs of an etcd cluster, or set {PILLAR}:etcd:managed to true.")
    for server in cfg["etcd"]["servers"]:
        if not str(server).startswith("https://"):
            faults.append(f"{PILLAR}:etcd:servers: {_outline(server)} is not an https URL, such as https://10.8.0.101:2379.")
        elif fault := url_fault(server):
            faults.append(f"{PILLAR}:etcd:servers: {fault}.")
    return faults


def _place_faults(cfg):
    """Return a sentence for each place that two components would have to share, and for the operator's kubeconfig."""
    faults, homes = [], {}
    for key in COMPONENTS:
        homes.setdefault(cfg[key].get("conf_dir", cfg["conf_dir"]), []).append(key)
    for home, keys in homes.items():
        if len(keys) > 1:
            faults.append(f"{PILLAR}: {' and '.join(keys)} have the same conf_dir {home}; each needs its own.")
    if cfg["release_dir"] == cfg["etcd"]["release_dir"]:
        faults.append(f"{PILLAR}:etcd:release_dir: {cfg['release_dir']} is {PILLAR}:release_dir already; each needs its own.")
    ports = {}
    for key in COMPONENTS:
        for name, address, port in _listens(cfg, key):
            everywhere = address in ("", "0.0.0.0", "::")  # noqa: S104 (compared with, not bound)
            for other, elsewhere in ports.get(port, {}).items():
                if everywhere or elsewhere in ("", "0.0.0.0", "::", address):  # noqa: S104
                    faults.append(f"{PILLAR}: {other} and {name} are the same port {port} of one address; each needs its own.")
            ports.setdefault(port, {})[name] = address
    kubeconfig = cfg["admin"]["kubeconfig"]
    if kubeconfig and not kubeconfig.startswith(("/", "{directory}/")):
        faults.append(f"{PILLAR}:admin:kubeconfig: {_outline(kubeconfig)} is not an absolute path.")
    if cfg["admin"]["server"] and not cfg["admin"]["server"].startswith("https://"):
        faults.append(f"{PILLAR}:admin:server: {_outline(cfg['admin']['server'])} is no URL, such as https://10.8.0.101:6443.")
    host = cfg["endpoint"]["host"]
    if host and not salt.utils.network.is_ip(host) and not NAME.fullmatch(host):
        faults.append(f"{PILLAR}:endpoint:host: {_outline(host)} is no name and no address; the port is {PILLAR}:endpoint:port.")
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
    for path, value in _scalars(cfg):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        above = any(re.fullmatch(pattern, path) for pattern in ABOVE_ZERO)
        if path.endswith("days_valid"):
            if not KINDS["days"][1](value):
                faults.append(f"{PILLAR}:{path}: {value}, expected {KINDS['days'][0]}.")
        elif not path.endswith(("port", "_bits")) and not (0 < value < math.inf if above else 0 <= value < math.inf):
            unit = next((unit for ending, unit in UNITS.items() if path.endswith(ending)), "")
            least = ("1 or more" if isinstance(value, int) else "more than 0") if above else "0 or more"
            faults.append(f"{PILLAR}:{path}: {value}, expected {least}{unit}.")
    return faults


def _scalars(tree, above=""):
    """Yield path and value of the scalars of the configuration that are not in an open table."""
    for key, value in tree.items():
        path = f"{above}{key}"
        if _open(f"{PILLAR}:{path}"):
            continue
        if isinstance(value, dict):
            yield from _scalars(value, f"{path}:")
        elif not isinstance(value, list):
            yield path, value


def _table_faults(cfg):
    """Return a sentence for each row of an open table that has not the shape that the formula reads."""
    faults = []
    units = {"unit": cfg["unit"], **{f"{key}:unit": cfg[key]["unit"] for key in COMPONENTS}}
    for path, section, options in ((path, *item) for path, unit in units.items() for item in unit.items()):
        if section not in SECTIONS:
            faults.append(f"{PILLAR}:{path}:{section}: no such key{nearest(section, SECTIONS)}.")
        elif not isinstance(options, dict):
            faults.append(f"{PILLAR}:{path}:{section}: expected a dictionary, found {_outline(options)}.")
        else:
            faults += [
                f"{PILLAR}:{path}:{section}:{option}: an option cannot have a line break; a list is written once per entry."
                for option, value in options.items()
                if any("\n" in str(part) for part in [option, *(value if isinstance(value, list) else [value])])
            ]
    for key in COMPONENTS:
        for name, row in cfg[key]["files"].items():
            faults += _file_faults(name, row, f"{PILLAR}:{key}:files:{name}", key)
        for name, pair in cfg[key]["pairs"].items():
            faults += _row_faults(pair, PAIR, f"{PILLAR}:{key}:pairs:{name}")
        for name, mode in cfg[key]["directories"].items():
            faults += _value_faults(mode, "mode", f"{PILLAR}:{key}:directories:{name}")
    for name, row in cfg["pki"]["certificates"].items():
        here = f"{PILLAR}:pki:certificates:{name}"
        faults += _row_faults(row, CERTIFICATE, here, required=("authority", "usage", "common_name"))
        if isinstance(row, dict) and row.get("authority") == "signer" and not cfg["pki"]["authorities"]["signer"]["enabled"]:
            faults.append(f"{here}:authority: signer is off, by {PILLAR}:pki:authorities:signer:enabled.")
    for table, kind in (("pki:files", "name"), ("binaries:checksums", "text"), ("etcd:checksums", "text")):
        section, _, key = table.partition(":")
        for name, value in cfg[section][key].items():
            faults += _value_faults(value, kind, f"{PILLAR}:{table}:{name}")
    if not _all_text(cfg["binaries"]["names"]):
        faults.append(f"{PILLAR}:binaries:names: expected a list of strings, found {_outline(cfg['binaries']['names'])}.")
    elif len(set(cfg["binaries"]["names"])) < len(cfg["binaries"]["names"]):
        faults.append(f"{PILLAR}:binaries:names: a name is there twice in {_outline(cfg['binaries']['names'])}.")
    for name, document in cfg["objects"].items():
        named = isinstance(document, dict) and isinstance(document.get("metadata"), dict) and "name" in document["metadata"]
        if not named or not {"apiVersion", "kind"} <= set(document):
            faults.append(f"{PILLAR}:objects:{name}: expected an object with apiVersion, kind and metadata:name.")
    return faults + _encryption_faults(cfg["encryption"])


def _variable_faults(cfg):
    """Return a sentence for each option of etcd's unit that gives it variables by which a member without data could start."""
    faults, common, own = [], cfg["unit"].get("Service"), cfg["etcd"]["unit"].get("Service")
    if not cfg["etcd"]["managed"] or not isinstance(common, dict) or not isinstance(own, dict):
        return []
    for option, value in {**common, **own}.items():
        here = f"{PILLAR}:{'etcd:' if option in own else ''}unit:Service:{option}"
        texts = [str(part) for part in (value if isinstance(value, list) else [value])]
        if option == "EnvironmentFile" and value is not None:
            faults.append(
                f"{here}: of etcd's variables only the formula has a file: one more would overrule what keeps a member without "
                "data from founding an empty cluster. Write variables as Environment, flags of etcd as "
                f"{PILLAR}:etcd:settings, and what is meant for another component below that one's own unit."
            )
        elif option in VARIABLES and any(ETCD_VARIABLE.search(text) for text in texts):
            names = ", ".join(name for text in texts for name in ETCD_VARIABLE.findall(text))
            faults.append(
                f"{here}: {names}: a variable of etcd's would overrule what keeps a member without data from founding an empty "
                f"cluster. Write it as a flag, in {PILLAR}:etcd:settings."
            )
    return faults


def _file_faults(name, row, here, component):
    """Return what is wrong with a row of files, a sentence each."""
    if not NAME.fullmatch(name) or name in ("start", "unit"):
        return [f"{here}: not a file name that a generation can have."]
    sources = [source for source in ROW_SOURCES if source in (row if isinstance(row, dict) else {})]
    if len(sources) != 1 and not (isinstance(row, dict) and set(row) - set(FILE)):
        found = f"has {' and '.join(sources)} (null takes one away), " if sources else ""
        return [f"{here}: {found}expected exactly one of {', '.join(ROW_SOURCES)} (and {' or '.join(ROW_OPTIONS)})."]
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
    faults = [f"{here}:{key}: no such key{nearest(key, shape)}." for key in row if key not in shape]
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
                faults.append(f"{here}: no such provider as {_outline(kind)}{nearest(kind, PROVIDERS)}.")
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
    if not isinstance(value, str) or len(value) <= LONG and "@" not in value or re.fullmatch(r"https?://[\w.:/-]*", value):
        return repr(value)
    return f"a text of {len(value)} characters"


def _controller_faults(cfg):
    if not cfg["controllers"]:
        return [f"{PILLAR}:controllers: empty. List each controller as `minion-id: address`."]
    faults, seen = [], {}
    for minion, address in cfg["controllers"].items():
        if not isinstance(address, str) or not salt.utils.network.is_ip(address):
            faults.append(f"{PILLAR}:controllers:{minion}: {_outline(address)} is not an IP address.")
            continue
        if address != str(ipaddress.ip_address(address)):
            faults.append(f"{PILLAR}:controllers:{minion}: write {address} as {ipaddress.ip_address(address)}.")
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
