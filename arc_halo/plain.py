"""What programs give to be recorded: plain values and texts, without the passwords of addresses."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from arc_halo.config import redact
from arc_halo.errors import InvalidInputError
from arc_halo.names import is_storable

MAX_ERROR = 2000
MAX_DEPTH = 100
"""Of settings within settings."""


def check_plain(**given: Any) -> None:
    """Raise `InvalidInputError` where a `config`, `dataset` or `tags` holds what JSON does not."""
    for name, settings in given.items():
        if settings is not None and not isinstance(settings, Mapping):
            raise _not_plain(name, settings, "settings are a dict")
        _check(name, dict(settings or {}))


def check_texts(**given: Any) -> None:
    """Raise `InvalidInputError` for what is given and is no text that can be stored."""
    for name, text in given.items():
        if text is not None and not (isinstance(text, str) and is_storable(text)):
            raise _not_plain(name, text, "write a text, without NUL and halves of characters")


def whole(value: Any) -> int | None:
    """A whole number of any kind, numpy's and torch's too; None for what is none."""
    if not isinstance(value, bool):
        with suppress(TypeError):
            return operator.index(value)
    return None


def covered(value: Any) -> Any:
    """Settings, or a text, without the passwords of addresses: what is recorded, many may read."""
    match value:
        case str():
            return redact(value)
        case Mapping():
            return {key: covered(each) for key, each in value.items()}
        case list() | tuple():
            return [covered(each) for each in value]
        case _:
            return value


def told(error: BaseException) -> str:
    """What is kept of an error."""
    try:
        return cleaned(f"{type(error).__name__}: {error}")
    except Exception:  # noqa: BLE001 - what an error says of itself may be an error
        return type(error).__name__


def cleaned(text: str) -> str:
    """One line that can be stored, without the passwords of addresses."""
    storable = text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    return redact(" ".join(storable.split()))[:MAX_ERROR]


def _check(place: str, value: Any, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise _not_plain(place[:80], value, f"nest it {MAX_DEPTH} times at most")
    match value:
        case dict():
            for key, each in value.items():
                if not isinstance(key, str | int) or not is_storable(str(key)):
                    raise _not_plain(f"{place}: its key", key, "keys are texts")
                _check(f"{place}.{key}", each, depth + 1)
        case list() | tuple():
            for i, each in enumerate(value):
                _check(f"{place}[{i}]", each, depth + 1)
        case str() if is_storable(value):
            pass
        case float() if math.isfinite(value):
            pass
        case None | bool() | int():
            pass
        case _:
            raise _not_plain(place, value, "write a plain number or a text, such as str(...)")


def _not_plain(place: str, value: Any, hint: str) -> InvalidInputError:
    told = repr(value) if isinstance(value, str | float) else f"a {type(value).__name__}"
    return InvalidInputError(f"{place}: {told[:80]} cannot be kept there", hint=hint, code="AH004")
