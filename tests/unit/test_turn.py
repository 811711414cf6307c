"""The turn: whom it asks before something that serves is interrupted, against real TLS servers on the loopback."""

import http.server
import ssl
import threading
import time

import pytest
from salt.exceptions import CommandExecutionError

A = "kube-apiserver"


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


def test_neighbours_are_waited_for_as_long_as_the_pillar_says(node, rows):
    node.fake("k8s_turn.refusals", return_value=["controller-2 is not ready (/readyz said 500)"])
    row = rows({"rollout": {"turn": {"neighbours_timeout_s": 0}}})[A]
    began = time.monotonic()
    with pytest.raises(CommandExecutionError) as raised:
        node.modules["k8s_turn.neighbours_ready"](row)
    assert time.monotonic() - began < 5
    assert str(raised.value).startswith(
        "controller-2 is not ready (/readyz said 500): one more would be missing, so nothing was touched. Waited 0 s "
        "(kubernetes_controller:rollout:turn:neighbours_timeout_s). To go on all the same, once: "
    )
    assert rows()[A]["turn"]["neighbours_timeout_s"] == 60
