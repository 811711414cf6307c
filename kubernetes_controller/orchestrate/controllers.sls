{#- Before the master's files or any node change: every declared controller has this version of the formula, answers, and
    finds its own pillar in order. A mistyped minion id or address ends here. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}

Every controller answers and finds its pillar in order:
  k8s_controllers.agreed:
    - controllers: {{ cfg.controllers | json }}
{%- endif %}
