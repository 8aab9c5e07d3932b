"""SQL of the KV cache: blocks asked for, streamed, written, moved between generations, and let go.

Who writes holds the lock of the cache until the transaction ends; readers hold none.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta

import psycopg
from psycopg import sql as psql
from psycopg.rows import class_row

from arc_halo.store.binary import COPY_HEADER, COPY_TRAILER, copied_fields, read_int
from arc_halo.store.locks import try_xact_lock
from arc_halo.store.rows import Connection

PINNED = -1
"""The generation that is never emptied."""

SLOTS = 8
"""How many generations there can be beside it."""

LOCK_SECONDS = 30.0

# A writer that is stopped, or cut off, must not keep others waiting.
LIMIT_IDLING = "SELECT set_config('idle_in_transaction_session_timeout', '10s', true)"

# Who reads locks this table before any partition, in whatever order it takes those:
# who has it alone waits for nobody after it, and so cannot be waited for in a circle.
KEEP_READERS_OUT = "LOCK TABLE ONLY kv_cache IN ACCESS EXCLUSIVE MODE"

# While it waits for one who reads, those that come wait behind it: so not for long at a time.
LIMIT_WAITING = "SELECT set_config('lock_timeout', '50ms', true)"
WAIT_AS_LONG_AS_NEEDED = "SELECT set_config('lock_timeout', '0', true)"

PAUSES_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Between tries to have the cache alone for a moment."""

# One descent of an index for each key and generation, however the tables are filled. What is older
# than the policy allows is not there, whether it is gone by now or not, unless it is pinned.
MATCH = """
SELECT wanted.ordinality::int4 - 1
FROM unnest(%(keys)s::bytea[]) WITH ORDINALITY AS wanted (key, ordinality)
CROSS JOIN LATERAL (
    SELECT FROM kv_cache AS block
    WHERE block.block_key = wanted.key
      AND (block.generation = -1 OR block.last_used_at > coalesce(
          (SELECT now() - policy.ttl FROM cache_policies AS policy WHERE policy.name = 'kv_cache'),
          '-infinity'))
    LIMIT 1
) AS found
"""

LOAD = """
SELECT wanted.ordinality::int4 - 1, body.part, found.part_count, found.codec_version,
       found.codec, found.digest, found.tokens, body.body
FROM unnest(%(keys)s::bytea[]) WITH ORDINALITY AS wanted (key, ordinality)
CROSS JOIN LATERAL (
    SELECT block.generation, block.part_count, block.codec, block.codec_version, block.digest,
           block.tokens
    FROM kv_cache AS block
    WHERE block.block_key = wanted.key
      AND (block.generation = -1 OR block.last_used_at > coalesce(
          (SELECT now() - policy.ttl FROM cache_policies AS policy WHERE policy.name = 'kv_cache'),
          '-infinity'))
    LIMIT 1
) AS found
CROSS JOIN LATERAL (
    SELECT part.part, part.body FROM kv_cache_bodies AS part
    WHERE part.block_key = wanted.key AND part.generation = found.generation
    OFFSET 0  -- a subquery for each block, by its index, whatever the statistics say
) AS body
ORDER BY wanted.ordinality, body.part
"""

GENERATIONS = """
SELECT generation, sequence, written_bytes FROM kv_cache_generations ORDER BY sequence
"""

PLACES = """
SELECT block_key, generation, tenant, weights_root, stored_bytes
FROM kv_cache WHERE block_key = ANY(%(keys)s)
"""

TENANT_BYTES = """
SELECT coalesce(sum(stored_bytes), 0)::bigint FROM kv_cache_usage WHERE tenant = %(tenant)s
"""

OPEN_GENERATION = """
INSERT INTO kv_cache_generations (generation, sequence) VALUES (%(generation)s, %(sequence)s)
ON CONFLICT (generation) DO NOTHING
"""

COUNT_WRITTEN = """
UPDATE kv_cache_generations SET written_bytes = greatest(0, written_bytes + %(bytes)s)
WHERE generation = %(generation)s
"""

