"""SQL of checkpoints: entered whole in one transaction, found, pinned, let go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from arc_halo.store.rows import Connection, as_bytes, as_uuid
from arc_halo.store.training_reading import SessionName
from arc_halo.types import JsonObject

# Two programs that save for one session wait for one another, and see what the other did.
LOCK_SESSION = """
SELECT lease FROM training_sessions WHERE id = %(session_id)s FOR NO KEY UPDATE
"""

KEEP_SETS = """
SELECT id, root, tensor_count, parameter_count, size_bytes
FROM weight_sets WHERE root = ANY(%(roots)s) ORDER BY id FOR KEY SHARE
"""

INSERT_CHECKPOINT = """
INSERT INTO model_checkpoints
    (id, session_id, step, epoch, checkpoint_type, weight_set_id, root, state_set_id,
     training_state, metrics, best_metric, best_mode, is_pinned, size_bytes)
VALUES (%(id)s, %(session_id)s, %(step)s, %(epoch)s, %(type)s, %(weight_set_id)s, %(root)s,
        %(state_set_id)s, %(training_state)s, %(metrics)s, %(best_metric)s, %(best_mode)s,
        %(is_pinned)s, %(size_bytes)s)
"""

INSERT_STATE = """
INSERT INTO optimizer_state (checkpoint_id, component, ordinal, path, tensor_id, value)
SELECT %(checkpoint_id)s, leaf.component, leaf.ordinal, leaf.path, member.tensor_id,
       leaf.value::jsonb
FROM unnest(%(components)s::text[], %(ordinals)s::int4[], %(paths)s::text[],
            %(tensors)s::text[], %(values)s::text[])
     AS leaf (component, ordinal, path, tensor, value)
LEFT JOIN weight_set_tensors AS member
       ON member.weight_set_id = %(state_set_id)s AND member.tensor_name = leaf.tensor
"""

# A session that went on from here needs what it went on from: the last before its first step.
CHECKPOINTS = """
SELECT point.id, point.session_id, point.step, point.epoch, point.checkpoint_type AS type,
       point.weight_set_id, point.root, point.state_set_id, point.training_state, point.metrics,
       point.is_best, point.best_metric, point.best_mode, point.is_pinned,
       EXISTS (
           SELECT FROM training_sessions AS child
           WHERE child.parent_id = point.session_id AND child.forked_at_step >= point.step
             AND NOT EXISTS (
                 SELECT FROM model_checkpoints AS later
                 WHERE later.session_id = point.session_id
                   AND later.checkpoint_type = point.checkpoint_type
                   AND later.step > point.step AND later.step <= child.forked_at_step)
       ) AS is_forked,
       point.kept_because, point.size_bytes, point.created_at
FROM model_checkpoints AS point
WHERE point.session_id = ANY(%(session_ids)s)
ORDER BY point.step, point.created_at, point.id
"""

IDS_BY_PREFIX = """
SELECT id FROM model_checkpoints WHERE id::text LIKE %(prefix)s || '%%' ORDER BY id LIMIT 3
"""

SESSION_OF = """
SELECT session_id FROM model_checkpoints WHERE id = %(id)s
"""

# A session's own first, then what it went on from, as far as that is its history.
LINEAGE = """
WITH RECURSIVE line AS (
    SELECT id, parent_id, forked_at_step, NULL::bigint AS until_step, 0 AS depth
    FROM training_sessions WHERE id = %(session_id)s
    UNION ALL
    SELECT parent.id, parent.parent_id, parent.forked_at_step,
           least(line.until_step, line.forked_at_step), line.depth + 1
    FROM line JOIN training_sessions AS parent ON parent.id = line.parent_id
    WHERE line.forked_at_step IS NOT NULL AND line.depth < 1000
)
SELECT id, until_step FROM line ORDER BY depth
"""

MODEL_ROOT = """
SELECT sets.root
FROM training_sessions AS session
JOIN models AS model ON model.id = session.model_id
JOIN weight_sets AS sets ON sets.id = model.weight_set_id
WHERE session.id = %(session_id)s
"""

ROOT_OF_SET = """
SELECT root FROM weight_sets WHERE id = %(weight_set_id)s
"""

STATE = """
SELECT component, path, value::text AS value,
       CASE WHEN tensor_id IS NOT NULL THEN component || path END AS tensor
