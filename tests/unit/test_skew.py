"""Versions and clocks: the rules as a table, and the asking against real TLS servers on the loopback."""

import http.server
import json
import ssl
import threading
import time

import pytest

A, C, S = "kube-apiserver", "kube-controller-manager", "kube-scheduler"


@pytest.mark.parametrize(
    ("declared", "live", "others", "says"),
    [
        ({A: "1.37.2"}, {}, {}, []),
        ({A: "1.37.2"}, {A: None}, {"b": None}, []),
        ({A: "1.37.2"}, {A: "1.37.2"}, {"b": "1.37.2"}, []),
        ({A: "1.37.2"}, {A: "1.36.3"}, {"b": "1.36.3"}, []),
        ({A: "1.37.1"}, {A: "1.37.2"}, {"b": "1.37.2"}, []),
        (
            {A: "1.37.2"},
            {A: "1.35.4"},
            {},
            ["2 minor releases from the live 1.35.4; one at a time is supported, go to 1.36"],
        ),
        (
            {A: "1.38.0"},
            {A: "1.35.4"},
            {},
            ["3 minor releases from the live 1.35.4; one at a time is supported, go to 1.36"],
        ),
        ({A: "1.37.2", S: "1.37.2"}, {A: "1.36.3", S: "1.35.0"}, {}, ["kube-scheduler 1.37.2 is 2 minor releases"]),
        ({A: "1.36.3"}, {A: "1.37.2"}, {}, ["kube-apiserver 1.36.3 would go back over a minor release, 1.37.2 is live"]),
        ({A: "1.35.3"}, {A: "1.37.2"}, {}, ["would go back over a minor release", "go to 1.36 first"]),
        ({A: "1.37.2"}, {}, {"b": "1.35.4", "c": "1.36.3"}, ["would be more than one minor release from that of b (1.35.4)"]),
        ({A: "1.35.4"}, {A: "1.36.3"}, {"b": "1.37.2"}, ["would go back over a minor", "from that of b (1.37.2)"]),
        ({C: "1.37.2"}, {A: "1.36.3", C: "1.36.3"}, {}, ["kube-controller-manager 1.37.2 would be newer than this node's"]),
        ({A: "1.37.2", C: "1.37.2", S: "1.37.2"}, {A: "1.36.3", C: "1.36.3", S: "1.36.3"}, {}, []),
        (
            {A: "1.36.3", C: "1.36.3", S: "1.36.3"},
            {A: "1.37.2", C: "1.37.2", S: "1.36.3"},
            {},
            ["release: kube-apiserver, kube-controller-manager 1.36.3 would go back over a minor release, 1.37.2 is live"],
        ),
        ({A: "2.0.0"}, {A: "1.37.2"}, {}, ["963 minor releases"]),
        ({A: "1.37.0-rc.1"}, {A: "1.36.3"}, {}, []),
        ({"etcd": "3.7.3"}, {"etcd": "3.5.9"}, {}, ["kubernetes_controller:etcd:release: etcd 3.7.3 is 2 minor"]),
        ({"etcd": "3.6.1"}, {"etcd": "3.7.3"}, {}, ["etcd 3.6.1 would go back over a minor release"]),
    ],
)
def test_releases_move_as_the_version_skew_policy_says(modules, declared, live, others, says):
    found = modules["k8s_skew.version_refusals"](declared, live, others)
    assert len(found) == len(says), found
    for part in says:
        assert any(part in line for line in found), found
    assert all(line.startswith("kubernetes_controller:") and '{"rollout": {"ignore": [' in line for line in found)
    assert modules["k8s_skew.version_refusals"](declared, live, others, ["skew", "downgrade"]) == []


def test_an_etcd_that_goes_back_is_told_so_before_the_override(modules):
    (said,) = modules["k8s_skew.version_refusals"]({"etcd": "3.6.16"}, {"etcd": "3.7.3"}, {})
    before, _, after = said.partition("say `etcdctl downgrade enable 3.6` on one controller, and wait until ")
    assert "3.7.3 is live" in before
    assert '"ignore"' not in before
    assert "shows storageVersion 3.6.0 for each member. After that, and not before: To go on all the same, once: pillar=" in after
    (said,) = modules["k8s_skew.version_refusals"]({A: "1.36.3"}, {A: "1.37.2"}, {})
    assert "etcdctl" not in said


