"""
The table of faults: each row is one fault, where it is caught, what the operator reads, and what serves afterwards.

A new fault is a row here; ``test_faults`` injects it and judges it as all the others.
"""

import dataclasses
from typing import Any

from . import deaths, inject
from .inject import FAULTY, binary, deploy, here, material, part, script

SCHEDULER = ("kube-scheduler",)
API = ("kube-apiserver",)
# A controller whose API server is away for longer than its lease ends by itself, and systemd starts it again.
WITH_API = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
NO_REHEARSAL = {"rollout": {"rehearsal": {"enabled": False}}}
NO_ROOM_ASKED = {"rollout": {"preflight": {"min_free_mib": 0}}}
QUICK_GATE = {"rollout": {"gate": {"timeout_s": 25}}}
# Works, and is another one for each run (FRESH), so that it was never prepared, rehearsed or tried before.
GOOD_FLAG = {"scheduler": {"settings": {"vmodule": "FRESH=1"}}}
GOOD_API_FLAG = {"apiserver": {"settings": {"vmodule": "FRESH=1"}}}
ACCOUNT = {"apiserver": {"user": "k8sapi", "group": "k8sapi"}}


@dataclasses.dataclass(frozen=True)
class Fault:
    """
    One fault.

    ``promises`` of the design that it attacks; ``caught`` where; ``says`` what the output must contain; ``serves``
    afterwards: old (every process as before, but those of ``touched``, which may have been restarted) or new (those of
    ``changed`` run the new generation). ``inject`` (a context manager of the world) and ``pillar`` make it, ``run`` is
    what the operator does. An ``outage`` is judged when what is missing is there again, the others while the fault
    lasts; ``nodes`` are those that the run concerns; ``ci``: runs there, too.
    """

    name: str
    promises: tuple
    caught: str
    says: tuple
    pillar: dict = dataclasses.field(default_factory=dict)
    inject: Any = None
    run: Any = here
    serves: str = "old"
    touched: tuple = ()
    changed: tuple = ()
    nodes: int = 1
    outage: bool = False
    ci: bool = False


def over(*layers):
    """Return the pillar of ``layers``, later ones over earlier ones."""
    found = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(found.get(key), dict)
            found[key] = over(found[key], value) if both else value
    return found


def settings(component, **flags):
    return {component: {"settings": {name.replace("_", "-"): value for name, value in flags.items()}}}


def file_of(component, name, **source):
    return {component: {"files": {name: source}}}


