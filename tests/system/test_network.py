"""What an attacker on the network finds: which ports answer, in which TLS, and to whom."""

import json
import subprocess
import sys

import pytest

LIVE, ETCD = "var/lib/kubernetes/live", "var/lib/kubernetes-etcd/live"
PORTS = {2379, 2380, 6443, 10257, 10259}
SCAN = """
import json, socket, sys, time
address, found, deadline = sys.argv[1], [], time.monotonic() + 120
for port in range(1, 65536):
    with socket.socket() as one:
        one.settimeout(1)
        if not one.connect_ex((address, port)):
            found.append(port)
    if time.monotonic() > deadline:
        sys.exit(f"too slow: at port {port}")
print(json.dumps(found))
"""
TLS = """
import json, socket, ssl, sys, warnings
warnings.simplefilter("ignore")
address, port, certificate, key = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
def shake(version, ciphers):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    if certificate:
        context.load_cert_chain(certificate, key)
    with socket.create_connection((address, port), timeout=5) as raw, context.wrap_socket(raw) as tls:
        return tls.cipher()[0]
def refusal(version):
    try:
        return shake(version, "ALL:COMPLEMENTOFALL")
    except ssl.SSLError as exc:
        return exc.reason
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
rest, taken, end = [one["name"] for one in context.get_ciphers() if one["protocol"] != "TLSv1.3"], [], ""
known = len(rest)
while rest and not end:
    try:
        taken.append(shake(ssl.TLSVersion.TLSv1_2, ":".join(rest)))
        rest.remove(taken[-1])
    except ssl.SSLError as exc:
        end = exc.reason
old = [refusal(version) for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1)]
print(json.dumps({"old": old, "taken": taken, "end": end, "known": known, "new": refusal(ssl.TLSVersion.TLSv1_3)}))
"""


def from_neighbour(cluster, script, *words):
    """Run a Python script in the network of the second controller, and return the JSON that it prints."""
    inside = ["nsenter", f"--net=/run/netns/{cluster.nodes[1].netns}", sys.executable, "-c", script, *map(str, words)]
    done = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_neighbour_finds_the_declared_ports_and_no_others(cluster):
    node = cluster.nodes[0]
    assert set(from_neighbour(cluster, SCAN, node.address)) == PORTS
    for each in cluster.nodes:
        assert each.exec(["ss", "-Hlun"]).stdout == ""


@pytest.mark.parametrize("port", sorted(PORTS))
def test_only_tls_1_2_with_strong_ciphers_and_1_3_are_spoken_at_port(cluster, port):
    node = cluster.nodes[0]
    # etcd ends the handshake of whoever has no certificate, whatever the cipher.
    pair = [node.root / LIVE / f"etcd-client.{part}" for part in ("crt", "key")] if port in (2379, 2380) else ["", ""]
    said = from_neighbour(cluster, TLS, node.address, port, *pair)
    assert said["known"] > 50
    # It is the server that must refuse, not this client.
    assert said["old"] == ["TLSV1_ALERT_PROTOCOL_VERSION"] * 2
    assert said["end"] == "SSLV3_ALERT_HANDSHAKE_FAILURE"
    assert said["new"].startswith("TLS_")
    assert said["taken"]
    assert all(name.startswith("ECDHE-") and ("GCM" in name or "CHACHA20" in name) for name in said["taken"]), said["taken"]


def test_without_a_credential_the_api_server_tells_its_health_and_nothing_else(cluster):
    paths = json.loads(cluster.kubectl("get", "--raw", "/").stdout)["paths"]
    paths += ["/", "/metrics/slis", "/debug/pprof/", "/api/v1/secrets", "/api/v1/namespaces/kube-system/configmaps"]
    assert len(paths) > 60
    node, health = cluster.nodes[0], {"/livez", "/readyz", "/healthz"}
    config = "".join(f'url = "https://{node.address}:6443{path}"\noutput = /dev/null\n' for path in paths)
    words = ["curl", "-sk", "-m", "5", "--path-as-is", "-w", "%{url_effective} %{http_code}\n", "-K", "-"]
    inside = ["nsenter", f"--net=/run/netns/{cluster.nodes[1].netns}", *words]
    done = subprocess.run(inside, input=config, capture_output=True, text=True, check=False, timeout=60)
    answers = dict(line.split() for line in done.stdout.splitlines())
    answers = {url.split(":6443", 1)[1]: status for url, status in answers.items()}
    assert {path for path, status in answers.items() if status == "200"} == health
    assert {status for path, status in answers.items() if path not in health} == {"401"}, answers
    assert len(answers) == len(set(paths))


HEALTH = {"/healthz", "/livez", "/readyz"}  # what upstream lets anybody ask; the controller manager has one of them only


@pytest.mark.parametrize(("port", "health"), [(10257, {"/healthz"}), (10259, HEALTH)])
def test_without_a_credential_the_controllers_tell_their_health_and_nothing_else(cluster, port, health):
    closed = ("/", "/metrics", "/metrics/resources", "/metrics/slis", "/configz", "/flagz", "/statusz", "/debug/pprof/")
    for path in [*health, *closed]:
        status = cluster.get(cluster.nodes[0], path, port=port)[0]
        assert status == 200 if path in health else status in (401, 403), path
    assert {cluster.get(cluster.nodes[0], path, port=port)[0] for path in HEALTH - health} <= {404}


def ask_etcd(cluster, port, path, *words):
    """Ask etcd of the first controller from the second one; return (status, body)."""
    url = f"https://{cluster.nodes[0].address}:{port}{path}"
    # Members speak HTTP/1.1 with each other, and etcd looks for the address that asks in a member's certificate.
    curl = ["curl", "-sk", "-m", "5", "--http1.1", "-w", "\n%{http_code}", *words, url]
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{cluster.nodes[1].netns}", *curl], capture_output=True, text=True, check=False
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def test_etcd_tells_nothing_without_a_certificate_of_its_own_ca(cluster, new_authority, tmp_path):
    node, neighbour = cluster.nodes[:2]
    impostor = new_authority("etcd-ca").issue(neighbour.name, ("serverAuth", "clientAuth"), [neighbour.address])
    (tmp_path / "crt").write_text(impostor.crt)
    (tmp_path / "key").write_text(impostor.key)
    strangers = {
        "none": [],
        "of a CA of the same name": ["--cert", str(tmp_path / "crt"), "--key", str(tmp_path / "key")],
        "of the cluster's CA": pair(node, LIVE, "kubelet-client"),
        "of the front proxy's CA": pair(node, LIVE, "front-proxy-client"),
    }
    for port, paths in ((2379, ("/health", "/metrics", "/version", "/v3/maintenance/status")), (2380, ("/members", "/version"))):
        for path in paths:
            for kind, words in strangers.items():
                assert ask_etcd(cluster, port, path, *words) == (0, ""), kind
    assert ask_etcd(cluster, 2379, "/health", *pair(node, LIVE, "etcd-client"))[0] == 200
    assert ask_etcd(cluster, 2380, "/members", *pair(neighbour, ETCD, "peer"))[0] == 200


def pair(node, home, name):
    return ["--cert", str(node.root / home / f"{name}.crt"), "--key", str(node.root / home / f"{name}.key")]
