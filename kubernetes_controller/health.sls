{#- Whether every component of this node serves, asked at the address that it really binds; changes nothing.
    pillar='{"kubernetes_controller_mended_before": true}' comes from a run whose earlier steps start what does not serve. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}

Every component of this controller serves:
  k8s_health.ready:
    - components: {{ cfg.components | json }}
    - mended_before: {{ pillar.get("kubernetes_controller_mended_before", false) | json }}
{%- endif %}
