"""SQL of verification: what there is to read again, what does not fit, and whom damage touches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from psycopg.rows import class_row

from arc_halo.store.chunks import NewChunk
from arc_halo.store.rows import Connection, as_bytes

DIGEST_PAGE = """
SELECT digest FROM chunk_bodies
WHERE digest > %(after)s AND digest >= %(first)s AND digest <= %(last)s
ORDER BY digest LIMIT %(batch)s
"""

SET_TENSOR_IDS = """
SELECT DISTINCT tensor.id, tensor.chunk_count
FROM weight_set_tensors AS member JOIN tensor_metadata AS tensor ON tensor.id = member.tensor_id
WHERE member.weight_set_id = %(weight_set_id)s
ORDER BY tensor.id
"""

DIGESTS_OF_TENSORS = """
SELECT DISTINCT chunk_digest FROM tensor_data
WHERE tensor_id = ANY(%(ids)s) AND chunk_index BETWEEN %(first)s AND %(last)s
"""

TENSOR_ID_PAGE = """
SELECT id, chunk_count FROM tensor_metadata WHERE id > %(after)s ORDER BY id LIMIT %(batch)s
"""

CHUNK_LISTS = """
SELECT tensor.id, tensor.digest, tensor.dtype, tensor.shape, tensor.size_bytes,
       tensor.chunk_bytes, tensor.chunk_count,
       ARRAY(SELECT data.chunk_index FROM tensor_data AS data
             WHERE data.tensor_id = tensor.id ORDER BY data.chunk_index) AS indexes,
       ARRAY(SELECT data.chunk_digest FROM tensor_data AS data
             WHERE data.tensor_id = tensor.id ORDER BY data.chunk_index) AS digests
FROM tensor_metadata AS tensor
WHERE tensor.id = ANY(%(ids)s)
ORDER BY tensor.id
"""

MISSING_CHUNKS = """
SELECT DISTINCT data.chunk_digest
FROM tensor_data AS data
WHERE data.tensor_id = ANY(%(ids)s)
  AND NOT EXISTS (SELECT FROM chunk_bodies AS chunk WHERE chunk.digest = data.chunk_digest OFFSET 0)
ORDER BY data.chunk_digest
"""

SET_ID_PAGE = """
SELECT id FROM weight_sets
WHERE id > %(after)s AND root IS NOT NULL ORDER BY id LIMIT %(batch)s
"""

SET_MEMBERS = """
SELECT sets.id, sets.root, sets.tensor_count, sets.size_bytes,
       ARRAY(SELECT member.tensor_name FROM weight_set_tensors AS member
             WHERE member.weight_set_id = sets.id ORDER BY member.tensor_name) AS names,
       ARRAY(SELECT tensor.digest FROM weight_set_tensors AS member
             LEFT JOIN tensor_metadata AS tensor ON tensor.id = member.tensor_id
             WHERE member.weight_set_id = sets.id ORDER BY member.tensor_name) AS digests
FROM weight_sets AS sets
WHERE sets.id = ANY(%(ids)s)
ORDER BY sets.id
"""

BROKEN_DELTAS = """
SELECT delta.digest, delta.base_digest, base.digest IS NULL AS is_missing
FROM chunk_bodies AS delta LEFT JOIN chunk_bodies AS base ON base.digest = delta.base_digest
WHERE delta.base_digest IS NOT NULL
  AND (%(digests)s::bytea[] IS NULL OR delta.digest = ANY(%(digests)s))
  AND (base.digest IS NULL OR base.base_digest IS NOT NULL)
ORDER BY delta.digest
"""

DELTA_COUNTS = """
SELECT base_digest, count(*) FROM chunk_bodies
WHERE base_digest = ANY(%(digests)s) GROUP BY base_digest
"""

# What is damaged damages every delta against it.
TENSORS_OF_CHUNKS = """
WITH hit AS (
    SELECT digest AS damaged, digest FROM unnest(%(digests)s::bytea[]) AS chunk (digest)
    UNION ALL
    SELECT base_digest, digest FROM chunk_bodies WHERE base_digest = ANY(%(digests)s)
)
SELECT DISTINCT hit.damaged, data.tensor_id
FROM hit JOIN tensor_data AS data ON data.chunk_digest = hit.digest
ORDER BY hit.damaged, data.tensor_id
"""

HOLDERS_OF_TENSORS = """
WITH place AS (
    SELECT tensor_id, tensor_name, weight_set_id FROM weight_set_tensors
    WHERE tensor_id = ANY(%(ids)s)
)
SELECT place.tensor_id AS id, place.tensor_name AS tensor, 'model' AS kind,
       model.model_name || '@' || model.version AS name
FROM place JOIN models AS model USING (weight_set_id)
UNION
SELECT place.tensor_id, place.tensor_name, 'history', model.model_name || '@' || model.version
FROM place JOIN model_weight_history AS entry USING (weight_set_id)
JOIN models AS model ON model.id = entry.model_id
WHERE model.weight_set_id IS DISTINCT FROM entry.weight_set_id
UNION
SELECT place.tensor_id, place.tensor_name, 'checkpoint',
       coalesce(session.session_name, session.id::text) || ' step ' || point.step
