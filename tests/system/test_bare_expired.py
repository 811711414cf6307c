"""Nobody renewed: every certificate of a cluster that serves comes to its end, and one command of the docs brings it back."""

import datetime
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

PKI = "srv/kubernetes_controller/pki"
SHARE = "kubernetes_controller_pki"
LIFE_S = 240  # for a first rollout on a slow machine


def signed_anew(path, authorities, end):
    """Exchange a certificate for one that is the same, and ends at ``end``."""
    old = x509.load_pem_x509_certificate(path.read_bytes())
    issuer, key = authorities[old.issuer]
    builder = x509.CertificateBuilder(issuer.subject, old.subject, old.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(old.not_valid_before_utc).not_valid_after(end)
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def read_authorities(directory):
    found = {}
    for path in directory.glob("*.crt"):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        found[certificate.subject] = certificate, serialization.load_pem_private_key(path.with_suffix(".key").read_bytes(), None)
    return found


def leaves(pki):
    """Return each certificate of controllers and operator that the master has a key of."""
    found = [
        path for path in [*pki.glob(f"hosts/*/{SHARE}/*.crt"), *pki.glob("admin/*.crt")] if path.with_suffix(".key").exists()
    ]
    assert len(found) > 30
    return [
        path for path in found if not x509.load_pem_x509_certificate(path.read_bytes()).subject.rfc4514_string().endswith("-ca")
    ]


@pytest.mark.soak
def test_a_cluster_whose_certificates_have_all_ended_is_brought_back_as_the_docs_say(bare, code_blocks):
    (recipe,) = [text for words, text in code_blocks("docs/operations.md") if words.partition(" ")[2] == "expired: master"]
    bare.make_pki()
    pki = bare.lab.master.root / PKI
    end = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0) + datetime.timedelta(seconds=LIFE_S)
    authorities = read_authorities(pki / "authorities")
    for path in leaves(pki):
        signed_anew(path, authorities, end)
    for name, answer in bare.apply().items():
        assert answer.ok, f"{name}: {answer.failures}"
    assert datetime.datetime.now(datetime.timezone.utc) < end, "the first rollout took longer than the certificates live"
    while datetime.datetime.now(datetime.timezone.utc) <= end:
        time.sleep(1)

    status, _ = bare.health()
    assert status != 0
    done = bare.lab.master.exec(["bash", "-euo", "pipefail", "-c", recipe], check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    status, table = bare.health()
    assert status == 0, table
    assert "kube-system" in bare.kubectl("get", "namespaces", "-o", "name").stdout
    done = bare.lab.salt_run("k8s_rollout.deploy", check=False, timeout=600)
    assert (done.returncode, "ended well" in done.stdout) == (0, True), done.stdout[-3000:]
    assert "0 components changed" in done.stdout
