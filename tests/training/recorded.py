"""Sessions, series and points as training leaves them behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

from psycopg import sql
from psycopg.types.json import Jsonb

from arc_halo.store.connection import Connection

BEGAN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def add_session(conn: Connection, name: str | None = None, **columns: object) -> UUID:
    given = {"session_name": name, "model_name": "story", "model_version": "1.0.0", **columns}
    values = [Jsonb(value) if isinstance(value, dict) else value for value in given.values()]
    statement = sql.SQL("INSERT INTO training_sessions ({}) VALUES ({}) RETURNING id").format(
        sql.SQL(", ").join(map(sql.Identifier, given)),
        sql.SQL(", ").join([sql.Placeholder()] * len(given)),
    )
    row = conn.execute(statement, values).fetchone()
    assert row is not None
    return row[0]


def add_points(
    conn: Connection,
    session: UUID,
    points: Mapping[int, float] | Iterable[tuple[int, float]],
    key: str = "loss",
    scope: str = "train",
    *,
    epoch_steps: int | None = 10,
) -> int:
    """Points by step; a second later each, `epoch_steps` an epoch. The id of the new series."""
    row = conn.execute(
        "INSERT INTO training_series (session_id, metric_key, scope) VALUES (%s, %s, %s)"
        " RETURNING id",
        [session, key, scope],
    ).fetchone()
    assert row is not None
    listed = points.items() if isinstance(points, Mapping) else points
    with conn.cursor().copy(
        "COPY training_metrics (series_id, step, value, epoch, recorded_at) FROM STDIN"
    ) as copy:
        for step, value in listed:
            epoch = None if epoch_steps is None else step / epoch_steps
            at = BEGAN + timedelta(seconds=min(step, 10**6))
            copy.write_row((row[0], step, value, epoch, at))
    return row[0]
