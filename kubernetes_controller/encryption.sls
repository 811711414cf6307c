{#- Every stored object is under the key that the live configuration writes with; objects are written anew, nothing else. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- elif "kube-apiserver" in cfg.components %}

Every stored object is under the present key:
  k8s_encryption.rewritten:
    - api: {{ cfg.components["kube-apiserver"] | json }}
{%- endif %}
