"""SQL of tensors: immutable, named by their digests, made of chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arc_halo.store.rows import Connection, as_bytes

INSERT_TENSORS = """
INSERT INTO tensor_metadata
    (digest, dtype, shape, element_count, size_bytes, chunk_bytes, chunk_count)
SELECT digest, dtype, shape::bigint[], element_count, size_bytes, chunk_bytes, chunk_count
FROM unnest(%(digests)b::bytea[], %(dtypes)s::text[], %(shapes)s::text[],
            %(element_counts)b::int8[], %(size_bytes)b::int8[], %(chunk_bytes)b::int4[],
            %(chunk_counts)b::int4[])
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
SELECT * FROM unnest(%(tensor_ids)b::int8[], %(chunk_indexes)b::int4[], %(digests)b::bytea[])
"""


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


def _insert(conn: Connection, tensors: Sequence[NewTensor]) -> dict[bytes, int]:
    rows = conn.execute(
        INSERT_TENSORS,
        {
            "digests": [tensor.digest for tensor in tensors],
            "dtypes": [tensor.dtype for tensor in tensors],
            "shapes": ["{" + ",".join(map(str, tensor.shape)) + "}" for tensor in tensors],
            "element_counts": [tensor.element_count for tensor in tensors],
            "size_bytes": [tensor.size_bytes for tensor in tensors],
            "chunk_bytes": [tensor.chunk_bytes for tensor in tensors],
            "chunk_counts": [len(tensor.chunks) for tensor in tensors],
        },
        binary=True,
    ).fetchall()
    return _ids(rows)


def _insert_data(conn: Connection, tensors: Sequence[tuple[int, Sequence[bytes]]]) -> None:
    if any(chunks for _, chunks in tensors):
        conn.execute(
            INSERT_TENSOR_DATA,
            {
                "tensor_ids": [id_ for id_, chunks in tensors for _ in chunks],
                "chunk_indexes": [index for _, chunks in tensors for index in range(len(chunks))],
                "digests": [digest for _, chunks in tensors for digest in chunks],
            },
        )


def _keep(conn: Connection, digests: Sequence[bytes]) -> dict[bytes, int]:
    if not digests:
        return {}
    return _ids(conn.execute(KEEP_TENSORS, {"digests": list(digests)}, binary=True).fetchall())


def _ids(rows: Sequence[tuple[object, ...]]) -> dict[bytes, int]:
    return {as_bytes(digest): int(str(id_)) for id_, digest in rows}
