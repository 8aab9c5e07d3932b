"""What the tensor store is compared with: the barest loops that write and read the same rows."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from psycopg import pq, sql
from tensor_files import CHUNK_BYTES, Span, spans

COMMIT_BYTES = 64 * 2**20
BLOCK_BYTES = 2**18

PREPARED = b"""
INSERT INTO chunk_bodies (digest, raw_bytes, stored_bytes, codec, codec_version, body)
VALUES ($1, $2, $2, 'raw', 1, $3) ON CONFLICT (digest) DO NOTHING
"""
BARE = PREPARED.replace(b"chunk_bodies", b"bare_bodies")
BEGIN = b"BEGIN; SET LOCAL synchronous_commit = off"
OIDS = (17, 23, 17)

SET_ROWS = """
SELECT tensor.chunk_digest, chunk.body
FROM weight_set_tensors AS member
JOIN tensor_data AS tensor USING (tensor_id)
JOIN chunk_bodies AS chunk ON chunk.digest = tensor.chunk_digest
WHERE member.ordinal % {} = {}
ORDER BY member.ordinal, tensor.chunk_index
"""

BODIES = """
COPY (
    SELECT tensor.chunk_digest, chunk.body
    FROM weight_set_tensors AS member
    JOIN tensor_data AS tensor USING (tensor_id)
    JOIN chunk_bodies AS chunk ON chunk.digest = tensor.chunk_digest
    WHERE member.weight_set_id = (SELECT id FROM weight_sets ORDER BY id OFFSET {} LIMIT 1)
    ORDER BY member.ordinal, tensor.chunk_index
) TO STDOUT (FORMAT binary)
"""

EXPORTS = {
    "chunk_bodies": """
        SELECT {columns} FROM chunk_bodies AS t
        JOIN tensor_data ON chunk_digest = t.digest
        JOIN weight_set_tensors AS member USING (tensor_id)
        WHERE member.ordinal % {parts} = {part} ORDER BY member.ordinal, chunk_index""",
    "tensor_metadata": """
        SELECT {columns} FROM tensor_metadata AS t
        JOIN weight_set_tensors AS member ON member.tensor_id = t.id
        WHERE member.ordinal % {parts} = {part} ORDER BY member.ordinal""",
    "tensor_data": """
        SELECT {columns} FROM tensor_data AS t
        JOIN weight_set_tensors AS member USING (tensor_id)
        WHERE member.ordinal % {parts} = {part} ORDER BY member.ordinal, chunk_index""",
    "weight_sets": "SELECT {columns} FROM weight_sets AS t WHERE {part} = 0 AND {parts} > 0",
    "weight_set_tensors": """
        SELECT {columns} FROM weight_set_tensors AS t
        WHERE {part} = 0 AND {parts} > 0 ORDER BY t.ordinal""",
}
"""The rows of one weight set whose tensors share no chunks, in parts that do not refer to one
another; the set itself is in the first. Tables in the order in which their keys allow them."""

SHARED = ("weight_sets", "weight_set_tensors")


@contextmanager
def connections(url: str, count: int) -> Iterator[list[psycopg.Connection[Any]]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(psycopg.connect(url, autocommit=True, prepare_threshold=None))
            for _ in range(count)
        ]


def in_threads(work: Callable[[Any], object], each: Sequence[Any]) -> None:
    """Do `work` for each in a thread of its own, or right here when there is only one."""
    if len(each) == 1:
        work(each[0])
        return
    with ThreadPoolExecutor(len(each)) as pool:
        for _ in pool.map(work, each):
            pass


def ingest(conns: Sequence[psycopg.Connection[Any]], path: Path) -> None:
    """Read the file's chunks, hash and insert them, a thread a connection."""
    todo, lock = iter(spans(path)), threading.Lock()

    def take() -> Span | None:
        with lock:
            return next(todo, None)

    def work(conn: psycopg.Connection[Any]) -> None:
        file = os.open(path, os.O_RDONLY)
        try:
            _insert_all(conn.pgconn, file, iter(take, None))
        finally:
            os.close(file)

    in_threads(work, conns)


def load(
    conns: Sequence[psycopg.Connection[Any]], size_bytes: Sequence[int]
) -> list[np.ndarray[Any, Any]]:
    """COPY the rows of the one set there is into an array a connection, of so many bytes."""
    arrays: list[Any] = [None] * len(conns)

    def work(index: int) -> None:
        array = np.empty(size_bytes[index], np.uint8)
        query = sql.SQL(SET_ROWS).format(sql.Literal(len(conns)), sql.Literal(index))
        _copy_out(conns[index], query, array.data)
        arrays[index] = array

    in_threads(work, range(len(conns)))
    return arrays


