"""
The members of etcd: founded once, counted as etcd lists them, changed by hand as docs/operations.md says.

Attacks promises 12 and 13: each case here ended green on other data, or on two clusters, before. The tests go on from each
other, on one lab; the commands are those of the docs, as they are written there.
"""

import json
import re

import pytest

QUOTA_BYTES = 60_000_000
EVERYTHING = ["etcd", "members", "identity", "turn", "neighbours", "overlap"]


@pytest.fixture(scope="module")
def recipe(code_blocks):
    """Return a function: a block of docs/operations.md by its words, for another node than that of the docs."""
    blocks = {words.partition(" ")[2]: text for words, text in code_blocks("docs/operations.md")}

    def block(name, node=None):
        text = blocks[name]
        if node:
            text = re.sub(r"^NAME=\S+ ADDRESS=\S+$", f"NAME={node.name} ADDRESS={node.address}", text, flags=re.M)
            text = re.sub(r"^ADDRESS=\S+$", f"ADDRESS={node.address}", text, flags=re.M)
        return text

    return block


@pytest.fixture(scope="module")
def shell(recipe):
    """Return a function: run blocks in one shell on a node, after the block that tells etcdctl who it is."""

    def run(node, *texts, plain=False, timeout=120):
        head = [] if plain else [recipe("etcdctl")]
        return node.exec(["bash", "-euo", "pipefail", "-c", "\n".join([*head, *texts])], timeout=timeout).stdout

    return run


def controllers(cluster, *names):
    return {node.name: node.address if node.name in names else None for node in cluster.nodes}


def declare(cluster, *names, **etcd):
    settings = {"quota-backend-bytes": QUOTA_BYTES, **etcd}
    cluster.pillar({"controllers": controllers(cluster, *names), "etcd": {"settings": settings}})


def on_master(cluster, text):
    done = cluster.lab.master.exec(["bash", "-euo", "pipefail", "-c", text], check=False, timeout=400)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    return done.stdout


def rolled_out(cluster, *words):
    done = cluster.lab.salt_run("k8s_rollout.deploy", *words, check=False, timeout=600)
    return done.returncode == 0, done.stdout


def member_ids(node, shell):
    said = json.loads(shell(node, "etcdctl member list --write-out=json").splitlines()[-1])
    return {one.get("name", ""): format(one["ID"], "x") for one in said["members"]}


def started(node, component="etcd"):
    return node.exec(["systemctl", "show", "--value", "-p", "ExecMainStartTimestampMonotonic", component]).stdout.strip()


def mark(cluster):
    return json.loads((cluster.lab.master.root / "srv/kubernetes_controller/pki/cluster.json").read_text())


def namespaces(cluster):
    return cluster.kubectl("get", "namespaces", "-o", "name").stdout


def test_the_first_rollout_founds_the_cluster_and_all_know_it_then(bare_shared):
    first = bare_shared.nodes[0]
    declare(bare_shared, first.name)
    ok, said = rolled_out(bare_shared)
    assert ok, said[-3000:]
    bare_shared.kubectl("create", "namespace", "precious")
    known = mark(bare_shared)
    assert known["state"] == "founded"
    assert list(known["members"]) == [first.name]
    uid = bare_shared.kubectl("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}").stdout
    assert known["kube_system"] == uid
    assert not (first.root / "run/kubernetes-controller-first-start.env").exists()


def test_more_controllers_found_no_second_cluster_beside_the_first(bare_shared, shell):
    """One became three by the hints that the formula printed: a split brain, one API server answering from either cluster."""
    first, *others = bare_shared.nodes
    declare(bare_shared, *(node.name for node in bare_shared.nodes))
    bare_shared.make_pki()
    before = started(first)
    answers = bare_shared.apply(target="controller-*")
    for node in others:
        assert f"{node.name} has no data in /var/lib/etcd and is not a member of etcd" in answers[node.name].comments
        assert f"etcdctl member add {node.name} --learner" in answers[node.name].comments
        assert not (node.root / "var/lib/etcd/member").exists()
    assert (
        "controller-3 (10.8.0.103) is in kubernetes_controller:controllers, but is not a member" in answers[first.name].comments
    )
    assert list(member_ids(first, shell)) == [first.name]
    assert started(first) == before
    ok, said = rolled_out(bare_shared)
    assert not ok
    assert "etcdctl member add controller-2 --learner --peer-urls=https://10.8.0.102:2380" in said, said[-4000:]


