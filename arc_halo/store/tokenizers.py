"""SQL of tokenizers: each document once, by its digest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from psycopg.rows import class_row

from arc_halo.store.rows import Connection, as_bytes

INSERT = """
INSERT INTO tokenizers (digest, document, token_count)
VALUES (%(digest)s, %(document)s, %(token_count)s)
ON CONFLICT (digest) DO NOTHING
"""

# Whoever collects them has deleted them or leaves them alone until the transaction ends.
KEEP = """
SELECT digest FROM tokenizers WHERE digest = ANY(%(digests)s) ORDER BY digest FOR KEY SHARE
"""

DOCUMENTS = """
SELECT digest, document FROM tokenizers WHERE digest = ANY(%(digests)s)
"""

LOCK_FREE = """
SELECT digest FROM tokenizers AS tokenizer
WHERE NOT EXISTS (SELECT FROM models AS model WHERE model.tokenizer_digest = tokenizer.digest)
ORDER BY digest FOR UPDATE SKIP LOCKED
"""

DELETE_FREE = """
DELETE FROM tokenizers AS tokenizer
WHERE digest = ANY(%(digests)s)
  AND NOT EXISTS (SELECT FROM models AS model WHERE model.tokenizer_digest = tokenizer.digest)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTokenizer:
    digest: bytes
    document: bytes
    token_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    digest: bytes
    document: bytes


def keep(conn: Connection, items: Mapping[bytes, NewTokenizer]) -> None:
    """Have the tokenizers there until the transaction ends; only new ones are sent."""
    known = _kept(conn, items)
    new = [items[digest] for digest in sorted(items.keys() - known)]
    for each in new:
        conn.execute(
            INSERT,
            {
                "digest": each.digest,
                "document": each.document,
                "token_count": each.token_count,
            },
        )
    if new:
        _kept(conn, (each.digest for each in new))


def documents(conn: Connection, digests: Iterable[bytes]) -> dict[bytes, bytes]:
    """The documents of those that are there."""
    with conn.cursor(row_factory=class_row(_Row), binary=True) as cursor:
        rows = cursor.execute(DOCUMENTS, {"digests": list(digests)})
        return {bytes(row.digest): bytes(row.document) for row in rows}


def collect(conn: Connection) -> int:
    """Delete those that no model has; how many."""
    with conn.transaction():
        digests = [as_bytes(row[0]) for row in conn.execute(LOCK_FREE, binary=True)]
        return conn.execute(DELETE_FREE, {"digests": digests}).rowcount if digests else 0


def _kept(conn: Connection, digests: Iterable[bytes]) -> set[bytes]:
    rows = conn.execute(KEEP, {"digests": list(digests)}, binary=True)
    return {as_bytes(row[0]) for row in rows}
