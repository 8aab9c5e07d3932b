"""Configs of sessions: what they may hold, and where two of them differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from arc_halo.config import redact
from arc_halo.errors import InvalidInputError
from arc_halo.names import is_storable


def check_plain(**given: Any) -> None:
    """Raise `InvalidInputError` where a `config`, `dataset` or `tags` holds what JSON does not."""
    for name, settings in given.items():
        if settings is not None and not isinstance(settings, Mapping):
            raise _not_plain(name, settings, "settings are a dict")
        _check(name, dict(settings or {}))


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


def check_texts(**given: Any) -> None:
    """Raise `InvalidInputError` for what is given and is no text that can be stored."""
    for name, text in given.items():
        if text is not None and not (isinstance(text, str) and is_storable(text)):
            raise _not_plain(name, text, "write a text, without NUL and halves of characters")


def flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with its nested keys joined by dots."""
    return dict(_leaves(config, ""))


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys that are in one only, or have another value, in the order of their names."""
    old, new = flattened(before), flattened(after)
    missing = object()
    keys = sorted(old.keys() | new.keys())
    return [key for key in keys if _differ(old.get(key, missing), new.get(key, missing))]


def _check(place: str, value: Any) -> None:
    match value:
        case dict():
            for key, each in value.items():
                if not isinstance(key, str | int) or not is_storable(str(key)):
                    raise _not_plain(f"{place}: its key", key, "keys are texts")
                _check(f"{place}.{key}", each)
        case list() | tuple():
            for i, each in enumerate(value):
                _check(f"{place}[{i}]", each)
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


def _differ(one: Any, other: Any) -> bool:
    """1 and 1.0 are alike, as they are to JSON; 1 and true are not."""
    return isinstance(one, bool) is not isinstance(other, bool) or one != other


def _leaves(config: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
