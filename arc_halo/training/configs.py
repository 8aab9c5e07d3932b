"""Configs of sessions: what they may hold, and where two of them differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from arc_halo.errors import InvalidInputError
from arc_halo.training.steps import MAX_STEP, whole_step

MAX_NAME = 200
MAX_GROUP = 128
"""Characters of a session's name, and of its group, as in a manifest."""

MAX_EPOCHS = 2**31 - 1


def as_tags(tags: Any) -> Any:
    """Tags by name; a list of texts is tags that are `true`."""
    if isinstance(tags, list | tuple | set | frozenset) and all(isinstance(t, str) for t in tags):
        return dict.fromkeys(tags, True)
    return tags


def check_lengths(**given: tuple[str | None, int]) -> None:
    """Raise `InvalidInputError` for a text that is empty, or longer than it may be."""
    for name, (text, most) in given.items():
        if text is not None and not 0 < len(text) <= most:
            raise InvalidInputError(
                f"{name}: {text[:40]!r} has {len(text)} characters: write 1 to {most}",
                code="AH007",
            )


def check_totals(*, total_epochs: Any = None, total_steps: Any = None) -> None:
    """Raise `InvalidInputError` for what is no count of epochs or of steps."""
    counts = (("total_epochs", total_epochs, MAX_EPOCHS), ("total_steps", total_steps, MAX_STEP))
    for name, count, most in counts:
        if count is not None and (whole_step(count) is None or count > most):
            raise InvalidInputError(
                f"{name} is {count!r:.80}: it is a whole number from 0 to {most}", code="AH007"
            )


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
