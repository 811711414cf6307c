"""
Shared by the tests without nodes: a minion's loader as Salt makes it from the checkout, real keys and certificates,
and a declared cluster. No daemon, no network; only systemd is ever replaced.
"""

import copy
import datetime
import http.server
import ipaddress
import itertools
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import salt._logging
import salt.config
import salt.state
import yaml

salt._logging.shutdown_temp_handler()  # it would tell all that was logged once more at the end

# Salt puts an import hook of Python 2's kind there, and pytest's importlib mode asks every hook for find_spec.
sys.meta_path[:] = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]

ROOT = Path(__file__).parents[1]
NODES = {"controller-1": "10.8.0.101", "controller-2": "10.8.0.102", "controller-3": "10.8.0.103"}
NUMBERS = itertools.count()
GRAINS = {"os": "Debian", "os_family": "Debian", "kernel": "Linux", "cpuarch": "x86_64", "osarch": "amd64", "init": "systemd"}


def over(base, *layers):
    """Return ``base`` with the dictionaries ``layers`` laid over it."""
    merged = copy.deepcopy(base)
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = over(merged[key], value) if both else copy.deepcopy(value)
    return merged


def tree(directory):
    """Return {path: (mode, uid, gid, link or content)} of all that is below ``directory``."""
    found = {}
    for path in sorted(Path(directory).rglob("*")):
        stat = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path)] = (oct(stat.st_mode), stat.st_uid, stat.st_gid, content)
    return found


@pytest.fixture(scope="session")
def helpers():
    return SimpleNamespace(over=over, tree=tree, root=ROOT)


# -- Salt -------------------------------------------------------------------------------------------------------------


class Minion:
    """A minion's execution modules, states and renderers, through Salt's own loader and state compiler."""

    def __init__(
        self, directory, pillar=None, name="controller-1", synced=True, test=False, file_roots=(), master=False, grains=None
    ):
        pillar = pillar or {"something": "else"}  # an empty one makes Salt ask a master
        opts = dict(salt.config.minion_config(None))
        for key in ("cachedir", "pki_dir", "sock_dir", "extension_modules", "conf_file", "log_file"):
            opts[key] = str(directory / "salt" / key)
        opts |= {
            "id": f"{name}_master" if master else name,
            "root_dir": str(directory / "salt"),
            "file_client": "local",
            "file_roots": {"base": [str(ROOT), *map(str, file_roots)]},
            "pillar_roots": {"base": []},
            "module_dirs": [str(ROOT / "_modules")] if synced else [],
            "states_dirs": [str(ROOT / "_states")] if synced else [],
            "grains": {**GRAINS, "id": name, **(grains or {})},
            "pillar": pillar,
            "saltenv": "base",
            "test": test,
        }
        if master:
            opts["__role"] = "master"
        if not synced:  # else the search for what is not there loads every module that Salt has
            opts["whitelist_modules"] = ["cp", "network", "saltutil", "slsutil", "state", "test"]
        # Loaders of one process share modules, __opts__ included, unless they are called differently.
        with mock.patch("salt.loader.lazy.LOADED_BASE_NAME", f"minion_{next(NUMBERS)}"):
            self.highstate = salt.state.HighState(opts, initial_pillar=pillar)
        self.compiler = self.highstate.state
        self.modules = self.compiler.functions
        self.opts = self.compiler.opts
        self._real = []

    def fake(self, name, side_effect=None, **kw):
        """Put a fake with the signature of the real function in its place, for states and modules alike."""
        real = next((function for _, known, function in self._real if known == name), self.modules[name].func)
        fake = mock.create_autospec(real, side_effect=side_effect, **kw)
        fake.__module__ = real.__module__
        for loader in (self.modules, self.modules.pack["__salt__"]):
            loader[name]  # so that the loader does not put the real one there later
            self._real.append((loader, name, loader._dict[name]))
            loader._dict[name] = fake
        return fake

    def reset(self, pillar):
        """Take away fakes and what modules remember, and give the minion another pillar."""
        while self._real:
            loader, name, function = self._real.pop()
            loader._dict[name] = function
        self.compiler.state_con.clear()
        self.opts["pillar"].clear()
        self.opts["pillar"].update(copy.deepcopy(pillar))

    def state(self, function, name, test=False, **arguments):
        """Run one state as Salt's compiler does; return what an operator sees of it."""
        module, _, fun = function.partition(".")
        low = {"state": module, "fun": fun, "name": name, "order": 1, "__id__": name, "__sls__": "test", "__env__": "base"}
        for loader in (self.compiler.states, self.modules, self.modules.pack["__salt__"]):
            loader.opts["test"] = test
        ret = self.compiler.call({**low, **copy.deepcopy(arguments)})
        assert "Traceback" not in str(ret["comment"]), ret["comment"]
        return SimpleNamespace(**{key: ret[key] for key in ("result", "changes", "comment")})

    def render(self, sls):
        """Return the text that Jinja makes of an SLS, and the data that Salt's YAML renderer makes of that."""
        path = ROOT / sls.replace(".", "/")
        path = path / "init.sls" if path.is_dir() else path.with_suffix(".sls")
        text = self.compiler.rend["jinja"](str(path), saltenv="base", sls=sls).read()
        return text, self.compiler.rend["yaml"](text, saltenv="base", sls=sls)

    def low(self, sls):
        """Return the states that an SLS and what it includes compile to, in their order, and what is wrong with them."""
        self.highstate.building_highstate = {}
        self.highstate.push_active()
        try:
            high, errors = self.highstate.render_highstate({"base": [sls]})
        finally:
            self.highstate.pop_active()
        high, more = self.compiler.reconcile_extend(high)
        errors += more + self.compiler.verify_high(high)
        high, more = self.compiler.requisite_in(high)
        if errors + more:
            return [], errors + more
        return self.compiler.compile_high_data(high)


