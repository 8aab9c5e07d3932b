"""Which checkpoint is meant: by its id, by its step, or as the latest or the best."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from arc_halo.errors import InvalidInputError
from arc_halo.store.checkpoints import Checkpoint

Which = UUID | str | int
"""A checkpoint by its id, by its step, or as 'latest' or 'best'."""


def choose(points: Sequence[Checkpoint], which: Which, parts: set[str]) -> Checkpoint | None:
    """Of a history, the checkpoint that is meant by 'latest', 'best' or a step, for these parts."""
    types = {"full"}
    if parts <= {"model"}:
        types.add("weights_only")
    if "model" not in parts:
        types.add("optimizer_only")
    fit = [point for point in points if point.type in types]
    if which == "best":
        fit = [point for point in fit if point.is_best]
    elif which != "latest":
        fit = [point for point in fit if point.step == which]
        # Of several at one step the one that has most.
        fit.sort(key=lambda point: point.type == "full")
    return fit[-1] if fit else None


def is_id(which: Which) -> bool:
    """Whether it names a checkpoint by its id. Raises `InvalidInputError` for what is nothing."""
    if isinstance(which, UUID):
        return True
    if which in ("latest", "best") or (isinstance(which, int) and not isinstance(which, bool)):
        return False
    try:
        UUID(str(which))
    except ValueError as exc:
        raise InvalidInputError(
            f"{which!r} is no checkpoint", hint="give its id, a step, 'latest' or 'best'"
        ) from exc
    return True
