"""The lock that one transaction holds: polled for, and gone with the transaction."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import pq
from psycopg.rows import class_row, tuple_row

from arc_halo.errors import LockNotHadError


@dataclass(frozen=True, slots=True, kw_only=True)
class LockHolder:
    """Who holds an advisory lock. What another role's session does may be hidden: then None."""

    pid: int
    application_name: str | None
    since: datetime | None

    def __str__(self) -> str:
        parts = [f"pid {self.pid}"]
        if self.application_name:
            parts.append(self.application_name)
        if self.since:
            parts.append(f"since {self.since:%Y-%m-%d %H:%M:%S%z}")
        return ", ".join(parts)


def try_xact_lock(conn: psycopg.Connection[object], key_text: str, timeout: float) -> None:
    """Take the lock named `key_text` for the rest of the transaction that `conn` is in.

    It is asked for again and again, never waited for in the server, for `timeout` seconds. Call
    it in a READ COMMITTED transaction: under a stricter level the snapshot would be older than
    the lock. Raises `LockNotHadError`, naming the holder where the server shows it.
    """
    if conn.autocommit and conn.info.transaction_status == pq.TransactionStatus.IDLE:
        raise ValueError("a transaction's lock needs a transaction")
    deadline = time.monotonic() + timeout
    pause = 0.02
    while not _lock_once(conn, key_text):
        if time.monotonic() + pause > deadline:
            raise _lock_not_had(conn, key_text)
        time.sleep(pause * _jitter.uniform(0.5, 1.0))
        pause = min(pause * 2, 0.5)


SET_LOCK_TIMEOUT = "SELECT set_config('lock_timeout', %(milliseconds)s, true)"


def limit_waiting(conn: psycopg.Connection[object], seconds: float) -> None:
    """For the rest of the transaction, wait so long at most for each row or table."""
    conn.execute(SET_LOCK_TIMEOUT, {"milliseconds": str(max(1, round(seconds * 1000)))})


def lock_holder(conn: psycopg.Connection[object], key_text: str) -> LockHolder | None:
    """Who holds the lock named `key_text` in this database now."""
    with conn.cursor(row_factory=class_row(LockHolder)) as cursor:
        return cursor.execute(_LOCK_HOLDER, {"key": key_text}).fetchone()


_jitter = random.Random()
"""Not the program's generator: what it draws must not depend on how long it waited."""

_TRY_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended(%(key)s, 0))"

# pg_locks shows the lock's bigint as its two halves.
_LOCK_HOLDER = """
SELECT l.pid, nullif(a.application_name, '') AS application_name, a.xact_start AS since
FROM (SELECT hashtextextended(%(key)s, 0) AS key) AS k
JOIN pg_locks AS l
  ON l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
 AND l.classid::bigint = (k.key >> 32) & 4294967295
 AND l.objid::bigint = k.key & 4294967295
 AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
LIMIT 1
"""


def _lock_once(conn: psycopg.Connection[object], key_text: str) -> bool:
    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(_TRY_LOCK, {"key": key_text}).fetchone()
    return row is not None and bool(row[0])


def _lock_not_had(conn: psycopg.Connection[object], key_text: str) -> LockNotHadError:
    holder = lock_holder(conn, key_text)
    by = f" by another session ({holder})" if holder else " by another session"
    end = f"; `SELECT pg_terminate_backend({holder.pid})` would end it" if holder else ""
    return LockNotHadError(
        f"the lock {key_text!r} is held{by}",
        hint=f"wait until it is done, then plan again{end}",
    )
