"""SQL of what reactors did: each run with its members' answers, and what they remember."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg.rows import class_row, dict_row
from psycopg.types.json import Json, Jsonb

from arc_halo.store.rows import Connection, as_uuid
from arc_halo.types import JsonObject

# By name: the reactor may have been written anew since it was opened, and keeps its id then.
BEGIN = """
INSERT INTO fusion_operations (reactor_id, reactor_name, operation_type, status, strategy_name,
                               strategy_version, params, input, input_count, tenant,
                               started_at, expires_at)
SELECT reactor.id, %(reactor)s, %(type)s, 'processing', %(strategy)s, %(strategy_version)s,
       %(params)s, %(input)s, %(input_count)s, %(tenant)s, clock_timestamp(),
       clock_timestamp() + %(ttl)s
FROM (VALUES (1)) AS one
LEFT JOIN cognitive_fusion_reactors AS reactor ON reactor.reactor_name = %(reactor)s
RETURNING id
"""

FINISH = """
WITH answered AS (
    INSERT INTO fusion_operation_inputs (operation_id, ordinal, model_name, model_version, root,
                                         role, weight, status, answered_count, execution_ms, cost,
                                         output, error)
    SELECT %(id)s, item.ordinal, split_part(item.model, '@', 1), split_part(item.model, '@', 2),
           decode(item.root, 'hex'), item.role, item.weight, item.status, item.answered_count,
           item.execution_ms, item.cost, item.output, item.error
    FROM json_to_recordset(%(members)s) AS item (
        ordinal int, model text, root text, role text, weight double precision, status text,
        answered_count int, execution_ms double precision, cost double precision, output json,
        error text)
), measured AS (
    INSERT INTO reactor_metrics (reactor_id, operation_id, metric, value, sample_count)
    SELECT operation.reactor_id, operation.id, item.metric, item.value, operation.input_count
    FROM jsonb_to_recordset(%(metrics)s) AS item (metric text, value double precision)
    JOIN fusion_operations AS operation ON operation.id = %(id)s
    WHERE operation.reactor_id IS NOT NULL AND operation.input_count > 0
)
UPDATE fusion_operations
SET status = %(status)s, output = %(output)s,
    output_set_id = (SELECT id FROM weight_sets WHERE root = %(output_root)s),
    error = %(error)s, cost = %(cost)s,
    execution_ms = %(execution_ms)s, finished_at = clock_timestamp()
WHERE id = %(id)s AND status = 'processing'
"""

FORGET_EXPIRED = """
WITH expired AS (
    UPDATE fusion_operations
    SET input = NULL, output = NULL, output_set_id = NULL,
        error = CASE WHEN error IS NOT NULL THEN 'no longer kept' END
    WHERE expires_at < now() AND (input IS NOT NULL OR output IS NOT NULL)
    RETURNING id
), members AS (
    UPDATE fusion_operation_inputs AS asked SET output = NULL,
        error = CASE WHEN asked.error IS NOT NULL THEN 'no longer kept' END
    FROM expired WHERE asked.operation_id = expired.id
)
SELECT count(*) FROM expired
"""

OPERATION = """
SELECT id, reactor_name AS reactor, operation_type AS type, status, strategy_name AS strategy,
       input, output, output_set_id, error, input_count, tenant, execution_ms, cost, created_at,
       finished_at,
       expires_at
FROM fusion_operations
WHERE id = %(id)s
"""

MEMBERS = """
SELECT model_name || '@' || model_version AS model, role, weight, status, answered_count,
       execution_ms, cost, output, error
FROM fusion_operation_inputs WHERE operation_id = %(id)s ORDER BY ordinal
"""

TRENDS = """
SELECT metric, hour, measurements, samples, mean, median, p95
FROM v_reactor_trends
WHERE reactor_name = %(reactor)s AND hour > now() - %(span)s::interval
ORDER BY metric, hour
"""

STATE_GET = """
SELECT state.state_value
FROM cognitive_state AS state
JOIN cognitive_fusion_reactors AS reactor ON reactor.id = state.reactor_id
WHERE reactor.reactor_name = %(reactor)s AND state.state_type = %(kind)s
  AND state.state_key = %(key)s AND (state.expires_at IS NULL OR state.expires_at > now())
"""

STATE_LIST = """
SELECT state.state_key, state.state_value
FROM cognitive_state AS state
JOIN cognitive_fusion_reactors AS reactor ON reactor.id = state.reactor_id
WHERE reactor.reactor_name = %(reactor)s AND state.state_type = %(kind)s
  AND (state.expires_at IS NULL OR state.expires_at > now())
