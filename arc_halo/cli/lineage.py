"""`arc-halo lineage`: what a model was made of."""

from __future__ import annotations

import json

import click

from arc_halo.cli.invocation import Invocation, render
from arc_halo.errors import NotFoundError
from arc_halo.types import JsonObject


@click.command("lineage")
@click.argument("model")
@click.pass_obj
def lineage(invocation: Invocation, model: str) -> None:
    """Show what a fused model was made of: strategy, params, and the exact weights that went in.

    \b
    Examples:
      arc-halo lineage story
      arc-halo lineage story@1.0.0 --output json
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.reconcile.showing import find_model
    from arc_halo.store import reactors

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            record = find_model(conn, model)
            if record is None:
                raise NotFoundError(
                    f"there is no model {model!r}", hint="see `arc-halo get models`"
                )
            merges = reactors.lineage(conn, bytes(record.root)) if record.root else []
    facts: JsonObject = {
        "model": record.full_name,
        "root": f"sha256:{bytes(record.root).hex()}" if record.root else None,
        "made_by": [
            {
                "reactor": merge.reactor,
                "strategy": merge.strategy,
                "strategy_version": merge.strategy_version,
                "params": merge.params,
                "finished_at": merge.finished_at.isoformat() if merge.finished_at else None,
                "inputs": merge.inputs,
            }
            for merge in merges
        ],
    }
    render(
        invocation,
        text=lambda: invocation.console.print("\n".join(_lines(facts))),
        json=lambda: as_json(facts),
        markdown=lambda: "```\n" + "\n".join(_lines(facts)) + "\n```",
    )


def _lines(facts: JsonObject) -> list[str]:
    lines = [f"{facts['model']}  {facts['root'] or 'has no weights'}"]
    if not facts["made_by"]:
        lines.append("  not fused here: its weights were imported")
    for merge in facts["made_by"]:
        lines.append(
            f"  fused by {merge['strategy']} (version {merge['strategy_version']}) "
            f"with {json.dumps(merge['params'])} "
            f"in reactor/{merge['reactor']}, {merge['finished_at']}"
        )
        for item in merge["inputs"]:
            part = "base" if item["is_base"] else f"{item['role']}, weight {item['weight']:g}"
            lines.append(f"    {item['model']:<24} {item['root']}  {part}")
    return lines
