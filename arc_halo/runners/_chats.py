"""Conversations as a model was trained on them: by its chat template, in transformers' sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from arc_halo.errors import MemberError
from arc_halo.types import JsonObject, RunnerContext

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
"""Tokens that templates call by these names."""
TRIAL = [{"role": "user", "content": "hello"}]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A template, and the special tokens that its file gives for it."""

    text: str
    special: Mapping[str, str] = field(default_factory=dict)


def read_template(context: RunnerContext, said: str | JsonObject) -> ChatTemplate:
    """The template that stands in the manifest, or in the file that it names.

    A file that ends in .json is a tokenizer_config.json. Raises `MemberError` for one that cannot
    be read, or has no template.
    """
    if isinstance(said, str):
        return ChatTemplate(text=said)
    label = said["file"]
    path = context.find_file(label)
    try:
        text = path.read_text(encoding="utf-8")
        is_config = path.suffix == ".json"
        return _of_config(json.loads(text)) if is_config else ChatTemplate(text=text)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise MemberError(
            f"{label}: this has no chat template: {type(exc).__name__}: {exc}",
            hint="name a chat_template.jinja, or a tokenizer_config.json that has `chat_template`",
        ) from exc


class Chat:
    """Messages as texts, by a template, of the model whose tokenizer.json and config are given.

    Raises `MemberError` for a template that makes nothing of a question.
    """

    def __init__(self, template: ChatTemplate, document: bytes, architecture: JsonObject) -> None:
        import tokenizers  # pyright: ignore[reportMissingImports]

        tokenizer: Any = tokenizers.Tokenizer.from_buffer(document)
        special = {**_of_architecture(tokenizer, architecture), **template.special}
        # By name: a type checker that has no such package takes the runner beside this file for it.
        transformers: Any = import_module("transformers")
        self._tokenizer: Any = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, chat_template=template.text, **special
        )
        self.render(TRIAL)

    def render(self, messages: Sequence[JsonObject]) -> str:
        """The text of a conversation up to where the answer begins, special tokens and all."""
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as exc:
            raise MemberError(
                f"its chat template fails: {type(exc).__name__}: {exc}",
                hint="see `chat_template`; with false, messages become lines",
            ) from exc


def _of_config(config: JsonObject) -> ChatTemplate:
    found = config["chat_template"]
    if isinstance(found, list):
        found = {each["name"]: each["template"] for each in found}["default"]
    if not isinstance(found, str):
        raise TypeError("`chat_template` is no text")
    said = {name: config[name] for name in SPECIAL if config.get(name) is not None}
    named = {
        name: token["content"] if isinstance(token, dict) else token for name, token in said.items()
    }
    return ChatTemplate(text=found, special=named)


def _of_architecture(tokenizer: Any, architecture: JsonObject) -> dict[str, str]:
    """The special tokens whose ids the config gives; the first of several."""
    found = {}
    for name in SPECIAL:
        said = architecture.get(f"{name}_id")
        id_ = said[0] if isinstance(said, list) and said else said
        token = tokenizer.id_to_token(id_) if isinstance(id_, int) and id_ >= 0 else None
        if token is not None:
            found[name] = token
    return found
