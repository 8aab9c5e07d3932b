"""The HTTP application: who may ask, how much at once, and which reactor answers."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import anyio
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from arc_halo.errors import InvalidInputError, ReactorError
from arc_halo.names import did_you_mean
from arc_halo.reactors.running import Answer, RunningReactor
from arc_halo.serving.metrics import CONTENT_TYPE, Metrics
from arc_halo.serving.protocol import (
    DONE,
    Events,
    answer_events,
    answer_json,
    ending,
    failed_event,
    model_json,
    models_json,
    texts_of,
)
from arc_halo.serving.questions import Api, Question, Refusal, parse_question
from arc_halo.store.keys import ApiKey

LOOPBACK = ("localhost", "127.0.0.1", "::1")
KEY_CHECKS = 4
"""Keys that are looked up at once: each takes a connection of the database."""
CLIENT_GONE = 499
NO_QUESTION = ("AH006", "AH007")
"""Codes of errors that are about what was asked, and not about who answers."""
NOT_STORED = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server takes on. Beyond `concurrency` requests wait, beyond `queue` more of them
    are refused."""

    max_body_bytes: int = 2**20
    concurrency: int = 64
    queue: int = 1024
    body_seconds: float = 30.0


class Underway:
    """Counts what threads are at, so that the end of a server can wait for it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count = 0

    def __enter__(self) -> None:
        with self._condition:
            self._count += 1

    def __exit__(self, *exc: object) -> None:
        with self._condition:
            self._count -= 1
            self._condition.notify_all()

    def wait(self) -> None:
        """Until nothing is under way."""
        with self._condition:
            self._condition.wait_for(lambda: self._count == 0)


@dataclass(kw_only=True)
class Service:
    """Reactors that answer to whoever has a key.

    `find_key` says whose key that is; without it everybody on this machine may ask. `cover` takes
    secrets out of what others are told, `log` gets what only the operator may know.
    """

    reactors: Mapping[str, RunningReactor]
    find_key: Callable[[str], ApiKey | None] | None
    cover: Callable[[str], str]
    log: Callable[[str], None]
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    underway: Underway = field(default_factory=Underway)
    began_at: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def turns(self) -> CapacityLimiter:
        """Runs of reactors at once."""
        return CapacityLimiter(self.limits.concurrency)

    @cached_property
    def key_turns(self) -> CapacityLimiter:
        return CapacityLimiter(KEY_CHECKS)


Endpoint = Callable[[Service, Request], Awaitable[Response]]


def application(service: Service) -> Starlette:
    """The application of a service."""

    def route(path: str, endpoint: Endpoint, method: str = "GET") -> Route:
        return Route(path, partial(_guarded, service, endpoint), methods=[method])

    return Starlette(
        routes=[
            route("/v1/chat/completions", partial(_ask, "chat"), "POST"),
            route("/v1/completions", partial(_ask, "completions"), "POST"),
            route("/v1/models", _models),
            route("/v1/models/{name}", _model),
            route("/healthz", _health),
            route("/metrics", _metrics),
        ],
        exception_handlers={HTTPException: _not_found},
    )


async def _guarded(service: Service, endpoint: Endpoint, request: Request) -> Response:
    """What an endpoint answers, or the error in OpenAI's form; nothing goes beyond."""
    try:
        return await endpoint(service, request)
    except Refusal as exc:
        return _refused(exc)
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    except anyio.get_cancelled_exc_class():
        # Nothing cancels a request but the end of the server, which goes on to end it.
        return _refused(Refusal(503, "the server ends", code="ending", retry_after=1))
    except Exception as exc:  # noqa: BLE001  the operator is told what, who asks only that
        service.log(service.cover(f"{request.url.path}: {type(exc).__name__}: {exc}"))
        return _refused(Refusal(500, "the server failed; its log says why"))


async def _ask(api: Api, service: Service, request: Request) -> Response:
    """One question, from its admission to its answer, counted whatever comes of it."""
    started = time.perf_counter()
    named, status = "", 500
    service.metrics.in_flight += 1
    try:
        _check_room(service)
        tenant = await _tenant(service, request)
        question = parse_question(api, await _body(service, request))
        reactor = _reactor(service, question.model)
        named = question.model
        if question.is_streamed and reactor.plan.level == "tokens" and len(question.inputs) == 1:
            response = await _live(service, reactor, question, tenant)
            status = 200
            return response
        answer = await _run(service, reactor, question, tenant)
        status = 200
        return _response(question, answer)
    except Refusal as exc:
        status = exc.status
        raise
    except ClientDisconnect:
        status = CLIENT_GONE
        raise
    finally:
        service.metrics.in_flight -= 1
        service.metrics.count(named, status, time.perf_counter() - started)


async def _run(
    service: Service, reactor: RunningReactor, question: Question, tenant: str
) -> Answer:
    def run() -> Answer:
        with service.underway:
            return reactor.run(question.inputs, tenant=tenant)

    try:
        answer = await to_thread.run_sync(run, limiter=service.turns)
    except (ReactorError, InvalidInputError) as exc:
        raise _failed(service, exc) from exc
    return _told(service, question, answer)


def _failed(service: Service, exc: ReactorError | InvalidInputError) -> Refusal:
    """A reactor that does not answer; it may be for the question."""
    status = 400 if exc.error_code in NO_QUESTION else 502
    return Refusal(status, service.cover(exc.message), code=exc.error_code)


