"""A statement parsed once and run many times within one transaction, its parameters in binary.

It is the unnamed statement of the protocol: nothing of it outlives the transaction, so it works
behind a pooler in transaction mode, and large parameters go to the server without being copied
into a query. One at a time on a connection. Arrays are put together here, because the driver
does that element by element in Python.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
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


def int2(value: int) -> bytes:
    return _INT2.pack(value)


def int4(value: int) -> bytes:
    return _INT4.pack(value)


def timestamptz(value: datetime) -> bytes:
    """Microseconds since 2000-01-01, as PostgreSQL counts."""
    return _INT8.pack((value - _EPOCH) // timedelta(microseconds=1))


def read_int8(value: bytes | None) -> int:
    number: int = _INT8.unpack(value or b"")[0]
    return number


def int4_array(values: Sequence[int]) -> bytes:
    pairs = chain.from_iterable(zip(repeat(4), values, strict=False))
    return _array(_INT4_OID, len(values), struct.pack(f"!{2 * len(values)}i", *pairs))


def int8_array(values: Sequence[int]) -> bytes:
    return _array(_INT8_OID, len(values), b"".join(map(_INT8_ITEM.pack, repeat(8), values)))


def bytea_array(values: Sequence[bytes | memoryview]) -> bytes:
    lengths = map(_INT4.pack, map(len, values))
    items = chain.from_iterable(zip(lengths, values, strict=True))
    return _array(_BYTEA_OID, len(values), b"".join(items))


def text_array(values: Iterable[str]) -> bytes:
    encoded = [value.encode() for value in values]
    items = chain.from_iterable(zip(map(_INT4.pack, map(len, encoded)), encoded, strict=True))
    return _array(_TEXT_OID, len(encoded), b"".join(items))


_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_INT2, _INT4, _INT8 = struct.Struct("!h"), struct.Struct("!i"), struct.Struct("!q")
_INT8_ITEM = struct.Struct("!iq")
_BYTEA_OID, _INT8_OID, _INT4_OID, _TEXT_OID = 17, 20, 23, 25


def _array(oid: int, count: int, items: bytes) -> bytes:
    """One dimension that counts from 1, without NULLs; each item has its length before it."""
    dimensions = struct.pack("!ii", count, 1) if count else b""
    return struct.pack("!iii", 1 if count else 0, 0, oid) + dimensions + items


def _check(conn: Connection, result: pq.abc.PGresult) -> None:
    if result.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
        return
    if conn.pgconn.status != pq.ConnStatus.OK:
        raise psycopg.OperationalError(result.get_error_message())
    raise errors.error_from_result(result)
