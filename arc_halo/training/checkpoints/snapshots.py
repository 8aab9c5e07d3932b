"""A snapshot: all that a checkpoint will hold, taken from what is being trained."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arc_halo.errors import CheckpointError, InvalidInputError
from arc_halo.training.checkpoints import generators
from arc_halo.training.checkpoints.generators import Generators
from arc_halo.training.checkpoints.holders import model_state, state_of
from arc_halo.training.checkpoints.retention import CheckpointType
from arc_halo.training.checkpoints.states import Leaf, flatten
from arc_halo.types import JsonObject

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1
TYPES: tuple[CheckpointType, ...] = ("full", "weights_only", "optimizer_only")
STATES = ("optimizer", "scheduler", "scaler", "data", "extra")
"""The parts that are states, as they are called when they are saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The weights, if any, and the leaves of every other part."""

    type: CheckpointType
    weights: Mapping[str, NDArray[Any]] | None
    states: Mapping[str, list[Leaf]]


def take(
    type_: CheckpointType,
    *,
    model: Any,
    parts: Mapping[str, Any],
    rng: bool,
    named: Generators | None,
    copy: bool,
) -> Snapshot:
    """What there is now. `parts` are those of `STATES`, None for what there is not.

    With `copy` nothing that happens afterwards shows in it. Raises `InvalidInputError` for parts
    that do not go with the type, and `CheckpointError` for what cannot be kept.
    """
    given = {name: holder for name, holder in parts.items() if holder is not None}
    _check_type(type_, model, given)
    states = {name: state_of(holder) for name, holder in given.items()}
    weights = None
    if model is not None:
        found = model_state(model, copy=copy)
        weights = found.arrays
        if found.rest:
            states["model"] = found.rest
    if rng and type_ != "weights_only":
        states["rng"] = generators.capture(named)
    leaves = {name: _flatten(name, state, copy) for name, state in states.items()}
    return Snapshot(type=type_, weights=weights, states=leaves)


def facts() -> JsonObject:
    """How the state is written, and by which libraries."""
    import numpy as np

    versions = {"python": sys.version.partition(" ")[0], "numpy": np.__version__}
    if (torch := sys.modules.get("torch")) is not None:
        versions["torch"] = str(torch.__version__)
    return {"format": FORMAT, "versions": versions}


def as_metrics(metrics: Mapping[str, Any] | None) -> JsonObject:
    """Numbers as JSON; NaN and the infinities as text. Raises `InvalidInputError`."""
    return {str(name): _number(str(name), value) for name, value in (metrics or {}).items()}


def metric_value(metrics: JsonObject, name: str | None) -> float | None:
    """What was measured, as a number again."""
    found = None if name is None else metrics.get(name)
    return None if found is None else float(found)


def _number(name: str, value: Any) -> float | str:
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as exc:
        raise InvalidInputError(f"the metric {name!r} is {value!r:.60}: no number") from exc
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _check_type(type_: str, model: Any, given: Mapping[str, Any]) -> None:
    if type_ not in TYPES:
        raise InvalidInputError(
            f"there is no checkpoint of type {type_!r}", hint=f"one of {', '.join(TYPES)}"
        )
    if type_ == "optimizer_only" and model is not None:
        raise InvalidInputError("an optimizer_only checkpoint has no model", hint="leave it out")
    if type_ != "optimizer_only" and model is None:
        raise InvalidInputError(f"a {type_} checkpoint needs a model", hint="give `model=`")
    if type_ == "weights_only" and given:
        raise InvalidInputError(
            f"a weights_only checkpoint has no {', '.join(given)}", hint="leave it out"
        )
    if type_ == "optimizer_only" and not given:
        raise InvalidInputError("an optimizer_only checkpoint needs a state", hint="`optimizer=`")


def _flatten(part: str, state: Any, copy: bool) -> list[Leaf]:
    try:
        return flatten(state, copy=copy)
    except CheckpointError as exc:
        raise CheckpointError(f"{part}: {exc.message}", hint=exc.hint) from exc
