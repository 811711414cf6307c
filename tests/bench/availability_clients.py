#!/usr/bin/env python3
"""
The clients of ``availability.py``: each sends at a steady, bounded rate and keeps count of what an application notices.

Started inside the lab's network with a JSON file that says where the API servers are and which clients to run. Prints
"ready" when every client had its first answer, and after SIGTERM one JSON object with what each has seen.

What a client does by itself, before an application would see a failure:

- ``429`` (or 5xx) with ``Retry-After``: it waits as long as it is told, up to ten times, as client-go does. One that
  holds three addresses goes to the next one instead.
- A connection that served before and is closed under a request, or a GOAWAY (also at the first request: the API server
  sends one to each thousandth, and answers it, but httpx does not wait): again on a new connection, at once. That
  is what Go does for reads; the writes here are by clients that can replay the body and for which "exists already" after
  such a loss is success.
- A *new* connection that fails: behind the load balancer the application sees it, that is a failure. One that holds
  three addresses tries the next, each of them twice. One that is pinned tries the same again for up to 30 s: for it the
  stall counts.
"""

import collections
import itertools
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time

FIRST_ERRORS = 6
PINNED_GIVES_UP_S, PINNED_PAUSE_S = 30, 0.1
RETRIES = 10
SILENT_WATCH_S = 30
TIMEOUT_S, CONNECT_TIMEOUT_S = 10, 3
NAMESPACE = "availability"
READ = "read-by-all"
CLOCK = "clock"


class LostError(Exception):
    """A request got no answer. ``fresh``: not by the end of a connection that had served before."""

    def __init__(self, why, fresh, kind="closed"):
        super().__init__(why)
        self.fresh, self.kind = fresh, kind


class SeenError(Exception):
    """What an application would see."""


def config_map(name, **data):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


