"""The turn: whom it asks before something that serves is interrupted, against real TLS servers on the loopback."""

import http.server
import ssl
import threading
import time
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

A, S = "kube-apiserver", "kube-scheduler"


@pytest.fixture
def server(tmp_path, authorities):
    """Return a function that starts an HTTPS server on the loopback; it answers ``status``, without a client ``nobody``."""
    servers = []

    def start(status=200, nobody=None, required=False, authority="kubernetes"):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                known = self.connection.getpeercert()
                self.send_response(status if known or nobody is None else nobody)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        pair = authorities[authority].issue("server", ["serverAuth"], ["127.0.0.1"])
        pem, trusted = tmp_path / "server.pem", tmp_path / "trusted.crt"
        pem.write_text(pair.crt + pair.key)
        trusted.write_text(authorities[authority].crt)
        one = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(trusted))
        context.load_cert_chain(pem)
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        one.socket = context.wrap_socket(one.socket, server_side=True)
        threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(one)
        return one.server_port

    yield start
    for one in servers:
        one.shutdown()
        one.server_close()


@pytest.fixture
def prepared(node, rows):
    """Return a function: a row with its only neighbour on the loopback, and its prepared generation; nothing is live."""

    def made(name, port, *layers, key="port", section=None):
        section = section or {A: "apiserver", "etcd": "etcd", S: "scheduler"}[name]
        row = rows({section: {key: port}}, *layers)[name]
        row |= {"address": "127.0.0.1", "neighbours": {"controller-2": "127.0.0.1"}}
        return row, f"{row['home']}/generations/{node.modules['k8s_generation.prepare'](row)}"

    return made


def test_neighbours_are_waited_for_as_long_as_the_pillar_says(node, prepared, server):
    row, _ = prepared(A, server(status=500), {"rollout": {"turn": {"neighbours_timeout_s": 0.5}}})
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
    began = time.monotonic()
    with pytest.raises(CommandExecutionError) as raised:
        node.modules["k8s_turn.neighbours_ready"](row)
    assert time.monotonic() - began > 0.5
    assert str(raised.value).startswith(
        "controller-2 is not ready (/readyz said 500). Another API server would be down. Nothing was changed. Waited 0.5 s "
        "(kubernetes_controller:rollout:turn:neighbours_timeout_s). Let it serve first: `salt 'controller-*' k8s_health.status` "
        "says what it lacks. To go on all the same, once: "
    )


def test_a_neighbour_is_asked_at_the_declared_port_and_at_that_of_now(node, prepared, server):
    """As where ``apiserver:port`` changes: some neighbours have had their turn, others not yet."""
    here, there = server(), server(status=500)
    live, _ = prepared(A, here)
    node.modules["k8s_generation.promote"](live["home"], node.modules["k8s_generation.prepare"](live))
    assert node.modules["k8s_turn.refusals"](prepared(A, 1)[0]) == []
    assert node.modules["k8s_turn.refusals"](prepared(A, here)[0]) == []
    live, _ = prepared(A, there)
    node.modules["k8s_generation.promote"](live["home"], node.modules["k8s_generation.prepare"](live))
    (said,) = node.modules["k8s_turn.refusals"](prepared(A, 1)[0])
    assert said.startswith("controller-2 is not ready (")
    assert said.endswith("; /readyz said 500)")


def test_what_runs_and_is_silent_for_a_moment_serves(node, prepared, server):
    row, _ = prepared(A, 1)
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
    process = node.fake("k8s_component.process", return_value={"pid": 7})
    began = time.monotonic()
    assert node.modules["k8s_health.serves"](row, patience_s=1) is False
    assert time.monotonic() - began >= 1
    process.return_value = {"pid": 0}
    assert node.modules["k8s_health.serves"](row, patience_s=60) is False


def test_a_turn_whose_holder_cannot_be_told_is_given_back(node, prepared):
    row, _ = prepared(A, 6443)
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
    etcdctl = Path(row["home"]) / "etcdctl"
    etcdctl.write_text("#!/bin/sh\necho /the/key/lease\nexec sleep 60\n")
    etcdctl.chmod(0o755)
    node.fake("k8s_etcdctl.put", side_effect=CommandExecutionError("etcdserver: no leader"))
    with pytest.raises(
        CommandExecutionError, match="no leader; nothing was touched. Nothing goes on without that answer"
    ) as told:
        node.modules["k8s_turn.take"](row | {"etcdctl": str(etcdctl)})
    assert "ignore" not in str(told.value)
    assert node.modules.pack["__context__"]["k8s_turn"] == {}


