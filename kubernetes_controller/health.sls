{#- Whether every component of this node serves, asked at the address that it really binds; changes nothing. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}

Every component of this controller serves:
  k8s_health.ready:
    - components: {{ cfg.components | json }}
{%- endif %}
