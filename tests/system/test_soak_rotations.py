"""
Every rotation, in which the minion, the master and a node are killed at random moments, ends in the rotated state.

A round takes some minutes, and its choices come from its seed; KC_ROUNDS of them run with KC_SOAK (``tests/soak/rotations``).
In CI the command is killed in ``test_rotate_ca``, and a minion in ``test_rotate_encryption``.
"""

import base64
import json
import os
import random
import time

import pytest
import yaml
from faults import deaths, inject
from faults.judge import Judge, Witness, etcdctl

TOP, UNIT = "srv/kubernetes_controller/pki", "rotation"
CAS = ("kubernetes", "signer", "etcd", "front-proxy")
ROTATIONS = (*CAS, "service-account", "encryption")
VICTIMS = ("minion", "master", "node")
FIRST, ROUNDS = (int(os.environ.get(name, default)) for name, default in (("KC_SEED", "0"), ("KC_ROUNDS", "10")))
SEEDS = range(FIRST, FIRST + ROUNDS)
STEPS = ("trust", "sign", "drop")
STEP_S = 45  # about what a step takes
ENCRYPTION = ("add", "promote", "rewrite", "drop")
PART_S = 30  # the longest part of a step of encryption's, a rehearsal, takes about this
LAST = "var/log/kubernetes_controller/last.json"


@pytest.fixture(scope="module")
def world(cluster, new_authority):
    witness = Witness(cluster)
    yield inject.World(cluster, witness, new_authority, None)
    witness.undo()


def words(name):
    """Return the words of the operator's command."""
    if name in ("encryption", "service-account"):
        return [f"k8s_rollout.rotate_{name.replace('-', '_')}"]
    return ["k8s_rollout.rotate_ca", name]


def pair(world, name):
    """Return the present pair of a CA, or of the service account, and the names of all files beside it."""
    base = world.lab.master.root / TOP / ("shared" if name == "service-account" else "authorities")
    stem = name if name == "service-account" else f"{name}-ca"
    files = {path.name: path.read_bytes() for path in base.iterdir() if path.name.startswith(stem)}
    return files


def declare(world, name, seed):
    """Give encryption a key with a new name, and return that; the others need nothing in the pillar."""
    key = f"soak-{seed}-{int(time.time())}"
    if name == "encryption":
        providers = [{"secretbox": {"keys": [key]}}, {"identity": {}}]
        world.cluster.pillar({"encryption": [{"resources": ["secrets"], "providers": providers}]})
    return key


def assert_nothing_is_left(world, key):
    """Every Secret that etcd holds is under a key, and the formula says so; no other key is live."""
    said = etcdctl(world.cluster.nodes[0], "get", "/registry/secrets/", "--prefix", "--write-out=json").stdout
    held = {base64.b64decode(one["key"]): base64.b64decode(one["value"]) for one in json.loads(said)["kvs"]}
    other = [name for name, value in held.items() if not value.startswith(f"k8s:enc:secretbox:v1:{key}:".encode())]
    assert held and not other, other
    nodes = [node.name for node in world.cluster.nodes]
    assert world.cluster.salt("k8s_encryption.left") == dict.fromkeys(nodes, {})
    live = world.cluster.salt("k8s_encryption.live")
    providers = {"secrets": [["secretbox", key], ["identity", ""]]}
    assert {name: one["providers"] for name, one in live.items()} == dict.fromkeys(nodes, providers)


def start(world, name):
    run = ["systemd-run", "--quiet", "--collect", f"--unit={UNIT}", "salt-run", *words(name)]
    world.lab.master.exec(run)


def under_way(world):
    return not world.lab.master.exec(["systemctl", "is-active", "--quiet", UNIT], check=False).returncode


def mark(world, name):
    base = "shared/service-account" if name == "service-account" else f"authorities/{name}-ca"
    return world.lab.master.root / TOP / f"{base}.rotation"


def record(world):
    """Return the record of the last run of k8s_rollout, or how far it is."""
    file = world.lab.master.root / LAST
    return json.loads(file.read_text()) if file.exists() else {"jid": None, "steps": []}