class Client(threading.Thread):
    """One client: ``sends`` says what it does ("read" or "write"), ``mode`` how it finds an API server."""

    kind, rotates = "", False

    def __init__(self, setting, mode, sends, rate):
        super().__init__(daemon=True)
        self.mode, self.sends, self.period = mode, sends, 1 / rate
        self.name = f"{self.kind}-{mode}-{sends}".replace(" ", "-")
        self.setting, self.stopped, self.ready = setting, setting["stop"], threading.Event()
        self.addresses = itertools.cycle(setting["addresses"][mode])
        # Not all at the same address, nor all at the same moment.
        for _ in range(sum(map(ord, self.name)) % 3):
            next(self.addresses)
        self.offset = sum(map(ord, self.name)) % 10 / 10 * self.period
        self.address = next(self.addresses)
        self.sent, self.failed, self.longest = 0, 0, [0.0, 0.0]
        self.retries, self.errors = collections.Counter(), []

    def exchange(self, verb, name, body):
        """Send one request to ``self.address``; return (status, seconds of Retry-After or None, text), or raise LostError."""
        raise NotImplementedError

    def work(self):
        """Yield the requests of this client, one after the other: (verb, name, body)."""
        for number in itertools.count():
            if self.sends == "read":
                yield "get", READ, None
            else:
                name = f"{self.name}-{number}"
                yield "post", name, config_map(name, step="1")
                yield "put", name, config_map(name, step="2")
                yield "delete", name, None

    def run(self):
        try:
            self.live()
        except Exception as exc:  # whatever it is, the report says it
            self.fail(time.time(), f"this client ended: {type(exc).__name__}: {exc}"[:200])

    def live(self):
        due = time.monotonic() + self.offset
        for request in self.work():
            if self.stopped.wait(max(0.0, due - time.monotonic())):
                return
            due = max(due + self.period, time.monotonic())
            begun, moment = time.monotonic(), time.time()
            try:
                self.request(*request)
            except SeenError as exc:
                self.fail(moment, f"{request[0]}: {exc}")
            self.sent += 1
            took = time.monotonic() - begun
            # What the end of the test cuts off is nobody's failure, but a stall all the same.
            if self.ready.is_set() and took > self.longest[0]:
                self.longest = [round(took, 3), moment]
            self.ready.set()

    def fail(self, moment, text):
        self.failed += 1
        if len(self.errors) < FIRST_ERRORS and text not in (error[1] for error in self.errors):
            self.errors.append([round(moment, 2), text])

    def request(self, verb, name, body):
        """Do one request as the application asked for it."""
        begun, lost = time.monotonic(), False
        if self.rotates and self.mode == "retry":
            self.address = next(self.addresses)  # as with one name for three addresses
        for attempt in itertools.count(1):
            if self.stopped.is_set() and attempt > 1:
                return
            try:
                status, after, text = self.exchange(verb, name, body)
            except LostError as exc:
                lost = True
                self.again(exc, attempt, begun)
                continue
            if after is not None and (status == 429 or status >= 500):
                self.retries[str(status)] += 1
                if attempt > RETRIES:
                    raise SeenError(f"{status} {attempt} times: {text}")
                self.another_or_wait(after)
                continue
            if 200 <= status < 300 or (lost and (verb, status) in {("post", 409), ("delete", 404)}):
                return
            raise SeenError(f"{status}: {text}")

    def again(self, exc, attempt, begun):
        """Count a loss and get ready for the next attempt, or let the application see it."""
        if self.mode == "retry":
            if attempt >= 2 * len(self.setting["addresses"]["retry"]):
                raise SeenError(f"{attempt} attempts: {exc}") from exc
            self.address = next(self.addresses)
        elif exc.fresh and self.mode == "balanced":
            raise SeenError(str(exc)) from exc
        elif attempt > RETRIES and self.mode == "balanced":
            raise SeenError(f"{attempt} attempts: {exc}") from exc
        elif exc.fresh:
            if time.monotonic() - begun > PINNED_GIVES_UP_S:
                raise SeenError(f"for {PINNED_GIVES_UP_S} s: {exc}") from exc
            self.stopped.wait(PINNED_PAUSE_S)
        self.retries["connect" if exc.fresh else exc.kind] += 1

    def another_or_wait(self, seconds):
        if self.mode == "retry":
            self.address = next(self.addresses)
        else:
            self.stopped.wait(seconds)

    def report(self):
        return {
            "kind": self.kind, "mode": self.mode, "does": self.sends, "sent": self.sent, "failed": self.failed,
            "retries": dict(self.retries), "longest_s": self.longest[0], "longest_at": self.longest[1], "errors": self.errors,
        }  # fmt: skip


# -- httpx: HTTP/1.1 with and without keep-alive, HTTP/2 --------------------------------------------------------------


def verified(setting):
    context = ssl.create_default_context(cafile=setting["ca"])
    context.load_cert_chain(setting["certificate"], setting["key"])
    return context


def retry_after(headers):
    """Return the seconds of Retry-After, or None."""
    value = headers.get("Retry-After") or headers.get("retry-after")
    return float(value) if value and value.isdigit() else None


def goaway(exc):
    """Tell whether the server said that it takes no new requests on this connection; httpx drops those under way, Go does not."""
    return "ConnectionTerminated" in str(exc) and "error_code:0" in str(exc).replace("ErrorCodes.NO_ERROR", "0")


def path(name=""):
    return f"/api/v1/namespaces/{NAMESPACE}/configmaps{'/' + name if name else ''}"


