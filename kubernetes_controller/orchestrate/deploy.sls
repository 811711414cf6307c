{#- salt-run state.orchestrate kubernetes_controller.orchestrate.deploy: from a pillar to a healthy control plane.
    All nodes at once where nothing serves yet, one node after another where something does. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}
{%- set nodes = cfg.controllers | list %}
{#- Salt's own 5 s are too few for nodes that are busy. #}
{%- set answer_s = 20 %}
{#- What the operator says for one run has to reach the nodes; that he starts this is what rollout:mode manual waits for. -#}
{%- set once = dict(kubernetes_controller=dict(rollout=dict(cfg.rollout, mode="automatic"))) %}
{#- A function of Salt's own, so that nodes without the formula's modules answer too. -#}
{%- set running = salt["saltutil.cmd"](nodes, "service.status", tgt_type="list", arg=["kube-apiserver"], timeout=answer_s) %}
{#- A node that does not answer may serve. #}
{%- set idle = running.values() | selectattr("ret", "sameas", false) | list %}
{%- set serving = idle | length < nodes | length %}
{#- A test run cannot sync, and salt.state shows nothing of a minion that says so without changes. -#}
{%- set unsynced = [] %}
{%- if opts.test %}
{%- for node, said in salt["saltutil.cmd"](nodes, "k8s_config.load", tgt_type="list").items() %}
{%- if said.ret is string or "stale" in said.ret %}{% do unsynced.append(node) %}{% endif %}
{%- endfor %}
{%- endif %}

include:
  - kubernetes_controller.orchestrate.pki

{%- for kind in ["modules", "states"] %}

Every controller has the {{ kind }} of the formula:
  salt.function:
    - name: saltutil.sync_{{ kind }}
    - tgt: {{ nodes | json }}
    - tgt_type: list
    - timeout: {{ answer_s }}
    - order: first
    - parallel: True
{%- endfor %}

{%- set last = namespace(kind="salt", id="All controllers are set up at once, as nothing serves yet") %}
{%- if unsynced %}
{%- set last.kind, last.id = "test", "What the controllers would change is not knowable yet" %}

What the controllers would change is not knowable yet:
  test.show_notification:
    - text: >-
        {{ unsynced | sort | join(", ") }}: no modules of this version of the formula. They are synced by the first real run, or
        now by `salt -L {{ unsynced | sort | join(",") }} saltutil.sync_all`; then test again.

{%- elif not serving %}

All controllers are set up at once, as nothing serves yet:
  salt.state:
    - tgt: {{ nodes | json }}
    - tgt_type: list
    - sls: kubernetes_controller
    - expect_minions: True
    - pillar: {{ once | json }}
    - require:
      - sls: kubernetes_controller.orchestrate.pki
      - salt: Every controller has the modules of the formula
      - salt: Every controller has the states of the formula

{%- else %}

What is declared for every controller fits together:
  salt.state:
    - tgt: {{ nodes | json }}
    - tgt_type: list
    - sls: kubernetes_controller.preflight
    - expect_minions: True
    - pillar: {{ once | json }}
    - require:
      - sls: kubernetes_controller.orchestrate.pki
      - salt: Every controller has the modules of the formula
      - salt: Every controller has the states of the formula

What is declared for every controller passed its rehearsal:
  salt.state:
    - tgt: {{ nodes | json }}
    - tgt_type: list
    - sls: kubernetes_controller.rehearsal
    - expect_minions: True
    - pillar: {{ once | json }}
    - require:
      - salt: What is declared for every controller fits together

{%- set last.id = "What is declared for every controller passed its rehearsal" %}
{%- for phase in cfg.phases %}
{%- for node in nodes %}

{{ phase | join(", ") }} of {{ node }}:
  salt.state:
    - tgt: {{ [node] | json }}
    - tgt_type: list
    - sls: {{ phase | map("regex_replace", "^", "kubernetes_controller.") | list | json }}
    - expect_minions: True
    - pillar: {{ once | json }}
    - require:
      - salt: {{ last.id }}
{%- set last.id = (phase | join(", ")) ~ " of " ~ node %}
{%- endfor %}
{%- endfor %}

Every component of every controller serves:
  salt.state:
    - tgt: {{ nodes | json }}
    - tgt_type: list
    - sls: kubernetes_controller.health
    - expect_minions: True
    - pillar: {{ once | json }}
    - require:
      - salt: {{ last.id }}
{%- set last.id = "Every component of every controller serves" %}
{%- endif %}

{%- if cfg.admin.kubeconfig %}

The operator has a kubeconfig on the master:
  k8s_kubeconfig.managed:
    - name: {{ cfg.admin.kubeconfig }}
    - server: {{ cfg.admin.server }}
    - cluster: {{ cfg.cluster.name }}
    - user: {{ cfg.admin.user }}
    - authority: {{ cfg.admin.authority }}
    - certificate: {{ cfg.admin.certificate }}
    - key: {{ cfg.admin.key }}
    - keep: {{ cfg.pki.directory }}
    - require:
      - sls: kubernetes_controller.orchestrate.pki
      - {{ last.kind }}: {{ last.id }}
{%- endif %}
{%- endif %}
