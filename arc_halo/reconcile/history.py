"""What a project went through, as people and programs read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from arc_halo.errors import NotFoundError
from arc_halo.reconcile.changes import SYMBOLS, FieldChange
from arc_halo.reconcile.diff import field_changes
from arc_halo.reconcile.markdown import field_rows
from arc_halo.reconcile.markdown_page import Page, Row, Section, code, page_text, prose
from arc_halo.reconcile.plan_document import FORMAT_VERSION
from arc_halo.reconcile.report import Line, Style, field_text
from arc_halo.sizes import format_count, format_time
from arc_halo.store import revisions
from arc_halo.store.revisions import ChangeRow, RevisionRow
from arc_halo.store.rows import Connection
from arc_halo.types import JsonObject

STYLES: dict[str, Style] = {"create": "create", "delete": "delete", "forget": "warn"}
COMMIT_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRevision:
    """A revision with its changes."""

    project: str
    row: RevisionRow
    changes: Sequence[ChangeRow]


def find_revision(conn: Connection, project: str, number: int | None) -> PastRevision:
    """A revision with its changes, the last one unless `number` says.

    Raises `NotFoundError` for one that there is not.
    """
    last = revisions.listed(conn, project, limit=1)
    row = last[0] if number is None and last else None
    if number is not None:
        row = revisions.find(conn, project, number)
    if row is None:
        raise NotFoundError(
            f"{project} has no revision {number or ''}".rstrip(),
            hint=f"it has 1 to {last[0].revision}" if last else "nothing was applied yet",
        )
    changes = revisions.changes(conn, project, row.revision)
    return PastRevision(project=project, row=row, changes=changes)


def counts_text(row: RevisionRow) -> str:
    """`2 create, 1 update`"""
    changes = row.summary.get("changes", {})
    return ", ".join(f"{count} {action}" for action, count in changes.items() if count)


def remarks(row: RevisionRow) -> str:
    """What is out of the ordinary: a rollback, a part of the manifest, an environment."""
    parts = []
    if row.rolled_back_to is not None:
        parts.append(f"rollback to {row.rolled_back_to}")
    if row.is_partial:
        parts.append("partial")
    if row.environment:
        parts.append(f"environment {row.environment}")
    return ", ".join(parts)


def commit_text(row: RevisionRow) -> str:
    """The commit, and a + where the directory was not as committed."""
    if row.git_commit is None:
        return ""
    return row.git_commit[:COMMIT_DIGITS] + ("+" if row.git_dirty else "")


def revision_lines(found: PastRevision) -> Iterator[Line]:
    """One revision as text: who, when and from where, then every change field by field."""
    row = found.row
    yield Line(f"Revision {row.revision} of {found.project}", "bold")
    facts = (
        ("applied", f"{format_time(row.created_at)} by {row.actor} on {row.host}"),
        ("role", row.database_role),
        ("commit", commit_text(row)),
        ("run", row.run_url or ""),
        ("remarks", remarks(row)),
        ("manifest", f"sha256:{row.manifest_digest.hex()}"),
        ("program", row.tool_version),
    )
    for name, value in facts:
        if value:
            yield Line(f"  {name:<9} {value}")
    for change in found.changes:
        was = f"  was {change.kind}/{change.old_name}" if change.old_name else ""
        text = f"{_symbol(change)} {change.kind}/{change.name}{was}"
        yield Line(text, STYLES.get(change.action, "update"))
        for each in fields_of(change):
            yield Line(f"    {field_text(change.kind, each)}", "dim")
    yield Line(_summary(found), "bold")


def fields_of(change: ChangeRow) -> tuple[FieldChange, ...]:
    """The fields that a change touched; none of what came or went as a whole."""
    if change.before is None or change.after is None:
        return ()
    return field_changes(change.before, change.after)


def row_json(row: RevisionRow) -> JsonObject:
    return {
        "revision": row.revision,
        "created_at": row.created_at.isoformat(),
        "actor": row.actor,
        "host": row.host,
        "database_role": row.database_role,
        "tool_version": row.tool_version,
        "git": {"commit": row.git_commit, "is_dirty": row.git_dirty} if row.git_commit else None,
        "run_url": row.run_url,
        "environment": row.environment,
        "is_partial": row.is_partial,
        "rolled_back_to": row.rolled_back_to,
        "manifest_digest": row.manifest_digest.hex(),
        "plan_digest": row.plan_digest.hex(),
        "summary": row.summary,
    }


def revision_json(found: PastRevision) -> JsonObject:
    return {
        "format_version": FORMAT_VERSION,
        "project": found.project,
        **row_json(found.row),
        "changes": [
            {
                "action": change.action,
                "address": f"{change.kind}/{change.name}",
                "old_name": change.old_name,
                "before": change.before,
                "after": change.after,
                "protected": change.protected,
                "deletion": change.deletion,
            }
            for change in found.changes
        ],
    }


def revision_markdown(
    found: PastRevision, *, max_bytes: int | None = None, whole: str | None = None
) -> str:
    """A revision as a deployment report, cut below `max_bytes`."""
    row = found.row
    who = f"Applied {format_time(row.created_at)} by {prose(row.actor)}"
    commit = f" from {code(commit_text(row))}" if row.git_commit else ""
    run = f" ([run]({row.run_url}))" if row.run_url else ""
    lost = [change for change in found.changes if change.after is None]
    rest = [change for change in found.changes if change.after is not None]
    page = Page(
        title=f"Revision {row.revision} of {code(found.project)}",
        summary=_summary(found),
        remarks=[f"{who}{commit}{run}.", *([prose(remarks(row))] if remarks(row) else [])],
        sections=[
            Section(title=f"{title}: {len(changes):,}", rows=list(map(_row, changes)), rank=rank)
            for rank, (title, changes) in enumerate((("Gone", lost), ("Changed", rest)))
            if changes
        ],
    )
    return page_text(replace(page, whole=whole) if whole else page, max_bytes)


def _row(change: ChangeRow) -> Row:
    texts = [field_text(change.kind, each) for each in fields_of(change)]
    line = f"- {code(f'{_symbol(change)} {change.kind}/{change.name}')}"
    was = f" was {code(f'{change.kind}/{change.old_name}')}" if change.old_name else ""
    return Row(line=line + was, details=field_rows("field", texts))


def _summary(found: PastRevision) -> str:
    return f"{format_count(len(found.changes), 'change')}: {counts_text(found.row)}."


def _symbol(change: ChangeRow) -> str:
    return next((symbol for name, symbol in SYMBOLS.items() if name == change.action), "~")
