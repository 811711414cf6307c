"""The control plane behaves as any other: API, identities, signing, encryption at rest, leader election."""

import base64
import json
import select
import subprocess
import uuid

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LIVE = "var/lib/kubernetes/live"
ETCD = "/var/lib/kubernetes-etcd/live"
REVIEW = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}


@pytest.fixture
def namespace(cluster):
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    cluster.wait_for("the default service account", lambda: not exit_status(cluster, "-n", name, "get", "sa", "default"))
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def exit_status(cluster, *args):
    return cluster.kubectl(*args, check=False).returncode


def get(cluster, *args):
    return json.loads(cluster.kubectl("get", *args, "-o", "json").stdout)


def whoami(cluster, node, *curl):
    """Return status and user name that an API server gives to a request."""
    words = ["-H", "Content-Type: application/json", "-d", json.dumps(REVIEW), *curl]
    status, body = cluster.get(node, "/apis/authentication.k8s.io/v1/selfsubjectreviews", *words)
    return status, json.loads(body)["status"]["userInfo"]["username"] if status == 201 else body


def pair(node, name):
    return ["--cert", str(node.root / LIVE / f"{name}.crt"), "--key", str(node.root / LIVE / f"{name}.key")]


# -- the API ----------------------------------------------------------------------------------------------------------


def test_what_is_written_through_one_controller_is_watched_through_another(cluster, namespace):
    first, *_, last = (f"https://{node.address}:6443" for node in cluster.nodes)
    watch = cluster.lab.kubectl_command(
        "--server", last, "-n", namespace, "get", "configmap", "--watch-only", "-o", "name", "--request-timeout=30s"
    )
    with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True) as watching:
        try:
            # The watch may begin after any of them, and then shows the next.
            cluster.wait_for("the watch", lambda: watched(cluster, first, namespace, watching), timeout_s=25)
        finally:
            watching.kill()


def watched(cluster, server, namespace, watching):
    cluster.kubectl("--server", server, "-n", namespace, "create", "configmap", f"seen-{uuid.uuid4().hex[:6]}")
    return select.select([watching.stdout], [], [], 1)[0] and "configmap/seen-" in watching.stdout.readline()


def looked_at(cluster, namespace, count):
    pods = [pod for pod in get(cluster, "-n", namespace, "pods")["items"] if pod["status"].get("conditions")]
    return pods if len(pods) == count else None


def test_a_deployment_leads_to_a_replica_set_and_pods_that_wait_for_a_node(cluster, namespace):
    cluster.kubectl("-n", namespace, "create", "deployment", "web", "--image=web", "--replicas=2")
    pods = cluster.wait_for("two pods that the scheduler looked at", lambda: looked_at(cluster, namespace, 2))
    (replica_set,) = get(cluster, "-n", namespace, "replicasets")["items"]
    assert replica_set["metadata"]["ownerReferences"][0]["name"] == "web"
    for pod in pods:
        assert pod["metadata"]["ownerReferences"][0]["name"] == replica_set["metadata"]["name"]
        assert pod["status"]["phase"] == "Pending"
        assert pod["status"]["conditions"][0]["reason"] == "Unschedulable"


def test_a_user_may_do_what_a_role_says_and_nothing_else(cluster, namespace):
    as_jane = ("-n", namespace, "--as", "jane")
    refused = cluster.kubectl(*as_jane, "get", "pods", check=False)
    assert refused.returncode == 1
    assert 'User "jane" cannot list resource "pods"' in refused.stderr
    cluster.kubectl("-n", namespace, "create", "role", "reader", "--verb=list", "--resource=pods")
    cluster.kubectl("-n", namespace, "create", "rolebinding", "reader", "--role=reader", "--user=jane")
    cluster.wait_for("the role", lambda: not exit_status(cluster, *as_jane, "auth", "can-i", "list", "pods"), timeout_s=10)
    assert exit_status(cluster, *as_jane, "auth", "can-i", "delete", "pods") == 1
    assert exit_status(cluster, "--as", "jane", "auth", "can-i", "list", "pods") == 1


# -- identities -------------------------------------------------------------------------------------------------------


def test_a_token_made_by_one_controller_is_accepted_by_all(cluster, namespace):
    for maker in cluster.nodes:
        token = cluster.token(namespace, "--server", f"https://{maker.address}:6443")
        for node in cluster.nodes:
            said = whoami(cluster, node, "-H", f"Authorization: Bearer {token}")
            assert said == (201, f"system:serviceaccount:{namespace}:default"), (maker, node)


def test_a_token_with_another_signature_is_refused(cluster, namespace):
    token = cluster.token(namespace)
    head, body, signature = token.split(".")
    forged = f"{head}.{body}.{signature[::-1]}"
    assert whoami(cluster, cluster.nodes[0], "-H", f"Authorization: Bearer {forged}")[0] == 401


def test_the_aggregation_layers_certificate_speaks_for_others_and_no_other_does(cluster):
    header = ["-H", "X-Remote-User: jane"]
    for node in cluster.nodes:
        assert whoami(cluster, node, *header, *pair(node, "front-proxy-client")) == (201, "jane")
        assert whoami(cluster, node, *header, *pair(node, "kubelet-client")) == (201, "kube-apiserver-kubelet-client")
        assert whoami(cluster, node, *header, *pair(node, "etcd-client"))[0] == 401
        assert whoami(cluster, node, *header)[0] == 401


