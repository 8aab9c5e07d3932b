"""Plans and reports as JSON: for programs and policies, and to be applied later.

The published schemas are `plan.schema.json` and `report.schema.json`; `arc-halo schema plan`
prints the first. `resource_changes[].change` has the shape that Terraform's policies know.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from arc_halo._version import __version__
from arc_halo.reconcile.changes import Action, Change, Conflict, Orphan, Plan
from arc_halo.types import JsonObject

if TYPE_CHECKING:
    from arc_halo.reconcile.applying import Report
    from arc_halo.reconcile.git import GitState

FORMAT_VERSION = "1.0"
"""Of every document here. The first number changes when a reader would be misled."""

ACTIONS: dict[Action, list[str]] = {
    "create": ["create"],
    "update": ["update"],
    "rename": ["update"],
    "adopt": ["update"],
    "replace": ["delete", "create"],
    "delete": ["delete"],
    "forget": ["forget"],
}


def plan_json(plan: Plan, *, git: GitState | None = None) -> JsonObject:
    """A plan for programs."""
    return {
        "format_version": FORMAT_VERSION,
        "tool_version": __version__,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "project": plan.project,
        "environment": plan.environment,
        "base_revision": plan.base_revision,
        "manifest_digest": plan.manifest_digest.hex(),
        "plan_digest": plan.digest.hex(),
        "git": {"commit": git.commit, "is_dirty": git.is_dirty} if git else None,
        "options": {
            "prune": plan.prune,
            "targets": list(plan.selection.targets),
            "excludes": list(plan.selection.excludes),
        },
        "is_partial": plan.is_partial,
        "rolled_back_to": plan.rolled_back_to,
        "has_changes": plan.has_changes,
        "summary": {**dict(plan.counts), "unchanged": plan.unchanged_count},
        "migrations": list(plan.migrations),
        "conflicts": [_conflict_json(conflict) for conflict in plan.conflicts],
        "resource_changes": [change_json(change) for change in plan.changes],
        "orphans": [_orphan_json(orphan) for orphan in plan.orphans],
        "notes": list(plan.notes),
    }


def report_json(report: Report) -> JsonObject:
    """What an apply did, for programs."""
    return {
        "format_version": FORMAT_VERSION,
        "tool_version": __version__,
        "project": report.plan.project,
        "environment": report.plan.environment,
        "revision": report.revision,
        "is_dry_run": report.is_dry_run,
        "plan_digest": report.plan_digest.hex(),
        "summary": dict(report.plan.counts),
        "weights": {
            "size_bytes": report.size_bytes,
            "new_bytes": report.new_bytes,
            "stored_bytes": report.stored_bytes,
        },
        "seconds": round(report.seconds, 3),
        "resource_changes": [change_json(change) for change in report.plan.changes],
    }


def change_json(change: Change) -> JsonObject:
    """One change: the documents before and after, and the fields that tell them apart."""
    whole = change.as_json()
    return {
        "address": str(change.key),
        "kind": change.key.kind,
        "name": change.key.name,
        "action": change.action,
        "old_name": whole["old_name"],
        "source": change.source_file,
        "change": {
            "actions": ACTIONS["replace" if change.is_replacement else change.action],
            "before": change.before,
            "after": change.after,
        },
        "fields": whole["fields"],
        "protected": change.lifecycle.protected,
        "deletion": change.lifecycle.deletion,
        "build": whole["build"],
        "losses": _losses_json(change),
        "remark": change.remark,
        "is_drift": change.is_drift,
        "reason": change.reason,
    }


def _conflict_json(conflict: Conflict) -> JsonObject:
    return {
        "address": str(conflict.key),
        "code": conflict.code,
        "message": conflict.message,
        "hint": conflict.hint,
    }


def _orphan_json(orphan: Orphan) -> JsonObject:
    return {
        "address": str(orphan.key),
        "protected": orphan.protected,
        "deletion": orphan.deletion,
    }


def _losses_json(change: Change) -> dict[str, Any] | None:
    if change.losses is None:
        return None
    return {"size_bytes": change.losses.size_bytes, "rows": dict(change.losses.rows)}
