"""
The first run on nodes that have nothing yet, or not only what the formula put there.

Promises 7 (a killed minion loses nothing), 10 (test mode tells the truth) and 11 (what the formula did not start is
never touched by surprise), and that plain Salt does what the orchestration does.
"""

import os
import shutil

HOMES = {
    "etcd": "var/lib/kubernetes-etcd",
    "kube-apiserver": "var/lib/kubernetes",
    "kube-controller-manager": "var/lib/kube-controller-manager",
    "kube-scheduler": "var/lib/kube-scheduler",
}
# What a rollout writes to, and what in there others write to all the time.
TREES = {"node": ["opt", "etc", "usr/local", "var/lib", "var/log/kubernetes"], "master": ["srv", "root"]}
RESTLESS = {"var/lib/systemd", "var/lib/private", "etc/salt"}
PKI = "/srv/kubernetes_controller/pki"
MAKE_PKI = "salt-run state.orchestrate kubernetes_controller.orchestrate.pki"
ADOPT = '{"kubernetes_controller": {"rollout": {"adopt": true}}}'
FOREIGN_UNIT = "[Unit]\nDescription=Not of the formula\n[Service]\nExecStart=/usr/bin/sleep infinity\n"


def snapshot(node, trees):
    """Return {path: what shows a change} of all files below ``trees``."""
    found = {}
    for tree in trees:
        for directory, names, files in os.walk(node.root / tree):
            names[:] = [name for name in names if os.path.relpath(f"{directory}/{name}", node.root) not in RESTLESS]
            for path in (os.path.join(directory, name) for name in [".", *files]):
                stat = os.lstat(path)
                found[path] = (stat.st_mode, stat.st_uid, stat.st_size, stat.st_mtime_ns)
    return found


def snapshots(cluster):
    return [*(snapshot(node, TREES["node"]) for node in cluster.nodes), snapshot(cluster.lab.master, TREES["master"])]


def main_pid(node, unit):
    return node.exec(["systemctl", "show", "--value", "-p", "MainPID", unit]).stdout.strip()


def failures(answers):
    return {minion: answer.failures for minion, answer in answers.items() if not answer.ok}


def assert_healthy(cluster):
    status, table = cluster.health()
    assert status == 0, table
    assert {minion: list(said) for minion, said in table.items()} == {node.name: list(HOMES) for node in cluster.nodes}


# -- bare nodes, shared by those that leave little behind -------------------------------------------------------------


def test_test_mode_on_bare_nodes_changes_nothing_and_names_what_to_run(bare_shared):
    before = snapshots(bare_shared)
    # A master that has never run the formula lacks its modules, too.
    shutil.rmtree(bare_shared.lab.master.root / "var/cache/salt/master/extmods", ignore_errors=True)
    assert "now by `salt-run saltutil.sync_all`; then test again" in bare_shared.steps("test=True").comments
    bare_shared.lab.salt_run("saltutil.sync_all")
    steps = bare_shared.steps("test=True")
    answers = bare_shared.apply("test=True")
    assert snapshots(bare_shared) == before

    assert steps.ok, steps.failures
    made = steps.changes["The certificates of the cluster are as declared"]
    for name in ("authorities/kubernetes-ca.key", "hosts/controller-1/kubernetes_controller_pki/apiserver.crt"):
        assert f"{PKI}/{name}" in made
    assert "controller-1, controller-2, controller-3: no modules of this version of the formula" in steps.comments
    assert "`salt -L controller-1,controller-2,controller-3 saltutil.sync_all`; then test again" in steps.comments
    for minion, answer in answers.items():
        assert answer.ok, answer.failures
        assert answer.pending, minion
        assert f"`salt {minion} saltutil.sync_all`; then test again" in answer.comments
    assert len(answers) == len(bare_shared.nodes)


def test_a_node_without_certificates_is_told_which_and_how_to_make_them(bare_shared):
    answers = bare_shared.apply()
    assert len(answers) == len(bare_shared.nodes)
    for minion, answer in answers.items():
        said = "\n".join(answer.failures)
        assert "pillar kubernetes_controller_pki:etcd-ca.crt is missing, etcd needs it" in said, minion
        assert MAKE_PKI in said
    for node in bare_shared.nodes:
        for name, home in HOMES.items():
            assert not (node.root / home / "live").is_symlink(), (node, name)
            assert not (node.root / f"etc/systemd/system/{name}.service").exists(), (node, name)


