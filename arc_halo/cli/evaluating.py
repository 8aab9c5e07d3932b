"""`arc-halo reactor eval --data`: a reactor held against labelled inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arc_halo.cli.given_texts import read_given
from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.errors import InvalidInputError

if TYPE_CHECKING:
    from arc_halo.reactors.evaluating import Evaluation
    from arc_halo.reactors.running import RunningReactor


def evaluate_labelled(invocation: Invocation, reactor: RunningReactor, data: Path) -> None:
    """Ask the reactor all inputs of the file, print the figures, and write them down."""
    from arc_halo.reactors.evaluating import FUSED, evaluate
    from arc_halo.reactors.evaluations import evaluation
    from arc_halo.reconcile.report import as_json

    inputs, labels = read_labelled(data)
    with evaluation(reactor, None, len(inputs)) as recorded:
        found = evaluate(reactor, inputs, labels)
        recorded.output, recorded.cost = found.as_json(), found.cost
        if fused := found.scores.get(FUSED):
            recorded.metrics = [{"metric": "accuracy", "value": fused.accuracy}]
    facts = {
        "reactor": reactor.plan.name,
        "data": str(data),
        **found.as_json(),
        "operation": str(recorded.operation_id) if recorded.operation_id else None,
    }
    header, rows = _table(found)
    agreement = _agreement_table(found)
    render(
        invocation,
        text=lambda: _print(invocation, found),
        json=lambda: as_json(facts),
        markdown=lambda: markdown_table(header, rows) + "\n" + markdown_table(*agreement),
    )


def read_labelled(path: Path) -> tuple[list[Any], list[Any]]:
    """The inputs and labels of JSON lines. Raises `InvalidInputError`, with the line."""
    inputs, labels = [], []
    for number, line in enumerate(read_given(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as exc:
            raise InvalidInputError(f"{path}:{number}: no JSON: {exc}", code="AH006") from exc
        if not isinstance(row, dict) or not {"input", "label"} <= row.keys():
            raise InvalidInputError(
                f"{path}:{number}: an input and its label are needed",
                hint='write {"input": …, "label": …}',
                code="AH005",
            )
        if not isinstance(row["label"], str | int | float):
            raise InvalidInputError(
                f"{path}:{number}: the label is neither text, number nor truth value",
                hint='write {"input": …, "label": "cat"}',
                code="AH004",
            )
        inputs.append(row["input"])
        labels.append(row["label"])
    if not inputs:
        raise InvalidInputError(f"{path}: there is no input", code="AH006")
    return inputs, labels


def _table(found: Evaluation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows: list[tuple[str, ...]] = [
        (
            name,
            f"{each.asked:,}",
            _percent(each.accuracy),
            "" if each.calibration_error is None else f"{each.calibration_error:.4f}",
            "" if each.log_loss is None else f"{each.log_loss:.4f}",
        )
        for name, each in found.scores.items()
    ]
    return ("", "asked", "accuracy", "calibration error", "log loss"), rows


def _agreement_table(found: Evaluation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    names = list(dict.fromkeys(name for pair in found.agreement for name in pair))
    shares = {**found.agreement, **{(b, a): share for (a, b), share in found.agreement.items()}}
    rows = [
        (one, *("" if one == other else _percent(shares.get((one, other))) for other in names))
        for one in names
    ]
    return ("agreement", *names), rows


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _print(invocation: Invocation, found: Evaluation) -> None:
    console = invocation.console
    console.print(table(*_table(found)))
    if found.agreement:
        console.print("")
        console.print(table(*_agreement_table(found)))
    console.note(f"cost {found.cost:,g}")
    for member, count in found.failed.items():
        console.note(f"{member} failed {count} times")
