"""SQL of embedding matrices, and of the vectors that pgvector searches where a server has it.

The vectors of tensor 17 are in a table of their own, `embedding_vectors_17`: it is filled without
locking anything that others use, and a trigger drops it together with its row in
`embedding_indexes`, which goes with the tensor. No migration names a type of the extension.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from psycopg import errors, sql
from psycopg.rows import class_row, scalar_row

from arc_halo.errors import DatabaseError
from arc_halo.store import roles
from arc_halo.store.binary import COPY_HEADER, COPY_TRAILER
from arc_halo.store.rows import Connection

MAX_EF_SEARCH = 1000
"""The most candidates that pgvector lets a search of an HNSW index weigh."""

MATRICES = """
SELECT model.model_name || '@' || model.version AS model, embedding.embedding_type AS kind,
       part.name, tensor.id, tensor.digest, tensor.dtype, tensor.shape, tensor.size_bytes,
       tensor.chunk_bytes, tensor.chunk_count, vectors.row_count AS indexed_rows
FROM embeddings AS embedding
JOIN models AS model ON model.id = embedding.model_id
JOIN tensor_metadata AS tensor ON tensor.id = embedding.tensor_id
CROSS JOIN LATERAL (
    SELECT coalesce(min(part.tensor_name), '') AS name FROM model_weights AS part
    WHERE part.model_id = model.id AND part.tensor_id = tensor.id
      AND part.weight_type = embedding.embedding_type || '_embedding'
) AS part
LEFT JOIN embedding_indexes AS vectors ON vectors.tensor_id = tensor.id
 AND EXISTS (SELECT FROM pg_index AS built
             WHERE built.indexrelid = to_regclass(format('embedding_vectors_%%s_idx', tensor.id))
               AND built.indisvalid)
WHERE %(model_id)s::uuid IS NULL OR model.id = %(model_id)s
ORDER BY model.model_name, model.created_at, model.version, embedding.embedding_type DESC
"""

# Whoever comes second waits here for the first; the key keeps the tensor from collection.
CLAIM_INDEX = """
INSERT INTO embedding_indexes (tensor_id) VALUES (%(tensor_id)s)
ON CONFLICT (tensor_id) DO NOTHING
"""

INDEXED_ROWS = """
SELECT row_count FROM embedding_indexes WHERE tensor_id = %(tensor_id)s
"""

SET_INDEXED_ROWS = """
UPDATE embedding_indexes SET row_count = %(row_count)s WHERE tensor_id = %(tensor_id)s
"""

DROP_INDEX = """
DELETE FROM embedding_indexes WHERE tensor_id = %(tensor_id)s
"""

DROP_BROKEN_INDEX = """
DELETE FROM embedding_indexes AS vectors
WHERE vectors.tensor_id = %(tensor_id)s
  AND NOT EXISTS (
      SELECT FROM pg_index AS built
      WHERE built.indexrelid = to_regclass(format('embedding_vectors_%%s_idx', vectors.tensor_id))
        AND built.indisvalid)
"""

EXTENSION = """
SELECT namespace.nspname::text AS schema, extension.extversion AS version,
       to_regtype(quote_ident(namespace.nspname) || '.halfvec') IS NOT NULL AS has_halfvec