FROM optimizer_state WHERE checkpoint_id = %(checkpoint_id)s ORDER BY component, ordinal
"""

# Named as a manifest names them: `eval/loss`, and `loss` alone of the scope `train`.
LOGGED = """
SELECT point.value
FROM training_series AS series
JOIN training_metrics AS point ON point.series_id = series.id AND point.step = %(step)s
WHERE series.session_id = %(session_id)s
  AND %(name)s IN (series.scope || '/' || series.metric_key,
                   CASE series.scope WHEN 'train' THEN series.metric_key END)
ORDER BY series.id LIMIT 1
"""

# What is logged only after a checkpoint was saved, such as an evaluation of it, counts too.
FILL_METRIC = """
UPDATE model_checkpoints AS checkpoint
SET metrics = checkpoint.metrics || jsonb_build_object(%(name)s::text, point.value)
FROM training_series AS series
JOIN training_metrics AS point ON point.series_id = series.id
WHERE checkpoint.session_id = %(session_id)s AND series.session_id = %(session_id)s
  AND point.step = checkpoint.step AND NOT jsonb_exists(checkpoint.metrics, %(name)s)
  AND %(name)s IN (series.scope || '/' || series.metric_key,
                   CASE series.scope WHEN 'train' THEN series.metric_key END)
"""

CLEAR_BEST = """
UPDATE model_checkpoints SET is_best = false
WHERE session_id = %(session_id)s AND is_best AND id IS DISTINCT FROM %(id)s
"""

SET_BEST = """
UPDATE model_checkpoints
SET is_best = true, best_metric = %(metric)s, best_mode = %(mode)s
WHERE id = %(id)s AND NOT is_best
"""

SET_PINNED = """
UPDATE model_checkpoints SET is_pinned = %(is_pinned)s, kept_because = %(kept_because)s
WHERE id = %(id)s
"""

SET_KEPT = """
UPDATE model_checkpoints AS point SET kept_because = kept.rules
FROM unnest(%(ids)s::uuid[], %(rules)s::text[]) AS kept (id, rules)
WHERE point.id = kept.id AND point.kept_because IS DISTINCT FROM kept.rules
"""

DELETE_CHECKPOINTS = """
DELETE FROM model_checkpoints WHERE id = ANY(%(ids)s)
"""

# What nothing but these checkpoints has; a base that others are deltas of stays with them.
OWN_BYTES = """
WITH gone AS MATERIALIZED (
    SELECT sets.id FROM weight_sets AS sets
    WHERE sets.id IN (SELECT weight_set_id FROM model_checkpoints WHERE id = ANY(%(ids)s)
                      UNION SELECT state_set_id FROM model_checkpoints WHERE id = ANY(%(ids)s))
      AND NOT EXISTS (SELECT FROM model_checkpoints AS r
                      WHERE sets.id IN (r.weight_set_id, r.state_set_id)
                        AND r.id <> ALL(%(ids)s))
      AND NOT EXISTS (SELECT FROM models AS r WHERE r.weight_set_id = sets.id)
      AND NOT EXISTS (SELECT FROM model_weight_history AS r WHERE r.weight_set_id = sets.id)
), own AS MATERIALIZED (
    SELECT DISTINCT data.chunk_digest AS digest
    FROM gone
    JOIN weight_set_tensors AS member ON member.weight_set_id = gone.id
    JOIN tensor_data AS data ON data.tensor_id = member.tensor_id
)
SELECT coalesce(sum(chunk.stored_bytes), 0)::bigint
FROM own JOIN chunk_bodies AS chunk ON chunk.digest = own.digest
WHERE NOT EXISTS (
        SELECT FROM tensor_data AS data
        JOIN weight_set_tensors AS member ON member.tensor_id = data.tensor_id
        WHERE data.chunk_digest = own.digest
          AND NOT EXISTS (SELECT FROM gone WHERE gone.id = member.weight_set_id))
  AND NOT EXISTS (
        SELECT FROM chunk_bodies AS delta
        WHERE delta.base_digest = own.digest
          AND NOT EXISTS (SELECT FROM own AS o WHERE o.digest = delta.digest))
