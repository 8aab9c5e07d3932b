"""Requests of several threads in one session: what recording them costs, and what is read."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rows import Row
from tensor_site import Site

import arc_halo

THREADS = 4
MICROSECONDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What requests took, at random, and which succeeded."""

    latency: np.ndarray[Any, Any]
    first_token: np.ndarray[Any, Any]
    succeeded: np.ndarray[Any, Any]


def sessions(at: Site, url: str, count: int) -> Iterator[Row]:
    """Record so many requests, and compare what the database says of them with numpy."""
    given = _requests(count)
    with (
        tempfile.TemporaryDirectory(dir=at.directory) as directory,
        arc_halo.connect(url, project=Path(directory)) as halo,
    ):
        with halo.inference.session("bench@1.0.0", queue_requests=count) as session:
            started = time.perf_counter()
            cpu = _record(session, given)
            assert session.flush()
            seconds = time.perf_counter() - started
        counted, found = halo.inference.get(session.id), halo.inference.latency(session.id)
    each = 1e6 * cpu / count
    yield _bar(
        f"CPU of session.record, microseconds, {THREADS} threads",
        each,
        f"{each:.2f}  ({count / seconds:,.0f} a second until all are written)",
        MICROSECONDS,
    )
    missing = count - min(counted.request_count - counted.lost_count, found.requests)
    yield _bar(f"of {count:,} requests are missing", missing, f"{missing}", 0)
    off = max(
        abs(getattr(found, f"{name}_p{which}_ms") / np.percentile(took[given.succeeded], which) - 1)
        for name, took in (("latency", given.latency), ("first_token", given.first_token))
        for which in (50, 95, 99)
    )
    yield _bar("their percentiles / numpy's are off 1 by at most", off, f"{off:.1e}", 1e-12)


def _requests(count: int) -> Requests:
    numbers = np.random.default_rng(0)
    latency = numbers.lognormal(5, 1, count)
    return Requests(
        latency=latency,
        first_token=latency * numbers.uniform(0, 1, count),
        succeeded=numbers.random(count) > 0.01,
    )


def _record(session: Any, given: Requests) -> float:
    """Record them from all threads at once; the CPU seconds of these."""
    cpu: list[float] = []

    def work(which: int) -> None:
        mine = slice(which, None, THREADS)
        columns = (given.latency, given.first_token, given.succeeded)
        rows = list(zip(*(each[mine].tolist() for each in columns), strict=True))
        started = time.thread_time()
        for latency, first_token, succeeded in rows:
            session.record(
                latency_ms=latency,
                first_token_ms=first_token,
                prompt_tokens=100,
                cached_tokens=64,
                generated_tokens=20,
                succeeded=succeeded,
            )
        cpu.append(time.thread_time() - started)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(cpu)


def _bar(what: str, value: float, figure: str, most: float) -> Row:
    return Row(what=what, figure=figure, bar=f"<= {most:g}", is_met=bool(value <= most))
