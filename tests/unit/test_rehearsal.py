"""What is rehearsed together, by what is live on a node, declared, and passed before."""

import json
from pathlib import Path
from unittest import mock

A, M, S = "kube-apiserver", "kube-controller-manager", "kube-scheduler"


def settings(**sections):
    return {section: {"settings": {"v": level}} for section, level in sections.items()}


def promote(node, components):
    for row in components.values():
        node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))


def stamp(node, components, *names, data="snapshot"):
    """As a rehearsal of these together leaves it, with the others as they are live."""
    cast = {name: node.modules["k8s_generation.links"](row["home"])["live"] for name, row in components.items()}
    live = dict(cast)
    cast |= {name: node.modules["k8s_generation.prepare"](components[name]) for name in names}
    for name in names:
        said = {cast[name]: {"passed": "2026-11-25T02:30:00Z", "cast": cast, "live": live, "data": data}}
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


def test_what_passed_on_empty_data_is_rehearsed_again_once_there_is_real_data(node, rows):
    """As in mode manual while etcd is down: a wrong encryption key passes on empty data, and later its gate."""
    promote(node, rows())
    changed, empty = settings(apiserver=3), {"rollout": {"rehearsal": {"data": "empty"}}}
    components = rows(changed)
    node.fake("k8s_config.load", return_value={"components": components})
    serves = node.fake("k8s_health.serves", return_value=False)
    stamp(node, components, A, data="empty")
    generation = node.modules["k8s_generation.digest"](components[A])
    assert due(node, components) == []
    assert node.modules["k8s_rehearsal.needed"](components[A], generation) is False
    serves.return_value = True
    assert due(node, components) == [A]
    assert node.modules["k8s_rehearsal.needed"](components[A], generation)
    assert due(node, rows(changed, empty)) == []
    stamp(node, components, A)
    assert due(node, components) == []


def test_a_cluster_that_is_down_is_repaired_with_what_passed_on_empty_data_to_the_end(node, rows):
    """etcd serves again first, then the API server: neither makes what passed together with them void."""
    promote(node, rows())
    components = rows(settings(apiserver=3, controller_manager=3))
    node.fake("k8s_config.load", return_value={"components": components})
    serving = {"etcd"}
    node.fake("k8s_health.serves", side_effect=lambda row: row["name"] in serving)
    stamp(node, components, A, M, data="empty")
    for name in (A, M):
        generation = node.modules["k8s_generation.digest"](components[name])
        assert node.modules["k8s_rehearsal.needed"](components[name], generation) is False
        promote(node, {name: components[name]})
        serving.add(name)


def test_while_a_rollout_brings_them_to_the_node_one_after_another_nothing_is_rehearsed_again(node, rows):
    promote(node, rows())
    components = rows(settings(apiserver=3, scheduler=3))
    node.fake("k8s_config.load", return_value={"components": components})
    stamp(node, components, A, S)
    for name in (A, S):
        generation = node.modules["k8s_generation.prepare"](components[name])
        assert node.modules["k8s_rehearsal.needed"](components[name], generation) is False
        promote(node, {name: components[name]})


def test_what_passed_with_one_that_failed_its_gate_is_rehearsed_again_with_the_good_one(node, rows):
    promote(node, rows())
    components = rows(settings(apiserver=3, controller_manager=3))
    node.fake("k8s_config.load", return_value={"components": components})
    stamp(node, components, A, M)
    manager = node.modules["k8s_generation.digest"](components[M])
    assert node.modules["k8s_rehearsal.needed"](components[M], manager) is False
    node.modules["k8s_generation.remember_failure"](
        components[A]["home"], node.modules["k8s_generation.digest"](components[A]), "it crashed"
    )
    assert node.modules["k8s_rehearsal.needed"](components[M], manager)
    assert due(node, components) == [M]
    stamp(node, components, M)
    assert due(node, components) == []
    node.modules["k8s_generation.forget_failures"](components[A]["home"])
    assert due(node, components) == [A, M], "tried again on the operator's word, and together"


