"""
The rollout as an operator sees it: the orchestration, a line for each step as it happens, and a table at the end.

Salt's orchestration says nothing before it ends, but the master's event bus tells of it meanwhile. ``_Record`` folds
those events into what is printed and kept, without I/O; ``_roll`` runs the orchestration in a process of its own,
reads the bus, and leaves the record on the master. A rotation is several rollouts in one orchestration.
"""

import contextlib
import datetime
import json
import logging
import multiprocessing
import os
import pwd
import signal
import sys
import threading
import time

import salt.loader
import salt.runner
import salt.utils.event
import salt.utils.files
import salt.utils.jid

ORCHESTRATIONS = "kubernetes_controller.orchestrate"
PROGRESS = "kubernetes_controller/progress"
MARK = "kubernetes_controller/rollout"
RECORD_DIR = "/var/log/kubernetes_controller"
PKI_DIR = "/srv/kubernetes_controller/pki"
READERS = ["k8s_certificate", "k8s_kubeconfig"]
KEEP = 100  # records
QUIET_S = 30  # without a line, until one says what is being waited for
BUS_S = 10
HEADINGS = ("node", "component", "from", "to", "took", "not serving", "result")
FACTS = ("from", "to", "process", "seconds", "away_s", "result", "step")  # of a row of the table
# A component that was only made ready, or that waited, runs as before.
HARMLESS = ("prepare", "rehearse", "rehearsal", "snapshot", "turn")
IN_PARALLEL = "Started in a separate process"
SILENT = "The minion did not answer. The next rollout goes on from there."
NOT_STARTED = "One or more requisite"
WAITED_FOR = ("state.", "k8s_controllers.", "saltutil.sync_")
UNKNOWN = "not knowable yet"
NO_REASON = "It failed, and gave no reason. What Salt logged meanwhile is in the log beside the record."


def deploy(pillar=None, test=None):
    """
    Roll the control plane out, with a line for each node and step as it happens and a table at the end.

    pillar
        Pillar values for this run (dict), as for ``state.orchestrate``.
    test
        True: say what would change, and change nothing.

    Runs ``state.orchestrate kubernetes_controller.orchestrate.deploy``. Returns the record, which is also left as JSON
    below ``rollout:record_dir`` on the master; ``--out=json`` prints it on standard output, and the lines go to
    standard error then. It has each certificate of controllers and master with its days left. The exit status is 1 when the
    rollout failed or was stopped.

    Ctrl-C stops the rollout after the step that runs, which the nodes bring to its end. A closed terminal does not.

    CLI Example:

    .. code-block:: bash

        salt-run k8s_rollout.deploy
        salt-run k8s_rollout.deploy test=True
        salt-run k8s_rollout.deploy pillar='{"kubernetes_controller": {"rollout": {"adopt": true}}}'
    """
    return _roll("deploy", "rollout", pillar, test)


def renew(force=False, pillar=None, test=None):
    """
    Renew the certificates that are due, and take them up by a rollout.

    force
        True: all leaf certificates, due or not (default False).
    pillar, test
        See ``deploy``, as for all that is printed and kept.

    CLI Example:

    .. code-block:: bash

        salt-run k8s_rollout.renew
        salt-run k8s_rollout.renew force=True
    """
    return _roll("renew", "renewal", _laid_over(pillar, force=force), test)


def rotate_ca(authority, until=None, pillar=None, test=None):
    """
    Exchange managed CAs: the next one is trusted everywhere, then it signs, then the former is dropped; three rollouts.

    authority
        ``kubernetes``, ``signer``, ``etcd``, ``front-proxy``, a list of them, or ``all``.
    until
        The last step to take now: ``trust`` or ``sign`` (default: to the end). Called again, it goes on from there,
        as it does after a kill.
    pillar, test
        See ``deploy``, as for all that is printed and kept.

    CLI Example:

    .. code-block:: bash

        salt-run k8s_rollout.rotate_ca kubernetes
        salt-run k8s_rollout.rotate_ca '["signer", "etcd"]' until=sign
    """
    return _roll("rotate_ca", "rotation", _laid_over(pillar, authority=authority, until=until), test)


