"""k8s_encryption.rewritten with a real generation and a store on disk, which etcdctl and the API server are stood in for."""

import base64
import json
import sys
from pathlib import Path

import pytest

STATE = "k8s_encryption.rewritten"
NOW, FORMER = "k8s:enc:secretbox:v1:encryption-key1:", "k8s:enc:secretbox:v1:encryption-key0:"
ETCDCTL = """\
#!{python}
import base64, json, sys
words = [word for word in sys.argv[1:] if not word.startswith("-")]
store = json.load(open({store!r}))
if "broken" in store:
    sys.exit(store["broken"])
encode = lambda text: base64.b64encode(text.encode()).decode()
found = [{{"key": encode(key), "value": encode(store[key])}} for key in sorted(store) if words[1] <= key < words[2]]
limit = next(int(word.split("=")[1]) for word in sys.argv if word.startswith("--limit="))
print(json.dumps({{"kvs": found[:limit]}}))
"""


class Store:
    """What etcd holds, and an API server that stores what is put under ``writes``."""

    def __init__(self, path):
        self.path, self.writes, self.asked = path, NOW, []

    @property
    def objects(self):
        return json.loads(self.path.read_text())

    @objects.setter
    def objects(self, found):
        self.path.write_text(json.dumps(found))

    def api(self, row, path, method="GET", body=None, content_type="application/json"):
        self.asked.append((method, path))
        *_, namespace, _, name = path.split("/")
        if method == "PUT":
            self.objects = self.objects | {f"/registry/secrets/{namespace}/{name}": f"{self.writes}{body}"}
        return {"status": 200, "body": f"content of {name}"}


@pytest.fixture
def store(node, tmp_path):
    store = Store(tmp_path / "store.json")
    node.fake("k8s_health.api", store.api)
    return store


@pytest.fixture
def row(node, rows, store, tmp_path):
    """The row of an API server that is live, whose etcdctl answers from the store."""
    etcdctl = Path(tmp_path / "bin/etcdctl")
    etcdctl.parent.mkdir(parents=True, exist_ok=True)
    etcdctl.write_text(ETCDCTL.format(python=sys.executable, store=str(store.path)))
    etcdctl.chmod(0o755)
    row = rows()["kube-apiserver"] | {"etcdctl": str(etcdctl)}
    node.modules["k8s_generation.promote"](row["home"], node.modules["k8s_generation.prepare"](row))
    return row


def test_objects_under_another_key_are_written_anew_once(node, apply, testmode, row, store):
    stored = {"/registry/secrets/default/old": f"{FORMER}x", "/registry/secrets/default/plain": "k8s\0x"}
    store.objects = stored | {"/registry/secrets/default/right": f"{NOW}x", "/registry/configmaps/default/plain": "k8s\0x"}
    ret = apply(testmode, node, STATE, "under the present key", api=row)
    assert ret.changes == {"secrets": "2 written anew"}
    assert ret.result is (None if testmode else True)
    put = [path.rpartition("/")[2] for method, path in store.asked if method == "PUT"]
    assert put == ([] if testmode else ["old", "plain"])
    for key, value in stored.items():
        assert store.objects[key] == (value if testmode else f"{NOW}content of {key.rpartition('/')[2]}")


def test_nothing_is_written_where_all_is_under_the_present_key(node, apply, testmode, row, store):
    store.objects = {"/registry/secrets/default/right": f"{NOW}x"}
    ret = apply(testmode, node, STATE, "under the present key", api=row)
    assert (ret.result, ret.changes, store.asked) == (True, {}, [])
    assert ret.comment == "etcd holds no object under another key."


def test_what_etcd_still_holds_under_another_key_afterwards_is_a_failure(node, row, store):
    store.objects = {"/registry/secrets/default/old": f"{FORMER}x"}
    store.writes = FORMER
    ret = node.state(STATE, "under the present key", api=row)
    assert ret.result is False
    assert ret.comment == "etcd still holds objects under another key: 1 secrets."


def test_an_object_that_cannot_be_written_is_named(node, row, store):
    store.objects = {"/registry/secrets/default/old": f"{FORMER}x"}
    node.fake("k8s_health.api", return_value={"status": 403, "body": "forbidden"})
    ret = node.state(STATE, "under the present key", api=row)
    assert (ret.result, ret.changes) == (False, {})
    assert ret.comment == "secrets default/old cannot be written anew: 403 forbidden"


def test_an_etcd_that_does_not_answer_is_a_failure_in_both_modes(node, apply, testmode, row, store):
    store.objects = {"broken": "Error: context deadline exceeded"}
    ret = apply(testmode, node, STATE, "under the present key", api=row)
    assert (ret.result, ret.changes) == (False, {})
    assert ret.comment == "etcd cannot be asked what it holds: Error: context deadline exceeded"


def test_a_live_configuration_that_is_gone_is_a_sentence_in_both_modes(node, apply, testmode, row, store):
    path = Path(row["home"]) / "live/encryption.yaml"
    path.unlink()
    ret = apply(testmode, node, STATE, "under the present key", api=row)
    assert (ret.result, ret.changes) == (False, {})
    assert ret.comment.startswith(f"{path}: No such file or directory. The API server was started with it; apply ")


def test_no_key_is_in_what_is_said(node, apply, testmode, row, store, material):
    store.objects = {"/registry/secrets/default/old": f"{FORMER}x"}
    ret = apply(testmode, node, STATE, "under the present key", api=row)
    key = material["encryption-key1"]
    assert key in (Path(row["home"]) / "live/encryption.yaml").read_text()
    for secret in (key, base64.b64decode(key).decode()):
        assert secret not in f"{ret.changes} {ret.comment}"
