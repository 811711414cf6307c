{#- Certificates that are due are renewed, and taken up by a rollout; with pillar='{"force": true}' all leaf certificates are.
    Fit for a schedule of the master: with pillar='{"scheduled": true}' what else waits is left to rollout:mode. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}
{%- set seen = salt["k8s_cluster.seen"](cfg, salt["k8s_pki.begun"](cfg.pki)) %}

include:
  - kubernetes_controller.orchestrate.deploy

Certificates that are due are renewed:
  k8s_pki.managed:
    - name: {{ cfg.pki.directory }}
    - pki: {{ cfg.pki | json }}
    - force: {{ pillar.get("force", false) | json }}
    - exists: {{ seen.exists | json }}
    - mark: {{ seen.mark | json }}
    - require:
      - sls: kubernetes_controller.orchestrate.controllers
    - require_in:
      - sls: kubernetes_controller.orchestrate.pki
{%- endif %}
