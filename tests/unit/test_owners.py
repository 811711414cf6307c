"""Owners and modes of what is live: who gets what, what is left alone, and whatever the umask is."""

import grp
import os
import pwd
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError


class Place:
    """A component's row on disk, with what its process would have written; ``of`` tells owner and mode of a path."""

    def __init__(self, minion, row):
        self.minion, self.row, self.home = minion, row, Path(row["home"])
        self.directory = Path(next(iter(row["directories"])))
        self.log = self.directory / ("audit.log" if row["name"] == "kube-apiserver" else "member/wal/0.wal")

    def __getattr__(self, name):
        return self.minion.modules[f"k8s_owners.{name}"]

    def live(self, row=None):
        """Prepare and promote what a row declares; return its generation's directory."""
        generation = self.minion.modules["k8s_generation.prepare"](row or self.row)
        self.minion.modules["k8s_generation.promote"](row["home"] if row else self.row["home"], generation)
        return self.home / "generations" / generation

    def write(self, path=None, owner="daemon"):
        """Write a file as an account does, with the directories above it."""
        path = path or self.log
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text("written")
        for one in [path, *(one for one in path.parents if one != self.directory and self.directory in one.parents)]:
            os.chown(one, *ids(owner))
            one.chmod(0o700 if one.is_dir() else 0o600)
        return path


def ids(name):
    return pwd.getpwnam(name).pw_uid, grp.getgrnam(name).gr_gid


def of(path):
    stat = os.lstat(path)
    return f"{pwd.getpwuid(stat.st_uid)[0]}:{grp.getgrgid(stat.st_gid)[0]} {stat.st_mode & 0o7777:04o}"


@pytest.fixture
def api(node, rows):
    return Place(node, rows()["kube-apiserver"])


@pytest.fixture
def etcd(node, rows):
    return Place(node, rows()["etcd"])


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_whatever_the_umask_is_a_component_can_pass_to_its_files(api, umask, tmp_path):
    api.row["home"] = str(tmp_path / "deep/er/kubernetes")
    api.home = Path(api.row["home"])
    directory = api.live()
    assert [of(path) for path in (api.home.parent, api.home, directory.parent)] == [
        "root:root 0755", "root:root 0711", "root:root 0711"
    ]  # fmt: skip
    assert of(directory) == "root:daemon 0750"
    assert of(directory / "start") == "root:daemon 0750"
    assert of(api.directory) == "daemon:daemon 0750"
    assert of(api.directory.parent) == "root:root 0755"
    assert api.wrong(api.row) == {}


def test_what_is_prepared_for_another_account_changes_nothing_that_is_there(api, rows, helpers):
    api.live()
    api.write()
    os.chown(api.home, *ids("games"))  # as an earlier release of the formula left it
    before = helpers.tree(api.home.parent) | helpers.tree(api.directory)
    other = rows({"apiserver": {"user": "bin", "group": "bin"}})["kube-apiserver"]
    name = api.minion.modules["k8s_generation.prepare"](other)
    after = helpers.tree(api.home.parent) | helpers.tree(api.directory)
    assert of(api.home / "generations" / name / "start") == "root:bin 0750"
    assert {path: after[path] for path in before} == before


def test_what_a_component_writes_goes_over_with_the_promotion_and_back(api, rows):
    api.live()
    rotated = api.write(api.directory / "audit-1.log")
    former, other = api.home / "live", rows({"apiserver": {"user": "bin", "group": "bin"}})["kube-apiserver"]
    former, written = os.path.basename(former.readlink()), [api.directory, api.write(), rotated]
    api.live(other)
    assert api.account(str(api.home)) == {"user": "bin", "group": "bin"}
    api.belong(other)
    assert [of(path) for path in written] == ["bin:bin 0750", "bin:bin 0600", "bin:bin 0600"]
    assert api.wrong(other) == {}
    api.minion.modules["k8s_generation.promote"](str(api.home), former)
    api.belong(other)  # the row is still the declared one, on the way back
    assert [of(path) for path in written] == ["daemon:daemon 0750", "daemon:daemon 0600", "daemon:daemon 0600"]


