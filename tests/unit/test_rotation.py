"""The rotation of a CA and of the service-account key on the master: cut off anywhere it goes on, and nothing is lost."""

import os
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from salt.exceptions import CommandExecutionError

STEPS = ("trust", "sign", "drop", "end")
PKI = "kubernetes_controller_pki"
ONE = {"controllers": {"controller-2": None, "controller-3": None}}
SIGNS = {"kubernetes": "apiserver.crt", "front-proxy": "front-proxy-client.crt", "etcd": "etcd-server.crt"}
CAS = ["kubernetes", "signer", "etcd", "front-proxy"]


class Killed(BaseException):
    """What a SIGKILL is to a test: nothing of the code catches it."""


class Master:
    """The directory of certificates of a cluster of one, as it was after its first rollout."""

    def __init__(self, modules, pki, root):
        self.modules, self.pki, self.root = modules, pki, root

    def __getattr__(self, name):
        module = "k8s_pki" if name in ("make",) else "k8s_rotation"
        return lambda *args, **kw: self.modules[f"{module}.{name}"](self.pki, *args, **kw)

    def text(self, name):
        return (self.root / name).read_text()

    def share(self, name):
        return self.text(f"hosts/controller-1/{PKI}/{name}")

    def run(self, names, until=None):
        """Do what the orchestration does to the master's files, and tell of each step when it is done."""
        for step in self.plan(names, until=until)["steps"]:
            self.advance(names, step)
            self.make()
            yield step


@pytest.fixture(scope="module")
def _made(modules, resolve, tmp_path_factory):
    root = tmp_path_factory.mktemp("master") / "pki"
    pki = resolve(ONE, {"pki": {"directory": str(root)}}, node=None)["pki"]
    modules["k8s_pki.make"](pki)
    shutil.copytree(root, root.with_name("fresh"))
    return Master(modules, pki, root)


def fresh(master):
    shutil.rmtree(master.root)
    shutil.copytree(master.root.with_name("fresh"), master.root)


@pytest.fixture
def master(_made):
    fresh(_made)
    return _made


@pytest.fixture
def kill(monkeypatch):
    """A function: the n-th change of a name in a directory does not happen any more, and neither does what follows it."""
    real = {name: getattr(os, name) for name in ("replace", "unlink")}

    def armed(at):
        left = [at]

        def counted(function):
            def call(*args, **kw):
                left[0] -= 1
                if left[0] == 0:
                    raise Killed
                return function(*args, **kw)

            return call

        for name, function in real.items():
            monkeypatch.setattr(os, name, counted(function))

    yield armed
    monkeypatch.undo()


def certificates(text):
    return x509.load_pem_x509_certificates(text.encode())


def public(pem):
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if "PRIVATE" in pem:
        return serialization.load_pem_private_key(pem.encode(), None).public_key().public_bytes(*form)
    if "CERTIFICATE" in pem:
        return certificates(pem)[0].public_key().public_bytes(*form)
    return serialization.load_pem_public_key(pem.encode()).public_bytes(*form)


def is_signed(leaf, bundle):
    def by(one):
        try:
            certificates(leaf)[0].verify_directly_issued_by(one)
        except Exception:
            return False
        return True

    return any(map(by, certificates(bundle)))


def kept(master, name):
    return [Path(path).read_text() for path in master.modules["k8s_kept.listed"](str(master.root), name)]


def half(name):
    return ("shared/service-account", "pub") if name == "service-account" else (f"authorities/{name}-ca", "crt")


def assert_right(master, name, before):
    """What a rollout at this moment would hand out is right: the present pair is one, all that signs is trusted."""
    base, kind = half(name)
    assert public(master.text(f"{base}.key")) == public(master.text(f"{base}.{kind}"))
    bundle = master.share(f"{base.rpartition('/')[2]}.{kind}")
    assert master.text(f"{base}.{kind}") in bundle
    stands = master.modules["k8s_rotation.status"](str(master.root)).get(name, "")
    if "trust:" in stands or "sign:" in stands:
        assert before in bundle
        assert len(bundle) > len(before)
    if name in SIGNS:
        assert is_signed(master.share(SIGNS[name]), bundle)


