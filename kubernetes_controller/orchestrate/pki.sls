{#- On the master: the CAs, keys and certificates of the cluster, and each minion's share of them for file_tree. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- from "kubernetes_controller/orchestrate/exists.jinja" import exists with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}

The certificates of the cluster are as declared:
  k8s_pki.managed:
    - name: {{ cfg.pki.directory }}
    - pki: {{ cfg.pki | json }}
    - exists: {{ exists(cfg) | trim | json }}
{%- endif %}
