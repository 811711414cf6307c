"""
Read and check certificates and keys (PEM text) with the ``cryptography`` that Salt brings.
"""

import datetime
import glob
import hashlib
import ipaddress
import os
import re

import salt.utils.files
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from salt.exceptions import CommandExecutionError

DAY = datetime.timedelta(days=1)
BLOCK = re.compile(r"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----", re.S)
# At the beginning of a line: inside a YAML or JSON document a PEM block is a value, quoted or indented.
FIRST = re.compile(r"^-----BEGIN (?:X509 )?CERTIFICATE-----", re.M)
UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm)  # of a curve that cryptography does not know, too
USAGES = {
    "serverAuth": x509.ExtendedKeyUsageOID.SERVER_AUTH,
    "clientAuth": x509.ExtendedKeyUsageOID.CLIENT_AUTH,
}


def describe(text):
    """
    Return what an operator needs to know of the first certificate in ``text`` (PEM): a line without secrets.

    Raises CommandExecutionError when there is none.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_certificate.describe "$(cat ca.crt)"
    """
    return _described(_certificates(text)[0])


def is_file(text):
    """
    Tell whether ``text`` is that of a certificate file (PEM), with a key or words of explanation perhaps (RFC 7468).

    A structured file that has a certificate as one of its values is none.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_certificate.is_file "$(cat ca.crt)"
    """
    return bool(FIRST.search(text))


def fingerprint(text):
    """
    Return the SHA-256 fingerprint (hex) of the first certificate in ``text`` (PEM).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_certificate.fingerprint "$(cat ca.crt)"
    """
    return hashlib.sha256(_certificates(text)[0].public_bytes(serialization.Encoding.DER)).hexdigest()


def expiry(within_days=None, short_lived=False):
    """
    Return the certificates that this node's components run with, each with its days left: {component: {file: words}}.

    within_days
        Only those that end within so many days (default: all).
    short_lived
        Of one that lives for a short time, only when it is in its last sixth, too: renewal begins with the last third
        (default False).

    CLI Example:

    .. code-block:: bash

        salt 'controller-*' k8s_certificate.expiry
        salt 'controller-*' k8s_certificate.expiry within_days=30
    """
    cfg = __salt__["k8s_config.load"](fresh=True)
    if "errors" in cfg:
        raise CommandExecutionError("\n".join(cfg["errors"]))
    found = {name: ends(os.path.join(row["home"], "live"), within_days, short_lived) for name, row in cfg["components"].items()}
    return {name: files for name, files in found.items() if files}


def ends(directory, within_days=None, short_lived=False):
    """
    Return what certificates there are in the files of a directory, each with its days left: {file: words}.

    directory
        Absolute path; kubeconfigs in it are looked into. A certificate that cannot be read is there in any case.
    within_days, short_lived
        See ``expiry``.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_certificate.ends /var/lib/kubernetes/live
    """
    found, now = {}, datetime.datetime.now(datetime.timezone.utc)
    for path in sorted(glob.glob(os.path.join(directory, "*"))):
        with salt.utils.files.fopen(path, encoding="utf-8", errors="replace") as handle:
            text = handle.read()
        if "client-certificate-data" in text:
            text = __salt__["k8s_kubeconfig.certificate"](text)
        if not is_file(text):
            continue
        try:
            first = min(_certificates(text), key=lambda one: one.not_valid_after_utc)
        except CommandExecutionError:
            found[os.path.basename(path)] = "no certificate that can be read"
            continue
        left, limit = (first.not_valid_after_utc - now) / DAY, within_days
        if short_lived and limit is not None:
            limit = min(limit, (first.not_valid_after_utc - first.not_valid_before_utc) / DAY / 6)
        if limit is None or left < limit:
            until = first.not_valid_after_utc.strftime("%Y-%m-%d")
            found[os.path.basename(path)] = f"{int(left)} days, until {until} ({first.subject.rfc4514_string()})"
    return found


