"""
The lab's network: a bridge in a namespace of the lab's own, and one namespace with ``tap0`` per node.

All labs have the same addresses, as nothing leads out of a lab, and nothing in.
"""

import json
import time
from pathlib import Path

from .shell import run

NETNS = Path("/run/netns")
BRIDGE = "bridge"
GATEWAY = "10.8.0.1"
PREFIX = 24
INTERFACE = "tap0"


def _ip(netns, *words, check=True):
    return run(["ip", "-n", netns, *words], check=check)


def _namespace(name):
    """Make the network namespace ``name`` where it is missing; what a kill left half-made is replaced."""
    if run(["ip", "netns", "exec", name, "true"], check=False).returncode:
        run(["ip", "netns", "delete", name], check=False)
        run(["ip", "netns", "add", name])
    _ip(name, "link", "set", "lo", "up")


def _links(netns):
    return {link["ifname"] for link in json.loads(_ip(netns, "-json", "link", "show").stdout)}


def make_bridge(netns):
    """Make the lab's namespace and bridge where they are missing."""
    _namespace(netns)
    if BRIDGE not in _links(netns):
        # An address of its own, or it would change with each port and the nodes would keep a stale one.
        _ip(netns, "link", "add", BRIDGE, "address", "02:00:0a:08:00:01", "type", "bridge")
    _ip(netns, "address", "replace", f"{GATEWAY}/{PREFIX}", "dev", BRIDGE)
    _ip(netns, "link", "set", BRIDGE, "up")


def attach(lab_netns, netns, port, address):
    """Join the node's namespace ``netns`` to the bridge, by a cable whose end in the lab is called ``port``."""
    _namespace(netns)
    if INTERFACE not in _links(netns):
        _ip(lab_netns, "link", "delete", port, check=False)
        mac = "02:00:" + ":".join(f"{int(part):02x}" for part in address.split("."))
        words = ["type", "veth", "peer", "name", INTERFACE, "address", mac, "netns", netns]
        _ip(lab_netns, "link", "add", port, *words)
    _ip(lab_netns, "link", "set", port, "master", BRIDGE, "up")
    _ip(netns, "address", "replace", f"{address}/{PREFIX}", "dev", INTERFACE)
    _ip(netns, "link", "set", INTERFACE, "up")


def attached(lab_netns, netns, port):
    """Return whether both ends of the cable of ``attach`` are there, plugged in or not."""
    ends = ((lab_netns, port), (netns, INTERFACE))
    return all(_ip(name, "link", "show", "dev", link, check=False).returncode == 0 for name, link in ends)


def set_cable(lab_netns, port, plugged):
    """Plug the node's cable into the bridge, or pull it: the node keeps its address and loses its carrier."""
    _ip(lab_netns, "link", "set", port, "up" if plugged else "down")


def names(pattern):
    """Return the network namespaces that ``pattern`` matches as a whole."""
    return sorted(path.name for path in NETNS.glob("kclab-*") if pattern.fullmatch(path.name))


def remove(netns):
    """Remove a network namespace and all that is in it."""
    run(["ip", "netns", "delete", netns], check=False)
    deadline = time.monotonic() + 5
    while (NETNS / netns).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
        run(["ip", "netns", "delete", netns], check=False)
