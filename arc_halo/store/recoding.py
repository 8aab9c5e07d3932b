"""SQL of moving chunks to other codecs: which there are, and which must stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.rows import class_row

from arc_halo.store.rows import Connection, as_bytes

PAGE = """
SELECT chunk.digest, (
    SELECT tensor.dtype FROM tensor_data AS data
    JOIN tensor_metadata AS tensor ON tensor.id = data.tensor_id
    WHERE data.chunk_digest = chunk.digest ORDER BY data.tensor_id LIMIT 1) AS dtype
FROM chunk_bodies AS chunk
WHERE chunk.digest > %(after)s
ORDER BY chunk.digest LIMIT %(limit)s
"""

USED_AS_BASE = """
SELECT DISTINCT base_digest FROM chunk_bodies WHERE base_digest = ANY(%(digests)s)
"""

PLAIN = """
SELECT digest FROM chunk_bodies WHERE digest = ANY(%(digests)s) AND base_digest IS NULL
"""

RAW_BYTES = """
SELECT coalesce(sum(raw_bytes), 0)::bigint FROM chunk_bodies
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkOfDtype:
    """A chunk, and the dtype of a tensor it is of; None where it is of none."""

    digest: bytes
    dtype: str | None


def page(conn: Connection, after: bytes, limit: int) -> list[ChunkOfDtype]:
    """The next chunks after that digest, in the order of digests."""
    with conn.cursor(row_factory=class_row(ChunkOfDtype)) as cursor:
        return cursor.execute(PAGE, {"after": after, "limit": limit}).fetchall()


def used_as_base(conn: Connection, digests: Sequence[bytes]) -> set[bytes]:
    """Those that deltas are taken against: they cannot become deltas themselves."""
    rows = conn.execute(USED_AS_BASE, {"digests": list(digests)}, binary=True).fetchall()
    return {as_bytes(row[0]) for row in rows}


def plain(conn: Connection, digests: Sequence[bytes]) -> set[bytes]:
    """Those that are there and no deltas: others may be taken against them."""
    rows = conn.execute(PLAIN, {"digests": list(digests)}, binary=True).fetchall()
    return {as_bytes(row[0]) for row in rows}


def raw_bytes(conn: Connection) -> int:
    """Raw bytes of all chunks."""
    row = conn.execute(RAW_BYTES).fetchone()
    assert row is not None
    return int(str(row[0]))
