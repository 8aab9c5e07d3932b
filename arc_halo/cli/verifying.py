"""`arc-halo fuse verify`: a merge computed once more, and compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, render

if TYPE_CHECKING:
    from arc_halo.fusion.verifying import Verification


@click.command("verify")
@click.argument("model")
@click.option("--tensor", metavar="NAME", help="Only this tensor.")
@click.pass_obj
def verify(invocation: Invocation, model: str, tensor: str | None) -> int:
    """Compute a fused model again from its lineage, and compare digests. Nothing is stored.

    A strategy of exact numerics must come to the same bits anywhere. One of platform numerics may
    come to others on another kind of machine: then the norm of the difference must be within the
    dtype's epsilon.

    \b
    Examples:
      arc-halo fuse verify story
      arc-halo fuse verify story@1.0.0 --tensor model.norm.weight
    """
    import dataclasses

    from arc_halo.cli.tensors.models import weights_of
    from arc_halo.fusion.verifying import bytes_to_compute
    from arc_halo.fusion.verifying import verify as computed_again
    from arc_halo.reconcile.report import as_json

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            record, set_id = weights_of(conn, model)
        size_bytes = bytes_to_compute(project.weights, set_id, tensor)
        with invocation.console.task(f"verify {record.full_name}", size_bytes) as advance:
            strategies = {n: (p.item, p.version) for n, p in project.plugins.strategies.items()}
            found = computed_again(project.weights, strategies, set_id, tensor, advance=advance)
    facts = {
        "model": record.full_name,
        "is_sound": found.is_sound,
        "taken": found.taken,
        "tensors": [dataclasses.asdict(each) for each in found.tensors],
    }
    lines = _verdicts(record.full_name, found)
    render(
        invocation,
        text=lambda: invocation.console.print("\n".join(lines)),
        json=lambda: as_json(facts),
        markdown=lambda: "\n".join(f"- {line}" for line in lines),
    )
    return 0 if found.is_sound else 1


def _verdicts(model: str, found: Verification) -> list[str]:
    from collections import Counter

    from arc_halo.sizes import format_count

    lines = [
        f"{each.name}: {each.verdict}"
        + (f", {each.distance:.3g} of its norm" if each.distance is not None else "")
        + (f": {each.reason}" if each.reason else "")
        for each in found.tensors
        if each.verdict != "same"
    ]
    counts = Counter(each.verdict for each in found.tensors)
    told = ", ".join(f"{count:,} {verdict}" for verdict, count in counts.items())
    taken = f"; {format_count(found.taken, 'tensor')} taken as they are" if found.taken else ""
    count = format_count(len(found.tensors), "tensor")
    return [*lines, f"{model}: {count} computed again: {told or 'none'}{taken}"]