COPY_BLOCKS = """
COPY kv_cache (block_key, generation, block_index, token_count, parent_key, weights_root, tenant,
               tokens, digest, codec, codec_version, part_count, raw_bytes, stored_bytes, error)
FROM STDIN (FORMAT binary)
"""

COPY_BODIES = """
COPY kv_cache_bodies (block_key, generation, part, body) FROM STDIN (FORMAT binary)
"""

# The start of the statement, which holds the lock: no block is then used later than its parent.
TOUCH = """
UPDATE kv_cache AS block
SET last_used_at = statement_timestamp(), hit_count = block.hit_count + used.hits
FROM unnest(%(keys)s::bytea[], %(hits)s::bigint[]) AS used (key, hits)
WHERE block.block_key = used.key
"""

MOVE_BLOCKS = """
UPDATE kv_cache SET generation = %(generation)s
WHERE block_key = ANY(%(keys)s) AND generation <> %(generation)s
"""

MOVE_BODIES = """
UPDATE kv_cache_bodies SET generation = %(generation)s
WHERE block_key = ANY(%(keys)s) AND generation <> %(generation)s
"""

ADD_USAGE = """
INSERT INTO kv_cache_usage AS known (generation, tenant, weights_root, blocks, stored_bytes)
SELECT * FROM unnest(%(generations)s::int2[], %(tenants)s::text[], %(roots)s::bytea[],
                     %(blocks)s::bigint[], %(bytes)s::bigint[])
ON CONFLICT (generation, tenant, weights_root) DO UPDATE
SET blocks = known.blocks + excluded.blocks,
    stored_bytes = known.stored_bytes + excluded.stored_bytes
"""

SUBTRACT_USAGE = """
UPDATE kv_cache_usage AS known
SET blocks = known.blocks - gone.blocks, stored_bytes = known.stored_bytes - gone.bytes
FROM unnest(%(generations)s::int2[], %(tenants)s::text[], %(roots)s::bytea[],
            %(blocks)s::bigint[], %(bytes)s::bigint[])
     AS gone (generation, tenant, root, blocks, bytes)
WHERE (known.generation, known.tenant, known.weights_root)
    = (gone.generation, gone.tenant, gone.root)
"""

LEAST_USED = """
SELECT block_key, generation, tenant, weights_root, stored_bytes
FROM kv_cache
WHERE tenant = %(tenant)s AND generation <> -1 AND block_key <> ALL(%(keep)s::bytea[])
ORDER BY last_used_at, block_index DESC
"""

EXPIRED = """
SELECT block_key, generation, tenant, weights_root, stored_bytes
FROM kv_cache WHERE generation <> -1 AND last_used_at <= now() - %(ttl)s::interval
"""

OF_SCOPE = """
SELECT block_key, generation, tenant, weights_root, stored_bytes
FROM kv_cache
WHERE (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
  AND (%(weights_root)s::bytea IS NULL OR weights_root = %(weights_root)s)
  AND (%(idle)s::interval IS NULL OR last_used_at <= now() - %(idle)s::interval)
  AND (generation <> -1 OR %(pinned)s)
"""

# With all that follows them.
FOLLOWING = """
WITH RECURSIVE following AS (
    SELECT block_key FROM kv_cache WHERE block_key = ANY(%(keys)s)
    UNION
    SELECT block.block_key
    FROM following JOIN kv_cache AS block ON block.parent_key = following.block_key
)
SELECT block.block_key, block.generation, block.tenant, block.weights_root, block.stored_bytes
FROM kv_cache AS block JOIN following USING (block_key)
"""

DELETE_PINS = """
DELETE FROM kv_cache_pins WHERE block_key = ANY(%(keys)s)
"""

DELETE_BLOCKS = """
DELETE FROM kv_cache WHERE block_key = ANY(%(keys)s)
"""

DELETE_BODIES = """
DELETE FROM kv_cache_bodies WHERE block_key = ANY(%(keys)s)
"""

DELETE_GENERATION_BLOCKS = """
DELETE FROM kv_cache WHERE generation = ANY(%(generations)s::int2[])
"""