FROM place JOIN model_checkpoints AS point USING (weight_set_id)
JOIN training_sessions AS session ON session.id = point.session_id
UNION
SELECT state.tensor_id, state.path, 'checkpoint',
       coalesce(session.session_name, session.id::text) || ' step ' || point.step
FROM optimizer_state AS state JOIN model_checkpoints AS point ON point.id = state.checkpoint_id
JOIN training_sessions AS session ON session.id = point.session_id
WHERE state.tensor_id = ANY(%(ids)s)
UNION
SELECT part.gradient_tensor_id, part.tensor_name, 'gradient',
       model.model_name || '@' || model.version
FROM model_weights AS part JOIN models AS model ON model.id = part.model_id
WHERE part.gradient_tensor_id = ANY(%(ids)s)
UNION
SELECT place.tensor_id, place.tensor_name, 'reactor', reactor.reactor_name
FROM place JOIN cognitive_fusion_reactors AS reactor ON reactor.fitted_set_id = weight_set_id
UNION
SELECT place.tensor_id, place.tensor_name, 'build', build.id::text
FROM place JOIN weight_builds AS build USING (weight_set_id) WHERE build.status <> 'complete'
UNION
SELECT kept.tensor_id, kept.layer_name, 'activations', encode(kept.weights_root, 'hex')
FROM activation_cache AS kept WHERE kept.tensor_id = ANY(%(ids)s)
ORDER BY 1, 3, 4, 2
"""

HOLDERS_OF_SETS = """
SELECT model.weight_set_id AS id, '' AS tensor, 'model' AS kind,
       model.model_name || '@' || model.version AS name
FROM models AS model WHERE model.weight_set_id = ANY(%(ids)s)
UNION
SELECT entry.weight_set_id, '', 'history', model.model_name || '@' || model.version
FROM model_weight_history AS entry JOIN models AS model ON model.id = entry.model_id
WHERE entry.weight_set_id = ANY(%(ids)s)
  AND model.weight_set_id IS DISTINCT FROM entry.weight_set_id
UNION
SELECT point.weight_set_id, '', 'checkpoint',
       coalesce(session.session_name, session.id::text) || ' step ' || point.step
FROM model_checkpoints AS point JOIN training_sessions AS session ON session.id = point.session_id
WHERE point.weight_set_id = ANY(%(ids)s)
UNION
SELECT point.state_set_id, '', 'checkpoint',
       coalesce(session.session_name, session.id::text) || ' step ' || point.step
FROM model_checkpoints AS point JOIN training_sessions AS session ON session.id = point.session_id
WHERE point.state_set_id = ANY(%(ids)s)
UNION
SELECT reactor.fitted_set_id, '', 'reactor', reactor.reactor_name
FROM cognitive_fusion_reactors AS reactor WHERE reactor.fitted_set_id = ANY(%(ids)s)
ORDER BY 1, 3, 4
"""

# A base that is in no tensor any more was cut as its deltas' tensors are.
CHUNK_SIZES = """
SELECT DISTINCT tensor.chunk_bytes
FROM (SELECT digest FROM unnest(%(digests)s::bytea[]) AS chunk (digest)
      UNION ALL SELECT digest FROM chunk_bodies WHERE base_digest = ANY(%(digests)s)) AS hit
JOIN tensor_data AS data ON data.chunk_digest = hit.digest
JOIN tensor_metadata AS tensor ON tensor.id = data.tensor_id
ORDER BY tensor.chunk_bytes
"""

# Every column: whatever of the row was damaged, this mends it.
HEAL_CHUNK = """
INSERT INTO chunk_bodies
    (digest, raw_bytes, stored_bytes, codec, codec_version, base_digest, store_id, body)
VALUES (%(digest)s, %(raw_bytes)s, %(stored_bytes)s, %(codec)s, %(codec_version)s, NULL,
        %(store_id)s, %(body)s)
