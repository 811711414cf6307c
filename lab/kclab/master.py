"""What makes a node the salt-master or a minion: configuration, keys and pillar."""

import concurrent.futures
import shutil

from .shell import LabError, run

NAME = "salt-master"
ADDRESS = "10.8.0.10"
RELEASE = "1.37.2"
ETCD_RELEASE = "3.7.3"
MIRROR = f"http://{ADDRESS}:8080"
PYTHON = "/opt/salt/bin/python"
FORMULA = "/srv/formulas/kubernetes_controller"
CHECKOUT = "/srv/checkout"
PKI = "/srv/kubernetes_controller/pki"
KUBECONFIG = "/root/.kube/config"
# What Salt looks for in a formula; a file root as wide as the checkout would make it walk .git and the lab too.
FORMULA_PARTS = ("kubernetes_controller", "_modules", "_states", "_runners", "_utils", "_grains")

MASTER_CONFIG = f"""\
interface: {ADDRESS}
user: root
worker_threads: 5
# All nodes share this machine: a minion may be too busy to say within 10 s that its job still runs.
gather_job_timeout: 30
log_level_logfile: info
file_roots:
  base:
    - /srv/salt
    - {FORMULA}
runner_dirs:
  - {FORMULA}/_runners
# The formula is being worked on: what is edited counts at once.
fileserver_list_cache_time: 0
pillar_roots:
  base:
    - /srv/pillar
ext_pillar:
  - file_tree:
      root_dir: {PKI}
      follow_dir_links: False
      keep_newline: True
"""
MINION_CONFIG = f"""\
master: {ADDRESS}
id: {{name}}
log_level_logfile: info
# Everything on one machine: minions need not take care that they do not all come at once.
acceptance_wait_time: 1
random_startup_delay: 0
random_reauth_delay: 1
recon_default: 100
recon_max: 1000
recon_randomize: False
# There is no DNS to ask.
enable_fqdns_grains: False
enable_gpu_grains: False
"""
TOP = """\
# Written by the lab.
base:
  "controller-* or salt-master_master":
    - match: compound
    - kubernetes_controller
    - overlay
"""
PILLAR = f"""\
#!yaml
# Written by the lab; `lab pillar FILE` lays another file over it.
kubernetes_controller:
  release: {RELEASE}
  controllers:
{{controllers}}
  interface: tap0
  binaries: {{{{mirror: "{MIRROR}"}}}}
  etcd: {{{{managed: true, release: {ETCD_RELEASE}, mirror: "{MIRROR}/etcd"}}}}
  admin: {{{{kubeconfig: {KUBECONFIG}}}}}
"""
EMPTY_OVERLAY = "#!yaml\n{}\n"
# One process from the first try to the last: starting the salt command each time would cost a second a try.
WAIT_FOR_MINIONS = """
import os, sys, time
import salt.client, salt.config, salt.exceptions
names, deadline = set(sys.argv[2:]), time.monotonic() + float(sys.argv[1])
config = salt.config.client_config("/etc/salt/master")
missing = names
while missing and time.monotonic() < deadline:
    try:
        client = salt.client.LocalClient(mopts=dict(config))
        missing -= set(client.cmd(sorted(missing), "test.ping", tgt_type="list", timeout=1, gather_job_timeout=1))
    except (salt.exceptions.SaltException, OSError):
        time.sleep(0.1)
print(" ".join(sorted(missing)))
os._exit(1 if missing else 0)
"""
CHECK_PILLAR = """
import sys, yaml
try:
    found = yaml.safe_load(sys.stdin.read())
except yaml.YAMLError as exc:
    sys.exit("is not valid YAML: " + " ".join(str(exc).split()))
if not isinstance(found, dict):
    sys.exit("must be a mapping of pillar keys, but is " + type(found).__name__)
"""


def make_keys(image, directory, names):
    """Make the master's and the minions' keys, once per lab, so that nobody waits to be accepted."""
    directory.mkdir(mode=0o700, exist_ok=True)

    def make(name):
        # By the image's openssl: the host needs none.
        made = run(["chroot", image, "openssl", "genrsa", "-traditional", "2048"])
        private = directory / f"{name}.pem"
        private.touch(mode=0o400)
        private.write_text(made.stdout)
        public = run(["chroot", image, "openssl", "rsa", "-pubout"], input=made.stdout).stdout
        (directory / f"{name}.pub").write_text(public)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(make, names))