DELETE_GENERATION_BODIES = """
DELETE FROM kv_cache_bodies WHERE generation = ANY(%(generations)s::int2[])
"""

FORGET_GENERATIONS = """
DELETE FROM kv_cache_generations WHERE generation = ANY(%(generations)s)
"""

FORGET_USAGE = """
DELETE FROM kv_cache_usage
WHERE generation = ANY(%(generations)s) OR (blocks = 0 AND generation <> -1)
"""

PIN = """
INSERT INTO kv_cache_pins (pin_key, block_key, label)
SELECT %(pin_key)s, block_key, %(label)s FROM unnest(%(keys)s::bytea[]) AS pinned (block_key)
ON CONFLICT (pin_key, block_key) DO UPDATE SET label = excluded.label
"""

# Of these prefixes the longest that is pinned.
UNPIN = """
DELETE FROM kv_cache_pins WHERE pin_key = (
    SELECT pin.pin_key FROM kv_cache_pins AS pin
    JOIN unnest(%(keys)s::bytea[]) WITH ORDINALITY AS prefix (key, place)
      ON prefix.key = pin.pin_key
    ORDER BY prefix.place DESC LIMIT 1)
"""

FORGET_PINS = """
DELETE FROM kv_cache_pins
"""

# Blocks that were pinned and that no pin needs any more: none is it, or stands before it.
UNNEEDED_PINNED = """
WITH RECURSIVE needed AS (
    SELECT block.block_key, block.parent_key
    FROM kv_cache AS block JOIN kv_cache_pins USING (block_key)
    UNION
    SELECT parent.block_key, parent.parent_key
    FROM needed JOIN kv_cache AS parent ON parent.block_key = needed.parent_key
)
SELECT block_key, generation, tenant, weights_root, stored_bytes
FROM kv_cache AS block
WHERE generation = -1
  AND NOT EXISTS (SELECT FROM needed WHERE needed.block_key = block.block_key)
"""

COUNT = """
INSERT INTO kv_cache_counters AS known
    (tenant, weights_root, model, lookups, hits, asked_tokens, hit_tokens, loaded_bytes,
     stored_blocks, stored_bytes, refused_blocks, damaged_blocks)
VALUES (%(tenant)s, %(weights_root)s, %(model)s, %(lookups)s, %(hits)s, %(asked_tokens)s,
        %(hit_tokens)s, %(loaded_bytes)s, %(stored_blocks)s, %(stored_bytes)s, %(refused_blocks)s,
        %(damaged_blocks)s)
ON CONFLICT (tenant, weights_root) DO UPDATE
SET model = excluded.model,
    lookups = known.lookups + excluded.lookups,
    hits = known.hits + excluded.hits,
    asked_tokens = known.asked_tokens + excluded.asked_tokens,
    hit_tokens = known.hit_tokens + excluded.hit_tokens,
    loaded_bytes = known.loaded_bytes + excluded.loaded_bytes,
    stored_blocks = known.stored_blocks + excluded.stored_blocks,
    stored_bytes = known.stored_bytes + excluded.stored_bytes,
    refused_blocks = known.refused_blocks + excluded.refused_blocks,
    damaged_blocks = known.damaged_blocks + excluded.damaged_blocks,
    counted_at = now()
"""

FORGET_COUNTERS = """
DELETE FROM kv_cache_counters AS counter
WHERE (%(tenant)s::text IS NULL OR counter.tenant = %(tenant)s)
  AND (%(roots)s::bytea[] IS NULL OR counter.weights_root = ANY(%(roots)s))
  AND NOT EXISTS (
      SELECT FROM kv_cache_usage AS usage
      WHERE (usage.tenant, usage.weights_root) = (counter.tenant, counter.weights_root)
        AND usage.blocks > 0)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A generation in use: the newest has the highest sequence. Pinned blocks are in -1."""

    generation: int
    sequence: int
    written_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a block stands, and whose it is."""

    block_key: bytes
    generation: int
    tenant: str
    weights_root: bytes
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBlock:
    """A block about to be stored, in `parts` of whole heads."""

    key: bytes
    parent_key: bytes | None
    index: int
    tokens: bytes
    digest: bytes
    codec: str
    codec_version: int
    raw_bytes: int
    parts: Sequence[bytes | memoryview]
    error: float | None = None

    @property
    def stored_bytes(self) -> int:
        return sum(len(part) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the block at `place` among the keys that were asked for."""

    place: int
    index: int
    part_count: int
    codec: str
    codec_version: int
    digest: bytes
    tokens: bytes
    body: memoryview


