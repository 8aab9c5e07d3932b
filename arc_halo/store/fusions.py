"""SQL of merges at work: the tasks of a build, claimed by locking them, and what they came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from psycopg.rows import class_row, scalar_row
from psycopg.types.json import Jsonb

from arc_halo.store.builds import BuildGoneError
from arc_halo.store.rows import Connection, as_bytes
from arc_halo.types import JsonObject

ENTER_RECIPES = """
INSERT INTO fused_tensors (tensor_key, recipe)
SELECT decode(item.key, 'hex'), item.recipe
FROM jsonb_to_recordset(%(items)s) AS item (key text, recipe jsonb)
ORDER BY item.key
ON CONFLICT (tensor_key) DO NOTHING
"""

# The lock keeps recipes from collection until tasks refer to them.
KEEP_RECIPES = """
SELECT tensor_key FROM fused_tensors WHERE tensor_key = ANY(%(keys)s)
ORDER BY tensor_key FOR KEY SHARE
"""

ENTER_INPUTS = """
INSERT INTO fused_tensor_inputs (tensor_key, ordinal, is_base, weight, tensor_digest)
SELECT decode(item.key, 'hex'), item.ordinal, item.is_base, item.weight,
       decode(item.tensor, 'hex')
FROM jsonb_to_recordset(%(items)s) AS item (
    key text, ordinal int, is_base boolean, weight double precision, tensor text)
ORDER BY item.key, item.ordinal
ON CONFLICT DO NOTHING
"""

ENTER_TASKS = """
INSERT INTO fusion_tasks (build_id, ordinal, tensor_name, tensor_key, size_bytes, labels)
SELECT %(build_id)s, item.ordinal, item.name, decode(item.key, 'hex'), item.size_bytes, item.labels
FROM jsonb_to_recordset(%(items)s) AS item (
    ordinal int, name text, key text, size_bytes bigint, labels jsonb)
ON CONFLICT (build_id, ordinal) DO NOTHING
"""

# Builds that were collected meanwhile are begun anew by whoever fills them.
KEEP_BUILD = """
SELECT FROM weight_builds WHERE id = %(build_id)s AND status = 'building' FOR SHARE
"""

RETRY = """
UPDATE fusion_tasks SET status = 'todo', error = NULL, finished_at = NULL, worker = NULL
WHERE build_id = %(build_id)s AND status = 'failed'
"""

# The lock keeps tensors that are there from collection until the set refers to them.
REUSE = """
WITH there AS (
    SELECT task.ordinal, task.tensor_name, tensor.id
    FROM fusion_tasks AS task
    JOIN fused_tensors AS fused ON fused.tensor_key = task.tensor_key
    JOIN tensor_metadata AS tensor ON tensor.digest = fused.tensor_digest
    WHERE task.build_id = %(build_id)s AND task.status = 'todo'
    ORDER BY tensor.digest
    FOR KEY SHARE OF tensor FOR UPDATE OF task SKIP LOCKED
), taken AS (
    SELECT task.ordinal, task.tensor_name, tensor.id
    FROM jsonb_to_recordset(%(taken)s) AS item (ordinal int, digest text)
    JOIN fusion_tasks AS task ON task.build_id = %(build_id)s AND task.ordinal = item.ordinal
    JOIN tensor_metadata AS tensor ON tensor.digest = decode(item.digest, 'hex')
    WHERE task.status = 'todo'
    ORDER BY tensor.digest
    FOR KEY SHARE OF tensor FOR UPDATE OF task SKIP LOCKED
), found AS (
    SELECT * FROM there UNION ALL SELECT * FROM taken
), entered AS (
    INSERT INTO weight_set_tensors (weight_set_id, ordinal, tensor_name, tensor_id)
    SELECT build.weight_set_id, found.ordinal, found.tensor_name, found.id
    FROM found JOIN weight_builds AS build ON build.id = %(build_id)s
    WHERE build.status = 'building'
    ORDER BY found.tensor_name
    ON CONFLICT DO NOTHING
)
UPDATE fusion_tasks AS task
SET status = 'done', is_reused = true, finished_at = clock_timestamp()
FROM found
WHERE task.build_id = %(build_id)s AND task.ordinal = found.ordinal AND task.status = 'todo'
RETURNING task.size_bytes
"""

# A worker that is lost gives its claim up at once where the server sees its socket close, and
# within seconds where a network lost it without a word.
CLAIM_SETTINGS = """
SET LOCAL synchronous_commit = off;
SET LOCAL tcp_keepalives_idle = 3;
SET LOCAL tcp_keepalives_interval = 2;
SET LOCAL tcp_keepalives_count = 3;
SET LOCAL tcp_user_timeout = 10000;
SET LOCAL idle_in_transaction_session_timeout = '1h'
"""

CLAIM = """
SELECT task.ordinal, task.tensor_name AS name, task.tensor_key AS key, task.size_bytes,
       task.labels