def test_the_turn_for_etcd_is_kept_by_the_neighbours_too_and_each_other_question_is_for_the_own_member_alone(node, prepared):
    """Else the turn ends while the member that holds it restarts, and its failure counts as one of the network."""
    row, _ = prepared("etcd", 2379, key="client_port")
    row |= {"address": "10.8.0.101", "neighbours": {"controller-2": "10.8.0.102", "controller-3": "fd00::3"}}
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
    own = node.modules["k8s_etcdctl.environment"](row)
    assert own["ETCDCTL_ENDPOINTS"] == "https://10.8.0.101:2379"
    etcdctl, asked = Path(row["home"]) / "etcdctl", Path(row["home"]) / "asked"
    etcdctl.write_text(
        f'#!/bin/sh\necho "$ETCDCTL_ENDPOINTS" >>{asked}\ncase "$*" in\n'
        "*get*) echo '{}' ;;\n*lock*) echo /the/key/lease; exec sleep 60 ;;\nesac\n"
    )
    etcdctl.chmod(0o755)
    row |= {"etcdctl": str(etcdctl)}
    turn = node.modules["k8s_turn.take"](row)  # a lock and a put
    node.modules["k8s_etcdctl.get"](row, "/a/")
    assert node.modules["k8s_turn.held"](turn) is True
    node.modules["k8s_turn.release"](turn)
    assert asked.read_text().splitlines() == ["https://10.8.0.101:2379,https://10.8.0.102:2379,https://[fd00::3]:2379"] * 3
    assert node.modules["k8s_etcdctl.environment"](row) == own


def test_the_turn_for_an_api_server_is_kept_by_the_servers_that_it_has_itself(node, prepared):
    row, staged = prepared(A, 6443)
    assert node.modules["k8s_etcdctl.whole"](row, staged) == node.modules["k8s_etcdctl.environment"](row, staged)


# -- what is adopted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "serves"),
    [
        ({}, True),
        ({"status": 403}, True),  # it does not answer nobody
        ({"status": 500}, False),
        ({"required": True}, True),  # it answers only whom it knows
        (None, False),
    ],
)
def test_what_is_to_be_adopted_serves_when_it_answers_anything_but_its_own_error(node, prepared, server, answers, serves):
    row, staged = prepared(A, 1 if answers is None else server(**answers))
    assert node.modules["k8s_health.foreign_serves"](row, staged) is serves


@pytest.mark.parametrize(("status", "serves"), [(200, True), (503, False)])
def test_an_etcd_to_be_adopted_is_asked_as_the_member_that_replaces_it(node, prepared, server, status, serves):
    row, staged = prepared("etcd", server(status=status, required=True, authority="etcd"), key="client_port")
    assert node.modules["k8s_health.foreign_serves"](row, staged) is serves


@pytest.mark.parametrize("component", [A, S])
def test_neighbours_that_answer_no_strangers_are_asked_as_the_api_server_where_something_is_adopted(
    node, prepared, server, component
):
    port = server(nobody=401)
    api, staged = prepared(A, port)
    if component == S:
        node.modules["k8s_generation.promote"](api["home"], node.modules["k8s_generation.prepare"](api))
        row, staged = prepared(S, port, section="apiserver")
    else:
        row = api
    assert node.modules["k8s_turn.refusals"](row, staged) == []


def test_the_turn_is_asked_for_with_the_identity_that_is_only_prepared(node, prepared):
    row, staged = prepared(A, 6443)
    environment = node.modules["k8s_etcdctl.environment"](row, staged)
    assert environment["ETCDCTL_CERT"] == f"{staged}/etcd-client.crt"
    with pytest.raises(CommandExecutionError, match="no generation of kube-apiserver with access to etcd is live here"):
        node.modules["k8s_etcdctl.environment"](prepared(S, 10259)[0], staged)


def test_without_an_api_server_of_the_formula_there_is_no_neighbour_to_ask(node, rows):
    row = rows({"apiserver": {"enabled": False}})[S]
    assert row["neighbours"] and row["api"] is None
    assert node.modules["k8s_turn.refusals"](row) == []