def rotate_service_account(until=None, pillar=None, test=None):
    """
    Exchange the key pair of service-account tokens: the next key is accepted everywhere, then it signs, then the former goes.

    until, pillar, test
        See ``rotate_ca``.

    CLI Example:

    .. code-block:: bash

        salt-run k8s_rollout.rotate_service_account
    """
    return _roll("rotate_service_account", "rotation", _laid_over(pillar, until=until), test)


def rotate_encryption(pillar=None, test=None):
    """
    Bring stored objects from the encryption keys that are live to those that the pillar declares.

    pillar, test
        See ``deploy``, as for all that is printed and kept.

    CLI Example:

    .. code-block:: bash

        salt-run k8s_rollout.rotate_encryption
    """
    return _roll("rotate_encryption", "rotation", pillar, test)


def last():
    """
    Show the table of the last rollout again; of one that still runs, what is known by now.

    Returns the record. The exit status is that of the rollout. A renewal and a rotation count as rollouts.

    CLI Example:

    .. code-block:: bash

        salt-run k8s_rollout.last
        salt-run --out=json k8s_rollout.last
    """
    path = os.path.join(_record_dir(), "last.json")
    try:
        with salt.utils.files.fopen(path, encoding="utf-8") as handle:
            data = json.load(handle)
    except (OSError, ValueError) as exc:
        data = {"retcode": 1, "error": f"{path} cannot be read: {exc}"}
    _print(_printable(data.get("error") or _summary(data)))
    return _answer(data)


def _laid_over(pillar, **values):
    """Return the pillar of a run with ``values`` in it; what is no dictionary the orchestration refuses, as that of a deploy."""
    return {**(pillar or {}), **values} if isinstance(pillar or {}, dict) else pillar


def _roll(sls, what, pillar, test):
    """Run an orchestration and tell of it; ``what`` is its word for the operator."""
    for name in ("salt.runner", "salt.minion"):
        logging.getLogger(name).addFilter(_worth_telling)
    jid = salt.utils.jid.gen_jid(__opts__)
    arguments = {"mods": f"{ORCHESTRATIONS}.{sls}", "pillar": pillar, "test": test}
    record = _Record(jid, bool(__opts__.get("test") if test is None else test), what=what)
    with _Sink(_record_dir(), record) as sink, _Signals() as signals:
        sink.lines([f"{what} {jid}, all times UTC. Ctrl-C stops it after the step that runs then."])
        if not record.data["test"]:
            sink.lines(record.synced({kind: __salt__[f"saltutil.sync_{kind}"]() for kind in ("modules", "states")}))
        answer = _run(jid, arguments, record, sink, signals)
        sink.lines(record.end(answer, stopped=bool(signals.seen)))
        record.data["certificates"] = _certificates(record.data["nodes"])
        sink.save()
        sink.text(f"\n{_summary(record.data)}")
    return _answer(record.data)


def _worth_telling(record):
    """Leave out of the log that salt-run itself does not close what it used; it says so at the end of each run."""
    return not str(record.msg).startswith("unclosed ")


# -- what is known of a rollout ---------------------------------------------------------------------------------------


