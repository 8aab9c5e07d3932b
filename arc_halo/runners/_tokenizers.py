"""Texts as tokens and back: bytes as they are, or by a model's own tokenizer.json."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

from arc_halo.errors import MemberError
from arc_halo.types import RunnerContext


class Tokenizer(Protocol):
    """`identity` is equal for tokenizers that do the same."""

    identity: str

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class ByteTokenizer:
    """A token is a byte of UTF-8; what is no UTF-8 comes out as a replacement character."""

    identity = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "surrogateescape"))

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode("utf-8", "replace")


class StoredTokenizer:
    """A tokenizer.json, by the library `tokenizers`, special tokens as it says."""

    def __init__(self, document: bytes) -> None:
        try:
            import tokenizers  # pyright: ignore[reportMissingImports]
        except ImportError as exc:
            raise MemberError(
                "tokenizers is not installed", hint="pip install 'arc-halo[torch]'", code="AH030"
            ) from exc
        self.identity = hashlib.sha256(document).hexdigest()
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(document)
        except Exception as exc:
            raise MemberError(f"its tokenizer.json is none that tokenizers reads: {exc}") from exc

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def encode_marked(self, text: str) -> list[int]:
        """The tokens of a text that has its special tokens in it; none are put before or behind."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens)))


def tokenizer_of(context: RunnerContext, said: str) -> Tokenizer:
    """What the param `tokenizer` names. `MemberError` for a model that has none stored."""
    if said == "bytes":
        return ByteTokenizer()
    if context.tokenizer is None:
        raise MemberError(
            "it has no tokenizer",
            hint="keep tokenizer.json beside its weights, or say `tokenizer: bytes`",
        )
    return StoredTokenizer(context.tokenizer)
