"""The params that several strategies share, as JSON Schema, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from arc_halo.errors import FusionError
from arc_halo.types import FuseContext, JsonObject


def schema(**properties: JsonObject) -> JsonObject:
    """A closed object of these params."""
    required = [name for name, each in properties.items() if "default" not in each]
    closed: JsonObject = {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }
    return {**closed, "required": required} if required else closed


def number(description: str, default: float, **limits: Any) -> JsonObject:
    return {"type": "number", "description": description, "default": default, **limits}


def flag(description: str, *, default: bool) -> JsonObject:
    return {"type": "boolean", "description": description, "default": default}


def choice(description: str, *values: str) -> JsonObject:
    """One of some words; the first is the default."""
    return {"enum": list(values), "description": description, "default": values[0]}


SCALE = number("What the change of the base is multiplied by; lambda in the literature.", 1.0)
NORMALIZE = flag("Divide by the sum of the members' weights.", default=False)
DENSITY = number(
    "The share of each member's change that is kept.", 1.0, exclusiveMinimum=0, maximum=1
)
ELECT = choice(
    "What decides the sign of an element: the sum of weighted changes (as mergekit has it), or of "
    "plain ones (PEFT).",
    "weighted",
    "unweighted",
)
DIVIDE = choice(
    "What the sum of the members that agree is divided by: their weights (mergekit), their number "
    "(PEFT), or nothing.",
    "weights",
    "count",
    "none",
)
SCOPE = choice(
    "Where the largest are looked for: in each tensor (as mergekit has it), or in all of them "
    "together (the paper).",
    "tensor",
    "global",
)
SEED = {
    "type": "integer",
    "description": "Another seed, another choice.",
    "default": 0,
    "minimum": 0,
    "maximum": 2**63 - 1,
}


PerMember = float | Sequence[float]
"""A param that is the same for all members, or one number for each."""


def of_each(value: PerMember, count: int) -> list[float]:
    """The param of each of so many members."""
    return list(value) if isinstance(value, Sequence) else [value] * count


def weight_sum(context: FuseContext, strategy: str) -> float:
    """The sum of the members' weights, to divide by. Raises `FusionError` where it is zero."""
    total = math.fsum(context.weights)
    if total == 0:
        raise FusionError(
            f"{strategy}: {context.tensor!r}: the members' weights add up to zero",
            hint="give a member a weight, or let params say not to divide by their sum",
        )
    return total
