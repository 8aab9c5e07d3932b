"""A reactor that is open: it takes batches of inputs, answers, and writes down what happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from arc_halo.errors import InvalidInputError, OutputError, ReactorError
from arc_halo.outputs import Label, Outputs
from arc_halo.reactors import tokens
from arc_halo.reactors.asking import Asked, Panel
from arc_halo.reactors.cascades import cascade
from arc_halo.reactors.fusing import Fuser
from arc_halo.reactors.hierarchies import hierarchical
from arc_halo.reactors.measuring import metrics_of
from arc_halo.reactors.parallels import parallel
from arc_halo.reactors.plans import ReactorPlan
from arc_halo.reactors.policies import Voice
from arc_halo.reactors.records import (
    ANSWER,
    LargeArrays,
    as_json,
    kept,
    member_rows,
    storable,
    told_error,
    total_cost,
)
from arc_halo.reactors.topologies import Answered, Run, Topology, ensemble
from arc_halo.store import operations
from arc_halo.store.operations import Finished, NewOperation
from arc_halo.store.rows import Connection
from arc_halo.types import JsonObject

StoreArrays = Callable[[Mapping[str, Any]], bytes]
"""Keeps arrays by name, and gives the root of the weight set that they are."""

TOPOLOGIES: Mapping[str, Topology] = {
    "ensemble": ensemble,
    "cascade": cascade,
    "parallel": parallel,
    "hierarchical": hierarchical,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a reactor answers to a batch.

    `outputs` is the fused answer, None where the members' own stand `side_by_side`. `left_out` says
    of each member that failed why; `members` has all that were asked. `operation_id` is None where
    nothing is recorded.
    """

    outputs: Outputs | None
    side_by_side: Mapping[str, Outputs]
    left_out: Mapping[str, str]
    members: tuple[Asked, ...]
    cost: float
    execution_ms: float
    operation_id: UUID | None

    def as_json(self) -> JsonObject:
        return {
            "answer": as_json(self.outputs) if self.outputs is not None else None,
            "members": {name: as_json(each) for name, each in self.side_by_side.items()},
            "left_out": dict(self.left_out),
            "cost": self.cost,
            "execution_ms": round(self.execution_ms, 3),
            "operation": str(self.operation_id) if self.operation_id else None,
        }


