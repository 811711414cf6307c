"""The README's way from a salt-master with three accepted minions to a control plane, word for word."""

import shutil
import subprocess

import pytest
from kclab import master as salt_master

MIRROR = "http://10.8.0.10:8080"
CLONE = "/root/clone"
# All that differs from what the README says, because the lab has no internet. Each occurs exactly once.
GIT, COPY = "git clone REPOSITORY ", f"mkdir -p /srv/formulas && cp -rT {CLONE} "
MANAGED = "    managed: true\n"
SUBSTITUTED = {GIT: COPY, MANAGED: f"{MANAGED}    mirror: {MIRROR}/etcd\n  binaries:\n    mirror: {MIRROR}\n"}
# What Salt's packages leave behind, which run the master as a user of its own.
FRESH_CONFIG = "user: salt\n"
OWNED = ["/etc/salt/pki/master", "/var/cache/salt/master", "/var/log/salt", "/var/run/salt"]
KUBECONFIG = "/srv/kubernetes_controller/pki/admin/kubeconfig"


@pytest.fixture
def fresh_master(bare):
    """The lab's master as a fresh installation: nothing configured, /srv empty, and the minions accepted."""
    master, kept = bare.lab.master, bare.lab.master.root / "root/kept"
    srv = [path for path in (master.root / "srv").iterdir() if path.name not in ("checkout", "mirror")]
    away = [master.root / "etc/salt/master", *srv]
    master.exec(["systemctl", "stop", "salt-master"])
    kept.mkdir()
    try:
        for path in away:
            shutil.move(path, kept)
        master.exec(["useradd", "--system", "--home-dir=/opt/salt", "salt"])
        master.write("/etc/salt/master", FRESH_CONFIG)
        clone(bare.lab, master.root / CLONE.lstrip("/"))
        start_anew(master, "salt")
        wait_for_minions(bare.lab)
        yield bare
    finally:
        master.exec(["systemctl", "stop", "salt-master"])
        new = [path for path in (master.root / "srv").iterdir() if path.name not in ("checkout", "mirror")]
        for path in [*new, master.root / "etc/salt/master.d", master.root / CLONE.lstrip("/")]:
            shutil.rmtree(path, ignore_errors=True)
        for path in away:
            shutil.move(kept / path.name, path)
        kept.rmdir()
        start_anew(master, "root")
        master.exec(["userdel", "salt"])


def start_anew(master, user):
    """Start the master without what it remembers of another life, and with files that ``user`` may write."""
    shutil.rmtree(master.root / "var/cache/salt/master", ignore_errors=True)
    master.exec(["mkdir", "-p", *OWNED])
    master.exec(["chown", "-R", f"{user}:", *OWNED])
    master.exec(["systemctl", "start", "salt-master"])


def clone(lab, target):
    """Copy what a clone of this checkout has, and nothing that git ignores."""
    source = lab.master.binds[0][0]
    listed = subprocess.check_output(["git", "ls-files", "-coz", "--exclude-standard"], cwd=source, text=True)
    for name in filter(None, listed.split("\0")):
        if (source / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target / name)


def wait_for_minions(lab):
    """Give the minions the time to come back to a restarted master that a reader's typing gives them."""
    salt_master.wait_for_minions(lab.master, lab.nodes, 120)


def test_what_the_readme_says_leads_from_accepted_minions_to_a_healthy_control_plane(fresh_master, code_blocks):
    lab, master, left = fresh_master.lab, fresh_master.lab.master, set(SUBSTITUTED)
    steps = [(words, text) for words, text in code_blocks("README.md") if "on-master" in words or "file=" in words]
    for words, written in steps:
        text = written
        for said, done in SUBSTITUTED.items():
            if said in written:
                text = text.replace(said, done)
                left.remove(said)
        if "file=" in words:
            master.write(words.partition("file=")[2], text)
        else:
            run = master.exec(["bash", "-euo", "pipefail", "-c", text], check=False, timeout=900)
            assert run.returncode == 0, f"{text}\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
            if "restart salt-master" in text:
                wait_for_minions(lab)
    assert not left
    status, table = fresh_master.health()
    assert status == 0, table
    assert len(table) == 3
    kubeconfig = (master.root / KUBECONFIG.lstrip("/")).read_text()
    ready = lab.nodes[0].exec(["kubectl", "--kubeconfig=/dev/stdin", "get", "--raw=/readyz"], input=kubeconfig)
    assert ready.stdout == "ok"