FROM pg_extension AS extension
JOIN pg_namespace AS namespace ON namespace.oid = extension.extnamespace
WHERE extension.extname = 'vector'
"""

EXTENSION_IS_AVAILABLE = """
SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector')
"""

# Local to the transaction. Where the index is, the planner must not think a small table cheaper
# to scan: what scans it would still be to be ranked again.
TUNE_SEARCH = """
SELECT set_config('hnsw.ef_search', %(ef_search)s, true), set_config('enable_seqscan', 'off', true)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingMatrix:
    """An embedding of a model and the tensor that holds it, of shape [rows, dimension].

    `indexed_rows` is None where pgvector has no index of it.
    """

    model: str
    kind: str
    name: str
    id: int
    digest: bytes
    dtype: str
    shape: list[int]
    size_bytes: int
    chunk_bytes: int
    chunk_count: int
    indexed_rows: int | None

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def dimension(self) -> int:
        return self.shape[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """pgvector as a database has it, in whichever schema."""

    schema: str
    version: str
    has_halfvec: bool


def matrices(conn: Connection, model_id: UUID | None = None) -> list[EmbeddingMatrix]:
    """The embeddings of a model, or of all; the token embedding first."""
    with conn.cursor(row_factory=class_row(EmbeddingMatrix)) as cursor:
        return cursor.execute(MATRICES, {"model_id": model_id}).fetchall()


def ensure_extension(conn: Connection) -> Extension:
    """pgvector, created in this database now unless it was there.

    Raises `DatabaseError` where the server has none, or has one too old, or this role may not
    create it.
    """
    extension = _extension(conn)
    if extension is None:
        _create_extension(conn)
        extension = _extension(conn)
    if extension is None or not extension.has_halfvec:
        version = extension.version if extension else "unknown"
        raise DatabaseError(
            f"pgvector {version} has no half-precision vectors: 0.7.0 is the first that does",
            hint=f"install a newer one and run `ALTER EXTENSION vector UPDATE`; {_WITHOUT}",
        )
    return extension


def create_index(
    conn: Connection,
    extension: Extension,
    *,
    tensor_id: int,
    dimension: int,
    rows: Iterable[tuple[int, bytes]],
) -> bool:
    """Index unit vectors by cosine; False when another program has just done so.

    `rows` are batches of the binary COPY format, each with how many it holds. Call it in a
    transaction: all of it appears at its end, or none.
    """
    if not conn.execute(CLAIM_INDEX, {"tensor_id": tensor_id}).rowcount:
        return False
    names = _names(extension, tensor_id, dimension)
    for statement in (_CREATE_TABLE, _COMMENT):
        conn.execute(statement.format(**names))
    roles.refresh(conn)
    row_count = 0
    with conn.cursor() as cursor, cursor.copy(_COPY.format(**names)) as copy:
        copy.write(COPY_HEADER)
        for count, batch in rows:
            row_count += count
            copy.write(batch)
        copy.write(COPY_TRAILER)
    conn.execute(_CREATE_INDEX.format(**names))
    conn.execute(SET_INDEXED_ROWS, {"tensor_id": tensor_id, "row_count": row_count})
    return True


def indexed_rows(conn: Connection, tensor_id: int) -> int:
    """How many rows of a tensor are indexed."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        found = cursor.execute(INDEXED_ROWS, {"tensor_id": tensor_id}).fetchone()
    return int(found or 0)


def drop_index(conn: Connection, tensor_id: int) -> bool:
    """Drop the vectors of a tensor and their index; False when there were none."""
    return bool(conn.execute(DROP_INDEX, {"tensor_id": tensor_id}).rowcount)


def drop_broken_index(conn: Connection, tensor_id: int) -> None:
    """Drop what is left of an index whose vectors went with the extension."""
    conn.execute(DROP_BROKEN_INDEX, {"tensor_id": tensor_id})


def search(
    conn: Connection,
    *,
    tensor_id: int,
    dimension: int,
    vector: Iterable[float],
    limit: int,
    ef_search: int,
    without: int | None,
) -> list[int] | None:
    """The rows whose cosine with `vector` the index finds largest, but `without`; nearest first.

    None when the index was dropped meanwhile.
    """
    extension = _extension(conn)
    if extension is None:
        return None
    statement = _SEARCH.format(**_names(extension, tensor_id, dimension))
    text = "[" + ",".join(map(repr, vector)) + "]"
    with (
        suppress(errors.UndefinedTable, errors.UndefinedColumn),
        conn.transaction(),
        conn.cursor(row_factory=scalar_row) as cursor,
    ):
        cursor.execute(TUNE_SEARCH, {"ef_search": str(min(ef_search, MAX_EF_SEARCH))})
        cursor.execute(statement, {"vector": text, "without": without, "limit": limit})
        return [int(row) for row in cursor]
    return None


_WITHOUT = "without it `embeddings nearest` reads the whole matrix, and is exact"

_CREATE_EXTENSION = sql.SQL("CREATE EXTENSION IF NOT EXISTS vector")

_CREATE_TABLE = sql.SQL("""
CREATE TABLE {table} (row_index bigint PRIMARY KEY, vector {halfvec}({dimension}) NOT NULL)
""")

_COMMENT = sql.SQL("COMMENT ON TABLE {table} IS {comment}")

_COPY = sql.SQL("COPY {table} (row_index, vector) FROM STDIN (FORMAT BINARY)")


_CREATE_INDEX = sql.SQL("CREATE INDEX {index} ON {table} USING hnsw (vector {cosine})")

_SEARCH = sql.SQL("""
SELECT row_index FROM {table}
WHERE row_index IS DISTINCT FROM %(without)s::bigint
ORDER BY vector OPERATOR({schema}.<=>) %(vector)s::{halfvec}({dimension})
LIMIT %(limit)s
""")


def _names(extension: Extension, tensor_id: int, dimension: int) -> dict[str, sql.Composable]:
    table = f"embedding_vectors_{tensor_id}"
    return {
        "table": sql.Identifier(table),
        "index": sql.Identifier(f"{table}_idx"),
        "schema": sql.Identifier(extension.schema),
        "halfvec": sql.Identifier(extension.schema, "halfvec"),
        "cosine": sql.Identifier(extension.schema, "halfvec_cosine_ops"),
        "dimension": sql.Literal(dimension),
        "comment": sql.Literal(
            f"Rows of tensor {tensor_id} as unit vectors; dropped with it or by drop-index."
        ),
    }


def _extension(conn: Connection) -> Extension | None:
    with conn.cursor(row_factory=class_row(Extension)) as cursor:
        return cursor.execute(EXTENSION).fetchone()


def _create_extension(conn: Connection) -> None:
    with conn.cursor(row_factory=scalar_row) as cursor:
        is_available = cursor.execute(EXTENSION_IS_AVAILABLE).fetchone()
    if not is_available:
        raise DatabaseError(
            "this server has no pgvector",
            hint=f"install pgvector 0.7.0 or newer on the server; {_WITHOUT}",
        )
    try:
        # Two programs may create it at once: the second then finds it there.
        with suppress(errors.UniqueViolation, errors.DuplicateObject), conn.transaction():
            conn.execute(_CREATE_EXTENSION)
    except errors.InsufficientPrivilege as exc:
        raise DatabaseError(
            "this role may not create the extension pgvector in this database",
            hint="have an administrator run `CREATE EXTENSION vector` in it, then run the "
            f"command again; {_WITHOUT}",
        ) from exc
