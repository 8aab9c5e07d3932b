"""Settings of other programs as the config of a session: plain values, and no secrets."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from arc_halo.config import redact
from arc_halo.types import JsonObject

MAX_TEXT = 2000
_SECRET = re.compile(
    r"(?:^|_)(?:token|secret|password|passwd|credentials?|(?:api|access|private|secret)_?key)s?$",
    re.IGNORECASE,
)


def as_config(settings: Mapping[str, Any]) -> JsonObject:
    """Settings as plain values; what has the name of a secret, and a text, is left out.

    Passwords in addresses are covered. What has no plain value is told by its type.
    """
    found = {str(name): value for name, value in settings.items()}
    return {
        _storable(name): _plain(value)
        for name, value in found.items()
        if not is_secret(name, value)
    }


def is_secret(name: str, value: Any) -> bool:
    """Whether a setting is likely to be a secret: `hub_token`, not `max_tokens`."""
    words = re.sub(r"[^0-9a-z]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
    if _SECRET.search(words) is None:
        return False
    return not (value is None or isinstance(value, bool | int | float))


def _plain(value: Any) -> Any:
    match value:
        case None | bool():
            return value
        case Enum():
            return _plain(value.value)
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else str(value)
        case str():
            return _text(value)
        case Mapping():
            return as_config(value)
        case list() | tuple() | set() | frozenset():
            items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
            return [_plain(item) for item in items]
        case _:
            return _told(value)


def _told(value: Any) -> Any:
    """The text of a value, or its type where the text would tell where in memory it is."""
    kind = type(value)
    if isinstance(value, type) or callable(value):
        return getattr(value, "__qualname__", kind.__qualname__)
    if not {"__repr__", "__str__"} & {name for each in kind.__mro__[:-1] for name in vars(each)}:
        return kind.__qualname__
    return _text(str(value))


def _text(text: str) -> str:
    return _storable(redact(text)[:MAX_TEXT])


def _storable(text: str) -> str:
    """Without what a database has no place for: NUL, and halves of characters."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
