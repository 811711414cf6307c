"""The lab's command line."""

import json
import os
import sys
from pathlib import Path

from . import host
from .lab import Lab
from .shell import LabError, say

USAGE = """\
usage: lab [--name NAME] VERB …

  up [--nodes N]      boot, roll out the control plane, and show its health (again is fine)
  boot [--nodes N]    the bare nodes and the salt-master only
  down                remove the lab without a trace
  reset [NODE …]      controllers bare again, fast, and the master forgets them; or these nodes only
  status [--json]     what there is and what runs
  pillar FILE         lay a YAML file over the lab's pillar (- takes it away)
  salt …              salt on the salt-master, for instance: lab salt '*' test.ping
  salt-run …          salt-run on the salt-master
  exec NODE …         a command in controller-1, …, or salt-master
  kubectl …           kubectl as the operator, on this machine's files
  logs NODE [UNIT]    a node's journal, of a dead node too
"""


def main(argv):
    """Run one verb and return the exit status of what it ran."""
    try:
        name, verb, words = _parse(argv)
        if verb in ("help", "-h", "--help"):
            print(USAGE, end="")
            return 0
        host.check()
        return VERBS[verb](Lab(name), words) or 0
    except LabError as exc:
        print(f"lab: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; the same command again goes on, `lab down` removes what there is.", file=sys.stderr)
        return 130


def _parse(argv):
    """Split the command line; what follows a verb that runs something else is left alone, but for a first --name."""
    name, words = None, list(argv)
    verb = None
    while words and (verb is None or words[0] == "--name" or words[0].startswith("--name=")):
        word = words.pop(0)
        if word == "--name":
            if not words:
                raise LabError("--name needs the name of a lab.")
            name = words.pop(0)
        elif word.startswith("--name="):
            name = word.partition("=")[2]
        else:
            verb = word
    if verb is None:
        verb = "help"
    if verb not in VERBS and verb not in ("help", "-h", "--help"):
        raise LabError(f"there is no verb {verb!r}; `lab help` lists them.")
    return name if name is not None else "lab", verb, words


def _options(verb, words, **known):
    """Return the values of the options in ``words``; a type in ``known`` makes a value, None a switch."""
    found, rest = {}, list(words)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        option = word.removeprefix("--")
        if not word.startswith("--") or option not in known:
            raise LabError(f"`lab {verb}` knows no {word!r}; `lab help` shows what it takes.")
        if known[option] is None:
            found[option] = True
            continue
        value = value if equals else (rest.pop(0) if rest else "")
        try:
            found[option] = known[option](value)
        except ValueError:
            raise LabError(f"--{option} needs a number, not {value!r}.") from None
    return found


def _up(lab, words):
    from .rollout import deploy, farewell

    lab.boot_with_mirror(_options("up", words, nodes=int, name=str).get("nodes"))
    return deploy(lab) or farewell(lab)


def _boot(lab, words):
    lab.boot_with_mirror(_options("boot", words, nodes=int).get("nodes"))


def _down(lab, words):
    _options("down", words)
    lab.down()
    say(f"lab {lab.name} is gone")


def _reset(lab, words):
    _options("reset", [word for word in words if word.startswith("-")])
    lab.reset(words)


def _status(lab, words):
    status = lab.status()
    if _options("status", words, json=None):
        print(json.dumps(status, indent=2))
        return 0
    if not status["nodes"]:
        print(f"There is no lab {lab.name}; `lab --name {lab.name} up` makes it.")
        return 0
    for name, address in {**status["nodes"], lab.master.name: status["master"]}.items():
        print(f"{name:14} {address:14} {'running' if name in status['running'] else 'off'}")
    print(f"network namespace {lab.netns}, files in {lab.directory}")
    return 0


def _pillar(lab, words):
    if len(words) != 1:
        raise LabError("`lab pillar` takes one file, or - to take the overlay away.")
    if words[0] == "-":
        lab.pillar(None)
        return
    try:
        text = Path(words[0]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise LabError(f"{words[0]} cannot be read: {exc}.") from exc
    lab.pillar(text, words[0])


def _salt(lab, words):
    return lab.master.attach(["salt", *words])


def _salt_run(lab, words):
    return lab.master.attach(["salt-run", *words])


def _exec(lab, words):
    if len(words) < 2:
        raise LabError("`lab exec` takes a node and a command, for instance: lab exec controller-1 systemctl status")
    return lab.node(words[0]).attach(words[1:])


def _kubectl(lab, words):
    command = lab.kubectl_command(*words)
    sys.stdout.flush()
    os.execvp(command[0], command)


def _logs(lab, words):
    if len(words) not in (1, 2):
        raise LabError("`lab logs` takes a node and, if you like, one of its units.")
    command = lab.node(words[0]).journal(*(["--unit", words[1]] if len(words) == 2 else []))
    os.execvp(command[0], command)


VERBS = {
    "up": _up, "boot": _boot, "down": _down, "reset": _reset, "status": _status, "pillar": _pillar, "salt": _salt,
    "salt-run": _salt_run, "exec": _exec, "kubectl": _kubectl, "logs": _logs,
}  # fmt: skip
