"""The rollout as the operator sees it: its lines, its table, its record, its exit status, and what a signal does to it."""

import json
import re
import shlex

import pytest

NODES = ["controller-1", "controller-2", "controller-3"]
RECORDS = "/var/log/kubernetes_controller"
LINE = re.compile(r"^\d\d:\d\d:\d\d  (master|controller-\d) +\S")


@pytest.fixture
def deploy(cluster):
    """A function that runs a rollout on the master; it returns the finished process."""
    return lambda *words: cluster.orchestrate(*words, sls=["k8s_rollout.deploy"])


def last(cluster):
    """Return what the record of the last rollout says."""
    return json.loads(cluster.lab.master.exec(["cat", f"{RECORDS}/last.json"]).stdout)


def lines_of(text):
    return [line for line in text.splitlines() if LINE.match(line)]


@pytest.mark.smoke
def test_a_changed_flag_is_told_as_it_happens_and_in_a_table(cluster, pillar, deploy):
    pillar({"scheduler": {"settings": {"v": 3}}})
    done = deploy()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    lines, started, rest = lines_of(done.stdout), [], done.stdout
    for node in NODES:
        steps = [line.split()[3] for line in lines if line.split()[1:3] == [node, "kube-scheduler"]]
        assert (steps[0], steps[-1]) == ("rehearsal", "done")
        assert [step for step in steps if step in ("prepare", "turn", "promote", "gate")] == [
            "prepare",
            "turn",
            "promote",
            "gate",
        ]
        started.append(next(i for i, line in enumerate(lines) if f"scheduler of {node}: starts" in line))
        ended = next(i for i, line in enumerate(lines) if f"scheduler of {node}: ended, changed {node}" in line)
        assert any("kube-scheduler" in line and node in line for line in lines[started[-1] : ended])
        assert re.search(rf"^{node} +kube-scheduler .* \d+\.\d s ", rest[rest.index("\nnode ") :], re.M)
    assert started == sorted(started)
    assert re.search(r"^node +component +from +to +took +not serving +result$", done.stdout, re.M)
    assert "_|-" not in done.stdout  # no dump of Salt's beside it
    assert done.stderr == ""
    record = last(cluster)
    assert (record["result"], record["retcode"], record["failures"], record["not_started"]) == ("ok", 0, [], [])
    assert sorted((row["node"], row["component"], row["step"]) for row in record["rows"]) == [
        (node, "kube-scheduler", "done") for node in NODES
    ]
    again = cluster.lab.salt_run("k8s_rollout.last", check=False)
    assert again.returncode == 0
    assert again.stdout.strip() in done.stdout


def test_json_is_all_that_standard_output_has_where_it_is_asked_for(cluster, deploy):
    done = deploy("--out=json")
    record = last(cluster)
    assert json.loads(done.stdout) == record
    assert (done.returncode, record["result"], record["rows"]) == (0, "ok", [])
    assert len(lines_of(done.stderr)) > 10
    assert f"unchanged: {', '.join(NODES)}" in done.stderr
    # For Salt's own job cache and for reactors it was a success, too.
    jobs = json.loads(cluster.lab.salt_run("--out=json", "jobs.list_jobs", "search_function=runner.k8s_rollout.deploy").stdout)
    shown = json.loads(cluster.lab.salt_run("--out=json", "jobs.print_job", max(jobs)).stdout)
    (result,) = shown[max(jobs)]["Result"].values()
    assert result["return"]["success"] is True


def test_a_test_run_says_what_would_happen_and_changes_nothing(cluster, pillar, deploy):
    before = cluster.processes()
    pillar({"scheduler": {"settings": {"v": 4}}})
    done = deploy("test=True")
    assert done.returncode == 0, done.stdout[-3000:]
    for node in NODES:
        assert re.search(rf"^{node} +kube-scheduler .*would restart", done.stdout, re.M)
    assert cluster.processes() == before


