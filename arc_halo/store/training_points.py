"""SQL of the points of training: whole batches, copied where they are new and merged where not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from arc_halo.store.binary import COPY_HEADER, COPY_TRAILER
from arc_halo.store.rows import Connection

if TYPE_CHECKING:
    from numpy.typing import NDArray

ADD_SERIES = """
INSERT INTO training_series (session_id, metric_key, scope)
SELECT %(session_id)s, key, scope
FROM unnest(%(keys)s::text[], %(scopes)s::text[]) AS new (key, scope)
ON CONFLICT DO NOTHING
"""

SERIES = """
SELECT series.id, series.metric_key, series.scope,
       (SELECT max(point.step) FROM training_metrics AS point WHERE point.series_id = series.id)
FROM training_series AS series
WHERE series.session_id = %(session_id)s
"""

COPY_POINTS = """
COPY training_metrics (series_id, epoch, step, value, recorded_at) FROM STDIN (FORMAT binary)
"""

# What comes late, from a spool, does not replace what was recorded after it.
MERGE_POINTS = """
INSERT INTO training_metrics AS known (series_id, epoch, step, value, recorded_at)
SELECT series_id, epoch, step, value,
       timestamptz '2000-01-01 00:00:00+00' + micros * interval '1 microsecond'
FROM unnest(%(series)s::int[], %(epochs)s::real[], %(steps)s::bigint[],
            %(values)s::double precision[], %(micros)s::bigint[])
     AS point (series_id, epoch, step, value, micros)
ON CONFLICT (series_id, step) DO UPDATE
SET epoch = excluded.epoch, value = excluded.value, recorded_at = excluded.recorded_at
WHERE NOT %(is_late)s OR known.recorded_at <= excluded.recorded_at
"""

Key = tuple[str, str]
"""A metric and its scope."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Points in columns: the number of their series, epoch (NaN for none), step, value, and the
    time they were recorded, in microseconds since 2000-01-01."""

    series: NDArray[np.int32]
    epochs: NDArray[np.float32]
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    micros: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.steps)

    def take(self, which: NDArray[Any]) -> Points:
        """Some of them, by a mask or by their places."""
        return Points(
            series=self.series[which],
            epochs=self.epochs[which],
            steps=self.steps[which],
            values=self.values[which],
            micros=self.micros[which],
        )


def add_series(conn: Connection, session_id: UUID, keys: Iterable[Key]) -> None:
    """Enter series that may be there already."""
    metrics, scopes = zip(*keys, strict=True)
    fields = {"session_id": session_id, "keys": list(metrics), "scopes": list(scopes)}
    conn.execute(ADD_SERIES, fields)


def series(conn: Connection, session_id: UUID) -> Mapping[Key, tuple[int, int]]:
    """The number of each series of a session, and its highest step, -1 for an empty one."""
    rows = conn.execute(SERIES, {"session_id": session_id}).fetchall()
    return {
        (str(key), str(scope)): (int(str(id)), -1 if step is None else int(str(step)))
        for id, key, scope, step in rows
    }


def copy_points(conn: Connection, points: Points) -> None:
    """Enter points whose steps their series do not have."""
    with conn.cursor() as cursor, cursor.copy(COPY_POINTS) as copy:
        copy.write(COPY_HEADER)
        for rows in _copy_rows(points):
            copy.write(rows)
        copy.write(COPY_TRAILER)


def merge_points(conn: Connection, points: Points, *, is_late: bool = False) -> None:
    """Enter points whose steps their series may have, and replace those; none may come twice.

    Those that are late do not replace what was recorded after them.
    """
    fields = {
        "is_late": is_late,
        "series": points.series.tolist(),
        "epochs": [None if math.isnan(epoch) else epoch for epoch in points.epochs.tolist()],
        "steps": points.steps.tolist(),
        "values": points.values.tolist(),
        "micros": points.micros.tolist(),
    }
    conn.execute(MERGE_POINTS, fields)


def _copy_rows(points: Points) -> Iterator[bytes]:
    """The rows of binary COPY, first those with an epoch: of one length each, so made at once."""
    has_epoch = ~np.isnan(points.epochs)
    if has_epoch.any():
        chosen = points.take(has_epoch)
        rows = np.empty(len(chosen), dtype=_WITH_EPOCH)
        rows["epoch_size"], rows["epoch"] = 4, chosen.epochs
        yield _filled(rows, chosen)
    if not has_epoch.all():
        chosen = points.take(~has_epoch)
        rows = np.empty(len(chosen), dtype=_WITHOUT_EPOCH)
        rows["epoch_size"] = -1
        yield _filled(rows, chosen)


def _filled(rows: NDArray[Any], points: Points) -> bytes:
    rows["fields"] = 5
    rows["series_size"], rows["series"] = 4, points.series
    rows["step_size"], rows["step"] = 8, points.steps
    rows["value_size"], rows["value"] = 8, points.values
    rows["time_size"], rows["time"] = 8, points.micros
    return rows.tobytes()


_BEFORE = [("fields", ">i2"), ("series_size", ">i4"), ("series", ">i4"), ("epoch_size", ">i4")]
_AFTER = [
    ("step_size", ">i4"),
    ("step", ">i8"),
    ("value_size", ">i4"),
    ("value", ">f8"),
    ("time_size", ">i4"),
    ("time", ">i8"),
]
_WITH_EPOCH = np.dtype([*_BEFORE, ("epoch", ">f4"), *_AFTER])
_WITHOUT_EPOCH = np.dtype([*_BEFORE, *_AFTER])