class _Record:
    """What the events of one rollout add up to; ``note`` takes an event and returns the lines to print for it."""

    def __init__(self, jid, test=False, now=None, what="rollout"):
        self.jid, self.total = jid, 0  # states that the orchestration has, without those of rollouts within it
        self.running, self.waiting = {}, {}  # step: since when; job: who has not answered
        self.asking, self.unknown = set(), set()  # steps that only ask minions; who could not tell since the last step's end
        self.data = {
            "jid": jid, "what": what, "pids": [os.getpid()], "test": test, "started": _utc(now or time.time()), "seconds": 0.0,
            "result": "running", "retcode": 1, "rows": [], "steps": [], "failures": [], "not_started": [], "nodes": [],
            "unknown": [],
        }  # fmt: skip

    def note(self, tag, data, now):
        """Take one event of the master's bus, whoever's it is; return lines."""
        data = data if isinstance(data, dict) else {}
        if tag == PROGRESS:
            return self._progress(data.get("id"), data.get("data"), now)
        if tag == f"salt/run/{self.jid}/args":
            return self._step_starts(data, now)
        if tag.startswith(f"salt/job/{self.jid}/prog/"):
            self.total = self.total or data.get("len", 0)
            return self.step_ended(data.get("ret"), now)
        part = tag.split("/")
        if part[:2] == ["salt", "job"] and part[3:] == ["new"]:
            functions = data.get("fun") if isinstance(data.get("fun"), list) else [data.get("fun")]
            if str(functions[0]).startswith(WAITED_FOR) and set(data.get("minions", [])) <= set(self.data["nodes"]):
                self.waiting[part[2]] = set(data["minions"])
        elif part[:2] == ["salt", "job"] and part[3:4] == ["ret"] and part[2] in self.waiting:
            self.waiting[part[2]].discard(part[-1])
            if self.data["test"]:  # what a node cannot know is no change, and of a node without one a step tells nothing
                self._unknown(part[-1], data.get("return"))
        return []

    def synced(self, names):
        """Return a line that tells which of the formula's modules the master got anew, if any."""
        fresh = sorted({name.partition(".")[2] for found in names.values() for name in found or () if ".k8s_" in name})
        return [_line(time.time(), "master", f"has these modules of the formula anew: {', '.join(fresh)}")] if fresh else []

    def _progress(self, node, said, now):
        """A component of a node tells how far it is; of other nodes' clusters nothing is taken."""
        if node not in self.data["nodes"] or not isinstance(said, dict) or "component" not in said:
            return []
        row = self._row(node, said["component"], anew="result" not in said)
        row |= {key: said[key] for key in FACTS if said.get(key) is not None}
        return [_line(now, node, f"{said['component']!s:<23}  {said.get('step')!s:<8}  {_flat(said.get('said'))}")]

    def _row(self, node, component, anew=False):
        """Return the last row of a component; another one for its next change, where that ``anew`` begins."""
        for row in reversed(self.data["rows"]):
            if (row["node"], row["component"]) == (node, component):
                if anew and row["result"]:
                    break
                return row
        self.data["rows"].append({"node": node, "component": component, **dict.fromkeys(FACTS)})
        return self.data["rows"][-1]

    def _step_starts(self, data, now):
        """The orchestration turns to minions."""
        name, nodes = str(data.get("name")), _words(data.get("tgt"))
        self.data["nodes"] += [node for node in nodes if node not in self.data["nodes"]]
        if data.get("type") != "function":
            self.running[name] = now
        self.asking |= {name} if data.get("type") == "question" else set()
        return [_line(now, "master", f"{name}: starts" + (f" on {', '.join(nodes)}" if len(nodes) > 1 else ""))]

    def step_ended(self, state, now):
        """Take the answer of one state of the orchestration; return a line, or none where nothing was done."""
        if not isinstance(state, dict) or str(state.get("comment")).startswith(IN_PARALLEL):
            return []
        name, result = state.get("__id__") or state.get("name"), state.get("result")
        known = name in self.data["not_started"] or any(step["name"] == name for step in self.data["steps"])
        if known and name not in self.running:  # a rotation takes the steps of a rollout again
            return []
        if result is False and str(state.get("comment")).startswith(NOT_STARTED):
            self.data["not_started"].append(name)
            return []
        on_minions = self.running.pop(name, None) is not None and name not in self.asking
        answers, unknown, self.unknown = _answers(state), sorted(self.unknown), set()
        seconds = round(float(state.get("duration") or 0) / 1000, 1)
        self.data["steps"].append({"name": name, "seconds": seconds, "result": result, "nodes": sorted(answers)})
        for node, states in answers.items():
            self._states(node, states)
        if result is False:
            self._failures(name, state, answers)
        if self.data["test"] and not answers:
            self._unknown("master", {name: state})
        what = _outcome(result, answers, unknown) if on_minions or answers else _sentence(state, result)
        return [_line(now, "master", f"{name}: {what} ({seconds} s)")]

    def _states(self, node, states):
        """Take what a node's component states say, for those that did not tell it themselves."""
        for key, state in states.items() if isinstance(states, dict) else ():
            if not key.startswith("k8s_component_|-") or not isinstance(state, dict):
                continue
            changes, result = state.get("changes") or {}, state.get("result")
            told = [row for row in self.data["rows"] if (row["node"], row["component"]) == (node, state.get("name"))]
            if str(state.get("comment")).startswith(NOT_STARTED) or not (changes or told) or (told and told[-1]["result"]):
                continue
            row = self._row(node, state.get("name"))
            row["process"] = row["process"] or changes.get("process")
            row["result"] = {True: "new serving", None: f"would {row['process'] or 'change'}"}.get(result, "failed")

    def _unknown(self, node, states):
        """Take of a test run's states what they cannot know: each a sentence, and of a component a row."""
        for state in states.values() if isinstance(states, dict) else ():
            if not isinstance(state, dict) or state.get("result") is False:
                continue
            for other in filter(self.data["nodes"].__contains__, _to_be_made(state)):
                self._row(other, "certificates")["result"] = UNKNOWN
            said, component = str(state.get("comment")).strip(), state.get("__id__") == f"{state.get('name')} runs as declared"
            pending = component and state.get("result", True) is None
            if state.get("changes") or not (pending or said.lower().startswith(UNKNOWN)):
                continue
            self.unknown |= {node} - {"master"}
            if component or node == "master":
                self._row(node, state["name"] if component else "all")["result"] = UNKNOWN
            told = {"node": node, "state": state.get("__id__") or state.get("name"), "said": said}
            self.data["unknown"] += [told] if told not in self.data["unknown"] else []

    def _failures(self, name, state, answers):
        """Keep the sentence of each state that failed by its own fault; of a step without one, its own."""
        before = len(self.data["failures"])
        for node, states in answers.items():
            if isinstance(states, dict):
                failed = [one for one in states.values() if isinstance(one, dict) and one.get("result") is False]
                for one in failed:
                    if not str(one.get("comment")).startswith(NOT_STARTED):
                        self._failed(node, one.get("__id__") or one.get("name"), one.get("comment"))
            elif isinstance(states, (list, tuple)):
                self._failed(node, name, "\n".join(map(str, states)))
            elif states is False or states is None or "did not return" in str(states):
                self._failed(node, name, SILENT)
            elif isinstance(states, str):
                self._failed(node, name, states)
        said = str(state.get("comment") or "")
        if len(self.data["failures"]) == before and not any(failure["said"] in said for failure in self.data["failures"]):
            self._failed("master", name, said)

    def _failed(self, node, state, said):
        self.data["failures"].append({"node": node, "state": state, "said": str(said or "").strip() or NO_REASON})

    def still(self, now):
        """Return a line that tells what is being waited for."""
        silent = sorted(set().union(*self.waiting.values()) if self.waiting else ())
        steps = [f"{name} (since {now - since:.0f} s)" for name, since in self.running.items()]
        what = f"waiting for {', '.join(steps)}" if steps else "still at work"
        return [_line(now, "master", what + (f"; no answer yet from {', '.join(silent)}" if silent else ""))]

    def end(self, answer, stopped=False, now=None):
        """Take the orchestration's own answer: ``states``, or ``error`` (str) where there is none; return lines."""
        now, states, lines = now or time.time(), answer.get("states"), []
        if isinstance(states, dict):
            for state in sorted(states.values(), key=lambda one: one.get("__run_num__", 0)):
                found = self.step_ended(state, now)  # what the bus did not tell, such as the end of parallel steps
                lines += found if state.get("result") is False else []
        else:
            said = answer.get("error") or "\n".join(map(str, states if isinstance(states, list) else [states]))
            self._failed("master", "the orchestration", said)
        if stopped and isinstance(states, dict) and len(states) < self.total:
            result = "stopped"
        else:
            result = "failed" if answer.get("retcode") or self.data["failures"] or not isinstance(states, dict) else "ok"
        seconds = round(now - _epoch(self.data["started"]), 1)
        self.data |= {"result": result, "retcode": int(result != "ok"), "seconds": seconds}
        return lines


