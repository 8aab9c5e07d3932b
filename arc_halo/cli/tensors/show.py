"""`arc-halo tensors show`: one tensor, how it is stored, and what is in it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from arc_halo.cli.console import printable
from arc_halo.cli.invocation import Invocation, markdown_table, render
from arc_halo.cli.tensors.models import weights_of
from arc_halo.errors import NotFoundError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.types import JsonObject


@click.command("show")
@click.argument("model")
@click.argument("tensor")
@click.option("--stats", is_flag=True, help="Read it, and say what values it has.")
@click.pass_obj
def show(invocation: Invocation, model: str, tensor: str, stats: bool) -> None:
    """Show one TENSOR of MODEL: its digest, how it is stored, who shares it.

    \b
    Examples:
      arc-halo tensors show story model.norm.weight
      arc-halo tensors show story model.embed_tokens.weight --stats
    """
    from arc_halo.names import did_you_mean, is_storable
    from arc_halo.reconcile.report import as_json
    from arc_halo.store import builds, usage
    from arc_halo.weights.reading import read_array

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            record, set_id = weights_of(conn, model)
            found = usage.tensors(conn, set_id, tensor) if is_storable(tensor) else []
            if not found:
                names = [t.name for t in usage.tensors(conn, set_id)]
                raise NotFoundError(
                    f"{record.full_name} has no tensor {tensor!r}",
                    hint=did_you_mean(tensor, names) or f"`arc-halo tensors ls {model}`",
                )
            shared = usage.shared_by(conn, record.id, set_id, tensor)
            row = next(r for r in builds.set_tensors(conn, set_id) if r.name == tensor)
        facts: JsonObject = {
            "model": record.full_name,
            "tensor": tensor,
            "dtype": found[0].dtype,
            "shape": found[0].shape,
            "digest": f"sha256:{bytes(found[0].digest).hex()}",
            "size_bytes": found[0].size_bytes,
            "stored_bytes": found[0].stored_bytes,
            "chunks": found[0].chunk_count,
            "codecs": found[0].codecs,
            "shared_by": [f"{name}: {place}" for name, place in shared],
        }
        if stats:
            facts |= _stats(read_array(project.weights, row, tensor))
    rows = [(name, _text(value)) for name, value in facts.items()]
    width = max(len(name) for name, _ in rows)
    render(
        invocation,
        text=lambda: invocation.console.print(
            "\n".join(f"{n:<{width}}  {printable(value, one_line=True)}" for n, value in rows)
        ),
        json=lambda: as_json(facts),
        markdown=lambda: markdown_table(("field", "value"), rows),
    )


def _stats(array: NDArray[Any]) -> JsonObject:
    """Of the finite values; what is not finite is counted."""
    import numpy as np

    values = array.astype(np.float64).reshape(-1) if array.dtype.kind != "c" else abs(array)
    finite = values[np.isfinite(values)]
    is_whole = array.dtype.kind in "iu"
    facts: JsonObject = {
        "nan": int(np.isnan(values).sum()),
        "infinite": int(np.isinf(values).sum()),
        "zero": int((values == 0).sum()),
    }
    if finite.size:
        with np.errstate(over="ignore", invalid="ignore"):
            facts |= {
                # Integers as they are: float64 is not exact beyond 2**53.
                "min": int(array.min()) if is_whole else float(finite.min()),
                "max": int(array.max()) if is_whole else float(finite.max()),
                "mean": _number(finite.mean()),
                "std": _number(finite.std()),
            }
    return facts


def _number(value: Any) -> float | None:
    """What JSON has for it: nothing where the sum went beyond all numbers."""
    number = float(value)
    return number if math.isfinite(number) else None


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return str(value)
