"""What callers give, refused in words before anything is made of it."""

from __future__ import annotations

from math import inf
from typing import Any

from arc_halo.errors import InvalidInputError
from arc_halo.plain import check_texts, whole
from arc_halo.tensors import digests

MAX_LIMIT = 10**9
MAX_COUNT = 2**31 - 1


def check_number(
    name: str, value: Any, least: float, most: float = inf, *, is_whole: bool = False
) -> None:
    """Raise `InvalidInputError` for what is no number, or not one of these."""
    given: float | None = whole(value)
    if given is None and not is_whole and isinstance(value, float):
        given = value
    if given is None or not least <= given <= most:
        said = "a whole number" if is_whole else "a number"
        to = "" if most == inf else f" to {most:,.10g}"
        raise InvalidInputError(
            f"{name} cannot be {value!r:.80}",
            hint=f"write {said} from {least:g}{to}",
            code="AH007",
        )


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise `InvalidInputError` for what is no whole number of things."""
    check_number(name, value, least, MAX_COUNT, is_whole=True)


def check_limit(limit: Any) -> None:
    """Raise `InvalidInputError` for what is no number of rows; None is all of them."""
    if limit is not None:
        check_number("limit", limit, 0, MAX_LIMIT, is_whole=True)


def check_given(**texts: Any) -> None:
    """Raise `InvalidInputError` for what is no text that can be stored, None too."""
    for name, text in texts.items():
        if text is None:
            raise InvalidInputError(
                f"{name} cannot be None", hint="leave it out where there is none", code="AH004"
            )
    check_texts(**texts)


def given_root(root: Any) -> bytes:
    """A root of weights as bytes, written as `sha256:…` or not. Raises `InvalidInputError`."""
    found = digests.parse_digest(root) if isinstance(root, str) else root
    if not isinstance(found, bytes) or len(found) != digests.DIGEST_BYTES:
        raise InvalidInputError(
            f"{root!r:.80} is no root of weights",
            hint=f"give its {digests.DIGEST_BYTES} bytes, as `halo.models.get(...).root` has them",
            code="AH006",
        )
    return found