def _answers(state):
    """Return {minion: its answer} of a state of the orchestration that ran something on minions."""
    found = (state.get("changes") or {}).get("ret")
    return found if isinstance(found, dict) else {}


def _to_be_made(state):
    """Return the minions of whose files (those in a share, DIRECTORY/hosts/MINION/KEY/NAME) some would be made on the master."""
    changes = state.get("changes") if isinstance(state.get("changes"), dict) else {}
    made = [path for path, change in changes.items() if not (isinstance(change, dict) and change.get("new") == "removed")]
    found = [path.split("/hosts/")[-1].split("/") for path in made if "/hosts/" in path]
    return sorted({parts[0] for parts in found if len(parts) == 3})


def _outcome(result, answers, unknown=()):
    if result is False:
        failed = [node for node, states in answers.items() if not _passed(states)]
        return f"FAILED{' on ' + ', '.join(sorted(failed)) if failed else ''}"
    if not answers:
        return f"{UNKNOWN} on {', '.join(unknown)}" if unknown else "ended, nothing to change"
    return f"{'would change' if result is None else 'ended, changed'} {', '.join(sorted(answers))}"


def _passed(states):
    return isinstance(states, dict) and all(one.get("result") is not False for one in states.values() if isinstance(one, dict))


def _sentence(state, result):
    text = _flat(state.get("comment"))
    text = text if len(text) <= 100 else f"{text[:97]}..."
    return f"FAILED: {text or NO_REASON}" if result is False else text


