"""Reading what training recorded: against MLflow, and against bars of its own."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from rows import Row
from tensor_site import interleaved, ratio_row
from training_site import Grounds, bar, execute

KEYS = [f"metric {i}" for i in range(10)]


def history(on: Grounds, points: int, repetitions: int) -> Iterator[Row]:
    """A whole series, in ours as arrays, in MLflow as `get_metric_history` gives it."""
    what = f"{points:,} points read: MLflow / ours"
    if on.mlflow is None:
        yield Row(what=what, figure="no --mlflow PYTHON is given", bar=">= 20", is_met=False)
        return
    on.fill(on.session("history"), ["loss"], points, 1000)
    logged = on.probe_mlflow("log", points=points, batch=1000)
    for url in (on.url, on.mlflow_url()):
        execute(url, "VACUUM ANALYZE")
    costs = interleaved(
        {
            "ours": lambda: on.probe("read", session="history", key="loss"),
            "mlflow": lambda: on.probe_mlflow("read", run=logged.said["run"]),
        },
        repetitions,
    )
    read = {cost.said["points"] for listed in costs.values() for cost in listed}
    assert read == {points}, read
    yield ratio_row(f"{what}, CPU", costs, "mlflow", "ours", 20, ">=")
    seconds = {name: median(c.said["seconds"] for c in listed) for name, listed in costs.items()}
    yield Row(
        what=f"{what}, on the clock",
        figure=f"{seconds['mlflow'] / seconds['ours']:.1f}"
        f"  ({seconds['mlflow']:.3f} / {seconds['ours']:.3f} s)",
    )


def envelope(on: Grounds, points: int, repetitions: int) -> Iterator[Row]:
    """A long series in 1,000 buckets, just written and once the server knows what it has."""
    on.fill(on.session("long"), ["loss"], points, 10_000)
    for state in ("just written", "vacuumed"):
        if state == "vacuumed":
            execute(on.url, "VACUUM ANALYZE")
        costs = [
            on.probe("envelope", session="long", key="loss", buckets=1000)
            for _ in range(repetitions)
        ]
        cpu = median(cost.cpu for cost in costs)
        parts = f"{median(c.client for c in costs):.2f}+{median(c.server for c in costs):.2f}"
        what = f"{points:,} points, 1,000 buckets, {state}, CPU-s"
        yield bar(what, f"{cpu:.2f}  ({parts})", cpu, 2, "<=")
        wrong = max(cost.said["wrong"] for cost in costs)
        of = costs[0].said["buckets"]
        yield bar("buckets without their extremes", f"{wrong} of {of}", wrong, 0, "<=")


def size(on: Grounds, points: int) -> Iterator[Row]:
    """What points take on disk with their index, ten series side by side in batches."""
    before = execute(on.url, "SELECT pg_total_relation_size('training_metrics')")
    on.fill(on.session("sizes"), KEYS, points // len(KEYS), 1000)
    after = execute(on.url, "SELECT pg_total_relation_size('training_metrics')")
    taken = (after - before) / points
    figure = f"{taken:.1f}  ({points:,} points of {len(KEYS)} series)"
    yield bar("bytes a point, index included", figure, taken, 100, "<=")
