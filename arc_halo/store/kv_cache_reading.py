"""SQL that looks at the KV cache: what it holds, and for whom."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from arc_halo.store.binary import COPY_HEADER, COPY_TRAILER, copied_fields, read_int
from arc_halo.store.rows import Connection

# Names of registered models whose weights these are, or else what the engine said.
USAGE = """
SELECT coalesce(usage.tenant, counter.tenant) AS tenant,
       coalesce(usage.weights_root, counter.weights_root) AS weights_root,
       coalesce((SELECT string_agg(model.model_name || '@' || model.version, ', '
                                   ORDER BY model.model_name, model.version)
                 FROM v_models_by_weights AS model
                 WHERE model.weights_root = coalesce(usage.weights_root, counter.weights_root)),
                counter.model, '') AS model,
       coalesce(usage.blocks, 0)::bigint AS blocks,
       coalesce(usage.stored_bytes, 0)::bigint AS held_bytes,
       coalesce(usage.pinned_bytes, 0)::bigint AS pinned_bytes,
       coalesce(counter.lookups, 0) AS lookups, coalesce(counter.hits, 0) AS hits,
       coalesce(counter.asked_tokens, 0) AS asked_tokens,
       coalesce(counter.hit_tokens, 0) AS hit_tokens,
       coalesce(counter.loaded_bytes, 0) AS loaded_bytes,
       coalesce(counter.stored_blocks, 0) AS stored_blocks,
       coalesce(counter.stored_bytes, 0) AS stored_bytes,
       coalesce(counter.refused_blocks, 0) AS refused_blocks,
       coalesce(counter.damaged_blocks, 0) AS damaged_blocks
FROM (SELECT tenant, weights_root, sum(blocks) AS blocks, sum(stored_bytes) AS stored_bytes,
             sum(stored_bytes) FILTER (WHERE generation = -1) AS pinned_bytes
      FROM kv_cache_usage GROUP BY tenant, weights_root HAVING sum(blocks) > 0) AS usage
FULL JOIN kv_cache_counters AS counter
  ON (counter.tenant, counter.weights_root) = (usage.tenant, usage.weights_root)
ORDER BY held_bytes DESC, model, tenant
"""

# Of blocks that follow one another up to the first, the tokens from the first one on.
PROMPTS = """
WITH RECURSIVE picked AS MATERIALIZED (
    SELECT block_key, parent_key, block_index, tokens FROM kv_cache
    WHERE tenant = %(tenant)s AND weights_root = %(weights_root)s
      AND (parent_key IS NOT NULL OR block_index = 0)
    ORDER BY random() LIMIT %(limit)s::bigint
), step AS (
    SELECT block_key AS last_key, parent_key, block_index, tokens FROM picked
    UNION ALL
    SELECT step.last_key, before.parent_key, before.block_index, before.tokens
    FROM step JOIN kv_cache AS before ON before.block_key = step.parent_key
)
SELECT last_key, string_agg(tokens, ''::bytea ORDER BY block_index) AS tokens
FROM step GROUP BY last_key
"""

# A prefix is named by its last block: one that no other follows. What is older than the policy
# allows is not there, whether it is gone by now or not.
PREFIXES = """
WITH there AS NOT MATERIALIZED (
    SELECT * FROM kv_cache
    WHERE generation = -1 OR last_used_at > coalesce(
        (SELECT now() - policy.ttl FROM cache_policies AS policy WHERE policy.name = 'kv_cache'),
        '-infinity')
)
SELECT block.block_key, block.tenant, block.weights_root,
       coalesce((SELECT string_agg(model.model_name || '@' || model.version, ', '
                                   ORDER BY model.model_name, model.version)
                 FROM v_models_by_weights AS model
                 WHERE model.weights_root = block.weights_root),
                (SELECT counter.model FROM kv_cache_counters AS counter
                 WHERE (counter.tenant, counter.weights_root)
                     = (block.tenant, block.weights_root)), '') AS model,
       (block.block_index + 1) * block.token_count AS tokens,
       block.codec, block.error, block.hit_count, block.created_at, block.last_used_at,
       block.generation = -1 AS is_pinned,
       (SELECT min(pin.label) FROM kv_cache_pins AS pin
        WHERE pin.block_key = block.block_key) AS label
FROM there AS block
WHERE NOT EXISTS (SELECT FROM there AS next WHERE next.parent_key = block.block_key)
  AND (%(tenant)s::text IS NULL OR block.tenant = %(tenant)s)
  AND (%(roots)s::bytea[] IS NULL OR block.weights_root = ANY(%(roots)s))
ORDER BY block.last_used_at DESC, block.block_key
LIMIT %(limit)s
"""

ROOTS_OF_MODEL = """
SELECT DISTINCT known.weights_root
FROM (SELECT weights_root, model FROM kv_cache_counters
      UNION ALL
      SELECT weights_root, model_name || '@' || version FROM v_models_by_weights
      UNION ALL
      SELECT model.weights_root, alias.model_name || ':' || alias.alias
      FROM v_models_by_weights AS model JOIN model_aliases AS alias USING (model_id)) AS known
WHERE known.model = %(model)s OR split_part(known.model, '@', 1) = %(model)s
"""

ROOTS_THAT_BEGIN = """
SELECT weights_root
FROM (SELECT weights_root FROM kv_cache_counters
      UNION
      SELECT weights_root FROM v_models_by_weights) AS known
