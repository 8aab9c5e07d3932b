"""SQL of chunks: asked for, written, read and replaced by their digests."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from arc_halo.store.binary import (
    COPY_HEADER,
    COPY_TRAILER,
    bytea_array,
    copied_fields,
    int2,
    int4,
    int4_array,
    read_int,
    text_array,
    timestamptz,
)
from arc_halo.store.prepared import Prepared
from arc_halo.store.rows import Connection, as_bytes

SMALL_BYTES = 8192
"""Bodies up to this size stand in the row itself, and many of them go in by one statement."""

STATEMENT_BYTES = 512 * 1024
"""Small bodies of one statement: what it holds of them several times over, the server's
allocator keeps at this size, and gives back to the system when it is larger."""

EXISTING = """
SELECT digest, seen_at < %(since)s FROM chunk_bodies WHERE digest = ANY(%(digests)s)
"""

# Locked in the order of their digests, so that two builds that share chunks do not deadlock.
TOUCH = """
WITH stale AS MATERIALIZED (
    SELECT digest FROM chunk_bodies
    WHERE digest = ANY(%(digests)s) AND seen_at < %(since)s
    ORDER BY digest FOR NO KEY UPDATE
)
UPDATE chunk_bodies AS chunk SET seen_at = clock_timestamp()
FROM stale WHERE chunk.digest = stale.digest
RETURNING chunk.digest
"""

INSERT_CHUNK = """
INSERT INTO chunk_bodies
    (digest, raw_bytes, stored_bytes, codec, codec_version, base_digest, store_id, body)
VALUES (%(digest)s, %(raw_bytes)s, %(stored_bytes)s, %(codec)s, %(codec_version)s,
        %(base_digest)s, %(store_id)s, %(body)s)
ON CONFLICT (digest) DO NOTHING
"""

INSERT_SMALL_CHUNKS = """
INSERT INTO chunk_bodies (digest, raw_bytes, stored_bytes, codec, codec_version, body)
SELECT digest, raw_bytes, octet_length(body), codec, codec_version, body
FROM unnest(%(digests)s::bytea[], %(raw_bytes)s::int4[], %(codecs)s::text[],
            %(codec_versions)s::int4[], %(bodies)s::bytea[])
     AS chunk (digest, raw_bytes, codec, codec_version, body)
ON CONFLICT (digest) DO NOTHING
RETURNING digest
"""

REPLACE_CHUNK = """
UPDATE chunk_bodies
SET stored_bytes = %(stored_bytes)s, codec = %(codec)s, codec_version = %(codec_version)s,
    base_digest = %(base_digest)s, store_id = %(store_id)s, body = %(body)s
WHERE digest = %(digest)s
"""

# In the order of their digests, as every lock on chunks is taken.
LOCK_CHUNKS = """
SELECT FROM chunk_bodies WHERE digest = ANY(%(digests)s) ORDER BY digest FOR NO KEY UPDATE
"""

LOCK_BASES = """
SELECT digest FROM chunk_bodies WHERE digest = ANY(%(digests)s) AND base_digest IS NULL
ORDER BY digest FOR SHARE
"""

LOCK_BODIES_SHARED = "SELECT pg_advisory_xact_lock_shared(hashtextextended('arc-halo/bodies', 0))"

# One row a chunk of the tensor, so that what is missing shows; bodies of the wanted ones only.
READ_CHUNKS = """
SELECT data.tensor_id, data.chunk_index, data.chunk_digest,
       chunk.raw_bytes, chunk.codec, chunk.codec_version, chunk.store_id, chunk.body,
       base.digest, base.raw_bytes, base.codec, base.codec_version, base.store_id, base.body
FROM tensor_data AS data
LEFT JOIN chunk_bodies AS chunk
  ON chunk.digest = data.chunk_digest
 AND (%(indexes)s::int4[] IS NULL OR data.chunk_index = ANY(%(indexes)s))
LEFT JOIN chunk_bodies AS base ON base.digest = chunk.base_digest
WHERE data.tensor_id = %(tensor_id)s
ORDER BY data.chunk_index
"""

READ_SET_CHUNKS = """
SELECT member.ordinal, data.chunk_index, data.chunk_digest,
       chunk.raw_bytes, chunk.codec, chunk.codec_version, chunk.store_id, chunk.body,
       base.digest, base.raw_bytes, base.codec, base.codec_version, base.store_id, base.body