def assert_rotated(master, name, key, half_before):
    base, kind = half(name)
    assert_right(master, name, half_before)
    assert master.text(f"{base}.key") != key
    assert key in kept(master, f"{base}.key")
    assert half_before in kept(master, f"{base}.{kind}")
    share = f"{base.rpartition('/')[2]}.{kind}"
    assert master.share(share) == master.text(f"{base}.{kind}")
    left = {path.name for path in (master.root / base).parent.iterdir() if name in path.name}
    assert left == {f"{os.path.basename(base)}.{end}" for end in ("key", kind)}
    if name in SIGNS:
        assert is_signed(master.share(SIGNS[name]), master.text(f"{base}.{kind}"))
    assert not list(master.root.rglob(".new-*"))
    open_to_others = [path for path in master.root.rglob("*") if path.stat().st_mode & 0o077]
    assert [path for path in open_to_others if "hosts" not in path.parts] == []


@pytest.mark.parametrize("name", ["kubernetes", "front-proxy", "service-account"])
def test_a_rotation_that_is_killed_between_any_two_changes_goes_on_to_its_end(master, kill, monkeypatch, name):
    base, kind = half(name)
    before = {end: master.text(f"{base}.{end}") for end in ("key", kind)}
    for at in range(1, 500):
        fresh(master)
        kill(at)
        try:
            done = list(master.run([name]))
        except Killed:
            done = None
        monkeypatch.undo()
        if done:
            break
        master.make()  # any rollout in between
        assert_right(master, name, before[kind])
        list(master.run([name]))
        assert_rotated(master, name, before["key"], before[kind])
    assert at > (30 if name == "kubernetes" else 12)


def test_each_step_hands_out_and_signs_what_it_says(master):
    old = master.text("authorities/kubernetes-ca.crt")
    seen = {}
    for step in master.run(["kubernetes"]):
        seen[step] = (certificates(master.share("kubernetes-ca.crt")), master.share("apiserver.crt"))
        assert master.share("kubernetes-ca.crt") == master.text("admin/kubernetes-ca.crt")
        assert master.make() == {}
    new = master.text("authorities/kubernetes-ca.crt")
    assert list(seen) == list(STEPS)
    assert seen["trust"][0] == certificates(old) + certificates(new)
    assert seen["sign"][0] == certificates(new) + certificates(old)
    assert seen["drop"][0] == seen["end"][0] == certificates(new)
    assert is_signed(seen["trust"][1], old)
    assert is_signed(seen["sign"][1], new)
    assert seen["end"][1] == seen["drop"][1] == seen["sign"][1][: len(seen["end"][1])]


def test_who_trusts_the_former_one_only_believes_each_certificate_until_it_is_dropped(master, modules):
    old = master.text("authorities/kubernetes-ca.crt")
    for step in master.run(["kubernetes"]):
        for name, usage in (("apiserver", "serverAuth"), ("apiserver-kubelet-client", "clientAuth"), ("scheduler", "clientAuth")):
            leaf, key = master.share(f"{name}.crt"), master.share(f"{name}.key")
            for trusted in (old, master.share("kubernetes-ca.crt")):
                faults = modules["k8s_certificate.problems"](leaf, key=key, authority=trusted, usage=usage)
                assert bool(faults) == (trusted == old and step in ("drop", "end")), (step, name, faults)
            assert len(certificates(leaf)) == (2 if step == "sign" else 1)


