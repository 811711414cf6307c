"""The CIS Kubernetes Benchmark 1.12, and systemd's own, against what really runs; the table is ``hardening.yaml``."""

import json
import re

import hardening
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----\n[\w+/=\n]+-----END CERTIFICATE-----")
# Prints path and content (hex) of each file that has a certificate, those in kubeconfigs decoded.
SHOW = r"""
import base64, os, re
for top in ("/etc", "/opt", "/root", "/run", "/srv", "/tmp", "/usr/local", "/var"):
    for directory, below, names in os.walk(top):
        below[:] = [name for name in below if os.path.join(directory, name) not in ("/etc/ssl", "/opt/salt")]
        for name in names:
            path = os.path.join(directory, name)
            if os.path.islink(path) or not os.path.isfile(path) or os.path.getsize(path) > 1000000:
                continue
            with open(path, "rb") as file:
                data = file.read()
            data += b"".join(map(base64.b64decode, re.findall(rb"certificate-data: *(\S+)", data)))
            if b"-----BEGIN CERTIFICATE" in data:
                print(path, data.hex(), sep="\t")
"""


def certificates(node):
    """Return [(path in the node, certificate)] of all that lies in its files."""
    found = []
    for path, text in (line.split("\t") for line in node.exec(["python3", "-c", SHOW]).stdout.splitlines()):
        found += [(path, x509.load_pem_x509_certificate(pem)) for pem in CERTIFICATE.findall(bytes.fromhex(text))]
    return found


@pytest.fixture(scope="module")
def facts(cluster):
    return [hardening.Facts(node) for node in cluster.nodes]


@pytest.fixture(scope="module")
def present(cluster):
    return [certificates(node) for node in cluster.nodes]


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row['id']} {row['about']}") for row in hardening.rows()])
def test_the_check_holds_or_its_deviation_is_justified(facts, present, row):
    for fact, found in zip(facts, present, strict=True):
        subjects = [(path, certificate.subject.rfc4514_string()) for path, certificate in found]
        faults = hardening.faults(row, fact, subjects)
        if row.get("deviation"):
            assert faults, "this holds: the deviation can be taken out of the table"
        else:
            assert not faults


def test_every_path_of_the_kube_bench_configuration_is_there(cluster):
    paths = hardening.kube_bench_paths()
    assert len(paths) == 7
    for node in cluster.nodes:
        assert not node.exec(["ls", "-d", *paths], check=False).stderr


@pytest.mark.parametrize("component", hardening.COMPONENTS)
def test_systemd_counts_nothing_against_the_unit_but_what_is_justified(cluster, component):
    node = cluster.nodes[0]
    said = node.exec(["systemd-analyze", "security", "--no-pager", f"{component}.service"]).stdout
    allowed, reasons = 1.2, set(hardening.table()["systemd"])
    if component == "kube-apiserver":
        allowed = 1.4
    else:
        reasons.remove("SystemCallFilter=~@privileged")
    assert float(re.search(r"Overall exposure level for \S+: ([\d.]+)", said)[1]) <= allowed
    points = json.loads(node.exec(["systemd-analyze", "security", "--json=short", f"{component}.service"], check=False).stdout)
    counted = {point["name"] for point in points if point["exposure"] and float(point["exposure"]) > 0}
    assert counted == reasons


# -- who has an identity of etcd ----------------------------------------------------------------------------------------


def test_no_controller_holds_an_identity_of_etcd_that_it_does_not_need(cluster, present):
    authority = cluster.lab.master.root / "srv/kubernetes_controller/pki/authorities/etcd-ca.crt"
    authority = x509.load_pem_x509_certificate(authority.read_bytes())
    for node, found in zip(cluster.nodes, present, strict=True):
        identities = {}
        for path, certificate in found:
            if certificate.issuer == authority.subject != certificate.subject:
                usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
                assert ExtendedKeyUsageOID.CLIENT_AUTH in usage
                home, _, name = re.sub(r"/generations/[\w.]+/", "\t", path).partition("\t")
                key = node.exec(["stat", "-c", "%a %U:%G", path.replace(".crt", ".key")]).stdout.strip()
                identities[home, name] = (certificate.subject.rfc4514_string(), key)
        assert identities == {
            ("/var/lib/kubernetes", "etcd-client.crt"): ("CN=kube-apiserver", "640 root:kube-apiserver"),
            ("/var/lib/kubernetes-etcd", "server.crt"): (f"CN={node.name}", "640 root:etcd"),
            ("/var/lib/kubernetes-etcd", "peer.crt"): (f"CN={node.name}", "640 root:etcd"),
        }
