"""
The certificates of a cluster, on the master: CAs, shared keys, leaf certificates, and each minion's share of them.

One table (``certificates`` and ``deliveries`` of the resolved configuration) is walked by one function. Salt's x509
states would do the same with a nested state run per file; a hundred files make that the longest part of a rollout.
A CA, the service-account key and the encryption keys are made once; what was made and is lost is an error. A leaf
certificate that is made anew gets a new key. What is replaced is kept first (``k8s_kept``); while a CA is being rotated
(``k8s_rotation``) minions get several in one file.
"""

import base64
import contextlib
import datetime
import functools
import glob
import ipaddress
import os
import secrets

import salt.utils.files
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from salt.exceptions import CommandExecutionError

CURVES = {256: ec.SECP256R1, 384: ec.SECP384R1, 521: ec.SECP521R1}
USAGES = {"serverAuth": ExtendedKeyUsageOID.SERVER_AUTH, "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH}
END = "-----END CERTIFICATE-----\n"
CLOCK_SKEW = datetime.timedelta(hours=1)
ANOTHER_KEY = "the key is another"
ANOTHER_CA = "the CA is another"
REMOVED = "declared no more; kept and removed"
CLUSTER = "cluster.json"
AGAIN = "declared again; taken back"
DIRECTORIES = ("", "authorities", "shared", "admin", "brought", "hosts")


def differences(pki, force=False, exists="", dropped=False, mark=None):
    """
    Return what is not as declared: a dictionary of path to reason, {} when all is in place. Nothing is written.

    pki
        The key ``pki`` of the cluster's resolved configuration.
    force
        Every leaf certificate counts as due for renewal, and gets a new key (default False).
    exists
        What shows that the cluster is there already, in words that go on after "but" (default: nothing does). Then what
        must never be made anew is not made in a directory that has nothing of a cluster (``begun``).
    dropped
        No controller reads with encryption keys that the pillar does not name, so they are handed out no more (default
        False: a rotation of theirs may need them in shares until its last step).
    mark
        What is handed out of whether the cluster exists (``k8s_cluster``); by default what was handed out stays.

    Raises CommandExecutionError when something that must never be made anew is lost.

    CLI Example:

    .. code-block:: bash

        salt-call --local k8s_pki.differences "$PKI"
    """
    return {path: why for path, why, _ in _steps(pki, force, exists, dropped, mark)}


def make(pki, force=False, exists="", dropped=False, mark=None):
    """
    Make and hand out what is not as declared; each file in one rename, readable by its owner alone. What was handed out and
    is declared no more is kept and removed.

    pki, force, exists, dropped, mark
        See ``differences``. Returns and raises what that does.

    CLI Example:

    .. code-block:: bash

        salt-call --local k8s_pki.make "$PKI"
    """
    done, pki = {}, {**pki, "stamp": __salt__["k8s_kept.now"]()}
    with __salt__["k8s_kept.locked"](pki["directory"]):
        __salt__["k8s_kept.sweep"](pki["directory"])
        for path, why, step in _steps(pki, force, exists, dropped, mark):
            step()
            done[path] = why
    return done


def begun(pki):
    """
    Tell whether the directory has anything of a cluster: a CA, a shared key, or what was handed to a minion.

    pki
        The key ``pki`` of the cluster's resolved configuration.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_pki.begun "$PKI"
    """
    places = (os.path.join(glob.escape(pki["directory"]), place) for place in ("authorities", "shared", "hosts/*/*"))
    return any(os.path.isfile(path) for place in places for path in glob.iglob(f"{place}/*"))


def make_key(pki, path):
    """
    Make a private key at ``path``, where there is none.

    pki
        The key ``pki`` of the cluster's resolved configuration, which says of what kind.
    path
        Absolute path.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_pki.make_key "$PKI" /srv/kubernetes_controller/pki/brought/apiserver.key
    """
    if os.path.exists(path):
        raise CommandExecutionError(f"{path} exists; a key is never made over another.")
    _write_key(path, pki)
    return True


def public_half(pki, name, key):
    """
    Return what belongs to a private key: of a CA the certificate, of the service account the public key (PEM).

    pki
        The key ``pki`` of the cluster's resolved configuration.
    name
        Of a CA, or ``service-account``.
    key
        Absolute path of the key.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_pki.public_half "$PKI" kubernetes /srv/kubernetes_controller/pki/authorities/kubernetes-ca.key
    """
    if name == "service-account":
        return _public_text(_key(key))
    return _authority_certificate(pki["authorities"][name], _key(key))


def cross_half(pki, name, present, following):
    """
    Return the certificate (PEM) of the next CA as the present one signs it, for those who trust the present one only.

    pki
        The key ``pki`` of the cluster's resolved configuration.
    name
        Of the CA.
    present, following
        Absolute paths of the two CAs without their suffixes (``….crt`` and ``….key``).

    A server that shows it after its own certificate is believed by clients of either CA (RFC 4210, 4.4: new with old).

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_pki.cross_half "$PKI" kubernetes /srv/…/kubernetes-ca /srv/…/kubernetes-ca.next
    """
    signer, own = _certificate(f"{present}.crt"), _certificate(f"{following}.crt")
    days, key = pki["authorities"][name]["days_valid"], own.public_key()
    builder = _builder(own.subject, signer.subject, key, days, min(signer.not_valid_after_utc, own.not_valid_after_utc))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage("digital_signature", "key_cert_sign", "crl_sign"), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    builder = builder.add_extension(_identifier(signer), critical=False)
    return _pem(builder.sign(_key(f"{present}.key"), hashes.SHA256()))


def has_ended(path):
    """
    Tell whether the certificate at ``path`` has expired, so that nobody trusts it any more.

    path
        Absolute path of a certificate (PEM).

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd k8s_pki.has_ended /srv/kubernetes_controller/pki/authorities/signer-ca.crt
    """
    return _certificate(path).not_valid_after_utc <= datetime.datetime.now(datetime.timezone.utc)


# -- the walk: each step is (path, why, function that does it), judged when the ones before it are done ---------------


def _steps(pki, force, exists, dropped, mark):
    _refuse_if_lost(pki, exists)
    yield from _directories(pki)
    for name, authority in pki["authorities"].items():
        if authority["managed"] and authority.get("enabled", True):
            yield from _authority(pki, name, authority)
    yield from _service_account(pki)
    yield from _encryption(pki)
    for row in pki["certificates"]:
        yield from _leaf(pki, row, force)
    yield from _cluster(pki, mark)
    for row in pki["deliveries"]:
        if row["name"] != CLUSTER:
            yield from _delivery(pki, row)
    yield from _undeclared(pki, dropped)


def _directories(pki):
    names = [os.path.join(pki["directory"], name).rstrip("/") for name in DIRECTORIES]
    shares = {os.path.dirname(row["target"]) for row in pki["deliveries"]}
    names += sorted(shares | {os.path.dirname(share) for share in shares})
    for path in dict.fromkeys(names):
        if not os.path.isdir(path):
            yield path, "missing", lambda path=path: os.makedirs(path, mode=0o700)
        elif os.stat(path).st_mode & 0o077:
            yield path, "readable by others", lambda path=path: os.chmod(path, 0o700)


def _authority(pki, name, authority):
    base = f"{pki['directory']}/authorities/{name}-ca"
    key_path, path = f"{base}.key", f"{base}.crt"
    exchanged = __salt__["k8s_rotation.pending"](pki, name)
    yield from _rotation(pki, name, exchanged)
    if not os.path.exists(key_path):
        _refuse_if_known(pki, key_path, half=path)
        yield key_path, "missing", lambda: _write_key(key_path, pki)
    if not os.path.exists(path):
        if path not in exchanged:
            _refuse_if_known(pki, path)
        yield path, "missing", lambda: _write(path, _authority_certificate(authority, _key(key_path)))
    elif os.path.exists(key_path) and path not in exchanged and _public(_key(key_path)) != _public(_certificate(path)):
        raise CommandExecutionError(
            f"{key_path} is not the key of {path}. Restore the one that is wrong from a backup{_how_to_restore(pki, key_path)}."
        )


def _rotation(pki, name, pending):
    """What a rotation that was cut off has left to do with the files of a pair comes before all else."""
    for path, why in pending.items():
        yield path, why, lambda: __salt__["k8s_rotation.settle"](pki, name)


def _service_account(pki):
    if not pki["service_account"]["managed"]:
        return
    key_path, path = f"{pki['directory']}/shared/service-account.key", f"{pki['directory']}/shared/service-account.pub"
    exchanged = __salt__["k8s_rotation.pending"](pki, "service-account")
    yield from _rotation(pki, "service-account", exchanged)
    if not os.path.exists(key_path):
        _refuse_if_known(pki, key_path, half=path)
        yield key_path, "missing", lambda: _write_key(key_path, pki)
    if not os.path.exists(path):
        yield path, "missing", lambda: _write(path, _public_text(_key(key_path)))
    elif os.path.exists(key_path) and path not in exchanged and not _is_half(_read(path), _read(key_path)):
        raise CommandExecutionError(
            f"{key_path} is not the key of {path}. Restore the one that is wrong from a backup{_how_to_restore(pki, key_path)}."
        )


def _is_half(public, key):
    known = __salt__["k8s_certificate.public_keys"]
    return known(key)[0] in known(public) if known(key) else False


def _encryption(pki):
    if not pki["encryption"]["managed"]:
        return
    for name in pki["encryption_keys"]:
        path = f"{pki['directory']}/shared/{name}"
        if not os.path.exists(path):
            _refuse_if_known(pki, path)
            yield path, "missing", lambda path=path: _write(path, base64.b64encode(secrets.token_bytes(32)).decode())


def _leaf(pki, row, force):
    """
    A certificate that is made anew gets a new key with it: a stolen one is of no use once its CA is exchanged, too.

    What another pillar asked for is withdrawn, and not only kept: the pair of before comes back when the pillar does, as long
    as it fits. So a slip in the pillar leaves nothing behind.
    """
    key_path, path = row["key"], row["path"]
    redeclared = not force and (not os.path.exists(path) or bool(_other_than_declared(_certificate(path), row)))
    former = _former(pki, row) if redeclared else None
    if former:
        if former["key"] != key_path:
            yield key_path, AGAIN, lambda: _take_back(pki, former["key"], key_path, _read(former["key"]))
        text = _pem(_certificate(former["path"])) + _chain(pki, row)
        yield path, AGAIN, lambda: _take_back(pki, former["path"], path, text)
        return
    put = _put_in_place if redeclared else _replace
    why = _leaf_fault(pki, row) or ("its renewal was asked for" if force else None)
    if not os.path.exists(key_path):
        yield key_path, "missing", lambda: put(pki, key_path, _new_key(pki))
    elif why and why != ANOTHER_KEY:  # a run that is cut off behind this step has left just that
        yield key_path, why, lambda: put(pki, key_path, _new_key(pki))
    if why:
        yield path, why, lambda: put(pki, path, _leaf_certificate(pki, row) + _chain(pki, row))
    elif _read(path).partition(END)[2] != _chain(pki, row):
        yield path, "what follows it differs", lambda: _write(path, _pem(_certificate(path)) + _chain(pki, row))


def _former(pki, row):
    """Return where the pair of a row is that was withdrawn (``path``, ``key``), when it still fits; else None."""
    keys = __salt__["k8s_kept.withdrawn"](pki["directory"], row["key"])
    if os.path.exists(row["key"]):  # taken back by a run that was cut off then
        keys = [row["key"], *keys]
    for path in __salt__["k8s_kept.withdrawn"](pki["directory"], row["path"]):
        for key in keys:
            with contextlib.suppress(CommandExecutionError, OSError):  # what is no pair any more is made anew
                if not _leaf_fault(pki, {**row, "path": path, "key": key}):
                    return {"path": path, "key": key}
    return None


def _take_back(pki, former, path, text):
    _put_in_place(pki, path, text, spared=former)
    os.unlink(former)


def _put_in_place(pki, path, text, spared=None):
    """Write a file; what another pillar had there is withdrawn."""
    if os.path.exists(path):
        __salt__["k8s_kept.withdraw"](pki["directory"], path, stamp=pki.get("stamp"), spared=spared)
    _write(path, text)


def _chain(pki, row):
    """
    Return what is shown after a certificate while its CA is being exchanged, for whoever knows the former CA only: clients
    of servers, and servers of clients, such as kubelets, which the API server asks with its certificate.
    """
    path = __salt__["k8s_rotation.chain"](pki, row["authority"])
    return _read(path) if path else ""


def _cluster(pki, mark):
    """Hand out whether the cluster exists, to all at once."""
    text = __salt__["k8s_cluster.text_of"](mark) if mark else ""
    targets = [row["target"] for row in pki["deliveries"] if row["name"] == CLUSTER]
    for path in [f"{pki['directory']}/{CLUSTER}", *targets] if mark else ():
        if not os.path.exists(path):
            yield path, "missing", lambda path=path: _write(path, text)
        elif _read(path) != text:
            yield path, f"the cluster is {mark['state']}", lambda path=path: _write(path, text)


def _delivery(pki, row):
    """Copy a file to a minion's share when it is missing there or another; of a CA that is being rotated, all that count."""
    source = next((path for path in row["sources"] if os.path.exists(path)), None)
    if source is None:
        if row["sources"][0].rpartition("/")[0].endswith(("/authorities", "/shared")):
            yield row["target"], "missing", lambda: _write(row["target"], _bundle(row["sources"][0], row))
            return
        raise CommandExecutionError(
            f"{row['name']} is declared to be brought, but is neither {' nor '.join(row['sources'])}. Put it there."
        )
    text = _bundle(source, row)
    if not os.path.exists(row["target"]):
        yield row["target"], "missing", lambda: _write(row["target"], text)
    elif text != _read(row["target"]):
        brought = source.startswith(f"{pki['directory']}/brought/")  # the share may be the last copy of what it was
        write = functools.partial(_replace, pki) if brought else _write
        yield row["target"], f"differs from {source}", lambda: write(row["target"], text)


def _undeclared(pki, dropped):
    """
    Take what is declared no more out of the shares, all that a minion has which is no controller any more included.

    Controllers have what they run with in generations of their own. A rotation of encryption keys alone hands out more than
    the pillar names, and a share of it is what is no PEM.
    """
    declared = {row[part] for row in pki["certificates"] for part in ("path", "key")}
    declared |= {row["target"] for row in pki["deliveries"]}
    shares = {os.path.dirname(path) for path in declared}
    for path in sorted(glob.glob(f"{glob.escape(pki['directory'])}/hosts/*/{pki['pillar']}/*")):
        if path in declared or os.path.basename(path) in pki["by_hand"] or not os.path.isfile(path):
            continue
        if dropped or os.path.dirname(path) not in shares or _is_pem(path):
            yield path, REMOVED, lambda path=path: _remove(pki, path)


def _bundle(source, row):
    """Return the content of ``source`` and of what stands beside it during a rotation, each once."""
    texts = [_read(path) for path in (source, *row.get("beside", ())) if os.path.exists(path)]
    if len(set(texts)) == 1:
        return texts[0]
    return "".join(dict.fromkeys(text.strip() + "\n" for text in texts))


def _refuse_if_lost(pki, exists):
    """Raise when the directory has nothing of a cluster that is there already, so that it was lost or is not mounted."""
    rows = [*pki["authorities"].values(), pki["service_account"], pki["encryption"]]
    if exists and any(row["managed"] and row.get("enabled", True) for row in rows) and not begun(pki):
        raise CommandExecutionError(
            f"{pki['directory']} has none of the cluster's CAs and keys, but {exists}. They are never made anew for a cluster "
            "that has them: mount the directory, or restore all of it from the backup, and run this again. (Where there is to "
            'be a new cluster with new CAs: docs/operations.md, "When the whole directory is lost".)'
        )


def _refuse_if_known(pki, path, half=None):
    """
    Raise when anything shows that ``path`` existed: its other ``half``, a minion's share of either, what is kept of them.

    Of a CA that was brought the master never had the key, so what equals a file in ``brought/`` shows nothing.
    """
    found = [half] if half and os.path.exists(half) else []
    is_authority = os.path.basename(os.path.dirname(path)) == "authorities"
    for one in filter(None, (path, half)):
        found += [copy for copy in _copies(pki, os.path.basename(one)) if not (is_authority and _is_brought(pki, copy))]
    if found:
        raise CommandExecutionError(
            f"{path} is lost (but {found[0]} exists). It is never made anew for a cluster that has it: restore it from a backup"
            f"{_how_to_restore(pki, path)}."
        )


def _copies(pki, name):
    """Return the copies of a file of ``authorities/`` or ``shared/`` that minions have or had, and those that are kept."""
    share, found = f"hosts/*/{pki['pillar']}", []
    for place in (share, f"kept/*/{share}", "kept/*/authorities", "kept/*/shared"):
        for one in dict.fromkeys((name, pki["files"].get(name, name))):
            found += sorted(glob.glob(f"{glob.escape(pki['directory'])}/{place}/{glob.escape(one)}"))
    return found


def _is_brought(pki, path):
    """Tell whether a file is the copy of one of its name in ``brought/``, or in a directory there."""
    name, brought = glob.escape(os.path.basename(path)), glob.escape(f"{pki['directory']}/brought")
    places = [*glob.iglob(f"{brought}/{name}"), *glob.iglob(f"{brought}/*/{name}")]
    return any(_read(one) == _read(path) for one in places if os.path.isfile(one))


def _how_to_restore(pki, path):
    name = os.path.relpath(path, pki["directory"])
    fitting = __salt__["k8s_kept.candidates"](pki["directory"], name)
    command = f"`salt-run salt.cmd k8s_kept.restore {pki['directory']} {name}"
    return f", or by {command}` from {fitting[0]}" if fitting else f" by {command} FILE`"


# -- certificates -----------------------------------------------------------------------------------------------------


def _name(common_name, organization=None):
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(parts)


def _authority_certificate(authority, key):
    name = _name(authority["common_name"])
    builder = _builder(name, name, key.public_key(), authority["days_valid"])
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage("digital_signature", "key_cert_sign", "crl_sign"), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return _pem(builder.sign(key, hashes.SHA256()))


def _leaf_certificate(pki, row):
    base = f"{pki['directory']}/authorities/{row['authority']}-ca"
    authority, authority_key, key = _certificate(f"{base}.crt"), _key(f"{base}.key"), _key(row["key"])
    subject = _name(row["common_name"], row.get("organization"))
    builder = _builder(subject, authority.subject, key.public_key(), row["days_valid"], authority.not_valid_after_utc)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage("digital_signature", "key_encipherment"), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([USAGES[usage] for usage in row["usage"]]), critical=False)
    builder = builder.add_extension(_identifier(authority), critical=False)
    if row["sans"]:
        builder = builder.add_extension(x509.SubjectAlternativeName(_sans(row)), critical=False)
    return _pem(builder.sign(authority_key, hashes.SHA256()))


