"""Asking members: at once, each for as long as it may take, and what came of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np

from arc_halo.errors import ArcHaloError, MemberError
from arc_halo.outputs import Outputs
from arc_halo.reactors.plans import Member
from arc_halo.types import RunningModel

Work = Callable[[], None]
Cover = Callable[[str], str]
"""Takes out of a text what nobody may be told."""
Status = Literal["answered", "failed", "fell_back", "not_asked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What came of asking a member some of the inputs, `indexes` of the batch.

    A failed one has no outputs. `fell_back` is who answered in its place.
    """

    member: Member
    indexes: tuple[int, ...]
    outputs: Outputs | None = None
    error: MemberError | None = None
    seconds: float = 0.0

    @property
    def costs(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """What each answer costs: as its runner says, else as the manifest does."""
        if self.outputs is not None and self.outputs.costs is not None:
            said = self.outputs.costs
            return np.where(np.isnan(said), self.member.cost, said)
        return np.full(len(self.indexes), self.member.cost)


class Panel:
    """The running members of a reactor.

    Every call has a thread of its own: a member that never comes back costs a thread, and nobody
    who waits for another member. Threads that are done are used again. What members say when they
    fail goes through `cover`.
    """

    def __init__(
        self,
        running: Mapping[str, RunningModel],
        *,
        cover: Cover = str,
        threads: Threads | None = None,
    ) -> None:
        self.cover = cover
        self._running = running
        self._threads = threads or Threads()

    def asking(self, running: Mapping[str, RunningModel]) -> Panel:
        """Others in the members' places, asked by the same threads."""
        return Panel(running, cover=self.cover, threads=self._threads)

    def close(self) -> None:
        """Let go of the threads; those that are still busy end by themselves."""
        self._threads.close()

    def running(self, member: Member) -> RunningModel:
        """What has a member answer."""
        return self._running[member.model]

    @contextmanager
    def naming_failures(self, model: str) -> Iterator[None]:
        """What a member raises meanwhile is raised as a `MemberError` that names it."""
        try:
            yield
        except Exception as exc:
            raise told(model, exc, self.cover) from exc

    def ask(
        self,
        questions: Sequence[tuple[Member, Sequence[int]]],
        inputs: Sequence[Any],
        timeout_seconds: float | None,
        deadlines: Sequence[float] | None = None,
    ) -> list[Asked]:
        """Ask members at once, each some of the inputs; in the order of the questions.

        Where a question is one of several, `deadlines` are when each member's time for all of them
        is over, by the monotonic clock.
        """
        pending = [self._start(member, indexes, inputs) for member, indexes in questions]
        if deadlines is None:
            until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
            return [call.result(until, timeout_seconds) for call in pending]
        return [
            call.result(until, timeout_seconds)
            for call, until in zip(pending, deadlines, strict=True)
        ]

    def ask_until(
        self,
        questions: Sequence[tuple[Member, Sequence[int]]],
        inputs: Sequence[Any],
        timeout_seconds: float | None,
        is_enough: Callable[[Asked], bool],
    ) -> Iterator[Asked]:
        """The same, as they come in, until one is enough; the others are no longer waited for."""
        calls = {}
        for member, indexes in questions:
            call = self._start(member, indexes, inputs)
            calls[call.future] = call
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while calls:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done, _ = wait(calls, left, "FIRST_COMPLETED")
            for future in done or list(calls):
                asked = calls.pop(future).result(deadline, timeout_seconds)
                yield asked
                if is_enough(asked):
                    return

    def _start(self, member: Member, indexes: Sequence[int], inputs: Sequence[Any]) -> _Call:
        call = _Call(member, tuple(indexes), [inputs[index] for index in indexes], self.cover)
        self._threads.run(partial(call.run, self._running[member.model]))
        return call


def told(model: str, exc: BaseException, cover: Cover) -> MemberError:
    """What a member raised, as an error that names it and no secret; its cause is as it was."""
    if isinstance(exc, ArcHaloError):
        hint = None if exc.hint is None else cover(exc.hint)
        error = MemberError(f"{model}: {cover(exc.message)}", hint=hint, code=exc.error_code)
    else:
        error = MemberError(f"{model}: {cover(f'{type(exc).__name__}: {exc}')}")
    error.__cause__ = exc
    return error


class Threads:
    """As many threads as there is work at once; to start one takes longer than to wake one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[Work | None]] = []
        self._is_closed = False

    def run(self, work: Work) -> None:
        """Have a thread do it, and go on."""
        with self._lock:
            inbox = self._idle.pop() if self._idle else None
        if inbox is None:
            inbox = SimpleQueue()
            threading.Thread(
                target=self._serve, args=(inbox,), name="arc-halo-member", daemon=True
            ).start()
        inbox.put(work)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for inbox in idle:
            inbox.put(None)

    def _serve(self, inbox: SimpleQueue[Work | None]) -> None:
        while (work := inbox.get()) is not None:
            work()
            with self._lock:
                if self._is_closed:
                    return
                self._idle.append(inbox)


class _Call:
    def __init__(
        self, member: Member, indexes: tuple[int, ...], inputs: list[Any], cover: Cover
    ) -> None:
        self.future: Future[Asked] = Future()
        self._cover = cover
        self._member = member
        self._indexes = indexes
        self._inputs = inputs

    def run(self, running: RunningModel) -> None:
        started = time.perf_counter()
        outputs, error = None, None
        try:
            outputs = running.answer(self._inputs)
            if not isinstance(outputs, Outputs):
                raise MemberError(f"it answered with {type(outputs).__name__}, not Outputs")
            outputs.check(len(self._inputs), is_judgement=self._is_judging())
        except BaseException as exc:  # noqa: BLE001  whatever it is, somebody waits for what comes
            outputs, error = None, told(self._member.model, exc, self._cover)
        seconds = time.perf_counter() - started
        self.future.set_result(
            Asked(
                member=self._member,
                indexes=self._indexes,
                outputs=outputs,
                error=error,
                seconds=seconds,
            )
        )

    def _is_judging(self) -> bool:
        """Whether it was asked about the answers of others."""
        return self._member.role == "validator" or all(
            isinstance(each, dict) and "member" in each and "answer" in each
            for each in self._inputs
        )

    def result(self, deadline: float | None, timeout_seconds: float | None) -> Asked:
        """What came of it; a failure where nothing has by the deadline."""
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return self.future.result(left)
        except TimeoutError:
            message = f"{self._member.model}: no answer within {timeout_seconds:g} s"
            return Asked(
                member=self._member,
                indexes=self._indexes,
                error=MemberError(message, hint="see `run.timeout` and `run.on_failure`"),
                seconds=timeout_seconds or 0.0,
            )
