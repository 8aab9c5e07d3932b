"""SQL that reads what training recorded: sessions, their series, and the points of these.

A fork's history is its parent's up to the step it was forked at: a series has a span of points in
each session of that line, and where two have a point at one step the nearer one counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
from psycopg.rows import class_row

from arc_halo.store.rows import Connection, as_bytes
from arc_halo.types import JsonObject

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_STEP = 2**63 - 1
PAGE_POINTS = 50_000
"""Points that are read at a time: few enough to be put in order in the server's memory."""

SUMMARIES_AT_ONCE = 500

SESSIONS = """
SELECT v.session_id AS id, v.session_name AS name, v.model_name, v.model_version, v.status,
       v.group_name, v.training_name, s.tags, s.notes, s.config, s.dataset, s.host,
       s.git_commit, s.git_dirty, s.error, s.parent_id, s.forked_at_step,
       v.current_epoch, v.total_epochs, v.current_step, v.total_steps, v.progress,
       v.series_count, v.last_loss_step, v.last_loss, v.checkpoint_count,
       v.latest_checkpoint_id, v.best_checkpoint_id, v.best_metric, v.elapsed_seconds,
       v.started_at, v.heartbeat_at, v.finished_at
FROM v_training_progress AS v
JOIN training_sessions AS s ON s.id = v.session_id
WHERE (%(ids)s::uuid[] IS NULL OR v.session_id = ANY (%(ids)s::uuid[]))
  AND (%(model)s::text IS NULL OR v.model_name = %(model)s::text)
  AND (%(version)s::text IS NULL OR v.model_version = %(version)s::text)
  AND (%(group)s::text IS NULL OR v.group_name = %(group)s::text)
  AND (%(tag)s::text IS NULL OR CASE WHEN %(tag_value)s::text IS NULL
       THEN s.tags ? %(tag)s::text ELSE s.tags ->> %(tag)s::text = %(tag_value)s::text END)
  AND (%(status)s::text IS NULL OR v.status = %(status)s::text)
  AND (%(name)s::text IS NULL OR v.session_name LIKE %(name)s::text)
ORDER BY v.started_at DESC, v.session_id
LIMIT %(limit)s
"""

FIND = """
SELECT id, session_name FROM training_sessions
WHERE session_name = %(text)s OR id::text = %(text)s
   OR (%(digits)s <> '' AND starts_with(replace(id::text, '-', ''), %(digits)s))
ORDER BY (id::text = %(text)s) DESC, (session_name = %(text)s) IS TRUE DESC,
         started_at DESC, id
LIMIT 11
"""

NAMES = """
SELECT DISTINCT session_name FROM training_sessions WHERE session_name IS NOT NULL
ORDER BY session_name LIMIT 10000
"""

FORKS = """
SELECT id FROM training_sessions WHERE parent_id = %(session)s ORDER BY started_at, id
"""

SPANS = """
WITH RECURSIVE line AS (
    SELECT s.id, s.parent_id, s.forked_at_step, 0 AS depth, 9223372036854775807 AS up_to
    FROM training_sessions AS s
    WHERE s.id = %(session)s
    UNION ALL
    SELECT p.id, p.parent_id, p.forked_at_step, line.depth + 1,
           least(line.up_to, line.forked_at_step)
    FROM line
    JOIN training_sessions AS p ON p.id = line.parent_id
    WHERE line.forked_at_step IS NOT NULL
) CYCLE id SET is_cycle USING path
SELECT x.metric_key AS key, x.scope, x.id AS series_id, line.up_to,
       reach.first_step, reach.last_step,
       coalesce(min(reach.first_step) OVER (
           PARTITION BY x.metric_key, x.scope ORDER BY line.depth
           ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 9223372036854775807) AS overlaid_from
FROM line
JOIN training_series AS x ON x.session_id = line.id
CROSS JOIN LATERAL (
    SELECT min(m.step) AS first_step, max(m.step) AS last_step
    FROM training_metrics AS m
    WHERE m.series_id = x.id AND m.step <= line.up_to
) AS reach
WHERE NOT line.is_cycle AND reach.first_step IS NOT NULL
  AND (%(key)s::text IS NULL OR x.metric_key = %(key)s::text)
  AND (%(scope)s::text IS NULL OR x.scope = %(scope)s::text)
ORDER BY x.scope, x.metric_key, line.depth
"""

