"""What is rehearsed together, by what is live on a node, declared, and passed before."""

import json
from pathlib import Path

A, M, S = "kube-apiserver", "kube-controller-manager", "kube-scheduler"


def settings(**sections):
    return {section: {"settings": {"v": level}} for section, level in sections.items()}


def promote(node, components):
    for row in components.values():
        node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))


def stamp(node, components, *names):
    for name in names:
        generation = node.modules["k8s_generation.prepare"](components[name])
        Path(components[name]["home"], "rehearsed.json").write_text(json.dumps({generation: "2026-11-25T02:30:00Z"}))


def due(node, components):
    return sorted(node.modules["k8s_rehearsal.due"](components))


def test_nothing_is_due_where_nothing_runs_or_nothing_changed(node, rows):
    components = rows()
    assert due(node, components) == []
    promote(node, components)
    assert due(node, components) == []


def test_what_passed_before_takes_part_again_with_what_did_not(node, rows):
    """As after an upgrade, the way back, and the upgrade again: the scheduler is not to meet the API server that is live."""
    promote(node, rows())
    components = rows(settings(apiserver=3, scheduler=3))
    stamp(node, components, A)
    assert due(node, components) == [A, S]
    stamp(node, components, S)
    assert due(node, components) == []
    components = rows(settings(apiserver=3, scheduler=3, controller_manager=4))
    assert due(node, components) == [A, M, S]


def test_one_component_alone_is_not_rehearsed_again_for_the_others(node, rows):
    promote(node, rows())
    components = rows(settings(apiserver=3, scheduler=3))
    stamp(node, components, A)
    needed = {name: node.modules["k8s_generation.prepare"](components[name]) for name in (A, M, S)}
    assert {name: node.modules["k8s_rehearsal.needed"](components[name], generation) for name, generation in needed.items()} == {
        A: False, M: False, S: True,
    }  # fmt: skip
    assert node.modules["k8s_rehearsal.ensure"](components[A]) == {}