ORDER BY state.priority DESC, state.updated_at DESC, state.state_key
"""

STATE_SET = """
INSERT INTO cognitive_state (reactor_id, state_type, state_key, state_value, priority, expires_at)
SELECT reactor.id, %(kind)s, %(key)s, %(value)s, %(priority)s, now() + %(ttl)s
FROM cognitive_fusion_reactors AS reactor WHERE reactor.reactor_name = %(reactor)s
ON CONFLICT (reactor_id, state_type, state_key) DO UPDATE
SET state_value = excluded.state_value, priority = excluded.priority,
    expires_at = excluded.expires_at
"""

STATE_FORGET = """
DELETE FROM cognitive_state AS state
USING cognitive_fusion_reactors AS reactor
WHERE reactor.id = state.reactor_id AND reactor.reactor_name = %(reactor)s
  AND state.state_type = %(kind)s AND state.state_key = %(key)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOperation:
    """A run that begins. `input` is what may be kept of it, `tenant` on whose behalf it is."""

    reactor: str
    type: str
    strategy: str
    strategy_version: str
    params: JsonObject
    input: Any
    input_count: int
    ttl: timedelta | None
    tenant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a run has ended. `members` are rows of who was asked, `metrics` of what was measured.

    `output_root` names the weight set that keeps the large arrays of what was answered.
    """

    status: str
    output: Any
    error: str | None
    cost: float | None
    execution_ms: float
    members: Sequence[JsonObject]
    metrics: Sequence[JsonObject]
    output_root: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What is on record of a run."""

    id: UUID
    reactor: str | None
    type: str
    status: str
    strategy: str
    input: Any
    output: Any
    output_set_id: int | None
    error: str | None
    input_count: int | None
    tenant: str
    execution_ms: float | None
    cost: float | None
    created_at: Any
    finished_at: Any
    expires_at: Any


def begin(conn: Connection, new: NewOperation) -> UUID:
    """Write down that a run begins."""
    row = conn.execute(
        BEGIN,
        {
            "reactor": new.reactor,
            "type": new.type,
            "strategy": new.strategy,
            "strategy_version": new.strategy_version,
            "params": Jsonb(new.params),
            "input": _json(new.input),
            "input_count": new.input_count,
            "ttl": new.ttl,
            "tenant": new.tenant,
        },
    ).fetchone()
    assert row is not None
    return as_uuid(row[0])


def finish(conn: Connection, operation_id: UUID, finished: Finished) -> None:
    """Write down how it has ended: the answer, those of the members, and what was measured.

    What is on record as ended stays so.
    """
    conn.execute(
        FINISH,
        {
            "id": operation_id,
            "status": finished.status,
            "output": _json(finished.output),
            "output_root": finished.output_root,
            "error": finished.error,
            "cost": finished.cost,
            "execution_ms": finished.execution_ms,
            "members": Json(list(finished.members), dumps=_dumps),
            "metrics": Jsonb(list(finished.metrics)),
        },
    )


def operation(conn: Connection, operation_id: UUID) -> Operation | None:
    with conn.cursor(row_factory=class_row(Operation)) as cursor:
        return cursor.execute(OPERATION, {"id": operation_id}).fetchone()


def members(conn: Connection, operation_id: UUID) -> list[JsonObject]:
    """Who was asked in a run, and what came of it."""
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(MEMBERS, {"id": operation_id}).fetchall()


def trends(conn: Connection, reactor: str, span: timedelta) -> list[JsonObject]:
    """What was measured of a reactor, hour by hour, since so long."""
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(TRENDS, {"reactor": reactor, "span": span}).fetchall()


def forget_expired(conn: Connection) -> int:
    """Remove inputs and answers whose time is over; of how many runs."""
    row = conn.execute(FORGET_EXPIRED).fetchone()
    return int(row[0]) if row else 0


def state_get(conn: Connection, reactor: str, kind: str, key: str) -> Any:
    row = conn.execute(STATE_GET, {"reactor": reactor, "kind": kind, "key": key}).fetchone()
    return row[0] if row else None


def state_list(conn: Connection, reactor: str, kind: str) -> list[tuple[str, Any]]:
    rows = conn.execute(STATE_LIST, {"reactor": reactor, "kind": kind}).fetchall()
    return [(str(key), value) for key, value in rows]


def state_set(
    conn: Connection,
    reactor: str,
    kind: str,
    key: str,
    value: Any,
    *,
    priority: int,
    ttl: timedelta | None,
) -> None:
    conn.execute(
        STATE_SET,
        {
            "reactor": reactor,
            "kind": kind,
            "key": key,
            "value": Jsonb(value),
            "priority": priority,
            "ttl": ttl,
        },
    )


def state_forget(conn: Connection, reactor: str, kind: str, key: str) -> None:
    conn.execute(STATE_FORGET, {"reactor": reactor, "kind": kind, "key": key})


def _json(value: Any) -> Json | None:
    return None if value is None else Json(value, dumps=_dumps)


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
