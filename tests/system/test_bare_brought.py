"""A PKI that the Ansible role kubernetes_ca made, taken over word for word as docs/from-ansible.md says."""

import base64
import datetime
import ipaddress
import json
import secrets

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DOCUMENT = "docs/from-ansible.md"
KEY = base64.b64encode(secrets.token_bytes(32)).decode()
# All that differs from what the document says: its example's interface, and that the lab's own pillar lies below.
SUBSTITUTED = {"interface: wg0": "interface: tap0", "  etcd:\n": "  etcd:\n    managed: false\n"}
SECRET = "VALUE OF k8s_encryption_config_key"
HOME = "/opt/somebody-elses"
ETCDCTL = [f"{HOME}/etcdctl", f"--cacert={HOME}/ca", f"--cert={HOME}/server", f"--key={HOME}/server_key"]


class Authority:
    """A CA as the role makes it with cfssl, and what it signs; all as PEM, keys as PKCS #1."""

    NAMES = {"COUNTRY_NAME": "DE", "STATE_OR_PROVINCE_NAME": "Bayern", "LOCALITY_NAME": "The_Internet"}
    USAGES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}

    def __init__(self, common_name):
        self.name = self._name(common_name, "Kubernetes")
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.key = self._text(self._key)
        self.certificate = self._signed(self.name, self._key, x509.BasicConstraints(ca=True, path_length=None))

    def pair(self, common_name, organization="Kubernetes", usages=("server", "client"), sans=()):
        """Return a certificate and its key."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        extensions = [x509.ExtendedKeyUsage([self.USAGES[usage] for usage in usages])]
        if sans:
            extensions.append(x509.SubjectAlternativeName([self._san(san) for san in sans]))
        return self._signed(self._name(common_name, organization), key, *extensions), self._text(key)

    def _name(self, common_name, organization):
        names = {**self.NAMES, "ORGANIZATION_NAME": organization, "COMMON_NAME": common_name}
        return x509.Name([x509.NameAttribute(getattr(NameOID, kind), value) for kind, value in names.items()])

    def _san(self, text):
        try:
            return x509.IPAddress(ipaddress.ip_address(text))
        except ValueError:
            return x509.DNSName(text)

    def _signed(self, name, key, *extensions):
        now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self.name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + 365 * day)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def _text(self, key):
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
        return key.private_bytes(*form).decode()


def role_files(nodes):
    """Return what the role has in its k8s_ca_conf_directory, by its file names and profiles: {name: PEM}."""
    addresses = [node.address for node in nodes]
    kubernetes, etcd = Authority("Kubernetes"), Authority("Etcd")
    service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    component = "system:kube-{}".format
    rows = {
        "cert-k8s-apiserver": (kubernetes, "k8s-apiserver", "Kubernetes", [*addresses, "127.0.0.1", "10.32.0.1", *service]),
        "cert-k8s-controller-manager": (kubernetes, component("controller-manager"), component("controller-manager"), []),
        "cert-k8s-controller-manager-sa": (kubernetes, "service-accounts", "Kubernetes", []),
        "cert-k8s-scheduler": (kubernetes, component("scheduler"), component("scheduler"), []),
        "cert-admin": (kubernetes, "admin", "system:masters", []),
        "cert-etcd-server": (etcd, "etcd-server", "Kubernetes", [*addresses, "127.0.0.1"]),
        "cert-etcd-peer": (etcd, "etcd-peer", "Kubernetes", [*addresses, "127.0.0.1"]),
        "cert-k8s-apiserver-etcd": (etcd, "etcd-client-k8s-apiserver-etcd", "Kubernetes", []),
    }
    files = {"ca-k8s-apiserver.pem": kubernetes.certificate, "ca-k8s-apiserver-key.pem": kubernetes.key}
    files |= {"ca-etcd.pem": etcd.certificate, "ca-etcd-key.pem": etcd.key}
    for name, (authority, common_name, organization, sans) in rows.items():
        usages = ["client"] if name == "cert-k8s-apiserver-etcd" else ["server", "client"]
        files[f"{name}.pem"], files[f"{name}-key.pem"] = authority.pair(common_name, organization, usages, sans)
    return files


def substituted(text):
    for said, done in SUBSTITUTED.items():
        assert text.count(said) == 1, said
        text = text.replace(said, done)
    return text


def claims(token, public_key):
    """Return what a service-account token says, once its signature is verified."""
    head, body, signature = token.strip().split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    public_key.verify(raw, f"{head}.{body}".encode(), padding.PKCS1v15(), hashes.SHA256())
    return json.loads(base64.urlsafe_b64decode(body + "=="))


def test_the_ansible_roles_pki_is_taken_over_unchanged_as_the_document_says(bare, external_etcd, code_blocks):
    blocks = code_blocks(DOCUMENT)
    copying = next(text for words, text in blocks if words == "bash" and "brought" in text)
    declared = yaml.safe_load(substituted(next(text for words, text in blocks if words == "yaml" and "authorities:" in text)))
    master, files = bare.lab.master, role_files(bare.nodes)
    names = {"ca": "ca-etcd", "server": "cert-etcd-server", "server_key": "cert-etcd-server-key"}
    names |= {"peer": "cert-etcd-peer", "peer_key": "cert-etcd-peer-key"}
    certificates = {key: files[f"{name}.pem"] for key, name in names.items()}
    servers = external_etcd(bare, 2379, {node.name: certificates for node in bare.nodes})
    assert declared["kubernetes_controller"]["etcd"]["servers"] == servers

    for name, text in files.items():
        master.write(f"/root/k8s/certs/{name}", text, 0o600)
    assert SECRET in copying
    master.exec(["bash", "-euo", "pipefail", "-c", f"cd /root/k8s/certs\n{copying.replace(SECRET, KEY)}"])
    master.exec(["rm", "-r", "/root/k8s"])
    bare.pillar(declared["kubernetes_controller"])
    done = bare.orchestrate()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    status, table = bare.health()
    assert status == 0, table

    # The operator, the API server towards kubelets, tokens and Secrets: each by what was brought.
    assert "system:masters" in bare.kubectl("auth", "whoami").stdout
    binding = json.loads(bare.kubectl("get", "clusterrolebinding", "system:kube-apiserver", "-o", "json").stdout)
    assert [subject["name"] for subject in binding["subjects"]] == ["k8s-apiserver"]
    signer = x509.load_pem_x509_certificate(files["cert-k8s-controller-manager-sa.pem"].encode()).public_key()
    token = claims(bare.token(), signer)
    assert token["iss"] == declared["kubernetes_controller"]["apiserver"]["settings"]["service-account-issuer"]
    bare.kubectl("create", "secret", "generic", "brought", "--from-literal=word=open sesame")
    asked = [*ETCDCTL, f"--endpoints={servers[0]}", "get", "--print-value-only", "/registry/secrets/default/brought"]
    stored = bare.nodes[0].exec(asked, errors="replace").stdout
    assert stored.startswith("k8s:enc:aescbc:v1:key1:")

    # The keys of the CAs are nowhere: the document does not copy them, and the formula does not need them.
    for node in [master, *bare.nodes]:
        for key in (files["ca-k8s-apiserver-key.pem"], files["ca-etcd-key.pem"]):
            line = key.splitlines()[9]
            assert node.exec(["grep", "-rlsF", line, "/srv/kubernetes_controller", "/var/lib", "/root"], check=False).stdout == ""