DAMAGE = {
    "home's group": ("{home}", ("root", "games"), 0o750),
    "home's mode": ("{home}", ("root", "root"), 0o700),
    "the generations' group": ("{home}/generations", ("root", "games"), 0o750),
    "the generation's mode": ("{live}", ("root", "daemon"), 0o700),
    "a file's owner": ("{live}/start", ("games", "games"), 0o750),
    "a key that all may read": ("{live}/tls.key", ("root", "daemon"), 0o644),
    "a file that nobody may read": ("{live}/encryption.yaml", ("root", "daemon"), 0),
    "the directory's owner": ("{directory}", ("games", "games"), 0o750),
    "the directory's mode": ("{directory}", ("daemon", "daemon"), 0o755),
    "the log's owner": ("{log}", ("root", "root"), 0o600),
    "the log's group": ("{log}", ("daemon", "games"), 0o600),  # with it a new log cannot be given what the full one had
    "the log's mode": ("{log}", ("daemon", "daemon"), 0o400),
    "the owner of a former log": ("{directory}/audit-1.log", ("games", "games"), 0o600),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_astray_is_told_and_mended_where_it_is(api, damage, helpers):
    directory = api.live()
    api.write(api.directory / "audit-1.log")
    places = {"home": api.home, "live": directory, "directory": api.directory, "log": api.write()}
    path, owner, mode = DAMAGE[damage]
    path = Path(path.format(**places))
    assert api.wrong(api.row) == {}
    before, inode = of(path), path.stat().st_ino
    content = {one: one.read_bytes() for one in directory.iterdir()}
    os.chown(path, ids(owner[0])[0], ids(owner[1])[1])
    path.chmod(mode)
    assert api.minion.modules["k8s_generation.differences"](api.row) == {}  # nothing that a process must be restarted for
    assert api.wrong(api.row) == {str(path): {"old": of(path), "new": before}}
    assert api.belong(api.row) == [str(path)]
    assert (of(path), path.stat().st_ino) == (before, inode)
    assert {one: one.read_bytes() for one in directory.iterdir()} == content
    assert api.wrong(api.row) == {}


@pytest.mark.parametrize("astray", [".", "member", "member/wal", "member/snap", "member/snap/db", "member/wal/0.wal"])
def test_data_of_etcd_that_root_restored_are_given_to_the_member(etcd, astray):
    etcd.live()
    etcd.write(etcd.directory / "member/snap/db")
    path = etcd.write() and etcd.directory / astray
    os.chown(path, 0, 0)
    assert list(etcd.wrong(etcd.row)) == [str(path)]
    etcd.belong(etcd.row)
    assert of(path).startswith("daemon:daemon ")


def test_what_is_not_the_components_is_left(api, tmp_path, helpers):
    api.live()
    secret, second = tmp_path / "shadow", api.directory / "second-name"
    secret.write_text("secret")
    os.link(secret, second)
    (api.directory / "to-it").symlink_to(secret)
    (api.directory / "lost+found").mkdir()
    api.write(api.directory / "compressed-by-root.gz", "root")
    before = helpers.tree(tmp_path)
    assert (api.wrong(api.row), api.belong(api.row)) == ({}, [])
    assert helpers.tree(tmp_path) == before


def test_a_link_that_a_component_may_have_laid_is_not_followed(api, tmp_path):
    api.live()
    (tmp_path / "etc").mkdir()
    os.rmdir(api.directory)
    api.directory.symlink_to(tmp_path / "etc")
    os.chown(api.directory, *ids("daemon"), follow_symlinks=False)
    assert api.wrong(api.row) == {str(api.directory): {"old": "a link that is not root's", "new": "daemon:daemon 0750"}}
    with pytest.raises(CommandExecutionError, match="a link that is not root's is not followed"):
        api.belong(api.row)
    assert of(tmp_path / "etc") == "root:root 0755"
    os.chown(api.directory, 0, 0, follow_symlinks=False)
    api.belong(api.row)
    assert of(tmp_path / "etc") == "daemon:daemon 0750"


def test_what_cannot_be_mended_is_told_after_all_that_can(api):
    api.live()
    other = {**api.row, "directories": {f"/proc/sys/kernel/{number}": "0750" for number in (1, 2)} | api.row["directories"]}
    os.chown(api.directory, *ids("games"))
    with pytest.raises(CommandExecutionError, match=r"/proc/sys/kernel/1: .*; it is missing, and has to be daemon.*1 more"):
        api.belong(other)
    assert of(api.directory) == "daemon:daemon 0750"


def test_an_account_that_is_gone_is_a_sentence_and_nothing_to_compare_with(api):
    unit = api.live() / "unit"
    unit.write_text(unit.read_text().replace("User=daemon", "User=renamed"))
    assert api.wrong(api.row) == {}
    with pytest.raises(CommandExecutionError, match=r"user renamed does not exist; apply kubernetes_controller\.prepare first"):
        api.belong(api.row)


def test_much_that_is_astray_is_told_in_short_and_mended_in_whole(api):
    api.live()
    for number in range(50):
        api.write(api.directory / f"audit-{number}.log", "games")
    found = api.wrong(api.row)
    assert (len(found), found["more"]) == (21, 30)
    assert len(api.belong(api.row)) == 50


def test_what_lay_in_a_closed_home_is_closed_by_itself_before_all_may_pass(api):
    api.live()
    (api.home / "ca.key").write_text("of another tool")
    (api.home / "ca.key").chmod(0o644)
    api.home.chmod(0o750)
    api.belong(api.row)
    assert [of(path) for path in (api.home, api.home / "ca.key")] == ["root:root 0711", "root:root 0640"]


def test_nothing_is_asked_where_nothing_is_live(api):
    assert (api.wrong(api.row), api.belong(api.row)) == ({}, [])


def test_what_is_made_is_on_disk_before_anything_is_put_there(node, tmp_path, monkeypatch):
    """With its mode: a loss of power leaves no directory that a link leads to and that is not there."""
    real, synced = os.fsync, []

    def fsync(handle):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        synced.append((path, {one.name: one.stat().st_mode & 0o777 for one in path.iterdir()}))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "opt/1.37.2/bin"
    assert node.modules["k8s_owners.make"](str(path), "0711") == [str(tmp_path / "opt"), str(tmp_path / "opt/1.37.2"), str(path)]
    assert synced == [(tmp_path, {"opt": 0o755}), (tmp_path / "opt", {"1.37.2": 0o755}), (path.parent, {"bin": 0o711})]
    node.modules["k8s_owners.make"](str(path))
    assert len(synced) == 3