def export_rows(conn: psycopg.Connection[Any], directory: Path, parts: int) -> None:
    """Write the rows of the finished import as COPY BINARY files, `parts` of each table."""
    for table, query in EXPORTS.items():
        columns = conn.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 "
            "AND NOT attisdropped ORDER BY attnum",
            [table],
        ).fetchall()
        for part in range(parts):
            statement = sql.SQL(query).format(
                columns=sql.SQL(", ").join(sql.Identifier("t", name) for (name,) in columns),
                parts=sql.Literal(parts),
                part=sql.Literal(part),
            )
            copying = sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(statement)
            with (
                conn.cursor().copy(copying) as copy,
                (directory / f"{table}.{part}").open("wb") as file,
            ):
                file.writelines(copy)


def copy_rows(conns: Sequence[psycopg.Connection[Any]], directory: Path) -> None:
    """COPY the exported rows into the empty tables, a part a connection, the set's own last."""

    def work(index: int) -> None:
        _copy_in(conns[index], directory, [t for t in EXPORTS if t not in SHARED], index)

    in_threads(work, range(len(conns)))
    _copy_in(conns[0], directory, SHARED, 0)


def merge(reading: Sequence[psycopg.Connection[Any]], writing: psycopg.Connection[Any]) -> None:
    """Read the bodies of a set a connection, and write those of the first into a table like theirs.

    What a merge of as many members reads and writes, without anything done in between.
    """
    writing.execute("CREATE TABLE bare_bodies (LIKE chunk_bodies INCLUDING ALL)")
    _checked(writing.pgconn, writing.pgconn.prepare(b"bare", BARE, OIDS))
    with ExitStack() as stack:
        first, *others = [
            stack.enter_context(conn.cursor().copy(sql.SQL(BODIES).format(sql.Literal(index))))
            for index, conn in enumerate(reading)
        ]
        _checked(writing.pgconn, writing.pgconn.exec_(BEGIN))
        for number, block in enumerate(first):
            for other in others:
                other.read()
            view = memoryview(block)[0 if number else 19 :]
            if len(view) > 2:
                values = (bytes(view[6:38]), (len(view) - 42).to_bytes(4, "big"), view[42:])
                _insert(writing.pgconn, values)
        for other in others:
            for _ in other:
                pass
        _checked(writing.pgconn, writing.pgconn.exec_(b"COMMIT"))


def _insert(pgconn: pq.abc.PGconn, values: Sequence[Any]) -> None:
    formats = (pq.Format.BINARY,) * 3
    _checked(pgconn, pgconn.exec_prepared(b"bare", values, formats, pq.Format.BINARY))


def _insert_all(pgconn: pq.abc.PGconn, file: int, todo: Iterator[Span]) -> None:
    _checked(pgconn, pgconn.prepare(b"bare", PREPARED, OIDS))
    buffer = memoryview(bytearray(CHUNK_BYTES))
    pending = 0
    for span in todo:
        if not pending:
            _checked(pgconn, pgconn.exec_(BEGIN))
        raw = buffer[: span.length]
        os.preadv(file, [raw], span.offset)
        digest = hashlib.sha256(raw).digest()
        _insert(pgconn, (digest, span.length.to_bytes(4, "big"), raw))
        pending += span.length
        if pending >= COMMIT_BYTES:
            _checked(pgconn, pgconn.exec_(b"COMMIT"))
            pending = 0
    if pending:
        _checked(pgconn, pgconn.exec_(b"COMMIT"))


def _checked(pgconn: pq.abc.PGconn, result: pq.abc.PGresult) -> None:
    if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
        raise SystemExit(pgconn.error_message.decode())


def _copy_out(conn: psycopg.Connection[Any], query: sql.Composed, out: memoryview) -> None:
    """Fill `out` with the bodies, each held against its digest."""
    filled, header = 0, 19  # the first block carries the stream's own header
    with conn.cursor().copy(sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(query)) as copy:
        for block in copy:
            view = memoryview(block)[header:]
            header = 0
            if len(view) <= 2:  # the trailer
                break
            digest, body = bytes(view[6:38]), view[42:]
            end = filled + len(body)
            out[filled:end] = body
            if hashlib.sha256(out[filled:end]).digest() != digest:
                raise SystemExit("a row does not have the digest that it is named by")
            filled = end
        for _ in copy:
            pass
    if filled != len(out):
        raise SystemExit(f"{filled} bytes came, not {len(out)}")


def _copy_in(
    conn: psycopg.Connection[Any], directory: Path, tables: Sequence[str], part: int
) -> None:
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with conn.transaction():
        conn.execute("SET LOCAL synchronous_commit = off")
        for table in tables:
            copying = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(sql.Identifier(table))
            with (
                conn.cursor().copy(copying) as copy,
                (directory / f"{table}.{part}").open("rb") as file,
            ):
                while length := file.readinto(buffer):  # type: ignore[attr-defined]  # a buffered file
                    copy.write(buffer[:length])
