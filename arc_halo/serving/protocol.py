"""OpenAI's forms: how answers are written, as one document and as events."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from arc_halo.outputs import Outputs
from arc_halo.reactors.measuring import decided
from arc_halo.reactors.running import Answer
from arc_halo.serving.counting import Reason, reasons_of, usage_of
from arc_halo.serving.questions import Question, Refusal
from arc_halo.types import JsonObject

PIECE = re.compile(r".{1,64}(?:\s+|\Z)|.{1,64}", re.DOTALL)


def answer_json(question: Question, answer: Answer) -> JsonObject:
    """An answer as one document."""
    choices = []
    texts = texts_of(answer, len(question.inputs))
    for index, (text, reason) in enumerate(zip(texts, reasons_of(answer, texts), strict=True)):
        said: JsonObject = {"text": text}
        if question.api == "chat":
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        choices.append({"index": index, **said, "logprobs": None, "finish_reason": reason})
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
        # As OpenAI has it: where usage is wanted, all events but the last have none yet.
        self._unknown: JsonObject = {"usage": None} if question.wants_usage else {}
        self._is_chat = question.api == "chat"
        name = "chat.completion.chunk" if self._is_chat else "text_completion"
        self._head = _head(question, operation, name)

    def begin(self, index: int) -> Iterator[str]:
        """Who speaks, where that is said."""
        if self._is_chat:
            yield self._event(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, text: str) -> str:
        return self._event(index, {"content": text})

    def end(self, index: int, reason: Reason, **more: Any) -> str:
        return self._event(index, {}, reason, **more)

    def usage(self, usage: Mapping[str, int]) -> str:
        return _event({**self._head, "choices": [], "usage": usage})

    def _event(self, index: int, delta: JsonObject, finish: str | None = None, **more: Any) -> str:
        said = {"delta": delta} if self._is_chat else {"text": delta.get("content", "")}
        choice = {"index": index, **said, "logprobs": None, "finish_reason": finish}
        return _event({**self._head, "choices": [choice], **self._unknown, **more})


DONE = "data: [DONE]\n\n"


def answer_events(question: Question, answer: Answer) -> Iterator[str]:
    """The same as server-sent events: the finished texts in pieces, in order."""
    events = Events(question, answer.operation_id)
    texts = texts_of(answer, len(question.inputs))
    for index, text in enumerate(texts):
        yield from events.begin(index)
        for piece in pieces(text):
            yield events.piece(index, piece)
        yield from ending(question, events, answer, texts, index)
    yield DONE


def ending(
    question: Question, events: Events, answer: Answer, texts: Sequence[str], index: int
) -> Iterator[str]:
    """How one of the texts ends; with the last one, what is said of them all."""
    reason = reasons_of(answer, texts)[index]
    is_last = index == len(texts) - 1
    yield events.end(index, reason, **({"arc_halo": _facts(answer)} if is_last else {}))
    if is_last and question.wants_usage:
        yield events.usage(usage_of(answer))


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
