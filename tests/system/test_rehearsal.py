"""Promise 2: nothing is promoted that did not pass its rehearsal, and a rehearsal is noticed by nobody."""

import base64
import contextlib
import json
import secrets
import threading
import time

import pytest
from faults import deaths, inject
from faults.judge import Judge, Witness

OBJECTS = (
    "namespaces", "configmaps", "secrets", "serviceaccounts", "pods", "endpoints", "endpointslices", "leases",
    "certificatesigningrequests", "clusterroles", "clusterrolebindings", "priorityclasses", "flowschemas",
)  # fmt: skip
SANDBOX = "kubernetes-rehearsal"
SANDBOX_OBJECTS = b"rehearsal-"  # what the names of its objects begin with
ONLY_REHEARSE = {"rollout": {"mode": "manual"}}


@pytest.fixture(scope="module")
def witness(cluster):
    witness = Witness(cluster)
    yield witness
    witness.undo()


@pytest.fixture
def world(cluster, witness, new_authority):
    with contextlib.ExitStack() as lasting:
        world = inject.World(cluster, witness, new_authority, lasting)
        world.judge = Judge(cluster, witness)
        yield world
    cluster.pillar(None)
    world.judge.old_serves(set())
    assert deaths.leftovers(world.node) == []


def flag():
    """A change of the scheduler and the API server that was never rehearsed."""
    changed = {"settings": {"vmodule": f"f{secrets.token_hex(4)}=1"}}
    return {"scheduler": changed, "apiserver": changed}


def objects(cluster):
    """Return {kind/namespace/name: (uid, resourceVersion)} of the cluster; of leases that are renewed all the time the uid."""
    found = {}
    for item in json.loads(cluster.kubectl("get", ",".join(OBJECTS), "-A", "-o", "json").stdout)["items"]:
        meta = item["metadata"]
        renewed = item["kind"] == "Lease"
        key = "/".join([item["kind"], meta.get("namespace", ""), meta["name"]])
        found[key] = (meta["uid"], None if renewed else meta["resourceVersion"])
    return found


def all_are_endpoints(cluster):
    """Tell whether each API server has put its address among those of the cluster; just after a cluster's start they do."""
    words = "{.subsets[*].addresses[*].ip}"
    return len(cluster.kubectl("get", "endpoints", "kubernetes", "-o", f"jsonpath={words}").stdout.split()) == len(cluster.nodes)


def holders(cluster):
    """Return who holds each lease."""
    leases = json.loads(cluster.kubectl("get", "leases", "-A", "-o", "json").stdout)["items"]
    return {lease["metadata"]["name"]: lease["spec"].get("holderIdentity") for lease in leases}


class Watch:
    """Looks at the rehearsal's network namespace as long as it is there: its interfaces, and what they sent."""

    def __init__(self, node):
        self.node, self.interfaces, self.seen, self.stop = node, set(), 0, False
        self.thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop = True
        self.thread.join(30)

    def _look(self):
        show = ["ip", "netns", "exec", SANDBOX, "cat", "/proc/net/dev"]
        while not self.stop:
            done = self.node.exec(show, check=False)
            if not done.returncode:
                self.seen += 1
                self.interfaces |= {line.split(":")[0].strip() for line in done.stdout.splitlines()[2:]}
            time.sleep(0.3)


def rehearse(cluster, node, declared, manual=True):
    cluster.pillar({**declared, "rollout": {**declared.get("rollout", {}), **({"mode": "manual"} if manual else {})}})
    return cluster.apply(target=node.name)[node.name]


def test_a_rehearsal_reaches_nobody_and_leaves_nothing(cluster, world):
    cluster.wait_for("all API servers among the endpoints", lambda: all_are_endpoints(cluster))
    node, before, held = world.node, objects(cluster), holders(cluster)
    log = world.node.root / "var/log/kubernetes/kube-apiserver/audit.log"
    logged = log.stat().st_size
    with Watch(node) as watch:
        answer = rehearse(cluster, node, flag())
    assert answer.ok, answer.failures
    assert "kube-apiserver, kube-scheduler passed on a copy of the data" in answer.comments
    assert "prepared and rehearsed, but not promoted" in answer.comments
    assert watch.seen > 3
    assert watch.interfaces == {"lo"}, "what has only a loopback sends no packet to anybody"
    after = objects(cluster)
    assert after == before
    assert holders(cluster) == held
    with log.open("rb") as audit:
        audit.seek(logged)
        assert SANDBOX_OBJECTS not in audit.read(), "the rehearsal's API server has a log of its own"


