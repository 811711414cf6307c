"""The control plane on the booted nodes: run the orchestration, show it as it happens, and say how to look around."""

import subprocess
import sys

from . import master
from .node import ENVIRONMENT
from .shell import LabError, say

ORCHESTRATION = ("state.orchestrate", "kubernetes_controller.orchestrate.deploy")
OUTPUT = "/var/log/salt/deploy.out"
# Runs on the master. An orchestration is silent until it ends, but its log names its own steps, and the formula's
# components tell the event bus when they serve.
WATCH = """
import re, subprocess, sys, threading
import salt.config, salt.utils.event

def follow(log, out):
    step, others = None, 0
    for text in log:
        out.write(text)
        if found := re.search(r"Executing state (\\S+) for \\[(.*)\\]", text):
            step = found[2] if found[1].startswith("salt.") else None
            others += step is None
            if step and others:
                print(f"the master's own {others} states: done", flush=True)
                others = 0
        elif step and (found := re.search(r"Completed state \\[(.*)\\] .*duration_in_ms=([0-9.]+)", text)):
            if found[1] == step:
                print(f"{step}: ended after {float(found[2]) / 1000:.1f} s", flush=True)
        elif text.startswith("[ERROR") and not text[11:].startswith("{") and "Traceback" not in text:
            print(f"salt-master: {text[11:].rstrip()}", flush=True)
        elif re.match(r"\\w*(Error|Exception): ", text):
            print(f"salt-master: {text.rstrip()}", flush=True)

with open(sys.argv[1], "w") as out:
    bus = salt.utils.event.get_event("master", opts=salt.config.client_config("/etc/salt/master"), listen=True)
    run = subprocess.Popen(
        ["salt-run", "--log-level=info", *sys.argv[2:]], stdout=out, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    following = threading.Thread(target=follow, args=(run.stderr, out), daemon=True)
    following.start()
    while run.poll() is None:
        event = bus.get_event(wait=0.2, full=True)
        part, data = (event["tag"].split("/"), event["data"]) if event else ([], {})
        if event and event["tag"] == "kubernetes_controller/progress":
            said = data["data"]
            if said["step"] == "done":
                print(f"  {data['id']}: {said['component']}: {said['process']}: serves after {said['seconds']} s", flush=True)
        elif part[:2] == ["salt", "job"] and part[-1] == "new" and str(data.get("fun", "")).startswith("state."):
            words = [", ".join(one) if isinstance(one, list) else str(one) for one in data.get("arg", [])[:1]]
            print(f"{', '.join(data['minions'])}: {data['fun']} {' '.join(words)}", flush=True)
    following.join(5)
sys.exit(run.returncode)
"""


def deploy(lab):
    """Run the orchestration and print a line for each step as it ends. Returns its exit status."""
    say(f"salt-run {' '.join(ORCHESTRATION)}")
    command = lab.master.command([master.PYTHON, "-uc", WATCH, OUTPUT, *ORCHESTRATION])
    watch = subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    for line in watch.stdout:
        say(line.rstrip())
    status = watch.wait()
    if status:
        say(f"the rollout failed with status {status}; all that Salt said is in {lab.master.root / OUTPUT.lstrip('/')}")
        say("`lab up` again goes on from where it stopped")
    return status


def farewell(lab):
    """Show the health table, the versions, and what to try. Returns the exit status of the health check."""
    health = lab.salt("*", "k8s_health.status", check=False, timeout=60)
    print(health.stdout, end="")
    try:
        print(lab.kubectl("version", timeout=20).stdout, end="")
    except LabError as exc:
        print(exc, file=sys.stderr)
    lab_command = "./lab/lab" if lab.name == "lab" else f"./lab/lab --name {lab.name}"
    print(f"""
Try
  {lab_command} kubectl get --raw '/readyz?verbose'
  {lab_command} salt '*' state.apply kubernetes_controller test=True
  {lab_command} exec controller-1 journalctl -f -u kube-apiserver""")
    return health.returncode
