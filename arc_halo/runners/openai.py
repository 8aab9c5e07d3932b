"""The runner `openai`: any service with OpenAI's HTTP interface (extra `openai`)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from arc_halo.errors import MemberError, PluginError
from arc_halo.hookspecs import hookimpl
from arc_halo.outputs import Outputs
from arc_halo.runners._prompts import messages_of, prompt_of
from arc_halo.runners._requests import Endpoint, covered_logs
from arc_halo.types import JsonObject, ModelRunner, RunnerContext

VARIABLE = "^[A-Za-z_][A-Za-z0-9_]*$"
KEY_NOTES: JsonObject = {
    "noun": "the name of an environment variable",
    "hint": "put the key into an environment variable, and write key: {env: NAME}",
}

PARAMS: JsonObject = {
    "type": "object",
    "additionalProperties": False,
    "required": ["url", "model"],
    "properties": {
        "url": {
            "type": "string",
            "pattern": r"^https?://[^@?#\s]+$",
            "description": "The API's base address, such as https://api.openai.com/v1.",
            "x-arc-halo": {
                "noun": "an http address without user, password, query and fragment",
                "hint": "write https://HOST/PATH; a key is named beside it: key: {env: NAME}",
            },
        },
        "model": {
            "type": "string",
            "minLength": 1,
            "description": "What the service calls the model.",
        },
        "key": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "required": ["env"],
            "properties": {"env": {"type": "string", "pattern": VARIABLE, "x-arc-halo": KEY_NOTES}},
            "default": None,
            "description": "The environment variable that holds the key: `{env: NAME}`.",
            "x-arc-halo": KEY_NOTES,
        },
        "key_env": {
            "type": ["string", "null"],
            "pattern": VARIABLE,
            "default": None,
            "description": "The same, in one word: `NAME`.",
            "x-arc-halo": KEY_NOTES,
        },
        "api": {
            "type": "string",
            "enum": ["chat", "completions"],
            "default": "chat",
            "description": "Which interface it is asked by.",
        },
        "system": {
            "type": ["string", "null"],
            "default": None,
            "description": "What stands before every question that has no system message.",
        },
        "max_tokens": {
            "type": ["integer", "null"],
            "minimum": 1,
            "default": None,
            "description": "The most tokens of an answer; the service decides where it is null.",
        },
        "temperature": {
            "type": ["number", "null"],
            "minimum": 0,
            "default": None,
            "description": "How random answers are; the service decides where it is null.",
        },
        "logprobs": {
            "type": "boolean",
            "default": False,
            "description": "Ask for log probabilities, and take them as confidence.",
        },
        "timeout": {
            "type": "number",
            "exclusiveMinimum": 0,
            "default": 60,
            "description": "Seconds that one request may take.",
        },
        "retries": {
            "type": "integer",
            "minimum": 0,
            "maximum": 20,
            "default": 2,
            "description": "Further tries after 429, 5xx and lost connections.",
        },
        "concurrency": {
            "type": "integer",
            "minimum": 1,
            "maximum": 256,
            "default": 8,
            "description": "Requests at once, of all calls of this member together.",
        },
    },
}


@hookimpl
def arc_halo_runners() -> Iterator[ModelRunner]:
    yield ModelRunner(
        name="openai",
        version=1,
        summary="a service with OpenAI's HTTP interface",
        open=open_openai,
        params_schema=PARAMS,
    )


@contextmanager
def open_openai(
    context: RunnerContext,
    *,
    url: str,
    model: str,
    key: JsonObject | None = None,
    key_env: str | None = None,
    api: Literal["chat", "completions"] = "chat",
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    logprobs: bool = False,
    timeout: float = 60,
    retries: int = 2,
    concurrency: int = 8,
) -> Iterator[Asking]:
    """The service at `url`, asked over connections that are kept.

    Raises `MemberError` for a host or a key that is not allowed here, and `PluginError` without
    the package httpx.
    """
    try:
        import httpx
    except ImportError as exc:
        raise PluginError(
            "the runner 'openai' needs the package httpx", hint="pip install 'arc-halo[openai]'"
        ) from exc
    context.check_url(url)
    secret = _key(context, key, key_env)
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    asked = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
    with httpx.Client(headers=headers, limits=limits, follow_redirects=False) as client:
        endpoint = Endpoint(client, url, key=secret, timeout=timeout, retries=retries)
        with (
            covered_logs(endpoint.cover),
            ThreadPoolExecutor(concurrency, thread_name_prefix="arc-halo-openai") as pool,
            closing(endpoint),
        ):
            yield Asking(
                endpoint=endpoint,
                pool=pool,
                api=api,
                system=system,
                body={name: value for name, value in asked.items() if value is not None},
                logprobs=logprobs,
                timeout_seconds=context.timeout_seconds,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One answer of the service: its text, its mean token's probability, what it counted, and why
    the text ended."""

    text: str
    confidence: float | None
    usage: JsonObject
    finish_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Answers by asking the service, each input by itself. The pool is the limit of all calls."""

    endpoint: Endpoint
    pool: ThreadPoolExecutor
    api: Literal["chat", "completions"]
    system: str | None
    body: JsonObject
    logprobs: bool
    timeout_seconds: float | None

    def answer(self, inputs: Sequence[Any]) -> Outputs:
        import numpy as np

        deadline = None
        if self.timeout_seconds is not None:
            deadline = time.monotonic() + self.timeout_seconds
        calls = [self.pool.submit(self._ask, each, deadline) for each in inputs]
        # With one answer missing there is none: what has not begun need not be asked any more.
        done, pending = wait(calls, return_when=FIRST_EXCEPTION)
        for call in pending:
            call.cancel()
        failed = next((exc for call in done if (exc := call.exception())), None)
        if failed is not None:
            raise failed
        said = [call.result() for call in calls]
        sure = [each.confidence for each in said if each.confidence is not None]
        return Outputs(
            texts=tuple(each.text for each in said),
            confidence=np.asarray(sure) if sure and len(sure) == len(said) else None,
            details={
                "usage": _added([each.usage for each in said]),
                "finish_reason": [each.finish_reason for each in said],
            },
        )

    def _ask(self, given: Any, deadline: float | None) -> Said:
        if self.api == "chat":
            extra: JsonObject = {"logprobs": True} if self.logprobs else {}
            body = {**self.body, **extra, "messages": messages_of(given, self.system)}
            found = self.endpoint.post("/chat/completions", body, deadline)
        else:
            extra = {"logprobs": 1} if self.logprobs else {}
            body = {**self.body, **extra, "prompt": prompt_of(given, self.system)}
            found = self.endpoint.post("/completions", body, deadline)
        try:
            choice = found["choices"][0]
            text = choice["message"]["content"] if self.api == "chat" else choice["text"]
        except (KeyError, IndexError, TypeError):
            text, choice = None, {}
        if not isinstance(text, str):
            raise MemberError("its answer has no text", hint="see `api`: chat or completions")
        usage, reason = found.get("usage"), choice.get("finish_reason")
        return Said(
            text=self.endpoint.cover(text),
            confidence=_confidence(choice.get("logprobs")),
            usage=usage if isinstance(usage, dict) else {},
            finish_reason=self.endpoint.cover(reason) if isinstance(reason, str) else None,
        )


def _confidence(logprobs: Any) -> float | None:
    """The geometric mean of the tokens' probabilities, exp(mean log p), where they are given."""
    if not isinstance(logprobs, dict):
        return None
    if isinstance(content := logprobs.get("content"), list):
        found = [each.get("logprob") for each in content if isinstance(each, dict)]
    else:
        found = logprobs.get("token_logprobs") or []
    numbers = [each for each in found if isinstance(each, int | float)]
    if not numbers:
        return None
    return min(1.0, math.exp(math.fsum(numbers) / len(numbers)))


COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


def _added(usages: Sequence[JsonObject]) -> dict[str, int]:
    """The tokens that the service counted, of all answers together."""
    return {
        name: sum(each[name] for each in usages if isinstance(each.get(name), int))
        for name in COUNTS
    }


def _key(context: RunnerContext, key: JsonObject | None, key_env: str | None) -> str | None:
    if key is not None and key_env is not None:
        raise MemberError("both `key` and `key_env`", hint="write one of the two")
    name = key_env if key is None else key["env"]
    if name is None:
        return None
    value = context.secret(name).strip()
    # As a header it would be refused with its text in the message.
    if not value or not all("!" <= each <= "~" for each in value):
        raise MemberError(f"the secret {name} is no key: it is empty, or has odd characters")
    return value