"""

SESSIONS_WITH_CHECKPOINTS = """
SELECT session.id, session.session_name FROM training_sessions AS session
WHERE EXISTS (SELECT FROM model_checkpoints AS point WHERE point.session_id = session.id)
ORDER BY session.started_at, session.id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint as it is on record. `is_forked` says that another session went on from it."""

    id: UUID
    session_id: UUID
    step: int
    epoch: float | None
    type: Literal["full", "weights_only", "optimizer_only"]
    weight_set_id: int | None
    root: bytes | None
    state_set_id: int | None
    training_state: JsonObject
    metrics: JsonObject
    is_best: bool
    best_metric: str | None
    best_mode: Literal["min", "max"] | None
    is_pinned: bool
    is_forked: bool
    kept_because: str | None
    size_bytes: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCheckpoint:
    """A checkpoint to be entered; the sets are stored."""

    id: UUID
    session_id: UUID
    step: int
    epoch: float | None
    type: str
    weight_set_id: int | None
    root: bytes | None
    state_set_id: int | None
    training_state: JsonObject
    metrics: JsonObject
    best_metric: str | None
    best_mode: str | None
    is_pinned: bool
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRow:
    """A leaf of a state. `tensor` is what its tensor is called in the set of the state."""

    component: str
    path: str
    value: str | None
    tensor: str | None


def lock_session(conn: Connection, session_id: UUID) -> UUID | None:
    """Keep others from the session's checkpoints until the transaction ends; its lease."""
    row = conn.execute(LOCK_SESSION, {"session_id": session_id}).fetchone()
    return as_uuid(row[0]) if row else None


