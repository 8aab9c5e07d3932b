"""Requests to one HTTP service: repeated where that may help, and silent about the key."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from arc_halo.errors import MemberError
from arc_halo.types import JsonObject

if TYPE_CHECKING:
    import httpx

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
LONGEST_WAIT_SECONDS = 120.0
"""Longer than that nobody waits, even if the service asks for it."""
MAX_ANSWER_BYTES = 16 * 2**20
LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy")
"""Who may log what a service answers, its headers for one."""
SHOWN = 300
"""Characters of what a service says of an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request that failed. `may_pass` says whether it is worth another try, and after how long
    where the service says so."""

    message: str
    hint: str | None = None
    may_pass: bool = False
    wait_seconds: float | None = None


class Endpoint:
    """Posts JSON to the addresses below one URL, from several threads.

    Redirects are not followed: the key would go along. Nothing that the service says is passed on
    before `cover` has taken the key out of it.
    """

    def __init__(
        self, client: httpx.Client, url: str, *, key: str | None, timeout: float, retries: int
    ) -> None:
        self._client = client
        self._url = url.rstrip("/")
        self._key = key
        self._timeout = timeout
        self._retries = retries
        self._closing = threading.Event()

    def close(self) -> None:
        """Let whoever waits for another try give up."""
        self._closing.set()

    def cover(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def post(self, path: str, body: JsonObject, deadline: float | None) -> JsonObject:
        """What the service answers; until `deadline`, on the clock of `time.monotonic`.

        Raises `MemberError` for anything that is no answer.
        """
        attempt = 0
        while True:
            found = self._try(path, body, deadline)
            if not isinstance(found, Failure):
                return found
            pause = found.wait_seconds if found.wait_seconds is not None else _pause(attempt)
            if not found.may_pass or attempt == self._retries or not _fits(pause, deadline):
                raise MemberError(_short(self.cover(found.message)), hint=found.hint)
            if self._closing.wait(pause):
                raise MemberError("it is closed")
            attempt += 1

    def _try(self, path: str, body: JsonObject, deadline: float | None) -> JsonObject | Failure:
        import httpx

        ends = time.monotonic() + self._timeout
        ends = ends if deadline is None else min(ends, deadline)
        left = ends - time.monotonic()
        if left <= 0 or self._closing.is_set():
            return Failure(message="its turn did not come in time", hint="see `concurrency`")
        try:
            with self._client.stream(
                "POST", f"{self._url}{path}", json=body, timeout=left
            ) as response:
                text = _read(response, ends)
        except httpx.TimeoutException:
            return Failure(message=f"no answer within {left:.3g} s", may_pass=True)
        except httpx.TransportError as exc:
            # Its text is of addresses and errno; the request, which has the key, stays behind.
            return Failure(message=f"{type(exc).__name__}: {exc}", may_pass=True)
        if isinstance(text, Failure):
            return text
        if response.status_code // 100 == 2:
            return _document(text)
        return _refused(response.status_code, response.headers, text)


@contextmanager
def covered_logs(cover: Callable[[str], str]) -> Iterator[None]:
    """Take the key out of what the HTTP library logs meanwhile."""

    def keep(record: logging.LogRecord) -> bool:
        record.msg, record.args = cover(record.getMessage()), ()
        return True

    for name in LOGGERS:
        logging.getLogger(name).addFilter(keep)
    try:
        yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(keep)


def _read(response: httpx.Response, ends: float) -> bytes | Failure:
    found = bytearray()
    for part in response.iter_bytes():
        found += part
        if len(found) > MAX_ANSWER_BYTES:
            return Failure(message=f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > ends:
            return Failure(message="no whole answer in time", may_pass=True)
    return bytes(found)


def _document(text: bytes) -> JsonObject | Failure:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    return Failure(message="its answer is no JSON object", hint="is `url` the API's base address?")


def _refused(status: int, headers: Mapping[str, str], text: bytes) -> Failure:
    if status // 100 == 3:
        host = urlsplit(headers.get("location", "")).hostname or "another address"
        hint = "write the address that answers into `url`"
        return Failure(message=f"it redirects to {host}, which is not followed", hint=hint)
    return Failure(
        message=f"HTTP {status}: {_said(text)}",
        hint="see `key`" if status in (401, 403) else None,
        may_pass=status == 429 or status >= 500,
        wait_seconds=_retry_after(headers.get("retry-after")),
    )


def _said(text: bytes) -> str:
    """What the service says of an error, in OpenAI's form or in any other."""
    said: Any = text.decode("utf-8", "replace")
    try:
        found = json.loads(said)
        error = found["error"]
        said = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        pass
    return str(said)


def _retry_after(text: str | None) -> float | None:
    """Seconds, given as such or as a date; None for what is neither."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"


def _pause(attempt: int) -> float:
    """Twice as long each time, and never the same for two who wait at once."""
    longest: float = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0**attempt)
    return random.uniform(longest / 2, longest)


def _fits(pause: float, deadline: float | None) -> bool:
    if pause > LONGEST_WAIT_SECONDS:
        return False
    return deadline is None or time.monotonic() + pause < deadline
