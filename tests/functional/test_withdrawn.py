"""What a slip in the pillar took out of the master's shares comes back, the same, with the right pillar."""

from pathlib import Path

import pytest

PKI = "kubernetes_controller_pki"
TWO = {"controllers": {"controller-2": "10.8.0.102"}}
GONE = {"controllers": {"controller-2": None}}


@pytest.fixture
def pki(resolve, tmp_path):
    """Return a function: the arguments of the state for a cluster of one or two, whose files are below tmp_path."""

    def declared(*layers):
        one = {"controllers": {"controller-2": None, "controller-3": None}, "pki": {"directory": str(tmp_path / "pki")}}
        return {"name": str(tmp_path / "pki"), "pki": resolve(one, *layers, node=None)["pki"]}

    return declared


@pytest.fixture
def share(tmp_path):
    """Return a function: {name: content} of the share of controller-2."""
    directory = tmp_path / f"pki/hosts/controller-2/{PKI}"
    return lambda: {path.name: path.read_text() for path in sorted(directory.glob("*"))}


def withdraw(node, pki):
    assert node.state("k8s_pki.managed", **pki(TWO)).result is True
    assert node.state("k8s_pki.managed", **pki(GONE)).result is True


def test_a_controller_that_is_declared_again_gets_what_it_had(node, apply, testmode, pki, share):
    node.state("k8s_pki.managed", **pki(TWO))
    before = share()
    node.state("k8s_pki.managed", **pki(GONE))
    assert share() == {}
    ret = apply(testmode, node, "k8s_pki.managed", **pki(TWO))
    pairs = {name for name in before if name.startswith("apiserver") or name.endswith("-server.crt")}
    assert pairs
    for path, change in ret.changes.items():
        assert change["old"] == ("declared again; taken back" if Path(path).name in pairs else change["old"])
    assert f"files {'would be' if testmode else 'were'} taken back" in ret.comment
    assert share() == ({} if testmode else before)


def test_what_does_not_fit_is_made_anew_and_a_renewal_by_force_ends_that_the_former_comes_back(node, pki, share, tmp_path):
    withdraw(node, pki)
    moved, kept = {"controllers": {"controller-2": "10.8.0.112"}}, tmp_path / "pki/kept"
    assert node.state("k8s_pki.managed", **pki(moved)).result is True
    assert list((kept / "withdrawn").rglob("apiserver.key"))
    node.state("k8s_pki.managed", force=True, **pki(moved))
    assert not list(kept.glob("withdrawn*/**/apiserver.key"))
    assert [path for path in kept.glob("2*/**/apiserver.key") if "controller-2" in str(path)]


SLIPS = {
    "domain": {"cluster": {"domain": "k8s.local"}},
    "range of services": {"cluster": {"service_cidr": "10.96.0.0/16"}},
    "endpoint": {"endpoint": {"host": "typo.example.org"}},
    "names": {"pki": {"certificates": {"apiserver": {"sans": ["DNS:only.this"]}}}},
    "address": {"controllers": {"controller-2": "10.8.0.112"}},
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_pillar_that_asked_for_other_certificates_leaves_nothing_behind(node, pki, tmp_path, helpers, slip):
    def all_but_kept():
        found = helpers.tree(tmp_path / "pki")
        return {path: what for path, what in found.items() if "/kept" not in path and "/.lock" not in path}

    node.state("k8s_pki.managed", **pki(TWO))
    before = all_but_kept()
    assert node.state("k8s_pki.managed", **pki(TWO, SLIPS[slip])).changes
    assert all_but_kept() != before
    second = {"endpoint": {"host": "another.example.org"}, **SLIPS["address"]}
    assert node.state("k8s_pki.managed", **pki(TWO, second)).changes
    ret = node.state("k8s_pki.managed", **pki(TWO))
    assert {change["old"] for change in ret.changes.values()} == {"declared again; taken back"}
    assert all_but_kept() == before
    assert node.state("k8s_pki.managed", **pki(TWO)).changes == {}
    assert node.state("k8s_pki.managed", **pki(TWO, second)).result is True
    assert node.state("k8s_pki.managed", **pki(TWO)).result is True
    assert all_but_kept() == before


def test_of_many_pillars_the_latest_four_come_back_and_none_is_lost(node, pki, share, tmp_path):
    shares = []
    for number in range(102, 108):
        assert node.state("k8s_pki.managed", **pki({"controllers": {"controller-2": f"10.8.0.{number}"}})).result is True
        shares.append(share()["apiserver.key"])
    ret = node.state("k8s_pki.managed", **pki({"controllers": {"controller-2": "10.8.0.103"}}))
    assert (ret.result, share()["apiserver.key"]) == (True, shares[1])
    assert {path.read_text() for path in (tmp_path / "pki").rglob("apiserver.key") if "controller-2" in str(path)} >= set(shares)


def test_a_renewal_by_force_takes_nothing_back(node, pki, share):
    node.state("k8s_pki.managed", **pki(TWO))
    before = share()
    node.state("k8s_pki.managed", **pki(GONE))
    node.state("k8s_pki.managed", force=True, **pki(TWO))
    assert share()["apiserver.key"] != before["apiserver.key"]


def test_a_run_that_was_cut_off_between_key_and_certificate_is_finished(node, pki, share, tmp_path):
    node.state("k8s_pki.managed", **pki(TWO))
    before = share()
    node.state("k8s_pki.managed", **pki(GONE))
    former = tmp_path / f"pki/kept/withdrawn/hosts/controller-2/{PKI}/scheduler.key"
    former.rename(tmp_path / f"pki/hosts/controller-2/{PKI}/scheduler.key")
    node.state("k8s_pki.managed", **pki(TWO))
    assert share() == before


def test_what_was_withdrawn_and_is_damaged_is_made_anew(node, pki, share, tmp_path):
    withdraw(node, pki)
    (tmp_path / f"pki/kept/withdrawn/hosts/controller-2/{PKI}/scheduler.key").write_text("no key\n")
    ret = node.state("k8s_pki.managed", **pki(TWO))
    assert ret.result is True, ret.comment
    assert "PRIVATE KEY" in share()["scheduler.key"]
