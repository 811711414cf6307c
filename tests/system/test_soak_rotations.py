"""
Every rotation, with the minion, the master or a node killed at a random moment of it, ends in the rotated state.

Only with KC_SOAK (tests/soak/rotations): a round takes some minutes. A round's choices come from its seed.
"""

import json
import os
import random
import time

import pytest
import yaml
from faults import deaths, inject
from faults.judge import Judge, Witness

TOP, UNIT = "srv/kubernetes_controller/pki", "rotation"
ORCHESTRATE = "kubernetes_controller.orchestrate."
CAS = ("kubernetes", "signer", "etcd", "front-proxy")
ROTATIONS = (*CAS, "service-account", "encryption")
VICTIMS = ("minion", "master", "node")
SEEDS = range(int(os.environ.get("KC_SEED", "0")), int(os.environ.get("KC_SEED", "0")) + int(os.environ.get("KC_ROUNDS", "10")))
ROUNDS = [(victim, seed, ROTATIONS[seed % len(ROTATIONS)]) for victim in VICTIMS for seed in SEEDS]
STEPS = ("trust", "sign", "drop")
LONGEST_STEP_S = 60


@pytest.fixture(scope="module")
def world(cluster, new_authority):
    witness = Witness(cluster)
    yield inject.World(cluster, witness, new_authority, None)
    witness.undo()


def words(name):
    """Return the words of the operator's command."""
    if name == "encryption":
        return ["state.orchestrate", f"{ORCHESTRATE}rotate_encryption"]
    if name == "service-account":
        return ["state.orchestrate", f"{ORCHESTRATE}rotate_service_account"]
    return ["state.orchestrate", f"{ORCHESTRATE}rotate_ca", f"pillar={json.dumps({'authority': name})}"]


def pair(world, name):
    """Return the present pair of a CA, or of the service account, and the names of all files beside it."""
    base = world.lab.master.root / TOP / ("shared" if name == "service-account" else "authorities")
    stem = name if name == "service-account" else f"{name}-ca"
    files = {path.name: path.read_bytes() for path in base.iterdir() if path.name.startswith(stem)}
    return files


def declare(world, name, seed):
    """Give encryption a key with a new name; the others need nothing in the pillar."""
    providers = [{"secretbox": {"keys": [f"soak-{seed}-{int(time.time())}"]}}, {"identity": {}}]
    if name == "encryption":
        world.cluster.pillar({"encryption": [{"resources": ["secrets"], "providers": providers}]})


def start(world, name):
    run = ["systemd-run", "--quiet", "--collect", f"--unit={UNIT}", "salt-run", *words(name)]
    world.lab.master.exec(run)


def under_way(world):
    return not world.lab.master.exec(["systemctl", "is-active", "--quiet", UNIT], check=False).returncode


def at_a_random_moment(world, name, chance):
    """Wait for the moment that the seed says; return what it was."""
    step, seconds = chance.choice(STEPS), chance.uniform(0, LONGEST_STEP_S)
    if name == "encryption":
        seconds *= len(STEPS)
    else:
        base = "shared/service-account" if name == "service-account" else f"authorities/{name}-ca"
        mark = world.lab.master.root / TOP / f"{base}.rotation"

        def reached():
            return not under_way(world) or (mark.exists() and yaml.safe_load(mark.read_text())["step"] == step)

        world.cluster.wait_for(f"the step {step}", reached, 600)
    time.sleep(seconds)
    return f"{seconds:.0f} s after the begin" + (f" of {step}" if name != "encryption" else "")


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
    world.cluster.wait_for("the end of the orchestration", lambda: not under_way(world), 600)
    deaths.minions_answer(world, world.cluster.nodes)
    quiet = ["saltutil.is_running", "state.*"]
    world.cluster.wait_for("the end of what still runs", lambda: not any(world.cluster.salt(*quiet).values()), 300)


@pytest.mark.parametrize(("victim", "seed", "name"), ROUNDS, ids=[f"{victim}-{seed}-{name}" for victim, seed, name in ROUNDS])
def test_a_rotation_with_a_death_in_it_ends_rotated(world, victim, seed, name):
    chance = random.Random(f"{victim} {seed}")
    node, cluster, judge = chance.choice(world.cluster.nodes), world.cluster, Judge(world.cluster, world.witness)
    before = {} if name == "encryption" else pair(world, name)
    try:
        declare(world, name, seed)
        start(world, name)
        moment = at_a_random_moment(world, name, chance)
        running = under_way(world)
        print(f"{name}: {victim} ({node.name}) killed {moment}" + ("" if running else ", when it was over"))
        kill(world, victim, node)
        recover(world)
        judge.all_serve(patience_s=180)
        for other in cluster.nodes:
            world.witness.is_read_through(other)
        begun = name == "encryption" or pair(world, name).keys() != before.keys() or pair(world, name) == before
        if begun:  # else the rotation was over, and this command would begin another
            done = cluster.orchestrate(*words(name)[2:], sls=words(name)[:2])
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        after = {} if name == "encryption" else pair(world, name)
        assert after.keys() == before.keys()
        assert not [file for file in before if before[file] == after[file]]
        for other in cluster.nodes:
            world.witness.is_read_through(other)
        judge.all_serve(patience_s=30)
        quiet = cluster.steps()
        assert quiet.ok, quiet.failures
    finally:
        if name == "encryption":
            cluster.pillar(None)
            assert cluster.orchestrate(sls=words(name)).returncode == 0