FROM fusion_tasks AS task
WHERE task.build_id = %(build_id)s AND task.status = 'todo'
  AND NOT EXISTS (SELECT FROM fusion_tasks AS other
                  WHERE other.build_id = %(build_id)s AND other.status = 'failed')
ORDER BY task.size_bytes DESC, task.ordinal
LIMIT 1
FOR UPDATE OF task SKIP LOCKED
"""

# Another merge may be at the same tensor: then its result is waited for, and taken. The lock is
# one beside which tasks can still be entered.
LOCK_RECIPE = """
SELECT recipe FROM fused_tensors WHERE tensor_key = %(key)s FOR NO KEY UPDATE
"""

MADE = """
SELECT tensor.id FROM fused_tensors AS fused
JOIN tensor_metadata AS tensor ON tensor.digest = fused.tensor_digest
WHERE fused.tensor_key = %(key)s
FOR KEY SHARE OF tensor
"""

FINISH = """
UPDATE fusion_tasks
SET status = 'done', is_reused = %(is_reused)s, worker = %(worker)s,
    finished_at = clock_timestamp()
WHERE build_id = %(build_id)s AND ordinal = %(ordinal)s
"""

RECORD = """
UPDATE fused_tensors
SET tensor_digest = %(digest)s, facts = %(facts)s, cpu_seconds = %(cpu_seconds)s,
    made_at = clock_timestamp()
WHERE tensor_key = %(key)s
"""

FAIL = """
UPDATE fusion_tasks
SET status = 'failed', error = %(error)s, worker = %(worker)s, finished_at = clock_timestamp()
WHERE build_id = %(build_id)s AND ordinal = %(ordinal)s AND status = 'todo'
"""

PROGRESS = """
SELECT count(*) FILTER (WHERE status = 'todo') AS todo,
       count(*) FILTER (WHERE status = 'done') AS done,
       coalesce(sum(size_bytes) FILTER (WHERE status = 'done'), 0)::bigint AS done_bytes,
       count(*) FILTER (WHERE status = 'failed') AS failed
FROM fusion_tasks WHERE build_id = %(build_id)s
"""

FAILURES = """
SELECT tensor_name AS name, error FROM fusion_tasks
WHERE build_id = %(build_id)s AND status = 'failed'
ORDER BY ordinal
"""

IS_ENTERED = """
SELECT EXISTS (SELECT FROM fusion_tasks WHERE build_id = %(build_id)s)
"""

# Held by whoever drives a build, so that workers of other processes know that somebody still
# wants what they do. It dies with the driver, however that goes.
HOLD_DRIVER = """
SELECT pg_advisory_xact_lock_shared(
    hashtextextended('arc-halo/driver/' || %(build_id)s::text, 0))
"""

HAS_NO_DRIVER = """
SELECT pg_try_advisory_xact_lock(hashtextextended('arc-halo/driver/' || %(build_id)s::text, 0))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """A tensor to be made. Without a `recipe` the tensor `taken` is taken as it is."""

    ordinal: int
    name: str
    size_bytes: int
    labels: list[JsonObject]
    key: bytes | None = None
    recipe: JsonObject | None = None
    taken: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A task that is this transaction's."""

    ordinal: int
    name: str
    key: bytes | None
    size_bytes: int
    labels: list[JsonObject]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    todo: int
    done: int
    done_bytes: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    name: str
    error: JsonObject


def enter(conn: Connection, build_id: UUID, tasks: Sequence[NewTask]) -> list[int]:
    """Enter the tasks of a build, and finish those for which nothing is to be computed.

    The sizes of those, in bytes. Tasks that are there already stay as they are, but what failed
    is tried again.
    """
    if conn.execute(KEEP_BUILD, {"build_id": build_id}).fetchone() is None:
        raise BuildGoneError("another program has closed this build", hint="run the command again")
    conn.execute(RETRY, {"build_id": build_id})
    computed = {task.key: task for task in tasks if task.key is not None}
    recipes = [{"key": k.hex(), "recipe": task.recipe} for k, task in computed.items()]
    _enter_recipes(conn, recipes)
    inputs = [each for key, task in computed.items() for each in _inputs(key, task.recipe or {})]
    conn.execute(ENTER_INPUTS, {"items": Jsonb(inputs)})
    items = [
        {
            "ordinal": task.ordinal,
            "name": task.name,
            "key": task.key.hex() if task.key else None,
            "size_bytes": task.size_bytes,
            "labels": task.labels,
        }
        for task in tasks
    ]
    conn.execute(ENTER_TASKS, {"build_id": build_id, "items": Jsonb(items)})
    taken = [
        {"ordinal": task.ordinal, "digest": task.taken.hex()}
        for task in tasks
        if task.taken is not None
    ]
    rows = conn.execute(REUSE, {"build_id": build_id, "taken": Jsonb(taken)}).fetchall()
    return [int(str(row[0])) for row in rows]