def anywhere_in_the_command(world, before, parts, seconds):
    """Wait until that many parts of a rotation of encryption keys ended, and some seconds more; return what the moment was."""

    def ended():
        run = record(world)
        names = [step["name"] for step in run["steps"]] if run["jid"] != before else []
        return [name for name in names if name.startswith(tuple(f"{step}," for step in ENCRYPTION))]

    world.cluster.wait_for(f"{parts} parts", lambda: not under_way(world) or len(ended()) >= parts, 900)
    time.sleep(seconds)
    return f"{seconds:.0f} s after {parts} parts had ended, the last of now: {(ended() or ['none'])[-1]}"


def at_a_random_moment(world, name, step, seconds):
    """Wait until the rotation is at a step, or beyond it, and some seconds more; return what the moment was."""
    file, beyond = mark(world, name), STEPS[STEPS.index(step) :]

    def reached():
        return not under_way(world) or (file.exists() and yaml.safe_load(file.read_text())["step"] in beyond)

    if name != "encryption":
        world.cluster.wait_for(f"the step {step}", reached, 600)
    time.sleep(seconds)
    at = yaml.safe_load(file.read_text())["step"] if file.exists() else "no step" if name != "encryption" else "the command"
    return f"{seconds:.0f} s later than {step}, in {at}" if name != "encryption" else f"{seconds:.0f} s into the command"


def kill(world, victim, node):
    if victim == "minion":
        node.exec(["systemctl", "kill", "--signal=KILL", "salt-minion"], check=False)
    elif victim == "master":
        world.lab.master.exec(["systemctl", "kill", "--signal=KILL", UNIT, "salt-master"], check=False)
    else:
        node.kill()
        time.sleep(1)


def recover(world):
    """What comes back by itself does; the operator waits for it."""
    world.lab.boot()
    for node in world.cluster.nodes:
        node.exec(["systemctl", "start", "salt-minion"], check=False)
    world.cluster.wait_for("the end of the orchestration", lambda: not under_way(world), 1800)  # it may go on to the last step
    deaths.minions_answer(world, world.cluster.nodes)
    quiet = ["saltutil.is_running", "state.*"]
    world.cluster.wait_for("the end of what still runs", lambda: not any(world.cluster.salt(*quiet).values()), 300)


@pytest.mark.parametrize("seed", SEEDS, ids=[f"{seed}-{ROTATIONS[seed % len(ROTATIONS)]}" for seed in SEEDS])
def test_a_rotation_with_three_deaths_in_it_ends_rotated(world, seed):
    name, chance = ROTATIONS[seed % len(ROTATIONS)], random.Random(seed)
    cluster, judge = world.cluster, Judge(world.cluster, world.witness)
    before = {} if name == "encryption" else pair(world, name)
    try:
        key = declare(world, name, seed)
        for step, victim in zip(STEPS, chance.sample(VICTIMS, len(VICTIMS)), strict=True):
            node, last = chance.choice(cluster.nodes), record(world)["jid"]
            start(world, name)
            if name == "encryption" and step == STEPS[0]:
                parts = 3 * (1 + len(cluster.nodes)) + 1  # three rehearsals, each API server after each, and the rewriting
                moment = anywhere_in_the_command(world, last, chance.randrange(parts), chance.uniform(0, PART_S))
            else:
                moment = at_a_random_moment(world, name, step, chance.uniform(0, STEP_S))
            print(f"{name}: {victim} ({node.name}) killed {moment}" + ("" if under_way(world) else ", after the command's end"))
            kill(world, victim, node)
            recover(world)
            judge.all_serve(patience_s=180)
            for other in cluster.nodes:
                world.witness.is_read_through(other)
        if name == "encryption" or mark(world, name).exists():  # else it was over, and this would begin another
            done = cluster.orchestrate(sls=words(name))
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        after = {} if name == "encryption" else pair(world, name)
        assert after.keys() == before.keys()
        assert not [file for file in before if before[file] == after[file]]
        if name == "encryption":
            assert_nothing_is_left(world, key)
        for other in cluster.nodes:
            world.witness.is_read_through(other)
        judge.all_serve(patience_s=30)
        quiet = cluster.steps()
        assert quiet.ok, quiet.failures
    finally:
        if name == "encryption":
            cluster.pillar(None)
            assert cluster.orchestrate(sls=words(name)).returncode == 0
