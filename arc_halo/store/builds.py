"""SQL of weight sets and of the builds that fill them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row, scalar_row
from psycopg.types.json import Jsonb

from arc_halo.errors import WeightsError
from arc_halo.store.binary import int4_array, int8_array, text_array
from arc_halo.store.prepared import Prepared
from arc_halo.store.rows import Connection, as_bytes
from arc_halo.types import JsonObject

SETS_BY_ROOT = """
SELECT id, root, tensor_count, parameter_count, size_bytes
FROM weight_sets WHERE root = ANY(%(roots)s)
"""

SET_TENSORS = """
SELECT member.tensor_name AS name, member.ordinal, tensor.id, tensor.digest, tensor.dtype,
       tensor.shape, tensor.size_bytes, tensor.chunk_bytes, tensor.chunk_count
FROM weight_set_tensors AS member
JOIN tensor_metadata AS tensor ON tensor.id = member.tensor_id
WHERE member.weight_set_id = %(weight_set_id)s
ORDER BY member.ordinal
"""

# The heartbeat says that the weights are wanted again: collection leaves them alone.
REUSE = """
UPDATE weight_builds AS build SET heartbeat_at = clock_timestamp()
FROM weight_sets AS sets
WHERE build.recipe_key = %(recipe_key)s AND build.status = 'complete'
  AND sets.id = build.weight_set_id
RETURNING sets.id, sets.root, sets.tensor_count, sets.parameter_count, sets.size_bytes
"""

KEEP_SET = """
SELECT id, root, tensor_count, parameter_count, size_bytes
FROM weight_sets WHERE root = %(root)s FOR KEY SHARE
"""

BUILDS_BY_KEY = """
SELECT build.recipe_key, sets.root
FROM weight_builds AS build
JOIN weight_sets AS sets ON sets.id = build.weight_set_id
WHERE build.recipe_key = ANY(%(keys)s) AND build.status = 'complete'
"""

OPEN_BUILD = """
INSERT INTO weight_builds (project, purpose, recipe_key, recipe, status)
VALUES (%(project)s, %(purpose)s, %(recipe_key)s, %(recipe)s, 'building')
ON CONFLICT (recipe_key) DO UPDATE SET heartbeat_at = clock_timestamp()
RETURNING id
"""

ADD_TENSORS = """
INSERT INTO weight_build_tensors (build_id, tensor_name, ordinal, tensor_id)
SELECT %(build_id)s::uuid, name, ordinal, tensor_id
FROM unnest(%(names)s::text[], %(ordinals)s::int4[], %(tensor_ids)s::int8[])
     AS tensor (name, ordinal, tensor_id)
ORDER BY name
ON CONFLICT (build_id, tensor_name) DO UPDATE
SET tensor_id = excluded.tensor_id, ordinal = excluded.ordinal
"""

BEAT = """
UPDATE weight_builds SET heartbeat_at = clock_timestamp()
WHERE id = %(build_id)s AND status = 'building'
"""

CLOCK = """
SELECT clock_timestamp()
"""

KEEP_OPEN = """
SELECT status FROM weight_builds WHERE id = %(build_id)s AND status = 'building' FOR SHARE
"""

LOCK_BUILD = """
SELECT status FROM weight_builds WHERE id = %(build_id)s FOR UPDATE
"""

SET_OF_BUILD = """
SELECT sets.id, sets.root, sets.tensor_count, sets.parameter_count, sets.size_bytes
FROM weight_builds AS build JOIN weight_sets AS sets ON sets.id = build.weight_set_id
WHERE build.id = %(build_id)s
"""

BUILT_DIGESTS = """
SELECT built.tensor_name, tensor.digest
FROM weight_build_tensors AS built
JOIN tensor_metadata AS tensor ON tensor.id = built.tensor_id
WHERE built.build_id = %(build_id)s
"""

INSERT_SET = """
INSERT INTO weight_sets (root, tensor_count, parameter_count, size_bytes)
SELECT %(root)s, count(*), coalesce(sum(tensor.element_count), 0),
       coalesce(sum(tensor.size_bytes), 0)
FROM weight_build_tensors AS built
JOIN tensor_metadata AS tensor ON tensor.id = built.tensor_id
WHERE built.build_id = %(build_id)s
ON CONFLICT (root) DO NOTHING
RETURNING id
"""

INSERT_SET_TENSORS = """
INSERT INTO weight_set_tensors (weight_set_id, ordinal, tensor_name, tensor_id)
SELECT %(weight_set_id)s, ordinal, tensor_name, tensor_id
FROM weight_build_tensors WHERE build_id = %(build_id)s
"""

CLOSE_BUILD = """
UPDATE weight_builds
SET status = 'complete', weight_set_id = %(weight_set_id)s, finished_at = now(),
    heartbeat_at = now()
