{#- The declared releases, beside the others under their release_dir. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}

{%- for key, rows in cfg.downloads | groupby("mirror_key") %}
What {{ key }} leads to answers:
  k8s_binary.reachable:
    - name: {{ key }}
    - rows: {{ rows | json }}
{% endfor %}

{%- for row in cfg.downloads %}
{{ row.name }} is installed as published at {{ row.source }}:
  k8s_binary.installed:
    - name: {{ row.directory }}/{{ row.name }}
    - row: {{ row | json }}
    - require:
      - k8s_binary: What {{ row.mirror_key }} leads to answers
{% endfor %}

{%- for row in cfg.releases %}
No more releases are kept in {{ row.directory }} than declared:
  k8s_binary.pruned:
    - name: {{ row.directory }}
    - row: {{ row | json }}
    - require:
    {%- for download in cfg.downloads %}
      - k8s_binary: {{ download.name }} is installed as published at {{ download.source }}
    {%- endfor %}
{% endfor %}
{%- endif %}
