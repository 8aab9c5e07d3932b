"""PostgreSQL's binary forms: parameters, arrays and the rows of COPY.

The driver puts arrays together element by element in Python, and copies every value it reads.
Formats: the `*_send` and `*_recv` functions of PostgreSQL, and the binary format of COPY.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat

COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER = b"\xff\xff"


def int2(value: int) -> bytes:
    return _INT2.pack(value)


def int4(value: int) -> bytes:
    return _INT4.pack(value)


def int8(value: int) -> bytes:
    return _INT8.pack(value)


def timestamptz(value: datetime) -> bytes:
    """Microseconds since 2000-01-01, as PostgreSQL counts."""
    return int8((value - _EPOCH) // timedelta(microseconds=1))


def read_int(value: bytes | memoryview | None) -> int:
    """An integer of any width."""
    return int.from_bytes(value or b"", "big", signed=True)


def int4_array(values: Sequence[int]) -> bytes:
    pairs = chain.from_iterable(zip(repeat(4), values, strict=False))
    return _array(_INT4_OID, len(values), [struct.pack(f"!{2 * len(values)}i", *pairs)])


def int8_array(values: Sequence[int]) -> bytes:
    return _array(_INT8_OID, len(values), map(_INT8_ITEM.pack, repeat(8), values))


def bytea_array(values: Sequence[bytes | memoryview]) -> bytes:
    lengths = map(_INT4.pack, map(len, values))
    items = chain.from_iterable(zip(lengths, values, strict=True))
    return _array(_BYTEA_OID, len(values), items)


def text_array(values: Iterable[str]) -> bytes:
    encoded = [value.encode() for value in values]
    items = chain.from_iterable(zip(map(_INT4.pack, map(len, encoded)), encoded, strict=True))
    return _array(_TEXT_OID, len(encoded), items)


def copied_fields(row: memoryview) -> list[memoryview | None]:
    """The fields of one row of COPY, as slices of it; None for NULL."""
    (count,) = _INT2.unpack_from(row)
    fields: list[memoryview | None] = []
    start = _INT2.size
    for _ in range(count):
        (length,) = _INT4.unpack_from(row, start)
        start += _INT4.size
        fields.append(row[start : start + length] if length >= 0 else None)
        start += max(length, 0)
    return fields


_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_INT2, _INT4, _INT8 = struct.Struct("!h"), struct.Struct("!i"), struct.Struct("!q")
_INT8_ITEM = struct.Struct("!iq")
_BYTEA_OID, _INT8_OID, _INT4_OID, _TEXT_OID = 17, 20, 23, 25


def _array(oid: int, count: int, items: Iterable[bytes | memoryview]) -> bytes:
    """One dimension that counts from 1, without NULLs; each item has its length before it."""
    dimensions = struct.pack("!ii", count, 1) if count else b""
    header = struct.pack("!iii", 1 if count else 0, 0, oid) + dimensions
    return b"".join(chain((header,), items))