DECLARATION = [
    Fault(
        "unknown flag", (2,), "preflight", ("scheduler:settings:nope: kube-scheduler 1.37.2 has no such flag",),
        settings("scheduler", nope="1"), ci=True,
    ),
    Fault(
        "unknown flag, on all nodes by a rollout", (2,), "preflight of all nodes",
        ("apiserver:settings:aduit-log-maxage: kube-apiserver 1.37.2 has no such flag (nearest: audit-log-maxage)",
         "Nothing was touched"),
        settings("apiserver", aduit_log_maxage=3), run=deploy, nodes=3,
    ),
    Fault(
        "bad value", (2,), "preflight",
        ("scheduler:settings:leader-elect-lease-duration: kube-scheduler 1.37.2 refuses it", "nonsense"),
        settings("scheduler", leader_elect_lease_duration="nonsense"),
    ),
    Fault(
        "unknown feature gate", (2,), "preflight",
        ("apiserver:settings:feature-gates: kube-apiserver 1.37.2 has no feature gate NoSuchGate",),
        settings("apiserver", feature_gates={"NoSuchGate": True}),
    ),
    Fault(
        "unknown admission plugin", (2,), "preflight",
        ("apiserver:settings:enable-admission-plugins: kube-apiserver 1.37.2 has no admission plugin NoSuchPlugin",),
        settings("apiserver", enable_admission_plugins=["NodeRestriction", "NoSuchPlugin"]),
    ),
    Fault(
        "encryption config without the key in use", (3,), "preflight",
        ("encryption: secretbox key encryption-key1 of the live configuration is not declared any more",),
        {"encryption": [{"resources": ["secrets"], "providers": [{"identity": {}}]}]}, ci=True,
    ),
    Fault(
        "garbage in the scheduler's configuration", (2,), "preflight", ("kube-scheduler", "NoSuchKind"),
        {"scheduler": {"config": {"kind": "NoSuchKind"}}},
    ),
    Fault(
        "garbage in a kubeconfig", (2,), "preflight", ("kube-scheduler 1.37.2 refuses it", 'no kind "Garbage" is registered'),
        file_of("scheduler", "kubeconfig", kubeconfig=None, text="kind: Garbage\n"), ci=True,
    ),
    Fault(
        "garbage in the controller-manager's kubeconfig", (2,), "preflight",
        ("kube-controller-manager 1.37.2 refuses it", 'no kind "Garbage" is registered'),
        file_of("controller_manager", "kubeconfig", kubeconfig=None, text="kind: Garbage\n"),
    ),
    Fault(
        "garbage in the encryption configuration", (2, 3), "preflight",
        ("kubernetes_controller:apiserver:files:encryption.yaml",),
        file_of("apiserver", "encryption.yaml", encryption=None, text="kind: Garbage\n"),
    ),
    Fault(
        "scheduler config of a removed API version", (2,), "preflight", ("kube-scheduler", "v1beta3"),
        {"scheduler": {"config": {"apiVersion": "kubescheduler.config.k8s.io/v1beta3"}}}, ci=True,
    ),
    Fault(
        "garbage in the audit policy", (2,), "rehearsal", ("The rehearsal failed: kube-apiserver", "audit"),
        file_of("apiserver", "audit-policy.yaml", yaml={"kind": "NoSuchKind"}), ci=True,
    ),
    Fault(
        "garbage in the audit policy, on all nodes by a rollout", (2,), "rehearsal of all nodes",
        ("The rehearsal failed: kube-apiserver", "audit", "Nothing was touched"),
        file_of("apiserver", "audit-policy.yaml", yaml={"kind": "NoSuchKind"}), run=deploy, nodes=3,
    ),
    Fault(
        "garbage in the authentication configuration", (2,), "preflight", ("kube-apiserver", "NoSuchKind"),
        file_of("apiserver", "authentication.yaml", yaml={"kind": "NoSuchKind"}),
    ),
    Fault(
        "garbage in the audit policy, without a rehearsal", (5,), "gate",
        ("did not pass its gate", "audit", "is back and serves"),
        over(NO_REHEARSAL, file_of("apiserver", "audit-policy.yaml", yaml={"kind": "NoSuchKind"})),
        touched=WITH_API,
    ),
    Fault(
        "garbage in the encryption configuration, without a rehearsal", (5, 6), "gate, after a reload",
        ("kube-apiserver: generation", "(reload (file encryption.yaml)) did not pass its gate", "is back and serves"),
        over(
            NO_REHEARSAL,
            {"rollout": {"drop_encryption_keys": True, "ignore": ["overlap"], "gate": {"timeout_s": 10}}},
            file_of("apiserver", "encryption.yaml", encryption=None, reload=True, text="kind: Garbage\n"),
        ),
        run=part("apiserver"),
    ),
    Fault(
        "another account and garbage in the audit policy, without a rehearsal", (5,), "gate",
        ("did not pass its gate", "audit", "is back and serves"),
        over(ACCOUNT, NO_REHEARSAL, file_of("apiserver", "audit-policy.yaml", yaml={"kind": "NoSuchKind"})),
        touched=WITH_API,
    ),
    Fault(
        "a first, unknown encryption key on one node only", (3,), "preflight",
        ("kubernetes_controller:encryption: the first key for secrets", "is not known to controller-2, controller-3 yet"),
        {"encryption": [{"resources": ["secrets"], "providers": [{"secretbox": {"keys": ["new-key", "encryption-key1"]}}]}]},
        material(inject.new_encryption_key), ci=True,
    ),
    Fault(
        "another domain of the cluster, which is in the issuer of tokens", (14,), "preflight",
        ("kubernetes_controller:cluster:domain, by", "issuer https://kubernetes.default.svc.cluster.local is live and not"),
        {"cluster": {"domain": "k8s.local"}},
    ),
    Fault(
        "an issuer before the one in use, which the others do not know", (3, 14), "preflight",
        ("the issuer of service account tokens (https://new)", "is not known to controller-2, controller-3 yet"),
        settings("apiserver", service_account_issuer=["https://new", "https://kubernetes.default.svc.cluster.local"]),
    ),
    Fault(
        "another prefix in etcd, under which there are no data", (12,), "preflight",
        ("settings:etcd-prefix: /registry2 (live: /registry): there is no namespace kube-system", '"ignore": ["identity"]'),
        settings("apiserver", etcd_prefix="/registry2"), ci=True,
    ),
    Fault(
        "another data directory of etcd, which is empty", (12, 13), "preflight",
        ("etcd:data_dir: /var/lib/etcd-new (live: /var/lib/etcd): there is no data of a member",),
        {"etcd": {"data_dir": "/var/lib/etcd-new"}},
    ),
    Fault(
        "another range of services", (14,), "preflight",
        ("kubernetes_controller:cluster:service_cidr: 10.96.0.0/16 is declared, 10.32.0.0/16 is live",),
        {"cluster": {"service_cidr": "10.96.0.0/16"}},
    ),
    Fault(
        "another range of pods", (14,), "preflight",
        ("kubernetes_controller:cluster:pod_cidr: 10.201.0.0/16 is declared, 10.200.0.0/16 is live",),
        {"cluster": {"pod_cidr": "10.201.0.0/16"}},
    ),
    Fault(
        "port taken", (2,), "preflight",
        ("scheduler:settings:secure-port: port 10999 of 10.8.0.101 is held by process",),
        {"scheduler": {"port": 10999}}, inject=inject.port_taken,
    ),
]  # fmt: skip