@pytest.mark.parametrize("number", [1, 2])
def test_a_controller_is_added_as_the_docs_say(bare_shared, recipe, shell, number):
    first, node = bare_shared.nodes[0], bare_shared.nodes[number]
    declare(bare_shared, *(one.name for one in bare_shared.nodes[: number + 1]))
    before = started(first)
    on_master(bare_shared, recipe("add: master"))
    shell(first, recipe("add: another controller", node))
    on_master(bare_shared, recipe("replace: master").replace("controller-2", node.name))
    status, table = bare_shared.health(first.name)
    assert status != 0, "a learner counted as a member with a vote"
    assert f"of {node.name} is a learner" in str(table)
    shell(first, f"ADDRESS={node.address}", recipe("replace: another controller, again"))
    ok, said = rolled_out(bare_shared)
    assert ok, said[-3000:]
    assert started(first) == before, "a change of controllers restarted a member"
    assert "precious" in namespaces(bare_shared)
    assert sorted(mark(bare_shared)["members"]) == [one.name for one in bare_shared.nodes[: number + 1]]


@pytest.mark.soak
def test_a_member_that_is_not_declared_any_more_is_named_and_nothing_restarts(bare_shared, shell):
    """It stayed a voter and went on running; the next failure took the quorum, and the rollout had ended well."""
    last, before = bare_shared.nodes[-1], bare_shared.processes()
    declare(bare_shared, *(node.name for node in bare_shared.nodes[:-1]))
    ok, said = rolled_out(bare_shared)
    assert not ok
    assert f"etcdctl member remove {member_ids(bare_shared.nodes[0], shell)[last.name]}" in said
    assert not bare_shared.renewed(before)
    last.exec(["systemctl", "stop", "etcd"])
    node = bare_shared.nodes[0].name
    declare(bare_shared, *(one.name for one in bare_shared.nodes[:-1]), **{"snapshot-count": 9000})
    ignored = {"kubernetes_controller": {"rollout": {"ignore": ["members"], "turn": {"neighbours_timeout_s": 3}}}}
    answer = bare_shared.apply(f"pillar={json.dumps(ignored)}", sls="kubernetes_controller.etcd", target=node)[node]
    assert "etcd has 3 voting members and not all are well: controller-3" in answer.comments
    assert not bare_shared.renewed(before) - {(last.name, "etcd")}
    last.exec(["systemctl", "start", "etcd"])
    declare(bare_shared, *(one.name for one in bare_shared.nodes))
    bare_shared.wait_for("etcd of the last", lambda: bare_shared.health(node)[0] == 0)


def test_a_member_that_lost_its_data_is_refused_and_replaced_as_the_docs_say(bare_shared, recipe, shell):
    first, node, _ = bare_shared.nodes
    declare(bare_shared, *(one.name for one in bare_shared.nodes))
    former = member_ids(first, shell)[node.name]
    bare_shared.lab.reset([node.name])
    answer = bare_shared.apply(target=node.name)[node.name]
    assert not answer.ok
    assert f"etcd lists it as member {former}, which had data" in answer.comments
    assert f"etcdctl member remove {former}" in answer.comments
    assert not (node.root / "var/lib/etcd/member").exists()
    others = {place: started for place, started in bare_shared.processes().items() if place[0] != node.name}
    shell(first, recipe("replace: another controller", node))
    on_master(bare_shared, recipe("replace: master"))
    shell(first, f"ADDRESS={node.address}", recipe("replace: another controller, again"))
    ok, said = rolled_out(bare_shared)
    assert ok, said[-3000:]
    after = bare_shared.processes()
    assert {place: after[place] for place in others} == others, "a replacement restarted something on another controller"
    assert bare_shared.health()[0] == 0
    assert member_ids(first, shell)[node.name] != former


@pytest.mark.soak
def test_a_data_directory_that_is_gone_is_no_reason_to_start_without_data(bare_shared):
    """As with a mount that is missing: the process is started again by the next run, by systemd or by hand."""
    node = bare_shared.nodes[1]
    node.exec(["bash", "-c", "systemctl stop etcd && mv /var/lib/etcd/member /var/lib/etcd-member.away"])
    answer = bare_shared.apply(sls="kubernetes_controller.etcd", target=node.name)[node.name]
    assert not answer.ok
    assert "If the directory is a mount that is missing, mount it." in answer.comments
    node.exec(["systemctl", "start", "--no-block", "etcd"])
    asked = ["systemctl", "show", "--value", "-p", "NRestarts", "etcd"]
    bare_shared.wait_for("etcd to give up", lambda: node.exec(asked).stdout.strip() != "0")
    assert not (node.root / "var/lib/etcd/member/wal").exists(), "a member without data founded a cluster"
    node.exec(
        ["bash", "-c", "systemctl stop etcd; rm -rf /var/lib/etcd/member; mv /var/lib/etcd-member.away /var/lib/etcd/member"]
    )
    answer = bare_shared.apply(sls="kubernetes_controller.etcd", target=node.name)[node.name]
    assert answer.ok, answer.failures


