"""What tokens are called where they are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from arc_halo.errors import InvalidInputError

TokenTexts = Callable[[Sequence[int]], Sequence[str]]


def token_texts(given: Any) -> TokenTexts:
    """A function from ids to texts: of a tokenizer, or the one that is given.

    Tokenizers of transformers and of the tokenizers library decode token by token, so that each
    has a text of its own.
    """
    if hasattr(given, "decode"):
        return lambda ids: [str(given.decode([token])) for token in ids]
    if callable(given):
        function: Any = given
        return lambda ids: list(function(ids))
    raise InvalidInputError(
        f"a {type(given).__name__} gives no texts of tokens",
        hint="give the tokenizer, or a function from ids to as many texts",
    )
