"""What `training.py` measures of ours, each in a fresh process.

    python training_probes.py PROBE ARGUMENTS-AS-JSON

prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from server_cpu import charged

import arc_halo
from arc_halo.training.checkpoints.background import Pending


def read(*, url: str, directory: str, session: str, key: str, postmaster: int) -> dict[str, Any]:
    """A whole series as arrays, once it was read before."""
    with arc_halo.connect(url, project=Path(directory)) as halo:
        recorded = halo.training.get(session)
        recorded.series(key)
        started = time.perf_counter()
        with charged(postmaster, writes=False) as cost:
            found = recorded.series(key)
            seconds = time.perf_counter() - started
        return {**cost, "seconds": seconds, "points": len(found)}


def envelope(
    *, url: str, directory: str, session: str, key: str, buckets: int, postmaster: int
) -> dict[str, Any]:
    """An envelope, and how many of its buckets have not the extremes that their points have."""
    import numpy as np

    with arc_halo.connect(url, project=Path(directory)) as halo:
        recorded = halo.training.get(session)
        with charged(postmaster, writes=False) as cost:
            found = recorded.envelope(key, buckets=buckets)
        whole = recorded.series(key)
    starts = np.searchsorted(whole.steps, found.first_steps)
    finite = np.isfinite(whole.values)
    lows = np.minimum.reduceat(np.where(finite, whole.values, np.inf), starts)
    highs = np.maximum.reduceat(np.where(finite, whole.values, -np.inf), starts)
    wrong = int(((lows != found.lows) | (highs != found.highs)).sum())
    counted = int(found.counts.sum()) == len(whole)
    return {**cost, "buckets": len(found), "wrong": wrong if counted else len(found)}


def log(*, url: str, directory: str, points: int, postmaster: int) -> dict[str, Any]:
    """A session that logs a point a step, until all are in the database."""
    with arc_halo.connect(url, project=Path(directory)) as halo:
        run = halo.training.session("bench@1.0.0")
        run.log({"loss": 1.0}, step=0)
        run.flush()
        started = time.perf_counter()
        with charged(postmaster) as cost:
            for step in range(1, points + 1):
                run.log({"loss": 1 / step}, step=step)
            assert run.flush()
            seconds = time.perf_counter() - started
        run.finish()
        assert run.dropped == 0
    return {**cost, "seconds": seconds}


def copy(*, url: str, directory: str, points: int, postmaster: int) -> dict[str, Any]:
    """The rows of such a session by one binary COPY, whose bytes are made before."""
    import numpy as np

    from arc_halo.store import training_points as store
    from arc_halo.store.connection import connect

    with arc_halo.connect(url, project=Path(directory)) as halo:
        run = halo.training.session("bench@1.0.0")
        run.log({"loss": 1.0}, step=0)
        run.finish()
    steps = np.arange(1, points + 1)
    with connect(url) as conn:
        ((number, _),) = store.series(conn, run.id).values()
        rows = store.Points(
            series=np.full(points, number, np.int32),
            epochs=np.full(points, np.nan, np.float32),
            steps=steps,
            values=1 / steps,
            micros=steps + 800_000_000_000_000,
        )
        body = b"".join([store.COPY_HEADER, *store._copy_rows(rows), store.COPY_TRAILER])
        started = time.perf_counter()
        with charged(postmaster) as cost:
            with conn.cursor() as cursor, cursor.copy(store.COPY_POINTS) as stream:
                stream.write(body)
            seconds = time.perf_counter() - started
    return {**cost, "seconds": seconds}


def call(*, url: str, directory: str, steps: int, keys: int, postmaster: int) -> dict[str, Any]:
    """The CPU of the thread that logs so many steps, by the point."""
    names = [f"metric {i}" for i in range(keys)]
    with (
        arc_halo.connect(url, project=Path(directory)) as halo,
        halo.training.session("bench@1.0.0") as run,
        charged(postmaster) as cost,
    ):
        started = time.thread_time()
        for step in range(steps):
            run.log(dict.fromkeys(names, step / 7), step=step, epoch=step / 1000)
        seconds = time.thread_time() - started
    return {**cost, "microseconds": 1e6 * seconds / (steps * keys)}


def checkpoint(*, url: str, directory: str, mebibytes: int, postmaster: int) -> dict[str, Any]:
    """Checkpoints of weights as a model has them: new, unchanged twice, and a little changed."""
    import numpy as np

    numbers = np.random.default_rng(5)
    weights = {
        f"layer.{i}": numbers.normal(0, 0.02, 2**18).astype(np.float32) for i in range(mebibytes)
    }
    found: dict[str, Any] = {}
    with (
        arc_halo.connect(url, project=Path(directory)) as halo,
        halo.training.session("bench@1.0.0") as run,
        charged(postmaster) as cost,
    ):

        def save(name: str, step: int, *, is_async: bool = False) -> int:
            started = time.perf_counter()
            saved = run.checkpoint(step=step, model=weights, rng=False, async_=is_async)
            found[name] = time.perf_counter() - started
            if isinstance(saved, Pending):
                saved = saved.result()
            return saved.stored_bytes

        def bodies() -> int:
            with halo.project.connection() as conn:
                row = conn.execute("SELECT count(*) FROM chunk_bodies").fetchone()
            assert row is not None
            return int(row[0])

        save("first", 1)
        found["bodies"] = bodies()
        save("unchanged", 2)
        save("async", 3, is_async=True)
        found["unchanged_bodies"] = bodies() - found["bodies"]
        for name, tensor in weights.items():
            weights[name] = tensor + numbers.normal(0, 1e-5, tensor.shape).astype(np.float32)
        found["changed_bytes"] = save("changed", 4)
        found["raw_bytes"] = sum(tensor.nbytes for tensor in weights.values())
    return {**cost, **found}


PROBES = {probe.__name__: probe for probe in (read, envelope, log, copy, call, checkpoint)}


if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]](**json.loads(sys.argv[2]))))
