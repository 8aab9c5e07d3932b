"""The part of `arc-halo reactor eval` that measures perplexity on texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from arc_halo.cli.invocation import Invocation, markdown_table, render, table

if TYPE_CHECKING:
    from arc_halo.reactors.perplexity import Perplexity
    from arc_halo.reactors.plans import ReactorPlan
    from arc_halo.reactors.running import RunningReactor

HEADER = ("text", "model", "loss", "perplexity")


def evaluate_texts(
    invocation: Invocation, opened: RunningReactor, paths: Sequence[Path], window: int
) -> None:
    """Measure a reactor on texts, and print a table of what its members and it make of each."""
    from arc_halo.reactors.perplexity import perplexity
    from arc_halo.reconcile.report import as_json

    found: list[tuple[Path, Perplexity]] = []
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        found.append((path, perplexity(opened, text, window)))
    cells = [row for path, figures in found for row in _rows(path, figures)]
    facts = {
        "reactor": opened.plan.name,
        "note": by_token(opened.plan),
        "texts": [{"text": str(path), **figures.as_json()} for path, figures in found],
    }
    render(
        invocation,
        text=lambda: _print(invocation, opened, cells, found),
        json=lambda: as_json(facts),
        markdown=lambda: markdown_table(HEADER, cells),
    )


def _rows(path: Path, figures: Perplexity) -> list[tuple[str, ...]]:
    return [
        (path.name, each.model, f"{each.loss:.4f}", f"{each.perplexity:.3f}")
        for each in (*figures.members, figures.fused)
    ]


def _print(
    invocation: Invocation,
    opened: RunningReactor,
    cells: Sequence[tuple[str, ...]],
    found: Sequence[tuple[Path, Perplexity]],
) -> None:
    invocation.console.print(table(HEADER, cells))
    for path, each in found:
        where = f", recorded as {each.operation_id}" if each.operation_id else ""
        invocation.console.note(
            f"{path.name}: {each.prediction_count} tokens foretold, in windows of "
            f"{each.window}, at a cost of {each.cost:g} a token{where}"
        )
    if told := by_token(opened.plan):
        invocation.console.note(told)


def by_token(plan: ReactorPlan) -> str | None:
    """What to know of figures of a reactor that fuses, or takes, whole answers when it runs."""
    if plan.level == "tokens":
        return None
    does = "asks on" if plan.type == "cascade" else "fuses"
    whole = "goes by whole answers" if plan.type == "cascade" else "fuses whole answers"
    return f"{plan.name} was measured as one that {does} token by token; when it runs, it {whole}"
