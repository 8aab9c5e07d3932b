"""`arc-halo migrate`: the database's schema, step by step."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.migration_files import check_or_write_sum, test
from arc_halo.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from arc_halo.store.migrate import MigrationStatus
    from arc_halo.store.migration_losses import Losses, LostTable
    from arc_halo.store.rows import Connection


@click.group("migrate")
def migrate() -> None:
    """The database's schema: what is applied, apply the rest, roll back.

    `apply` migrates by itself; these commands are for doing it apart.

    \b
    Examples:
      arc-halo migrate status
      arc-halo migrate up
      arc-halo migrate down --to 4 --yes
    """


migrate.add_command(test)
migrate.add_command(check_or_write_sum)


@migrate.command("status")
@click.pass_obj
def status(invocation: Invocation) -> None:
    """List the migrations and the state of each.

    \b
    Example:
      arc-halo migrate status --output json
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_time
    from arc_halo.store import migrate as migrations

    with _connection(invocation) as conn:
        found = migrations.status(conn)
    header = ("migration", "state", "applied at")
    rows = [
        (each.id, _state(each), format_time(each.applied_at) if each.applied_at else "")
        for each in found
    ]
    facts = [{"id": row[0], "state": row[1], "applied_at": row[2] or None} for row in rows]
    render(
        invocation,
        text=lambda: invocation.console.print(table(header, rows)),
        json=lambda: as_json({"migrations": facts}),
        markdown=lambda: markdown_table(header, rows),
    )


@migrate.command("up")
@click.option("--to", metavar="N", help="The last migration to apply: 4, 0004 or its whole name.")
@click.option("--dry-run", is_flag=True, help="Do everything, and undo it.")
@click.option(
    "--allow-out-of-order",
    is_flag=True,
    help="Apply also what comes before a migration that is applied already.",
)
@click.pass_obj
def up(invocation: Invocation, to: str | None, dry_run: bool, allow_out_of_order: bool) -> None:
    """Apply pending migrations: all of them, or none and an error.

    \b
    Examples:
      arc-halo migrate up
      arc-halo migrate up --dry-run
    """
    from arc_halo.store import migrate as migrations

    with _connection(invocation) as conn:
        if dry_run:
            with migrations.tried_up(conn, to=to, out_of_order=allow_out_of_order) as outcome:
                return _tell_tried(invocation, outcome.done, outcome.untried)
        applied = migrations.up(conn, to=to, out_of_order=allow_out_of_order)
    return _tell(invocation, applied, "applied")


@migrate.command("down")
@click.option("--to", metavar="N", required=True, help="The migration to go back to; 0 for none.")
@click.option("--yes", is_flag=True, help="Drop tables, and what is in them, without asking.")
@click.option("--dry-run", is_flag=True, help="Do everything, name the tables, and undo it.")
@click.pass_obj
def down(invocation: Invocation, to: str, yes: bool, dry_run: bool) -> None:
    """Roll back to migration N. What the dropped tables held is lost.

    \b
    Examples:
      arc-halo migrate down --to 4 --dry-run
      arc-halo migrate down --to 4
      arc-halo migrate down --to 0 --yes
    """
    from arc_halo.store import migrate as migrations
    from arc_halo.store.migration_losses import losses

    with _connection(invocation) as conn:
        if dry_run or not yes:
            lost = losses(conn, to=to)
            if dry_run:
                return _tell_tried(invocation, lost.done, lost.untried, lost.tables)
            _ask(invocation, to, lost)
        undone = migrations.down(conn, to=to)
    return _tell(invocation, undone, "rolled back")


@migrate.command("repair")
@click.argument("id")
@click.option("--reason", metavar="TEXT", required=True, help="Why; kept in `_yoyo_log`.")
@click.option(
    "--statement",
    type=click.Choice(["done", "again"]),
    help="What to take the statement for in which it was interrupted.",
)
@click.pass_obj
def repair(
    invocation: Invocation, id: str, reason: str, statement: Literal["done", "again"] | None
) -> None:
    """Accept the text that an applied migration's file has now.

    With --statement, say what became of the statement in which a migration was interrupted.

    \b
    Examples:
      arc-halo migrate repair 0004 --reason "a comment was corrected"
      arc-halo migrate repair 0007 --statement again --reason "no index was left behind"
    """
    from arc_halo.reconcile.who import actor
    from arc_halo.store.migration_repair import repair as accept

    with _connection(invocation) as conn:
        found = accept(conn, id, reason=reason, by=actor(), statement=statement)
    _tell(invocation, [found], "repaired")


@migrate.command("accept-drift")
@click.option("--reason", metavar="TEXT", required=True, help="Why; kept in `_yoyo_log`.")
@click.pass_obj
def accept_drift(invocation: Invocation, reason: str) -> None:
    """Take the schema as it is for what the migrations made.

    \b
    Example:
      arc-halo migrate accept-drift --reason "an index for our reports"
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.reconcile.who import actor
    from arc_halo.sizes import format_count
    from arc_halo.store import migration_repair

    with _connection(invocation) as conn:
        changes = migration_repair.accept_drift(conn, reason=reason, by=actor())
    lines = [str(change) for change in changes]
    text = "\n".join([*lines, f"{format_count(len(lines), 'change')} accepted."])
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json({"accepted": [asdict(change) for change in changes]}),
        markdown=lambda: text,
    )


def _state(each: MigrationStatus) -> str:
    if each.begun is None:
        return each.state
    return "running" if each.begun.is_running else "interrupted"


def _connection(invocation: Invocation) -> AbstractContextManager[Connection]:
    from contextlib import contextmanager

    from arc_halo.store.connection import translate

    @contextmanager
    def opened() -> Iterator[Connection]:
        with (
            invocation.open(needs_database=True) as project,
            project.direct_connection() as conn,
            translate(),
        ):
            yield conn

    return opened()


def _ask(invocation: Invocation, to: str, lost: Losses) -> None:
    if not lost.done and not lost.untried:
        return
    _tell_untried(invocation, lost.untried)
    named = ", ".join(f"{table.name} ({_rows(table)})" for table in lost.tables) or "none"
    if invocation.console.is_interactive:
        invocation.console.note(f"tables that go: {named}")
        if invocation.console.confirm(f"Roll back to migration {to} and lose what they hold?"):
            return
        raise RefusedError("nothing was changed", code="AH054")
    raise RefusedError(
        f"rolling back drops tables and what is in them: {named}", hint="say `--yes`", code="AH054"
    )


def _rows(table: LostTable) -> str:
    from arc_halo.sizes import format_count

    return ("" if table.is_exact else "about ") + format_count(table.rows, "row")


def _tell_tried(
    invocation: Invocation,
    done: list[str],
    untried: list[str],
    dropped: Sequence[LostTable] | None = None,
) -> None:
    _tell_untried(invocation, untried)
    lines = [f"  - {table.name}: {_rows(table)}" for table in dropped or ()]
    more = {} if dropped is None else {"tables": [asdict(table) for table in dropped]}
    _tell(invocation, done, "tried and undone", lines=lines, untried=untried, **more)


def _tell_untried(invocation: Invocation, untried: list[str]) -> None:
    if untried:
        names = ", ".join(untried)
        invocation.console.note(f"not tried, since no transaction may hold the first: {names}")


def _tell(
    invocation: Invocation, ids: list[str], verb: str, lines: Sequence[str] = (), **more: object
) -> None:
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_count

    text = "\n".join([*ids, *lines, f"{format_count(len(ids), 'migration')} {verb}."])
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json({verb.replace(" ", "_"): ids, **more}),
        markdown=lambda: text,
    )
