"""What etcdctl says of the members' data, and how often they are asked for it."""

import json
import time

import pytest
from salt.exceptions import CommandExecutionError

URLS = [f"https://10.8.0.10{number}:2379" for number in (1, 2, 3)]
WELL = {"revision": 50, "applied": 90, "compacted": 10, "hash": 7}


class Etcd:
    """Three members: at each look one of ``looks`` counts, the last of them from then on. An answer is none for a silent one."""

    def __init__(self, *looks):
        self.looks, self.asked = list(looks), []

    def run(self, row, arguments, access, partly=False):
        urls, what = access["ETCDCTL_ENDPOINTS"].split(","), " ".join(arguments[:2])
        self.asked.append(what)
        if what == "member list":
            return json.dumps({"members": [self.member(number, url) for number, url in enumerate(URLS, 1)]})
        if what == "endpoint status" and self.asked.count(what) > 1 and len(self.looks) > 1:
            self.looks.pop(0)
        now = {url: one for url, one in zip(URLS, self.looks[0], strict=True) if url in urls and one}
        if what == "endpoint status":
            return json.dumps([{"Endpoint": url, "Status": self.status(url, one)} for url, one in now.items()])
        revision = int(next(word for word in arguments if word.startswith("--rev=")).partition("=")[2])
        if what == "get any":
            if now[urls[0]]["compacted"] > revision:
                raise CommandExecutionError("etcdserver: mvcc: required revision has been compacted")
            return "{}"
        known = {url: one for url, one in now.items() if one["compacted"] <= revision and one["hash"]}
        return json.dumps([{"Endpoint": url, "HashKV": self.hash(one)} for url, one in known.items()])

    @staticmethod
    def member(number, url):
        peer = url.replace("2379", "2380")
        return {"ID": number, "name": f"controller-{number}", "peerURLs": [peer], "clientURLs": [url]}

    @staticmethod
    def status(url, one):
        header = {"cluster_id": 1, "member_id": URLS.index(url) + 1, "revision": one["revision"]}
        return {"header": header, "leader": 1, "raftAppliedIndex": one["applied"], "isLearner": one.get("learner", False)}

    @staticmethod
    def hash(one):
        return {"hash": one["hash"], "compact_revision": one["compacted"]}


@pytest.fixture
def survey(node, rows, monkeypatch):
    """A function: what is heard of the members at these looks, and the faults, lasting and passing."""
    row, salted = rows()["etcd"], node.modules.pack["__salt__"]
    node.fake("k8s_etcdctl.greeting", return_value=("none", "no answer"))
    node.fake("k8s_etcdctl.environment", side_effect=lambda row, directory=None: {"ETCDCTL_ENDPOINTS": URLS[0]})

    def asked(*looks):
        etcd, naps = Etcd(*looks), []
        node.fake("k8s_etcdctl.run", side_effect=etcd.run)
        for modules in (node.modules, salted):  # each may have loaded the module for itself
            its = modules["k8s_etcd_members.survey"].func.__globals__
            monkeypatch.setitem(its, "_reach", lambda url: {"state": "answers", "said": ""})
            monkeypatch.setitem(its, "time", type("Clock", (), {"sleep": naps.append, "monotonic": time.monotonic}))
        found = node.modules["k8s_etcd_members.survey"](row, hashes=True)
        controllers = {row_id: url.split("/")[2].split(":")[0] for row_id, url in zip(("a", "b", "c"), URLS, strict=True)}
        lasting = node.modules["k8s_membership.data_faults"](found)
        return etcd, naps, lasting, node.modules["k8s_membership.unwell"](controllers, found)

    return asked


def members(*changes):
    return [{**WELL, **one} for one in (*changes, *[{}] * (3 - len(changes)))]


@pytest.mark.parametrize(
    "look",
    [
        members(),
        members({"revision": 51, "applied": 91}),
        members({"revision": 3, "applied": 9, "learner": True, "compacted": 0}),
        members({"hash": 0}),
    ],
    ids=["idle", "busy", "a learner", "too much to hash in time"],
)
def test_members_that_agree_are_asked_once(survey, look):
    etcd, naps, lasting, passing = survey(look)
    assert (naps, lasting, passing) == ([], [], [])
    assert etcd.asked[:3] == ["endpoint status", "member list", "endpoint hashkv"]
    assert etcd.asked[3:] in ([], ["get any"])


def test_a_member_that_is_down_is_told_and_the_others_are_compared_once(survey):
    etcd, naps, lasting, passing = survey([None, *members()[1:]])
    assert (naps, lasting, len(passing)) == ([], [], 1)
    assert etcd.asked.count("endpoint hashkv") == 1


@pytest.mark.parametrize(
    "first",
    [
        members({"compacted": 40}),
        members({"revision": 51}),
        members({"revision": 5, "applied": 9, "compacted": 0}),
    ],
    ids=["amid a compaction", "between log and data", "just restarted"],
)
def test_what_passes_within_a_second_is_no_fault(survey, first):
    etcd, naps, lasting, passing = survey(first, members())
    assert (naps, lasting, passing) == ([1], [], [])
    assert etcd.asked.count("endpoint hashkv") == 2


def test_members_that_one_compaction_keeps_apart_are_told_by_log_and_revision(survey):
    """What the first of them has compacted, the others have not reached, so there are no hashes to compare."""
    etcd, naps, lasting, passing = survey(members({"revision": 1409, "compacted": 1300}))
    assert naps == [1]
    (said,) = lasting
    assert "https://10.8.0.101:2379: revision 1409; https://10.8.0.102:2379: revision 50; https://10.8.0.103:2379" in said
    assert ["could not be compared" in line for line in passing] == [True]


def test_what_cannot_be_compared_at_three_looks_is_told(survey):
    looks = [members({"revision": 1409 + n, "applied": 900 + n, "compacted": 1300}) for n in range(4)]
    etcd, naps, lasting, passing = survey(*looks)
    assert (naps, lasting) == ([1, 1], [])
    assert "https://10.8.0.101:2379 (revision 1411) compacted beyond what https://10.8.0.102:2379 (revision 50)" in passing[0]
    assert etcd.asked.count("endpoint hashkv") == 3


def test_a_hash_of_an_earlier_look_is_not_compared_with_one_of_a_later(survey):
    first = members({"revision": 51})
    etcd, naps, lasting, passing = survey(
        first, [None, *members({}, {"hash": 8, "revision": 60}, {"hash": 8, "revision": 60})[1:]]
    )
    assert (naps, lasting) == ([1], [])