def _told(service: Service, question: Question, answer: Answer) -> Answer:
    """An answer as it is told to who asked; members that failed are counted."""
    service.metrics.count_failed(question.model, answer.left_out)
    # Why members failed they say themselves, in words that nobody has looked at.
    told = {member: service.cover(why) for member, why in answer.left_out.items()}
    return replace(answer, left_out=told)


async def _live(
    service: Service, reactor: RunningReactor, question: Question, tenant: str
) -> Response:
    """The pieces of a text as they are written. What fails before the first one is an error."""
    pieces = reactor.stream(question.inputs[0], tenant=tenant)
    turn = object()
    await service.turns.acquire_on_behalf_of(turn)
    try:
        first = await _next(service, pieces)
    except BaseException:
        service.turns.release_on_behalf_of(turn)
        raise
    events = _live_events(service, question, pieces, first, turn)
    return StreamingResponse(events, media_type="text/event-stream", headers=NOT_STORED)


async def _live_events(
    service: Service,
    question: Question,
    pieces: Generator[str, None, Answer],
    piece: str | Answer,
    turn: object,
) -> AsyncIterator[str]:
    """Events of one text. Who stops listening ends the run, and that is written down."""
    events = Events(question)
    try:
        for event in events.begin(0):
            yield event
        while isinstance(piece, str):
            yield events.piece(0, piece)
            piece = await _next(service, pieces)
        answer = _told(service, question, piece)
        for event in ending(question, events, answer, texts_of(answer, 1), 0):
            yield event
        yield DONE
    except Refusal as exc:
        yield failed_event(exc)
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(partial(_close, service, pieces))
        service.turns.release_on_behalf_of(turn)


async def _next(service: Service, pieces: Generator[str, None, Answer]) -> str | Answer:
    """The next piece; at the end what it all comes to."""

    def take() -> str | Answer:
        with service.underway:
            try:
                return next(pieces)
            except StopIteration as done:
                answer: Answer = done.value
                return answer

    try:
        return await to_thread.run_sync(take)
    except ReactorError as exc:
        raise _failed(service, exc) from exc


def _close(service: Service, pieces: Generator[str, None, Answer]) -> None:
    with service.underway:
        pieces.close()


def _response(question: Question, answer: Answer) -> Response:
    if question.is_streamed:
        events = answer_events(question, answer)
        return StreamingResponse(events, media_type="text/event-stream", headers=NOT_STORED)
    return JSONResponse(answer_json(question, answer))


def _check_room(service: Service) -> None:
    limits = service.limits
    if service.metrics.in_flight > limits.concurrency + limits.queue:
        raise Refusal(503, "too many requests are waiting", code="overloaded", retry_after=1)


async def _tenant(service: Service, request: Request) -> str:
    """On whose behalf a request is made: as its key says, and nothing else does."""
    if service.find_key is None:
        # A page of the web may have its own name lead to this machine; a browser says the name.
        if request.url.hostname not in LOOPBACK:
            raise Refusal(403, "without keys only this machine may ask", code="wrong_host")
        return ""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    found = None
    if scheme.lower() == "bearer" and key.strip():
        look = partial(service.find_key, key.strip())
        found = await to_thread.run_sync(look, limiter=service.key_turns)
    if found is None:
        raise Refusal(401, "a key is needed, as `Authorization: Bearer`", code="invalid_api_key")
    return found.tenant


async def _body(service: Service, request: Request) -> bytes:
    """The whole body, if it is JSON, no larger than allowed, and comes in time."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        # A form of another site's page could be sent without asking us first.
        raise Refusal(415, "the body is to be application/json")
    limit = service.limits.max_body_bytes
    said = request.headers.get("content-length", "0")
    if said.isdecimal() and int(said) > limit:
        raise _too_large(limit)
    found = bytearray()
    with anyio.move_on_after(service.limits.body_seconds) as scope:
        async for part in request.stream():
            found += part
            if len(found) > limit:
                raise _too_large(limit)
    if scope.cancelled_caught:
        raise Refusal(408, "the body did not come in time")
    return bytes(found)


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the body is larger than {limit} bytes", code="too_large")


def _reactor(service: Service, name: str) -> RunningReactor:
    if name in service.reactors:
        return service.reactors[name]
    guess = did_you_mean(name, service.reactors) or "see /v1/models"
    message = f"there is no reactor {name!r} here: {guess}"
    raise Refusal(404, message, code="model_not_found", param="model")


async def _models(service: Service, request: Request) -> Response:
    await _tenant(service, request)
    return JSONResponse(models_json(sorted(service.reactors), service.began_at))


async def _model(service: Service, request: Request) -> Response:
    await _tenant(service, request)
    name = request.path_params["name"]
    _reactor(service, name)
    return JSONResponse(model_json(name, service.began_at))


async def _metrics(service: Service, request: Request) -> Response:
    await _tenant(service, request)
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)


async def _health(service: Service, request: Request) -> Response:
    return JSONResponse({"status": "ok"})


def _refused(exc: Refusal) -> Response:
    headers = {}
    if exc.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if exc.retry_after is not None:
        headers["Retry-After"] = str(exc.retry_after)
    return JSONResponse(exc.as_json(), exc.status, headers)


async def _not_found(request: Request, exc: Exception) -> Response:
    """A path or a method that there is not."""
    assert isinstance(exc, HTTPException)
    return _refused(Refusal(exc.status_code, exc.detail))
