"""Plans and reports as Markdown, for a pull request or a job's summary."""

from __future__ import annotations

from collections.abc import Sequence

from arc_halo.reconcile.applying import Report
from arc_halo.reconcile.changes import Change, Plan
from arc_halo.reconcile.report import (
    build_text,
    cost_text,
    field_text,
    plan_summary,
    report_summary,
    sections,
)
from arc_halo.sizes import format_count


def plan_markdown(plan: Plan) -> str:
    """A plan for a pull request."""
    lines = [f"### Arc-Halo plan for `{plan.project}`", "", f"**{plan_summary(plan)}**", ""]
    if plan.conflicts:
        lines += ["#### Blocked", ""]
        lines += [f"- `{c.key}`: {c.message} ({c.code})" for c in plan.conflicts] + [""]
    ordered = [change for _, changes in sections(plan.changes) for change in changes]
    return "\n".join([*lines, *_changes(ordered), *_rest(plan)]) + "\n"


def report_markdown(report: Report) -> str:
    lines = [
        f"### Arc-Halo applied `{report.plan.project}`",
        "",
        f"**{report_summary(report)}**",
        "",
    ]
    return "\n".join([*lines, *_changes(report.plan.changes)]) + "\n"


def _changes(changes: Sequence[Change]) -> list[str]:
    if not changes:
        return []
    rows = [f"| `{c.symbol}` | `{c.key}` | {_told(c)} |" for c in changes]
    return ["| | resource | |", "|---|---|---|", *rows, ""]


def _told(change: Change) -> str:
    parts = [build_text(change) or change.reason or _field_names(change), cost_text(change)]
    return "<br>".join(part for part in parts if part)


def _field_names(change: Change) -> str:
    texts = (field_text(change.key.kind, field).replace("|", "\\|") for field in change.fields)
    return "<br>".join(f"`{text}`" for text in texts)


def _rest(plan: Plan) -> list[str]:
    lines = [f"- `{o.key}` is no longer declared, and kept" for o in plan.orphans]
    lines += [f"- {note}" for note in plan.notes]
    if plan.migrations:
        lines.append(f"- {format_count(len(plan.migrations), 'migration')} of the database")
    return lines
