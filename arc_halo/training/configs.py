"""Configs of sessions, compared field by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with its nested keys joined by dots."""
    return dict(_leaves(config, ""))


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys that are in one only, or have another value, in the order of their names."""
    old, new = flattened(before), flattened(after)
    missing = object()
    keys = sorted(old.keys() | new.keys())
    return [key for key in keys if _differ(old.get(key, missing), new.get(key, missing))]


def _differ(one: Any, other: Any) -> bool:
    """1 and 1.0 are alike, as they are to JSON; 1 and true are not."""
    return isinstance(one, bool) is not isinstance(other, bool) or one != other


def _leaves(config: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
