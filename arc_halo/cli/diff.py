"""`arc-halo diff`: two models, tensor by tensor."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.tensors.models import weights_of

if TYPE_CHECKING:
    from arc_halo.fusion.comparing import Comparison, Difference

HEADER = ("tensor", "change", "size", "shared", "norm", "relative", "cosine", "elements")


@click.command("diff")
@click.argument("first")
@click.argument("second")
@click.option("--exit-code", is_flag=True, help="Exit with 2 where they differ.")
@click.pass_obj
def diff(invocation: Invocation, first: str, second: str, exit_code: bool) -> int:
    """Compare the weights of two models, tensor by tensor.

    What is equal has one digest, and is never read. Of a tensor that changed: the bytes of chunks
    that both share, the norm of the change, that over the norm of the first, the cosine of both,
    and the share of elements that are not the same.

    \b
    Examples:
      arc-halo diff base story
      arc-halo diff story@1.0.0 story@1.1.0 --output json
    """
    from arc_halo.fusion.comparing import bytes_to_read, compare
    from arc_halo.reconcile.report import as_json

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            (one, one_id), (two, two_id) = weights_of(conn, first), weights_of(conn, second)
        size_bytes = bytes_to_read(project.weights, one_id, two_id)
        with invocation.console.task("compare", size_bytes) as advance:
            found = compare(project.weights, one_id, two_id, advance=advance)
    facts = {
        "first": one.full_name,
        "second": two.full_name,
        "equal_tensors": found.equal_tensors,
        "equal_bytes": found.equal_bytes,
        "differences": [dataclasses.asdict(each) for each in found.differences],
    }
    summary = _summary(found, one.full_name, two.full_name)
    rows = [_row(each) for each in found.differences]
    render(
        invocation,
        text=lambda: invocation.console.print(
            f"{table(HEADER, rows)}\n\n{summary}" if rows else summary
        ),
        json=lambda: as_json(facts),
        markdown=lambda: f"{markdown_table(HEADER, rows)}\n\n{summary}" if rows else summary,
    )
    return 2 if exit_code and not found.is_equal else 0


def _row(each: Difference) -> tuple[str, ...]:
    from arc_halo.sizes import format_size

    far = each.distance
    return (
        each.name,
        f"{each.first} -> {each.second}" if each.change == "reshaped" else each.change,
        format_size(each.size_bytes),
        format_size(each.shared_bytes),
        _number(far.norm) if far else "-",
        _number(far.relative) if far else "-",
        f"{far.cosine:.6f}" if far and far.cosine is not None else "-",
        f"{far.changed_share:.1%}" if far else "-",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _summary(found: Comparison, first: str, second: str) -> str:
    from collections import Counter

    from arc_halo.sizes import format_count, format_size

    equal = f"{format_count(found.equal_tensors, 'tensor')}, {format_size(found.equal_bytes)}"
    if found.is_equal:
        return f"{first} and {second} are equal: {equal}."
    counts = Counter(each.change for each in found.differences)
    said = ", ".join(f"{count:,} {change}" for change, count in sorted(counts.items()))
    shared = sum(each.shared_bytes for each in found.differences)
    return f"{said}; equal: {equal}. Of those that differ {format_size(shared)} are shared."