def test_two_bare_controllers_found_no_empty_cluster_while_the_third_is_off_and_the_survivors_data_come_back(
    bare_shared, recipe, shell
):
    """The worst of all: 34 states succeeded, and what they had founded was an empty cluster with the ids of the old one."""
    survivor, *lost = bare_shared.nodes
    names = ",".join(node.name for node in lost)
    bare_shared.kubectl("create", "namespace", "victim")
    ask = f"ETCDCTL_ENDPOINTS=https://{survivor.address}:2379 etcdctl get --keys-only --consistency=s /registry/namespaces/victim"
    bare_shared.wait_for("the survivor to have it, too", lambda: "victim" in shell(survivor, ask), timeout_s=30)
    survivor.kill()
    bare_shared.lab.reset([node.name for node in lost])
    answers = {name: answer for node in lost for name, answer in bare_shared.apply(target=node.name).items()}
    for node in lost:
        assert not answers[node.name].ok, names
        assert f"{node.name} has no data in /var/lib/etcd, but this cluster exists" in answers[node.name].comments
        assert not (node.root / "var/lib/etcd/member").exists()
    everything = {"kubernetes_controller": {"rollout": {"ignore": EVERYTHING}}}
    answer = bare_shared.apply(f"pillar={json.dumps(everything)}", target=lost[0].name)[lost[0].name]
    assert "An empty cluster is never founded in the place of one that exists." in answer.comments

    bare_shared.lab.boot()
    ok, said = rolled_out(bare_shared)
    assert not ok
    assert "controller-2 has no data in /var/lib/etcd, but this cluster exists" in said

    for node in lost:
        on_master(bare_shared, f"salt {node.name} state.apply kubernetes_controller.binaries")
    shell(survivor, recipe("restore: every controller, stop"), plain=True)
    shell(survivor, recipe("restore: the survivor"), plain=True)
    copy = (survivor.root / "root/etcd.db").read_bytes()
    for node in lost:
        (node.root / "root/etcd.db").write_bytes(copy)
    for node in bare_shared.nodes:
        shell(node, recipe("restore: every controller, stop"), recipe("restore: every controller, restore", node), plain=True)
    ok, said = rolled_out(bare_shared)
    assert ok, said[-3000:]
    assert "namespace/victim" in namespaces(bare_shared) and "namespace/precious" in namespaces(bare_shared)
    assert bare_shared.health()[0] == 0


@pytest.mark.soak
def test_a_full_etcd_is_named_and_gets_room_as_the_docs_say(bare_shared, recipe, shell):
    node = bare_shared.nodes[0]
    one = "head -c 1000000 /dev/urandom | base64 | etcdctl put /filler/$number >/dev/null 2>&1"
    shell(node, f"for number in $(seq 100); do {one} || break; done; etcdctl alarm list | grep -c NOSPACE")
    status, table = bare_shared.health(node.name)
    assert status != 0 and "NOSPACE" in str(table)
    shell(node, "etcdctl del --prefix /filler/", recipe("full: a controller"), timeout=200)
    bare_shared.wait_for("all to be well", lambda: bare_shared.health()[0] == 0, timeout_s=90)


@pytest.mark.soak
def test_a_controller_is_removed_as_the_docs_say(bare_shared, recipe, shell):
    first, _, last = bare_shared.nodes
    shell(last, recipe("remove: the controller that goes"), plain=True)
    shell(first, recipe("remove: another controller", last))
    shell(last, recipe("remove: the controller that goes, again"), plain=True)
    declare(bare_shared, *(node.name for node in bare_shared.nodes[:-1]))
    before = started(first)
    ok, said = rolled_out(bare_shared)
    assert ok, said[-3000:]
    assert started(first) == before
    assert sorted(mark(bare_shared)["members"]) == [node.name for node in bare_shared.nodes[:-1]]
    assert bare_shared.health("controller-[12]")[0] == 0