def _identifier(authority):
    """Return by what the certificates that a CA signs know its key; a CA of the operator's may have a way of its own."""
    try:
        own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _builder(subject, issuer, public_key, days_valid, not_after=None):
    now = datetime.datetime.now(datetime.timezone.utc)
    until = now + datetime.timedelta(days=days_valid)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - CLOCK_SKEW)
    return builder.not_valid_after(min(until, not_after) if not_after else until)


def _key_usage(*allowed):
    fields = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    fields += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{field: field in allowed for field in fields})


def _sans(row):
    return [
        x509.IPAddress(ipaddress.ip_address(value)) if kind == "IP" else x509.DNSName(value)
        for kind, _, value in (san.partition(":") for san in row["sans"])
    ]


def _leaf_fault(pki, row):
    """Return why the certificate of ``row`` has to be made (str), or None."""
    if not os.path.exists(row["path"]):
        return "missing"
    if not os.path.exists(row["key"]):
        return "its key was missing"
    certificate, path = _certificate(row["path"]), f"{pki['directory']}/authorities/{row['authority']}-ca.crt"
    if _public(_key(row["key"])) != _public(certificate):
        return ANOTHER_KEY
    if not os.path.exists(path):  # yet to be made, in a dry run
        return ANOTHER_CA
    authority = _certificate(path)
    if not _is_signed(certificate, authority):
        return ANOTHER_CA
    if other := _other_than_declared(certificate, row):
        return other
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
    # One that is declared for a short time is not due from its first day on.
    due = datetime.timedelta(days=min(pki["days_remaining"], row["days_valid"] / 3))
    if left < due and certificate.not_valid_after_utc < authority.not_valid_after_utc:
        return f"{left.days} days left"
    return None


