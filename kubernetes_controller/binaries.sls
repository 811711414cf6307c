{#- The declared releases, beside the others under their release_dir, and links in bin_dir for people. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}

{%- for row in cfg.downloads %}
{{ row.name }} is installed as published at {{ row.source }}:
  k8s_binary.installed:
    - name: {{ row.directory }}/{{ row.name }}
    - row: {{ row | json }}
{% endfor %}
{%- endif %}
