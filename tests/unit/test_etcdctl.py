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


@pytest.mark.parametrize("found", [{"components": {}}, {"stale": True, "errors": []}])
def test_where_there_is_no_member_none_leads(node, found):
    node.fake("k8s_config.load", return_value=found)
    assert node.modules["k8s_etcdctl.leads"]() is False
