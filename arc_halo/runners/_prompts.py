"""Inputs of a reactor as what language models are asked: messages, or one text.

An input is a text, or a mapping with `messages`, or with `prompt` or `input`. A mapping may also
have `answers`, which a hierarchical reactor adds: `[{model, kind, answer}, …]`. They stand below
the question, one after another:

    What is the capital of France?

    Answers of other models:

    [scout@1.0.0, feeds_into]
    Paris

What is asked about another model's answer, by `validates` and `corrects`, has the answer below the
question, after the words `Answer of scout@1.0.0:`.
"""

from __future__ import annotations

import json
from typing import Any

from arc_halo.errors import MemberError
from arc_halo.types import JsonObject

HEADING = "Answers of other models:"
EXPECTED = "an input is a text, or a mapping with `messages`, `prompt` or `input`"


def messages_of(given: Any, system: str | None) -> list[JsonObject]:
    """An input as the messages of a chat. Raises `MemberError` for one that has no question."""
    messages = _messages(given)
    if system is not None and not any(each["role"] == "system" for each in messages):
        messages = [{"role": "system", "content": system}, *messages]
    answers = answers_text(given)
    if not answers:
        return messages
    last = messages[-1]
    if last["role"] == "user" and isinstance(last["content"], str):
        return [*messages[:-1], {**last, "content": f"{last['content']}\n\n{answers}"}]
    return [*messages, {"role": "user", "content": answers}]


def prompt_of(given: Any, system: str | None) -> str:
    """An input as one text: messages as lines that begin with their role.

    Raises `MemberError` for one that has no question.
    """
    if isinstance(given, dict) and "messages" in given:
        lines = [f"{each['role']}: {_text(each['content'])}" for each in messages_of(given, system)]
        return "\n\n".join([*lines, "assistant:"])
    parts = [system, _question(given), answers_text(given)]
    return "\n\n".join(part for part in parts if part)


def conversation_of(given: Any) -> list[JsonObject] | None:
    """The messages of an input that has some, with texts as contents; None for one without.

    What is asked about another model's answer to a conversation is one message.
    """
    asked = given
    while isinstance(asked, dict) and "messages" not in asked:
        asked = next((asked[name] for name in ("prompt", "input") if name in asked), None)
    if not isinstance(asked, dict) or not asked["messages"]:
        return None
    messages = messages_of(given, None)
    return [{"role": each["role"], "content": _text(each["content"])} for each in messages]


def answers_text(given: Any) -> str:
    """The answers of other models that an input brings along; an empty text without any."""
    answers = given.get("answers") if isinstance(given, dict) else None
    if not answers:
        return ""
    parts = [f"[{each['model']}, {each['kind']}]\n{_plain(each['answer'])}" for each in answers]
    return "\n\n".join([HEADING, *parts])


def judged_text(given: Any) -> str:
    """The answer that is to be judged or corrected, where the input brings one along."""
    if "answer" not in given or "member" not in given:
        return ""
    return f"\n\nAnswer of {given['member']}:\n\n{_plain(given['answer'])}"


def _messages(given: Any) -> list[JsonObject]:
    if not isinstance(given, dict) or "messages" not in given:
        return [{"role": "user", "content": _question(given)}]
    messages: list[JsonObject] = given["messages"]
    is_chat = isinstance(messages, list) and all(
        isinstance(each, dict) and isinstance(each.get("role"), str) and "content" in each
        for each in messages
    )
    if not is_chat or not messages:
        message = "its `messages` are no list of {role, content}"
        raise MemberError(message, hint=EXPECTED, code="AH006")
    return messages


def _question(given: Any) -> str:
    if isinstance(given, str):
        return given
    if isinstance(given, dict) and "messages" in given:
        return "\n\n".join(f"{m['role']}: {_text(m['content'])}" for m in _messages(given))
    if isinstance(given, dict):
        found = next((given[name] for name in ("prompt", "input") if name in given), None)
        if found is not None:
            question = _question(found) if isinstance(found, dict) else _plain(found)
            return question + judged_text(given)
    message = f"{type(given).__name__} is no question to a language model"
    raise MemberError(message, hint=EXPECTED, code="AH006")


def _text(content: Any) -> str:
    """The text of a message, whose content may also be a list of parts."""
    if isinstance(content, list):
        return "".join(each.get("text", "") for each in content if isinstance(each, dict))
    return _plain(content)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