def problems(certificate, key=None, authority=None, usage=None, sans=None, now=None):
    """
    Return what is wrong with a certificate, one sentence each; an empty list when it fits.

    certificate
        PEM text: the certificate, perhaps followed by intermediates.
    key
        PEM text of the private key that must belong to it.
    authority
        PEM text of one or more CA certificates, one of which must have signed it.
    usage
        ``serverAuth`` or ``clientAuth``: the extended key usage it must allow (RFC 5280, 4.2.1.12).
    sans
        Names and addresses (list of str) that it must be valid for; empty ones are ignored.
    now
        Moment to judge the dates at (aware datetime, default the present).

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_certificate.problems "$(cat tls.crt)" authority="$(cat ca.crt)" usage=serverAuth
    """
    try:
        chain = _certificates(certificate)
    except CommandExecutionError as exc:
        return [str(exc)]
    leaf, found = chain[0], []
    now = now or datetime.datetime.now(datetime.timezone.utc)
    if now > leaf.not_valid_after_utc:
        found.append(f"it expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if now < leaf.not_valid_before_utc:
        found.append(f"it is not valid before {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC (is the clock right?)")
    if key is not None:
        found += _key_problems(leaf, key)
    if authority is not None:
        found += _authority_problems(chain, authority, now)
    if usage:
        found += _usage_problems(leaf, usage)
    for san in sans or []:
        if san and not _covers(leaf, san):
            found.append(f"it is not valid for {san} (it has {_names(leaf)})")
    return found


def lost_names(old, new):
    """
    Return the names and addresses (list of str) that certificates are valid for in ``old`` and in ``new`` are not.

    old, new
        PEM texts (lists) of what a server serves, for all clients the first one, for clients that ask for a name the others,
        too. What is no certificate is valid for nothing; where none in ``new`` is one, nothing is compared.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_certificate.lost_names '["…"]' '["…"]'
    """
    before, after = ([_leaf(text) for text in texts] for texts in (old, new))
    if not any(after):
        return []
    found = []
    for position, leaf in enumerate(before):
        names = _alternative_names(leaf) if leaf else None
        if position == 0 and leaf:
            addresses = map(str, names.get_values_for_type(x509.IPAddress))
            found += [one for one in addresses if not (after[0] and _covers(after[0], one))]
        named = names.get_values_for_type(x509.DNSName) if leaf else []
        found += [one for one in named if not any(other and _covers(other, one) for other in after)]
    return list(dict.fromkeys(found))


def lost_authorities(old, new, now=None):
    """
    Return the CAs, in words (list of str), that are trusted by ``old`` and by ``new`` no more.

    old, new
        PEM texts of CA certificates; "" for none. Where one of them is something else, nothing is compared.
    now
        Moment to judge the dates at (aware datetime, default the present).

    A CA that has expired vouches for nobody, and one that was renewed with the key that it had is the same. What a rotation
    drops at its end is not lost: a CA of its name stays that ``old`` has, too.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_certificate.lost_authorities "$(cat client-ca.crt)" "$(cat new-client-ca.crt)"
    """
    now = now or datetime.datetime.now(datetime.timezone.utc)
    try:
        texts = [_certificates(text) if text else [] for text in (old, new)]
    except CommandExecutionError:
        return []
    before, after = ({_authority(one): one for one in found if one.not_valid_after_utc >= now} for found in texts)
    stays = {one.subject for known, one in after.items() if known in before}
    return [_described(one) for known, one in before.items() if known not in after and one.subject not in stays]


def key_problem(text):
    """
    Return why ``text`` is not an unencrypted PEM private key, or None. The text itself is never in the answer.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_certificate.key_problem '-----BEGIN…'
    """
    try:
        serialization.load_pem_private_key(text.encode(), password=None)
    except UNREADABLE as exc:
        return f"not a usable private key ({type(exc).__name__})"
    return None


def public_keys(text):
    """
    Return the SHA-256 (hex) of each public key in ``text`` (PEM): of public keys, private keys and certificates, in order.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_certificate.public_keys "$(cat service-account.pub)"
    """
    found = []
    for block in BLOCK.findall(text):
        try:
            if "CERTIFICATE" in block:
                key = x509.load_pem_x509_certificate(block.encode()).public_key()
            elif "PRIVATE KEY" in block:
                key = serialization.load_pem_private_key(block.encode(), password=None).public_key()
            else:
                key = serialization.load_pem_public_key(block.encode())
        except UNREADABLE:
            continue
        found.append(hashlib.sha256(_public_bytes(key)).hexdigest())
    return found


def authorities(text):
    """
    Return a SHA-256 (hex) of subject and public key of each certificate in ``text`` (PEM): a CA that was renewed with the
    key that it had is the same.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_certificate.authorities "$(cat client-ca.crt)"
    """
    try:
        return [_authority(certificate) for certificate in _certificates(text)]
    except CommandExecutionError:
        return []


def fitting(text, key):
    """
    Return of the certificates in ``text`` (PEM) the one that belongs to ``key``; all of them when none does.

    text
        PEM text of one or more certificates.
    key
        PEM text of a private key.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_certificate.fitting "$(cat ca.crt)" '-----BEGIN…'
    """
    known, wanted = BLOCK.findall(text), public_keys(key)[:1]
    return next((f"{block}\n" for block in known if wanted and public_keys(block) == wanted), text)


def signed_by(certificate, texts):
    """
    Return which CA among ``texts`` signed a certificate, in the form of ``authorities``; None when none did.

    certificate
        PEM text: the certificate, perhaps followed by intermediates.
    texts
        PEM texts (list); whatever is no certificate in them is passed over.

    CLI Example:

    .. code-block:: bash

        salt 'controller-1' k8s_certificate.signed_by "$(cat tls.crt)" '["…"]'
    """
    known = []
    for text in texts:
        try:
            known += _certificates(text) if "BEGIN CERTIFICATE" in text else []
        except CommandExecutionError:
            continue
    try:
        chain = _certificates(certificate)
    except CommandExecutionError:
        return None
    for link in chain:
        signer = next((one for one in known if one not in chain and _signed(link, one)), None)
        if signer:
            return _authority(signer)
    return None


def _described(certificate):
    until = certificate.not_valid_after_utc.strftime("%Y-%m-%d")
    return f"{certificate.subject.rfc4514_string()}, serial {certificate.serial_number:x}, until {until}"


def _authority(certificate):
    return hashlib.sha256(certificate.subject.public_bytes() + _public_bytes(certificate.public_key())).hexdigest()


def _certificates(text):
    try:
        found = x509.load_pem_x509_certificates(text.encode())
        for certificate in found:
            certificate.public_key()
    except UnsupportedAlgorithm as exc:
        raise CommandExecutionError(
            f"its key is of a kind that nothing here can read ({exc}); expected RSA, or EC P-256"
        ) from exc
    except ValueError as exc:
        raise CommandExecutionError("it is not a PEM certificate") from exc
    return found


def _leaf(text):
    """Return the first certificate of a text, or None."""
    try:
        return _certificates(text)[0]
    except CommandExecutionError:
        return None


def _public_bytes(key):
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _key_problems(leaf, key):
    problem = key_problem(key)
    if problem:
        return [f"its key is {problem}"]
    private = serialization.load_pem_private_key(key.encode(), password=None)
    if _public_bytes(private.public_key()) != _public_bytes(leaf.public_key()):
        return ["the key belongs to another certificate"]
    return []


def _authority_problems(chain, authority, now):
    try:
        trusted = _certificates(authority)
    except CommandExecutionError:
        return ["its CA file is not a PEM certificate"]
    current, others = chain[0], chain[1:]
    for _ in range(len(chain)):
        signers = [candidate for candidate in trusted if _signed(current, candidate)]
        signer = max(signers, key=lambda one: one.not_valid_after_utc, default=None)  # of a renewed CA both may be there
        if signer and now > signer.not_valid_after_utc:
            return [f"the CA that signed it expired on {signer.not_valid_after_utc:%Y-%m-%d}"]
        if signer:
            return []
        current = next((candidate for candidate in others if _signed(current, candidate)), None)
        if current is None:
            break
    issuer = chain[0].issuer.rfc4514_string()
    return [f"none of the CAs it is used with signed it (issuer {issuer}; CA {trusted[0].subject.rfc4514_string()})"]


def _signed(certificate, issuer):
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def _usage_problems(leaf, usage):
    try:
        allowed = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return []
    if USAGES[usage] in allowed or x509.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in allowed:
        return []
    return [f"its extended key usage does not include {usage}"]


def _alternative_names(leaf):
    try:
        return leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return x509.SubjectAlternativeName([])


def _covers(leaf, san):
    names = _alternative_names(leaf)
    try:
        return ipaddress.ip_address(san) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        pass
    wildcard = "*." + san.partition(".")[2]
    return any(name.lower() in (san.lower(), wildcard.lower()) for name in names.get_values_for_type(x509.DNSName))


def _names(leaf):
    names = _alternative_names(leaf)
    found = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return ", ".join(found) or "no names"
