{#- The objects that the cluster needs from its installer; any controller applies what it finds different. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- elif "kube-apiserver" in cfg.components %}

include:
  - kubernetes_controller.apiserver

{%- for name, document in cfg.objects.items() %}

{%- set where = document.metadata.namespace ~ "/" if document.metadata.namespace is defined else "" %}

{{ (document.kind ~ " " ~ where ~ document.metadata.name ~ " is in the cluster") | json }}:
  k8s_object.applied:
    - name: {{ name }}
    - api: {{ cfg.components["kube-apiserver"].api | json }}
    - document: {{ document | json }}
    - require:
      - k8s_component: kube-apiserver runs as declared
{%- endfor %}
{%- endif %}
