"""`arc-halo training show`: one session, its config, and what became of its metrics."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from arc_halo.cli.console import printable
from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.telling import facts, moment, number

if TYPE_CHECKING:
    from arc_halo.store.training_reading import SessionRow
    from arc_halo.training.reading import Summary

SERIES = ("series", "points", "last step", "last", "least", "at", "greatest", "at", "mean")


@click.command("show")
@click.argument("session")
@click.option(
    "--metric",
    metavar="GLOB",
    default="*",
    help="Only series of these metrics: loss, eval/loss, grad*.",
)
@click.option("--scope", metavar="SCOPE", help="Only series of this scope: train, eval, system.")
@click.pass_obj
def show(invocation: Invocation, session: str, metric: str, scope: str | None) -> None:
    """Show one SESSION: where it stands, its config, and its metrics in a few numbers.

    A forked session has its parent's metrics up to the step it was forked at. Extremes and means
    are of the values that are finite; how many are not is told.

    \b
    Examples:
      arc-halo training show night-3
      arc-halo training show 0f6e2a --metric 'loss*' --scope eval
      arc-halo training show night-3 --output json
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.store import gradient_checkpoints
    from arc_halo.training import reading
    from arc_halo.training.recomputing import recorded_text

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            found = reading.session(conn, session)
            summaries = reading.summaries(conn, found.id, metric=metric, scope=scope)
            parent = None if found.parent_id is None else reading.session(conn, found.parent_id)
            forks = reading.forks(conn, found.id)
            layers = gradient_checkpoints.of_session(conn, found.id)
    told = {
        **facts(found),
        "model": found.model,
        "forks": [facts(each) for each in forks],
        "gradient_checkpoints": [asdict(layer) for layer in layers],
        "series": [facts(each) for each in summaries],
    }
    fields = _fields(found, parent, forks, recorded_text(layers))
    rows = [_cells(each) for each in summaries]

    def text() -> None:
        width = max(len(name) for name, _ in fields)
        lines = [f"{name:<{width}}  {printable(value, one_line=True)}" for name, value in fields]
        invocation.console.print("\n".join(lines))
        if rows:
            invocation.console.print("\n" + table(SERIES, rows))
        elif metric != "*" or scope is not None:
            invocation.console.note("no series of the session fits --metric and --scope", "warn")
        if unfinite := sum(each.not_finite for each in summaries):
            invocation.console.note(f"values that are NaN or infinite: {unfinite}", "warn")

    render(
        invocation,
        text=text,
        json=lambda: as_json(told),
        markdown=lambda: "\n\n".join(
            [markdown_table(("field", "value"), fields)]
            + ([markdown_table(SERIES, rows)] if rows else [])
        ),
    )


def _fields(
    session: SessionRow,
    parent: SessionRow | None,
    forks: list[SessionRow],
    recomputed: str | None,
) -> list[tuple[str, str]]:
    from arc_halo.cli.training import telling
    from arc_halo.sizes import format_seconds
    from arc_halo.training.configs import flattened

    commit = session.git_commit and session.git_commit + (" and changes" * bool(session.git_dirty))
    has_epochs = session.current_epoch > 0 or session.total_epochs is not None
    forked = None
    if parent is not None or session.forked_at_step is not None:
        at = "" if session.forked_at_step is None else f" at step {session.forked_at_step}"
        forked = (telling.label(parent) if parent else "a session that is gone,") + at
    found: dict[str, str | None] = {
        "id": str(session.id),
        "name": session.name,
        "model": session.model,
        "status": session.status,
        "error": session.error,
        "step": telling.of(session.current_step, session.total_steps),
        "epoch": telling.of(session.current_epoch, session.total_epochs) if has_epochs else None,
        "done": telling.progress(session),
        "began": moment(session.started_at),
        "last sign": moment(session.heartbeat_at),
        "ended": moment(session.finished_at),
        "took": format_seconds(session.elapsed_seconds),
        "host": session.host,
        "commit": commit,
        "training": session.training_name,
        "group": session.group_name,
        "forked from": forked,
        "forks": ", ".join(map(telling.label, forks)),
        "checkpoints": str(session.checkpoint_count),
        "best by": session.best_metric,
        "computed again": recomputed,
        "notes": session.notes,
    }
    told = [(name, value) for name, value in found.items() if value and value != "-"]
    for title, values in (
        ("tags", session.tags),
        ("dataset", session.dataset),
        ("config", session.config),
    ):
        told += [
            (f"{title}.{key}", _value(value)) for key, value in sorted(flattened(values).items())
        ]
    return told


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cells(summary: Summary) -> tuple[str, ...]:
    return (
        f"{summary.scope}/{summary.key}",
        str(summary.count),
        str(summary.last_step),
        number(summary.last),
        number(summary.low),
        "-" if summary.low_step is None else str(summary.low_step),
        number(summary.high),
        "-" if summary.high_step is None else str(summary.high_step),
        number(summary.mean),
    )
