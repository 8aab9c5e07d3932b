"""What training recorded, read: sessions by what they are called, series as arrays, envelopes.

A forked session has its parent's history up to the step it was forked at; all that is read here
has it too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC
from fnmatch import fnmatchcase
from itertools import groupby
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from arc_halo.errors import InvalidInputError, NotFoundError
from arc_halo.names import did_you_mean
from arc_halo.store import training_reading
from arc_halo.store.rows import Connection
from arc_halo.store.training_reading import MAX_STEP, Page, SessionRow, Span
from arc_halo.training.naming import find_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUCKETS = 1000
TRAIN = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesKey:
    """What names a series in its session: `loss` of `train`."""

    key: str
    scope: str

    def __str__(self) -> str:
        return f"{self.scope}/{self.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The points of a series as columns, in the order of their steps.

    Values are kept as they were logged, NaN and the infinities too; an epoch that was not given
    is NaN. Times are in UTC.
    """

    key: str
    scope: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    epochs: NDArray[np.float32]
    times: NDArray[np.datetime64]

    def __len__(self) -> int:
        return self.steps.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A series in buckets of steps, as columns; a bucket without points is left out.

    `lows` and `highs` are the extremes of the finite values, each with the first step it was
    logged at, and `means` are theirs: NaN, and -1 for the steps, where a bucket has none. (A mean
    is NaN also where values reach 1e288, whose sum might be none.) `not_finite` counts the others.
    """

    key: str
    scope: str
    first_steps: NDArray[np.int64]
    last_steps: NDArray[np.int64]
    counts: NDArray[np.int64]
    not_finite: NDArray[np.int64]
    lows: NDArray[np.float64]
    low_steps: NDArray[np.int64]
    highs: NDArray[np.float64]
    high_steps: NDArray[np.int64]
    means: NDArray[np.float64]
    epochs: NDArray[np.float64]
    times: NDArray[np.datetime64]

    def __len__(self) -> int:
        return self.counts.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A series in a few numbers; the extremes and the mean are of its finite values."""

    key: str
    scope: str
    count: int
    not_finite: int
    first_step: int
    last_step: int
    last: float
    low: float | None
    low_step: int | None
    high: float | None
    high_step: int | None
    mean: float | None


def sessions(
    conn: Connection,
    *,
    model: str | None = None,
    group: str | None = None,
    tag: str | None = None,
    status: str | None = None,
    name: str | None = None,
    limit: int | None = None,
) -> list[SessionRow]:
    """Sessions, the newest first. `model` is a name or name@version, `tag` a key or key=value,
    `name` a pattern with * and ?."""
    model_name, at, version = (model or "").partition("@")
    key, equals, value = (tag or "").partition("=")
    return training_reading.sessions(
        conn,
        model=model_name or None,
        version=version if at else None,
        group=group,
        tag=key or None,
        tag_value=value if equals else None,
        status=status,
        name=None if name is None else _like(name),
        limit=limit,
    )


def session(conn: Connection, named: str | UUID) -> SessionRow:
    """The session with this id or a name, of several the newest; or the one whose id begins so.

    Raises `NotFoundError`, and `InvalidInputError` for the beginning of several ids.
    """
    found = training_reading.sessions(conn, ids=[find_session(conn, named).id])
    if not found:
        raise NotFoundError(f"there is no training session {str(named)!r} any more")
    return found[0]


def forks(conn: Connection, session_id: UUID) -> list[SessionRow]:
    """The sessions that went on from this one, or are its children, the oldest first."""
    ids = training_reading.forks(conn, session_id)
    return training_reading.sessions(conn, ids=ids)[::-1] if ids else []


def list_series(
    conn: Connection, session_id: UUID, *, metric: str = "*", scope: str | None = None
) -> list[SeriesKey]:
    """The series of a session by scope and key; `metric` is a pattern with * and ?, of keys or as
    `eval/*`. Raises `InvalidInputError` where that says another scope than `scope`."""
    return [key for key, _ in _lines(conn, session_id, metric=metric, scope=scope)]


