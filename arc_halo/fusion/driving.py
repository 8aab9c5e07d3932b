"""Driving the workers of a merge: given out to an executor, watched through the task table.

The table is the truth. What an executor says of its workers, or forgets, decides nothing: as long
as tasks are left and something gets done, workers are sent again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from arc_halo.config import redact
from arc_halo.errors import (
    ConnectionFailedError,
    FusionError,
    InvalidInputError,
    NotFiniteError,
)
from arc_halo.executors.threads import open_threads
from arc_halo.fusion.remote import Job, Outcome, do_job
from arc_halo.fusion.working import Strategies, Worked, work
from arc_halo.store import fusions
from arc_halo.store.fusions import Failure
from arc_halo.store.rows import Connection
from arc_halo.types import WorkExecutor
from arc_halo.weights.building import OpenBuild
from arc_halo.weights.store import Advance, WeightStore
from arc_halo.weights.threads import Cancellation, in_pool
from arc_halo.weights.writing import Totals

POLL_SECONDS = 0.2
# Once nothing is left to do, how long workers are given to say what they did.
LAST_WORD_SECONDS = 2
MOST_VAIN_ROUNDS = 3
"""How often workers may all end with nothing done before it is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Where workers run, and what those with a process of their own need to set themselves up."""

    executor: WorkExecutor
    address: str | None = None
    url: str | None = field(default=None, repr=False)
    is_embedded: bool = False
    plugin_files: tuple[tuple[str, Path], ...] = ()
    bodies: tuple[str, str | None] | None = None


LOCAL = Workers(
    executor=WorkExecutor(
        name="threads", version=1, summary="", open=open_threads, shares_memory=True
    )
)


def drive(
    store: WeightStore,
    strategies: Strategies,
    opened: OpenBuild,
    workers: Workers,
    advance: Advance,
) -> tuple[int, Totals]:
    """Have every task of the build done; how many tensors were computed, and what was stored.

    Raises `FusionError` for what a strategy cannot do, `NotFiniteError` for NaN and infinities.
    """
    if workers.executor.shares_memory:
        done = _drive_threads(store, strategies, opened, workers, advance)
    else:
        _check_reachable(workers)
        done = _Drive(store, opened, workers, advance).run()
    with store.pool.connection() as conn:
        _check_failures(fusions.failures(conn, opened.id))
    return done


def _drive_threads(
    store: WeightStore,
    strategies: Strategies,
    opened: OpenBuild,
    workers: Workers,
    advance: Advance,
) -> tuple[int, Totals]:
    done: list[Worked] = []
    vain = 0
    while True:
        before = _progress(store, opened)
        try:
            done += _round_of_threads(store, strategies, opened, workers, advance)
        except ConnectionFailedError:
            # One connection that was cut ends the round; what the others had finished stays.
            vain = 0 if _progress(store, opened).done > before.done else vain + 1
            if vain == MOST_VAIN_ROUNDS:
                raise
        now = _progress(store, opened)
        if not now.todo or now.failed:
            break
        time.sleep(POLL_SECONDS)  # another program is at a task: if it dies, that one is ours
    totals = Totals(
        new_bytes=sum(each.totals.new_bytes for each in done),
        stored_bytes=sum(each.totals.stored_bytes for each in done),
    )
    return sum(each.tensors for each in done), totals


def _round_of_threads(
    store: WeightStore,
    strategies: Strategies,
    opened: OpenBuild,
    workers: Workers,
    advance: Advance,
) -> list[Worked]:
    cancellation = Cancellation()

    def one(_: int) -> Worked:
        return work(store, strategies, opened.id, advance=advance, cancellation=cancellation)

    with workers.executor.open(workers.address, store.threads) as pool:
        return in_pool(pool, one, range(store.threads), cancellation)


def _progress(store: WeightStore, opened: OpenBuild) -> fusions.Progress:
    with store.pool.connection() as conn:
        return fusions.progress(conn, opened.id)


def _check_reachable(workers: Workers) -> None:
    if workers.executor.is_remote and workers.is_embedded:
        raise InvalidInputError(
            f"the workers of {workers.executor.name!r} are on other machines, and the embedded "
            "server is reached from this one only",
            hint="use a server that they reach: `--database-url`, or ARC_HALO_DATABASE_URL",
            code="AH023",
        )


class _Drive:
    """One build driven by workers that are not threads of this process."""

    def __init__(
        self, store: WeightStore, opened: OpenBuild, workers: Workers, advance: Advance
    ) -> None:
        self._store = store
        self._build_id = opened.id
        self._workers = workers
        self._advance = advance
        self._seen_bytes = self._progress().done_bytes
        self._done: list[Outcome] = []

    def run(self) -> tuple[int, Totals]:
        vain = 0
        with self._driving() as still_here:
            while (before := self._progress()).todo and not before.failed:
                outcome = self._round(still_here)
                if self._progress().done > before.done:
                    vain = 0
                elif outcome is not None or self._has_free():
                    vain += 1
                else:  # another program's workers are at what is left
                    still_here.say()
                    time.sleep(POLL_SECONDS)
                if vain == MOST_VAIN_ROUNDS:
                    raise FusionError(
                        f"{vain} times in a row the workers of {self._workers.executor.name!r} "
                        f"ended with nothing done: {outcome or 'no word from them'}",
                        hint="look at what they say, or use the executor 'threads'",
                    )
        totals = Totals(
            new_bytes=sum(each.new_bytes for each in self._done),
            stored_bytes=sum(each.stored_bytes for each in self._done),
        )
        return sum(each.tensors for each in self._done), totals

    def _round(self, still_here: _StillHere) -> str | None:
        """Send workers, and wait until none is left to do anything; what the last one said."""
        count = self._store.threads
        with self._workers.executor.open(self._workers.address, count) as executor:
            futures = self._send(executor, count)
            while not self._is_over(futures):
                wait(futures, timeout=POLL_SECONDS)
                still_here.say()
            wait(futures, timeout=LAST_WORD_SECONDS)
            for future in futures:
                future.cancel()
        return self._hear(futures)

    def _send(self, executor: Executor, count: int) -> list[Future[Outcome]]:
        job = Job(
            build_id=self._build_id,
            url=None if self._workers.executor.is_remote else self._workers.url,
            plugin_files=self._workers.plugin_files,
            codec=self._store.codec,
            chunk_bytes=self._store.chunk_bytes,
            memory_bytes=self._store.memory_bytes // count,
            bodies=self._workers.bodies,
        )
        futures: list[Future[Outcome]] = []
        with suppress(BrokenExecutor):  # then those that were sent say so
            futures.extend(executor.submit(do_job, job) for _ in range(count))
        return futures

    def _is_over(self, futures: Sequence[Future[Outcome]]) -> bool:
        now = self._progress()
        self._advance(now.done_bytes - self._seen_bytes)
        self._seen_bytes = now.done_bytes
        # With nothing left to do the workers end by themselves; an engine may not notice.
        return all(future.done() for future in futures) or not now.todo

    def _hear(self, futures: Sequence[Future[Outcome]]) -> str | None:
        said = None
        for future in futures:
            if not future.done() or future.cancelled():
                continue
            if (exc := future.exception()) is not None:
                # Not one of ours, so nobody has looked for secrets in it.
                said = f"{type(exc).__name__}: {redact(str(exc))}"
                continue
            outcome = future.result()
            said = outcome.lost or said
            if outcome.error is not None:
                code, message, hint = outcome.error
                raise FusionError(message, hint=hint, code=code)
            self._done.append(outcome)
        return said

    def _has_free(self) -> bool:
        with self._store.pool.connection() as conn:
            return fusions.has_free(conn, self._build_id)

    def _progress(self) -> fusions.Progress:
        with self._store.pool.connection() as conn:
            return fusions.progress(conn, self._build_id)

    @contextmanager
    def _driving(self) -> Iterator[_StillHere]:
        """Hold the lock without which workers of other processes stop."""
        with self._store.pool.connection() as conn, conn.transaction():
            fusions.hold_driver(conn, self._build_id)
            yield _StillHere(conn)


class _StillHere:
    """Keeps the server from ending the driver's transaction."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def say(self) -> None:
        self._conn.execute("SELECT")


def _check_failures(failures: Sequence[Failure]) -> None:
    """Raise what the workers have written down."""
    if not failures:
        return
    first = failures[0].error
    if first["code"] == NotFiniteError.code:
        raise NotFiniteError(first["message"], hint=first["hint"])
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    raise FusionError(first["message"] + more, hint=first["hint"], code=first["code"])
