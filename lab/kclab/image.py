"""The root filesystem that all nodes share: Debian with systemd and Salt, built once and never written to again."""

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import time
from pathlib import Path

from .binaries import default_cache
from .shell import LabError, run, say

SUITE = "bookworm"
SALT = "3008.3"
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "iproute2", "iputils-ping", "netbase", "nftables", "ca-certificates", "python3",
    "python3-venv", "procps", "passwd", "curl", "openssl", "less",
)  # fmt: skip
# timelib comes as source only. The compiler lives in a throw-away layer, so the nodes stay as bare as an operator's.
BUILD_PACKAGES = ("gcc", "libc6-dev", "python3-dev")
SALT_COMMANDS = ("salt", "salt-call", "salt-cp", "salt-key", "salt-master", "salt-minion", "salt-run")
# Nothing in a node of the lab needs these, and each costs time at boot.
MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
    "e2scrub_reap.service", "console-getty.service", "getty.target", "systemd-logind.service", "nftables.service",
    "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "systemd-tmpfiles-clean.timer",
    "systemd-firstboot.service", "ldconfig.service", "systemd-hwdb-update.service", "systemd-pstore.service",
    "remote-fs.target", "systemd-journal-catalog-update.service", "systemd-update-done.service",
    "systemd-networkd-wait-online.service", "systemd-ask-password-wall.path", "systemd-ask-password-console.path",
)  # fmt: skip
UNIT = """\
[Unit]
Description=Salt {what}
After=network.target

[Service]
ExecStart=/opt/salt/bin/salt-{what} --log-file-level=info
KillMode={kill}
Restart=always
RestartSec=1
LimitNOFILE=100000
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"""
FILES = {
    "etc/systemd/system/salt-minion.service": UNIT.format(what="minion", kill="process"),
    "etc/systemd/system/salt-master.service": UNIT.format(what="master", kill="mixed"),
    "etc/systemd/system/mirror.service": """\
[Unit]
Description=Mirror of the Kubernetes and etcd binaries

[Service]
ExecStart=/usr/bin/python3 -m http.server --directory /srv/mirror 8080
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
""",
    # Persistent, so that a node that is dead can still be asked; and nothing is dropped from a crash loop.
    "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\nAudit=no\n",
    "etc/profile.d/lab.sh": "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8\n",
}
# Runs in a mount namespace of its own, so that a kill at any moment leaves files but never a mount.
INSTALL_SALT = """\
mount -t overlay overlay -o lowerdir="$1/root,upperdir=$1/upper,workdir=$1/work" "$1/merged"
mount -t proc proc "$1/merged/proc"
mount --rbind /dev "$1/merged/dev"
exec chroot "$1/merged" /bin/sh -ec '
  apt-get -q update
  DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends {packages}
  python3 -m venv /opt/salt
  /opt/salt/bin/pip install --no-cache-dir --no-compile salt=={salt}
  /opt/salt/bin/python -m compileall -q -j 0 /opt/salt/lib || true
'
"""
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
BUNDLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
RECIPE = (SUITE, SALT, PACKAGES, BUILD_PACKAGES, SALT_COMMANDS, MASKED, FILES, INSTALL_SALT)


def ensure(cache=None):
    """Return the directory of the image, building it where this recipe has not been built yet."""
    cache = Path(cache or default_cache()).absolute()
    image = cache / f"image-{hashlib.sha256(repr(RECIPE).encode()).hexdigest()[:12]}"
    if image.exists():
        return image
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / "image.lock", "w", encoding="utf-8") as lock:
            _wait_for(lock)
            if not image.exists():
                _build(image)
    except OSError as exc:
        raise LabError(
            f"The image of the nodes cannot be built in {cache}: {exc}. Make room or give another directory in"
            " KUBERNETES_CONTROLLER_LAB_CACHE."
        ) from exc
    return image