def series(
    conn: Connection,
    session_id: UUID,
    key: str,
    *,
    scope: str | None = None,
    first: int = 0,
    last: int | None = None,
) -> Series:
    """The points of a series with steps from `first` to `last`; `eval/loss` says the scope too.

    Raises `NotFoundError`.
    """
    named, spans = _spans(conn, session_id, key, scope)
    found = list(training_reading.pages(conn, spans, first=first, last=_end(last)))
    columns = {
        name: np.concatenate([getattr(_NO_POINTS, name), *(getattr(page, name) for page in found)])
        for name in ("steps", "values", "epochs", "times")
    }
    return Series(key=named.key, scope=named.scope, **columns)


def pages(
    conn: Connection, session_id: UUID, *, metric: str = "*", scope: str | None = None
) -> Iterator[Series]:
    """Series one after another, each in pieces, in memory that does not grow with their points."""
    for key, spans in _lines(conn, session_id, metric=metric, scope=scope):
        for page in training_reading.pages(conn, spans):
            yield Series(
                key=key.key,
                scope=key.scope,
                steps=page.steps,
                values=page.values,
                epochs=page.epochs,
                times=page.times,
            )


def envelope(
    conn: Connection,
    session_id: UUID,
    key: str,
    *,
    scope: str | None = None,
    buckets: int = BUCKETS,
    first: int = 0,
    last: int | None = None,
) -> Envelope:
    """A series in at most so many buckets of about equally many steps, however long it is.

    No extreme is lost: every bucket has its own. Raises `NotFoundError`.
    """
    if buckets < 1:
        raise InvalidInputError(f"{buckets} buckets hold nothing", code="AH007")
    named, spans = _spans(conn, session_id, key, scope)
    return _envelope(conn, named, spans, buckets, first, _end(last))


def summaries(
    conn: Connection, session_id: UUID, *, metric: str = "*", scope: str | None = None
) -> list[Summary]:
    """What became of every series of a session, by scope and key."""
    lines = _lines(conn, session_id, metric=metric, scope=scope)
    single = [spans[0] for _, spans in lines if len(spans) == 1]
    rows = training_reading.summaries(conn, single)
    found = (
        _summary_of(key, next(rows)) if len(spans) == 1 else _summary(conn, key, spans)
        for key, spans in lines
    )
    return [each for each in found if each is not None]


