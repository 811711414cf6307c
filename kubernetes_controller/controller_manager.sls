{#- The controller manager of this node, running the generation that the pillar declares. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- elif "kube-controller-manager" in cfg.components %}

include:
  - kubernetes_controller.prepare

kube-controller-manager runs as declared:
  k8s_component.running:
    - name: kube-controller-manager
    - component: {{ cfg.components["kube-controller-manager"] | json }}
    - parallel: True
    - require:
      - sls: kubernetes_controller.prepare
{%- endif %}
