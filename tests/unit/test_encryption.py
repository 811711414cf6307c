"""k8s_encryption.plan: from any live configurations to the declared one, readable by everybody at each moment."""

import itertools

import pytest

NODES = ("controller-1", "controller-2", "controller-3")


def entry(*providers, resources=("secrets",)):
    return {"resources": list(resources), "providers": list(providers)}


def box(*keys):
    return {"secretbox": {"keys": list(keys)}}


PLAIN = {"identity": {}}
OLD, NEW, NONE = [entry(box("key1"), PLAIN)], [entry(box("key2"), PLAIN)], [entry(PLAIN)]


@pytest.fixture
def encryption(modules):
    class Encryption:
        def __getattr__(self, name):
            return modules[f"k8s_encryption.{name}"]

        def flat(self, entries):
            """What ``live`` says of a node that has this configuration."""
            found = {}
            for one in entries:
                pairs = []
                for provider in one["providers"]:
                    for kind, options in provider.items():
                        pairs += [[kind, key] for key in options["keys"]] if options else [[kind, ""]]
                found |= {resource: pairs for resource in one["resources"]}
            return found

        def lives(self, *configurations):
            return {node: self.flat(one) for node, one in zip(NODES, configurations, strict=True)}

    return Encryption()


def test_nothing_is_to_do_where_all_is_as_declared(encryption):
    assert encryption.plan(NEW, encryption.lives(NEW, NEW, NEW)) == []


def test_a_new_key_is_added_promoted_and_the_old_one_dropped_last(encryption):
    steps = encryption.plan(NEW, encryption.lives(OLD, OLD, OLD))
    assert [step["step"] for step in steps] == ["add", "promote", "rewrite", "drop"]
    add, promote, _, drop = (step["encryption"] for step in steps)
    assert add == [entry(box("key1"), PLAIN, box("key2"))]
    assert promote == [entry(box("key2"), PLAIN, box("key1"))]
    assert drop == NEW


def test_from_no_encryption_to_encryption(encryption):
    steps = encryption.plan(OLD, encryption.lives(NONE, NONE, NONE))
    assert [step["encryption"] for step in steps] == [[entry(PLAIN, box("key1"))], [entry(box("key1"), PLAIN)], None, OLD]


def test_a_resource_that_joins_is_read_everywhere_before_it_is_encrypted(encryption):
    both = [entry(box("key1"), PLAIN, resources=["secrets", "configmaps"])]
    add = encryption.plan(both, encryption.lives(OLD, OLD, OLD))[0]["encryption"]
    assert add == [entry(box("key1"), PLAIN), entry(PLAIN, box("key1"), resources=["configmaps"])]


@pytest.mark.parametrize("declared", [NEW, [entry({"aescbc": {"keys": ["key9"]}}, box("key1"), PLAIN)], NONE])
def test_at_each_moment_each_node_reads_what_any_other_writes(encryption, declared):
    """Whatever is interrupted where: the next run plans from what it finds, and no step needs a key that a node lacks."""
    steps = [step["encryption"] for step in encryption.plan(declared, encryption.lives(OLD, OLD, OLD)) if step["encryption"]]
    states, chain = [], [OLD, *steps]
    for before, after in itertools.pairwise(chain):
        states += [[after] * done + [before] * (3 - done) for done in (1, 2, 3)]
    for state in states:
        flats = [encryption.flat(one)["secrets"] for one in state]
        assert all(other[0] in one for one in flats for other in flats), state
        rest = encryption.plan(declared, encryption.lives(*state))
        if rest:
            assert [step["step"] for step in rest][-2:] == ["rewrite", "drop"]
            following = next(step["encryption"] for step in rest if step["encryption"])
            after = encryption.flat(following)["secrets"]
            assert all(one[0] in after and after[0] in one for one in flats), (state, following)
