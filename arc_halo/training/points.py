"""Points as they are logged, in columns, and which of them a database cannot have yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.store.training_points import Key, Points

if TYPE_CHECKING:
    from numpy.typing import NDArray

Logged = tuple[str, str, int, float, float, float]
"""Metric, scope, step, epoch (NaN for none), value, and the seconds since 1970 it was logged at."""

SYSTEM = "system"
"""The scope of what the machine is measured by: its steps are seconds since the session began."""

EPOCH_2000 = 946_684_800
"""The seconds from 1970 to 2000, from where PostgreSQL counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Points in the order they were logged; `series` has for each its place among the `keys`."""

    keys: tuple[Key, ...]
    points: Points

    @classmethod
    def of(cls, logged: Sequence[Logged]) -> Batch:
        places: dict[Key, int] = {}
        metrics, scopes, steps, epochs, values, times = (
            zip(*logged, strict=True) if logged else ((),) * 6
        )
        series = [places.setdefault(key, len(places)) for key in zip(metrics, scopes, strict=True)]
        seconds = np.array(times, dtype=np.float64) - EPOCH_2000
        return cls(
            keys=tuple(places),
            points=Points(
                series=np.array(series, dtype=np.int32),
                epochs=np.array(epochs, dtype=np.float32),
                steps=np.array(steps, dtype=np.int64),
                values=np.array(values, dtype=np.float64),
                micros=np.rint(seconds * 1e6).astype(np.int64),
            ),
        )

    def __len__(self) -> int:
        return len(self.points)

    def last_step(self) -> int | None:
        """The highest step of the training, which what the system is measured by has not."""
        is_training = np.array([scope != SYSTEM for _, scope in self.keys], dtype=bool)
        steps = self.points.steps[is_training[self.points.series]] if len(self) else []
        return int(max(steps)) if len(steps) else None

    def numbered(self, numbers: Mapping[Key, int]) -> Points:
        """The points with the database's numbers of their series, each step once: its last."""
        ids = np.array([numbers[key] for key in self.keys], dtype=np.int32)
        given = self.points
        points = Points(
            series=ids[given.series] if len(ids) else given.series,
            epochs=given.epochs,
            steps=given.steps,
            values=given.values,
            micros=given.micros,
        )
        # Stable: of points with one series and step the last logged comes last.
        points = points.take(np.lexsort((points.steps, points.series)))
        return points.take(_is_last(points))


def split(points: Points, highest: Mapping[int, int]) -> tuple[Points, Points]:
    """Points beyond the `highest` step of their series, which are new, and the others."""
    series, places = np.unique(points.series, return_inverse=True)
    marks = np.array([highest.get(number, -1) for number in series.tolist()], dtype=np.int64)
    is_new = points.steps > marks[places] if len(points) else np.zeros(0, dtype=bool)
    return points.take(is_new), points.take(~is_new)


def highest_steps(points: Points) -> dict[int, int]:
    """The highest step of each series; `points` are in the order of `Batch.numbered`."""
    is_end = np.ones(len(points), dtype=bool)
    is_end[:-1] = points.series[1:] != points.series[:-1]
    chosen = points.take(is_end)
    return dict(zip(chosen.series.tolist(), chosen.steps.tolist(), strict=True))


def _is_last(points: Points) -> NDArray[np.bool_]:
    """Of sorted points, those after which another step or series comes."""
    is_last = np.ones(len(points), dtype=bool)
    is_last[:-1] = (points.series[1:] != points.series[:-1]) | (
        points.steps[1:] != points.steps[:-1]
    )
    return is_last