FROM weight_set_tensors AS member
JOIN tensor_data AS data ON data.tensor_id = member.tensor_id
LEFT JOIN chunk_bodies AS chunk ON chunk.digest = data.chunk_digest
LEFT JOIN chunk_bodies AS base ON base.digest = chunk.base_digest
WHERE member.weight_set_id = %(weight_set_id)s
ORDER BY member.ordinal, data.chunk_index
"""

READ_CHUNKS_BY_DIGEST = """
SELECT 0::bigint, wanted.ordinality::int4 - 1, wanted.digest,
       chunk.raw_bytes, chunk.codec, chunk.codec_version, chunk.store_id, chunk.body,
       base.digest, base.raw_bytes, base.codec, base.codec_version, base.store_id, base.body
FROM unnest(%(digests)s::bytea[]) WITH ORDINALITY AS wanted (digest, ordinality)
LEFT JOIN chunk_bodies AS chunk ON chunk.digest = wanted.digest
LEFT JOIN chunk_bodies AS base ON base.digest = chunk.base_digest
ORDER BY wanted.ordinality
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewChunk:
    """A chunk about to be stored: named by the SHA-256 of its raw bytes, its body encoded.

    `base_digest` is the chunk that the body is a delta against.
    """

    digest: bytes
    raw_bytes: int
    codec: str
    codec_version: int
    body: bytes | memoryview
    base_digest: bytes | None = None

    @property
    def is_small(self) -> bool:
        return self.raw_bytes <= SMALL_BYTES and self.base_digest is None


@dataclass(frozen=True, slots=True)
class Encoded:
    """A stored chunk as its codec left it. `body` is None while it is in a body store."""

    digest: bytes
    raw_bytes: int
    codec: str
    codec_version: int
    store_id: int | None
    body: bytes | memoryview | None


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk in its place: of tensor `owner`, the `index`-th.

    `encoded` is None when the chunk is gone, or was not asked for; `base` is there for a delta.
    """

    owner: int
    index: int
    digest: bytes
    encoded: Encoded | None
    base: Encoded | None


def existing(conn: Connection, digests: Sequence[bytes], since: datetime) -> dict[bytes, bool]:
    """Which of `digests` name a stored chunk, and whether nobody has seen it since then."""
    rows = _EXISTING.once(conn, [timestamptz(since), bytea_array(digests)])
    return {digest or b"": is_stale == b"\x01" for digest, is_stale in rows}


def touch(conn: Connection, digests: Sequence[bytes], since: datetime) -> set[bytes]:
    """Say that chunks not seen since then are needed; those that are still there."""
    parameters = {"digests": list(digests), "since": since}
    rows = conn.execute(TOUCH, parameters, binary=True).fetchall()
    return {as_bytes(row[0]) for row in rows}


def insert_chunks(
    conn: Connection, chunks: Sequence[NewChunk], *, store_id: int | None = None
) -> list[NewChunk]:
    """Store `chunks` in the transaction that `conn` is in; those that were new.

    With a `store_id` their bodies are the caller's to put there. A delta whose base was collected
    meanwhile, or made a delta itself, is left out. They go in sorted by digest, so
    that two writers of the same chunks wait for one another instead of deadlocking.
    """
    ordered = sorted(chunks, key=lambda chunk: chunk.digest)
    if bases := {chunk.base_digest for chunk in ordered if chunk.base_digest}:
        rows = conn.execute(LOCK_BASES, {"digests": list(bases)}, binary=True).fetchall()
        gone = bases - {as_bytes(row[0]) for row in rows}
        ordered = [chunk for chunk in ordered if chunk.base_digest not in gone]
    if store_id is None and all(chunk.is_small for chunk in ordered):
        return [new for part in _statements(ordered) for new in _insert_small(conn, part)]
    _INSERT_CHUNK.parse(conn)
    return [c for c in ordered if _INSERT_CHUNK.run(conn, _parameters(c, store_id))]


def lock_chunks(conn: Connection, chunks: Sequence[NewChunk]) -> None:
    """Lock stored chunks, and the bases of what they are to become, for `replace_chunk`."""
    digests = {digest for c in chunks for digest in (c.digest, c.base_digest) if digest}
    conn.execute(LOCK_CHUNKS, {"digests": list(digests)})


def replace_chunk(conn: Connection, chunk: NewChunk, *, store_id: int | None = None) -> bool:
    """Give a stored chunk another body; False when it is gone."""
    return bool(
        conn.execute(
            REPLACE_CHUNK,
            {
                "digest": chunk.digest,
                "stored_bytes": len(chunk.body),
                "codec": chunk.codec,
                "codec_version": chunk.codec_version,
                "base_digest": chunk.base_digest,
                "store_id": store_id,
                "body": chunk.body if store_id is None else None,
            },
        ).rowcount
    )


def lock_bodies_shared(conn: Connection) -> None:
    """Keep the collection of orphans away from the body store until the transaction ends."""
    conn.execute(LOCK_BODIES_SHARED)


def read_chunks(
    conn: Connection, tensor_id: int, indexes: Sequence[int] | None = None
) -> Generator[StoredChunk]:
    """The chunks of a tensor in order, streamed one at a time.

    Every chunk is named; with `indexes` only those come with their bodies.
    """
    wanted = None if indexes is None else list(indexes)
    return _stream(conn, READ_CHUNKS, {"tensor_id": tensor_id, "indexes": wanted})


def read_set_chunks(conn: Connection, weight_set_id: int) -> Generator[StoredChunk]:
    """The chunks of all tensors of a set in order, each owned by its tensor's ordinal."""
    return _stream(conn, READ_SET_CHUNKS, {"weight_set_id": weight_set_id})


