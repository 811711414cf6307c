"""
What the machine has to give before a component is touched: room on its disks, memory for a rehearsal, and the ports that it
binds.
"""

import contextlib
import errno
import os
import socket
import urllib.parse

import salt.utils.files

MIB = 1024 * 1024
FOR_DATA = 3  # measured: of each MiB of etcd's data a rehearsal takes 2.2 in /run and 0.3 in its processes


def disk(components):
    """
    Return a sentence for each file system of the components' directories that has too little free space.

    components
        Rows of the configuration's ``components`` (dict).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_host.disk '{}'
    """
    found, seen = [], {}
    for row in components.values():
        for directory in (row["home"], os.path.dirname(row["binary"]), *row["directories"]):
            present = _existing(directory)
            _, _, directories = seen.setdefault(os.stat(present).st_dev, (present, row["preflight"]["min_free_mib"], []))
            directories.append(directory)
    for present, least, directories in seen.values():
        stat = os.statvfs(present)
        free = stat.f_bavail * stat.f_frsize // MIB
        if free < least:
            found.append(
                f"{', '.join(dict.fromkeys(directories))}: {free} MiB free, expected at least {least} "
                "(kubernetes_controller:rollout:preflight:min_free_mib). Make room, with old releases first. "
                f"{__salt__['k8s_skew.override']({'preflight': {'min_free_mib': 0}})}"
            )
    return found


def memory(components, due):
    """
    Return a sentence where less memory is available than a rehearsal takes, or none.

    components
        Rows of the configuration's ``components`` (dict).
    due
        What is to be rehearsed (``k8s_rehearsal.due``); without any, nothing is needed.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_host.memory '{}' '{}'
    """
    least = next((row["preflight"]["min_available_memory_mib"] for row in components.values()), 0)
    if not due or not least:
        return []
    data = __salt__["k8s_rehearsal.data_mib"](components)
    wanted, available = least + FOR_DATA * data, _available_mib()
    if available is None or available >= wanted:
        return []
    return [
        f"memory: {available} MiB are available, expected at least {wanted} for the rehearsal of {', '.join(due)}: {least} "
        f"(kubernetes_controller:rollout:preflight:min_available_memory_mib) and {FOR_DATA} times the {data} MiB of etcd's data. "
        "Free memory on this node. Where nothing else takes it, the rehearsal needs no data of etcd's with kubernetes_controller:"
        f"rollout:rehearsal:data: empty. {__salt__['k8s_skew.override']({'preflight': {'min_available_memory_mib': 0}})}"
    ]


def ports(row):
    """
    Return a sentence for each address and port that a component will bind and cannot, as another process has it.

    row
        A row of the configuration's ``components``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_host.ports "$ROW"
    """
    found, live = [], _bound(row, __salt__["k8s_generation.flags"](row["home"]))
    for address, port, flag in _bound(row, row["settings"]):
        reason = _cannot_bind(address, port)
        if reason is None or (address, port) in [bound[:2] for bound in live] and _runs(row):
            continue
        key = f"kubernetes_controller:{row['key']}:settings:{flag}"
        if reason == errno.EADDRINUSE:
            holder = __salt__["k8s_component.listener"](port, address or None) or {"pid": 0, "binary": "unknown"}
            if holder["pid"] and holder["pid"] == __salt__["k8s_component.process"](row["name"])["pid"]:
                continue
            other = f" by kubernetes_controller:{row['key']}:port" if flag == "secure-port" else ""
            found.append(
                f"{key}: port {port} of {address or 'all addresses'} is held by process {holder['pid']} ({holder['binary']}), so "
                f"{row['name']} could not start. Stop that process, or choose another port{other}."
            )
        else:
            found.append(f"{key}: {row['name']} cannot bind {address}:{port} here ({os.strerror(reason)}).")
    return found


def _available_mib():
    """Return the kernel's estimate of what can be had without swapping, or None."""
    try:
        with salt.utils.files.fopen("/proc/meminfo", encoding="ascii") as handle:
            known = dict(line.split(":", 1) for line in handle if ":" in line)
        return int(known["MemAvailable"].split()[0]) // 1024
    except (OSError, KeyError, ValueError):
        return None


def _existing(path):
    """Return the nearest directory on the way to ``path`` that is there."""
    while not os.path.isdir(path):
        path = os.path.dirname(path) or os.curdir
    return path


def _bound(row, flags):
    """Return [(address, port, flag)] that a component binds with ``flags``; an address "" is all of them."""
    if row["name"] == "etcd":
        found = []
        for flag in ("listen-client-urls", "listen-peer-urls", "listen-metrics-urls"):
            for url in filter(None, flags.get(flag, "").split(",")):
                with contextlib.suppress(ValueError):  # nobody is asked at such a URL, and none is declared
                    where = urllib.parse.urlsplit(url)
                    found.append((where.hostname or "", where.port or 0, flag))
        return found
    port = flags.get("secure-port", str(row["port"]))
    address = flags.get("bind-address", "")
    address = "" if address in ("0.0.0.0", "::") else address  # noqa: S104 (compared with, not bound)
    return [(address, int(port), "secure-port")] if flags and port.isdigit() and int(port) else []


def _runs(row):
    return bool(__salt__["k8s_component.process"](row["name"])["pid"])


def _cannot_bind(address, port):
    """Return why (errno) a TCP address cannot be bound, or None. It is bound for a moment, and never listened at."""
    try:
        ((family, kind, _, _, where), *_) = socket.getaddrinfo(
            address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
        )
        with socket.socket(family, kind) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(where)
    except socket.gaierror:
        return None  # a name, or no address at all: the binary says what it thinks of it
    except (OSError, OverflowError) as exc:
        return getattr(exc, "errno", None) or errno.EINVAL
    return None
