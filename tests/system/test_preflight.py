"""Promises 2 and 3 on a real cluster: what cannot work, or what the others would not accept, is refused untouched."""

import json
import re

import pytest

NODE = "controller-1"
PREFLIGHT = "kubernetes_controller.preflight"
HOME = "/var/lib/kubernetes"


def seen(cluster):
    """What a second API server or a second leader would have changed in the cluster."""
    leases = json.loads(cluster.kubectl("get", "leases", "-n", "kube-system", "-o", "json").stdout)["items"]
    endpoints = json.loads(cluster.kubectl("get", "endpoints", "kubernetes", "-o", "json").stdout)
    return {lease["metadata"]["name"]: lease["spec"]["holderIdentity"] for lease in leases}, endpoints["subsets"]


@pytest.fixture(autouse=True)
def untouched(cluster):
    """Whatever is refused: every process is the one of before, and so is what the cluster knows of them."""
    before = cluster.processes(), seen(cluster)
    yield
    cluster.pillar(None)
    assert (cluster.processes(), seen(cluster)) == before
    for node in cluster.nodes:
        assert not node.exec(["sh", "-c", "ls -d /run/kubernetes-controller-draft*"], check=False).stdout


def refused(cluster, target=NODE):
    """Apply the preflight; return the sentences of the one state that failed."""
    answer = cluster.apply(sls=PREFLIGHT, target=target)[target]
    (failure,) = answer.failures
    assert not answer.changes
    *sentences, last = failure.splitlines()
    assert last == "Nothing was touched."
    return sentences


def test_all_that_the_binaries_do_not_accept_is_told_at_once(cluster):
    cluster.pillar(
        {
            "apiserver": {
                "settings": {
                    "feature-gates": {"WachList": True},
                    "enable-admission-plugins": ["NodeRestriction", "PodSecurtiy"],
                    "audit-log-maxage": "forty",
                }
            },
            "controller_manager": {"settings": {"controllers": ["nope"]}},
            "scheduler": {"config": {"parallelsm": 3}},
            "etcd": {"settings": {"heartbeat-interval": "fast"}},
        }
    )
    said = refused(cluster)
    for part in (
        "apiserver:settings:feature-gates: kube-apiserver 1.37.2 has no feature gate WachList (nearest: WatchList)",
        "enable-admission-plugins: kube-apiserver 1.37.2 has no admission plugin PodSecurtiy (nearest: PodSecurity)",
        'apiserver:settings:audit-log-maxage: kube-apiserver 1.37.2 refuses it: invalid argument "forty"',
        'controller_manager:settings:controllers: kube-controller-manager 1.37.2 refuses it: "nope" is not in the list',
        'scheduler:config: kube-scheduler 1.37.2 refuses it: strict decoding error: unknown field "parallelsm"',
        'etcd:settings:heartbeat-interval: etcd 3.7.3 refuses it: invalid value "fast"',
    ):
        assert len([line for line in said if part in line]) == 1, (part, said)
    assert len(said) == 6, said


def test_a_client_certificate_that_etcd_does_not_take_is_refused(cluster):
    files = {
        "etcd-client.crt": {"pki": ["apiserver-kubelet-client.crt"]},
        "etcd-client.key": {"pki": ["apiserver-kubelet-client.key"]},
    }
    cluster.pillar({"apiserver": {"files": files, "pairs": {"etcd-client.crt": None}}})
    said = [line for line in refused(cluster) if line.startswith("kubernetes_controller:etcd:servers: ")]
    assert len(said) == 1
    assert "0 of 3 answer the declared client certificate of kube-apiserver" in said[0]
    assert "tlsv1 alert unknown ca" in said[0].partition("2379: ")[2]


def test_a_port_that_somebody_holds_is_refused_with_who(cluster):
    node = cluster.nodes[0]
    unit = "somebody-elses-listener"
    server = ["python3", "-m", "http.server", "--bind", node.address, "10300"]
    node.exec(["systemd-run", "--quiet", f"--unit={unit}", *server])
    try:
        cluster.wait_for("the listener", lambda: cluster_listens(node, 10300))
        cluster.pillar({"scheduler": {"port": 10300}})
        (said,) = refused(cluster)
        pid = node.exec(["systemctl", "show", unit, "-p", "MainPID", "--value"]).stdout.strip()
        assert f"port 10300 of {node.address} is held by process {pid} (/usr/bin/python3" in said
    finally:
        node.exec(["systemctl", "stop", unit])