def claim(conn: Connection, build_id: UUID) -> Claim | None:
    """The next task that nobody works at, locked until the transaction ends.

    None if there is none, or one has failed. The lock dies with the connection, so that no task
    is ever lost.
    """
    conn.execute(CLAIM_SETTINGS)
    with conn.cursor(row_factory=class_row(Claim)) as cursor:
        return cursor.execute(CLAIM, {"build_id": build_id}).fetchone()


def lock_recipe(conn: Connection, key: bytes) -> tuple[JsonObject, int | None]:
    """A tensor's recipe, nobody else's until the transaction ends; its id if it is made by now."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        recipe = cursor.execute(LOCK_RECIPE, {"key": key}).fetchone()
        # Asked anew: while the lock was waited for, somebody may have made it.
        tensor_id = cursor.execute(MADE, {"key": key}).fetchone()
    assert isinstance(recipe, dict)
    return recipe, None if tensor_id is None else int(str(tensor_id))


def has_free(conn: Connection, build_id: UUID) -> bool:
    """Whether there is a task that could be claimed now."""
    with conn.transaction(force_rollback=True):
        return claim(conn, build_id) is not None


def is_entered(conn: Connection, build_id: UUID) -> bool:
    """Whether this database has the tasks of the build."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        return bool(cursor.execute(IS_ENTERED, {"build_id": build_id}).fetchone())


def hold_driver(conn: Connection, build_id: UUID) -> None:
    """Say until the transaction ends that the build is being driven."""
    conn.execute(HOLD_DRIVER, {"build_id": build_id})


def has_driver(conn: Connection, build_id: UUID) -> bool:
    """Whether somebody drives the build; ask it in a transaction."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        return not cursor.execute(HAS_NO_DRIVER, {"build_id": build_id}).fetchone()


def finish(conn: Connection, build_id: UUID, ordinal: int, *, worker: str, is_reused: bool) -> None:
    """Mark a claimed task as done."""
    conn.execute(
        FINISH,
        {"build_id": build_id, "ordinal": ordinal, "worker": worker, "is_reused": is_reused},
    )


def record(
    conn: Connection, key: bytes, digest: bytes, facts: JsonObject, cpu_seconds: float
) -> None:
    """Write down what a key's recipe came to."""
    conn.execute(
        RECORD,
        {"key": key, "digest": digest, "facts": Jsonb(facts), "cpu_seconds": cpu_seconds},
    )


def fail(conn: Connection, build_id: UUID, ordinal: int, error: JsonObject, *, worker: str) -> None:
    """Mark a task as one that cannot be done, unless another worker has done it."""
    storable = {
        name: _storable(value) if isinstance(value, str) else value for name, value in error.items()
    }
    conn.execute(
        FAIL,
        {"build_id": build_id, "ordinal": ordinal, "error": Jsonb(storable), "worker": worker},
    )


def progress(conn: Connection, build_id: UUID) -> Progress:
    with conn.cursor(row_factory=class_row(Progress)) as cursor:
        found = cursor.execute(PROGRESS, {"build_id": build_id}).fetchone()
    assert found is not None
    return found


def failures(conn: Connection, build_id: UUID) -> list[Failure]:
    with conn.cursor(row_factory=class_row(Failure)) as cursor:
        return cursor.execute(FAILURES, {"build_id": build_id}).fetchall()


def _enter_recipes(conn: Connection, recipes: Sequence[JsonObject]) -> None:
    """Have the recipes there until the transaction ends."""
    missing = {bytes.fromhex(each["key"]): each for each in recipes}
    while missing:
        conn.execute(ENTER_RECIPES, {"items": Jsonb(list(missing.values()))})
        rows = conn.execute(KEEP_RECIPES, {"keys": list(missing)}, binary=True).fetchall()
        # One that was there may be collected between the two statements: then once more.
        for row in rows:
            del missing[as_bytes(row[0])]


def _storable(text: str) -> str:
    """The text without what PostgreSQL has no characters for."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _inputs(key: bytes, recipe: JsonObject) -> list[JsonObject]:
    listed = [(each, False) for each in recipe["members"]]
    if recipe["base"]:
        listed.append((recipe["base"], True))
    added = [
        (update[part], False)
        for each, _ in listed
        for update in each.get("updates", ())
        for part in ("a", "b")
    ]
    added += [(each, False) for each in _fillers([each for each, _ in listed])]
    weights = [*recipe["weights"], *([None] * (len(added) + 1))]
    listed += added
    return [
        {
            "key": key.hex(),
            "ordinal": ordinal,
            "is_base": is_base,
            "weight": None if is_base else weights[ordinal],
            "tensor": each["tensor"],
        }
        for ordinal, (each, is_base) in enumerate(listed)
    ]


def _fillers(inputs: Sequence[JsonObject]) -> list[JsonObject]:
    """What gives rows to the inputs and is none of them."""
    given = [source for each in inputs for source in each.get("rows", {}).get("sources", ())]
    known = {each["tensor"] for each in inputs}
    return list({each["tensor"]: each for each in given if each["tensor"] not in known}.values())
