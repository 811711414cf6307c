"""Certificates are judged by real ones."""

import datetime
import json
import subprocess
import textwrap

import pytest
import yaml
from salt.exceptions import CommandExecutionError

SANS = ["controller-1", "10.8.0.101", "fd00::1", "*.example.com"]


@pytest.fixture(scope="module")
def made(authorities, new_authority):
    """What the table below calls by name."""
    ca, other = authorities["kubernetes"], authorities["etcd"]
    between = new_authority("between", ca)
    expired = new_authority("expired-ca", days=(-20, -10))
    things = {
        "good": ca.issue("good", ["serverAuth"], SANS),
        "plain": ca.issue("plain", usage=()),
        "expired": ca.issue("expired", days=(-10, -2)),
        "future": ca.issue("future", days=(2, 10)),
        "foreign": other.issue("foreign"),
        "below": between.issue("below", ["serverAuth"]),
        "of_expired": expired.issue("of_expired"),
    }
    texts = {"garbage": "garbage", "empty": "", "ca": ca.crt, "other_ca": other.crt, "both_ca": other.crt + ca.crt}
    texts |= {"expired_ca": expired.crt, "between": between.crt}
    for name, pair in things.items():
        texts |= {name: pair.crt, f"{name}_key": pair.key}
    texts["chain"] = texts["below"] + between.crt
    texts["cut_key"] = texts["good_key"][:60]
    return texts


@pytest.mark.parametrize(
    ("certificate", "asked", "says"),
    [
        ("good", {"key": "good_key", "authority": "ca", "usage": "serverAuth", "sans": SANS[:3]}, None),
        ("good", {"sans": ["CONTROLLER-1", "", "a.example.com"]}, None),
        ("good", {"authority": "both_ca"}, None),
        ("plain", {"usage": "serverAuth"}, None),
        ("chain", {"authority": "ca", "usage": "serverAuth"}, None),
        ("good", {"key": "plain_key"}, "the key belongs to another certificate"),
        ("good", {"key": "garbage"}, "its key is not a usable private key (ValueError)"),
        ("good", {"key": "cut_key"}, "its key is not a usable private key"),
        ("good", {"key": "ca"}, "its key is not a usable private key"),
        ("good", {"authority": "other_ca"}, "none of the CAs it is used with signed it (issuer CN=kubernetes-ca; CA CN=etcd-ca)"),
        ("foreign", {"authority": "ca"}, "none of the CAs it is used with signed it"),
        ("below", {"authority": "ca"}, "none of the CAs it is used with signed it"),
        ("good", {"authority": "garbage"}, "its CA file is not a PEM certificate"),
        ("of_expired", {"authority": "expired_ca"}, "expired"),
        ("good", {"usage": "clientAuth"}, "its extended key usage does not include clientAuth"),
        (
            "good",
            {"sans": ["10.8.0.102"]},
            "it is not valid for 10.8.0.102 (it has controller-1, *.example.com, 10.8.0.101, fd00::1)",
        ),
        ("good", {"sans": ["a.b.example.com"]}, "it is not valid for a.b.example.com"),
        ("plain", {"sans": ["controller-1"]}, "it is not valid for controller-1 (it has no names)"),
        ("garbage", {}, "it is not a PEM certificate"),
        ("empty", {}, "it is not a PEM certificate"),
        ("good_key", {}, "it is not a PEM certificate"),
    ],
)
def test_a_certificate_is_judged_for_its_use(modules, made, certificate, asked, says):
    asked = {name: made[value] if name in ("key", "authority") else value for name, value in asked.items()}
    found = modules["k8s_certificate.problems"](made[certificate], **asked)
    if says is None:
        assert found == []
    else:
        assert len(found) == 1, found
        assert says in found[0]


@pytest.mark.parametrize(("name", "says"), [("expired", "it expired on "), ("future", "it is not valid before ")])
def test_dates_are_judged_in_utc_at_the_moment_asked_for(modules, made, name, says):
    (found,) = modules["k8s_certificate.problems"](made[name])
    assert says in found
    assert found.removesuffix(" (is the clock right?)").endswith("UTC")
    then = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=-5 if name == "expired" else 5)
    assert modules["k8s_certificate.problems"](made[name], now=then) == []


def test_every_fault_of_a_certificate_is_told_at_once(modules, made):
    found = modules["k8s_certificate.problems"](
        made["expired"], key=made["good_key"], authority=made["other_ca"], usage="serverAuth", sans=["x", "10.0.0.1"]
    )
    assert len(found) == 6, found


def test_a_key_is_never_part_of_an_answer(modules, made):
    answers = [modules["k8s_certificate.problems"](made["good"], key=made[name]) for name in ("plain_key", "cut_key")]
    answers.append(modules["k8s_certificate.key_problem"](made["cut_key"]))
    body = made["good_key"].splitlines()[1]
    assert body[:12] not in str(answers)