# -- as text ----------------------------------------------------------------------------------------------------------


def _line(now, who, said):
    return f"{datetime.datetime.fromtimestamp(now, datetime.timezone.utc):%H:%M:%S}  {who:<12}  {said}"


def _flat(text):
    return " ".join(str(text).split())


def _summary(data):
    """Return the table, the sentences of what failed, and how it ended."""
    rows = [row for row in data["rows"] if row["result"] or row["step"] not in HARMLESS]
    rows.sort(key=lambda row: ["master", *data["nodes"]].index(row["node"]))
    blocks = [_table(rows)] if rows else []
    told = {row["node"] for row in rows} | {failure["node"] for failure in data["failures"] if failure["said"] == SILENT}
    unchanged = [node for node in data["nodes"] if node not in told]
    if unchanged:
        blocks.append(f"unchanged: {', '.join(unchanged)}")
    grouped = {}
    for told in [*data.get("unknown", []), *data["failures"]]:
        grouped.setdefault((told["state"], told["said"]), []).append(told["node"])
    for (state, said), nodes in grouped.items():
        blocks.append(f"{', '.join(sorted(nodes))}: {state}\n" + "\n".join(f"    {line}" for line in said.splitlines()))
    first = _first_to_end(data.get("certificates") or {})
    return "\n\n".join([*blocks, _verdict(data, rows) + (f"\n{first}" if first else "")])


def _first_to_end(certificates):
    """Return a sentence on the certificate that ends first, or None."""
    ends = [
        (int(words.split()[0]), f"{who} {part} {file}: {words}")
        for who, parts in certificates.items()
        for part, files in (parts.items() if isinstance(parts, dict) else ())
        for file, words in files.items()
        if " days" in words  # one that cannot be read has none
    ]
    return f"The first certificate to end is that of {min(ends)[1]}." if ends else None


