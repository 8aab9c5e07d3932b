"""SQL of weight sets and of the builds that fill them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row, scalar_row
from psycopg.types.json import Jsonb

from arc_halo.errors import WeightsError
from arc_halo.store.binary import int4_array, int8, int8_array, text_array
from arc_halo.store.prepared import Prepared
from arc_halo.store.rows import Connection, as_bytes, as_uuid
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

REOPEN_BUILD = """
UPDATE weight_builds SET heartbeat_at = clock_timestamp()
WHERE recipe_key = %(recipe_key)s
RETURNING id
"""

OPEN_BUILD = """
WITH sets AS (
    INSERT INTO weight_sets (completed_at) VALUES (NULL) RETURNING id
), opened AS (
    INSERT INTO weight_builds (project, purpose, recipe_key, recipe, status, weight_set_id)
    SELECT %(project)s, %(purpose)s, %(recipe_key)s, %(recipe)s, 'building', id FROM sets
    ON CONFLICT (recipe_key) DO NOTHING
    RETURNING id
)
SELECT opened.id, sets.id FROM sets LEFT JOIN opened ON true
"""

DELETE_UNFINISHED_SET = """
DELETE FROM weight_sets WHERE id = %(weight_set_id)s AND root IS NULL
"""

ADD_TENSORS = """
INSERT INTO weight_set_tensors (weight_set_id, ordinal, tensor_name, tensor_id)
SELECT %(weight_set_id)s::int8, ordinal, name, tensor_id
FROM unnest(%(names)s::text[], %(ordinals)s::int4[], %(tensor_ids)s::int8[])
     AS tensor (name, ordinal, tensor_id)
ORDER BY name
ON CONFLICT DO NOTHING
"""

BEAT = """
UPDATE weight_builds SET heartbeat_at = clock_timestamp()
WHERE id = %(build_id)s AND status = 'building'
"""

WANT_SETS = """
UPDATE weight_builds AS build SET heartbeat_at = clock_timestamp()
FROM weight_sets AS sets
WHERE sets.root = ANY(%(roots)s) AND build.weight_set_id = sets.id
  AND build.status = 'complete'
"""

CLOCK = """
SELECT clock_timestamp()
"""

KEEP_OPEN = """
SELECT weight_set_id FROM weight_builds
WHERE id = %(build_id)s AND status = 'building' FOR SHARE
"""

LOCK_BUILD = """
SELECT status, weight_set_id FROM weight_builds WHERE id = %(build_id)s FOR UPDATE
"""

FILLED = """
SELECT weight_set_id FROM weight_builds WHERE id = %(build_id)s
"""

SET_BY_ID = """
SELECT id, root, tensor_count, parameter_count, size_bytes
FROM weight_sets WHERE id = %(weight_set_id)s
"""

BUILT_TENSORS = """
SELECT member.tensor_name, tensor.digest, member.ordinal
FROM weight_builds AS build
JOIN weight_set_tensors AS member USING (weight_set_id)
JOIN tensor_metadata AS tensor ON tensor.id = member.tensor_id
WHERE build.id = %(build_id)s
"""

LOCK_ROOT = """
SELECT pg_advisory_xact_lock(hashtextextended('arc-halo/root/' || encode(%(root)s, 'hex'), 0))
"""

COMPLETE_SET = """
UPDATE weight_sets AS sets
SET root = %(root)s, tensor_count = made.tensors, parameter_count = made.elements,
    size_bytes = made.bytes, completed_at = now()
FROM (SELECT count(*) AS tensors, coalesce(sum(tensor.element_count), 0) AS elements,
             coalesce(sum(tensor.size_bytes), 0) AS bytes
      FROM weight_set_tensors AS member
      JOIN tensor_metadata AS tensor ON tensor.id = member.tensor_id
      WHERE member.weight_set_id = %(weight_set_id)s) AS made
WHERE sets.id = %(weight_set_id)s
RETURNING sets.id, sets.root, sets.tensor_count, sets.parameter_count, sets.size_bytes
"""

CLOSE_BUILD = """
UPDATE weight_builds
SET status = 'complete', weight_set_id = %(weight_set_id)s, finished_at = now(),
    heartbeat_at = now()