# The planner guesses how many points a series has by the average, and would collect and sort those
# of a long one again for every page, where the primary key has them in order.
PLAN_SETTINGS = """
SET LOCAL enable_bitmapscan = off
"""

# Only where a nearer session has begun already, points are looked up one by one. OFFSET 0 keeps the
# planner from joining in another order.
_POINTS_OF_SPANS = """
    FROM unnest(%(series)s::int[], %(up_to)s::bigint[], %(overlaid_from)s::bigint[])
        WITH ORDINALITY AS span (series_id, up_to, overlaid_from, place)
    CROSS JOIN LATERAL (
        SELECT m.step, m.value, m.epoch, m.recorded_at
        FROM training_metrics AS m
        WHERE m.series_id = span.series_id AND m.step >= {first}
          AND m.step <= least({last}, span.up_to)
          AND (m.step < span.overlaid_from OR NOT EXISTS (
              SELECT FROM unnest(%(series)s::int[], %(up_to)s::bigint[]) WITH ORDINALITY
                  AS near (series_id, up_to, place)
              JOIN training_metrics AS n
                ON n.series_id = near.series_id AND n.step = m.step AND n.step <= near.up_to
              WHERE near.place < span.place))
        {limit}
    ) AS point"""
_IN_BUCKET = _POINTS_OF_SPANS.format(first="bucket.first", last="bucket.last", limit="OFFSET 0")
_IN_PAGE = _POINTS_OF_SPANS.format(
    first="%(first)s", last="%(last)s", limit="ORDER BY m.step LIMIT %(limit)s"
)

POINTS = f"""
SELECT array_send(array_agg(step)), array_send(array_agg(value)),
       array_send(array_agg(coalesce(epoch, 'NaN'))), array_send(array_agg(recorded_at))
FROM (
    SELECT point.*
    {_IN_PAGE}
    ORDER BY point.step
    LIMIT %(limit)s
) AS page
"""  # noqa: S608

# A bucket is a range of the primary key, so nothing is sorted and no memory grows with the points.
# NaN is above all numbers in PostgreSQL, so that two comparisons tell what is finite. A sum beyond
# the largest number is an error there, as is a quotient below the least: what is near the first has
# no mean, and who reads divides.
ENVELOPE = f"""
SELECT found.first_step, found.last_step, found.count, found.count - found.finite,
       found.low, low.step, found.high, high.step,
       CASE WHEN found.summed = found.finite THEN found.sum END,
       found.epoch, found.recorded_at
FROM unnest(%(firsts)s::bigint[], %(lasts)s::bigint[]) AS bucket (first, last)
CROSS JOIN LATERAL (
    SELECT min(step) AS first_step, max(step) AS last_step, count(*) AS count,
           count(*) FILTER (WHERE value > '-Infinity' AND value < 'Infinity') AS finite,
           min(value) FILTER (WHERE value > '-Infinity' AND value < 'Infinity') AS low,
           max(value) FILTER (WHERE value > '-Infinity' AND value < 'Infinity') AS high,
           count(*) FILTER (WHERE value > -1e288 AND value < 1e288) AS summed,
           sum(value) FILTER (WHERE value > -1e288 AND value < 1e288) AS sum,
           min(epoch) AS epoch, min(recorded_at) AS recorded_at
    {_IN_BUCKET}
) AS found
CROSS JOIN LATERAL (
    SELECT min(step) AS step {_IN_BUCKET} WHERE value = found.low
) AS low
CROSS JOIN LATERAL (
    SELECT min(step) AS step {_IN_BUCKET} WHERE value = found.high
) AS high
WHERE found.count > 0
ORDER BY bucket.first
"""  # noqa: S608