@dataclass(slots=True, kw_only=True)
class Counts:
    """What happened since it was last written down."""

    lookups: int = 0
    hits: int = 0
    asked_tokens: int = 0
    hit_tokens: int = 0
    loaded_bytes: int = 0
    stored_blocks: int = 0
    stored_bytes: int = 0
    refused_blocks: int = 0
    damaged_blocks: int = 0


def lock(conn: Connection, timeout_seconds: float = LOCK_SECONDS) -> None:
    """Be the one who writes, until the transaction ends. Raises `LockNotHadError`."""
    try_xact_lock(conn, "arc-halo/kv-cache", timeout_seconds)
    conn.execute(LIMIT_IDLING)


def match(conn: Connection, keys: Sequence[bytes]) -> list[int]:
    """Which of the blocks seem to be there, by their places among `keys`."""
    rows = conn.execute(MATCH, {"keys": list(keys)}, binary=True).fetchall()
    return [int(str(row[0])) for row in rows]


def load(conn: Connection, keys: Sequence[bytes]) -> Generator[Part]:
    """The parts of all blocks that are there, block by block and in order, by one COPY.

    A body lies in the message that it came in.
    """
    statement = f"COPY ({LOAD}) TO STDOUT (FORMAT BINARY)".encode()
    fields = {"keys": list(keys)}
    with conn.cursor() as cursor, cursor.copy(statement, fields) as copy:
        start = len(COPY_HEADER)
        for message in copy:
            row = memoryview(message)[start:]
            start = 0
            if row != COPY_TRAILER:
                yield _part(copied_fields(row))


def generations(conn: Connection) -> list[Generation]:
    """Those in use, the oldest first; pinned blocks' is among them."""
    with conn.cursor(row_factory=class_row(Generation)) as cursor:
        return cursor.execute(GENERATIONS).fetchall()


def places(conn: Connection, keys: Iterable[bytes]) -> dict[bytes, Place]:
    """Where those of the blocks stand that are there."""
    return {place.block_key: place for place in _places(conn, PLACES, {"keys": list(keys)})}


def tenant_bytes(conn: Connection, tenant: str) -> int:
    """What a tenant has in all generations."""
    row = conn.execute(TENANT_BYTES, {"tenant": tenant}).fetchone()
    assert row is not None
    return int(str(row[0]))


def open_generation(conn: Connection, generation: int, sequence: int) -> None:
    conn.execute(OPEN_GENERATION, {"generation": generation, "sequence": sequence})


def insert(
    conn: Connection,
    blocks: Sequence[NewBlock],
    *,
    generation: int,
    tenant: str,
    weights_root: bytes,
) -> None:
    """Store blocks that are not there in a generation."""
    with conn.cursor() as cursor, cursor.copy(COPY_BLOCKS) as copy:
        copy.set_types(_BLOCK_TYPES)
        for block in blocks:
            copy.write_row(_block_row(block, generation, tenant, weights_root))
    with conn.cursor() as cursor, cursor.copy(COPY_BODIES) as copy:
        copy.set_types(_BODY_TYPES)
        for block in blocks:
            for index, part in enumerate(block.parts):
                copy.write_row((block.key, generation, index, part))


def touch(conn: Connection, used: Mapping[bytes, int]) -> None:
    """Say that blocks were used, and how often each."""
    conn.execute(TOUCH, {"keys": list(used), "hits": list(used.values())})