class Plain(Client):
    """HTTP/1.1 with one connection that is kept."""

    kind, http2, kept = "http1 keep-alive", False, 1

    def __init__(self, *args):
        super().__init__(*args)
        import httpx

        self.httpx = httpx
        self.session = httpx.Client(
            verify=verified(self.setting), http1=not self.http2, http2=self.http2, trust_env=False,
            timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=4, max_keepalive_connections=self.kept),
        )  # fmt: skip
        # Whether this attempt opened a connection, and the address whose connection may still be open from the last one.
        self.opened, self.open_to = False, None

    def trace(self, event, _info):
        if event == "connection.connect_tcp.started":
            # The library saw by itself, before it sent anything, that the server had closed the connection.
            if self.open_to == self.address:
                self.retries["reopened"] += 1
            self.opened = True

    def exchange(self, verb, name, body):
        self.opened = False
        where = path() if verb == "post" else path(name)
        try:
            answer = self.session.request(verb.upper(), self.address + where, json=body, extensions={"trace": self.trace})
        except self.httpx.TransportError as exc:
            self.open_to = None
            fresh = (self.opened and not goaway(exc)) or isinstance(exc, self.httpx.TimeoutException)
            raise LostError(f"{type(exc).__name__}: {exc}"[:200], fresh, "GOAWAY" if goaway(exc) else "closed") from exc
        self.open_to = self.address if self.kept and answer.headers.get("connection") != "close" else None
        return answer.status_code, retry_after(answer.headers), answer.text[:160].strip()


class Fresh(Plain):
    """HTTP/1.1 with a new connection for each request."""

    kind, kept, rotates = "http1 fresh", 0, True


class Multiplexed(Plain):
    """HTTP/2 with one connection that is kept."""

    kind, http2 = "http2 keep-alive", True


# -- the Python client ------------------------------------------------------------------------------------------------


class Official(Client):
    """The ``kubernetes`` package, with urllib3's own retries as it comes."""

    kind = "python kubernetes"

    def __init__(self, *args):
        super().__init__(*args)
        import kubernetes
        import urllib3

        counter, self.urllib3, self.kubernetes = self.retries, urllib3, kubernetes

        class Counting(urllib3.Retry):
            def increment(self, method=None, url=None, response=None, error=None, _pool=None, _stacktrace=None):
                refused = isinstance(error, urllib3.exceptions.NewConnectionError)
                counter[str(response.status) if response is not None else "connect" if refused else "closed"] += 1
                return super().increment(method, url, response, error, _pool, _stacktrace)

        self.apis = {}
        for address in self.setting["addresses"][self.mode]:
            settings = kubernetes.client.Configuration()
            settings.host, settings.ssl_ca_cert = address, self.setting["ca"]
            settings.cert_file, settings.key_file = self.setting["certificate"], self.setting["key"]
            settings.retries = Counting(urllib3.Retry.DEFAULT.total)
            self.apis[address] = kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(settings))

    def exchange(self, verb, name, body):
        api, rest = self.apis[self.address], {"_request_timeout": (CONNECT_TIMEOUT_S, TIMEOUT_S)}
        calls = {
            "get": lambda: api.read_namespaced_config_map(name, NAMESPACE, **rest),
            "post": lambda: api.create_namespaced_config_map(NAMESPACE, body, **rest),
            "put": lambda: api.replace_namespaced_config_map(name, NAMESPACE, body, **rest),
            "delete": lambda: api.delete_namespaced_config_map(name, NAMESPACE, **rest),
        }
        before = sum(self.retries.values())
        try:
            calls[verb]()
        except self.kubernetes.client.ApiException as exc:
            return self.judged(exc, verb, sum(self.retries.values()) > before)
        except self.urllib3.exceptions.HTTPError as exc:
            reason = getattr(exc, "reason", None) or exc
            # A POST that was sent is not repeated by urllib3: its ProtocolError comes as it is.
            raise LostError(
                f"{type(reason).__name__}: {reason}"[:200], not isinstance(exc, self.urllib3.exceptions.ProtocolError)
            ) from exc
        return 200, None, ""

    @staticmethod
    def judged(exc, verb, repeated):
        """Return the answer; what urllib3 replayed and finds done is done."""
        if repeated and (verb, exc.status) in {("post", 409), ("delete", 404)}:
            return 200, None, ""
        return exc.status, retry_after(exc.headers or {}), str(exc.body)[:160].strip()


# -- kubectl ----------------------------------------------------------------------------------------------------------


