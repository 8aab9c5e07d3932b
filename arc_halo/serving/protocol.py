"""OpenAI's forms: what is asked in a request, and how answers and errors are written."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID, uuid4

from arc_halo.names import is_storable
from arc_halo.outputs import Outputs
from arc_halo.reactors.measuring import decided
from arc_halo.reactors.running import Answer
from arc_halo.types import JsonObject

Api = Literal["chat", "completions"]

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
PIECE = re.compile(r".{1,64}(?:\s+|\Z)|.{1,64}", re.DOTALL)
COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


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
    options = document.get("stream_options")
    return Question(
        api=api,
        model=model,
        inputs=[_chat(document)] if api == "chat" else _prompts(document),
        is_streamed=document.get("stream") is True,
        wants_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def answer_json(question: Question, answer: Answer) -> JsonObject:
    """An answer as one document."""
    choices = []
    for index, text in enumerate(texts_of(answer, len(question.inputs))):
        said: JsonObject = {"text": text}
        if question.api == "chat":
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        choices.append({"index": index, **said, "logprobs": None, "finish_reason": "stop"})
    name = "chat.completion" if question.api == "chat" else "text_completion"
    return {
        **_head(question, answer.operation_id, name),
        "choices": choices,
        "usage": usage_of(answer),
        "arc_halo": _facts(answer),
    }


class Events:
    """An answer as server-sent events, in OpenAI's form; `operation` is its number on record."""

    def __init__(self, question: Question, operation: UUID | None = None) -> None:
        self._is_chat = question.api == "chat"
        name = "chat.completion.chunk" if self._is_chat else "text_completion"
        self._head = _head(question, operation, name)

    def begin(self, index: int) -> Iterator[str]:
        """Who speaks, where that is said."""
        if self._is_chat:
            yield self._event(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, text: str) -> str:
        return self._event(index, {"content": text})

    def end(self, index: int, **more: Any) -> str:
        return self._event(index, {}, "stop", **more)

    def usage(self, usage: Mapping[str, int]) -> str:
        return _event({**self._head, "choices": [], "usage": usage})

    def _event(self, index: int, delta: JsonObject, finish: str | None = None, **more: Any) -> str:
        said = {"delta": delta} if self._is_chat else {"text": delta.get("content", "")}
        choice = {"index": index, **said, "logprobs": None, "finish_reason": finish}
        return _event({**self._head, "choices": [choice], **more})


DONE = "data: [DONE]\n\n"


def answer_events(question: Question, answer: Answer) -> Iterator[str]:
    """The same as server-sent events: the finished texts in pieces, in order."""
    events = Events(question, answer.operation_id)
    texts = texts_of(answer, len(question.inputs))
    for index, text in enumerate(texts):
        yield from events.begin(index)
        for piece in pieces(text):
            yield events.piece(index, piece)
        is_last = index == len(texts) - 1
        yield events.end(index, **({"arc_halo": _facts(answer)} if is_last else {}))
    if question.wants_usage:
        yield events.usage(usage_of(answer))
    yield DONE


def failed_event(refusal: Refusal) -> str:
    """What a stream ends with that cannot go on."""
    return _event(refusal.as_json())


def models_json(names: Sequence[str], created: int) -> JsonObject:
    return {"object": "list", "data": [model_json(name, created) for name in names]}


def model_json(name: str, created: int) -> JsonObject:
    return {"id": name, "object": "model", "created": created, "owned_by": "arc-halo"}


def pieces(text: str) -> list[str]:
    """A text in parts of at most about 64 characters, cut behind blanks where there are any."""
    return PIECE.findall(text)


def texts_of(answer: Answer, count: int) -> list[str]:
    """A text for each input: the fused text, else what was decided, else the scores as JSON.

    Where members answer side by side it is a JSON object of theirs.
    """
    if answer.outputs is not None:
        return [_plain(each) for each in _values(answer.outputs)]
    asked = {each.member.model: each.indexes for each in answer.members if each.outputs}
    rows: list[JsonObject] = [{} for _ in range(count)]
    for name, outputs in answer.side_by_side.items():
        values = _values(outputs)
        # A specialist was asked some of the inputs only.
        places = range(count) if len(values) == count else asked[name]
        for place, value in zip(places, values, strict=True):
            rows[place][name] = value
    return [_plain(row) for row in rows]


def usage_of(answer: Answer) -> dict[str, int]:
    """The tokens that members' services counted; 0 where none does."""
    found = [each.outputs.details.get("usage") for each in answer.members if each.outputs]
    return {
        name: sum(
            each[name]
            for each in found
            if isinstance(each, dict) and isinstance(each.get(name), int)
        )
        for name in COUNTS
    }


def _values(outputs: Outputs) -> Sequence[Any]:
    if outputs.texts is not None:
        return outputs.texts
    if (found := decided(outputs)) is not None:
        return found
    assert outputs.scores is not None
    values: list[Any] = outputs.scores.tolist()
    return values


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _head(question: Question, operation: UUID | None, kind: str) -> JsonObject:
    prefix = "chatcmpl" if question.api == "chat" else "cmpl"
    return {
        "id": f"{prefix}-{operation or uuid4()}",
        "object": kind,
        "created": int(time.time()),
        "model": question.model,
    }


def _facts(answer: Answer) -> JsonObject:
    return {
        "operation": str(answer.operation_id) if answer.operation_id else None,
        "left_out": dict(answer.left_out),
        "cost": answer.cost,
        "execution_ms": round(answer.execution_ms, 3),
    }


def _event(document: JsonObject) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _document(body: bytes) -> JsonObject:
    """The JSON object of a body, of values that the database can keep."""
    try:
        found = json.loads(body, parse_constant=_no_number, parse_float=_finite)
        is_kept = isinstance(found, dict) and _is_storable(found)
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is no JSON") from None
    if not is_kept:
        raise Refusal(400, "the body is no JSON object, or has NUL characters in it")
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


def _chat(document: JsonObject) -> JsonObject:
    """The input of a chat: its messages, and what the user said last."""
    messages = document.get("messages")
    is_chat = isinstance(messages, list) and all(
        isinstance(each, dict) and isinstance(each.get("role"), str) and "content" in each
        for each in messages
    )
    if not messages or not is_chat:
        raise Refusal(400, "`messages` is no list of {role, content}", param="messages")
    said = [each["content"] for each in messages if each["role"] == "user"]
    return {"messages": messages, "input": _text(said[-1]) if said else ""}


def _text(content: Any) -> str:
    if isinstance(content, list):
        parts = [each.get("text") for each in content if isinstance(each, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _prompts(document: JsonObject) -> list[str]:
    prompt = document.get("prompt")
    found = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(found, list) or not found or not all(isinstance(p, str) for p in found):
        raise Refusal(400, "`prompt` is neither a text nor a list of texts", param="prompt")
    return found