def handshake(kubelet, client):
    """Return "" when a server lets a client in that shows its certificate, and else what the server says."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        (client.wrap_bio(to_client, to_server, server_hostname="kubelet"), "client"),
        (kubelet.wrap_bio(to_server, to_client, server_side=True), "server"),
    ]
    for _ in range(4):
        for end, name in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as exc:
                return f"{name}: {exc.verify_message if hasattr(exc, 'verify_message') else exc.reason}"
    return "" if dict(map(reversed, ends))["server"].getpeercert() else "no certificate came"


def test_a_kubelet_that_knows_the_former_ca_only_lets_the_api_server_in_until_it_is_dropped(master, authorities, tmp_path):
    served, pair = authorities["kubernetes"].issue("kubelet", ["serverAuth"], ["kubelet"]), tmp_path / "kubelet.pem"
    pair.write_text(served.crt + served.key)
    kubelet = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=master.text("authorities/kubernetes-ca.crt"))
    kubelet.load_cert_chain(pair)
    kubelet.verify_mode = ssl.CERT_REQUIRED
    for step in master.run(["kubernetes"]):
        client = ssl.create_default_context(cadata=authorities["kubernetes"].crt)
        client.load_cert_chain(
            *(master.root / f"hosts/controller-1/{PKI}/apiserver-kubelet-client.{end}" for end in ("crt", "key"))
        )
        said = handshake(kubelet, client)
        assert (said == "") is (step in ("trust", "sign")), (step, said)


def test_the_operators_kubeconfig_shows_the_former_cas_word_too(master, modules):
    list(master.run(["kubernetes"], until="sign"))
    pair = {part: master.text(f"admin/admin.{part}") for part in ("crt", "key")}
    said = modules["k8s_kubeconfig.render"]("https://x:6443", "c", "u", authority="ca", certificate=pair["crt"], key=pair["key"])
    assert list(modules["k8s_kubeconfig.pair"](said)) == [pair["crt"], pair["key"]]
    assert len(certificates(modules["k8s_kubeconfig.certificate"](said))) == 2


def test_openssl_finds_its_way_from_the_former_one_to_a_servers_certificate(master, tmp_path):
    (tmp_path / "old").write_text(master.text("authorities/kubernetes-ca.crt"))
    list(master.run(["kubernetes"], until="sign"))
    leaf = str(master.root / f"hosts/controller-1/{PKI}/apiserver.crt")
    verify = ["openssl", "verify", "-purpose", "sslserver", "-CAfile", str(tmp_path / "old")]
    assert subprocess.run([*verify, "-untrusted", leaf, leaf], capture_output=True, check=False).returncode == 0
    assert subprocess.run([*verify, leaf], capture_output=True, check=False).returncode != 0


def test_the_private_half_of_what_is_next_stays_on_the_master(master):
    list(master.run([*CAS, "service-account"], until="trust"))
    private = {master.text(f"{half(name)[0]}.next.key") for name in [*CAS, "service-account"]}
    shared = {path.read_text() for path in (master.root / "hosts").rglob("*") if path.is_file()}
    assert not private & shared


def test_several_go_together_and_the_one_that_is_ahead_waits(master):
    list(master.run(["signer"], until="sign"))
    assert master.plan(["signer", "etcd"])["steps"] == list(STEPS)
    assert master.advance(["signer", "etcd"], "trust") == {"etcd": {"old": None, "new": "trust"}}
    list(master.run(["signer", "etcd"]))
    assert master.modules["k8s_rotation.status"](str(master.root)) == {}


@pytest.mark.parametrize(
    ("authority", "until", "expected"),
    [
        ("kubernetes", None, (["kubernetes"], list(STEPS))),
        ("kubernetes", "trust", (["kubernetes"], ["trust"])),
        (["etcd", "signer", "etcd"], "sign", (["etcd", "signer"], ["trust", "sign"])),
        ("all", None, (CAS, list(STEPS))),
        ("service-account", None, (["service-account"], list(STEPS))),
    ],
)
def test_a_plan_has_the_steps_that_are_left(master, authority, until, expected):
    plan = master.plan(authority, until=until)
    assert (plan["names"], plan["steps"], plan["fault"], plan["begins"]) == (*expected, "", True)


@pytest.mark.parametrize(
    ("stands", "until", "steps"),
    [
        ("trust", None, ["trust", "sign", "drop", "end"]),
        ("sign", None, ["sign", "drop", "end"]),
        ("sign", "trust", []),
        ("drop", None, ["drop", "end"]),
    ],
)
def test_a_plan_goes_on_with_the_rollout_of_the_step_at_which_it_stands(master, stands, until, steps):
    for step in STEPS[: STEPS.index(stands) + 1]:
        master.advance(["kubernetes"], step)
    plan = master.plan("kubernetes", until=until)
    assert (plan["steps"], plan["begins"]) == (steps, False)


@pytest.mark.parametrize(
    ("layer", "authority", "until", "says"),
    [
        ({}, None, None, 'Say which CA to rotate: pillar=\'{"authority": "kubernetes"}\'. It can be kubernetes, signer, etcd,'),
        ({}, {"a": 1}, None, "Say which CA to rotate"),
        ({}, "kubernets", None, "There is no CA 'kubernets' to rotate. It can be kubernetes, signer, etcd, front-proxy"),
        ({"authorities": {"etcd": {"managed": False}}}, "etcd", None, "etcd is not made by this master but brought"),
        ({"authorities": {"signer": {"enabled": False}}}, "signer", None, "The signer CA is switched off"),
        ({"service_account": {"managed": False}}, "service-account", None, "service-account is not made by this master"),
        ({}, "kubernetes", "drop", "until is 'drop', expected trust or sign"),
    ],
)
def test_what_cannot_be_rotated_is_one_sentence(modules, resolve, tmp_path, layer, authority, until, says):
    pki = resolve({"pki": {"directory": str(tmp_path), **layer}}, node=None)["pki"]
    plan = modules["k8s_rotation.plan"](pki, authority, until=until)
    assert plan["fault"].startswith(says), plan["fault"]
    assert (plan["names"], plan["steps"]) == ([], [])


def test_a_step_that_is_left_out_is_refused_and_nothing_changes(master, helpers):
    before = helpers.tree(master.root)
    for step in ("sign", "drop"):
        with pytest.raises(CommandExecutionError, match=f"kubernetes: {step} does not follow no rotation"):
            master.advance(["kubernetes"], step)
    after = helpers.tree(master.root)
    after.pop(str(master.root / ".lock"))
    before.pop(str(master.root / ".lock"), None)
    assert after == before


@pytest.mark.parametrize(
    ("step", "lost", "says"),
    [
        ("trust", "kubernetes-ca.next.key", "kubernetes-ca.next.key is lost, while a rotation needs it"),
        ("sign", "kubernetes-ca.former.crt", "kubernetes-ca.former.crt is lost, while a rotation needs it"),
        ("sign", "kubernetes-ca.key", "kubernetes-ca.key is lost"),
        ("sign", "kubernetes-ca.cross.crt", "kubernetes-ca.cross.crt is lost, while a rotation needs it"),
        ("trust", "kubernetes-ca.rotation", "kubernetes-ca.rotation is lost, .* write into it `step: trust`"),
        ("sign", "kubernetes-ca.rotation", "kubernetes-ca.rotation is lost, .* write into it `step: sign`"),
    ],
)
def test_what_is_lost_in_the_middle_is_an_error(master, step, lost, says):
    list(master.run(["kubernetes"], until=step))
    (master.root / "authorities" / lost).unlink()
    with pytest.raises(CommandExecutionError, match=says):
        master.make()
    assert not (master.root / "authorities" / lost).exists()


@pytest.mark.parametrize("name", ["signer", "kubernetes"])
def test_an_expired_ca_is_rotated_without_its_word_for_the_next(master, new_authority, name):
    old = new_authority("old", days=(-20, -10))
    for kind in ("crt", "key"):
        (master.root / f"authorities/{name}-ca.{kind}").write_text(getattr(old, kind))
    master.advance([name], "trust")
    assert not (master.root / f"authorities/{name}-ca.cross.crt").exists()
    master.advance([name], "sign")
    for step in ("sign", "drop", "end"):
        master.advance([name], step)
        master.make()
    assert public(master.text(f"authorities/{name}-ca.crt")) != public(old.crt)
    assert master.make() == {}


def test_what_cannot_be_made_is_told_before_a_rotation_begins(master):
    (master.root / "authorities/signer-ca.key").write_text("no key")
    with pytest.raises(CommandExecutionError, match="signer-ca.key: not a usable private key"):
        master.advance(["signer"], "trust")
    assert not (master.root / "authorities/signer-ca.rotation").exists()


def test_a_next_pair_that_is_lost_before_it_signs_is_made_once_more(master):
    list(master.run(["kubernetes"], until="trust"))
    for kind in ("key", "crt"):
        (master.root / f"authorities/kubernetes-ca.next.{kind}").unlink()
    made = master.make()
    assert {os.path.basename(path) for path in made} >= {
        "kubernetes-ca.next.key",
        "kubernetes-ca.next.crt",
        "kubernetes-ca.cross.crt",
    }
    list(master.run(["kubernetes"], until="sign"))
    leaf = master.share("apiserver.crt")
    assert public(leaf.partition("-----END CERTIFICATE-----\n")[2]) == public(master.text("authorities/kubernetes-ca.crt"))


def test_before_the_first_rollout_there_is_nothing_to_rotate(modules, resolve, tmp_path):
    pki = resolve({"pki": {"directory": str(tmp_path / "none")}}, node=None)["pki"]
    with pytest.raises(CommandExecutionError, match="there is nothing to rotate"):
        modules["k8s_rotation.advance"](pki, ["kubernetes"], "trust")


# -- what is kept, and put back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["crt", "key"])
def test_a_renewed_leaf_is_kept_once(master, kind):
    name = f"hosts/controller-1/{PKI}/scheduler.{kind}"
    old = master.text(name)
    master.make(force=True)
    assert master.text(name) != old
    assert kept(master, name) == [old]
    master.make()
    assert kept(master, name) == [old]


def test_a_stolen_key_is_worth_nothing_when_its_ca_was_exchanged(master):
    rows = [row for row in master.pki["certificates"] if row["authority"] == "kubernetes"]
    leaves = [row[part] for row in rows for part in ("key", "path")]
    stolen = {Path(path).read_text() for path in leaves}
    list(master.run(["kubernetes"]))
    assert len(stolen) == len(leaves) > 10
    assert not stolen & {Path(path).read_text() for path in leaves}


def test_a_renewal_that_is_cut_off_anywhere_leaves_pairs_that_the_next_run_makes_fit(master, kill, monkeypatch):
    row = next(row for row in master.pki["certificates"] if row["path"].endswith("/scheduler.crt"))
    others = [path.name for path in Path(row["path"]).parent.iterdir()]  # that this walk passes over
    pki = {**master.pki, "certificates": [row], "by_hand": others}
    name = os.path.relpath(row["key"], master.root)
    old = Path(row["key"]).read_text()
    make = master.modules["k8s_pki.make"]
    reasons = set()
    for at in range(1, 50):
        fresh(master)
        kill(at)
        try:
            done = make(pki, force=True)
        except Killed:
            done = None
        monkeypatch.undo()
        if done:
            break
        cut = Path(row["key"]).read_text()
        healed = make(pki)
        assert set(healed) <= {row["path"]}
        reasons |= set(healed.values())
        assert public(Path(row["key"]).read_text()) == public(Path(row["path"]).read_text())
        assert Path(row["key"]).read_text() == cut  # what is there already is not exchanged once more
        assert cut == old or kept(master, name) == [old]
    assert reasons == {"the key is another"}
    assert set(done) == {row["key"], row["path"]}


def test_of_what_is_kept_in_a_bounded_number_the_oldest_goes(modules, tmp_path):
    path = tmp_path / "kubeconfig"
    for day in range(1, 8):
        path.write_text(f"of day {day}")
        modules["k8s_kept.keep"](str(tmp_path), str(path), name="admin/kubeconfig", stamp=f"2026110{day}T000000Z", most=5)
    found = modules["k8s_kept.listed"](str(tmp_path), "admin/kubeconfig")
    assert [Path(one).read_text() for one in found] == [f"of day {day}" for day in (7, 6, 5, 4, 3)]


def test_what_was_brought_and_is_exchanged_is_kept_from_the_share(modules, resolve, tmp_path, authorities):
    layer = {"pki": {"directory": str(tmp_path / "pki"), "authorities": {"front-proxy": {"managed": False}}}}
    pki = resolve(ONE, layer, node=None)["pki"]
    brought = tmp_path / "pki/brought"
    brought.mkdir(parents=True)
    for name in ("front-proxy-ca.crt", "front-proxy-client.crt", "front-proxy-client.key"):
        (brought / name).write_text(f"the first {name}")
    modules["k8s_pki.make"](pki)
    (brought / "front-proxy-ca.crt").write_text("another")
    modules["k8s_pki.make"](pki)
    (path,) = modules["k8s_kept.listed"](str(tmp_path / "pki"))
    assert path.endswith(f"hosts/controller-1/{PKI}/front-proxy-ca.crt")
    assert Path(path).read_text() == "the first front-proxy-ca.crt"


@pytest.mark.parametrize("name", ["authorities/kubernetes-ca.key", "shared/service-account.key", "shared/encryption-key1"])
def test_a_lost_key_is_restored_from_a_backup_that_fits(master, tmp_path, name):
    backup = tmp_path / "backup"
    shutil.copy(master.root / name, backup)
    (master.root / name).unlink()
    with pytest.raises(CommandExecutionError, match=f"{name} is lost .* k8s_kept.restore {master.root} {name}"):
        master.make()
    (tmp_path / "wrong").write_text(master.text("authorities/etcd-ca.key"))
    restore = master.modules["k8s_kept.restore"]
    with pytest.raises(CommandExecutionError, match="not an encryption key|does not belong to"):
        restore(str(master.root), name, str(tmp_path / "wrong"))
    assert not (master.root / name).exists()
    assert restore(str(master.root), name, str(backup)) == f"{master.root}/{name} was restored from {backup}."
    assert master.make() == {}
    assert (master.root / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["signer-ca.key", "service-account.key", "encryption-key1"])
def test_what_a_minion_has_a_share_of_is_restored_without_a_backup(master, name):
    place = next(path for path in master.root.glob(f"*/{name}"))
    text = place.read_text()
    place.unlink()
    with pytest.raises(CommandExecutionError, match=f"` from {master.root}/hosts/controller-1/{PKI}/{name}"):
        master.make()
    master.modules["k8s_kept.restore"](str(master.root), str(place.relative_to(master.root)))
    assert place.read_text() == text
    assert master.make() == {}


@pytest.mark.parametrize("name", CAS)
def test_a_lost_certificate_of_a_ca_is_never_signed_anew_and_comes_back_from_a_share(master, name):
    path = master.root / f"authorities/{name}-ca.crt"
    text = path.read_text()
    path.unlink()
    share = f"{master.root}/hosts/controller-1/{PKI}/{name}-ca.crt"
    for judge in (master.make, lambda: master.modules["k8s_pki.differences"](master.pki)):
        with pytest.raises(CommandExecutionError, match=f"{name}-ca.crt is lost .but {share} exists.* from {share}"):
            judge()
    assert not path.exists()
    master.modules["k8s_kept.restore"](str(master.root), f"authorities/{name}-ca.crt")
    assert path.read_text() == text
    assert master.make() == {}


def test_a_bundle_of_a_rotation_is_no_source_for_a_lost_certificate(master):
    list(master.run(["kubernetes"], until="trust"))
    (master.root / "authorities/kubernetes-ca.crt").unlink()
    with pytest.raises(CommandExecutionError, match="kubernetes-ca.crt FILE`"):
        master.make()


def test_a_first_run_cut_off_between_a_cas_key_and_its_certificate_goes_on(modules, resolve, tmp_path, kill, monkeypatch):
    pki = resolve(ONE, {"pki": {"directory": str(tmp_path / "pki")}}, node=None)["pki"]
    kill(2)
    with pytest.raises(Killed):
        modules["k8s_pki.make"](pki)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "pki/authorities").glob("k*")] == ["kubernetes-ca.key"]
    modules["k8s_pki.make"](pki)
    assert modules["k8s_pki.differences"](pki) == {}


@pytest.mark.parametrize("name", ["authorities/signer-ca.key", "authorities/etcd-ca.crt", "shared/encryption-key1"])
@pytest.mark.parametrize("place", ["hosts", "kept/20260101T000000Z/hosts"])
def test_a_share_shows_what_is_lost_under_the_name_that_the_pillar_gives_it_and_when_it_is_only_kept(
    modules, resolve, tmp_path, name, place
):
    file = name.rpartition("/")[2]
    layer = {"pki": {"directory": str(tmp_path / "pki"), "files": {file: f"our-{file}"}}}
    pki = resolve(ONE, layer, node=None)["pki"]
    modules["k8s_pki.make"](pki)
    for lost in (tmp_path / "pki").glob(f"{name.rpartition('.')[0]}.*" if "." in name else name):
        lost.unlink()
    (tmp_path / "pki" / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "pki/hosts").rename(tmp_path / "pki" / place)
    with pytest.raises(CommandExecutionError, match=f"{place}/controller-1/{PKI}/our-.* exists"):
        modules["k8s_pki.make"](pki)


def test_without_anything_that_fits_restore_says_so(master):
    (master.root / "authorities/kubernetes-ca.key").unlink()
    with pytest.raises(CommandExecutionError, match="nothing on this master is known to fit it"):
        master.modules["k8s_kept.restore"](str(master.root), "authorities/kubernetes-ca.key")


def test_a_pair_that_was_mixed_up_is_restored_from_what_is_kept(master):
    list(master.run(["kubernetes"]))
    old = kept(master, "authorities/kubernetes-ca.crt")[0]
    new = master.text("authorities/kubernetes-ca.key")
    (master.root / "authorities/kubernetes-ca.crt").write_text(old)  # by a careless hand
    with pytest.raises(CommandExecutionError, match="kubernetes-ca.key is not the key of .* from .*/kept/"):
        master.make()
    master.modules["k8s_kept.restore"](str(master.root), "authorities/kubernetes-ca.key")
    assert new in kept(master, "authorities/kubernetes-ca.key")
    assert_right(master, "signer", master.text("authorities/signer-ca.crt"))


@pytest.mark.parametrize("name", ["hosts/controller-1/x", "../x", "authorities/../../x", "authorities/"])
def test_only_what_cannot_be_made_again_is_restored(master, name):
    with pytest.raises(Exception, match="expected authorities/NAME or shared/NAME"):
        master.modules["k8s_kept.restore"](str(master.root), name, "/etc/hostname")


@pytest.mark.parametrize("text", [b"`step: sign`", b"step: [", b"\0", b"\xff", b"step: 2026-99-99", b"nonsense"])
def test_a_step_that_cannot_be_read_is_one_sentence_with_what_to_write(master, node, text):
    list(master.run(["signer"], until="trust"))
    path = master.root / "authorities/signer-ca.rotation"
    path.write_bytes(text)
    said = (
        f"{path}: expected a step (trust, sign, drop). Restore it from a backup, or write into it, and nothing else, step: trust"
    )
    assert master.plan("signer")["fault"] == said
    assert master.modules["k8s_rotation.status"](str(master.root)) == {"signer": said}
    for state, more in (("managed", {}), ("rotated", {"authorities": ["signer"], "step": "sign"})):
        ret = node.state(f"k8s_pki.{state}", str(master.root), pki=master.pki, **more)
        assert (ret.result, ret.comment) == (False, said)
    path.write_text("step: trust")
    assert master.plan("signer")["steps"] == list(STEPS)


def test_a_directory_that_is_gone_is_made_again_by_a_restore_and_a_line_break_ends_no_key(master, tmp_path):
    restore, backup = master.modules["k8s_kept.restore"], tmp_path / "backup"
    backup.write_text(master.text("shared/encryption-key1") + "\n")
    shutil.rmtree(master.root / "shared")
    restore(str(master.root), "shared/encryption-key1", str(backup))
    assert master.text("shared/encryption-key1") == backup.read_text()
    assert (master.root / "shared").stat().st_mode & 0o777 == 0o700
    backup.write_text("\n")
    with pytest.raises(CommandExecutionError, match="not an encryption key"):
        restore(str(master.root), "shared/encryption-key1", str(backup))
    backup.write_text("c2VjcmV0")
    with pytest.raises(CommandExecutionError, match=f"{tmp_path}/none: there is no such directory. Mount it"):
        restore(str(tmp_path / "none"), "shared/encryption-key1", str(backup))