class Kubectl(Client):
    """A new kubectl for each request; what client-go retries in it is not seen from outside."""

    kind = "kubectl"

    def work(self):
        for number in itertools.count():
            name = f"{self.name}-{number}"
            yield "get", READ, None
            yield "post", name, config_map(name, step="1")
            yield "put", name, config_map(name, step="2")
            yield "delete", name, None

    def exchange(self, verb, name, body):
        words = {
            "get": ["get", "configmap", name, "--output=name"],
            "post": ["create", "--filename=-", "--validate=false"],
            "put": ["replace", "--filename=-", "--validate=false"],
            "delete": ["delete", "configmap", name, "--wait=false"],
        }
        who = {"server": self.address, "certificate-authority": self.setting["ca"], "namespace": NAMESPACE}
        who |= {"client-certificate": self.setting["certificate"], "client-key": self.setting["key"]}
        who |= {"cache-dir": f"{self.setting['scratch']}/kubectl", "request-timeout": f"{TIMEOUT_S}s"}
        done = subprocess.run(
            [self.setting["kubectl"], *words[verb], *(f"--{flag}={value}" for flag, value in who.items())],
            input=json.dumps(body) if body else "", capture_output=True, text=True, check=False,
            env={"PATH": "/usr/bin:/bin", "HOME": self.setting["scratch"], "GOMAXPROCS": "1", "KUBECONFIG": "/dev/null"},
        )  # fmt: skip
        if not done.returncode:
            return 200, None, ""
        said = " ".join(done.stderr.split())[-200:]
        for words, status in (("(AlreadyExists)", 409), ("(NotFound)", 404)):
            if words in said:
                return status, None, said
        if "Error from server" in said:
            return 500, None, said
        raise LostError(said, fresh=True)


# -- watches ----------------------------------------------------------------------------------------------------------


class Writer(Plain):
    """Counts in one ConfigMap, which the watches watch; each number and the moment of its write are in it."""

    kind = "writer"

    def work(self):
        number = 1
        while True:
            failed = self.failed
            yield "put", CLOCK, config_map(CLOCK, number=str(number))
            if self.failed == failed:
                self.setting["written"] = number
                number += 1

    def request(self, verb, name, body):
        body["data"]["written"] = repr(time.time())
        super().request(verb, name, body)