def _wait_for(lock):
    """Take the lock, telling once that somebody else builds. It dies with its holder."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    say("another lab is building the image of the nodes; waiting for it")
    fcntl.flock(lock, fcntl.LOCK_EX)


def _build(image):
    """Build beside the final name and rename: an image is there as a whole or not at all."""
    started = time.monotonic()
    say(f"building the image of the nodes, once: Debian {SUITE} with Salt {SALT}, about 4 minutes")
    work = image.with_name("image.building")
    # Left by a build that was killed: we hold the lock.
    shutil.rmtree(work, ignore_errors=True)
    for name in ("upper", "work", "merged"):
        (work / name).mkdir(parents=True)
    root = work / "root"
    log = work.with_name("image.log")
    with open(log, "w", encoding="utf-8") as out:
        _logged(out, log, [
            "mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}",
            "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
            "--dpkgopt=path-exclude=/usr/share/doc/*", SUITE, root,
        ])  # fmt: skip
        say("the image has its packages; installing Salt")
        environment = _prepare_network(work / "upper")
        script = INSTALL_SALT.format(packages=" ".join(BUILD_PACKAGES), salt=shlex.quote(SALT))
        _logged(out, log, [
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private",
            "sh", "-ec", script, "sh", work,
        ], env=environment)  # fmt: skip
        # Only Salt is taken from the throw-away layer; --reflink is quiet where the filesystem cannot.
        _logged(out, log, ["cp", "-a", "--reflink=auto", work / "upper/opt/salt", root / "opt/salt"])
    _finish(root)
    root.rename(image)
    shutil.rmtree(work, ignore_errors=True)
    say(f"the image of the nodes is built, in {time.monotonic() - started:.0f} s")


def _logged(out, log, argv, **kw):
    """Run a long step with its output in the log, and name the log where it fails."""
    if run(argv, check=False, stdout=out, stderr=out, **kw).returncode:
        tail = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()][-3:]
        raise LabError(f"The image of the nodes cannot be built: {argv[0]} failed: {' | '.join(tail)} (all of it: {log})")


def _prepare_network(upper):
    """
    Give the throw-away layer what the host uses to reach its package registries, and return the environment.

    That is the resolver, pip's configuration, proxies and certificate bundles. None of it reaches a node.
    """
    kept = {
        name: value for name, value in os.environ.items()
        if name.startswith("PIP_") or name.lower() in PROXIES or name in BUNDLES
    }  # fmt: skip
    home = Path("~").expanduser()
    copies = {
        Path("/etc/resolv.conf"): "etc/resolv.conf",
        Path("/etc/pip.conf"): "etc/pip.conf",
        home / ".config/pip/pip.conf": "root/.config/pip/pip.conf",
        Path("/etc/ssl/certs/ca-certificates.crt"): "etc/ssl/certs/ca-certificates.crt",
    }
    copies |= {Path(value): value.lstrip("/") for value in kept.values() if value.startswith("/")}
    for source, target in copies.items():
        if source.is_file():
            (upper / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, upper / target)
    return kept | {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}


def _finish(root):
    """Write what makes a node of the lab: Salt's commands, units, and nothing that waits at boot."""
    for name in SALT_COMMANDS:
        (root / "usr/local/bin" / name).symlink_to(f"/opt/salt/bin/{name}")
    for path, text in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    for name in MASKED:
        unit = root / "etc/systemd/system" / name
        unit.unlink(missing_ok=True)
        unit.symlink_to("/dev/null")
    for path in ("etc/salt", "srv/salt", "srv/pillar", "srv/mirror", "srv/formulas/kubernetes_controller", "var/log/journal"):
        (root / path).mkdir(parents=True, exist_ok=True)
    # Each node gets a hostname, addresses and an identity of its own; nothing resolves beyond /etc/hosts.
    for path in ("etc/hostname", "etc/resolv.conf", "etc/machine-id"):
        (root / path).unlink(missing_ok=True)
        (root / path).write_text("", encoding="utf-8")
