{#- From one service-account key to another while tokens of both are valid: the next one is known to every API server, then
    it signs, then the former is dropped. Goes on where an earlier run was cut off. -#}
{%- from "kubernetes_controller/map.jinja" import cfg, unready with context %}
{%- from "kubernetes_controller/orchestrate/rotation.jinja" import rotation with context %}
{{ rotation(cfg, "service-account") if cfg else unready }}
