"""What etcdctl is asked, and what is made of its answers."""

import json
import socket
import ssl
import threading

import pytest


@pytest.mark.parametrize(("leader", "leads"), [(7, True), (8, False), (None, False)])
def test_a_member_says_whether_it_leads(node, rows, tmp_path, leader, leads):
    components = rows()
    row = components["etcd"] = {**components["etcd"], "etcdctl": str(tmp_path / "etcdctl")}
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
    node.fake("k8s_config.load", return_value={"components": components})
    said = json.dumps([{"Status": {"header": {"member_id": 7}, "leader": leader}}]) if leader else "no answer"
    (tmp_path / "etcdctl").write_text(f"#!/bin/sh\necho '{said}'\n")
    (tmp_path / "etcdctl").chmod(0o755)
    assert node.modules["k8s_etcdctl.leads"]() is leads


MEMBERS = """#!/bin/sh
echo "$ETCDCTL_ENDPOINTS $*" >> {log}
case "$ETCDCTL_ENDPOINTS $*" in
*" endpoint status "*) ;;
*"move-leader b") exit {b_refuses} ;;
*) exit 0 ;;
esac
case $ETCDCTL_ENDPOINTS in
*101:* | *127.0.0.1:*) echo '[{{"Status": {{"header": {{"member_id": 10}}, "leader": {leader}, "raftIndex": 90}}}}]' ;;
*102:*) echo '[{{"Status": {{"header": {{"member_id": 11}}, "leader": {leader}, "raftIndex": 90}}}}]' ;;
*103:*) echo '[{{"Status": {{"header": {{"member_id": 12}}, "leader": {leader}, "raftIndex": 80}}}}]' ;;
esac
"""


@pytest.mark.parametrize(
    ("leader", "b_refuses", "asked"),
    [(10, 0, ["b"]), (10, 1, ["b", "c"]), (11, 0, [])],
    ids=["the next best takes over", "it does not, so another one", "this one does not lead"],
)
def test_a_leader_hands_over_to_the_member_that_lags_least(node, rows, tmp_path, leader, b_refuses, asked):
    row = {**rows()["etcd"], "etcdctl": str(tmp_path / "etcdctl")}
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
    (tmp_path / "etcdctl").write_text(MEMBERS.format(log=tmp_path / "log", leader=leader, b_refuses=b_refuses))
    (tmp_path / "etcdctl").chmod(0o755)
    assert node.modules["k8s_etcdctl.hand_over"](row) == (asked[-1] if asked else None)
    said = (tmp_path / "log").read_text().splitlines()
    own = node.modules["k8s_etcdctl.environment"](row)["ETCDCTL_ENDPOINTS"]
    moved = [line.split() for line in said if "move-leader" in line]
    assert [(line[0], line[-1]) for line in moved] == [(own, member) for member in asked]


def test_a_leader_that_listens_at_several_urls_hands_over_to_another_member_all_the_same(node, rows, tmp_path):
    urls = ["https://10.8.0.101:2379", "https://127.0.0.1:2379"]
    row = {**rows({"etcd": {"settings": {"listen-client-urls": urls}}})["etcd"], "etcdctl": str(tmp_path / "etcdctl")}
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
    (tmp_path / "etcdctl").write_text(MEMBERS.format(log=tmp_path / "log", leader=10, b_refuses=1))
    (tmp_path / "etcdctl").chmod(0o755)
    assert node.modules["k8s_etcdctl.hand_over"](row) == "c"
    said = (tmp_path / "log").read_text()
    assert "move-leader a" not in said, said


