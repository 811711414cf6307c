{#- On the master: the CAs, keys and certificates of the cluster, and each minion's share of them for file_tree. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}
{%- set seen = salt["k8s_cluster.seen"](cfg, salt["k8s_pki.begun"](cfg.pki)) %}

The certificates of the cluster are as declared:
  k8s_pki.managed:
    - name: {{ cfg.pki.directory }}
    - pki: {{ cfg.pki | json }}
    - exists: {{ seen.exists | json }}
    - mark: {{ seen.mark | json }}
{%- endif %}
