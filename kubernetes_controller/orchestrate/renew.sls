{#- Certificates that are due are renewed, and taken up by a rollout; with pillar='{"force": true}' all leaf certificates are.
    Fit for a schedule of the master: with pillar='{"scheduled": true}' what else waits is left to rollout:mode. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- from "kubernetes_controller/orchestrate/exists.jinja" import exists with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}

include:
  - kubernetes_controller.orchestrate.deploy

Certificates that are due are renewed:
  k8s_pki.managed:
    - name: {{ cfg.pki.directory }}
    - pki: {{ cfg.pki | json }}
    - force: {{ pillar.get("force", false) | json }}
    - exists: {{ exists(cfg) | trim | json }}
    - require:
      - sls: kubernetes_controller.orchestrate.controllers
    - require_in:
      - sls: kubernetes_controller.orchestrate.pki
{%- endif %}
