"""No key, token or Secret lies, or goes, where it does not belong: after rollouts that end well, and that do not."""

import hashlib
import json
import uuid

import leaks
import pytest
import yaml
from faults.table import over

PKI = "srv/kubernetes_controller/pki"
KEY = {"pillar": "kubernetes_controller_pki:encryption-key1"}
# A key where a configuration belongs: whoever complains of what he read there must not tell it.
GARBAGE = {
    "apiserver": {"files": {"encryption.yaml": {"encryption": None, "reload": True, **KEY}}},
    "rollout": {"drop_encryption_keys": True, "ignore": ["overlap"], "gate": {"timeout_s": 10}},
}
# One with a tab before the key, and one whose quote is open: parsers quote what stands there.
BROKEN = "resources:\n- resources: [secrets]\n  providers:\n  - secretbox:\n      keys:\n      - name: encryption-key1\n{}{}\n"
KUBECONFIG = {"scheduler": {"files": {"kubeconfig": {"kubeconfig": None, "pillar": "kubernetes_controller_pki:scheduler.key"}}}}


def test_the_search_finds_what_was_planted(cluster):
    """Else that it finds nothing would say nothing."""
    node, master, word = cluster.nodes[0], cluster.lab.master, uuid.uuid4().hex
    node.exec(["sh", "-c", f"echo {word} > /tmp/planted; echo {word} > /var/tmp/planted; logger -t planted {word}"], check=False)
    node.exec(["systemd-cat", "-t", "planted", "echo", word])
    master.exec(["sh", "-c", f"echo x{word}y | base64 -w0 > /var/log/planted"])
    key = (master.root / PKI / "hosts/controller-2/kubernetes_controller_pki/scheduler.key").read_text()
    node.write("/var/lib/kubernetes/generations/planted", key, 0o640)
    node.write("/root/planted", key.splitlines()[2], 0o600)
    watch = leaks.Watch()
    watch.said(f"and here: {word}")
    try:
        hits = leaks.found(cluster, watch, {"planted": word})[0]
    finally:
        node.exec(["rm", "/tmp/planted", "/var/tmp/planted", "/root/planted", "/var/lib/kubernetes/generations/planted"])
        master.exec(["rm", "/var/log/planted"])
    strange = "hosts/controller-2/kubernetes_controller_pki/scheduler.key"
    assert {hit for hit in hits if "/var/log/journal" not in hit} == {
        "controller-1: /tmp/planted has planted",
        "controller-1: /var/tmp/planted has planted",
        "controller-1: the journal has planted",
        "salt-master: /var/log/planted has planted",
        f"controller-1: /root/planted has {strange}",
        f"controller-1: /var/lib/kubernetes/generations/planted has what is not its own: {strange}",
        "the output has planted",
    }


def test_after_the_rollout_no_secret_is_where_it_does_not_belong(cluster, watched_rollout):
    leaks.nowhere(cluster, watched_rollout[1])


@pytest.fixture
def given(cluster):
    """A Secret, and tokens of its namespace, as users make them: {name: what must be nowhere}."""
    namespace, value = f"test-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex + uuid.uuid4().hex
    cluster.kubectl("create", "namespace", namespace)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine", "namespace": namespace}}
    for words, word in ((["create"], value), (["apply", "--server-side", "--force-conflicts"], f"{value}2")):
        cluster.kubectl(*words, "-f", "-", input=json.dumps({**secret, "stringData": {"word": word}}))
    found = {"the value of a Secret": value}
    for node in cluster.nodes:
        _, claims, signature = cluster.token(namespace, "--server", f"https://{node.address}:6443").split(".")
        found |= {f"the claims of a token by {node.name}": claims, f"the signature of a token by {node.name}": signature}
    yield namespace, found
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def test_the_audit_log_tells_of_a_secret_and_a_token_but_not_what_is_in_them(cluster, given):
    namespace, secrets = given
    told = {}
    for node in cluster.nodes:
        listed = node.exec(["find", "/var/log/kubernetes/kube-apiserver", "-type", "f", "-printf", "%p %m %u\n"]).stdout
        for path, mode, user in map(str.split, listed.splitlines()):
            assert (mode, user) == ("600", "kube-apiserver"), path
        assert "/var/log/kubernetes/kube-apiserver/audit.log 600" in listed
        with open(node.root / "var/log/kubernetes/kube-apiserver/audit.log", encoding="utf-8") as log:
            for event in (json.loads(line) for line in log if namespace in line):
                about = event.get("objectRef", {})
                kind = "/".join(filter(None, [about.get("resource"), about.get("subresource")]))
                if event["verb"] in ("create", "patch") and kind in ("secrets", "serviceaccounts/token"):
                    told.setdefault((event["verb"], kind), set()).add(node.name)
                    assert event["level"] == "Metadata"
                    assert not {"requestObject", "responseObject"} & set(event)
                    assert event["user"]["username"] == "kubernetes-admin"
    assert {kind for _, kind in told} == {"secrets", "serviceaccounts/token"}
    assert told["create", "serviceaccounts/token"] == {node.name for node in cluster.nodes}
    text = b"".join((node.root / "var/log/kubernetes/kube-apiserver/audit.log").read_bytes() for node in cluster.nodes)
    assert not leaks.given_away({part: {name} for name in secrets for part in [secrets[name]]}, text)


