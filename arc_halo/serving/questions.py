"""What is asked in a request, in OpenAI's form; what cannot be answered is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from arc_halo.names import is_storable
from arc_halo.types import JsonObject

Api = Literal["chat", "completions"]


MAX_DEPTH = 64
"""How deep values of a body are nested; what is kept and passed on must be read again."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
NOT_OFFERED: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (),
    "function_call": ("none", "auto"),
    "functions": (),
    "logprobs": (),
    "modalities": (["text"],),
    "n": (1,),
    "response_format": ({"type": "text"},),
    "suffix": (),
    "tool_choice": ("none", "auto"),
    "tools": (),
    "top_logprobs": (),
}
"""Fields that ask for another form of answer, with the values that do not; others are refused.
`temperature` and its like are the business of members, and are passed over."""


class Refusal(Exception):
    """A request that is answered with an error, in OpenAI's form."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def as_json(self) -> JsonObject:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a request asks of which reactor; `inputs` are the reactor's."""

    api: Api
    model: str
    inputs: Sequence[Any]
    is_streamed: bool
    wants_usage: bool


def parse_question(api: Api, body: bytes) -> Question:
    """The question of a request's body. Raises `Refusal` for one that cannot be answered."""
    document = _document(body)
    model = document.get("model")
    if not isinstance(model, str):
        raise Refusal(400, "`model` is missing: the name of a reactor", param="model")
    for name, harmless in NOT_OFFERED.items():
        if (value := document.get(name)) and value not in harmless:
            raise Refusal(400, f"`{name}` is not offered here", param=name, code="unsupported")
    is_streamed = _flag(document, "stream")
    return Question(
        api=api,
        model=model,
        inputs=[_chat(document)] if api == "chat" else _prompts(document),
        is_streamed=is_streamed,
        wants_usage=_wants_usage(document, is_streamed),
    )


def _flag(document: JsonObject, name: str) -> bool:
    value = document.get(name)
    if not isinstance(value, bool | None):
        raise Refusal(400, f"`{name}` is neither true nor false", param=name)
    return bool(value)


def _wants_usage(document: JsonObject, is_streamed: bool) -> bool:
    options = document.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise Refusal(400, "`stream_options` is no object", param="stream_options")
    if not is_streamed:
        message = "`stream_options` is only for `stream: true`"
        raise Refusal(400, message, param="stream_options")
    return _flag(options, "include_usage")


def _document(body: bytes) -> JsonObject:
    """The JSON object of a body, of values that the database can keep."""
    try:
        found = json.loads(body, parse_constant=_no_number, parse_float=_finite)
        is_kept = isinstance(found, dict) and _is_storable(found)
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is no JSON") from None
    if _depth(found) > MAX_DEPTH:
        raise Refusal(400, f"the body is nested more than {MAX_DEPTH} deep")
    if not is_kept:
        raise Refusal(400, "the body is no JSON object, or has NUL or half a character in it")
    document: JsonObject = found
    return document


def _no_number(name: str) -> float:
    raise ValueError(name)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _is_storable(value: Any) -> bool:
    if isinstance(value, str):
        return is_storable(value)
    if isinstance(value, dict):
        return all(is_storable(key) and _is_storable(each) for key, each in value.items())
    return all(map(_is_storable, value)) if isinstance(value, list) else True


def _depth(value: Any) -> int:
    """How deep a value is nested, by rounds: it may be too deep for functions."""
    depth, level = 0, [value]
    while level := [
        inner
        for each in level
        if isinstance(each, dict | list)
        for inner in (each.values() if isinstance(each, dict) else each)
    ]:
        depth += 1
    return depth


def _chat(document: JsonObject) -> JsonObject:
    """The input of a chat: its messages, and what the user said last."""
    given = document.get("messages")
    if not isinstance(given, list) or not given:
        raise Refusal(400, "`messages` is no list of {role, content}", param="messages")
    messages = [_message(each, f"messages[{place}]") for place, each in enumerate(given)]
    said = [each["content"] for each in messages if each["role"] == "user"]
    return {"messages": messages, "input": _text(said[-1]) if said else ""}


def _message(given: Any, place: str) -> JsonObject:
    if not isinstance(given, dict) or not isinstance(role := given.get("role"), str):
        raise Refusal(400, f"`{place}` is no {{role, content}}", param=place)
    if role not in ROLES:
        message = f"`{place}.role` is {role[:40]!r}; known are {', '.join(ROLES)}"
        raise Refusal(400, message, param=f"{place}.role")
    content = given.get("content")
    if content is None and role == "assistant":
        return {**given, "content": ""}
    if isinstance(content, list) and content:
        for number, part in enumerate(content):
            _check_part(part, f"{place}.content[{number}]")
    elif not isinstance(content, str):
        message = f"`{place}.content` is neither a text nor a list of texts"
        raise Refusal(400, message, param=f"{place}.content")
    return given


def _check_part(part: Any, place: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind != "text":
        message = f"`{place}` is of the type {kind[:40]!r}: reactors are asked texts only"
        raise Refusal(400, message, param=place, code="unsupported")
    if kind is None or not isinstance(part.get("text"), str):
        raise Refusal(400, f"`{place}` is no {{type: text, text}}", param=place)


def _text(content: Any) -> str:
    """The text of a content that was looked at before."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _prompts(document: JsonObject) -> list[str]:
    prompt = document.get("prompt")
    found = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(found, list) or not found or not all(isinstance(p, str) for p in found):
        raise Refusal(400, "`prompt` is neither a text nor a list of texts", param="prompt")
    return found
