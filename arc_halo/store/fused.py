"""SQL of what merges have computed: tensor by tensor how, of what, and at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.rows import class_row, scalar_row

from arc_halo.store.rows import Connection, as_bytes
from arc_halo.types import JsonObject

# Several merges may have come to the same weights: of each tensor the one made last counts.
OF_SET = """
SELECT DISTINCT ON (task.tensor_name)
       task.tensor_name AS name, task.ordinal, task.tensor_key AS key, task.size_bytes,
       task.labels, task.is_reused, fused.recipe, fused.tensor_digest AS digest, fused.facts,
       fused.cpu_seconds
FROM weight_builds AS build
JOIN fusion_tasks AS task ON task.build_id = build.id
LEFT JOIN fused_tensors AS fused ON fused.tensor_key = task.tensor_key
WHERE build.weight_set_id = %(weight_set_id)s AND build.status = 'complete'
  AND (%(name)s::text IS NULL OR task.tensor_name = %(name)s)
ORDER BY task.tensor_name, build.finished_at DESC
"""

MADE_OF = """
SELECT DISTINCT fused.tensor_digest AS digest, task.tensor_name AS name,
       coalesce(model.model_name || '@' || model.version,
                'sha256:' || encode(sets.root, 'hex')) AS model
FROM fused_tensor_inputs AS input
JOIN fused_tensors AS fused ON fused.tensor_key = input.tensor_key
JOIN fusion_tasks AS task ON task.tensor_key = fused.tensor_key
JOIN weight_builds AS build ON build.id = task.build_id AND build.status = 'complete'
JOIN weight_sets AS sets ON sets.id = build.weight_set_id
LEFT JOIN models AS model ON model.weight_set_id = sets.id
WHERE input.tensor_digest = %(digest)s
ORDER BY model, name
"""

KNOWN_KEYS = """
SELECT fused.tensor_key AS key
FROM fused_tensors AS fused
JOIN tensor_metadata AS tensor ON tensor.digest = fused.tensor_digest
WHERE fused.tensor_key = ANY(%(keys)s)
"""


# The latest ones: strategies and machines become faster.
SECONDS_PER_BYTE = """
SELECT sum(made.cpu_seconds) / nullif(sum(tensor.size_bytes), 0)::double precision
FROM (SELECT tensor_digest, cpu_seconds FROM fused_tensors
      WHERE recipe ->> 'strategy' = %(strategy)s AND cpu_seconds IS NOT NULL
      ORDER BY made_at DESC LIMIT 1000) AS made
JOIN tensor_metadata AS tensor ON tensor.digest = made.tensor_digest
"""

# What no merge has any more, and what came of it is gone too: nothing could be found again.
FREE = """
SELECT fused.tensor_key FROM fused_tensors AS fused
WHERE (%(keys)s::bytea[] IS NULL OR fused.tensor_key = ANY(%(keys)s))
  AND NOT EXISTS (SELECT FROM fusion_tasks AS r WHERE r.tensor_key = fused.tensor_key OFFSET 0)
  AND NOT EXISTS (SELECT FROM tensor_metadata AS r
                  WHERE r.digest = fused.tensor_digest OFFSET 0)
LIMIT %(batch)s
"""

LOCK_FREE = """
SELECT tensor_key FROM fused_tensors WHERE tensor_key = ANY(%(keys)s)
ORDER BY tensor_key FOR UPDATE SKIP LOCKED
"""

DELETE_FREE = """
DELETE FROM fused_tensors WHERE tensor_key = ANY(%(keys)s)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedTensor:
    """How a tensor of merged weights was made. What was taken as it is has no key and recipe."""

    name: str
    ordinal: int
    key: bytes | None
    size_bytes: int
    labels: list[JsonObject]
    is_reused: bool
    recipe: JsonObject | None
    digest: bytes | None
    facts: JsonObject | None
    cpu_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A tensor, of a model or of weights without one, that another one went into."""

    model: str
    name: str
    digest: bytes | None


def of_set(conn: Connection, weight_set_id: int, name: str | None = None) -> list[FusedTensor]:
    """How the tensors of a merged set were made, or the one of that name."""
    with conn.cursor(row_factory=class_row(FusedTensor)) as cursor:
        found = cursor.execute(OF_SET, {"weight_set_id": weight_set_id, "name": name}).fetchall()
    return sorted(found, key=lambda tensor: tensor.ordinal)


def made_of(conn: Connection, digest: bytes) -> list[Product]:
    """The tensors that this one went into."""
    with conn.cursor(row_factory=class_row(Product)) as cursor:
        return cursor.execute(MADE_OF, {"digest": digest}).fetchall()


def known_keys(conn: Connection, keys: Sequence[bytes]) -> set[bytes]:
    """Those of the keys whose tensors are there."""
    rows = conn.execute(KNOWN_KEYS, {"keys": list(keys)}, binary=True).fetchall()
    return {as_bytes(row[0]) for row in rows}


def seconds_per_byte(conn: Connection, strategy: str) -> float | None:
    """CPU seconds that the strategy has taken for each byte of its results; None if never."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        found = cursor.execute(SECONDS_PER_BYTE, {"strategy": strategy}).fetchone()
    return None if found is None else float(str(found))


def collect(conn: Connection, batch: int) -> int:
    """Forget the tensors that no merge has and that are not stored; how many.

    In transactions of `batch` rows: what looked free is locked, looked at again, and deleted.
    """
    count = 0
    while keys := _free(conn, None, batch):
        with conn.transaction():
            rows = conn.execute(LOCK_FREE, {"keys": keys}, binary=True).fetchall()
            free = _free(conn, [as_bytes(row[0]) for row in rows], batch)
            deleted = conn.execute(DELETE_FREE, {"keys": free}).rowcount
        if not deleted:
            break  # somebody has just come to need what is left
        count += deleted
    return count


def _free(conn: Connection, keys: Sequence[bytes] | None, batch: int) -> list[bytes]:
    params = {"keys": None if keys is None else list(keys), "batch": batch}
    return [as_bytes(row[0]) for row in conn.execute(FREE, params, binary=True)]