ON CONFLICT (digest) DO UPDATE
SET raw_bytes = excluded.raw_bytes, stored_bytes = excluded.stored_bytes,
    codec = excluded.codec, codec_version = excluded.codec_version, base_digest = NULL,
    store_id = excluded.store_id, body = excluded.body, seen_at = clock_timestamp()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSize:
    """A tensor, and how many chunks it should have."""

    id: int
    chunk_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkList:
    """A tensor with the chunks it is said to consist of, in order."""

    id: int
    digest: bytes
    dtype: str
    shape: list[int]
    size_bytes: int
    chunk_bytes: int
    chunk_count: int
    indexes: list[int]
    digests: list[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """A weight set with the names of its tensors and their digests, None for one that is gone."""

    id: int
    root: bytes
    tensor_count: int
    size_bytes: int
    names: list[str]
    digests: list[bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who has a tensor or a weight set, and by which name. `id` is that of what is held."""

    id: int
    tensor: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenDelta:
    """A delta whose base is gone, or is a delta itself."""

    digest: bytes
    base_digest: bytes
    is_missing: bool


def digest_page(
    conn: Connection, *, after: bytes, first: bytes, last: bytes, batch: int
) -> list[bytes]:
    """The next digests of stored chunks from `first` up to and with `last`."""
    parameters = {"after": after, "first": first, "last": last, "batch": batch}
    return _digests(conn, DIGEST_PAGE, parameters)


def tensors_of_set(conn: Connection, weight_set_id: int) -> list[TensorSize]:
    """The tensors of a set, each once."""
    with conn.cursor(row_factory=class_row(TensorSize)) as cursor:
        return cursor.execute(SET_TENSOR_IDS, {"weight_set_id": weight_set_id}).fetchall()


def digests_of_tensors(conn: Connection, ids: Sequence[int], indexes: range) -> list[bytes]:
    """The chunks that stand at these places in any of the tensors, each once."""
    parameters = {"ids": list(ids), "first": indexes.start, "last": indexes.stop - 1}
    return _digests(conn, DIGESTS_OF_TENSORS, parameters)


def tensor_page(conn: Connection, *, after: int, batch: int) -> list[TensorSize]:
    with conn.cursor(row_factory=class_row(TensorSize)) as cursor:
        return cursor.execute(TENSOR_ID_PAGE, {"after": after, "batch": batch}).fetchall()


def chunk_lists(conn: Connection, ids: Sequence[int]) -> Iterator[ChunkList]:
    """The tensors with their chunks, streamed one at a time."""
    with conn.cursor(row_factory=class_row(ChunkList), binary=True) as cursor:
        yield from cursor.stream(CHUNK_LISTS, {"ids": list(ids)})


def missing_chunks(conn: Connection, ids: Sequence[int]) -> list[bytes]:
    """The chunks of these tensors that have no row any more."""
    return _digests(conn, MISSING_CHUNKS, {"ids": list(ids)})


def set_page(conn: Connection, *, after: int, batch: int) -> list[int]:
    rows = conn.execute(SET_ID_PAGE, {"after": after, "batch": batch})
    return [int(str(row[0])) for row in rows]


def set_members(conn: Connection, ids: Sequence[int]) -> Iterator[Members]:
    """The sets with their tensors, streamed one at a time."""
    with conn.cursor(row_factory=class_row(Members), binary=True) as cursor:
        yield from cursor.stream(SET_MEMBERS, {"ids": list(ids)})


def broken_deltas(conn: Connection, digests: Sequence[bytes] | None = None) -> list[BrokenDelta]:
    """Deltas without a base to read them by, of all chunks or of these."""
    parameters = {"digests": None if digests is None else list(digests)}
    with conn.cursor(row_factory=class_row(BrokenDelta), binary=True) as cursor:
        return cursor.execute(BROKEN_DELTAS, parameters).fetchall()


def delta_counts(conn: Connection, digests: Sequence[bytes]) -> dict[bytes, int]:
    """How many deltas are taken against each of these chunks, where any are."""
    rows = conn.execute(DELTA_COUNTS, {"digests": list(digests)}, binary=True)
    return {as_bytes(digest): int(str(count)) for digest, count in rows}


def tensors_of_chunks(conn: Connection, digests: Sequence[bytes]) -> list[tuple[bytes, int]]:
    """(chunk, tensor id) for every tensor that cannot be read without one of these chunks."""
    rows = conn.execute(TENSORS_OF_CHUNKS, {"digests": list(digests)}, binary=True)
    return [(as_bytes(digest), int(str(id_))) for digest, id_ in rows]


def holders_of_tensors(conn: Connection, ids: Sequence[int]) -> list[Holder]:
    return _holders(conn, HOLDERS_OF_TENSORS, ids)


def holders_of_sets(conn: Connection, ids: Sequence[int]) -> list[Holder]:
    return _holders(conn, HOLDERS_OF_SETS, ids)


def chunk_sizes(conn: Connection, digests: Sequence[bytes]) -> list[int]:
    """The `chunk_bytes` of the tensors that these chunks belong to."""
    return [int(str(row[0])) for row in conn.execute(CHUNK_SIZES, {"digests": list(digests)})]


def heal_chunk(conn: Connection, chunk: NewChunk, *, store_id: int | None) -> None:
    """Store a chunk that is no delta, whatever its row has now, or if it has none."""
    conn.execute(
        HEAL_CHUNK,
        {
            "digest": chunk.digest,
            "raw_bytes": chunk.raw_bytes,
            "stored_bytes": len(chunk.body),
            "codec": chunk.codec,
            "codec_version": chunk.codec_version,
            "store_id": store_id,
            "body": bytes(chunk.body) if store_id is None else None,
        },
    )


def _digests(conn: Connection, sql: str, parameters: dict[str, object]) -> list[bytes]:
    rows = conn.execute(sql.encode(), parameters, binary=True)
    return [as_bytes(row[0]) for row in rows]


def _holders(conn: Connection, sql: str, ids: Sequence[int]) -> list[Holder]:
    with conn.cursor(row_factory=class_row(Holder)) as cursor:
        return cursor.execute(sql.encode(), {"ids": list(ids)}).fetchall()
