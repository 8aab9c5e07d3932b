"""`arc-halo history` and `arc-halo rollback`: what was applied, and back to it."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import click

from arc_halo.cli.choosing import limit_options
from arc_halo.cli.cutting import Cut, cut_options
from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.limiting import MOST
from arc_halo.errors import InvalidInputError, NotFoundError, RefusedError

if TYPE_CHECKING:
    from arc_halo.reconcile.changes import Plan
    from arc_halo.store.rows import Connection


@click.group("history", invoke_without_command=True)
@click.option("--limit", type=click.IntRange(1, MOST), default=20, help="How many; 20 if not said.")
@click.pass_context
def history(context: click.Context, limit: int) -> None:
    """List the revisions of the project, the newest first: each apply that changed something.

    \b
    Examples:
      arc-halo history
      arc-halo history --limit 100 --output json
      arc-halo history show 7
      arc-halo history alias story:production --at 2026-06-01
    """
    if context.invoked_subcommand is not None:
        return
    invocation: Invocation = context.obj
    from arc_halo.reconcile.history import commit_text, counts_text, remarks, row_json
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_time

    with invocation.open() as project:
        name = project.head.project
        rows = project.history(limit=limit)
    header = ("revision", "when", "who", "commit", "changes", "remarks")
    cells = [
        (
            str(row.revision),
            format_time(row.created_at),
            row.actor,
            commit_text(row),
            counts_text(row),
            remarks(row),
        )
        for row in rows
    ]
    render(
        invocation,
        text=lambda: invocation.console.print(
            table(header, cells) if cells else f"{name} was never applied here."
        ),
        json=lambda: as_json({"project": name, "revisions": [row_json(row) for row in rows]}),
        markdown=lambda: markdown_table(header, cells),
    )


@history.command("show")
@click.argument("revision", type=click.IntRange(min=1), required=False)
@cut_options
@click.pass_obj
def show(invocation: Invocation, revision: int | None, cut: Cut) -> None:
    """Show one revision, the last one if none is said: who, when, from where, and every change.

    \b
    Examples:
      arc-halo history show
      arc-halo history show 7 --output json
      arc-halo history show --output markdown >> "$GITHUB_STEP_SUMMARY"
    """
    from arc_halo.reconcile.history import revision_json, revision_lines, revision_markdown
    from arc_halo.reconcile.report import as_json

    with invocation.open() as project:
        found = project.past_revision(revision)
    render(
        invocation,
        text=lambda: invocation.console.lines(revision_lines(found)),
        json=lambda: as_json(revision_json(found)),
        markdown=lambda: cut.markdown(partial(revision_markdown, found)),
    )


@history.command("alias")
@click.argument("name")
@click.option(
    "--at",
    metavar="TIME",
    help="What it stood for then: 2026-06-01, at the end of that day, or with a time; in UTC.",
)
@click.pass_obj
def alias(invocation: Invocation, name: str, at: str | None) -> None:
    """Tell which versions an alias stood for, and from when to when.

    \b
    Examples:
      arc-halo history alias story:production
      arc-halo history alias story:production --at 2026-06-01T12:00
    """
    from arc_halo.names import parse_reference
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_time
    from arc_halo.store import aliases
    from arc_halo.tensors.digests import format_digest

    reference = parse_reference(name)
    if reference is None or reference.alias is None:
        raise InvalidInputError(
            f"{name!r} is no alias", hint="write MODEL:ALIAS, as in story:production", code="AH006"
        )
    moment = None if at is None else _moment(at)
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            rows = aliases.history(conn, reference.name, reference.alias, at=moment)
            if not rows:
                _check_there_was(conn, name)
    header = ("model", "from", "to", "weights")
    cells = [
        (
            f"{reference.name}@{row.version}",
            format_time(row.assigned_at),
            format_time(row.released_at) if row.released_at else "now",
            row.root.hex()[:12] if row.root else "-",
        )
        for row in rows
    ]
    facts = [
        {
            "model": f"{reference.name}@{row.version}",
            "assigned_at": row.assigned_at.isoformat(),
            "released_at": row.released_at.isoformat() if row.released_at else None,
            "root": format_digest(row.root) if row.root else None,
        }
        for row in rows
    ]
    render(
        invocation,
        text=lambda: invocation.console.print(
            table(header, cells) if cells else f"{name} stood for nothing then."
        ),
        json=lambda: as_json({"alias": name, "versions": facts}),
        markdown=lambda: markdown_table(header, cells),
    )


@click.command("rollback")
@click.argument("revision", type=click.IntRange(min=1))
@limit_options
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.option("--dry-run", is_flag=True, help="Show what it would do, and do nothing.")
@click.pass_obj
def rollback(
    invocation: Invocation,
    revision: int,
    max_deletes: int | None,
    allow_empty: bool,
    yes: bool,
    dry_run: bool,
) -> None:
    """Bring the database back to what it was after REVISION; it needs no Git and no old files.

    The rollback is a revision of its own, planned, checked and applied like any other: all of it
    or nothing. The manifest stays as it is, so that the next apply goes forward again: change it.

    \b
    Examples:
      arc-halo rollback 6 --dry-run
      arc-halo rollback 6 --yes
    """
    from arc_halo.cli.apply import carry_out
    from arc_halo.cli.plan import show_plan

    with invocation.open() as project:
        plan = project.plan_rollback(revision)
        limits = project.limits(max_deletes=max_deletes, allow_empty=allow_empty)
        if dry_run or not plan.changes or plan.conflicts:
            show_plan(invocation, project, plan)
            limits.check(plan)
            return
        limits.check(plan)
        _confirm(invocation, plan, yes)
        carry_out(invocation, project, plan, limits)


def _confirm(invocation: Invocation, plan: Plan, yes: bool) -> None:
    from arc_halo.reconcile.report import plan_lines

    if yes:
        return
    for line in plan_lines(plan):
        invocation.console.note(line.text, line.style)
    question = f"Roll {plan.project} back to revision {plan.rolled_back_to}?"
    if invocation.console.is_interactive:
        if invocation.console.confirm(question):
            return
        raise RefusedError("nothing was changed", code="AH054")
    raise RefusedError(
        "a rollback changes what is in production, and nobody can be asked",
        hint="look with `--dry-run`; if that is what you want, say `--yes`",
        code="AH054",
    )


def _check_there_was(conn: Connection, name: str) -> None:
    """Raise `NotFoundError` unless `name` was an alias once: what was is never forgotten."""
    from arc_halo.names import did_you_mean
    from arc_halo.store import aliases

    known = aliases.ever(conn)
    if name not in known:
        hint = did_you_mean(name, sorted(known)) or "a manifest declares it: `aliases:` of a model"
        raise NotFoundError(f"there was never an alias {name!r}", hint=hint)


def _moment(text: str) -> datetime:
    """The last moment of the day, the minute or the second that is meant; in UTC if it says none.

    So a time that was printed, which has no parts of a second, includes what began in it.
    """
    try:
        begin = datetime.fromisoformat(text)
        begin = begin.replace(tzinfo=UTC) if begin.tzinfo is None else begin.astimezone(UTC)
        return begin + _length(text) - timedelta(microseconds=1)
    except (ValueError, OverflowError) as exc:
        raise InvalidInputError(
            f"{text!r} is no time", hint="write it as 2026-06-01 or 2026-06-01T12:00", code="AH006"
        ) from exc


def _length(text: str) -> timedelta:
    """How long that lasts which an ISO date or time names, by the last of its parts."""
    try:
        date.fromisoformat(text)
    except ValueError:
        parts = _TIME.search(text)
        return _LENGTHS[sum(map(bool, parts.groups())) if parts else -1]
    return timedelta(days=1)


_TIME = re.compile(r"[T ]\d\d(:?\d\d)?(:?\d\d)?([.,]\d+)?", re.IGNORECASE)
_LENGTHS = (
    timedelta(hours=1),
    timedelta(minutes=1),
    timedelta(seconds=1),
    timedelta(microseconds=1),
)