def read_chunks_by_digest(conn: Connection, digests: Sequence[bytes]) -> Generator[StoredChunk]:
    """The chunks of these digests, in their order; `index` is the place in `digests`."""
    return _stream(conn, READ_CHUNKS_BY_DIGEST, {"digests": list(digests)})


_EXISTING = Prepared(EXISTING)
_INSERT_CHUNK = Prepared(INSERT_CHUNK)
_INSERT_SMALL_CHUNKS = Prepared(INSERT_SMALL_CHUNKS)


def _statements(chunks: Sequence[NewChunk]) -> Iterator[list[NewChunk]]:
    part: list[NewChunk] = []
    size_bytes = 0
    for chunk in chunks:
        if size_bytes + len(chunk.body) > STATEMENT_BYTES:
            yield part
            part, size_bytes = [], 0
        part.append(chunk)
        size_bytes += len(chunk.body)
    if part:
        yield part


def _insert_small(conn: Connection, chunks: Sequence[NewChunk]) -> list[NewChunk]:
    rows = _INSERT_SMALL_CHUNKS.once(
        conn,
        [
            bytea_array([chunk.digest for chunk in chunks]),
            int4_array([chunk.raw_bytes for chunk in chunks]),
            text_array(chunk.codec for chunk in chunks),
            int4_array([chunk.codec_version for chunk in chunks]),
            bytea_array([chunk.body for chunk in chunks]),
        ],
    )
    new = {row[0] for row in rows}
    return [chunk for chunk in chunks if chunk.digest in new]


def _parameters(chunk: NewChunk, store_id: int | None) -> list[bytes | memoryview | None]:
    return [
        chunk.digest,
        int4(chunk.raw_bytes),
        int4(len(chunk.body)),
        chunk.codec.encode(),
        int4(chunk.codec_version),
        chunk.base_digest,
        None if store_id is None else int2(store_id),
        chunk.body if store_id is None else None,
    ]


def _stream(conn: Connection, sql: str, parameters: dict[str, object]) -> Generator[StoredChunk]:
    """The rows by COPY: a body lies in the message it came in, and is copied by its codec only."""
    statement = f"COPY ({sql}) TO STDOUT (FORMAT BINARY)".encode()
    with conn.cursor() as cursor, cursor.copy(statement, parameters) as copy:
        start = len(COPY_HEADER)
        for message in copy:
            row = memoryview(message)[start:]
            start = 0
            if row != COPY_TRAILER:
                yield _stored_chunk(copied_fields(row))


def _stored_chunk(fields: Sequence[memoryview | None]) -> StoredChunk:
    owner, index, digest = fields[:3]
    assert owner is not None
    assert index is not None
    assert digest is not None
    own = _encoded(bytes(digest), fields[3:8])
    base = None if fields[8] is None else _encoded(bytes(fields[8]), fields[9:])
    return StoredChunk(read_int(owner), read_int(index), bytes(digest), own, base)


def _encoded(digest: bytes, fields: Sequence[memoryview | None]) -> Encoded | None:
    raw_bytes, codec, codec_version, store_id, body = fields
    if raw_bytes is None or codec is None or codec_version is None:
        return None
    return Encoded(
        digest,
        read_int(raw_bytes),
        str(codec, "utf-8"),
        read_int(codec_version),
        None if store_id is None else read_int(store_id),
        body,
    )
