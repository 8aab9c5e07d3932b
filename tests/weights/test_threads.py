"""Threads that wait in the server end whenever another fails or the user interrupts."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from arc_halo.store.rows import Connection, Pool
from arc_halo.weights.store import WeightStore
from arc_halo.weights.threads import Cancellation, in_threads

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"


def is_asleep(pool: Pool) -> bool:
    with pool.connection() as conn:
        row = conn.execute(WAITING).fetchone()
        return row is not None and row[0] == 1


def sleep(conn: Connection) -> None:
    conn.execute("SELECT pg_sleep(60)")


def test_an_interrupt_while_work_is_handed_out_ends_what_runs(store: WeightStore) -> None:
    cancellation = Cancellation()

    def work(item: int) -> None:
        with cancellation.guard(), store.pool.connection() as conn, cancellation.watch(conn):
            sleep(conn)

    def items() -> Iterator[int]:
        yield 0
        while not is_asleep(store.pool):
            time.sleep(0.01)
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        in_threads(2, work, items(), cancellation)
    assert time.monotonic() - started < 20


def test_one_that_was_between_statements_is_asked_again(store: WeightStore) -> None:
    cancellation = Cancellation()

    def work(item: int) -> None:
        with cancellation.guard(), store.pool.connection() as conn, cancellation.watch(conn):
            if item == 1:
                raise ZeroDivisionError
            while cancellation.cause is None:
                time.sleep(0.01)
            time.sleep(0.3)  # the first request finds no statement
            sleep(conn)

    started = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        in_threads(2, work, [0, 1], cancellation)
    assert time.monotonic() - started < 20