def test_one_component_alone_is_rehearsed_with_the_others_as_they_are_live(cluster, world):
    manager = {"settings": {"concurrent-gc-syncs": secrets.randbelow(90) + 1}}
    cluster.pillar({**ONLY_REHEARSE, **flag(), "controller_manager": manager})  # the others' change is not rehearsed
    home = world.node.root / cluster.homes["kube-controller-manager"].lstrip("/")
    before = json.loads((home / "rehearsed.json").read_text()) if (home / "rehearsed.json").exists() else {}
    answer = cluster.apply(sls="kubernetes_controller.controller_manager", target=world.node.name)[world.node.name]
    assert answer.ok, answer.failures
    assert "kube-controller-manager: generation" in answer.comments
    assert "prepared and rehearsed, but not promoted" in answer.comments
    stamps = json.loads((home / "rehearsed.json").read_text())
    assert len(set(stamps) - set(before)) == 1
    cluster.salt("saltutil.refresh_pillar", "wait=True", target=world.node.name)  # else what the minion had at its start counts
    due = cluster.salt("k8s_rehearsal.due", json.dumps(rows(cluster, world)), target=world.node.name)[world.node.name]
    # What passed is to work with those that did not, so it takes part when they are rehearsed.
    assert sorted(due) == ["kube-apiserver", "kube-controller-manager", "kube-scheduler"]


def rows(cluster, world):
    return cluster.salt("k8s_config.load", "fresh=True", target=world.node.name)[world.node.name]["components"]


def test_data_empty_and_enabled_false_do_as_they_say(cluster, world):
    empty = rehearse(cluster, world.node, {**flag(), "rollout": {"rehearsal": {"data": "empty"}}})
    assert empty.ok, empty.failures
    assert "passed on empty data" in empty.comments
    off = rehearse(cluster, world.node, {**flag(), "rollout": {"rehearsal": {"enabled": False}}})
    assert off.ok, off.failures
    assert "Nothing is to be rehearsed." in off.comments


def test_data_above_the_limit_fails_the_run_and_names_the_limit(cluster, world):
    answer = rehearse(cluster, world.node, {**flag(), "rollout": {"rehearsal": {"max_mib": 0}}})
    assert not answer.ok
    assert "more than kubernetes_controller:rollout:rehearsal:max_mib (0). Raise it" in "\n".join(answer.failures)


def test_a_wrong_encryption_key_fails_before_anything_that_runs_is_touched(cluster, world):
    """On the live cluster the same mistake passes `/readyz`."""
    share = world.share / "encryption-key1"
    kept = share.read_text()
    share.write_text(base64.b64encode(secrets.token_bytes(32)).decode())
    try:
        ignored = {"drop_encryption_keys": True, "ignore": ["overlap"]}
        answer = rehearse(cluster, world.node, {"rollout": ignored}, manual=False)
    finally:
        share.write_text(kept)
    assert not answer.ok
    said = "\n".join(answer.failures)
    assert "The rehearsal failed: kube-apiserver: stored secrets cannot be read: 500" in said
    assert "StorageError" in said
    assert "Nothing was touched." in said


def test_what_a_killed_rehearsal_left_is_gone_after_the_next_run(cluster, world):
    with deaths.hooked(world):
        cluster.pillar({**ONLY_REHEARSE, **flag()})
        deaths.moment(world, "die", "k8s_scene.apiserver")
        cluster.lab.salt("--async", world.node.name, "state.apply", "kubernetes_controller")
        deaths.reached(world)
        assert "/run/kubernetes-rehearsal" in deaths.leftovers(world.node)
        deaths.minions_answer(world, [world.node])
        answer = cluster.apply(target=world.node.name)[world.node.name]
        assert answer.ok, answer.failures
    assert deaths.leftovers(world.node) == []
