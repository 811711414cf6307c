"""What the lab needs of the machine it runs on."""

import os
import platform
import shutil
from pathlib import Path

from .shell import LabError, run, say

TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
SUPPORTED = {"debian": 12, "ubuntu": 22}


def check():
    """Refuse with one sentence what cannot work, and install what is missing."""
    if platform.system() != "Linux":
        raise LabError(f"The lab runs on Linux, and this is {platform.system()}.")
    if os.geteuid():
        raise LabError("The lab boots containers and therefore needs root; run it with sudo.")
    release = platform.freedesktop_os_release()
    oldest = SUPPORTED.get(release.get("ID"))
    if not oldest or int(release.get("VERSION_ID", "0").partition(".")[0] or 0) < oldest:
        raise LabError(
            f"The lab runs on Debian 12 or Ubuntu 22.04 and newer, and this is {release.get('PRETTY_NAME', 'unknown')}."
        )
    install(sorted({package for tool, package in TOOLS.items() if not _there(tool)}))
    overlayfs = "overlay" in Path("/proc/filesystems").read_text().split()
    if not overlayfs and run(["modprobe", "overlay"], check=False).returncode:
        raise LabError("The kernel of this machine has no overlayfs, which the nodes' root filesystems need.")


def _there(tool):
    return Path(tool).exists() if tool.startswith("/") else shutil.which(tool)


def install(packages):
    """Install Debian packages, with a line that says so."""
    if not packages:
        return
    say(f"installing {' '.join(packages)} with apt-get: the lab needs them on this machine")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "-q", "update"], check=False, env=environment)
    run(["apt-get", "-qy", "install", "--no-install-recommends", *packages], env=environment)
