"""SQL of tensors: immutable, named by their digests, made of chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.rows import class_row

from arc_halo.store.binary import bytea_array, int4_array, int8_array, read_int, text_array
from arc_halo.store.prepared import Prepared
from arc_halo.store.rows import Connection, as_bytes

INSERT_TENSORS = """
INSERT INTO tensor_metadata
    (digest, dtype, shape, element_count, size_bytes, chunk_bytes, chunk_count)
SELECT digest, dtype, shape::bigint[], element_count, size_bytes, chunk_bytes, chunk_count
FROM unnest(%(digests)s::bytea[], %(dtypes)s::text[], %(shapes)s::text[],
            %(element_counts)s::int8[], %(size_bytes)s::int8[], %(chunk_bytes)s::int4[],
            %(chunk_counts)s::int4[])
     AS tensor (digest, dtype, shape, element_count, size_bytes, chunk_bytes, chunk_count)
ORDER BY digest
ON CONFLICT (digest) DO NOTHING
RETURNING id, digest
"""

# The lock keeps them from collection until whoever needs them refers to them.
KEEP_TENSORS = """
SELECT id, digest FROM tensor_metadata WHERE digest = ANY(%(digests)s)
ORDER BY digest FOR KEY SHARE
"""

INSERT_TENSOR_DATA = """
INSERT INTO tensor_data (tensor_id, chunk_index, chunk_digest)
SELECT * FROM unnest(%(tensor_ids)s::int8[], %(chunk_indexes)s::int4[], %(digests)s::bytea[])
"""


TENSORS_BY_DIGEST = """
SELECT id, digest, dtype, shape, size_bytes, chunk_bytes, chunk_count
FROM tensor_metadata WHERE digest = ANY(%(digests)s)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """A tensor that is stored, whatever it is called."""

    id: int
    digest: bytes
    dtype: str
    shape: list[int]
    size_bytes: int
    chunk_bytes: int
    chunk_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTensor:
    """A tensor whose chunks are stored; `chunks` are their digests in order."""

    digest: bytes
    dtype: str
    shape: tuple[int, ...]
    element_count: int
    size_bytes: int
    chunk_bytes: int
    chunks: Sequence[bytes]


def insert_tensors(conn: Connection, tensors: Sequence[NewTensor]) -> dict[bytes, int]:
    """The ids of `tensors` by digest, each stored now unless it was there.

    Call it in a transaction, which keeps them from collection until it ends.
    """
    missing = {tensor.digest: tensor for tensor in tensors}
    ids: dict[bytes, int] = {}
    while missing:
        new = _insert(conn, list(missing.values()))
        _insert_data(conn, [(new[digest], missing[digest].chunks) for digest in new])
        ids |= new
        # One that was there may be collected between the two statements: then once more.
        ids |= _keep(conn, [digest for digest in missing if digest not in new])
        missing = {digest: tensor for digest, tensor in missing.items() if digest not in ids}
    return ids


def by_digest(conn: Connection, digests: Sequence[bytes]) -> dict[bytes, StoredRow]:
    """Those of the tensors that are there."""
    with conn.cursor(row_factory=class_row(StoredRow)) as cursor:
        found = cursor.execute(TENSORS_BY_DIGEST, {"digests": list(digests)}).fetchall()
    return {bytes(row.digest): row for row in found}


_INSERT_TENSORS = Prepared(INSERT_TENSORS)
_INSERT_TENSOR_DATA = Prepared(INSERT_TENSOR_DATA)


def _insert(conn: Connection, tensors: Sequence[NewTensor]) -> dict[bytes, int]:
    rows = _INSERT_TENSORS.once(
        conn,
        [
            bytea_array([tensor.digest for tensor in tensors]),
            text_array(tensor.dtype for tensor in tensors),
            text_array("{" + ",".join(map(str, tensor.shape)) + "}" for tensor in tensors),
            int8_array([tensor.element_count for tensor in tensors]),
            int8_array([tensor.size_bytes for tensor in tensors]),
            int4_array([tensor.chunk_bytes for tensor in tensors]),
            int4_array([len(tensor.chunks) for tensor in tensors]),
        ],
    )
    return {digest or b"": read_int(id_) for id_, digest in rows}


def _insert_data(conn: Connection, tensors: Sequence[tuple[int, Sequence[bytes]]]) -> None:
    if not any(chunks for _, chunks in tensors):
        return
    _INSERT_TENSOR_DATA.once(
        conn,
        [
            int8_array([id_ for id_, chunks in tensors for _ in chunks]),
            int4_array([index for _, chunks in tensors for index in range(len(chunks))]),
            bytea_array([digest for _, chunks in tensors for digest in chunks]),
        ],
    )


def _keep(conn: Connection, digests: Sequence[bytes]) -> dict[bytes, int]:
    if not digests:
        return {}
    rows = conn.execute(KEEP_TENSORS, {"digests": list(digests)}, binary=True).fetchall()
    return {as_bytes(digest): int(str(id_)) for id_, digest in rows}
