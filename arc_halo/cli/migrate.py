"""`arc-halo migrate`: the database's schema, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

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


@migrate.command("status")
@click.pass_obj
def status(invocation: Invocation) -> None:
    """List the migrations and the state of each.

    \b
    Example:
      arc-halo migrate status --output json
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.store import migrate as migrations

    with _connection(invocation) as conn:
        found = migrations.status(conn)
    header = ("migration", "state", "applied at")
    rows = [
        (each.id, each.state, f"{each.applied_at:%Y-%m-%d %H:%M:%S%z}" if each.applied_at else "")
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
@click.pass_obj
def up(invocation: Invocation, to: str | None) -> None:
    """Apply pending migrations: all of them, or none and an error.

    \b
    Example:
      arc-halo migrate up
    """
    from arc_halo.store import migrate as migrations

    with _connection(invocation) as conn:
        applied = migrations.up(conn, to=to)
    _tell(invocation, applied, "applied")


@migrate.command("down")
@click.option("--to", metavar="N", required=True, help="The migration to go back to; 0 for none.")
@click.option("--yes", is_flag=True, help="Drop tables, and what is in them, without asking.")
@click.pass_obj
def down(invocation: Invocation, to: str, yes: bool) -> None:
    """Roll back to migration N. What the dropped tables held is lost.

    \b
    Examples:
      arc-halo migrate down --to 4
      arc-halo migrate down --to 0 --yes
    """
    from arc_halo.store import migrate as migrations

    if not yes:
        _ask(invocation, to)
    with _connection(invocation) as conn:
        undone = migrations.down(conn, to=to)
    _tell(invocation, undone, "rolled back")


def _connection(invocation: Invocation) -> AbstractContextManager[Connection]:
    from contextlib import contextmanager

    from arc_halo.store.connection import connect, translate

    @contextmanager
    def opened() -> Iterator[Connection]:
        with (
            invocation.open(needs_database=True) as project,
            connect(project.url, direct=True, waiting=invocation.console.note) as conn,
            translate(),
        ):
            yield conn

    return opened()


def _ask(invocation: Invocation, to: str) -> None:
    question = f"Roll back to migration {to} and lose what the dropped tables hold?"
    if invocation.console.is_interactive and invocation.console.confirm(question):
        return
    raise RefusedError(
        "rolling back drops tables and what is in them", hint="say `--yes`", code="AH054"
    )


def _tell(invocation: Invocation, ids: list[str], verb: str) -> None:
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_count

    text = "\n".join([*ids, f"{format_count(len(ids), 'migration')} {verb}."])
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json({verb.replace(" ", "_"): ids}),
        markdown=lambda: text,
    )