def ranges(first: int, last: int, count: int) -> tuple[list[int], list[int]]:
    """The first and last steps of at most `count` ranges that cover `first` to `last`."""
    span = last - first + 1
    count = min(count, span)
    edges = [first + i * span // count for i in range(count + 1)] if count > 0 else [first]
    return edges[:-1], [edge - 1 for edge in edges[1:]]


_NO_POINTS = Page(
    steps=np.empty(0, np.int64),
    values=np.empty(0, np.float64),
    epochs=np.empty(0, np.float32),
    times=np.empty(0, "datetime64[us]"),
)


def _spans(
    conn: Connection, session_id: UUID, key: str, scope: str | None
) -> tuple[SeriesKey, list[Span]]:
    """A series by its key and scope, `train` where none is said, or as `eval/loss`."""
    wanted = SeriesKey(key=key, scope=scope or TRAIN)
    before, slash, rest = key.partition("/")
    named = SeriesKey(key=rest, scope=before) if slash else wanted
    for each in (wanted, named):
        if each is wanted or scope in (None, each.scope):
            spans = training_reading.spans(conn, session_id, key=each.key, scope=each.scope)
            if spans:
                return each, spans
    known = [each for each, _ in _lines(conn, session_id)]
    others = sorted(each.scope for each in known if each.key == key)
    close = did_you_mean(key, [each.key for each in known if each.scope == wanted.scope])
    hint = f"it has one of {', '.join(others)}" if others else close
    if named in known:
        hint = f"{key!r} says the scope: leave the other one out"
    raise NotFoundError(
        f"the session has no series {key!r} of {wanted.scope}",
        hint=hint or "`arc-halo training show` lists them",
    )


def _lines(
    conn: Connection, session_id: UUID, *, metric: str = "*", scope: str | None = None
) -> list[tuple[SeriesKey, list[Span]]]:
    """Every series that has points, with its spans."""
    spans = training_reading.spans(conn, session_id, scope=scope)
    grouped = groupby(spans, lambda span: SeriesKey(key=span.key, scope=span.scope))
    found = [(key, list(each)) for key, each in grouped if _fits(key, metric)]
    before, slash, _ = metric.partition("/")
    if not found and slash and scope not in (None, before):
        every = training_reading.spans(conn, session_id)
        if any(_fits(SeriesKey(key=each.key, scope=each.scope), metric) for each in every):
            raise InvalidInputError(
                f"{metric!r} says another scope than {scope!r}",
                hint="leave one of the two out",
                code="AH006",
            )
    return found


def _fits(key: SeriesKey, metric: str) -> bool:
    """`metric` is a pattern of keys, or as `eval/*` of scopes and keys."""
    return fnmatchcase(key.key, metric) or ("/" in metric and fnmatchcase(str(key), metric))


def _envelope(
    conn: Connection,
    key: SeriesKey,
    spans: Sequence[Span],
    buckets: int,
    first: int = 0,
    last: int = MAX_STEP,
) -> Envelope:
    first = max(first, min(span.first_step for span in spans))
    last = min(last, max(span.last_step for span in spans))
    firsts, lasts = ranges(first, last, buckets)
    rows = training_reading.envelope(conn, spans, firsts, lasts) if firsts else []
    columns = [[row[i] for row in rows] for i in range(11)]
    counts, not_finite = (np.array(columns[i], np.int64) for i in (2, 3))
    times = [None if at is None else at.astimezone(UTC).replace(tzinfo=None) for at in columns[10]]
    return Envelope(
        key=key.key,
        scope=key.scope,
        first_steps=np.array(columns[0], np.int64),
        last_steps=np.array(columns[1], np.int64),
        counts=counts,
        not_finite=not_finite,
        lows=np.array(columns[4], np.float64),
        low_steps=_steps(columns[5]),
        highs=np.array(columns[6], np.float64),
        high_steps=_steps(columns[7]),
        means=np.array(columns[8], np.float64) / np.maximum(counts - not_finite, 1),
        epochs=np.array(columns[9], np.float64),
        times=np.array(times, "datetime64[us]"),
    )


def _end(last: int | None) -> int:
    return MAX_STEP if last is None else last


def _steps(steps: Sequence[int | None]) -> NDArray[np.int64]:
    return np.array([-1 if step is None else step for step in steps], np.int64)


def _summary(conn: Connection, key: SeriesKey, spans: Sequence[Span]) -> Summary | None:
    """None where the points have been deleted meanwhile."""
    whole = _envelope(conn, key, spans, 1)
    last_step = int(whole.last_steps[0]) if len(whole) else 0
    page = next(training_reading.pages(conn, spans, first=last_step, last=last_step), None)
    if not len(whole) or page is None:
        return None
    is_there = whole.low_steps[0] >= 0
    mean = float(whole.means[0])
    return Summary(
        key=key.key,
        scope=key.scope,
        count=int(whole.counts[0]),
        not_finite=int(whole.not_finite[0]),
        first_step=int(whole.first_steps[0]),
        last_step=last_step,
        last=float(page.values[0]),
        low=float(whole.lows[0]) if is_there else None,
        low_step=int(whole.low_steps[0]) if is_there else None,
        high=float(whole.highs[0]) if is_there else None,
        high_step=int(whole.high_steps[0]) if is_there else None,
        mean=None if math.isnan(mean) else mean,
    )


def _summary_of(key: SeriesKey, row: Sequence[Any]) -> Summary | None:
    """None where the points have been deleted meanwhile."""
    count, not_finite, first_step, last_step, last, low, low_step, high, high_step, total = row
    if not count:
        return None
    return Summary(
        key=key.key,
        scope=key.scope,
        count=count,
        not_finite=not_finite,
        first_step=first_step,
        last_step=last_step,
        last=last,
        low=low,
        low_step=low_step,
        high=high,
        high_step=high_step,
        mean=None if total is None else total / (count - not_finite),
    )


def _like(pattern: str) -> str:
    """A pattern with * and ? as LIKE has it."""
    return re.sub(r"[\\%_]", r"\\\g<0>", pattern).replace("*", "%").replace("?", "_")
