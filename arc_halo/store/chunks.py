"""SQL of chunk bodies and of the tensors that are cut into them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psycopg
from psycopg.rows import class_row

from arc_halo.store.rows import Connection, as_bytes

EXISTING = """
SELECT digest FROM chunk_bodies WHERE digest = ANY(%(digests)s)
"""

INSERT_CHUNK = """
INSERT INTO chunk_bodies (digest, raw_bytes, stored_bytes, codec, codec_version, body)
VALUES (%(digest)s, %(raw_bytes)s, octet_length(%(body)s::bytea), %(codec)s, %(codec_version)s, %(body)s)
ON CONFLICT (digest) DO NOTHING
"""

INSERT_TENSOR = """
INSERT INTO tensor_metadata
    (digest, dtype, shape, element_count, size_bytes, chunk_bytes, chunk_count)
VALUES (%(digest)s, %(dtype)s, %(shape)s, %(element_count)s, %(size_bytes)s,
        %(chunk_bytes)s, %(chunk_count)s)
ON CONFLICT (digest) DO NOTHING
RETURNING id
"""

INSERT_TENSOR_DATA = """
INSERT INTO tensor_data (tensor_id, chunk_index, chunk_digest)
SELECT %(tensor_id)s, chunk.ordinality - 1, chunk.digest
FROM unnest(%(digests)s::bytea[]) WITH ORDINALITY AS chunk (digest, ordinality)
"""

TENSOR_BY_DIGEST = """
SELECT id, digest, dtype, shape, size_bytes, chunk_bytes, chunk_count
FROM tensor_metadata WHERE digest = %(digest)s
"""

READ_CHUNKS = """
SELECT data.chunk_index, data.chunk_digest, body.raw_bytes, body.codec, body.codec_version,
       body.body
FROM tensor_data AS data
LEFT JOIN chunk_bodies AS body ON body.digest = data.chunk_digest
WHERE data.tensor_id = %(tensor_id)s
ORDER BY data.chunk_index
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewChunk:
    """A chunk about to be stored: named by the SHA-256 of its raw bytes, its body encoded."""

    digest: bytes
    raw_bytes: int
    codec: str
    codec_version: int
    body: bytes | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A row of `tensor_metadata`: immutable, named by its digest."""

    id: int
    digest: bytes
    dtype: str
    shape: list[int]
    size_bytes: int
    chunk_bytes: int
    chunk_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredChunk:
    """A chunk as read; everything about its body is None when the body is gone."""

    chunk_index: int
    chunk_digest: bytes
    raw_bytes: int | None
    codec: str | None
    codec_version: int | None
    body: memoryview | bytes | None


def existing(conn: Connection, digests: Sequence[bytes]) -> set[bytes]:
    """Which of `digests` name a stored chunk."""
    rows = conn.execute(EXISTING, {"digests": list(digests)}, binary=True).fetchall()
    return {as_bytes(row[0]) for row in rows}


def insert_chunks(conn: Connection, chunks: Sequence[NewChunk]) -> int:
    """Store `chunks`; returns how many were new.

    They go in sorted by digest, so that two writers of the same chunks wait for one another
    instead of deadlocking.
    """
    new = 0
    with conn.cursor() as cursor:
        for chunk in sorted(chunks, key=lambda c: c.digest):
            cursor.execute(
                INSERT_CHUNK,
                {
                    "digest": chunk.digest,
                    "raw_bytes": chunk.raw_bytes,
                    "codec": chunk.codec,
                    "codec_version": chunk.codec_version,
                    "body": psycopg.Binary(chunk.body),
                },
            )
            new += cursor.rowcount
    return new


def insert_tensor(
    conn: Connection,
    *,
    digest: bytes,
    dtype: str,
    shape: Sequence[int],
    element_count: int,
    size_bytes: int,
    chunk_bytes: int,
    chunks: Sequence[bytes],
) -> int:
    """The id of the tensor named `digest`, stored now unless it was there."""
    row = conn.execute(
        INSERT_TENSOR,
        {
            "digest": digest,
            "dtype": dtype,
            "shape": list(shape),
            "element_count": element_count,
            "size_bytes": size_bytes,
            "chunk_bytes": chunk_bytes,
            "chunk_count": len(chunks),
        },
    ).fetchone()
    if row is None:
        known = tensor_by_digest(conn, digest)
        assert known is not None
        return known.id
    tensor_id = int(str(row[0]))
    conn.execute(INSERT_TENSOR_DATA, {"tensor_id": tensor_id, "digests": list(chunks)})
    return tensor_id


def tensor_by_digest(conn: Connection, digest: bytes) -> StoredTensor | None:
    with conn.cursor(row_factory=class_row(StoredTensor)) as cursor:
        return cursor.execute(TENSOR_BY_DIGEST, {"digest": digest}).fetchone()


def read_chunks(conn: Connection, tensor_id: int) -> Iterator[StoredChunk]:
    """The chunks of a tensor in order, streamed one at a time."""
    with conn.cursor(binary=True) as cursor:
        for row in cursor.stream(READ_CHUNKS, {"tensor_id": tensor_id}):
            yield _stored_chunk(*row)


def _stored_chunk(
    chunk_index: object,
    chunk_digest: object,
    raw_bytes: object,
    codec: object,
    codec_version: object,
    body: object,
) -> StoredChunk:
    assert isinstance(chunk_index, int)
    assert isinstance(chunk_digest, bytes)
    assert raw_bytes is None or isinstance(raw_bytes, int)
    assert codec is None or isinstance(codec, str)
    assert codec_version is None or isinstance(codec_version, int)
    assert body is None or isinstance(body, (bytes, memoryview))
    return StoredChunk(
        chunk_index=chunk_index,
        chunk_digest=chunk_digest,
        raw_bytes=raw_bytes,
        codec=codec,
        codec_version=codec_version,
        body=body,
    )