def _other_than_declared(certificate, row):
    """Return in what a certificate is another than its row (str), or None."""
    if certificate.subject != _name(row["common_name"], row.get("organization")):
        return f"subject was {certificate.subject.rfc4514_string()}"
    if set(_extension(certificate, x509.SubjectAlternativeName)) != set(_sans(row)):
        return "names and addresses differ"
    if set(_extension(certificate, x509.ExtendedKeyUsage)) != {USAGES[usage] for usage in row["usage"]}:
        return "usage differs"
    return None


def _is_signed(certificate, authority):
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # noqa: BLE001 (whatever is wrong with the signature, it is not this CA's)
        return False
    return True


def _extension(certificate, kind):
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return []


# -- files ------------------------------------------------------------------------------------------------------------


def _write_key(path, pki):
    _write(path, _new_key(pki))


def _new_key(pki):
    if pki["algorithm"] == "ec":
        key = ec.generate_private_key(CURVES[pki["key_size_bits"]]())
    else:
        key = rsa.generate_private_key(public_exponent=65537, key_size=pki["key_size_bits"])
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


def _write(path, text):
    __salt__["k8s_kept.write"](path, text)


def _replace(pki, path, text):
    """Write a file; what it was before is kept, and what was withdrawn of it comes back no more."""
    __salt__["k8s_kept.forgo"](pki["directory"], path, stamp=pki.get("stamp"))
    if os.path.exists(path):
        __salt__["k8s_kept.keep"](pki["directory"], path, stamp=pki.get("stamp"))
    _write(path, text)


def _remove(pki, path):
    __salt__["k8s_kept.withdraw"](pki["directory"], path, stamp=pki.get("stamp"))


def _is_pem(path):
    with salt.utils.files.fopen(path, "rb") as handle:
        return b"-----BEGIN " in handle.read()


def _read(path):
    try:
        with salt.utils.files.fopen(path, encoding="utf-8") as handle:
            return handle.read()
    except UnicodeDecodeError:
        raise CommandExecutionError(f"{path}: not a text (DER?). Put PEM there.") from None


def _key(path):
    try:
        return serialization.load_pem_private_key(_read(path).encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        kind = type(exc).__name__
        raise CommandExecutionError(f"{path}: not a usable private key ({kind}). Restore it from a backup.") from exc


def _certificate(path):
    try:
        return x509.load_pem_x509_certificate(_read(path).encode())
    except ValueError as exc:
        raise CommandExecutionError(f"{path}: not a PEM certificate. Restore it from a backup.") from exc


def _pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _public_text(key):
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(encoding, form).decode()


def _public(holder):
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return holder.public_key().public_bytes(encoding, form)
