"""The control plane on the booted nodes: roll it out as an operator does, and say how to look around."""

import sys

from .shell import LabError, say

DEPLOY = ("salt-run", "k8s_rollout.deploy")


def deploy(lab):
    """Run the formula's rollout on the master, whose lines are the lab's. Returns its exit status."""
    say(" ".join(DEPLOY))
    sys.stdout.flush()
    status = lab.master.attach(DEPLOY)
    if status:
        say(f"the rollout failed with status {status}; `lab up` again goes on from where it stopped")
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