def test_rollouts_that_fail_tell_no_secret(cluster, given):
    before = cluster.processes()
    with leaks.watched(cluster) as watch:
        try:
            # In the preflight and the rehearsal …
            cluster.pillar(over(GARBAGE, KUBECONFIG))
            watch.said(json.dumps(cluster.salt("state.apply", "kubernetes_controller", "test=True", target="controller-1")))
            refused = watch.said(cluster.lab.salt_run("k8s_rollout.deploy", check=False))
            assert refused.returncode != 0
            key = (cluster.lab.master.root / PKI / "shared/encryption-key1").read_text().strip()
            for begin in ("\tsecret: ", "        secret: '"):
                declared = {"apiserver": {"files": {"encryption.yaml": {"encryption": None, "pillar": "mine:enc"}}}}
                mine = {"enc": BROKEN.format(begin, key)}
                cluster.lab.pillar(yaml.safe_dump({"kubernetes_controller": declared, "mine": mine}))
                watch.said(json.dumps(cluster.salt("state.apply", "kubernetes_controller", "test=True", target="controller-1")))
                refused = watch.said(cluster.lab.salt_run("k8s_rollout.deploy", check=False))
                assert "encryption.yaml is not an EncryptionConfiguration" in refused.stdout
            assert cluster.processes() == before
            # … and in earnest: the API server itself reads it, complains, and is given the good one again.
            cluster.pillar(over(GARBAGE, {"rollout": {"rehearsal": {"enabled": False}}}))
            failed = watch.said(cluster.orchestrate("-l", "debug"))
            assert failed.returncode != 0
            assert "did not pass its gate" in failed.stdout
        finally:
            cluster.pillar(None)
            cluster.salt("k8s_component.retry", "kube-apiserver")
            back = cluster.apply()
    assert all(answer.ok for answer in back.values()), back
    leaks.nowhere(cluster, watch, given[1])


# -- what a minion gets ------------------------------------------------------------------------------------------------

ASK = """
import hashlib, json, sys
import salt.channel.client, salt.config, salt.loader, salt.minion
opts = salt.config.minion_config("/etc/salt/minion")
opts.update(salt.minion.resolve_dns(opts))
grains = salt.loader.grains(opts)
class Load(dict):
    def __setitem__(self, key, value):
        if key != "id":  # the channel would put its own there
            super().__setitem__(key, value)
def pillar(minion):
    load = {"id": minion, "grains": {**grains, "id": minion}, "saltenv": "base", "pillarenv": None, "pillar_override": {},
            "extra_minion_data": {}, "ver": "2", "cmd": "_pillar"}
    with salt.channel.client.ReqChannel.factory(opts) as channel:
        found = channel.crypted_transfer_decode_dictentry(Load(load), dictkey="pillar", timeout=10, tries=1)
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in found["kubernetes_controller_pki"].items()}
mine = pillar(opts["id"])
try:
    other = pillar(sys.argv[1])
except Exception as exc:
    other = type(exc).__name__
print(json.dumps([mine, other]))
"""


def shares(cluster):
    """Return {minion: {name: SHA-256}} of what the master has for each."""
    found = {}
    for path in (cluster.lab.master.root / PKI / "hosts").glob("*/kubernetes_controller_pki/*"):
        found.setdefault(path.parts[-3], {})[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_a_minion_gets_its_own_files_and_no_others(cluster):
    share = shares(cluster)
    for node, other in zip(cluster.nodes, [*cluster.nodes[1:], cluster.nodes[0]], strict=True):
        said = node.exec(["/opt/salt/bin/python", "-c", ASK, other.name], timeout=60).stdout
        mine, others = json.loads(said.splitlines()[-1])
        assert mine == share[node.name]
        assert others == "AuthenticationError"  # whoever asks in another's name is refused
        private = {digest for name, digest in share[other.name].items() if name.endswith(".key")}
        # The service-account key, the CSR signer's and the encryption keys are the cluster's.
        assert {name for name, digest in mine.items() if digest in private} == {"service-account.key", "signer-ca.key"}


CALL = """
import json, salt.client, sys
call, (other, *paths) = salt.client.Caller("/etc/salt/minion").cmd, sys.argv[1:]
print(json.dumps({
    "listed": call("cp.list_master"), "files": [call("cp.get_file", path, "/var/tmp/stolen") for path in paths],
    "published": call("publish.publish", other, "test.ping"), "run": call("publish.runner", "manage.up"),
}))
"""


def test_a_minion_finds_no_key_by_the_masters_file_server_and_publishes_nothing(cluster):
    node, other = cluster.nodes[:2]
    ways = ("", "../kubernetes_controller/pki/", "../../kubernetes_controller/pki/", "/srv/kubernetes_controller/pki/")
    paths = [f"salt://{way}hosts/{other.name}/kubernetes_controller_pki/apiserver.key" for way in ways]
    done = node.exec(
        ["/opt/salt/bin/python", "-c", CALL, other.name, "salt://kubernetes_controller/init.sls", *paths], timeout=90
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert "kubernetes_controller/init.sls" in said["listed"]
    assert not [path for path in said["listed"] if "pki/" in path or path.endswith((".key", ".crt"))]
    assert said["files"][0] == "/var/tmp/stolen"  # what is public can be had
    assert not any(said["files"][1:])
    assert not said["published"] and not said["run"]
    node.exec(["rm", "/var/tmp/stolen"])