@pytest.fixture
def signed(cluster, tmp_path):
    """A certificate that the cluster signed for the user jane of the group readers: paths of certificate and key."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "readers"), x509.NameAttribute(NameOID.COMMON_NAME, "jane")]
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names)).sign(key, hashes.SHA256())
    name = f"jane-{uuid.uuid4().hex[:8]}"
    document = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {
            "signerName": "kubernetes.io/kube-apiserver-client",
            "usages": ["client auth"],
            "request": base64.b64encode(request.public_bytes(serialization.Encoding.PEM)).decode(),
        },
    }
    cluster.kubectl("create", "-f", "-", input=yaml.safe_dump(document))
    cluster.kubectl("certificate", "approve", name)
    issued = cluster.wait_for("the certificate", lambda: get(cluster, "csr", name)["status"].get("certificate"))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "jane.key").write_bytes(key.private_bytes(*form))
    (tmp_path / "jane.crt").write_bytes(base64.b64decode(issued))
    yield tmp_path / "jane.crt", tmp_path / "jane.key"
    cluster.kubectl("delete", "csr", name)


def test_a_certificate_that_the_cluster_signed_is_the_signers_and_is_accepted_everywhere(cluster, signed):
    path, key = signed
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    authorities = cluster.lab.master.root / "srv/kubernetes_controller/pki/authorities"
    signer = x509.load_pem_x509_certificate((authorities / "signer-ca.crt").read_bytes())
    certificate.verify_directly_issued_by(signer)
    for node in cluster.nodes:
        assert whoami(cluster, node, "--cert", str(path), "--key", str(key)) == (201, "jane")


# -- at rest ----------------------------------------------------------------------------------------------------------


def test_a_secret_is_unreadable_in_etcd(cluster, namespace):
    plain = uuid.uuid4().hex
    cluster.kubectl("-n", namespace, "create", "secret", "generic", "mine", f"--from-literal=password={plain}")
    for node in cluster.nodes:
        tls = ["--cacert", f"{ETCD}/etcd-ca.crt", "--cert", f"{ETCD}/server.crt", "--key", f"{ETCD}/server.key"]
        ask = ["etcdctl", "--endpoints", f"https://{node.address}:2379", *tls, "get", "-w", "json"]
        (entry,) = json.loads(node.exec([*ask, f"/registry/secrets/{namespace}/mine"]).stdout)["kvs"]
        value = base64.b64decode(entry["value"])
        assert value.startswith(b"k8s:enc:secretbox:v1:encryption-key1:")
        assert plain.encode() not in value
        assert base64.b64encode(plain.encode()) not in value
        server = f"https://{node.address}:6443"
        secret = json.loads(cluster.kubectl("--server", server, "-n", namespace, "get", "secret", "mine", "-o", "json").stdout)
        assert base64.b64decode(secret["data"]["password"]).decode() == plain


# -- the objects of the installer -------------------------------------------------------------------------------------

OBJECTS = {
    "clusterrole": "ClusterRole system:kube-apiserver-to-kubelet is in the cluster",
    "clusterrolebinding": "ClusterRoleBinding system:kube-apiserver is in the cluster",
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_of_the_formula_that_was_deleted_comes_back(cluster, kind):
    sentence = OBJECTS[kind]
    name = sentence.split()[1]
    before = get(cluster, kind, name)
    cluster.kubectl("delete", kind, name)
    target = cluster.nodes[-1].name
    answer = cluster.apply(sls="kubernetes_controller.objects", target=target)[target]
    assert answer.ok, answer.failures
    assert answer.changes == {sentence: {"object": {"old": None, "new": f"{sentence.split()[0]} {name}"}}}
    after = get(cluster, kind, name)
    assert {key: after[key] for key in after if key != "metadata"} == {key: before[key] for key in before if key != "metadata"}
    again = cluster.apply(sls="kubernetes_controller.objects", target=target)[target]
    assert again.ok and not again.changes


def test_an_object_of_the_formula_that_was_edited_is_put_right(cluster):
    name, sentence = "system:kube-apiserver-to-kubelet", OBJECTS["clusterrole"]
    rules = get(cluster, "clusterrole", name)["rules"]
    cluster.kubectl("patch", "clusterrole", name, "--type=json", "-p", '[{"op": "remove", "path": "/rules/0"}]')
    target = cluster.nodes[0].name
    answer = cluster.apply(sls="kubernetes_controller.objects", target=target)[target]
    assert answer.ok, answer.failures
    assert list(answer.changes) == [sentence]
    assert get(cluster, "clusterrole", name)["rules"] == rules


# -- leader election --------------------------------------------------------------------------------------------------


def leader(cluster, name):
    lease = get(cluster, "-n", "kube-system", "lease", name)
    return lease["spec"]["holderIdentity"].partition("_")[0]


def test_the_leader_moves_when_it_stops_and_the_formula_starts_it_again(cluster):
    names = ["kube-controller-manager", "kube-scheduler"]
    stopped = {name: leader(cluster, name) for name in names}
    for name, where in stopped.items():
        cluster.lab.node(where).exec(["systemctl", "stop", name])
    health = cluster.lab.salt("controller-*", "k8s_health.status", check=False)
    assert health.returncode != 0
    assert health.stdout.count("no process (unit is inactive)") == 2
    for name, where in stopped.items():
        cluster.wait_for(f"another leader of {name}", lambda name=name, where=where: leader(cluster, name) not in ("", where))
    pending = cluster.apply("test=True")
    answers = cluster.apply()
    for node in cluster.nodes:
        answer = answers[node.name]
        assert answer.ok, answer.failures
        expected = {
            f"{name} runs as declared": {"process": "start (unit was inactive)"} for name in names if stopped[name] == node.name
        }
        assert pending[node.name].changes == expected
        assert answer.changes == expected
