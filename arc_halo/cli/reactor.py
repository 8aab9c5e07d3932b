"""`arc-halo reactor`: reactors that fuse outputs, run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from arc_halo.cli.given_texts import read_given, read_inputs
from arc_halo.cli.invocation import INTERRUPTED, Invocation, render, table
from arc_halo.cli.overwriting import refuse_existing
from arc_halo.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from arc_halo.outputs import Outputs
    from arc_halo.reactors.fitting import Fitted
    from arc_halo.reactors.running import Answer, RunningReactor
    from arc_halo.types import JsonObject

TREND_SPAN = timedelta(days=1)
SHOWN = 20
"""Answers of a batch that are listed for people."""


@click.group("reactor")
def reactor() -> None:
    """Run reactors: ask their members, fuse the answers, write down what happened.

    \b
    Examples:
      arc-halo reactor run chorus --input prompt.txt
      arc-halo reactor status
      arc-halo reactor graph chorus
    """


@reactor.command("run")
@click.argument("name")
@click.option(
    "--input",
    "source",
    metavar="FILE",
    type=click.File(encoding="utf-8"),
    default="-",
    help="What to ask: JSON, JSON lines, or text; - is standard input.",
)
@click.pass_obj
def run(invocation: Invocation, name: str, source: Any) -> None:
    """Ask a reactor.

    A JSON list is a batch of inputs, and so are several lines of which each is JSON; any other
    JSON value, or text, is one input.

    \b
    Examples:
      arc-halo reactor run digits --input questions.jsonl
      echo '[{"id": 3}, {"id": 4}]' | arc-halo reactor run digits
      arc-halo reactor run chorus --input prompt.txt --output json
    """
    from arc_halo.reconcile.report import as_json

    inputs = read_inputs(read_given(source))
    with invocation.open(needs_database=True) as project, project.open_reactor(name) as opened:
        kept = "the run is on record as failed, with what members had answered"
        with _telling_what_is_kept(invocation, opened, kept):
            answer = opened.run(inputs)
    facts = answer.as_json()
    render(
        invocation,
        text=lambda: _print(invocation, answer),
        json=lambda: as_json(facts),
        markdown=lambda: f"```json\n{as_json(facts)}\n```",
    )


@reactor.command("eval")
@click.argument("name")
@click.option(
    "--data",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help='Labelled inputs, one a line: {"input": …, "label": …}.',
)
@click.option(
    "--text",
    "texts",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="A text to foretell. May be given more than once.",
)
@click.option(
    "--window",
    metavar="TOKENS",
    type=click.IntRange(min=2),
    default=256,
    show_default=True,
    help="Tokens that are foretold from one another.",
)
@click.pass_obj
def evaluate(
    invocation: Invocation, name: str, data: Path | None, texts: tuple[Path, ...], window: int
) -> None:
    """Measure a reactor and its members.

    With labelled inputs it is accuracy and calibration, and which members agree; with a text the
    perplexity of language models, and that of their fused logits. The figures are recorded.

    \b
    Examples:
      arc-halo reactor eval digits --data labelled.jsonl
      arc-halo reactor eval chorus --text held_out.txt
      arc-halo reactor eval chorus --text one.txt --text two.txt --output markdown
    """
    from arc_halo.cli.evaluating import evaluate_labelled
    from arc_halo.cli.perplexity import evaluate_texts

    if (data is None) == (not texts):
        raise UsageError(
            "a reactor is measured on labelled inputs, or on texts",
            hint="give `--data FILE` or `--text FILE`",
        )
    with invocation.open(needs_database=True) as project, project.open_reactor(name) as opened:
        kept = "the evaluation is on record as failed, without figures"
        if len(texts) > 1:
            kept += "; those of the texts before are on record with theirs"
        with _telling_what_is_kept(invocation, opened, kept):
            if data is not None:
                evaluate_labelled(invocation, opened, data)
            else:
                evaluate_texts(invocation, opened, texts, window)


@reactor.command("graph")
@click.argument("name")
@click.option(
    "--svg",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw it there, in place of printing it.",
)
@click.option("--force", is_flag=True, help="Overwrite FILE if it is there.")
@click.pass_obj
def graph(invocation: Invocation, name: str, svg: Path | None, force: bool) -> None:
    """Show who does what for whom in a reactor, as a Mermaid flowchart.

    \b
    Examples:
      arc-halo reactor graph digits
      arc-halo reactor graph digits --svg digits.svg
    """
    from arc_halo.reactors.graphs import as_facts, as_mermaid, as_svg
    from arc_halo.reactors.opening import read_shape
    from arc_halo.reconcile.report import as_json

    refuse_existing(svg, force=force)
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            shape = read_shape(conn, name)
    if svg is not None:
        svg.write_text(as_svg(shape))
        invocation.console.note(f"{svg} is written")
        return
    text = as_mermaid(shape)
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json(as_facts(shape)),
        markdown=lambda: f"```mermaid\n{text}\n```",
    )


@reactor.command("fit")
@click.argument("name")
@click.option(
    "--data",
    "source",
    metavar="FILE",
    type=click.File(encoding="utf-8"),
    required=True,
    help='Labelled examples, one a line: {"input": ..., "label": ...}.',
)
@click.option(
    "--cv",
    type=click.Choice(["prefit"]),
    default="prefit",
    show_default=True,
    expose_value=False,
    help="How the members' answers count: as they are, those of fitted models.",
)
@click.pass_obj
def fit(invocation: Invocation, name: str, source: Any) -> None:
    """Fit a reactor to labelled examples.

    Its members are asked the inputs, and what its strategy learns from their answers is stored;
    from then on the reactor answers with it.

    \b
    Examples:
      arc-halo reactor fit digits --data labelled.jsonl
      arc-halo reactor fit digits --data - --output json < labelled.jsonl
    """
    from arc_halo.reactors.fitting import fit_reactor, read_examples
    from arc_halo.reconcile.report import as_json

    examples = read_examples(read_given(source))
    with invocation.open(needs_database=True) as project, project.open_reactor(name) as opened:
        fitted = fit_reactor(project.weights, opened, examples)
    facts = fitted.as_json()
    render(
        invocation,
        text=lambda: _print_fitted(invocation, fitted),
        json=lambda: as_json(facts),
        markdown=lambda: f"```json\n{as_json(facts)}\n```",
    )


@reactor.command("status")
@click.argument("name", required=False)
@click.pass_obj
def status(invocation: Invocation, name: str | None) -> None:
    """Show what reactors there are, and how their runs went.

    Of one reactor what was measured, too: hour by hour, of the last day.

    \b
    Examples:
      arc-halo reactor status
      arc-halo reactor status digits --output json
    """
    from arc_halo.cli.invocation import markdown_table
    from arc_halo.reconcile.report import as_json
    from arc_halo.store import operations, reactors

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            rows = reactors.status(conn, name)
            if name is not None and not rows:
                raise NotFoundError(
                    f"there is no reactor {name!r}", hint="`arc-halo reactor status` lists them"
                )
            trends = operations.trends(conn, name, TREND_SPAN) if name is not None else []
    header = ("reactor", "type", "strategy", "members", "runs", "failed", "mean ms")
    cells = [_status_cells(row) for row in rows]
    tables: list[tuple[Sequence[str], Sequence[Sequence[str]]]] = [(header, cells)]
    if trends:
        columns = ("hour", "metric", "measured", "mean", "median", "95 %")
        tables.append((columns, [_trend_cells(row) for row in trends]))
    facts: JsonObject = {"reactors": [_facts(row) for row in rows]}
    if name is not None:
        facts["trends"] = [_facts(row) for row in trends]
    render(
        invocation,
        text=lambda: invocation.console.print("\n\n".join(table(*each) for each in tables)),
        json=lambda: as_json(facts),
        markdown=lambda: "\n\n".join(markdown_table(*each) for each in tables),
    )


@contextmanager
def _telling_what_is_kept(
    invocation: Invocation, opened: RunningReactor, kept: str
) -> Iterator[None]:
    """On Ctrl-C say what there is on record, and exit as on any Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as exc:
        told = "nothing is on record" if opened.plan.record == "none" else kept
        invocation.console.note(f"interrupted: {told}", "warn")
        raise click.exceptions.Exit(INTERRUPTED) from exc