def test_an_unknown_key_is_one_sentence_and_an_exit_status(cluster, pillar, deploy):
    pillar({"apisever": {}})
    done = deploy()
    record = last(cluster)
    json_status = deploy("--out=json").returncode
    last_status = cluster.lab.salt_run("k8s_rollout.last", check=False).returncode
    assert (done.returncode, json_status, last_status) == (1, 1, 1)
    assert "\n    kubernetes_controller:apisever: no such key (nearest: apiserver).\n" in done.stdout
    assert "FAILED after" in done.stdout
    assert record["failures"][0]["node"] == "master"


def test_what_the_nodes_refuse_is_told_once_with_all_their_names(cluster, pillar, deploy):
    pillar({"scheduler": {"settings": {"vv": 3}}})
    done = deploy()
    assert done.returncode == 1
    assert done.stdout.count("kubernetes_controller:scheduler:settings:vv: ") == 1
    assert f"\n{', '.join(NODES)}: " in done.stdout
    assert "Not started: " in done.stdout


def test_a_one_run_pillar_reaches_the_orchestration(cluster, deploy):
    done = deploy('pillar={"kubernetes_controller": {"rollout": {"record_dri": "/x"}}}')
    assert done.returncode == 1
    assert "kubernetes_controller:rollout:record_dri: no such key (nearest: record_dir)." in done.stdout


def signalled(cluster, number, after, whom="$deploy"):
    """Send a signal to a rollout's process as soon as it printed ``after``; return its exit status and what it printed."""
    script = f"""
        salt-run k8s_rollout.deploy >/run/said 2>&1 & deploy=$!
        for i in $(seq 600); do grep -q {shlex.quote(after)} /run/said && break; sleep 0.1; done
        kill -{number} {whom}; wait $deploy; echo $?
    """
    done = cluster.lab.master.exec(["bash", "-c", script], timeout=300)
    return int(done.stdout), cluster.lab.master.exec(["cat", "/run/said"]).stdout


def test_ctrl_c_stops_a_rollout_after_the_step_that_runs(cluster):
    status, said = signalled(cluster, "INT", "of controller-1: starts")
    assert status == 1
    before, _, after = said.partition("stopping: the step that runs goes to its end")
    assert ": starts" in before
    assert ": starts" not in after
    assert "STOPPED" in after
    assert last(cluster)["result"] == "stopped"


def test_a_closed_terminal_does_not_stop_a_rollout(cluster):
    status, _ = signalled(cluster, "HUP", "of controller-1: starts")
    assert status == 0
    assert last(cluster)["result"] == "ok"


def test_the_death_of_the_orchestration_is_told_and_nothing_hangs(cluster):
    status, said = signalled(cluster, "KILL", "of controller-1: starts", "$(pgrep -P $deploy)")
    assert status == 1
    assert "The orchestration's process ended without an answer (status -9)" in said


def test_without_a_salt_master_nothing_is_started(cluster, deploy):
    master = cluster.lab.master
    master.exec(["systemctl", "stop", "salt-master"])
    try:
        done = deploy()
    finally:
        master.exec(["systemctl", "start", "salt-master"])
        cluster.wait_for("the minions", lambda: len(cluster.lab.salt("*", "test.ping", check=False).stdout.split()) == 6)
    assert done.returncode == 1
    assert "event bus does not answer, so nothing was started" in done.stdout


def test_a_minion_that_does_not_answer_is_named(cluster, deploy):
    node = cluster.nodes[-1]
    node.exec(["systemctl", "stop", "salt-minion"])
    try:
        done = deploy()
    finally:
        node.exec(["systemctl", "start", "salt-minion"])
        cluster.wait_for("the minion", lambda: "True" in cluster.lab.salt(node.name, "test.ping", check=False).stdout)
    assert done.returncode == 1
    assert f"    kubernetes_controller:controllers:{node.name}: the minion did not answer within" in done.stdout, done.stdout
    assert "    Nothing was changed, on the master and on any node." in done.stdout
