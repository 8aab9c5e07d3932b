"""Plans and reports as Markdown, for a pull request or a job's summary.

The sections are those of the text: what blocks the plan first, then what is lost. Where a page
must be short, creations are cut first, then notes, and deletions last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from arc_halo.reconcile.changes import Action, Change, Conflict, Orphan, Plan
from arc_halo.reconcile.markdown_page import Page, Row, Section, code, marker, page_text, prose
from arc_halo.reconcile.report import (
    LISTED,
    build_text,
    cost_text,
    deleted_bytes,
    done_details,
    field_text,
    grave_action,
    losses_text,
    plan_summary,
    report_summary,
    sections,
    selection_text,
    weights_text,
)
from arc_halo.sizes import format_count, format_size

if TYPE_CHECKING:
    from arc_halo.reconcile.applying import Report

TITLES: dict[Action, str] = {
    "delete": "Deletions",
    "forget": "Let go",
    "replace": "Replacements",
    "update": "Updates",
    "create": "Creations",
    "rename": "Renames",
    "adopt": "Adoptions",
}
DRIFT = "Changed outside of apply"

RANKS = (
    "Blocked", "Deletions", "Let go", "Migrations", "Replacements", "Updates", DRIFT, "Renames",
    "Adoptions", "No longer declared", "Notes", "Creations",
)  # fmt: skip
"""What is cut last comes first."""

Told = Callable[[Change], Sequence[str]]
"""What is said of a change on its line."""

FIELDS = 8
"""Fields of one resource that are shown at once; more are folded away."""


def plan_markdown(
    plan: Plan,
    *,
    max_bytes: int | None = None,
    whole: str | None = None,
    remarks: Sequence[str] = (),
) -> str:
    """A plan for a pull request, cut below `max_bytes`; `whole` says then where all of it is."""
    partial = [f"Partial: {selection_text(plan.selection)}; the rest is left alone."]
    page = Page(
        marker=marker(plan.project, plan.environment),
        title=_titled("Arc-Halo plan for", plan),
        summary=plan_summary(plan),
        remarks=[*map(prose, partial if plan.is_partial else []), *remarks],
        sections=[
            *_conflicts(plan.conflicts),
            *_migrations(plan.migrations),
            *_changes(plan.changes, _planned),
            *_rest(plan),
        ],
    )
    return page_text(replace(page, whole=whole) if whole else page, max_bytes)


def report_markdown(
    report: Report, *, max_bytes: int | None = None, whole: str | None = None
) -> str:
    """What an apply did, in the same way."""
    plan = report.plan
    page = Page(
        marker=marker(plan.project, plan.environment),
        title=_titled("Arc-Halo applied", plan),
        summary=report_summary(report),
        sections=[
            *_changes(plan.changes, lambda change: done_details(change, report)),
            *_rest(plan),
        ],
    )
    return page_text(replace(page, whole=whole) if whole else page, max_bytes)


def listed(title: str, rows: Sequence[Row], *, count: bool = True, remark: str = "") -> Section:
    """A section; a long list of what is new is folded away."""
    return Section(
        title=(f"{title}: {len(rows):,}" if count else title) + remark,
        rows=rows,
        rank=RANKS.index(title),
        is_folded=title == TITLES["create"] and len(rows) > LISTED,
    )


def field_rows(kind: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Lines below a line, folded where there are many."""
    lines = tuple(f"  - {code(text)}" for text in texts)
    if len(lines) <= FIELDS:
        return lines
    summary = f"  <details><summary>{format_count(len(lines), kind)}</summary>"
    return (summary, "", *lines, "", "  </details>")


def _titled(words: str, plan: Plan) -> str:
    where = f" in {code(plan.environment)}" if plan.environment else ""
    return f"{words} {code(plan.project)}{where}"


def _conflicts(conflicts: Sequence[Conflict]) -> Iterator[Section]:
    rows = [
        Row(
            line=f"- {code(str(each.key))}: {prose(each.message)} ({each.code})",
            details=(f"  - hint: {prose(each.hint)}",) if each.hint else (),
        )
        for each in conflicts
    ]
    if rows:
        yield listed("Blocked", rows)


def _migrations(migrations: Sequence[str]) -> Iterator[Section]:
    if migrations:
        yield listed("Migrations", [Row(line=f"- {code(f'+ {each}')}") for each in migrations])


def _changes(changes: Sequence[Change], told: Told) -> Iterator[Section]:
    for _, group in sections(changes):
        first = group[0]
        title = DRIFT if first.is_drift else TITLES[grave_action(first)]
        remark = ""
        if title == TITLES["delete"] and (size_bytes := deleted_bytes(group)):
            remark = f", with {format_size(size_bytes)} of weights"
        yield listed(title, [_row(change, told(change)) for change in group], remark=remark)


def _row(change: Change, told: Sequence[str]) -> Row:
    line = f"- {code(f'{change.symbol} {change.key}')}"
    told_below = (losses_text(change), cost_text(change))
    details = [f"  - {prose(text)}" for text in told_below if text]
    fields = [field_text(change.key.kind, each) for each in change.fields]
    return Row(
        line=f"{line} {prose(', '.join(told))}" if told else line,
        details=(*details, *field_rows("field", fields)),
    )


def _planned(change: Change) -> list[str]:
    was = f"was {change.old_key}" if change.old_key else None
    return [text for text in (was, build_text(change), change.reason, weights_text(change)) if text]


def _rest(plan: Plan) -> Iterator[Section]:
    if plan.orphans:
        yield listed("No longer declared", [_orphan(each) for each in plan.orphans])
    if plan.notes:
        yield listed("Notes", [Row(line=f"- {prose(n)}") for n in plan.notes], count=False)


def _orphan(orphan: Orphan) -> Row:
    kept = "kept, and protected" if orphan.protected else "kept"
    return Row(line=f"- {code(f'? {orphan.key}')} is {kept}")