# As the envelope has them, of many series at once: each is what one session has of it.
SUMMARIES = """
SELECT found.count, found.count - found.finite, found.first_step, found.last_step, last.value,
       found.low, low.step, found.high, high.step,
       CASE WHEN found.summed = found.finite THEN found.sum END
FROM unnest(%(series)s::int[], %(up_to)s::bigint[])
    WITH ORDINALITY AS span (series_id, up_to, place)
CROSS JOIN LATERAL (
    SELECT min(step) AS first_step, max(step) AS last_step, count(*) AS count,
           count(*) FILTER (WHERE value > '-Infinity' AND value < 'Infinity') AS finite,
           min(value) FILTER (WHERE value > '-Infinity' AND value < 'Infinity') AS low,
           max(value) FILTER (WHERE value > '-Infinity' AND value < 'Infinity') AS high,
           count(*) FILTER (WHERE value > -1e288 AND value < 1e288) AS summed,
           sum(value) FILTER (WHERE value > -1e288 AND value < 1e288) AS sum
    FROM training_metrics AS m WHERE m.series_id = span.series_id AND m.step <= span.up_to
) AS found
LEFT JOIN training_metrics AS last
       ON last.series_id = span.series_id AND last.step = found.last_step
CROSS JOIN LATERAL (
    SELECT min(m.step) AS step FROM training_metrics AS m
    WHERE m.series_id = span.series_id AND m.step <= span.up_to AND m.value = found.low
) AS low
CROSS JOIN LATERAL (
    SELECT min(m.step) AS step FROM training_metrics AS m
    WHERE m.series_id = span.series_id AND m.step <= span.up_to AND m.value = found.high
) AS high
ORDER BY span.place
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """A session as far as it is told to people. `status` is the live one: 'crashed' without signs
    of life."""

    id: UUID
    name: str | None
    model_name: str
    model_version: str
    status: str
    group_name: str | None
    training_name: str | None
    tags: JsonObject
    notes: str | None
    config: JsonObject
    dataset: JsonObject
    host: str | None
    git_commit: str | None
    git_dirty: bool | None
    error: str | None
    parent_id: UUID | None
    forked_at_step: int | None
    current_epoch: float
    total_epochs: int | None
    current_step: int
    total_steps: int | None
    progress: float | None
    series_count: int
    last_loss_step: int | None
    last_loss: float | None
    checkpoint_count: int
    latest_checkpoint_id: UUID | None
    best_checkpoint_id: UUID | None
    best_metric: str | None
    elapsed_seconds: float
    started_at: datetime
    heartbeat_at: datetime
    finished_at: datetime | None

    @property
    def model(self) -> str:
        return f"{self.model_name}@{self.model_version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionName:
    """A session, and what it is called."""

    id: UUID
    session_name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What a session of the line adds to a series: its points up to `up_to`, and from
    `overlaid_from` on only those that no nearer session has too."""

    key: str
    scope: str
    series_id: int
    up_to: int
    overlaid_from: int
    first_step: int
    last_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Points in the order of their steps; an epoch that was not given is NaN, times are in UTC."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    epochs: NDArray[np.float32]
    times: NDArray[np.datetime64]


def sessions(
    conn: Connection,
    *,
    ids: Sequence[UUID] | None = None,
    model: str | None = None,
    version: str | None = None,
    group: str | None = None,
    tag: str | None = None,
    tag_value: str | None = None,
    status: str | None = None,
    name: str | None = None,
    limit: int | None = None,
) -> list[SessionRow]:
    """Sessions, the newest first. `name` is a pattern of LIKE."""
    asked = {
        "ids": None if ids is None else list(ids),
        "model": model,
        "version": version,
        "group": group,
        "tag": tag,
        "tag_value": tag_value,
        "status": status,
        "name": name,
        "limit": limit,
    }
    with conn.cursor(row_factory=class_row(SessionRow)) as cursor:
        return cursor.execute(SESSIONS, asked).fetchall()


def find(conn: Connection, text: str, digits: str) -> list[SessionName]:
    """Sessions with this id, name, or `digits` at the beginning of their id; the best first."""
    with conn.cursor(row_factory=class_row(SessionName)) as cursor:
        return cursor.execute(FIND, {"text": text, "digits": digits}).fetchall()


