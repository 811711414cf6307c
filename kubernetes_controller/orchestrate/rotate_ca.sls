{#- From one CA to another while clients of both are served: pillar='{"authority": "kubernetes"}', or a list, or all. The next
    CA is trusted everywhere, then it signs, then the former is dropped. Goes on where an earlier run was cut off. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- from "kubernetes_controller/orchestrate/rotation.jinja" import rotation with context %}
{{ rotation(cfg, pillar.get("authority")) if cfg else unready }}