def cluster_listens(node, port):
    return f":{port:04X} " in node.exec(["cat", "/proc/net/tcp"]).stdout


def test_a_minor_too_far_is_refused(cluster):
    """Releases that cannot be fetched never come so far, so the rule is asked by itself."""
    rows = json.dumps({"kube-apiserver": "1.39.0", "kube-scheduler": "1.36.9"})
    live = json.dumps({"kube-apiserver": "1.37.2", "kube-scheduler": "1.37.2"})
    (said,) = cluster.salt("k8s_skew.version_refusals", rows, live, "{}", target=NODE).values()
    assert "go to 1.38 first" in said[0]
    assert "would go back over a minor release" in said[1]


def test_each_controller_publishes_fingerprints_and_one_that_is_alone_with_a_new_key_is_refused(cluster):
    assert set(cluster.salt("k8s_preflight.publish").values()) == {True}
    records = published(cluster)
    assert set(records) == {node.name for node in cluster.nodes}
    assert len({json.dumps(record, sort_keys=True) for record in records.values()}) == 1
    assert {kind: len(found) for kind, found in records[NODE].items()} == {
        "encryption": 2, "service-account": 1, "client-ca": 2, "front-proxy-ca": 1, "etcd-ca": 1, "serving-ca": 1,
        "issuers": 1, "audiences": 1, "pod-cidr": 1, "service-cidr": 1,
    }  # fmt: skip
    first = [
        {
            "resources": ["secrets"],
            "providers": [{"secretbox": {"keys": ["encryption-key9", "encryption-key1"]}}, {"identity": {}}],
        }
    ]
    cluster.pillar({"encryption": first})
    cluster.make_pki()
    (said,) = refused(cluster)
    assert "the first key for secrets (secretbox encryption-key9) is not known to controller-2, controller-3 yet" in said
    assert '"ignore": ["overlap"]' in said
    once = 'pillar={"kubernetes_controller": {"rollout": {"ignore": ["overlap"]}}}'
    assert cluster.apply(once, "test=True", sls=PREFLIGHT, target=NODE)[NODE].ok


def published(cluster):
    node = cluster.nodes[0]
    flags = cluster.salt("k8s_generation.flags", HOME, target=node.name)[node.name]
    names = {"ENDPOINTS": "etcd-servers", "CACERT": "etcd-cafile", "CERT": "etcd-certfile", "KEY": "etcd-keyfile"}
    words = [f"ETCDCTL_{name}={flags[flag]}" for name, flag in names.items()]
    said = node.exec(["env", *words, "/usr/local/bin/etcdctl", "get", "--prefix", "/kubernetes_controller/accepts/"]).stdout
    lines = said.splitlines()
    return {key.rpartition("/")[2]: json.loads(value) for key, value in zip(lines[::2], lines[1::2], strict=True)}


WRONG_CLOCK = "/var/tmp/wrong-clock"
SHIFTED = "import time\n\n_right = time.time\ntime.time = lambda: _right() + {seconds}\n"


@pytest.mark.parametrize(("seconds", "way"), [(60, "ahead of"), (-60, "behind")])
def test_a_node_whose_clock_is_wrong_is_refused(cluster, seconds, way):
    """The nodes have one kernel and so one clock; here it is Python's time, by which the preflight judges, that is another."""
    node, others = cluster.nodes[0], cluster.nodes[1:]
    node.write(f"{WRONG_CLOCK}/sitecustomize.py", SHIFTED.format(seconds=seconds))
    call = ["env", f"PYTHONPATH={WRONG_CLOCK}", "salt-call", "--out=json", "state.apply", PREFLIGHT]
    try:
        cluster.pillar({"scheduler": {"settings": {"v": 3}}})
        told = node.exec(call, check=False)
        cluster.pillar({"scheduler": {"settings": {"v": 3}}, "rollout": {"preflight": {"max_clock_skew_s": 90}}})
        allowed = node.exec(call, check=False)
    finally:
        node.exec(["rm", "-r", WRONG_CLOCK])
    assert told.returncode != 0
    for other in others:
        sentence = (
            rf"the clock of {node.name} is (59|60|61) s {way} that of {other.name} \(at most 5 s, kubernetes_controller:roll"
        )
        assert re.search(sentence, told.stdout), told.stdout
    assert "Nothing was touched." in told.stdout
    assert allowed.returncode == 0, allowed.stdout
