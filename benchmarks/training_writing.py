"""Logging points: against MLflow and Trackio, against bare COPY, and what it costs who logs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from rows import Row
from tensor_site import Cost, interleaved
from training_site import Grounds, bar

CALLER_MICROSECONDS = 20
KEYS_OF_MANY = 10


def against_mlflow(on: Grounds, points: int, repetitions: int) -> Iterator[Row]:
    """Points of one metric until all are in the database, on the same server."""
    what = f"{points:,} durable points: ours / MLflow log_batch(1000)"
    if on.mlflow is None:
        yield Row(what=what, figure="no --mlflow PYTHON is given", bar=">= 20", is_met=False)
        return
    costs = interleaved(
        {
            "ours": lambda: on.probe("log", points=points),
            "theirs": lambda: on.probe_mlflow("log", points=points, batch=1000),
        },
        repetitions,
    )
    yield _rate_row(what, costs, points, 20)


def against_trackio(on: Grounds, points: int, repetitions: int) -> Iterator[Row]:
    """Points of one metric until all are stored: in our database, in its SQLite."""
    what = f"{points:,} durable points: ours / Trackio"
    if on.trackio is None:
        yield Row(what=what, figure="no --trackio PYTHON is given", bar=">= 1", is_met=False)
        return

    def trackio() -> Cost:
        with tempfile.TemporaryDirectory(dir=on.directory) as directory:
            cost = on.probe_trackio(directory=directory, points=points)
        assert cost.said["points"] == points, cost
        return cost

    costs = interleaved(
        {"ours": lambda: on.probe("log", points=points), "theirs": trackio}, repetitions
    )
    yield _rate_row(what, costs, points, 1)


def against_copy(on: Grounds, points: int, repetitions: int) -> Iterator[Row]:
    """The same rows by one binary COPY whose bytes are made before, into the same table."""
    costs = interleaved(
        {
            "ours": lambda: on.probe("log", points=points),
            "theirs": lambda: on.probe("copy", points=points),
        },
        repetitions,
    )
    yield _rate_row(f"{points:,} durable points: ours / bare binary COPY", costs, points, 0.4)


def caller(on: Grounds, points: int, repetitions: int) -> Iterator[Row]:
    """CPU of the thread that logs, while another writes: one metric a step, and ten."""
    for keys in (1, KEYS_OF_MANY):
        costs = [
            on.probe("call", steps=points // keys, keys=keys).said["microseconds"]
            for _ in range(repetitions)
        ]
        figure = f"{median(costs):.2f}  {min(costs):.2f}-{max(costs):.2f}"
        what = f"CPU of run.log, microseconds a point, {keys} a step"
        yield bar(what, figure, median(costs), CALLER_MICROSECONDS, "<=")


def _rate_row(what: str, costs: Mapping[str, Sequence[Cost]], points: int, least: float) -> Row:
    """The median, over repetitions, of our points a second over theirs in the same one."""
    pairs = zip(costs["ours"], costs["theirs"], strict=True)
    ratios = [theirs.said["seconds"] / ours.said["seconds"] for ours, theirs in pairs]
    rates = [points / median(c.said["seconds"] for c in costs[name]) for name in costs]
    cpu = [1e6 * median(c.cpu for c in costs[name]) / points for name in costs]
    figure = (
        f"{median(ratios):.2f}  {min(ratios):.2f}-{max(ratios):.2f}"
        f"  ({rates[0]:,.0f} / {rates[1]:,.0f} a second; {cpu[0]:.1f} / {cpu[1]:.1f} CPU-us each)"
    )
    return bar(what, figure, median(ratios), least, ">=")
