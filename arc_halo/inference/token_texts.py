"""What tokens are called where they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from arc_halo.errors import InvalidInputError

HINT = "give the tokenizer, or a function from a list of ids to as many texts"

TokenTexts = Callable[[Sequence[int]], Sequence[str]]


def token_texts(given: Any) -> TokenTexts:
    """A function from ids to texts: of a tokenizer, or the one that is given.

    Tokenizers of transformers and of the tokenizers library decode token by token, so that each
    has a text of its own.
    """
    if hasattr(given, "decode") and not isinstance(given, bytes):
        return lambda ids: [str(given.decode([token])) for token in ids]
    if callable(given):
        function: Any = given
        return lambda ids: _texts(function(list(ids)), len(ids))
    raise InvalidInputError(
        f"a {type(given).__name__} gives no texts of tokens", hint=HINT, code="AH006"
    )


def _texts(found: Any, count: int) -> list[str]:
    texts = [str(text) for text in found] if isinstance(found, Iterable) else []
    if len(texts) != count:
        raise InvalidInputError(f"{count} tokens have {len(texts)} texts", hint=HINT, code="AH006")
    return texts
