{#- Links in bin_dir for people, to the declared releases once they run; a refused release leaves them as they are. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}

include:
  - kubernetes_controller.binaries
{%- if "kube-apiserver" in cfg.components %}
  - kubernetes_controller.apiserver
{%- endif %}

{%- for row in cfg.downloads %}
{{ row.links | join(", ") }} lead to the declared release:
  k8s_binary.linked:
    - name: {{ row.directory }}/{{ row.name }}
    - row: {{ row | json }}
    - require:
    {%- if "kube-apiserver" in cfg.components %}
      - k8s_component: kube-apiserver runs as declared
    {%- else %}
      - sls: kubernetes_controller.binaries
    {%- endif %}
{% endfor %}
{%- endif %}
