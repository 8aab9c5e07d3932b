"""A statement parsed once and run many times within one transaction, its parameters in binary.

It is the unnamed statement of the protocol: nothing of it outlives the transaction, so it works
behind a pooler in transaction mode, and large parameters go to the server without being copied
into a query. One at a time on a connection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import psycopg
from psycopg import errors, pq

from arc_halo.store.rows import Connection

Parameter = bytes | memoryview | None

_PLACEHOLDER = re.compile(r"%\((\w+)\)[sbt]")


class Prepared:
    """The statement `sql`, whose named parameters are given in the order of their first use."""

    def __init__(self, sql: str) -> None:
        names = list(dict.fromkeys(_PLACEHOLDER.findall(sql)))
        self._text = _PLACEHOLDER.sub(lambda m: f"${names.index(m[1]) + 1}", sql).encode()
        self._formats = [pq.Format.BINARY] * len(names)

    def parse(self, conn: Connection) -> None:
        """Call it first, in the transaction that `run` is called in."""
        _check(conn, conn.pgconn.prepare(b"", self._text))

    def run(self, conn: Connection, parameters: Sequence[Parameter]) -> int:
        """Run it; the number of rows concerned."""
        # The driver's signature forgets that a parameter may be NULL.
        values = cast("Any", parameters)
        result = conn.pgconn.exec_prepared(b"", values, self._formats, pq.Format.BINARY)
        _check(conn, result)
        return result.command_tuples or 0

    def once(
        self, conn: Connection, parameters: Sequence[Parameter]
    ) -> list[tuple[bytes | None, ...]]:
        """Parse it and run it in one message; the rows that it returns, in binary."""
        values = cast("Any", parameters)
        result = conn.pgconn.exec_params(self._text, values, None, self._formats, pq.Format.BINARY)
        _check(conn, result)
        columns = range(result.nfields)
        return [tuple(result.get_value(row, c) for c in columns) for row in range(result.ntuples)]


def _check(conn: Connection, result: pq.abc.PGresult) -> None:
    if result.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
        return
    if conn.pgconn.status != pq.ConnStatus.OK:
        raise psycopg.OperationalError(result.get_error_message())
    raise errors.error_from_result(result)