def _print(invocation: Invocation, answer: Answer) -> None:
    from arc_halo.reactors.measuring import decided
    from arc_halo.sizes import format_count

    console = invocation.console
    listed = {"": answer.outputs} if answer.outputs is not None else dict(answer.side_by_side)
    for name, outputs in listed.items():
        # Texts as they are: what is decided by them is compared without the space around it.
        is_text = outputs.kinds == ("texts",)
        values = (outputs.texts if is_text else decided(outputs)) or _vectors(outputs)
        for value in values[:SHOWN]:
            console.print(f"{name}: {value}" if name else str(value))
        if len(values) > SHOWN:
            console.print(f"… and {format_count(len(values) - SHOWN, 'more answer')}")
    for member, why in answer.left_out.items():
        told = why.removeprefix(f"{member}: ")
        console.note(f"left out {member}: {told}")
    where = f", recorded as {answer.operation_id}" if answer.operation_id else ""
    console.note(f"{answer.execution_ms:.1f} ms, cost {answer.cost:g}{where}")


def _print_fitted(invocation: Invocation, fitted: Fitted) -> None:
    from arc_halo.sizes import format_count

    console = invocation.console
    counted = f"{format_count(fitted.example_count, 'example')} and {len(fitted.members)} members"
    console.print(f"{fitted.reactor}: {fitted.strategy} fitted to {counted}")
    if fitted.learnt.get("is_converged") is False:
        console.note("the regression did not come to an end: raise `max_iter`")
    console.note(f"stored as {fitted.root}")


def _vectors(outputs: Outputs) -> tuple[Any, ...]:
    return tuple(outputs.scores.tolist()) if outputs.scores is not None else ()


def _trend_cells(row: JsonObject) -> tuple[str, ...]:
    numbers = (f"{row[name]:.4g}" for name in ("mean", "median", "p95"))
    return (f"{row['hour']:%Y-%m-%d %H:%M}", row["metric"], str(row["measurements"]), *numbers)


def _facts(row: JsonObject) -> JsonObject:
    """The row as JSON has it: ids and times are texts."""
    return {
        name: value if isinstance(value, str | int | float | list | None) else str(value)
        for name, value in row.items()
    }


def _status_cells(row: JsonObject) -> tuple[str, ...]:
    mean = row["mean_run_seconds"]
    return (
        row["reactor_name"],
        row["reactor_type"],
        row["strategy_uses"],
        ", ".join(row["members"]),
        str(row["run_count"]),
        str(row["failed_run_count"]),
        "" if mean is None else f"{1000 * mean:.1f}",
    )