class Watch(Plain):
    """
    A long watch over HTTP/1.1. Its stall is the longest time from a write to its event, or without a watch; its failures
    are events missed.

    Ended cleanly it goes on from the last resourceVersion, as client-go does. Cut off in the middle it does so too, but
    that counts as a failure unless it is pinned.
    """

    kind = "watch http1"

    def live(self):
        self.number, self.version, self.away_since = None, None, None
        while not self.stopped.is_set():
            self.opened, self.open_to, self.streaming = False, None, False
            try:
                if self.version is None:
                    self.begin()
                else:
                    self.follow()
            except self.httpx.TransportError as exc:
                self.away_since = self.away_since or time.time()
                self.lost(exc)

    def lost(self, exc):
        """Count the end of a watch or of the attempt to begin one, as an application without an informer would see it."""
        how = "GOAWAY" if goaway(exc) else "cut" if self.streaming else "connect" if self.opened else "closed"
        self.retries[how] += 1
        seen = {"balanced": ("cut", "connect"), "retry": ("cut",), "pinned": ()}
        if how in seen[self.mode]:
            self.fail(time.time(), f"watch: {type(exc).__name__}: {exc}"[:200])
        if self.mode == "retry":
            self.address = next(self.addresses)
        elif how == "connect":
            self.stopped.wait(PINNED_PAUSE_S)

    def begin(self):
        """Remember where the counting is now."""
        answer = self.session.get(self.address + path(CLOCK), extensions={"trace": self.trace})
        if answer.status_code != 200:
            return self.refused(answer)
        found = answer.json()
        self.number, self.version = int(found["data"]["number"]), found["metadata"]["resourceVersion"]

    def follow(self):
        """Watch until the server ends it."""
        where = f"{path()}?watch=1&fieldSelector=metadata.name%3D{CLOCK}&resourceVersion={self.version}&allowWatchBookmarks=true"
        timeout = self.httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S, read=SILENT_WATCH_S)
        with self.session.stream("GET", self.address + where, timeout=timeout, extensions={"trace": self.trace}) as answer:
            if answer.status_code != 200:
                answer.read()
                return self.refused(answer)
            self.streaming = True
            self.back()
            for line in answer.iter_lines():
                self.take(json.loads(line))
            self.streaming = False
            self.away_since = time.time()
        self.retries["re-watch"] += 1

    def back(self):
        """Count how long there was no watch."""
        if self.away_since:
            self.stall(time.time() - self.away_since, self.away_since)
        self.away_since = None

    def stall(self, seconds, moment):
        if self.ready.is_set() and seconds > self.longest[0]:
            self.longest = [round(seconds, 3), moment]

    def refused(self, answer):
        after = retry_after(answer.headers)
        if after is None:
            self.fail(time.time(), f"watch: {answer.status_code}: {answer.text[:160]}")
        else:
            self.retries[str(answer.status_code)] += 1
        self.another_or_wait(1 if after is None else after)

    def take(self, event):
        found, now = event["object"], time.time()
        if event["type"] == "ERROR":
            self.version = None  # begins anew with what is there now, as an informer does
            self.retries["relist"] += 1
            # An API server knows no events from before its own start: who was away meanwhile cannot go on from there.
            if found.get("code") != 410:
                self.fail(now, f"watch: {found.get('code')}: {found.get('message')}")
            return
        self.version = found["metadata"]["resourceVersion"]
        if event["type"] != "MODIFIED":
            return
        number, written = int(found["data"]["number"]), float(found["data"]["written"])
        if number not in (self.number, self.number + 1):
            self.fail(now, f"watch: event {number} after {self.number}")
        self.stall(now - written, written)
        self.number, self.sent = number, self.sent + 1
        self.ready.set()


class WatchMultiplexed(Watch):
    """The same over HTTP/2."""

    kind, http2 = "watch http2", True


KINDS = {kind.kind: kind for kind in (Plain, Fresh, Multiplexed, Official, Kubectl, Writer, Watch, WatchMultiplexed)}


def finish(setting, clients):
    """Stop all clients and return what they saw; watches get time to see what was written last."""
    writers = [client for client in clients if client.kind == "writer"]
    watches = [client for client in clients if isinstance(client, Watch)]
    setting["stop"].set()
    for client in clients:
        if client not in watches:
            client.join(TIMEOUT_S)
    if writers:
        # Watches look at the same event as the others, but a stream that is open ends only with its process.
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and any(watch.number != setting["written"] for watch in watches):
            time.sleep(0.1)
    for watch in watches:
        if watch.number != setting.get("written"):
            watch.fail(time.time(), f"watch: the last event was {watch.number}, of {setting.get('written')} written")
    return [client.report() for client in clients]


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        setting = json.load(file)
    setting["stop"], ending = threading.Event(), threading.Event()
    setting["written"] = 0
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    clients = [KINDS[kind](setting, mode, sends, rate) for kind, mode, sends, rate in setting["clients"]]
    for client in clients:
        client.start()
        if client.kind == "writer":
            client.ready.wait(TIMEOUT_S)
    late = [client.name for client in clients if not client.ready.wait(3 * TIMEOUT_S)]
    before = sum(os.times()[:4])
    begun = time.monotonic()
    print(json.dumps({"late": late} if late else "ready"), flush=True)
    ending.wait()
    took = time.monotonic() - begun
    used = sum(os.times()[:4]) - before
    print(json.dumps({"clients": finish(setting, clients), "cpu_s": round(used, 2), "wall_s": round(took, 2)}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # watches are still open


if __name__ == "__main__":
    main()
