"""`arc-halo migrate test` and `sum`: for those who write migrations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from arc_halo.cli.invocation import Invocation, render


def _directory_option() -> Callable[[Any], Any]:
    return click.option(
        "--directory",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Where the migrations are; this program's own if left out.",
    )


@click.command("test")
@_directory_option()
@click.pass_context
def test(context: click.Context, directory: Path | None) -> None:
    """Apply, roll back and apply again each migration on a database made for it.

    The database is made on the project's server, and dropped at the end. What a rollback leaves,
    or the second time changes, is told line by line; then it exits 1.

    \b
    Example:
      arc-halo migrate test --directory migrations
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_count
    from arc_halo.store.migration_trial import scratch_database, try_migrations

    invocation: Invocation = context.obj
    with (
        invocation.open(needs_database=True) as project,
        scratch_database(project.url, waiting=invocation.console.note) as conn,
    ):
        found = try_migrations(conn, directory=directory)
    said = format_count(len(found), "difference") if found else "no difference"
    text = "\n".join([*map(str, found), f"Up, down and up again: {said}."])
    facts = [{"file": each.file, **asdict(each.change)} for each in found]
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json({"differences": facts}),
        markdown=lambda: text,
    )
    context.exit(1 if found else 0)


@click.command("sum")
@_directory_option()
@click.option("--write", is_flag=True, help="Write the sum anew.")
@click.pass_obj
def check_or_write_sum(invocation: Invocation, directory: Path | None, write: bool) -> None:
    """Compare the migration files with `arc_halo.sum`, or write it anew.

    Two branches that each add a migration conflict in that file: look what comes first, then
    write it anew.

    \b
    Examples:
      arc-halo migrate sum
      arc-halo migrate sum --write --directory migrations
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_count
    from arc_halo.store.migration_files import migrations_directory, read_files, write_sum

    where = directory or migrations_directory()
    if write:
        write_sum(where)
    ids = [file.id for file in read_files(where)]
    text = f"{where}: {format_count(len(ids), 'migration')}, as arc_halo.sum says."
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json({"directory": str(where), "migrations": ids}),
        markdown=lambda: text,
    )
