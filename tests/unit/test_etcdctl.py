"""What etcdctl is asked, and what is made of its answers."""

import json

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