WHERE id = %(build_id)s
"""

DROP_BUILD_TENSORS = """
DELETE FROM weight_build_tensors WHERE build_id = %(build_id)s
"""

DROP = """
DELETE FROM weight_builds WHERE id = %(build_id)s
"""

# A client that is lost without a word would else keep its locks until TCP gives up, for hours.
STEP = """
SET LOCAL synchronous_commit = off;
SET LOCAL idle_in_transaction_session_timeout = '5min'
"""


_ADD_TENSORS = Prepared(ADD_TENSORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSet:
    """An immutable, complete set of tensors, named by its root."""

    id: int
    root: bytes
    tensor_count: int
    parameter_count: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTensor:
    """A tensor of a set or build."""

    name: str
    ordinal: int
    id: int
    digest: bytes
    dtype: str
    shape: list[int]
    size_bytes: int
    chunk_bytes: int
    chunk_count: int


class BuildGoneError(WeightsError):
    """The build was closed and let go, or given up, by another program: it can be begun anew."""


def sets_by_root(conn: Connection, roots: Sequence[bytes]) -> dict[bytes, WeightSet]:
    """The complete sets among `roots`."""
    with conn.cursor(row_factory=class_row(WeightSet)) as cursor:
        found = cursor.execute(SETS_BY_ROOT, {"roots": list(roots)}).fetchall()
    return {bytes(item.root): item for item in found}


def set_tensors(conn: Connection, weight_set_id: int) -> list[NamedTensor]:
    """The tensors of a set, in the order of their file."""
    with conn.cursor(row_factory=class_row(NamedTensor)) as cursor:
        return cursor.execute(SET_TENSORS, {"weight_set_id": weight_set_id}).fetchall()


def built_digests(conn: Connection, build_id: UUID) -> list[tuple[str, bytes]]:
    """(name, digest) of the tensors that a build has finished, in any order."""
    rows = conn.execute(BUILT_DIGESTS, {"build_id": build_id}, binary=True).fetchall()
    return [(str(name), as_bytes(digest)) for name, digest in rows]


def reuse(conn: Connection, recipe_key: bytes) -> WeightSet | None:
    """What a finished build of this recipe came to, kept from collection from now on."""
    with conn.cursor(row_factory=class_row(WeightSet)) as cursor:
        return cursor.execute(REUSE, {"recipe_key": recipe_key}).fetchone()


def roots_by_key(conn: Connection, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    """The root that each finished build among `keys` came to."""
    rows = conn.execute(BUILDS_BY_KEY, {"keys": list(keys)}, binary=True).fetchall()
    return {as_bytes(key): as_bytes(root) for key, root in rows}


def open_build(
    conn: Connection, *, project: str | None, purpose: str, recipe_key: bytes, recipe: JsonObject
) -> UUID:
    """The build of this recipe: a new one, or the one that was left unfinished."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        found = cursor.execute(
            OPEN_BUILD,
            {
                "project": project,
                "purpose": purpose,
                "recipe_key": recipe_key,
                "recipe": Jsonb(recipe),
            },
        ).fetchone()
    assert isinstance(found, UUID)
    return found


def add_tensors(conn: Connection, build_id: UUID, tensors: Sequence[tuple[str, int, int]]) -> None:
    """Enter finished tensors, each a name, an ordinal and an id, in their build.

    The build's row is locked before its tensors' rows, here as everywhere, so that two programs
    at one build wait for one another instead of deadlocking. A build that another program has
    finished meanwhile takes no more.
    """
    if conn.execute(KEEP_OPEN, {"build_id": build_id}).fetchone() is not None:
        names, ordinals, ids = zip(*tensors, strict=True)
        arrays = [text_array(names), int4_array(ordinals), int8_array(ids)]
        _ADD_TENSORS.once(conn, [build_id.bytes, *arrays])


def beat(conn: Connection, build_id: UUID) -> None:
    """Say that somebody works at the build: collection leaves alone what it may count on."""
    conn.execute(BEAT, {"build_id": build_id})


def clock(conn: Connection) -> datetime:
    """The server's time now."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        found = cursor.execute(CLOCK).fetchone()
    assert isinstance(found, datetime)
    return found


def lock(conn: Connection, build_id: UUID) -> WeightSet | None:
    """Keep other programs from the build until the transaction ends; its set if it has one.

    Raises `BuildGoneError` for a build that another program gave up.
    """
    locked = conn.execute(LOCK_BUILD, {"build_id": build_id}).fetchone()
    if locked is None:
        raise BuildGoneError("another program gave this build up", hint="run the command again")
    if locked[0] != "complete":
        return None
    with conn.cursor(row_factory=class_row(WeightSet)) as cursor:
        return cursor.execute(SET_OF_BUILD, {"build_id": build_id}).fetchone()


def complete(conn: Connection, build_id: UUID, root: bytes) -> WeightSet:
    """Turn a locked build whose tensors are all there into the set named `root`.

    The set may exist already, from other sources with the same weights; it is then shared.
    """
    found = None
    while found is None:
        with conn.cursor(row_factory=scalar_row) as cursor:
            set_id = cursor.execute(INSERT_SET, {"root": root, "build_id": build_id}).fetchone()
        if set_id is not None:
            conn.execute(INSERT_SET_TENSORS, {"weight_set_id": set_id, "build_id": build_id})
        # One that was there may be collected between the two statements: then once more.
        with conn.cursor(row_factory=class_row(WeightSet)) as rows:
            found = rows.execute(KEEP_SET, {"root": root}).fetchone()
    conn.execute(CLOSE_BUILD, {"weight_set_id": found.id, "build_id": build_id})
    conn.execute(DROP_BUILD_TENSORS, {"build_id": build_id})
    return found


def drop(conn: Connection, build_id: UUID) -> None:
    """Forget a build; the tensors it made stay until they are collected."""
    conn.execute(DROP, {"build_id": build_id})


def as_step(conn: Connection) -> None:
    """Make this transaction a step of a build: it need not be on disk when it commits.

    Completing the build is a later, synchronous commit, and WAL order makes everything before it
    durable with it. A crash costs steps, never truth. The server ends a step that its client has
    left alone for five minutes.
    """
    conn.execute(STEP)