def test_test_mode_without_certificates_says_what_to_run_too(bare_shared):
    """The nodes have modules and binaries now, from the test before."""
    before = snapshots(bare_shared)
    answers = bare_shared.apply("test=True")
    assert snapshots(bare_shared) == before
    for minion, answer in answers.items():
        assert MAKE_PKI in answer.comments, minion


def test_what_the_formula_did_not_start_is_named_and_left_alone_until_the_operator_hands_it_over(bare_shared):
    bare_shared.make_pki()
    first, second, _ = bare_shared.nodes
    unit_path = "/etc/systemd/system/kube-scheduler.service"
    unit = first.root / unit_path.lstrip("/")
    first.write(unit_path, FOREIGN_UNIT)
    first.exec(["systemctl", "daemon-reload"])
    first.exec(["systemctl", "start", "kube-scheduler"])
    listen = ["python3", "-m", "http.server", "6443", "--bind", second.address]
    second.exec(["systemd-run", "--quiet", "--unit=somebody-elses", *listen])
    sleeper, server = main_pid(first, "kube-scheduler"), main_pid(second, "somebody-elses")

    answers = bare_shared.apply(target="controller-[12]")
    told = {minion: "\n".join(answer.failures) for minion, answer in answers.items()}
    assert f"unit kube-scheduler runs with process {sleeper} (/usr/bin/sleep, from {unit_path})" in told["controller-1"]
    assert ADOPT in told["controller-1"]
    assert f"port 6443 is held by process {server} (/usr/bin/python3" in told["controller-2"]
    assert (main_pid(first, "kube-scheduler"), main_pid(second, "somebody-elses")) == (sleeper, server)
    assert unit.read_text() == FOREIGN_UNIT
    for node in (first, second):
        assert not [name for name, home in HOMES.items() if (node.root / home / "live").is_symlink()], node

    # Handed over: the port by hand, the unit by the word that the error gave.
    second.exec(["systemctl", "stop", "somebody-elses"])
    assert not failures(bare_shared.apply(f"pillar={ADOPT}"))
    assert first.exec(["readlink", f"/proc/{main_pid(first, 'kube-scheduler')}/exe"]).stdout.startswith("/opt/kubernetes/")
    assert unit.read_text() == (first.root / HOMES["kube-scheduler"] / "live/unit").read_text()
    assert_healthy(bare_shared)


# -- bare nodes each --------------------------------------------------------------------------------------------------


def test_plain_state_apply_on_all_nodes_at_once_leads_to_a_healthy_control_plane(bare):
    bare.make_pki()
    assert not failures(bare.apply())
    assert_healthy(bare)


def test_the_command_of_the_readme_leads_there_shows_it_and_can_be_repeated(bare):
    """``./lab/lab up``, whose first half, which boots nodes, is in test_lab.py."""
    for count, end in ((1, "12 components changed"), (0, "0 components changed")):
        done = bare.lab_up()
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        for node in bare.nodes:
            for component in HOMES:
                told = [line for line in lines if line.startswith(f"{node.name} ") and line.split()[1:2] == [component]]
                assert len(told) == count, told
                assert all(line.endswith("new serving") for line in told)
        assert end in done.stdout
        assert done.stdout.count("ok  https://") == len(HOMES) * len(bare.nodes)
        assert "Server Version: v" in done.stdout
        words = [line.partition(f"--name {bare.lab.name} ")[2].split() for line in lines[lines.index("Try") + 1 :]]
        assert [word[0] for word in words] == ["kubectl", "salt", "exec"]


def test_a_minion_that_is_killed_in_the_middle_of_the_first_rollout_is_finished_by_the_next_run(bare):
    bare.make_pki()
    struck = bare.nodes[1]
    home, others = struck.root / HOMES["kube-apiserver"], "controller-[13]"
    bare.lab.salt("--async", "controller-*", "state.apply", "kubernetes_controller")
    # Promoted and starting, but its gate has not been passed.
    bare.wait_for("kube-apiserver is promoted", (home / "live").is_symlink, timeout_s=300)
    struck.exec(["systemctl", "kill", "--kill-whom=all", "--signal=KILL", "salt-minion"])
    assert not (home / "good").is_symlink()
    running = ["saltutil.is_running", "state.*"]
    bare.wait_for("the other two", lambda: not any(bare.salt(*running, target=others).values()), timeout_s=300)
    status, table = bare.health(others)
    assert status == 0, table

    assert not failures(bare.apply())
    assert (home / "good").readlink() == (home / "live").readlink()
    assert_healthy(bare)
