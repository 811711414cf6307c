{#- salt-run state.orchestrate kubernetes_controller.orchestrate.deploy: from a pillar to a healthy control plane.
    All nodes at once where nothing serves yet, one node after another where something does. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}
{%- set nodes = cfg.controllers | list %}
{%- set plan = salt["k8s_roll.plan"](cfg, pillar.get("scheduled", false), opts.test) %}
{#- What the operator says for one run has to reach the nodes; that he starts this is what rollout:mode manual waits for. -#}
{%- set once = dict(kubernetes_controller=dict(rollout=dict(cfg.rollout, mode=plan.mode))) %}

include:
  - kubernetes_controller.orchestrate.pki

{%- set last = namespace(kind="salt", id="All controllers are set up at once, as nothing serves yet") %}
{%- if plan.unsynced %}
{%- set last.kind, last.id = "test", "What the controllers would change is not knowable yet" %}

What the controllers would change is not knowable yet:
  test.show_notification:
    - text: >-
        Not knowable yet: {{ plan.unsynced | join(", ") }}: no modules of this version of the formula. They are synced by the
        first real run, or now by `salt -L {{ plan.unsynced | join(",") }} saltutil.sync_all`; then test again.
    - require:
      - sls: kubernetes_controller.orchestrate.controllers

{%- else %}
{%- if plan.installed %}

What is declared for every controller fits together:
  salt.state:
    - tgt: {{ nodes | json }}
    - tgt_type: list
    - sls: kubernetes_controller.preflight
    - expect_minions: True
    - pillar: {{ once | json }}
    - require:
      - sls: kubernetes_controller.orchestrate.pki

What is declared for every controller passed its rehearsal:
  salt.state:
    - tgt: {{ nodes | json }}
    - tgt_type: list
    - sls: kubernetes_controller.rehearsal
    - expect_minions: True
    - pillar: {{ once | json }}
    - require:
      - salt: What is declared for every controller fits together
{%- endif %}
{%- if not plan.serving %}

All controllers are set up at once, as nothing serves yet:
  salt.state:
    - tgt: {{ nodes | json }}
    - tgt_type: list
    - sls: kubernetes_controller
    - expect_minions: True
    - pillar: {{ once | json }}
    - require:
      - sls: kubernetes_controller.orchestrate.pki
      {%- if plan.installed %}
      - salt: What is declared for every controller passed its rehearsal
      {%- endif %}
{%- else %}
{%- set last.id = "What is declared for every controller passed its rehearsal" %}
{%- for phase, order in plan.phases %}
{%- for node in order %}

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
    - pillar: {{ dict(once, kubernetes_controller_mended_before=true) | json }}
    - require:
      - salt: {{ last.id }}
{%- set last.id = "Every component of every controller serves" %}
{%- endif %}
{%- endif %}

{%- if not salt["k8s_cluster.settled"](cfg) and last.kind == "salt" %}

The master knows that the cluster exists:
  k8s_cluster.known:
    - name: {{ cfg.pki.directory }}
    - cfg: {{ cfg | json }}
    - require:
      - {{ last.kind }}: {{ last.id }}
{%- endif %}

{%- if cfg.admin.kubeconfig %}

The operator has a kubeconfig on the master:
  k8s_kubeconfig.managed:
    - name: {{ cfg.admin.kubeconfig | json }}
    - server: {{ cfg.admin.server | json }}
    - cluster: {{ cfg.cluster.name | json }}
    - user: {{ cfg.admin.user | json }}
    - authority: {{ cfg.admin.authority | json }}
    - certificate: {{ cfg.admin.certificate | json }}
    - key: {{ cfg.admin.key | json }}
    - keep: {{ cfg.pki.directory }}
    - mended_before: {{ cfg.admin.made | json }}
    - require:
      - sls: kubernetes_controller.orchestrate.pki
      - {{ last.kind }}: {{ last.id }}
{%- endif %}
{%- endif %}