def test_each_refusal_is_overruled_by_its_own_word(modules):
    both = ({A: "1.35.3"}, {A: "1.37.2"}, {})
    refusals = modules["k8s_skew.version_refusals"]
    assert ["downgrade" in line for line in refusals(*both, ignore=["skew"])] == [True]
    assert ['"skew"' in line for line in refusals(*both, ignore=["downgrade"])] == [True]


@pytest.mark.parametrize(
    ("live", "release", "refused"), [("1.36.3", "1.37.2", True), ("1.37.0", "1.37.2", False), (None, "1.37.2", False)]
)
def test_nothing_gets_newer_than_the_api_server_that_is_live(node, rows, live, release, refused):
    node.fake("k8s_generation.release", return_value=live)
    row = {**rows()[S], "release": release}
    said = node.modules["k8s_skew.newer_than_api"](row)
    assert bool(said) is refused
    assert node.modules["k8s_skew.newer_than_api"]({**row, "ignore": ["skew"]}) is None
    assert node.modules["k8s_skew.newer_than_api"](rows()[A]) is None


@pytest.mark.parametrize(("seconds", "refused"), [(0, False), (4, False), (-4, False), (7, True), (-7, True), (86400, True)])
def test_clocks_that_are_too_far_apart_are_named_both(modules, seconds, refused):
    answer = {"clock": 1000.0, "here": 1000.5 + seconds, "serves": True, "release": None, "said": ""}
    found = modules["k8s_skew.clock_refusals"]({"controller-2": answer, "c": {**answer, "clock": None}}, 5, here="controller-1")
    assert bool(found) is refused
    for line in found:
        way = "ahead of" if seconds > 0 else "behind"
        assert line.startswith(f"the clock of controller-1 is {abs(seconds)} s {way} that of controller-2 (at most 5 s, ")
        enough = f'"rollout": {{"preflight": {{"max_clock_skew_s": {abs(seconds) + 2}}}}}'
        assert line.endswith(f"NTP. To go on all the same, once: pillar='{{\"kubernetes_controller\": {{{enough}}}}}'.")


@pytest.fixture
def api_server(tmp_path, authorities):
    """Return a function that starts an API server's front on the loopback: status, version and how wrong its clock is."""
    servers = []

    def start(status=200, version="v1.36.3", clock=0, names=("127.0.0.1",)):
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append((self.path, self.headers["X-Remote-User"], bool(self.connection.getpeercert())))
                body = json.dumps({"gitVersion": version}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def date_time_string(self, timestamp=None):
                return super().date_time_string(time.time() + clock)

            def log_message(self, *args):
                pass

        pair = authorities["kubernetes"].issue("kube-apiserver", ["serverAuth"], names)
        pem, trusted = tmp_path / "server.pem", tmp_path / "front-proxy.crt"
        pem.write_text(pair.crt + pair.key)
        trusted.write_text(authorities["front-proxy"].crt)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(trusted))
        context.load_cert_chain(pem)
        context.verify_mode = ssl.CERT_REQUIRED
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server.server_port, asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("installed", [True, False])
def test_neighbours_are_asked_as_the_front_proxy_and_verified(node, rows, api_server, installed):
    port, asked = api_server(clock=-60)
    row = rows({"apiserver": {"port": port}})[A]
    row["neighbours"] = {"controller-2": "127.0.0.1"}
    generation, directory = node.modules["k8s_generation.prepare"](row), None
    if installed:
        node.modules["k8s_generation.promote"](row["home"], generation)
    else:
        assert node.modules["k8s_skew.neighbours"](row) == {}
        directory = f"{row['home']}/generations/{generation}"
    answer = node.modules["k8s_skew.neighbours"](row, directory)["controller-2"]
    assert asked == [("/version", "kubernetes-controller-formula", True)]
    assert (answer["release"], answer["serves"], answer["said"]) == ("1.36.3", True, "")
    assert answer["here"] - answer["clock"] == pytest.approx(60, abs=2)


@pytest.mark.parametrize(
    ("answers", "says", "serves"),
    [
        ({"status": 403}, "/version said 403", True),
        ({"names": ["10.9.9.9"]}, "CERTIFICATE_VERIFY_FAILED", False),
        (None, "refused", False),
    ],
)
def test_a_neighbour_that_does_not_tell_is_no_traceback(node, rows, api_server, answers, says, serves):
    port, _ = api_server(**(answers or {}))
    row = rows({"apiserver": {"port": port if answers else 1}})[A]
    row["neighbours"] = {"controller-2": "127.0.0.1"}
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
    answer = node.modules["k8s_skew.neighbours"](row)["controller-2"]
    assert (answer["release"], answer["serves"]) == (None, serves)
    assert says in answer["said"]
