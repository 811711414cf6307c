"""Promise 14 on a real cluster: what clients hold on to is kept, or its loss is refused untouched."""

import json

ISSUER = "https://kubernetes.default.svc.cluster.local"
PREFLIGHT, API = "kubernetes_controller.preflight", "kubernetes_controller.apiserver"
HOME = "/var/lib/kubernetes"
TWICE = [f"--service-account-issuer={ISSUER}", "--service-account-issuer=https://new.example.com"]


def issuers(*listed):
    return {"apiserver": {"settings": {"service-account-issuer": list(listed)}}}


def statuses(cluster, token):
    """What each API server answers to whoever has this token: 403 that it knows him, 401 that it does not."""
    asked = ["-H", f"Authorization: Bearer {token}"]
    return [cluster.get(node, "/api/v1/namespaces", *asked)[0] for node in cluster.nodes]


def once(*words):
    return f"pillar={json.dumps({'kubernetes_controller': {'rollout': {'ignore': list(words)}}})}"


def test_what_would_cut_clients_off_is_refused_on_every_node(cluster):
    token, before = cluster.token(), cluster.processes()
    cluster.pillar({"cluster": {"domain": "k8s.local", "service_cidr": "10.96.0.0/16", "pod_cidr": "10.201.0.0/16"}})
    try:
        for test in ([], ["test=True"]):
            for answer in cluster.apply(*test, sls=PREFLIGHT).values():
                (failure,) = answer.failures
                assert not answer.changes
                for said in (
                    f"kubernetes_controller:cluster:domain, by kubernetes_controller:apiserver:settings:service-account-issuer: "
                    f"issuer {ISSUER} is live and not declared any more",
                    "kubernetes_controller:cluster:service_cidr: 10.96.0.0/16 is declared, 10.32.0.0/16 is live.",
                    "kubernetes_controller:cluster:pod_cidr: 10.201.0.0/16 is declared, 10.200.0.0/16 is live",
                    "the issuer of service account tokens (https://kubernetes.default.svc.k8s.local) is not known to controller-",
                ):
                    assert failure.count(said) == 1, failure
                assert failure.endswith("Nothing was touched.")
    finally:
        cluster.pillar(None)
    assert cluster.processes() == before
    assert statuses(cluster, token) == [403] * 3


def test_a_second_issuer_stands_behind_the_first_and_is_dropped_only_by_order(cluster):
    """On one node: it takes tokens of both, the others take its own, and may not get tokens that they do not know."""
    token, (node, *_) = cluster.token(), cluster.nodes
    start = node.exec(["cat", f"{HOME}/live/start"]).stdout
    try:
        cluster.pillar(issuers(ISSUER, "https://new.example.com"))
        answer = cluster.apply(sls=API, target=node.name)[node.name]
        assert answer.ok, answer.failures
        flags = answer.changes["kube-apiserver runs as declared"]["flags"]
        assert flags == {"service-account-issuer": {"old": ISSUER, "new": [ISSUER, "https://new.example.com"]}}
        lines = [line.strip(" \\") for line in node.exec(["cat", f"{HOME}/live/start"]).stdout.splitlines()]
        assert [line for line in lines if "service-account-issuer" in line] == TWICE
        assert statuses(cluster, token) == [403] * 3
        words = ["--server", f"https://{node.address}:6443"]
        assert statuses(cluster, cluster.token("default", *words)) == [403] * 3
        assert json.loads(cluster.kubectl(*words, "get", "--raw", "/.well-known/openid-configuration").stdout)["issuer"] == ISSUER

        cluster.pillar(issuers("https://new.example.com", ISSUER))
        (failure,) = cluster.apply(sls=PREFLIGHT, target=node.name)[node.name].failures
        assert "(https://new.example.com) is not known to controller-2, controller-3 yet" in failure

        cluster.pillar(None)
        (failure,) = cluster.apply(sls=PREFLIGHT, target=node.name)[node.name].failures
        assert "issuer https://new.example.com is live and not declared any more" in failure
        assert once("issuers").removeprefix("pillar=") in failure
    finally:
        cluster.pillar(None)
        answer = cluster.apply(once("issuers"), sls=API, target=node.name)[node.name]
    assert answer.ok, answer.failures
    assert node.exec(["cat", f"{HOME}/live/start"]).stdout == start
    assert statuses(cluster, token) == [403] * 3
