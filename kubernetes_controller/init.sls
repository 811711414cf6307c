{#- A whole controller: binaries, accounts, every component in its order, the cluster's objects, links for people, and the health. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}

include:
  - kubernetes_controller.binaries
  - kubernetes_controller.preflight
  - kubernetes_controller.prepare
  - kubernetes_controller.rehearsal
  - kubernetes_controller.etcd
  - kubernetes_controller.apiserver
  - kubernetes_controller.controller_manager
  - kubernetes_controller.scheduler
  - kubernetes_controller.objects
  - kubernetes_controller.links
  - kubernetes_controller.health

extend:
{%- for name in cfg.components %}
  {{ name }} runs as declared:
    k8s_component:
      - require:
        - k8s_rehearsal: This node's generations passed their rehearsal
      {%- if name in cfg.after %}
        - k8s_component: {{ cfg.after[name] }} runs as declared
      {%- endif %}
{%- endfor %}
  Every component of this controller serves:
    k8s_health:
      - mended_before: True
      - require:
      {%- for name in cfg.components %}
        - k8s_component: {{ name }} runs as declared
      {%- endfor %}
{%- endif %}
