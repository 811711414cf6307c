{#- Whether what is declared for this node works, shown beside what runs; asked before any component is touched. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}

include:
  - kubernetes_controller.prepare

This node's generations passed their rehearsal:
  k8s_rehearsal.passed:
    - components: {{ cfg.components | json }}
    - require:
      - sls: kubernetes_controller.prepare
{%- endif %}