@pytest.mark.parametrize("does", ["hand_over", "leads"])
def test_a_member_is_asked_where_it_listens_already(node, rows, tmp_path, does):
    """A port is moved with both URLs listed: the new flags are live, and the member that runs has the former ones."""
    urls = ["https://10.8.0.101:12379", "https://10.8.0.101:2379"]
    row = {**rows({"etcd": {"settings": {"listen-client-urls": urls}}})["etcd"], "etcdctl": str(tmp_path / "etcdctl")}
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
    node.fake("k8s_config.load", return_value={"components": {"etcd": row}})
    asked = MEMBERS.format(log=tmp_path / "log", leader=10, b_refuses=0)
    unheard = '*:12379*) exit 1 ;;\n*" endpoint status "*) ;;'
    (tmp_path / "etcdctl").write_text(asked.replace('*" endpoint status "*) ;;', unheard))
    (tmp_path / "etcdctl").chmod(0o755)
    if does == "leads":
        assert node.modules["k8s_etcdctl.leads"]() is True
    else:
        assert node.modules["k8s_etcdctl.hand_over"](row) == "b"
        said = (tmp_path / "log").read_text().splitlines()
        assert [line.split()[0] for line in said if "move-leader" in line] == [urls[1]]


def test_a_member_that_does_not_answer_hands_nothing_over(node, rows, tmp_path):
    row = {**rows()["etcd"], "etcdctl": str(tmp_path / "none")}
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
    assert node.modules["k8s_etcdctl.hand_over"](row) is None


@pytest.mark.parametrize("found", [{"components": {}}, {"stale": True, "errors": []}])
def test_where_there_is_no_member_none_leads(node, found):
    node.fake("k8s_config.load", return_value=found)
    assert node.modules["k8s_etcdctl.leads"]() is False


# -- who listens at a URL ---------------------------------------------------------------------------------------------


@pytest.fixture
def listener(tmp_path, authorities, new_authority):
    """Return a function: let one listen who believes a CA and has a certificate of one, or says this; its URL."""
    ours, theirs, opened = authorities["etcd"], new_authority("theirs"), []

    def serve(server, trusts, certificate, says):
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            if says is not None:
                connection.sendall(says)
                opened.append(connection)
                continue
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            context.load_verify_locations(cadata=trusts.crt)
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                opened.append(context.wrap_socket(connection, server_side=True))
            except OSError:
                continue

    def pair(authority, name):
        made = authority.issue(name, ("serverAuth", "clientAuth"), ["127.0.0.1"])
        files = tmp_path / f"{name}.crt", tmp_path / f"{name}.key"
        for file, text in zip(files, (made.crt, made.key), strict=True):
            file.write_text(text)
        return files

    def listen(trusts="ours", has="ours", says=None, accepts=True):
        known = {"ours": ours, "theirs": theirs}
        server = socket.create_server(("127.0.0.1", 0))
        opened.append(server)
        if accepts:
            given = (server, known[trusts], pair(known[has], "server"), says)
            threading.Thread(target=serve, args=given, daemon=True).start()
        (tmp_path / "ca.crt").write_text(ours.crt)
        names = ("ETCDCTL_CERT", "ETCDCTL_KEY")
        access = {"ETCDCTL_CACERT": tmp_path / "ca.crt", **dict(zip(names, pair(ours, "client"), strict=True))}
        return f"https://127.0.0.1:{server.getsockname()[1]}", access

    yield listen
    for one in opened:
        one.close()


@pytest.mark.parametrize(
    ("who", "how"),
    [
        ({}, "taken"),
        ({"trusts": "theirs"}, "refused"),
        ({"has": "theirs"}, "refused"),
        ({"says": b"HTTP/1.0 400 Bad Request\r\n\r\n"}, "refused"),
        ({"accepts": False}, "none"),
    ],
    ids=["ours", "who does not know our CA", "whose CA we do not know", "no TLS", "who is not ready"],
)
def test_who_refuses_an_identity_is_told_from_who_is_not_ready(node, rows, monkeypatch, listener, who, how):
    """Members that wait for the others to found a cluster listen and say nothing, not even a handshake."""
    url, access = listener(**who)
    assert node.modules["k8s_etcdctl.greeting"](url, access, 0.5)[0] == how
    module = node.modules["k8s_etcd_members.survey"].func.__globals__
    monkeypatch.setitem(module, "TIMEOUT_S", 0.5)
    state = {"taken": "does not answer", "refused": "does not know this node", "none": "waits for the others"}[how]
    assert node.modules.run(module["_ask"], {**rows()["etcd"], "etcdctl": "/none"}, access, [url])[url]["state"] == state
