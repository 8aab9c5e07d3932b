"""Evaluations of reactors, written down as operations."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from arc_halo.reactors.records import kept, told_error
from arc_halo.reactors.running import RunningReactor
from arc_halo.store import operations
from arc_halo.store.operations import Finished, NewOperation
from arc_halo.types import JsonObject


@dataclass(slots=True, kw_only=True)
class RecordedEvaluation:
    """An evaluation under way; whoever makes it fills in its figures.

    `operation_id` is None where the reactor records nothing. `members` are rows as
    `operations.finish` takes them, `metrics` those that reactors are measured by.
    """

    operation_id: UUID | None
    output: Any = None
    cost: float | None = None
    members: Sequence[JsonObject] = ()
    metrics: Sequence[JsonObject] = field(default_factory=list)


@contextmanager
def evaluation(
    reactor: RunningReactor, given: Any, input_count: int
) -> Iterator[RecordedEvaluation]:
    """Record an evaluation of so many inputs, and what came of it; `given` is its input.

    However it ends, it is on record as ended: as failed too where its figures cannot be written.
    """
    plan = reactor.plan
    under_way = RecordedEvaluation(operation_id=None)
    if plan.record != "none":
        new = NewOperation(
            reactor=plan.name,
            type="evaluation",
            strategy=reactor.fuser.provided.item.name,
            strategy_version=reactor.fuser.provided.version,
            params=plan.params,
            input=kept(given, plan.record),
            input_count=input_count,
            ttl=plan.record_ttl,
        )
        with reactor.connection() as conn:
            under_way.operation_id = operations.begin(conn, new)
    started = time.perf_counter()
    try:
        yield under_way
        _finish(reactor, under_way, started, None)
    except BaseException as exc:
        _finish(reactor, under_way, started, told_error(exc, plan.record, reactor.panel.cover))
        raise


def _finish(
    reactor: RunningReactor, under_way: RecordedEvaluation, started: float, error: str | None
) -> None:
    if under_way.operation_id is None:
        return
    has_figures = error is None
    finished = Finished(
        status="completed" if has_figures else "failed",
        output=under_way.output if has_figures else None,
        error=error,
        cost=under_way.cost if has_figures else None,
        execution_ms=1000 * (time.perf_counter() - started),
        members=under_way.members if has_figures else (),
        metrics=under_way.metrics if has_figures else (),
    )
    with reactor.connection() as conn:
        operations.finish(conn, under_way.operation_id, finished)