def _table(rows):
    """Return rows of the record as a table of plain text."""
    cells = [HEADINGS] + [
        (
            row["node"], row["component"], _running(row["from"]), _running(row["to"]), _seconds(row["seconds"]),
            _seconds(row["away_s"]), row["result"] or f"cut off after {row['step']}",
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(len(str(line[column])) for line in cells) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(f"{cell!s:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def _running(what):
    """Return release and (shortened) generation, as far as they are known."""
    if not isinstance(what, dict):
        return "-"
    digest, dot, number = str(what.get("generation") or "").partition(".")
    return " ".join(filter(None, [str(what.get("release") or ""), digest[:8] + dot + number])) or "-"


def _seconds(number):
    return f"{number:.1f} s" if isinstance(number, (int, float)) else "-"


def _verdict(data, rows):
    what = "The test run" if data["test"] else f"The {data.get('what', 'rollout')}"
    began, left = f"{what} of {data['started']}", data["not_started"]
    if data["result"] == "running":
        alive = any(map(_is_salt, data["pids"]))
        return f"{began} {'still runs' if alive else 'was cut off: what is above is all that is known of it'}."
    rest = f" Not started: {_count(left, 'step')}, the first is {left[0]!r}." if left else ""
    if data["result"] == "ok":
        unknown = [row for row in rows if row["result"] == UNKNOWN]
        known = [row for row in rows if row["result"] != UNKNOWN]
        changes = f"{_count(known, 'component')} {'would change' if data['test'] else 'changed'}"
        more = f", {len(unknown)} {UNKNOWN}" if unknown else ""
        return f"{began} ended well after {data['seconds']} s: {changes}{more}."
    if data["result"] == "stopped":
        return f"{began} was STOPPED after {data['seconds']} s, as asked; the next one goes on from there.{rest}"
    return f"{began} FAILED after {data['seconds']} s.{rest}"


def _count(things, name):
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _is_salt(pid):
    try:
        with salt.utils.files.fopen(f"/proc/{pid}/cmdline", "rb") as handle:
            return b"salt" in handle.read()
    except OSError:
        return False


def _words(target):
    return [str(one) for one in target] if isinstance(target, (list, tuple)) else str(target or "").split(",")


def _utc(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def _epoch(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


# -- the orchestration, and the bus -----------------------------------------------------------------------------------


def _run(jid, arguments, record, sink, signals):
    """Run the orchestration in a process of its own, and tell what the bus tells; return the orchestration's answer."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=_orchestrate, args=(ours, theirs, sink.log, jid, arguments))
    process.start()  # before the bus is open: a connection is not to be shared with a child
    theirs.close()
    record.data["pids"].append(process.pid)
    with salt.utils.event.get_event("master", opts=__opts__, listen=False) as bus:  # else it would connect without a timeout
        follow = _follower(bus, jid, record, sink)
        if not (bus.connect_pub(timeout=BUS_S) and follow("start", BUS_S)):
            ours.close()
            process.join()
            return {"error": "The salt-master's event bus does not answer, so nothing was started. Does salt-master run?"}
        ours.send("go")
        stopping = False
        while process.is_alive() and not ours.poll():
            follow()
            if signals.seen and not stopping:
                stopping = True
                sink.lines([_line(time.time(), "master", "stopping: the step that runs goes to its end, no other one starts")])
                __salt__["state.soft_kill"](jid)
        try:
            answer = json.loads(ours.recv_bytes()) if ours.poll() else None
        except EOFError:
            answer = None
        process.join(BUS_S)
        follow("end", BUS_S)
    see = f"; {sink.log} may tell why" if sink.log != os.devnull else ""
    return answer or {"error": f"The orchestration's process ended without an answer (status {process.exitcode}){see}."}


def _follower(bus, jid, record, sink):
    """
    Return a function that takes the next event, if one comes within a moment.

    Given a mark, it sends that to the bus and takes events until it comes back (True): then none before it was lost.
    """

    def follow(mark=None, timeout_s=0):
        tag, until, event = f"{MARK}/{jid}/{mark}", time.monotonic() + timeout_s, None
        while True:
            if mark and not event:
                with contextlib.suppress(Exception):  # whatever Salt raises where the master is gone
                    bus.fire_event({"jid": jid}, tag)
            event = bus.get_event(wait=0.2, full=True)
            if event and event["tag"] == tag:
                return True
            if event:
                sink.lines(record.note(event["tag"], event["data"], time.time()))
            else:
                sink.lines(record.still(time.time()) if sink.quiet_s() > QUIET_S else [])
                time.sleep(0.05)  # a bus that is gone answers at once
            if time.monotonic() >= until:
                return False

    return follow


def _orchestrate(watcher, conn, log, jid, arguments):
    """The orchestration's process. It has a session of its own, so that no terminal can take it away."""
    watcher.close()  # that of the other process; with it open here, the end of that process would not show
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    for number, (path, flags) in enumerate([(os.devnull, os.O_RDONLY), *[(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)] * 2]):
        os.dup2(os.open(path, flags, 0o600), number)
    with contextlib.suppress(EOFError):
        conn.recv()
        # An event for each state of the orchestration, straight to the bus; Salt holds them back for what is local.
        opts = {**__opts__, "state_events": True, "local": False, "master_uri": None}
        try:
            with salt.runner.RunnerClient(opts) as client:
                found = client.functions["state.orchestrate"](orchestration_jid=jid, **arguments)
            answer = {"states": next(iter(found["data"].values())), "retcode": found["retcode"]}
        except Exception as exc:  # noqa: BLE001 (whatever it is, the operator is to read it)
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        with contextlib.suppress(OSError):
            conn.send_bytes(json.dumps(answer, default=str).encode())


class _Signals:
    """
    While it lasts, SIGINT and SIGTERM are only counted, and SIGHUP (a closed terminal) is ignored.

    Where Salt runs runners in a thread, signals are none of ours.
    """

    def __init__(self):
        self.seen, self._kept = 0, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number, handler in ((signal.SIGINT, self._count), (signal.SIGTERM, self._count), (signal.SIGHUP, signal.SIG_IGN)):
                self._kept[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_exception):
        for number, handler in self._kept.items():
            signal.signal(number, handler)

    def _count(self, *_arguments):
        self.seen += 1


# -- where it goes ----------------------------------------------------------------------------------------------------


class _Sink:
    """Prints, and keeps the record and a log of the lines in the record's directory, where that can be had."""

    def __init__(self, directory, record):
        self.record, self.directory, self.log, self._spoke = record, directory, os.devnull, time.monotonic()
        self.name = f"rollout-{record.data['started'].replace(':', '').replace('-', '')}"
        self.trouble = None

    def __enter__(self):
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            os.chmod(self.directory, 0o700)
            self._reserve()
            self.log = os.path.join(self.directory, f"{self.name}.log")
            self.save()
        except OSError as exc:
            self._lost(exc)
        return self

    def __exit__(self, *_exception):
        if self.trouble:
            _print(f"\n{self.trouble}")
        elif self.log != os.devnull:
            _print(f"Record: {self.directory}/{self.name}.json; the lines above, and what Salt logged: {self.name}.log")

    def _reserve(self):
        """Make the record's file, under a name of its own where another rollout began in the same second."""
        base, number = self.name, 1
        while True:
            try:
                os.close(os.open(os.path.join(self.directory, f"{self.name}.json"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                return
            except FileExistsError:
                number += 1
                self.name = f"{base}-{number}"

    def _lost(self, exc):
        """A rollout that repairs a cluster must not fail on a full disk of the master."""
        user, self.log = pwd.getpwuid(os.geteuid()).pw_name, os.devnull
        self.trouble = (
            f"kubernetes_controller:rollout:record_dir: no record of this rollout can be kept in {self.directory}: "
            f"{exc.strerror}. As root: install -d -m 0700 -o {user} {self.directory}"
        )

    def quiet_s(self):
        return time.monotonic() - self._spoke

    def lines(self, lines):
        if lines:
            self.text("\n".join(lines))
            self.save()

    def text(self, text):
        self._spoke, text = time.monotonic(), _printable(text)
        _print(text)
        with contextlib.suppress(OSError), salt.utils.files.fopen(self.log, "a", encoding="utf-8", opener=_private) as handle:
            handle.write(f"{text}\n")

    def save(self):
        """Write the record as it is now, let ``last.json`` lead to it, and remove the oldest ones."""
        if self.trouble:
            return
        path = os.path.join(self.directory, f"{self.name}.json")
        new = f"{path}.new"
        try:
            with salt.utils.files.fopen(new, "w", encoding="utf-8", opener=_private) as handle:
                handle.write(json.dumps(self.record.data, indent=1, default=str) + "\n")
            os.replace(new, path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{path}.link")
            os.symlink(f"{self.name}.json", f"{path}.link")
            os.replace(f"{path}.link", os.path.join(self.directory, "last.json"))
            self._prune()
        except OSError as exc:
            self._lost(exc)

    def _prune(self):
        names = {name.partition(".")[0] for name in os.listdir(self.directory) if name.startswith("rollout-")}
        for name in sorted(names)[:-KEEP]:
            for suffix in ("json", "log"):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self.directory, f"{name}.{suffix}"))


def _printable(text):
    """Return the text without what would control a terminal: much of it comes from minions."""
    return "".join(sign if sign in "\n\t" or sign.isprintable() else "?" for sign in text)


def _private(path, flags):
    return os.open(path, flags, 0o600)


def _record_dir():
    return _place("rollout", "record_dir", RECORD_DIR)


def _place(section, key, default):
    """Return a directory that the pillar of the master's own id names; the orchestration tells what is wrong with it."""
    try:
        pillar = __salt__["pillar.show_pillar"](__opts__["id"])
        found = pillar["kubernetes_controller"][section][key]
    except Exception:  # noqa: BLE001 (a pillar that does not render)
        return default
    return found if isinstance(found, str) and found.startswith("/") else default


def _certificates(nodes):
    """
    Return each certificate with its days left: {minion: {component: {file: words}}}, and of the ``master``'s files.

    It is asked when all else is done; where there is no answer, nothing is known.
    """
    found = {}
    with contextlib.suppress(Exception):  # a rollout is not to fail on this
        found = __salt__["salt.execute"](nodes, "k8s_certificate.expiry", tgt_type="list", timeout=BUS_S) if nodes else {}
    found = {node: said for node, said in found.items() if isinstance(said, dict)}
    with contextlib.suppress(Exception):
        root = _place("pki", "directory", PKI_DIR)
        # Not salt.cmd: for grains that nobody needs here it looks the master's names up.
        ends = salt.loader.minion_mods({**__opts__, "grains": {}}, whitelist=READERS)["k8s_certificate.ends"]
        parts = {part: ends(f"{root}/{part}") for part in ("authorities", "admin")}
        found["master"] = {part: files for part, files in parts.items() if files}
    return found


def _print(text):
    """Print for the operator: on standard error where standard output is asked for the record itself."""
    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
        if not __opts__.get("quiet"):
            print(text, file=sys.stderr if __opts__.get("output") else sys.stdout, flush=True)


def _answer(data):
    """Return the record as the runner's answer, with its exit status; without ``--out`` Salt is not to print it as well."""
    __context__["retcode"] = data["retcode"]
    if not __opts__.get("output"):
        with contextlib.suppress(NameError, ReferenceError, AttributeError):
            __jid_event__.print_func = None  # noqa: F821 (Salt puts it there for each call)
    return data
