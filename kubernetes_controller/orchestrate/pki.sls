{#- On the master: the CAs, keys and certificates of the cluster, and each minion's share of them for file_tree, which has to
    reach it before anything else goes on. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}
{%- set seen = salt["k8s_cluster.seen"](cfg, salt["k8s_pki.begun"](cfg.pki)) %}

include:
  - kubernetes_controller.orchestrate.controllers

The certificates of the cluster are as declared:
  k8s_pki.managed:
    - name: {{ cfg.pki.directory }}
    - pki: {{ cfg.pki | json }}
    - exists: {{ seen.exists | json }}
    - mark: {{ seen.mark | json }}
    - require:
      - sls: kubernetes_controller.orchestrate.controllers

Every controller holds what the master handed out:
  k8s_controllers.delivered:
    - name: {{ cfg.pki.directory }}
    - controllers: {{ cfg.controllers | list | json }}
    - key: {{ cfg.pki.pillar }}
    - require:
      - k8s_pki: The certificates of the cluster are as declared
{%- endif %}