@pytest.fixture
def minion(tmp_path):
    """Return a function that makes a minion with this pillar."""

    def make(pillar=None, **kw):
        return Minion(tmp_path, pillar, **kw)

    return make


@pytest.fixture(scope="session")
def modules(_node):
    """The execution modules of a minion, for functions that need no pillar."""
    return _node.modules


@pytest.fixture(params=[False, True], ids=["real", "testmode"])
def testmode(request):
    return request.param


# -- a declared cluster -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def defaults():
    return yaml.safe_load((ROOT / "kubernetes_controller/defaults.yaml").read_text())


@pytest.fixture(scope="session")
def declared():
    """The pillar key of three controllers that run etcd too."""
    return {"release": "1.37.2", "controllers": NODES, "interface": "tap0", "etcd": {"managed": True}}


@pytest.fixture(scope="session")
def resolve(modules, defaults, declared):
    """Return a function: the configuration of ``node`` (None: the cluster) for these layers over the declared pillar."""

    def resolved(*layers, node="controller-1", interfaces=None):
        pillar = over(declared, *layers)
        facts = None
        if node:
            addresses = [a for a in [pillar["controllers"].get(node)] if a]
            facts = {"id": node, "arch": "amd64", "interfaces": interfaces or {"lo": ["127.0.0.1"], "tap0": addresses}}
        return modules["k8s_config.resolve"](defaults, pillar, facts)

    return resolved


# -- keys and certificates --------------------------------------------------------------------------------------------

NOW = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)


def _pem(thing):
    from cryptography.hazmat.primitives import serialization as s

    if hasattr(thing, "public_bytes") and not hasattr(thing, "private_bytes"):
        return thing.public_bytes(s.Encoding.PEM).decode()
    return thing.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()).decode()


class Authority:
    """A CA with a key of its own, self-signed or below another one."""

    def __init__(self, name, parent=None, days=(-1, 3650)):
        self.private, self.x509 = _certificate(name, parent, days=days, authority=True)
        self.crt, self.key = _pem(self.x509), _pem(self.private)

    def issue(self, name, usage=("clientAuth",), sans=(), days=(-1, 365)):
        """Return a certificate (``crt``) and its ``key``, valid from and until so many days from now."""
        private, certificate = _certificate(name, self, usage, sans, days)
        return SimpleNamespace(crt=_pem(certificate), key=_pem(private))


def _certificate(name, parent, usage=(), sans=(), days=(-1, 365), authority=False):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    oids = {"serverAuth": x509.ExtendedKeyUsageOID.SERVER_AUTH, "clientAuth": x509.ExtendedKeyUsageOID.CLIENT_AUTH}
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    since, until = (NOW + datetime.timedelta(days=day) for day in days)
    builder = x509.CertificateBuilder().subject_name(subject).public_key(key.public_key())
    builder = builder.issuer_name(parent.x509.subject if parent else subject).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(since).not_valid_after(until)
    builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([oids[one] for one in usage]), critical=False)
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(san) for san in sans]), critical=False)
    return key, builder.sign(parent.private if parent else key, hashes.SHA256())


def _general_name(text):
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


@pytest.fixture(scope="session")
def new_authority():
    return Authority


@pytest.fixture(scope="session")
def authorities():
    """The CAs of a cluster, made once."""
    return {name: Authority(f"{name}-ca") for name in ("kubernetes", "signer", "etcd", "front-proxy")}


