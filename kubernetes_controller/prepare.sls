{#- The accounts that the components run as, and the directory of their logs. An account that is there is left as it is. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- if not cfg %}
{{ unready }}
{%- else %}

include:
  - kubernetes_controller.preflight

{{ cfg.log_dir }} holds the logs of the components:
  file.directory:
    - name: {{ cfg.log_dir }}
    - mode: "0755"
    - makedirs: True
    - require:
      - k8s_preflight: What is declared for this node fits together

{%- for name, row in cfg.components.items() %}

{{ name }} has a group:
  group.present:
    - name: {{ row.group }}
    - system: True
    - require:
      - k8s_preflight: What is declared for this node fits together

{#- A state that is there and skipped would make Salt load every state module that it has, two seconds on each node. -#}
{%- set missing = not salt["user.info"](row.user) %}
{%- if missing %}

{{ name }} has an account:
  user.present:
    - name: {{ row.user }}
    - gid: {{ row.group }}
    - system: True
    - shell: /usr/sbin/nologin
    - home: /nonexistent
    - createhome: False
    - require:
      - group: {{ name }} has a group
{%- endif %}
{%- endfor %}
{%- endif %}
