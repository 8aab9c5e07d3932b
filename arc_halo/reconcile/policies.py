"""Policies: what plugins say of a plan before it is applied, and hear of it afterwards."""

from __future__ import annotations

from dataclasses import replace

from arc_halo.errors import RefusedError
from arc_halo.plugins import PluginManager
from arc_halo.reconcile.applying import Report
from arc_halo.reconcile.changes import Conflict, Plan
from arc_halo.reconcile.plan_document import plan_json, report_json
from arc_halo.types import Key

HINT = "change what it speaks of, or the plugin that says it"


def refusals(plan: Plan, plugins: PluginManager) -> tuple[Conflict, ...]:
    """What plugins say against the plan, each reason with who says so."""
    if not plan.has_changes or not plugins.has_policies:
        return ()
    return tuple(
        Conflict(
            key=Key(kind="policy", name=provider.file or provider.name),
            code="AH056",
            message=f"a policy of {provider} refuses{_because(reason)}",
            hint=HINT,
        )
        for reason, provider in plugins.refusals(plan_json(plan))
    )


def _because(reason: str) -> str:
    return f": {reason}" if reason.strip() else ", and gives no reason"


def with_refusals(plan: Plan, plugins: PluginManager) -> Plan:
    """The plan, blocked by what policies say against it."""
    found = refusals(plan, plugins)
    return replace(plan, conflicts=(*plan.conflicts, *found)) if found else plan


def check_policies(plan: Plan, plugins: PluginManager) -> None:
    """Raise `RefusedError` with the first reason against the plan."""
    found = refusals(plan, plugins)
    for first in found[:1]:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise RefusedError(first.message + more, hint=HINT, code=first.code)


def tell_policies(plan: Plan, report: Report, plugins: PluginManager) -> None:
    """Tell every plugin that wants to hear of an apply."""
    if plugins.has_policies:
        plugins.applied(plan_json(plan), report_json(report))