WHERE id = %(build_id)s
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


def built_tensors(conn: Connection, build_id: UUID) -> list[tuple[str, bytes, int]]:
    """(name, digest, ordinal) of the tensors that a build has finished, in any order."""
    rows = conn.execute(BUILT_TENSORS, {"build_id": build_id}, binary=True).fetchall()
    return [(str(name), as_bytes(digest), int(str(place))) for name, digest, place in rows]


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
    """The build of this recipe: a new one with a set to fill, or the one left unfinished."""
    parameters = {
        "project": project,
        "purpose": purpose,
        "recipe_key": recipe_key,
        "recipe": Jsonb(recipe),
    }
    while True:
        if (known := conn.execute(REOPEN_BUILD, {"recipe_key": recipe_key}).fetchone()) is not None:
            return as_uuid(known[0])
        new = conn.execute(OPEN_BUILD, parameters).fetchone()
        assert new is not None
        if new[0] is not None:
            return as_uuid(new[0])
        # Another program has opened it in between.
        conn.execute(DELETE_UNFINISHED_SET, {"weight_set_id": new[1]})


def add_tensors(conn: Connection, build_id: UUID, tensors: Sequence[tuple[str, int, int]]) -> None:
    """Enter finished tensors, each a name, an ordinal and an id, in the set that a build fills.

    The build's row is locked before its tensors' rows, here as everywhere, so that two programs
    at one build wait for one another instead of deadlocking. A build that another program has
    finished meanwhile takes no more, and of two tensors with one name or one place in the order
    the first stays.
    """
    is_open = conn.execute(KEEP_OPEN, {"build_id": build_id}).fetchone()
    if is_open is not None:
        names, ordinals, ids = zip(*tensors, strict=True)
        arrays = [text_array(names), int4_array(ordinals), int8_array(ids)]
        _ADD_TENSORS.once(conn, [int8(int(str(is_open[0]))), *arrays])


def beat(conn: Connection, build_id: UUID) -> None:
    """Say that somebody works at the build: collection leaves alone what it may count on."""
    conn.execute(BEAT, {"build_id": build_id})


def want(conn: Connection, roots: Sequence[bytes]) -> None:
    """Say that these weights are needed: collection leaves them as long as a build begun before
    this is alive."""
    conn.execute(WANT_SETS, {"roots": list(roots)})


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
        return cursor.execute(SET_BY_ID, {"weight_set_id": locked[1]}).fetchone()


def complete(conn: Connection, build_id: UUID, root: bytes) -> WeightSet:
    """Name the set of a locked build, whose tensors are all there, by its `root`.

    A set of that root may exist already, from other sources with the same weights: the build
    then comes to that one, and its own goes.
    """
    conn.execute(LOCK_ROOT, {"root": root})
    filled = {"weight_set_id": _filled(conn, build_id)}
    with conn.cursor(row_factory=class_row(WeightSet)) as cursor:
        known = cursor.execute(KEEP_SET, {"root": root}).fetchone()
        made = known or cursor.execute(COMPLETE_SET, {"root": root, **filled}).fetchone()
    assert made is not None
    conn.execute(CLOSE_BUILD, {"weight_set_id": made.id, "build_id": build_id})
    if known is not None:
        conn.execute(DELETE_UNFINISHED_SET, filled)
    return made


def drop(conn: Connection, build_id: UUID) -> None:
    """Forget a locked build; the tensors it made stay until they are collected."""
    # The build goes with the set that it fills.
    conn.execute(DELETE_UNFINISHED_SET, {"weight_set_id": _filled(conn, build_id)})


def as_step(conn: Connection) -> None:
    """Make this transaction a step of a build: it need not be on disk when it commits.

    Completing the build is a later, synchronous commit, and WAL order makes everything before it
    durable with it. A crash costs steps, never truth. The server ends a step that its client has
    left alone for five minutes.
    """
    conn.execute(STEP)


def _filled(conn: Connection, build_id: UUID) -> int:
    with conn.cursor(row_factory=scalar_row) as cursor:
        return int(str(cursor.execute(FILLED, {"build_id": build_id}).fetchone()))
