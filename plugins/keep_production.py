"""An example plugin: a policy. What is in production is neither deleted nor replaced.

A project loads it by naming the file in its `arc_halo.yaml`:

    plugins: [plugins/keep_production.py]

`arc-halo plan` then shows what it says, and `arc-halo apply` refuses while it says anything.
"""

from __future__ import annotations

from arc_halo import hookimpl

ALIAS = "production"


@hookimpl
def arc_halo_before_apply(plan):
    """Yield a reason for each model that would be taken from under its users."""
    for each in plan["resource_changes"]:
        before = each["change"]["before"] or {}
        if "delete" in each["change"]["actions"] and ALIAS in before.get("aliases", ()):
            yield f"{each['address']} is in production, and would be {each['action']}d"
