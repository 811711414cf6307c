{#- On the master: the CAs, keys and certificates of the cluster, and each minion's share of them for file_tree, which has to
    reach it before anything else goes on. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- from "kubernetes_controller/orchestrate/exists.jinja" import exists with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}

include:
  - kubernetes_controller.orchestrate.controllers

The certificates of the cluster are as declared:
  k8s_pki.managed:
    - name: {{ cfg.pki.directory }}
    - pki: {{ cfg.pki | json }}
    - exists: {{ exists(cfg) | trim | json }}
    - require:
      - sls: kubernetes_controller.orchestrate.controllers

Every controller holds what the master handed out:
  k8s_controllers.delivered:
    - name: {{ cfg.pki.directory }}
    - controllers: {{ cfg.controllers | list | json }}
    - pillar: {{ cfg.pki.pillar }}
    - require:
      - k8s_pki: The certificates of the cluster are as declared
{%- endif %}