@pytest.fixture(scope="session")
def material(authorities, defaults):
    """All certificate material of controller-1, by the names that its pillar has them under."""
    from cryptography.hazmat.primitives import serialization as s

    files = {f"{name}-ca.crt": authority.crt for name, authority in authorities.items()}
    files["signer-ca.key"] = authorities["signer"].key
    for name, row in defaults["pki"]["certificates"].items():
        sans = ["localhost", "127.0.0.1", "controller-1", NODES["controller-1"]]
        pair = authorities[row["authority"]].issue(row["common_name"], row["usage"], sans)
        files |= {f"{name}.crt": pair.crt, f"{name}.key": pair.key}
    service_account = authorities["kubernetes"].issue("service-account")
    private = s.load_pem_private_key(service_account.key.encode(), None)
    public = private.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    files |= {"service-account.key": service_account.key, "service-account.pub": public.decode()}
    files["encryption-key1"] = "c2VjcmV0LW9mLXRoZS1maXJzdC1rZXktMzItYnl0ZXM="
    files["encryption-key2"] = "c2VjcmV0LW9mLXRoZS1zZWNvbmQta2V5LTMyLWJ5dGU="
    return files


# -- a node's disk ----------------------------------------------------------------------------------------------------

BINARY = """\
#!/bin/sh
# Answers as a component's --help does.
known="{known}"
for word; do
  case " $known --help " in *" ${{word%%=*}} "*) ;; *) echo "Error: unknown flag: $word" >&2; exit 1;; esac
done
for flag in $known; do echo "      $flag string   What it does."; done
"""


@pytest.fixture
def disk(tmp_path):
    """The part of a pillar that puts everything of a node below tmp_path, owned by a group that every Debian has."""
    owner = {"user": "daemon", "group": "daemon"}
    return {
        "conf_dir": str(tmp_path / "lib/kubernetes"),
        "bin_dir": str(tmp_path / "bin"),
        "release_dir": str(tmp_path / "opt/kubernetes"),
        "log_dir": str(tmp_path / "log"),
        "apiserver": owner,
        "controller_manager": {**owner, "conf_dir": str(tmp_path / "lib/kube-controller-manager")},
        "scheduler": {**owner, "conf_dir": str(tmp_path / "lib/kube-scheduler")},
        "etcd": {
            **owner,
            "conf_dir": str(tmp_path / "lib/etcd"),
            "data_dir": str(tmp_path / "lib/etcd-data"),
            "release_dir": str(tmp_path / "opt/etcd"),
        },
    }


@pytest.fixture
def rows(resolve, disk):
    """Return a function: the rows of controller-1's components on ``disk``, each with a binary that knows its flags."""

    def made(*layers, binaries=True):
        components = resolve(disk, *layers)["components"]
        for row in components.values() if binaries else ():
            path = Path(row["binary"])
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(BINARY.format(known=" ".join(f"--{flag}" for flag in [*row["settings"], "v", "profiling"])))
                path.chmod(0o755)
        return components

    return made


@pytest.fixture(scope="session")
def new_minion(tmp_path_factory):
    """Return a function that makes a minion to keep; ``reset`` gives it another pillar."""
    return lambda **kw: Minion(tmp_path_factory.mktemp("kept"), **kw)


@pytest.fixture(scope="session")
def _node(tmp_path_factory):
    return Minion(tmp_path_factory.mktemp("node"))


@pytest.fixture
def node(_node, material):
    """A minion that has the material of controller-1 in its pillar."""
    _node.reset({"kubernetes_controller_pki": material})
    yield _node
    _node.reset({"something": "else"})


@pytest.fixture
def apply(tmp_path):
    """
    Return a function that applies a state once, in test mode or for real.

    In test mode nothing below tmp_path may change; otherwise a second run must be quiet.
    """

    def once(testmode, minion, function, name, again=True, **arguments):
        before = tree(tmp_path)
        ret = minion.state(function, name, test=testmode, **arguments)
        if testmode:
            assert tree(tmp_path) == before
        elif again and ret.result:
            second = minion.state(function, name, **arguments)
            assert (second.result, second.changes) == (True, {}), second.comment
        return ret

    return once


# -- a mirror ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def mirror():
    """A real HTTP server on the loopback: ``files`` is what it has, ``asked`` what it was asked for."""
    files, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            broken = content is ConnectionAbortedError
            self.send_response(200)
            self.send_header("Content-Length", "1000" if broken else str(len(content)))
            self.end_headers()
            self.wfile.write(b"half" if broken else content)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"

        def row(name, directory, source=None, sums=None):
            return {
                "name": name,
                "directory": str(directory),
                "source": base + (source or f"/{name}"),
                "sums": base + (sums or f"/{name}.sha512"),
                "checksum": "",
                "checksum_key": f"kubernetes_controller:binaries:checksums:{name}",
                "mirror_key": "kubernetes_controller:binaries:mirror",
                "directory_key": "kubernetes_controller:release_dir",
                "release_dir": str(directory),
                "homes": [],
                "links": {},
                "adopt": False,
                "mode": "automatic",
                "runs": None,
                "members": {},
                "timeout_s": 5,
            }

        yield SimpleNamespace(files=files, asked=asked, row=row)
        server.shutdown()