def prepare_minion(node, keys):
    """Make ``node`` a minion that the master knows already."""
    node.write("/etc/salt/minion", MINION_CONFIG.format(name=node.name))
    _install_key(node, keys / f"{node.name}.pem", "minion/minion.pem")
    _install_key(node, keys / f"{node.name}.pub", "minion/minion.pub")
    _install_key(node, keys / f"{NAME}.pub", "minion/minion_master.pub")
    node.enable("salt-minion.service")


def prepare_master(node, keys, minions):
    """Make ``node`` the master that has accepted ``minions``, with the formula and the mirror."""
    node.write("/etc/salt/master", MASTER_CONFIG)
    _install_key(node, keys / f"{NAME}.pem", "master/master.pem")
    _install_key(node, keys / f"{NAME}.pub", "master/master.pub")
    for minion in minions:
        _install_key(node, keys / f"{minion.name}.pub", f"master/minions/{minion.name}")
    (node.root / CHECKOUT.lstrip("/")).mkdir(exist_ok=True)
    make_pki(node)
    node.enable("salt-master.service")
    node.enable("mirror.service")


def link_formula(node):
    """
    Give the running master the parts of the formula that the checkout has now.

    Links into the one mounted directory, as git may replace a directory that is itself mounted. No dangling ones:
    Salt's file server would list them as files.
    """
    for part in FORMULA_PARTS:
        link = node.root / FORMULA.lstrip("/") / part
        link.unlink(missing_ok=True)
        if any(source.joinpath(part).is_dir() for source, target in node.binds if target == CHECKOUT):
            link.symlink_to(f"{CHECKOUT}/{part}")


def make_pki(node):
    """Make the empty directory from which minions get their certificates."""
    (node.root / PKI.lstrip("/")).mkdir(mode=0o700, parents=True, exist_ok=True)


def write_pillar(node, minions):
    """Write the lab's own pillar, and an empty overlay where there is none."""
    controllers = "\n".join(f"    {minion.name}: {minion.address}" for minion in minions)
    node.write("/srv/pillar/top.sls", TOP)
    node.write("/srv/pillar/kubernetes_controller.sls", PILLAR.format(controllers=controllers))
    if not (node.root / "srv/pillar/overlay.sls").exists():
        node.write("/srv/pillar/overlay.sls", EMPTY_OVERLAY)


def lay_over(node, text, source="the overlay"):
    """Lay the YAML ``text`` over the lab's pillar; None takes it away. Anything but a mapping is refused."""
    if text is not None:
        checked = node.exec([PYTHON, "-c", CHECK_PILLAR], input=text, check=False)
        if checked.returncode:
            raise LabError(f"{source} {checked.stderr.strip().splitlines()[-1]}. The pillar is as it was.")
    # Renamed, so that no minion reads half of it; and plain YAML, so that a brace in it is nobody's Jinja.
    node.write("/srv/pillar/.overlay", EMPTY_OVERLAY if text is None else f"#!yaml\n{text}\n")
    (node.root / "srv/pillar/.overlay").rename(node.root / "srv/pillar/overlay.sls")


def forget_cluster(node, minions):
    """Remove from the master what it knows of the cluster: PKI, cached minion data, overlay, operator's kubeconfig."""
    shutil.rmtree(node.root / PKI.lstrip("/"), ignore_errors=True)
    make_pki(node)
    for minion in minions:
        shutil.rmtree(node.root / "var/cache/salt/master/minions" / minion.name, ignore_errors=True)
        (node.root / f"var/cache/salt/master/pillar/{minion.name}.p").unlink(missing_ok=True)
    (node.root / KUBECONFIG.lstrip("/")).unlink(missing_ok=True)
    node.write("/srv/pillar/overlay.sls", EMPTY_OVERLAY)


def wait_for_minions(node, minions, timeout):
    """Wait until all ``minions`` answer a ping."""
    done = node.exec([PYTHON, "-c", WAIT_FOR_MINIONS, timeout, *(m.name for m in minions)], check=False)
    if done.returncode:
        silent = done.stdout.strip() or done.stderr.strip().splitlines()[-1:]
        raise LabError(
            f"These minions did not answer within {timeout} s: {silent}."
            " See `lab logs NODE salt-minion` and `lab logs salt-master salt-master`."
        )


def _install_key(node, source, target):
    path = node.root / "etc/salt/pki" / target
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.touch(mode=0o400 if source.suffix == ".pem" else 0o644)
    path.write_bytes(source.read_bytes())