def test_one_component_alone_is_rehearsed_with_the_others_as_they_are(node, rows):
    promote(node, rows())
    components = rows(settings(apiserver=3, scheduler=3))
    node.fake("k8s_config.load", return_value={"components": components})
    stamp(node, components, A)
    needed = {name: node.modules["k8s_generation.prepare"](components[name]) for name in (A, M, S)}
    assert {name: node.modules["k8s_rehearsal.needed"](components[name], generation) for name, generation in needed.items()} == {
        A: False, M: False, S: True,
    }  # fmt: skip


def test_what_is_encrypted_and_leaves_the_declaration_is_read_too(node, rows):
    def encrypted(*resources):
        entry = {"resources": list(resources), "providers": [{"secretbox": {"keys": ["encryption-key1"]}}, {"identity": {}}]}
        return rows({"encryption": [entry]})

    inside = node.modules["k8s_rehearsal.due"].func.__globals__
    with mock.patch.dict(inside, {"__salt__": node.modules}):
        read = inside["_encrypted"]
        assert read(encrypted("secrets", "*.apps")[A]) == ["secrets"]
        promote(node, {A: encrypted("secrets", "configmaps", "things.example.com", "*.apps")[A]})
        assert read(encrypted("secrets")[A]) == ["secrets", "configmaps", "things.example.com"]
        (Path(rows()[A]["home"]) / "live/encryption.yaml").write_text("garbage")
        assert read(encrypted("secrets")[A]) == ["secrets"]


def test_a_resource_that_the_api_has_no_more_is_not_read(node):
    """As a custom resource's that went, and its live encryption with it: nothing could be declared that passes, else."""
    answers = {
        "/apis/example.com": {"versions": [{"groupVersion": "example.com/v2"}, {"groupVersion": "example.com/v1"}]},
        "/apis/example.com/v2": {"resources": [{"name": "others"}]},
        "/apis/example.com/v1": {"resources": [{"name": "others"}, {"name": "things"}]},
    }
    asked = []

    def inside(function, api, path, **words):
        asked.append(path.partition("?")[0])
        if path in answers:
            return {"status": 200, "body": json.dumps(answers[path])}
        return {"status": 500 if "things" in path else 404, "body": json.dumps({"message": "StorageError: not transformable"})}

    node.fake("k8s_stage.inside", inside)
    unreadable = node.modules["k8s_scene.unreadable"]
    assert unreadable({}, ["gone.example.com", "gone.example.org"]) is None
    assert "stored things.example.com cannot be read: 500 StorageError" in unreadable({}, ["things.example.com"])
    assert asked[-1] == "/apis/example.com/v1/things"


def test_what_a_rehearsal_writes_is_in_a_namespace_of_its_own(node):
    """A quota of the namespace default, used up, failed every rehearsal."""
    made = []

    def inside(function, api, path, method="GET", body=None, **words):
        if method == "POST":
            made.append(path)
        quota = "/namespaces/default/" in path
        return {"status": 403 if quota else 200, "body": json.dumps({"message": "exceeded quota"} if quota else {"metadata": {}})}

    node.fake("k8s_stage.inside", inside)
    assert node.modules["k8s_scene.apiserver"]({"name": A}, ["secrets"]) is None
    namespace, configmaps, secrets = made
    assert namespace == "/api/v1/namespaces"
    assert configmaps.rpartition("/")[0] == secrets.rpartition("/")[0]
    assert configmaps.startswith("/api/v1/namespaces/rehearsal-")


def test_a_controller_without_an_api_server_beside_it_is_not_rehearsed(node, rows):
    components = rows()
    promote(node, {name: row for name, row in components.items() if name != A})
    changed = rows(settings(scheduler=3), {"apiserver": {"enabled": False}})
    node.fake("k8s_config.load", return_value={"components": changed})
    assert due(node, changed) == []
    assert node.modules["k8s_rehearsal.needed"](changed[S], node.modules["k8s_generation.prepare"](changed[S])) is False