def move(conn: Connection, places: Sequence[Place], generation: int) -> None:
    """Move blocks to a generation, with what they count there and where they were."""
    fields = {"keys": [place.block_key for place in places], "generation": generation}
    conn.execute(MOVE_BLOCKS, fields)
    conn.execute(MOVE_BODIES, fields)
    subtract_usage(conn, places)
    add_usage(conn, [replace(place, generation=generation) for place in places])
    count_written(conn, generation, sum(place.stored_bytes for place in places))
    _unpinned(conn, places)


def delete(conn: Connection, places: Sequence[Place]) -> None:
    """Let single blocks go. What they took of their generation is free when that is emptied."""
    keys = [place.block_key for place in places]
    conn.execute(DELETE_BLOCKS, {"keys": keys})
    conn.execute(DELETE_BODIES, {"keys": keys})
    conn.execute(DELETE_PINS, {"keys": keys})
    subtract_usage(conn, places)
    _unpinned(conn, places)


def empty(conn: Connection, generations: Iterable[int]) -> None:
    """Let generations go, whole; do it last, and once.

    Truncating needs that nobody reads for a moment. Where somebody does not stop reading, or the
    role may not, rows are deleted instead, which leaves work to vacuum.
    """
    slots = sorted(set(generations))
    if not slots:
        return
    if not any(_truncated(conn, slots, pause) for pause in (*PAUSES_SECONDS, 0.0)):
        conn.execute(DELETE_GENERATION_BODIES, {"generations": slots})
        conn.execute(DELETE_GENERATION_BLOCKS, {"generations": slots})
    conn.execute(FORGET_GENERATIONS, {"generations": slots})
    conn.execute(FORGET_USAGE, {"generations": slots})


def count_written(conn: Connection, generation: int, size_bytes: int) -> None:
    conn.execute(COUNT_WRITTEN, {"generation": generation, "bytes": size_bytes})


def add_usage(conn: Connection, places: Iterable[Place]) -> None:
    """Count blocks where they stand."""
    if sums := _sums(places):
        conn.execute(ADD_USAGE, sums)


def subtract_usage(conn: Connection, places: Iterable[Place]) -> None:
    """Count blocks no more where they stood."""
    if sums := _sums(places):
        conn.execute(SUBTRACT_USAGE, sums)


def least_used(
    conn: Connection, tenant: str, free_bytes: int, *, keep: Sequence[bytes] = ()
) -> list[Place]:
    """The blocks of a tenant to let go for so many bytes: the least used first, and of a prefix
    the last first. Those in `keep` stay, and what is pinned."""
    found: list[Place] = []
    for place in _places(conn, LEAST_USED, {"tenant": tenant, "keep": list(keep)}):
        if free_bytes <= 0:
            break
        found.append(place)
        free_bytes -= place.stored_bytes
    return found


def expired(conn: Connection, ttl: timedelta) -> list[Place]:
    """Blocks that nobody used for so long, but for those that are pinned."""
    return _places(conn, EXPIRED, {"ttl": ttl})


def of_scope(
    conn: Connection,
    *,
    tenant: str | None = None,
    weights_root: bytes | None = None,
    idle: timedelta | None = None,
    pinned: bool = False,
) -> list[Place]:
    """Blocks of a tenant, of a model, unused for so long, or all; those that are pinned only where
    that is asked for."""
    fields = {"tenant": tenant, "weights_root": weights_root, "idle": idle, "pinned": pinned}
    return _places(conn, OF_SCOPE, fields)


def following(conn: Connection, keys: Iterable[bytes]) -> list[Place]:
    """Blocks, and all that are of no use without them."""
    return _places(conn, FOLLOWING, {"keys": list(keys)})


def pin(conn: Connection, pin_key: bytes, keys: Sequence[bytes], label: str) -> None:
    """Say that blocks and all that they follow are to stay; they are the caller's to move."""
    conn.execute(PIN, {"pin_key": pin_key, "keys": list(keys), "label": label})


def unpin(conn: Connection, keys: Sequence[bytes]) -> bool:
    """Take the pin off the longest of these prefixes that has one; False where none has."""
    return conn.execute(UNPIN, {"keys": list(keys)}).rowcount > 0


def forget_pins(conn: Connection) -> None:
    """Take all pins off; their blocks are the caller's to let go."""
    conn.execute(FORGET_PINS)