BINARIES = [
    Fault(
        "truncated binary", (2,), "preflight", ("/opt/faulty/1.37.2/bin/kube-scheduler", "is it damaged?"),
        FAULTY, binary("kube-scheduler", inject.truncated), ci=True,
    ),
    Fault(
        "binary of another version", (2,), "preflight",
        ("/opt/faulty/1.37.2/bin/kube-apiserver says that it is release 1.36.3, not 1.37.2",),
        FAULTY, binary("kube-apiserver", inject.of_another_release),
    ),
    Fault(
        "another file under the release that runs", (1,), "binaries",
        ("bin/kube-scheduler: /var/lib/kube-scheduler/live runs from it with sha256", "Nothing was installed"),
        {}, inject.exchanged_under_its_release,
    ),
    Fault(
        "binary that hangs", (2,), "preflight", ("kube-scheduler", "could not be asked"),
        FAULTY, binary("kube-scheduler", script(inject.HANGS)),
    ),
    Fault(
        "binary that crashes 5 seconds after it was ready", (2,), "rehearsal",
        ("The rehearsal failed: kube-scheduler: was ready and ended again",),
        FAULTY, binary("kube-scheduler", script(inject.SHORT_LIVED, seconds=5)), ci=True,
    ),
    Fault(
        "binary that dies only in earnest", (5,), "gate",
        ("kube-scheduler: generation", "did not pass its gate", "is back and serves"),
        over(FAULTY, QUICK_GATE),
        binary("kube-scheduler", script(inject.SHORT_LIVED, seconds=0, condition=f"{inject.IN_EARNEST} || exit;")),
        part("scheduler"), touched=SCHEDULER, ci=True,
    ),
]  # fmt: skip

