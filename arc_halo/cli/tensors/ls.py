"""`arc-halo tensors ls`: the tensors of a model."""

from __future__ import annotations

from fnmatch import fnmatchcase

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.tensors.models import weights_of


@click.command("ls")
@click.argument("model")
@click.option("--name", "pattern", metavar="GLOB", default="*", help="Only tensors named so.")
@click.pass_obj
def ls(invocation: Invocation, model: str, pattern: str) -> None:
    """List the tensors of MODEL: dtype, shape, raw and stored bytes, codecs.

    MODEL is a name, name@version or name:alias.

    \b
    Examples:
      arc-halo tensors ls story
      arc-halo tensors ls story --name '*.mlp.*' --output json
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.store import usage

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            record, set_id = weights_of(conn, model)
            found = [t for t in usage.tensors(conn, set_id) if fnmatchcase(t.name, pattern)]
    header = ("tensor", "dtype", "shape", "bytes", "stored", "codecs")
    rows = [
        (
            t.name,
            t.dtype,
            "x".join(map(str, t.shape)) or "-",
            str(t.size_bytes),
            str(t.stored_bytes),
            "+".join(t.codecs),
        )
        for t in found
    ]
    facts = [
        {
            "name": t.name,
            "dtype": t.dtype,
            "shape": t.shape,
            "digest": f"sha256:{bytes(t.digest).hex()}",
            "size_bytes": t.size_bytes,
            "stored_bytes": t.stored_bytes,
            "codecs": t.codecs,
        }
        for t in found
    ]
    render(
        invocation,
        text=lambda: invocation.console.print(
            table(header, rows) if rows else f"No tensor of {record.full_name} is named so."
        ),
        json=lambda: as_json({"model": record.full_name, "tensors": facts}),
        markdown=lambda: markdown_table(header, rows),
    )
