"""rollout:mode manual: a run prepares, rehearses and reports; only the operator promotes."""

MANUAL = {"rollout": {"mode": "manual"}, "scheduler": {"settings": {"v": 5}}}


def test_in_manual_mode_a_run_rehearses_and_only_the_operator_promotes(cluster, pillar):
    before, node = cluster.processes(), cluster.nodes[0]
    pillar(MANUAL)
    for _ in ("a highstate", "the next one"):
        answer = cluster.apply(target=node.name)[node.name]
        assert answer.ok and not answer.changes, answer.failures
        assert "is prepared and rehearsed, but not promoted, as rollout:mode is manual (restart (flag v))" in answer.comments
        assert cluster.processes() == before
    done = cluster.orchestrate()
    assert done.returncode == 0, done.stdout[-3000:]
    after = cluster.processes()
    assert {place for place in after if after[place] != before[place]} == {(one.name, "kube-scheduler") for one in cluster.nodes}
