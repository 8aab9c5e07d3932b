"""What goes with inference sessions: asked about, and told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.telling import facts, moment, short
from arc_halo.errors import RefusedError

if TYPE_CHECKING:
    from arc_halo.inference.deleting import Deletion

HEADER = ("session", "model", "tenant", "status", "requests", "last sign", "what")
LISTED = 50


def confirm(invocation: Invocation, told: Deletion) -> None:
    """Raise `RefusedError` unless somebody says yes."""
    what = _what(told)
    invocation.console.note(_text(told, is_done=False))
    if invocation.console.is_interactive:
        if invocation.console.confirm(f"Delete {what}?"):
            return
        raise RefusedError("nothing was changed", code="AH054")
    raise RefusedError(
        f"this deletes {what}, and nobody can be asked",
        hint="if that is what you want, say `--yes`",
        code="AH054",
    )


def tell(invocation: Invocation, told: Deletion, *, is_done: bool) -> None:
    from arc_halo.reconcile.report import as_json

    render(
        invocation,
        text=lambda: invocation.console.print(_text(told, is_done=is_done)),
        json=lambda: as_json(
            {
                "sessions": [facts(each) for each in told.sessions],
                "requests": told.requests,
                "captures": told.captures,
                "trimmed": told.trimmed,
                "is_done": is_done,
            }
        ),
        markdown=lambda: _listed(
            markdown_table(HEADER, _rows(told, is_done)) if told.sessions else "",
            _summary(told, is_done),
        ),
    )


def _text(told: Deletion, *, is_done: bool) -> str:
    rows = _rows(told, is_done)
    listed = table(HEADER, rows[:LISTED])
    if len(rows) > LISTED:
        listed += f"\n… and {len(rows) - LISTED:,} more"
    return _listed(listed if rows else "", _summary(told, is_done))


def _listed(listed: str, summary: str) -> str:
    return f"{listed}\n\n{summary}" if listed else summary


def _rows(told: Deletion, is_done: bool) -> list[tuple[str, ...]]:
    return [
        (
            short(each.id),
            each.model,
            each.tenant or "-",
            each.status,
            f"{each.request_count:,}",
            moment(each.heartbeat_at),
            "deleted" if is_done else "would go",
        )
        for each in told.sessions
    ]


def _summary(told: Deletion, is_done: bool) -> str:
    if not told.sessions and not told.trimmed:
        return "Nothing to prune."
    return f"{_what(told)} {'went' if is_done else 'would go'}."


def _what(told: Deletion) -> str:
    from arc_halo.sizes import format_count

    sessions = format_count(len(told.sessions), "session")
    found = [f"{sessions} with {format_count(told.requests, 'request')}"]
    if told.captures:
        found.append(f"{format_count(told.captures, 'capture')} of attention")
    if told.trimmed:
        found.append(f"{format_count(told.trimmed, 'request')} of sessions at work")
    return ", ".join(found)