class RunningReactor:
    """A reactor with its members opened. `run` may be called from several threads at once."""

    def __init__(
        self,
        plan: ReactorPlan,
        panel: Panel,
        fuser: Fuser,
        connection: Callable[[], AbstractContextManager[Connection]],
        store_arrays: StoreArrays | None = None,
    ) -> None:
        self.plan = plan
        self._store_arrays = store_arrays
        self.panel = panel
        self.fuser = fuser
        self.connection = connection

    def run(self, inputs: Sequence[Any], *, tenant: str = "") -> Answer:
        """Answer a batch of inputs, which are JSON; one entry an input.

        `tenant` says on whose behalf, and is only written down. Raises `ReactorError` where its
        policy has nothing to answer with; the run is on record then, too. And `InvalidInputError`
        for a batch without inputs.
        """
        run = self.new_run(inputs)
        operation_id = self._begin(inputs, tenant)
        started = time.perf_counter()
        try:
            answered = self._answered(run)
        except BaseException as exc:
            self._finish(operation_id, run, None, 1000 * (time.perf_counter() - started), exc)
            raise
        execution_ms = 1000 * (time.perf_counter() - started)
        self._finish(operation_id, run, answered, execution_ms, None)
        return _answer(run, answered, execution_ms, operation_id)

    def ask(self, inputs: Sequence[Any]) -> Answer:
        """The same, and nothing of it is recorded."""
        run = self.new_run(inputs)
        started = time.perf_counter()
        answered = self._answered(run)
        return _answer(run, answered, 1000 * (time.perf_counter() - started), None)

    def learn(self, inputs: Sequence[Any], labels: Sequence[Label]) -> Mapping[str, Any]:
        """What the strategy learns from labelled inputs: arrays and JSON by name.

        Every member is asked all of them, whatever its role and domains; nothing is recorded.
        Raises `ReactorError` for a member that does not answer, and what the strategy raises.
        """
        places = range(len(inputs))
        asked = self.panel.ask([(each, places) for each in self.plan.voters], inputs, None)
        for each in asked:
            if each.error is not None:
                raise ReactorError(
                    f"{self.plan.name}: {each.error.message}",
                    hint=each.error.hint,
                    code=each.error.error_code,
                ) from each.error
        voices = [
            Voice(member=each.member, asked=each, weight=each.member.weight) for each in asked
        ]
        return self.fuser.learn(voices, inputs, labels)

    def stream(self, given: Any, *, tenant: str = "") -> Generator[str, None, Answer]:
        """Answer one input with a text, piece by piece, as it is written; what the generator
        returns is the answer as `run` gives it.

        One whose members answer as a whole gives its text in one piece. Raises what `run` does, and
        `OutputError` where the answer is no text; whoever stops listening ends the run.
        """
        if self.plan.level != "tokens":
            answer = self.run([given], tenant=tenant)
            yield _text(self.plan.name, answer)
            return answer
        run = self.new_run([given])
        operation_id = self._begin([given], tenant)
        started = time.perf_counter()
        try:
            answered = yield from _pieces(tokens.generate(run))
        except BaseException as exc:
            self._finish(operation_id, run, None, 1000 * (time.perf_counter() - started), exc)
            raise
        execution_ms = 1000 * (time.perf_counter() - started)
        self._finish(operation_id, run, answered, execution_ms, None)
        return _answer(run, answered, execution_ms, operation_id)

    def new_run(self, inputs: Sequence[Any]) -> Run:
        """A batch of inputs that nobody was asked yet. `InvalidInputError` for one without any."""
        if not inputs:
            raise InvalidInputError(f"{self.plan.name}: there is no input", code="AH006")
        return Run(plan=self.plan, panel=self.panel, fuser=self.fuser, inputs=inputs)

    def _answered(self, run: Run) -> Answered:
        is_tokens = self.plan.level == "tokens"
        return tokens.answer(run) if is_tokens else TOPOLOGIES[self.plan.type](run)

    def _begin(self, inputs: Sequence[Any], tenant: str) -> UUID | None:
        if self.plan.record == "none":
            return None
        new = NewOperation(
            reactor=self.plan.name,
            type=self.plan.type,
            strategy=self.fuser.provided.item.name,
            strategy_version=self.fuser.provided.version,
            params=self.plan.params,
            input=kept(storable(list(inputs)), self.plan.record),
            input_count=len(inputs),
            ttl=self.plan.record_ttl,
            tenant=tenant,
        )
        with self.connection() as conn:
            return operations.begin(conn, new)

    def _finish(
        self,
        operation_id: UUID | None,
        run: Run,
        answered: Answered | None,
        execution_ms: float,
        exc: BaseException | None,
    ) -> None:
        if operation_id is None:
            return
        arrays = LargeArrays(are_kept=self.plan.record == "full" and self._store_arrays is not None)
        output = _output(answered, arrays) if answered is not None else None
        rows = member_rows(self.plan, run.asked, arrays, self.panel.cover)
        root = self._store_arrays(arrays.found) if arrays.found and self._store_arrays else None
        finished = Finished(
            status="completed" if exc is None else "failed",
            output=kept(output, self.plan.record),
            error=None if exc is None else told_error(exc, self.plan.record, self.panel.cover),
            cost=total_cost(run.asked),
            execution_ms=execution_ms,
            members=rows,
            metrics=metrics_of(run, execution_ms) if exc is None else [],
            output_root=root,
        )
        with self.connection() as conn:
            operations.finish(conn, operation_id, finished)


def _answer(run: Run, answered: Answered, execution_ms: float, operation_id: UUID | None) -> Answer:
    return Answer(
        outputs=answered.outputs,
        side_by_side=answered.side_by_side,
        left_out={each.member.model: each.error.message for each in run.asked if each.error},
        members=tuple(run.asked),
        cost=total_cost(run.asked),
        execution_ms=execution_ms,
        operation_id=operation_id,
    )


def _output(answered: Answered, arrays: LargeArrays) -> JsonObject:
    if answered.outputs is not None:
        return arrays.as_json(answered.outputs, ANSWER)
    said = {name: arrays.as_json(each, name) for name, each in answered.side_by_side.items()}
    return {"members": said}


def _pieces(writing: Generator[list[str], None, Answered]) -> Generator[str, None, Answered]:
    """Those of the one text that is written; left early, the writing ends at once."""
    with closing(writing):
        while True:
            try:
                (piece,) = next(writing)
            except StopIteration as done:
                answered: Answered = done.value
                return answered
            if piece:
                yield piece


def _text(reactor: str, answer: Answer) -> str:
    if answer.outputs is None or answer.outputs.texts is None:
        raise OutputError(f"{reactor}: its answer is no text")
    return answer.outputs.texts[0]
