{#- The API server of this node, running the generation that the pillar declares. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- elif "kube-apiserver" in cfg.components %}

include:
  - kubernetes_controller.prepare

kube-apiserver runs as declared:
  k8s_component.running:
    - name: kube-apiserver
    - component: {{ cfg.components["kube-apiserver"] | json }}
    - require:
      - sls: kubernetes_controller.prepare
{%- endif %}
