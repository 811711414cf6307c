"""
Check a node's declaration as a whole before anything is prepared or touched.
"""

from salt.exceptions import CommandExecutionError


def passed(name, components):
    """
    Ensure that what the pillar declares for this node fits together; nothing is changed either way.

    name
        A sentence.
    components
        The configuration's ``components`` (dict of rows).

    Nothing may run in a component's place that this formula did not start, unless the operator says to adopt it. Every
    certificate, key and file must be there and fit its use, each binary must accept its flags, feature gates and plugins,
    releases and clocks may not be too far from those of the other controllers, and disk and ports must be free. All that
    is wrong is told at once. A component whose declared generation is already good is not asked again.

    .. code-block:: yaml

        What is declared for this node fits together:
          k8s_preflight.passed:
            - components: {{ cfg.components | json }}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    found, unknowable, changing = [], [], {}
    if not __opts__["test"]:
        __salt__["k8s_generation.sweep_drafts"]()
    for component, row in components.items():
        foreign = __salt__["k8s_component.foreign"](row)
        if foreign:
            found.append(foreign)
            continue
        try:
            good = __salt__["k8s_generation.links"](row["home"])["good"] or ""
            if __salt__["k8s_generation.digest"](row) != good.partition(".")[0]:
                changing[component] = row
        except (CommandExecutionError, OSError) as exc:
            (unknowable if __opts__["test"] and getattr(exc, "to_come", False) else found).append(str(exc))
    answer = {"errors": [], "warnings": [], "notes": []}
    if changing or found or unknowable:
        try:
            answer = __salt__["k8s_preflight.check"](changing, components)
        except (CommandExecutionError, OSError) as exc:
            found.append(str(exc))
    found += answer["errors"]
    if answer["warnings"]:
        ret["warnings"] = answer["warnings"]
    unknown = ["Not knowable yet: " + "; ".join(unknowable)] if unknowable else []
    if found:
        return ret | {"result": False, "comment": "\n".join([*dict.fromkeys(found), *unknown, "Nothing was touched."])}
    if unknown:
        return ret | {"result": None, "comment": unknown[0]}
    said = f"{', '.join(components)}: certificates, files and flags fit together."
    return ret | {"comment": "\n".join([said, *answer["warnings"], *answer["notes"]])}
