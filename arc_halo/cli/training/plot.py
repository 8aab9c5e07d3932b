"""`arc-halo training plot`: series drawn in the terminal, or to a file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from arc_halo.cli.console import printable
from arc_halo.cli.invocation import Invocation, render
from arc_halo.cli.overwriting import refuse_existing
from arc_halo.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from arc_halo.store.rows import Connection
    from arc_halo.training.plotting import Axis, Curve
    from arc_halo.training.reading import Envelope, SeriesKey
    from arc_halo.types import JsonObject

IMAGE_BUCKETS = 2000
MAX_COLUMNS, MAX_LINES = 2000, 500


@click.command("plot")
@click.argument("sessions", nargs=-1, required=True)
@click.option(
    "--metric",
    metavar="GLOB",
    default="loss",
    show_default=True,
    help="The metrics to draw: loss, eval/loss, grad*.",
)
@click.option(
    "--scope", metavar="SCOPE", help="Their scope; * for all, train unless the metric says it."
)
@click.option(
    "--over",
    "axis",
    type=click.Choice(["step", "epoch", "time"]),
    default="step",
    show_default=True,
    help="Over what: time is in seconds since the first point.",
)
@click.option("--first", type=click.IntRange(min=0), metavar="STEP", help="From this step on.")
@click.option("--last", type=click.IntRange(min=0), metavar="STEP", help="Up to this step.")
@click.option("--log", "is_log", is_flag=True, help="Values on a logarithmic axis.")
@click.option(
    "--width", type=click.IntRange(20, MAX_COLUMNS), metavar="COLUMNS", help="Of the drawing."
)
@click.option(
    "--height", type=click.IntRange(4, MAX_LINES), metavar="LINES", help="Of the drawing."
)
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw it there, as .png, .svg or .pdf.",
)
@click.option("--force", is_flag=True, help="Overwrite FILE if it is there.")
@click.pass_obj
def plot(
    invocation: Invocation,
    sessions: tuple[str, ...],
    metric: str,
    scope: str | None,
    axis: Axis,
    first: int | None,
    last: int | None,
    is_log: bool,
    width: int | None,
    height: int | None,
    file: Path | None,
    force: bool,
) -> None:
    """Draw metrics of SESSIONS, from the least to the greatest value at each place.

    However long a series is, what a single point did is seen. Crosses below the axis are where
    values are NaN or infinite. Files need matplotlib: the extra `plot`.

    \b
    Examples:
      arc-halo training plot night-3
      arc-halo training plot night-2 night-3 --metric loss --scope eval --over epoch
      arc-halo training plot night-3 --metric 'grad*' --log --file grads.svg
    """
    from arc_halo.formats._files import replacing
    from arc_halo.reconcile.report import as_json
    from arc_halo.training import plotting

    if file is not None:
        plotting.check_image(file)
        refuse_existing(file, force=force)
    terminal = shutil.get_terminal_size((80, 24))
    width, height = width or terminal.columns, height or min(20, max(8, terminal.lines - 6))
    # A sign of Braille has two dots beside one another.
    buckets = width * 2 if file is None else IMAGE_BUCKETS
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            most = plotting.MAX_CURVES if file is None else None
            found = _envelopes(conn, sessions, metric, scope, buckets, first or 0, last, most)
    curves = [plotting.curve(label, each, axis, is_log=is_log) for label, _, each in found]
    title = curves[0].label if len(curves) == 1 else None
    if file is not None:
        image_format = file.suffix.lower().lstrip(".")
        image = plotting.image(curves, image_format, axis=axis, title=title, is_log=is_log)
        with replacing(file) as written:
            written.write(image)
        invocation.console.note(f"{file} is written")
        return
    lines = [title] if title else []
    lines += plotting.draw(curves, width=width, height=height, is_log=is_log)
    text = "\n".join(lines)
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json(
            {"axis": axis, "curves": [_facts(*each) for each in zip(found, curves, strict=True)]}
        ),
        markdown=lambda: f"```text\n{text}\n```",
    )


def _envelopes(
    conn: Connection,
    sessions: Sequence[str],
    metric: str,
    scope: str | None,
    buckets: int,
    first: int,
    last: int | None,
    most: int | None,
) -> list[tuple[str, str, Envelope]]:
    """Each series that is asked for: what it is called, the id of its session, and its shape.

    Raises `InvalidInputError` before it reads more than `most`.
    """
    from arc_halo.cli.training import telling
    from arc_halo.training import plotting, reading

    rows = list(
        {row.id: row for row in (reading.session(conn, each) for each in sessions)}.values()
    )
    named = [
        (name, row.id, key)
        for name, row in zip(telling.labels(rows), rows, strict=True)
        for key in _keys(conn, row.id, metric, scope)
    ]
    plotting.check_count(len(named), most)
    found = []
    for name, id, key in named:
        shape = reading.envelope(
            conn, id, key.key, scope=key.scope, buckets=buckets, first=first, last=last
        )
        if len(shape):
            found.append((printable(f"{name} {key}", one_line=True), str(id), shape))
    if not found:
        says_scope = scope is None and "/" in metric
        what = f"{metric!r}" + ("" if scope == "*" or says_scope else f" of {scope or 'train'}")
        there = {
            key.scope for row in rows for key in reading.list_series(conn, row.id, metric=metric)
        }
        raise NotFoundError(
            f"there is no point of {what} in {', '.join(map(repr, sessions))}",
            hint=f"there is one of {', '.join(sorted(there))}: choose with --scope"
            if there and not named
            else "`arc-halo training show` lists them; choose with --metric and --scope",
        )
    return found


def _keys(conn: Connection, session: UUID, metric: str, scope: str | None) -> list[SeriesKey]:
    """The series that are meant: of `train`, unless the scope or the metric says others."""
    from arc_halo.training import reading

    if scope is not None:
        where = None if scope == "*" else scope
        return reading.list_series(conn, session, metric=metric, scope=where)
    every = reading.list_series(conn, session, metric=metric)
    in_train = [key for key in every if key.scope == reading.TRAIN]
    return in_train or (every if "/" in metric else [])


def _facts(found: tuple[str, str, Envelope], curve: Curve) -> JsonObject:
    label, session, shape = found
    return {
        "label": label,
        "session": session,
        "scope": shape.scope,
        "key": shape.key,
        "x": curve.x.tolist(),
        "low": curve.low.tolist(),
        "high": curve.high.tolist(),
        "mean": curve.mean.tolist(),
        "outside": curve.outside.tolist(),
        "points": int(shape.counts.sum()),
    }
