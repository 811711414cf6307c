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
    """As a rehearsal of these together leaves it, with the others as they are live."""
    cast = {name: node.modules["k8s_generation.links"](row["home"])["live"] for name, row in components.items()}
    live = dict(cast)
    cast |= {name: node.modules["k8s_generation.prepare"](components[name]) for name in names}
    for name in names:
        said = {cast[name]: {"passed": "2026-11-25T02:30:00Z", "cast": cast, "live": live}}
        Path(components[name]["home"], "rehearsed.json").write_text(json.dumps(said))


def due(node, components):
    return sorted(node.modules["k8s_rehearsal.due"](components))


def test_nothing_is_due_where_nothing_runs_or_nothing_changed(node, rows):
    components = rows()
    assert due(node, components) == []
    promote(node, components)
    assert due(node, components) == []


def test_what_passed_alone_takes_part_again_with_what_did_not(node, rows):
    promote(node, rows())
    components = rows(settings(apiserver=3, scheduler=3))
    stamp(node, components, A)
    assert due(node, components) == [A, S]
    stamp(node, components, S)
    assert due(node, components) == [A, S]
    stamp(node, components, A, S)
    assert due(node, components) == []
    components = rows(settings(apiserver=3, scheduler=3, controller_manager=4))
    assert due(node, components) == [A, M, S]


def test_what_passed_before_something_else_became_live_is_rehearsed_again(node, rows):
    """After an upgrade and the way back: what was live in between has written to the data."""
    old, new = rows(settings(apiserver=3, scheduler=3)), rows(settings(apiserver=4, scheduler=4))
    promote(node, rows())
    stamp(node, old, A, S)
    promote(node, old)
    stamp(node, new, A, S)
    promote(node, new)
    node.fake("k8s_config.load", return_value={"components": old})
    assert due(node, old) == [A, S]
    assert node.modules["k8s_rehearsal.needed"](old[A], node.modules["k8s_generation.digest"](old[A]))


def test_while_a_rollout_brings_them_to_the_node_one_after_another_nothing_is_rehearsed_again(node, rows):
    promote(node, rows())
    components = rows(settings(apiserver=3, scheduler=3))
    node.fake("k8s_config.load", return_value={"components": components})
    stamp(node, components, A, S)
    for name in (A, S):
        generation = node.modules["k8s_generation.prepare"](components[name])
        assert node.modules["k8s_rehearsal.needed"](components[name], generation) is False
        promote(node, {name: components[name]})


def test_one_component_alone_is_rehearsed_with_the_others_as_they_are(node, rows):
    promote(node, rows())
    components = rows(settings(apiserver=3, scheduler=3))
    node.fake("k8s_config.load", return_value={"components": components})
    stamp(node, components, A)
    needed = {name: node.modules["k8s_generation.prepare"](components[name]) for name in (A, M, S)}
    assert {name: node.modules["k8s_rehearsal.needed"](components[name], generation) for name, generation in needed.items()} == {
        A: False, M: False, S: True,
    }  # fmt: skip


def test_a_controller_without_an_api_server_beside_it_is_not_rehearsed(node, rows):
    components = rows()
    promote(node, {name: row for name, row in components.items() if name != A})
    changed = rows(settings(scheduler=3), {"apiserver": {"enabled": False}})
    node.fake("k8s_config.load", return_value={"components": changed})
    assert due(node, changed) == []
    assert node.modules["k8s_rehearsal.needed"](changed[S], node.modules["k8s_generation.prepare"](changed[S])) is False
