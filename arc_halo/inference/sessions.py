"""Inference sessions at work: requests timed and recorded, and the session ended."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from threading import TIMEOUT_MAX
from types import TracebackType
from uuid import UUID

from arc_halo.errors import ArcHaloError, InvalidInputError
from arc_halo.inference.checking import check_number
from arc_halo.inference.delivering import Delivery
from arc_halo.inference.recording import RecordSettings, RequestLog
from arc_halo.plain import cleaned, told
from arc_halo.sizes import format_count
from arc_halo.store import inference_sessions
from arc_halo.store.connection import translate
from arc_halo.store.inference_sessions import NewSession
from arc_halo.store.rows import Connection
from arc_halo.types import JsonObject

logger = logging.getLogger("arc_halo.inference")

ENDS = ("completed", "failed")

END_SECONDS = 5.0
"""How long the end of a session waits for a database that does not answer."""


class InferenceSession:
    """A model at work, for use in a `with`: `session.record(latency_ms=12.5)`.

    Leaving the `with` ends it as completed, also with Ctrl-C; with another exception as failed.
    Once it has begun nothing here raises what goes wrong with the database.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        new: NewSession,
        session_id: UUID,
        settings: RecordSettings,
    ) -> None:
        self.id = session_id
        self.model = f"{new.model_name}@{new.model_version}"
        self.tenant = new.tenant
        self.config: JsonObject = new.config
        self._is_over = False
        self._delivery = Delivery(connect, session_id)
        self._log = RequestLog(self._delivery, settings)
        atexit.register(self.end_with_program)

    def request(
        self, *, prompt_tokens: int | None = None, cached_tokens: int | None = None
    ) -> Request:
        """A request that begins now, for use in a `with` or until its `done`."""
        return Request(self, prompt_tokens=prompt_tokens, cached_tokens=cached_tokens)

    def record(
        self,
        *,
        latency_ms: float,
        first_token_ms: float | None = None,
        tokens_per_second: float | None = None,
        prompt_tokens: int | None = None,
        cached_tokens: int | None = None,
        generated_tokens: int | None = None,
        memory_bytes: int | None = None,
        succeeded: bool = True,
    ) -> None:
        """Record a request that has ended.

        It only queues it: nothing here waits for the database, or raises. What makes no sense is
        left out with a warning. Tokens a second are computed where they are not given, and memory
        is then the most that the process has had.
        """
        if self._is_over:
            self._log.tell("end", "requests came after the end of the session: not recorded")
            return
        self._log.put(
            latency_ms=latency_ms,
            first_token_ms=first_token_ms,
            tokens_per_second=tokens_per_second,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            generated_tokens=generated_tokens,
            memory_bytes=memory_bytes,
            succeeded=succeeded,
        )

    @property
    def dropped(self) -> int:
        """Of how many requests it is lost what they took, since too many waited."""
        return self._log.dropped

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was recorded is in the database, for `timeout` seconds; False where it
        waits still.

        Without a timeout a database that is away is tried once, and one that works is waited for.
        Raises `InvalidInputError` for a `timeout` that is no number of seconds.
        """
        if timeout is not None:
            check_number("timeout", timeout, 0, TIMEOUT_MAX)
        return self._log.flush(timeout)

    def finish(self, status: str = "completed", error: str | None = None) -> None:
        """Write what waits, and end the session.

        A database that is away or does not answer is waited for some 5 seconds: then what waits is
        lost, which is told, and the session counts as crashed after a minute. Who has more time
        calls `flush(60)` before. Raises `InvalidInputError` for a status that is no end.
        """
        if error is not None and not isinstance(error, str):
            raise InvalidInputError(
                f"an error is told as a text, not as a {type(error).__name__}",
                hint="write error=str(exc)",
                code="AH004",
            )
        if not isinstance(status, str) or status not in ENDS:
            raise InvalidInputError(
                f"status={status!r:.80} is no end of a session",
                hint=f"write {' or '.join(ENDS)}",
                code="AH006",
            )
        if self._is_over or self._log.is_forked:
            return
        self._is_over = True
        is_ended, reason = False, ""
        try:
            if self._log.close(END_SECONDS):
                told = None if error is None else cleaned(error)
                self._delivery.end(status, told, timeout=END_SECONDS)
                is_ended = True
        except ArcHaloError as exc:
            reason = f": {exc.message}"
        finally:
            self._delivery.close()
            atexit.unregister(self.end_with_program)
        self._tell_of_loss(is_ended, reason)

    def end_with_program(self) -> None:
        """End a session that its program does not: as failed where an exception ends that."""
        self._end_by(getattr(sys, "last_value", None))

    def __enter__(self) -> InferenceSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end_by(value)

    def _tell_of_loss(self, is_ended: bool, reason: str) -> None:
        lost = f"what {format_count(self.dropped, 'request')} took" if self.dropped else ""
        if not is_ended:
            nor = f", nor {lost}" if lost else ""
            logger.warning(
                "the end of the inference session %s is not recorded%s%s", self.id, nor, reason
            )
        elif lost:
            logger.warning("of the inference session %s it is lost %s", self.id, lost)

    def _end_by(self, error: BaseException | None) -> None:
        is_told_to = isinstance(error, KeyboardInterrupt) or (
            isinstance(error, SystemExit) and not error.code
        )
        if error is None or is_told_to:
            self.finish()
        else:
            self.finish("failed", told(error))


class Request:
    """A request under way: it begins when it is made, and ends with `done` or with its `with`.

    With an exception it has failed. Nothing here raises.
    """

    def __init__(
        self,
        session: InferenceSession,
        *,
        prompt_tokens: int | None = None,
        cached_tokens: int | None = None,
    ) -> None:
        self._session = session
        self._prompt_tokens = prompt_tokens
        self._cached_tokens = cached_tokens
        self._first_token_ms: float | None = None
        self._is_done = False
        self._began = time.perf_counter()

    def first_token(self) -> None:
        """Say that the first token is there; what is said again counts for nothing."""
        if self._first_token_ms is None:
            self._first_token_ms = self._elapsed_ms()

    def done(
        self,
        *,
        generated_tokens: int | None = None,
        prompt_tokens: int | None = None,
        cached_tokens: int | None = None,
        memory_bytes: int | None = None,
        succeeded: bool = True,
    ) -> None:
        """Record the request, once; it has taken until now."""
        if self._is_done:
            return
        self._is_done = True
        self._session.record(
            latency_ms=self._elapsed_ms(),
            first_token_ms=self._first_token_ms,
            prompt_tokens=self._prompt_tokens if prompt_tokens is None else prompt_tokens,
            cached_tokens=self._cached_tokens if cached_tokens is None else cached_tokens,
            generated_tokens=generated_tokens,
            memory_bytes=memory_bytes,
            succeeded=succeeded,
        )

    def __enter__(self) -> Request:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.done(succeeded=value is None)

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._began) * 1000


def begin(
    connect: Callable[[], Connection],
    *,
    model: tuple[str, str],
    root: bytes | None,
    tenant: str,
    config: JsonObject,
    settings: RecordSettings,
) -> InferenceSession:
    """A new session of the model with this name and version. Raises `DatabaseError`."""
    new = NewSession(
        model_name=model[0],
        model_version=model[1],
        root=root,
        tenant=tenant,
        config=config,
        host=socket.gethostname(),
        pid=os.getpid(),
    )
    with translate(), connect() as conn:
        session_id = inference_sessions.begin(conn, new)
    return InferenceSession(connect, new, session_id, settings)