def unneeded_pinned(conn: Connection) -> list[Place]:
    """Blocks among the pinned ones that no pin needs."""
    return _places(conn, UNNEEDED_PINNED, {})


def count(conn: Connection, tenant: str, weights_root: bytes, model: str, counts: Counts) -> None:
    """Add to the counters of a tenant and model."""
    fields = {"tenant": tenant, "weights_root": weights_root, "model": model}
    conn.execute(COUNT, {**fields, **asdict(counts)})


def forget_counters(
    conn: Connection, tenant: str | None = None, roots: Sequence[bytes] | None = None
) -> None:
    """Forget what was counted of a tenant, of models, or of all, where no block is left."""
    wanted = None if roots is None else list(roots)
    conn.execute(FORGET_COUNTERS, {"tenant": tenant, "roots": wanted})


_BLOCK_TYPES = (
    "bytea", "int2", "int4", "int4", "bytea", "bytea", "text", "bytea", "bytea", "text", "int4",
    "int4", "int8", "int8", "float4",
)  # fmt: skip
_BODY_TYPES = ("bytea", "int2", "int4", "bytea")


def _block_row(
    block: NewBlock, generation: int, tenant: str, weights_root: bytes
) -> tuple[object, ...]:
    return (
        block.key, generation, block.index, len(block.tokens) // 4, block.parent_key, weights_root,
        tenant, block.tokens, block.digest, block.codec, block.codec_version, len(block.parts),
        block.raw_bytes, block.stored_bytes, block.error,
    )  # fmt: skip


def _places(conn: Connection, query: str, fields: Mapping[str, object]) -> list[Place]:
    with conn.cursor(row_factory=class_row(Place), binary=True) as cursor:
        return cursor.execute(query.encode(), fields).fetchall()


def _truncated(conn: Connection, slots: Sequence[int], pause_seconds: float) -> bool:
    """Truncate generations, unless somebody reads, or the role may not: then wait a little."""
    names = [
        psql.Identifier(f"{table}_{'pinned' if slot == PINNED else f'g{slot}'}")
        for table in ("kv_cache", "kv_cache_bodies")
        for slot in slots
    ]
    try:
        with conn.transaction():
            conn.execute(LIMIT_WAITING)
            conn.execute(KEEP_READERS_OUT)
            conn.execute(psql.SQL("TRUNCATE {}").format(psql.SQL(", ").join(names)))
            conn.execute(WAIT_AS_LONG_AS_NEEDED)
    except psycopg.errors.LockNotAvailable:
        time.sleep(pause_seconds)
        return False
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def _sums(places: Iterable[Place]) -> dict[str, list[object]]:
    """Blocks and bytes by generation, tenant and model, in columns."""
    sums: dict[tuple[int, str, bytes], list[int]] = {}
    for place in places:
        sum_ = sums.setdefault((place.generation, place.tenant, place.weights_root), [0, 0])
        sum_[0] += 1
        sum_[1] += place.stored_bytes
    if not sums:
        return {}
    return {
        "generations": [generation for generation, _, _ in sums],
        "tenants": [tenant for _, tenant, _ in sums],
        "roots": [root for _, _, root in sums],
        "blocks": [blocks for blocks, _ in sums.values()],
        "bytes": [size_bytes for _, size_bytes in sums.values()],
    }


def _unpinned(conn: Connection, places: Iterable[Place]) -> None:
    """What is pinned counts while it is there only: autovacuum makes place in that generation."""
    if gone := sum(place.stored_bytes for place in places if place.generation == PINNED):
        count_written(conn, PINNED, -gone)


def _part(fields: Sequence[memoryview | None]) -> Part:
    place, index, part_count, codec_version, codec, digest, tokens, body = map(_there, fields)
    return Part(
        read_int(place),
        read_int(index),
        read_int(part_count),
        str(codec, "utf-8"),
        read_int(codec_version),
        bytes(digest),
        bytes(tokens),
        body,
    )


def _there(field: memoryview | None) -> memoryview:
    assert field is not None
    return field
