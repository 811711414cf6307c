{#- Whether all that is declared for this node fits together; asked before any component is touched. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}

include:
  - kubernetes_controller.binaries

What is declared for this node fits together:
  k8s_preflight.passed:
    - components: {{ cfg.components | json }}
    - require:
      - sls: kubernetes_controller.binaries
{%- endif %}