def keep_sets(conn: Connection, roots: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
    """(id, size_bytes) by root of those that are there, kept until the transaction ends."""
    rows = conn.execute(KEEP_SETS, {"roots": list(roots)}).fetchall()
    return {as_bytes(root): (int(str(id_)), int(str(size))) for id_, root, _, _, size in rows}


def insert(conn: Connection, new: NewCheckpoint, state: Sequence[StateRow]) -> None:
    """Enter a checkpoint with its state. Call it in the transaction that made sure of the sets."""
    conn.execute(
        INSERT_CHECKPOINT,
        {
            "id": new.id,
            "session_id": new.session_id,
            "step": new.step,
            "epoch": new.epoch,
            "type": new.type,
            "weight_set_id": new.weight_set_id,
            "root": new.root,
            "state_set_id": new.state_set_id,
            "training_state": Jsonb(new.training_state),
            "metrics": Jsonb(new.metrics),
            "best_metric": new.best_metric,
            "best_mode": new.best_mode,
            "is_pinned": new.is_pinned,
            "size_bytes": new.size_bytes,
        },
    )
    conn.execute(
        INSERT_STATE,
        {
            "checkpoint_id": new.id,
            "state_set_id": new.state_set_id,
            "components": [row.component for row in state],
            "ordinals": list(range(len(state))),
            "paths": [row.path for row in state],
            "tensors": [row.tensor for row in state],
            "values": [row.value for row in state],
        },
    )


def checkpoints(conn: Connection, session_ids: Sequence[UUID]) -> list[Checkpoint]:
    """The checkpoints of these sessions in the order of their steps."""
    with conn.cursor(row_factory=class_row(Checkpoint)) as cursor:
        return cursor.execute(CHECKPOINTS, {"session_ids": list(session_ids)}).fetchall()


def by_id(conn: Connection, checkpoint_id: UUID) -> Checkpoint | None:
    row = conn.execute(SESSION_OF, {"id": checkpoint_id}).fetchone()
    points = checkpoints(conn, [as_uuid(row[0])]) if row else []
    return next((point for point in points if point.id == checkpoint_id), None)


def ids_by_prefix(conn: Connection, prefix: str) -> list[UUID]:
    """The checkpoints whose id begins so, three at most."""
    return [as_uuid(row[0]) for row in conn.execute(IDS_BY_PREFIX, {"prefix": prefix})]


def lineage(conn: Connection, session_id: UUID) -> list[tuple[UUID, int | None]]:
    """The session and those it went on from, each with the last step that is its history too."""
    rows = conn.execute(LINEAGE, {"session_id": session_id}).fetchall()
    return [(as_uuid(id_), None if until is None else int(str(until))) for id_, until in rows]


def model_root(conn: Connection, session_id: UUID) -> bytes | None:
    """The root of the weights of the model that the session trains, where it is registered."""
    row = conn.execute(MODEL_ROOT, {"session_id": session_id}).fetchone()
    return as_bytes(row[0]) if row else None


def root_of_set(conn: Connection, weight_set_id: int) -> bytes | None:
    row = conn.execute(ROOT_OF_SET, {"weight_set_id": weight_set_id}).fetchone()
    return as_bytes(row[0]) if row else None


def state(conn: Connection, checkpoint_id: UUID) -> list[StateRow]:
    """The leaves of a checkpoint, component by component, each in the order of its state."""
    with conn.cursor(row_factory=class_row(StateRow)) as cursor:
        return cursor.execute(STATE, {"checkpoint_id": checkpoint_id}).fetchall()


def logged(conn: Connection, session_id: UUID, name: str, step: int) -> float | None:
    """What the session itself logged of a metric at a step."""
    fields = {"session_id": session_id, "name": name, "step": step}
    row = conn.execute(LOGGED, fields).fetchone()
    return None if row is None else float(str(row[0]))


def fill_metric(conn: Connection, session_id: UUID, name: str) -> bool:
    """Give the checkpoints that have no value of a metric what was logged of it at their steps;
    whether there was such a one."""
    done = conn.execute(FILL_METRIC, {"session_id": session_id, "name": name})
    return done.rowcount > 0


def set_best(
    conn: Connection, session_id: UUID, best: UUID | None, metric: str | None, mode: str | None
) -> None:
    """Have the session's best be this one, and no other."""
    conn.execute(CLEAR_BEST, {"session_id": session_id, "id": best})
    if best is not None:
        conn.execute(SET_BEST, {"id": best, "metric": metric, "mode": mode})


def set_pinned(
    conn: Connection, checkpoint_id: UUID, *, is_pinned: bool, kept_because: str | None
) -> None:
    fields = {"id": checkpoint_id, "is_pinned": is_pinned, "kept_because": kept_because}
    conn.execute(SET_PINNED, fields)


def set_kept(conn: Connection, kept: Sequence[tuple[UUID, str | None]]) -> None:
    """Write down what keeps each of these checkpoints."""
    parameters = {"ids": [id_ for id_, _ in kept], "rules": [rules for _, rules in kept]}
    conn.execute(SET_KEPT, parameters)


def delete(conn: Connection, ids: Sequence[UUID]) -> None:
    """Delete checkpoints with their state; what they alone held, collection takes."""
    conn.execute(DELETE_CHECKPOINTS, {"ids": list(ids)})


def own_bytes(conn: Connection, ids: Sequence[UUID]) -> int:
    """The stored bytes that nothing but these checkpoints needs."""
    row = conn.execute(OWN_BYTES, {"ids": list(ids)}).fetchone()
    assert row is not None
    return int(str(row[0]))


def sessions_with_checkpoints(conn: Connection) -> list[SessionName]:
    with conn.cursor(row_factory=class_row(SessionName)) as cursor:
        return cursor.execute(SESSIONS_WITH_CHECKPOINTS).fetchall()
