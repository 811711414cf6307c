{#- From the encryption that is live to the one that the pillar declares: the new keys are added everywhere, promoted, what is
    stored is written anew and proven, and only then the former keys go. Goes on where an earlier run was cut off. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready, refused with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}
{%- set nodes = cfg.controllers | list %}
{%- set lives, elsewhere, faults = {}, [], [] %}
{%- set answers = salt["k8s_controllers.ask"](nodes, "k8s_encryption.live") %}
{%- for node in nodes %}
{%- set said = answers[node] %}
{%- if said is mapping and said.get("serves") %}
{%- do lives.update({node: said.providers}) %}
{%- do elsewhere.extend(said.get("elsewhere", [])) %}
{%- else %}
{%- do faults.append(node ~ ": its API server does not serve" if said is mapping else
                     node ~ ": " ~ said if said else salt["k8s_controllers.silence"](node)) %}
{%- endif %}
{%- endfor %}
{%- set plan = {"steps": [], "fault": ""} if faults else salt["k8s_encryption.plan"](cfg.encryption, lives, elsewhere) %}
{%- if plan.fault %}

What is to be rotated can be proven:
{{- refused(plan.fault ~ " Nothing was touched.") }}
{%- elif faults %}

Every controller serves before keys are exchanged:
{{- refused(faults | join("\n") ~ "\nKeys are exchanged only while all controllers serve; nothing was touched.") }}
{%- else %}

include:
  - kubernetes_controller.orchestrate.pki
{%- set last = namespace(kind="salt", id=none) %}
{%- for step in plan.steps %}
{%- set rollout = dict(cfg.rollout, mode="automatic") %}
{%- if step.step == "drop" %}{% do rollout.update({"drop_encryption_keys": true}) %}{% endif %}
{%- set once = dict(kubernetes_controller=dict(rollout=rollout, encryption=step.encryption or cfg.encryption)) %}
{%- if step.step == "rewrite" %}

rewrite, what is stored is under the new key:
  salt.state:
    - tgt: {{ [nodes | first] | json }}
    - tgt_type: list
    - sls: kubernetes_controller.encryption
    - expect_minions: True
    - require:
      - sls: kubernetes_controller.orchestrate.pki
      {%- if last.id %}
      - salt: {{ last.id }}
      {%- endif %}
{%- set last.id = "rewrite, what is stored is under the new key" %}
{%- else %}

{{ step.step }}, every controller passed its rehearsal:
  salt.state:
    - tgt: {{ nodes | json }}
    - tgt_type: list
    - sls: kubernetes_controller.rehearsal
    - expect_minions: True
    - pillar: {{ once | json }}
    - require:
      - sls: kubernetes_controller.orchestrate.pki
      {%- if last.id %}
      - salt: {{ last.id }}
      {%- endif %}
{%- set last.id = step.step ~ ", every controller passed its rehearsal" %}
{%- for node in nodes %}

{{ step.step }}, the API server of {{ node }}:
  salt.state:
    - tgt: {{ [node] | json }}
    - tgt_type: list
    - sls: kubernetes_controller.apiserver
    - expect_minions: True
    - pillar: {{ once | json }}
    - require:
      - salt: {{ last.id }}
{%- set last.id = step.step ~ ", the API server of " ~ node %}
{%- endfor %}
{%- endif %}
{%- endfor %}
{%- if not plan.steps %}
{%- set last.kind, last.id = "test", "The encryption is as declared on every controller" %}

{{ last.id }}:
  test.succeed_without_changes:
    - name: {{ nodes | join(", ") }}
{%- endif %}

The former keys are handed out no more:
  k8s_pki.managed:
    - name: {{ cfg.pki.directory }}
    - pki: {{ cfg.pki | json }}
    - dropped: True
    - require:
      - sls: kubernetes_controller.orchestrate.pki
      - {{ last.kind }}: {{ last.id }}
{%- endif %}
{%- endif %}