CERTIFICATES = [
    Fault(
        "expired certificate", (2,), "preflight",
        ("kubernetes_controller_pki:apiserver.crt (kube-apiserver, tls.crt): it expired on",),
        inject=material(inject.expired),
    ),
    Fault(
        "certificate for another host", (2,), "preflight",
        ("kubernetes_controller_pki:apiserver.crt (kube-apiserver, tls.crt): it is not valid for 10.8.0.101",),
        inject=material(inject.for_another_host),
    ),
    Fault(
        "certificate without the address of the Service `kubernetes`", (14,), "preflight",
        ("the declared certificate is not valid for 10.32.0.1, the address of the Service `kubernetes`",),
        inject=material(inject.without_the_service), ci=True,
    ),
    Fault(
        "key of another certificate", (2,), "preflight",
        ("kubernetes_controller_pki:apiserver.crt (kube-apiserver, tls.crt): the key belongs to another certificate",),
        inject=material(inject.of_another_certificate),
    ),
    Fault(
        "CA that did not sign the others", (2,), "preflight", ("none of the CAs it is used with signed it",),
        inject=material(inject.another_ca),
    ),
    Fault(
        "wrong etcd client certificate", (2,), "preflight",
        ("kubernetes_controller_pki:apiserver-etcd-client.crt (kube-apiserver, etcd-client.crt): none of the CAs",),
        inject=material(inject.etcd_client_of_another_ca),
    ),
    Fault(
        "all certificates from another CA, consistent in themselves", (3,), "preflight",
        ("kubernetes_controller:pki: the CA that signed the certificate of", "is not known to controller-2, controller-3 yet"),
        inject=material(inject.another_cluster),
    ),
    Fault(
        "a service-account key that the others do not know", (3,), "preflight",
        ("signs service account tokens", "is not known to controller-2, controller-3 yet"),
        inject=material(inject.another_service_account_key),
    ),
]  # fmt: skip

SURROUNDINGS = [
    Fault(
        "too little memory for a rehearsal", (2,), "preflight",
        ("memory: ", "(kubernetes_controller:rollout:preflight:min_available_memory_mib)"),
        over(GOOD_FLAG, {"rollout": {"preflight": {"min_available_memory_mib": 10**9}}}),
    ),
    Fault(
        "disk full while preparing", (1, 5), "prepare",
        ("/var/lib/kube-scheduler/generations/", "No space left on device. Nothing was promoted"),
        over(GOOD_FLAG, NO_ROOM_ASKED), inject.full_while_preparing,
    ),
    Fault(
        "disk full while promoting", (1, 5), "promote",
        ("kube-scheduler: /var/lib/kube-scheduler/live: No space left on device; it still leads to",),
        over(GOOD_FLAG, NO_ROOM_ASKED), inject.full_while_promoting,
    ),
    Fault(
        "one etcd member down, a flag of the API server", (4,), "nothing: etcd has its quorum", (),
        GOOD_API_FLAG, inject.stopped("etcd", 1), part("apiserver"), serves="new", changed=API, outage=True,
    ),
    Fault(
        "one etcd member down, a flag of etcd", (4,), "turn",
        ("controller-3 is not ready", "Another etcd member would be down. Nothing was changed", '"ignore": ["neighbours"]'),
        settings("etcd", heartbeat_interval=120), inject.stopped("etcd", 1), part("etcd"), outage=True,
    ),
    Fault(
        "another controller down", (4,), "turn",
        ("controller-3 is not ready", "Another API server would be down. Nothing was changed", '"ignore": ["neighbours"]'),
        GOOD_FLAG, inject.stopped("kube-apiserver", 1), part("scheduler"), outage=True,
    ),
    Fault(
        "a cluster with an unreachable webhook", (2,), "nothing: it is not in the copy", (),
        GOOD_API_FLAG, inject.webhook(), part("apiserver"), serves="new", changed=API, outage=True,
    ),
    Fault(
        "a cluster with an unreachable webhook for all but kube-system, by a rollout", (2,), "nothing: it is not in the copy", (),
        over(GOOD_FLAG, GOOD_API_FLAG), inject.webhook("kube-system"), deploy, nodes=3,
        serves="new", changed=(*API, *SCHEDULER), outage=True,
    ),
]  # fmt: skip

# A rehearsal does not come there: with an etcd of others, and where something cannot be read.
NOT_REACHED = ("k8s_stage.start_plain_etcd", "k8s_scene.unreadable", "k8s_stage.out_of_memory")
# The steps that a scheduler's new flag does not come to, and what does.
DEADLY = {
    "settle": (GOOD_API_FLAG, API),
    "snapshot": ({"release_dir": "/opt/elsewhere"}, WITH_API),
}
DEADLY_IN_CI = ("take_up",)