def test_an_encrypted_key_is_not_usable(modules, made):
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key(made["good_key"].encode(), None)
    locked = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"x")).decode()
    assert modules["k8s_certificate.key_problem"](locked) == "not a usable private key (TypeError)"
    assert modules["k8s_certificate.key_problem"](made["good_key"]) is None


def test_a_certificate_is_described_in_one_line(modules, made):
    described = modules["k8s_certificate.describe"](made["chain"])
    assert described.startswith("CN=below, serial ")
    assert "\n" not in described
    assert modules["k8s_certificate.fingerprint"](made["chain"]) == modules["k8s_certificate.fingerprint"](made["below"])
    with pytest.raises(CommandExecutionError, match="not a PEM certificate"):
        modules["k8s_certificate.describe"](made["garbage"])


def test_the_end_of_every_certificate_in_a_directory_is_told(modules, made, tmp_path):
    pair = [made["ca"], made["good"], made["good_key"]]
    kubeconfig = modules["k8s_kubeconfig.render"]("https://10.8.0.101:6443", "kubernetes", "me", *pair)
    texts = {"tls.crt": made["good"], "bundle.crt": made["both_ca"] + made["expired"], "kubeconfig": kubeconfig}
    for name, text in {**texts, "tls.key": made["good_key"], "start": "#!/bin/sh"}.items():
        (tmp_path / name).write_text(text)
    found = modules["k8s_certificate.ends"](str(tmp_path))
    assert list(found) == ["bundle.crt", "kubeconfig", "tls.crt"]
    assert found["tls.crt"].startswith("364 days, until ") and found["tls.crt"].endswith("(CN=good)")
    assert found["kubeconfig"] == found["tls.crt"]
    assert found["bundle.crt"].startswith("-")
    assert list(modules["k8s_certificate.ends"](str(tmp_path), within_days=30)) == ["bundle.crt"]


def test_a_certificate_inside_a_structured_file_makes_it_no_certificate_file(modules, made, tmp_path):
    document = {"jwt": [{"issuer": {"certificateAuthority": made["ca"]}}]}
    for name, text in {"a.yaml": yaml.safe_dump(document), "a.json": json.dumps(document)}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "b.yaml").write_text("jwt:\n- issuer:\n    certificateAuthority: |\n" + textwrap.indent(made["ca"], " " * 6))
    (tmp_path / "tls.crt").write_text(f"\n# of the provider\nsubject=CN=good\n{made['good']}")
    assert list(modules["k8s_certificate.ends"](str(tmp_path))) == ["tls.crt"]


@pytest.mark.parametrize("within_days", [None, 30])
def test_a_certificate_that_cannot_be_read_is_told_beside_the_others(modules, made, tmp_path, within_days):
    (tmp_path / "broken.crt").write_text("-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n")
    (tmp_path / "tls.crt").write_text(made["expired"])
    found = modules["k8s_certificate.ends"](str(tmp_path), within_days)
    assert list(found) == ["broken.crt", "tls.crt"]
    assert found["broken.crt"] == "no certificate that can be read"


def test_of_an_expired_and_a_renewed_ca_with_one_key_the_valid_one_counts(modules, new_authority, monkeypatch):
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    monkeypatch.setattr(ec, "generate_private_key", lambda curve: key)
    expired, renewed = new_authority("ca", days=(-20, -10)), new_authority("ca")
    leaf = renewed.issue("leaf").crt
    assert modules["k8s_certificate.problems"](leaf, authority=expired.crt + renewed.crt) == []
    (said,) = modules["k8s_certificate.problems"](leaf, authority=expired.crt)
    assert said.startswith("the CA that signed it expired on ")


def test_a_key_of_a_curve_that_nobody_can_read_is_a_sentence(modules, made, tmp_path):
    key, certificate = tmp_path / "x.key", tmp_path / "x.crt"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:brainpoolP224r1", "-nodes"]
    subprocess.run([*words, "-keyout", key, "-out", certificate, "-subj", "/CN=x"], check=True, capture_output=True)
    text, ask = certificate.read_text(), modules["k8s_certificate.problems"]
    assert "its key is of a kind that nothing here can read" in ask(text)[0]
    assert ask(made["good"], key=key.read_text()) == ["its key is not a usable private key (UnsupportedAlgorithm)"]
    assert len(ask(made["good"], authority=text)) == 1
    for function in ("public_keys", "authorities"):
        assert modules[f"k8s_certificate.{function}"](text) == []
    assert modules["k8s_certificate.signed_by"](made["good"], [text]) is None
