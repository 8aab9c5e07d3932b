"""Servers that freeze are hung up on, slow ones are not."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from arc_halo.errors import ConnectionFailedError
from arc_halo.store.connection import Connection, connect, pool
from arc_halo.store.silence import hung_up_after


@contextmanager
def frozen(conn: Connection) -> Iterator[None]:
    pid = conn.info.backend_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_frozen_server_is_hung_up_on(database: str) -> None:
    with connect(database) as conn, frozen(conn):
        with (
            pytest.raises(ConnectionFailedError, match=r"did not answer for 0\.2 s"),
            hung_up_after(conn, 0.2),
        ):
            conn.execute("SELECT 1")
        assert conn.closed


def test_a_pool_keeps_no_connection_that_was_hung_up_on(database: str) -> None:
    with pool(database, 1) as connections:
        with connections.connection() as conn:
            first = conn.info.backend_pid
        with (
            pytest.raises(ConnectionFailedError),
            connections.connection() as conn,
            frozen(conn),
            hung_up_after(conn, 0.2),
        ):
            conn.execute("SELECT 1")
        with connections.connection() as conn:
            assert conn.info.backend_pid != first
            assert conn.execute("SELECT 1").fetchone() == (1,)


def test_what_makes_progress_may_take_longer(database: str) -> None:
    done: list[int] = []
    with connect(database) as conn:
        with hung_up_after(conn, 0.5, lambda: len(done)):
            for each in range(8):
                conn.execute("SELECT pg_sleep(0.2)")
                done.append(each)
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_connection_is_left_alone_afterwards(database: str) -> None:
    with connect(database) as conn:
        with hung_up_after(conn, 0.1):
            pass
        assert conn.execute("SELECT pg_sleep(0.4)").fetchone() is not None


def test_other_errors_stay_what_they_are(database: str) -> None:
    with (
        connect(database) as conn,
        pytest.raises(psycopg.errors.DivisionByZero),
        hung_up_after(conn, 5),
    ):
        conn.execute("SELECT 1 / 0")