def death(name):
    """The row of a minion that is killed at a moment."""
    pillar, changed = DEADLY.get(name, (GOOD_FLAG, SCHEDULER))
    # In a whole run the node's rehearsal comes first; what is applied alone is rehearsed by itself.
    sls = "kubernetes_controller.scheduler" if name == "rehearse" else "kubernetes_controller"
    return Fault(
        f"minion killed at {name}", (7,), "the next run", (), pillar, deaths.hooked, deaths.killed_at(name, sls),
        serves="new", changed=changed, outage=True, ci=name in DEADLY_IN_CI,
    )  # fmt: skip


GO_BACK = over(NO_REHEARSAL, QUICK_GATE, file_of("apiserver", "audit-policy.yaml", yaml={"kind": "NoSuchKind"}))
DEATHS = [
    *(death(name) for name in deaths.steps() if name != "go_back"),
    *(death(name) for name in deaths.stage_steps() if name not in NOT_REACHED),
    Fault(
        "minion killed at go_back", (5, 7), "the next run", ("did not pass its gate", "is back and serves"), GO_BACK,
        deaths.hooked, deaths.killed_going_back, touched=WITH_API, outage=True,
    ),
    Fault(
        "node powered off in the middle of a promotion", (7,), "the next run", (), GOOD_FLAG, deaths.hooked,
        deaths.powered_off_at("take_up"), serves="new", changed=SCHEDULER, outage=True,
    ),
    Fault(
        "node powered off in the middle of a promotion to another account", (7,), "the next run", (),
        over(ACCOUNT, GOOD_API_FLAG), deaths.hooked, deaths.powered_off_at("take_up"), serves="new", changed=API, outage=True,
    ),
    Fault(
        "node cut off from the others while it holds the turn", (4, 7), "the next run", (), over(GOOD_FLAG, QUICK_GATE),
        deaths.hooked, deaths.cut_off_with_the_turn, serves="new", changed=SCHEDULER, outage=True,
    ),
    Fault(
        "master killed in the middle of the orchestration", (7,), "the next rollout", (), GOOD_FLAG,
        run=deaths.master_killed, serves="new", changed=SCHEDULER, nodes=3, outage=True,
    ),
    Fault(
        "two operators applying at once", (4,), "Salt, and the turn", (), GOOD_FLAG,
        run=deaths.two_operators, serves="new", changed=SCHEDULER, nodes=3, outage=True,
    ),
    Fault(
        "everything down at once", (4, 7), "one correct rollout", (), GOOD_FLAG,
        run=deaths.everything_down, serves="new", changed=SCHEDULER, nodes=3, outage=True, ci=True,
    ),
    Fault(
        "etcd without quorum", (4,), "gate", ("etcd",), over(GOOD_API_FLAG, QUICK_GATE), run=deaths.without_quorum,
        touched=WITH_API, outage=True,
    ),
    Fault(
        "etcd without quorum, and a rollout", (4,), "one correct rollout", (), GOOD_API_FLAG,
        run=deaths.without_quorum_rolled_out, serves="new", changed=API, nodes=3, outage=True,
    ),
]  # fmt: skip

FAULTS = [*DECLARATION, *BINARIES, *CERTIFICATES, *SURROUNDINGS, *DEATHS]
KILLED = "minion killed at "


def markdown():
    """Return the table as docs/operations.md has it."""
    lines = ["| fault | promise | caught by | the operator reads | serves |", "|---|---|---|---|---|"]
    killed = [fault.name.removeprefix(KILLED) for fault in FAULTS if fault.name.startswith(KILLED) and fault.serves == "new"]
    for fault in FAULTS:
        name = fault.name
        if name == KILLED + killed[0]:
            name = KILLED + ", ".join(killed)
        elif name.removeprefix(KILLED) in killed:
            continue
        said = " … ".join(f"`{words}`" for words in fault.says) or "–"
        serves = fault.serves + (f"; restarted: {', '.join(fault.touched)}" if fault.touched else "")
        promises = ", ".join(map(str, fault.promises))
        lines.append(f"| {name} | {promises} | {fault.caught} | {said} | {serves} |")
    return "\n".join(lines)
