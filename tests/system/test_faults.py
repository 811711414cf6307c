"""
The fault matrix: whatever is put into the next configuration, or breaks meanwhile, what works goes on serving.

Each row of ``faults/table.py`` is injected for real and judged in one place (``judged``). In CI those rows run that say so;
all of them run with ``tests/soak/faults``.
"""

import contextlib
import json
import os
import secrets

import pytest
from faults import inject
from faults.judge import COMPONENTS, Judge, Witness
from faults.table import FAULTS

ALL = bool(os.environ.get("KC_SOAK"))
# Of the quick run: a refusal of the preflight, a way back, a killed minion.
SMOKE = ("unknown flag", "binary that dies only in earnest", "minion killed at take_up")


@pytest.fixture(scope="module")
def witness(cluster):
    witness = Witness(cluster)
    yield witness
    witness.undo()


@pytest.fixture(scope="module")
def lasting():
    """What a fault may leave for the next ones, and is undone at the end."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def world(cluster, witness, new_authority, lasting):
    return inject.World(cluster, witness, new_authority, lasting)


def judged(world, fault):
    """Inject a fault, let the operator run what he runs, judge, and see that a correct run converges."""
    judge = world.judge = Judge(world.cluster, world.witness)
    try:
        with contextlib.ExitStack() as broken:
            world.cluster.pillar(json.loads(json.dumps(fault.pillar).replace("FRESH", f"f{secrets.token_hex(4)}")))
            if fault.inject:
                broken.enter_context(fault.inject(world))
            outcome = fault.run(world)
            print(outcome.said)
            if fault.outage:
                broken.close()
            told(fault, outcome)
            serves(world, fault, judge)
            judge.nothing_is_lost()
    except BaseException:
        world.cluster.pillar(None)
        world.cluster.apply()  # so that the next fault meets the cluster as it was
        raise
    world.cluster.pillar(None)
    converges(world, fault, judge)


def told(fault, outcome):
    """What the operator reads has the reason, and nothing that only a programmer reads."""
    assert outcome.ok == (fault.serves == "new"), outcome.said
    for words in fault.says:
        assert words in outcome.said
    assert "Traceback" not in outcome.said


def serves(world, fault, judge):
    judge.all_serve(patience_s=90 if fault.outage else 0)
    if fault.serves == "old":
        hit = {(node.name, component) for node in world.others for component in COMPONENTS} if fault.outage else set()
        judge.old_serves(on(world, fault.nodes, fault.touched) | hit)
    else:
        judge.new_serves(on(world, fault.nodes, fault.changed))


def on(world, nodes, components):
    return {(node.name, component) for node in world.cluster.nodes[:nodes] for component in components}


def converges(world, fault, judge):
    """A correct run brings what is declared now: all generations are those of before the fault again, and good."""
    target = "controller-*" if fault.nodes > 1 else world.node.name
    for component in fault.touched:  # so that the next test of the same fault finds none of it
        world.cluster.salt("k8s_component.retry", component, target=target)
    for answer in world.cluster.apply(target=target).values():
        assert answer.ok, answer.failures
        changed = [name for name in answer.changes if name.endswith("runs as declared")]
        assert not changed or fault.serves == "new", changed
    judge.new_serves(set())


def param(fault):
    return pytest.param(fault, id=fault.name, marks=[pytest.mark.smoke] if fault.name in SMOKE else [])


@pytest.mark.parametrize("fault", [param(row) for row in FAULTS if row.ci or ALL])
def test_a_fault_ends_in_old_or_new_serving(world, fault):
    judged(world, fault)
