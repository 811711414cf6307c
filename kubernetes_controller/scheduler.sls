{#- The scheduler of this node, running the generation that the pillar declares. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- elif "kube-scheduler" in cfg.components %}

include:
  - kubernetes_controller.prepare

kube-scheduler runs as declared:
  k8s_component.running:
    - name: kube-scheduler
    - component: {{ cfg.components["kube-scheduler"] | json }}
    - parallel: True
    - require:
      - sls: kubernetes_controller.prepare
{%- endif %}
