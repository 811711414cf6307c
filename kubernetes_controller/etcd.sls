{#- The etcd member of this node, where etcd:managed is true, running the generation that the pillar declares. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- elif "etcd" in cfg.components %}

include:
  - kubernetes_controller.prepare

etcd runs as declared:
  k8s_component.running:
    - name: etcd
    - component: {{ cfg.components["etcd"] | json }}
    - require:
      - sls: kubernetes_controller.prepare
{%- endif %}
