"""In which order a rollout goes over the controllers, from what they answer."""

import pytest

NODES = ["controller-1", "controller-2", "controller-3"]


@pytest.fixture
def plan(node, resolve):
    """Return a function: the plan where of these nodes the services do not run."""

    def made(*, api=(), etcd=(), leads=None, unreachable=(), fresh=False, managed=True):
        answers = {
            "service.status kube-apiserver": lambda one: one not in api,
            "service.status etcd": lambda one: one not in etcd,
            "file.is_link /var/lib/kubernetes/live": lambda one: not fresh,
            "file.is_link /var/lib/kubernetes-etcd/live": lambda one: not fresh,
            "k8s_etcdctl.leads": lambda one: one == leads,
            "k8s_generation.release /var/lib/kubernetes": lambda one: "1.37.2",
        }

        def ask(nodes, function, arg, **_):
            answer = answers[" ".join([function, *arg])]
            return {one: {"ret": answer(one)} for one in nodes if one not in unreachable}

        node.fake("saltutil.cmd", side_effect=ask)
        servers = {} if managed else {"etcd": {"managed": False, "servers": ["https://10.8.0.9:2379"]}}
        return node.modules["k8s_roll.plan"](resolve(servers, node=None))

    return made


def test_where_all_serve_etcds_leader_goes_last(plan):
    made = plan(leads="controller-1")
    assert (made["serving"], made["installed"]) == (True, True)
    assert made["phases"][0] == [["etcd"], ["controller-2", "controller-3", "controller-1"]]
    assert [order for _, order in made["phases"][1:]] == [NODES] * (len(made["phases"]) - 1)


def test_what_does_not_run_goes_first(plan):
    made = plan(api=["controller-3"], etcd=["controller-2"], leads="controller-1")
    assert made["serving"] is True
    assert made["phases"][0] == [["etcd"], ["controller-2", "controller-3", "controller-1"]]
    assert made["phases"][1][1] == ["controller-3", "controller-1", "controller-2"]


@pytest.mark.parametrize(
    ("nodes", "serving"),
    [
        ({"etcd": NODES[1:]}, False),
        ({"etcd": NODES}, False),
        ({"etcd": NODES[:1]}, True),
        ({"etcd": NODES[1:], "unreachable": NODES[2:]}, True),
        ({"etcd": NODES, "managed": False}, True),
        ({"etcd": NODES, "fresh": True}, True),
    ],
    ids=["two stopped", "all stopped", "one stopped", "one stopped, one unknown", "an etcd of others", "a foreign etcd so far"],
)
def test_where_etcd_has_lost_its_quorum_nothing_serves_and_all_nodes_go_at_once(plan, nodes, serving):
    made = plan(**nodes)
    assert (made["serving"], made["installed"]) == (serving, True)


def test_nothing_runs_anywhere(plan):
    made = plan(api=NODES, etcd=NODES, fresh=True)
    assert (made["serving"], made["installed"]) == (False, False)


def test_certificates_that_cannot_be_read_are_told_by_the_state_that_makes_them(node, resolve):
    cfg = resolve({"rollout": {"mode": "manual"}}, node=None)
    node.fake("saltutil.cmd", return_value={})
    node.fake("k8s_pki.differences", side_effect=PermissionError(13, "Permission denied", "/srv"))
    assert node.modules["k8s_roll.plan"](cfg, scheduled=True)["mode"] == "manual"