WHERE starts_with(encode(weights_root, 'hex'), %(digits)s::text)
"""

ROOTS_OF_SAME_MODEL = """
SELECT %(weights_root)s::bytea
UNION
SELECT other.weights_root
FROM v_models_by_weights AS model JOIN v_models_by_weights AS other USING (model_id)
WHERE model.weights_root = %(weights_root)s
"""

# The keys first, so that only the sample's bodies are touched.
SAMPLE = """
WITH sample AS MATERIALIZED (
    SELECT block_key, generation, part_count, digest, tenant, block_index
    FROM kv_cache ORDER BY random() LIMIT %(limit)s::bigint
)
SELECT sample.block_key, sample.part_count, sample.digest, sample.tenant, sample.block_index,
       part.part, part.body
FROM sample LEFT JOIN kv_cache_bodies AS part
  ON part.block_key = sample.block_key AND part.generation = sample.generation
ORDER BY sample.block_key, part.part
"""

WRITTEN = """
SELECT coalesce(sum(written_bytes), 0)::bigint,
       coalesce(sum(written_bytes) FILTER (WHERE generation = -1), 0)::bigint
FROM kv_cache_generations
"""

PINNED_BYTES = """
SELECT coalesce(sum(stored_bytes), 0)::bigint FROM kv_cache_usage
WHERE tenant = %(tenant)s AND generation = -1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the cache holds of a model for a tenant, and what was asked of it."""

    tenant: str
    weights_root: bytes
    model: str
    blocks: int
    held_bytes: int
    pinned_bytes: int
    lookups: int
    hits: int
    asked_tokens: int
    hit_tokens: int
    loaded_bytes: int
    stored_blocks: int
    stored_bytes: int
    refused_blocks: int
    damaged_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixRow:
    """A prefix by its last block. `error` is that of its quantisation."""

    block_key: bytes
    tenant: str
    weights_root: bytes
    model: str
    tokens: int
    codec: str
    error: float | None
    hit_count: int
    created_at: datetime
    last_used_at: datetime
    is_pinned: bool
    label: str | None


@dataclass(frozen=True, slots=True)
class SampledPart:
    """A part of a block of a sample; without a body where the block has none at all."""

    block_key: bytes
    part_count: int
    digest: bytes
    tenant: str
    block_index: int
    part: int | None
    body: memoryview | None


def usage(conn: Connection) -> list[Usage]:
    """By tenant and model, what holds most first."""
    with conn.cursor(row_factory=class_row(Usage)) as cursor:
        return cursor.execute(USAGE).fetchall()


def prefixes(
    conn: Connection,
    *,
    tenant: str | None = None,
    roots: Sequence[bytes] | None = None,
    limit: int | None = None,
) -> list[PrefixRow]:
    """Prefixes, those that were used last first."""
    wanted = None if roots is None else list(roots)
    fields = {"tenant": tenant, "roots": wanted, "limit": limit}
    with conn.cursor(row_factory=class_row(PrefixRow)) as cursor:
        return cursor.execute(PREFIXES, fields).fetchall()


def prompts(
    conn: Connection, *, tenant: str, weights_root: bytes, limit: int
) -> dict[bytes, bytes]:
    """The tokens up to blocks at random, 4 bytes each, by the key of that block."""
    fields = {"tenant": tenant, "weights_root": weights_root, "limit": limit}
    return {bytes(row[0]): bytes(row[1]) for row in conn.execute(PROMPTS, fields).fetchall()}


def roots_of_model(conn: Connection, model: str) -> list[bytes]:
    """Roots of weights by the name of a model, with or without its version, or an alias."""
    return [bytes(row[0]) for row in conn.execute(ROOTS_OF_MODEL, {"model": model}).fetchall()]


def roots_that_begin(conn: Connection, digits: str) -> list[bytes]:
    """Roots of weights that the cache or the registry knows, by their first hex digits."""
    return [bytes(row[0]) for row in conn.execute(ROOTS_THAT_BEGIN, {"digits": digits}).fetchall()]


def roots_of_same_model(conn: Connection, weights_root: bytes) -> list[bytes]:
    """A root, and all that the registered models with these weights are known by."""
    rows = conn.execute(ROOTS_OF_SAME_MODEL, {"weights_root": weights_root}).fetchall()
    return [bytes(row[0]) for row in rows]


def written_bytes(conn: Connection) -> tuple[int, int]:
    """What counts against the budget, and how much of that is pinned."""
    row = conn.execute(WRITTEN).fetchone()
    assert row is not None
    return int(str(row[0])), int(str(row[1]))


def pinned_bytes(conn: Connection, tenant: str) -> int:
    """What is pinned of a tenant."""
    row = conn.execute(PINNED_BYTES, {"tenant": tenant}).fetchone()
    assert row is not None
    return int(str(row[0]))


def sample(conn: Connection, limit: int | None) -> Generator[SampledPart]:
    """Blocks at random, or all of them, part by part."""
    statement = f"COPY ({SAMPLE}) TO STDOUT (FORMAT BINARY)".encode()
    with conn.cursor() as cursor, cursor.copy(statement, {"limit": limit}) as copy:
        start = len(COPY_HEADER)
        for message in copy:
            row = memoryview(message)[start:]
            start = 0
            if row != COPY_TRAILER:
                key, count, digest, tenant, index, part, body = copied_fields(row)
                assert key is not None
                assert digest is not None
                assert tenant is not None
                yield SampledPart(
                    bytes(key),
                    read_int(count),
                    bytes(digest),
                    str(tenant, "utf-8"),
                    read_int(index),
                    None if part is None else read_int(part),
                    body,
                )