def names(conn: Connection) -> list[str]:
    return [str(row[0]) for row in conn.execute(NAMES)]


def forks(conn: Connection, session: UUID) -> list[UUID]:
    """The sessions that went on from this one, or count it as their parent."""
    return [row[0] for row in conn.execute(FORKS, {"session": session})]


def spans(
    conn: Connection, session: UUID, *, key: str | None = None, scope: str | None = None
) -> list[Span]:
    """What the series of a session are made of; spans of one series together, the own one first."""
    with conn.cursor(row_factory=class_row(Span)) as cursor:
        asked = {"session": session, "key": key, "scope": scope}
        return cursor.execute(SPANS, asked).fetchall()


def pages(
    conn: Connection, spans: Sequence[Span], *, first: int = 0, last: int = MAX_STEP
) -> Iterator[Page]:
    """The points of a series with steps from `first` to `last`, in memory that does not grow."""
    asked = {**_arrays(spans), "last": last, "limit": PAGE_POINTS}
    while spans and first <= last:
        with conn.transaction(), conn.cursor(binary=True) as cursor:
            cursor.execute(PLAN_SETTINGS)
            row = cursor.execute(POINTS, {**asked, "first": first}).fetchone()
        if row is None or row[0] is None:
            return
        page = _page(row)
        yield page
        if page.steps.size < PAGE_POINTS:
            return
        first = int(page.steps[-1]) + 1


def envelope(
    conn: Connection, spans: Sequence[Span], firsts: Sequence[int], lasts: Sequence[int]
) -> list[tuple[Any, ...]]:
    """A row for each range of steps that has points, in their order: its first and last step; how
    many points, and how many of them are no finite numbers; of the finite ones the least with its
    first step, the greatest with its first step, and the sum; the first epoch and time."""
    asked = {**_arrays(spans), "firsts": list(firsts), "lasts": list(lasts)}
    with conn.transaction():
        conn.execute(PLAN_SETTINGS)
        return conn.execute(ENVELOPE, asked).fetchall()


def summaries(conn: Connection, spans: Sequence[Span]) -> Iterator[tuple[Any, ...]]:
    """A row for each of these, every one the only span of its series: how many points, and how many
    of them are no finite numbers; the first and the last step, and the last value; of the finite
    ones the least with its first step, the greatest with its first step, and the mean."""
    for start in range(0, len(spans), SUMMARIES_AT_ONCE):
        some = spans[start : start + SUMMARIES_AT_ONCE]
        asked = {
            "series": [span.series_id for span in some],
            "up_to": [span.up_to for span in some],
        }
        with conn.transaction():
            conn.execute(PLAN_SETTINGS)
            rows = conn.execute(SUMMARIES, asked).fetchall()
        yield from rows


def _arrays(spans: Sequence[Span]) -> dict[str, Any]:
    return {
        "series": [span.series_id for span in spans],
        "up_to": [span.up_to for span in spans],
        "overlaid_from": [span.overlaid_from for span in spans],
    }


_HEADER_BYTES = 20
_UNIX_EPOCH_US = 946_684_800_000_000
"""Of the midnight that PostgreSQL counts from, in microseconds."""


def _page(row: Sequence[Any]) -> Page:
    step, value, epoch, at = map(as_bytes, row)
    times = _items(at, ">i8").astype(np.int64) + _UNIX_EPOCH_US
    return Page(
        steps=_items(step, ">i8").astype(np.int64),
        values=_items(value, ">f8").astype(np.float64),
        epochs=_items(epoch, ">f4").astype(np.float32),
        times=times.view("datetime64[us]"),
    )


def _items(array: bytes, dtype: str) -> NDArray[Any]:
    """The items of an array of one dimension without NULLs, in PostgreSQL's binary form."""
    return np.frombuffer(array, np.dtype([("length", ">i4"), ("item", dtype)]), -1, _HEADER_BYTES)[
        "item"
    ]
