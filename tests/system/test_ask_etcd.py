"""etcd asked with a declared client certificate: a real member on the loopback, real certificates that do not fit."""

import subprocess
import time

import pytest
from salt.exceptions import CommandExecutionError


@pytest.fixture(scope="module")
def member(real_binaries, authorities, tmp_path_factory):
    """The port of a one-member etcd that wants client certificates."""
    directory = tmp_path_factory.mktemp("member")
    pair = authorities["etcd"].issue("etcd", ["serverAuth", "clientAuth"], ["127.0.0.1"])
    for name, text in {"ca": authorities["etcd"].crt, "crt": pair.crt, "key": pair.key}.items():
        (directory / name).write_text(text)
    client, peer = "https://127.0.0.1:23790", "http://127.0.0.1:23800"
    flags = {
        "data-dir": directory / "data", "listen-client-urls": client, "advertise-client-urls": client, "listen-peer-urls": peer,
        "client-cert-auth": "true", "trusted-ca-file": directory / "ca",
        "cert-file": directory / "crt", "key-file": directory / "key",
    }  # fmt: skip
    command = [real_binaries["etcd"], *(f"--{flag}={value}" for flag, value in flags.items())]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield client
    process.kill()
    process.wait()


@pytest.fixture
def ask(node, rows, real_binaries, member):
    """Return a function: what is said of these etcd servers, for the material that the pillar has by now."""

    def asked(*servers, function="k8s_preflight.etcd", serves=True, managed=False, **material):
        node.opts["pillar"]["kubernetes_controller_pki"] |= material
        node.fake("k8s_health.serves", return_value=serves)
        components = rows({"etcd": {"managed": managed, "servers": list(servers or [member])}})
        row = components["kube-apiserver"] = {**components["kube-apiserver"], "etcdctl": str(real_binaries["etcdctl"])}
        directory = node.modules["k8s_generation.draft"](row)
        try:
            if function == "k8s_preflight.etcd":
                return node.modules[function](components, directory)
            return node.modules[function](row, directory=directory)
        finally:
            subprocess.run(["rm", "-r", directory], check=True)

    deadline = time.monotonic() + 20
    while asked() and time.monotonic() < deadline:
        time.sleep(0.2)
    return asked


def test_a_declared_certificate_that_etcd_takes_passes(ask):
    assert ask() == []


@pytest.mark.parametrize(("serves", "managed", "refused"), [(True, True, True), (False, False, True), (False, True, False)])
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [("alien", "alert unknown ca"), ("expired", "alert certificate expired"), ("server", "alert bad certificate")],
)
def test_a_wrong_client_certificate_is_refused_with_etcds_reason(
    ask, authorities, new_authority, wrong, reason, serves, managed, refused
):
    pair = {
        "alien": lambda: new_authority("alien").issue("x"),
        "expired": lambda: authorities["etcd"].issue("x", days=(-5, -1)),
        "server": lambda: authorities["etcd"].issue("x", ["serverAuth"]),
    }[wrong]()
    material = {"apiserver-etcd-client.crt": pair.crt, "apiserver-etcd-client.key": pair.key}
    found = ask(serves=serves, managed=managed, **material)
    assert bool(found) is refused, found
    for line in found:
        assert line.startswith(
            "kubernetes_controller:etcd:servers: 0 of 1 answer the declared client certificate of kube-apiserver"
        )
        assert reason in line
        assert "An API server with it would reach no etcd: declare a certificate that a CA of etcd's" in line


def test_a_majority_is_enough_and_less_is_refused_while_this_node_serves(ask, member):
    dead = ["https://127.0.0.1:1", "https://127.0.0.1:2"]
    assert ask(member, f"{member}/", dead[0]) == []
    (line,) = ask(member, *dead)
    assert "1 of 3 answer" in line
    assert "https://127.0.0.1:1: Connection refused" in line
    assert "so let etcd answer first: `salt 'controller-*' k8s_health.status` says which" in line
    assert ask(member, *dead, serves=False) == []
    assert ask(*dead, serves=False) == []


def test_a_ca_that_did_not_sign_etcds_certificate_is_told(ask, authorities):
    (line,) = ask(**{"etcd-ca.crt": authorities["front-proxy"].crt})
    assert "certificate verify failed (TLS)" in line


def test_what_was_put_is_got_and_a_reason_is_an_exception(node, rows, real_binaries, ask, member):
    ask()
    row = {**rows({"etcd": {"managed": False, "servers": [member]}})["kube-apiserver"], "etcdctl": str(real_binaries["etcdctl"])}
    with pytest.raises(CommandExecutionError, match="no generation of kube-apiserver with access to etcd is live here"):
        node.modules["k8s_etcdctl.get"](row, "/a/")
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
    node.modules["k8s_etcdctl.put"](row, "/a/b", '{"x": "ü"}')
    node.modules["k8s_etcdctl.put"](row, "/b", "c")
    assert node.modules["k8s_etcdctl.get"](row, "/a/") == {"/a/b": '{"x": "ü"}'}
    with pytest.raises(CommandExecutionError, match="nowhere: No such file or directory"):
        node.modules["k8s_etcdctl.get"]({**row, "etcdctl": "/nowhere"}, "/a/")
