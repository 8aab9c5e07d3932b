"""What is seen of a tensor while it is fused: how its members differ, and what was done of it.

Of one block in the middle, so that it costs next to nothing; small tensors are seen as wholes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from arc_halo.types import Block, FuseContext, JsonObject

if TYPE_CHECKING:
    from arc_halo.types import FloatArray


class Observer:
    """Looks at the block that holds the tensor's middle element, once it has been fused."""

    def __init__(self) -> None:
        self.facts: JsonObject = {}

    def see(self, block: Block, fused: FloatArray, context: FuseContext) -> None:
        """Told every block with what became of it."""
        middle = math.prod(context.shape) // 2
        if block.start <= middle < block.start + fused.size:
            self.facts = facts_of(block, fused, context)


def facts_of(block: Block, fused: FloatArray, context: FuseContext) -> JsonObject:
    """Of task vectors (or the members, where there is no base), and of the result.

    `norms` are root mean squares, `cosines` of every two members in order, `sign_conflict` the
    share of elements in which not all that changed agree in sign, `density` the share that is not
    the base's any more, `change_norm` the root mean square of what was changed, `coefficients`
    what the strategy measured, where that is numbers.
    """
    import numpy as np

    base = block.base
    with np.errstate(over="ignore", invalid="ignore"):
        vectors = [
            np.asarray(each if base is None else each - base, np.float64).reshape(-1)
            for each in block.tensors
        ]
        change = np.asarray(fused if base is None else fused - base, np.float64)
        norms = [_rms(vector) for vector in vectors]
        cosines = [
            _cosine(one, other)
            for place, one in enumerate(vectors)
            for other in vectors[place + 1 :]
        ]
        signs = [np.sign(vector) for vector in vectors]
        highest, lowest = np.max(signs, axis=0), np.min(signs, axis=0)
        found: dict[str, Any] = {
            "sampled": int(fused.size),
            "norms": norms,
            "cosines": cosines,
            "mean_cosine": mean(cosines),
            "sign_conflict": float(np.mean((highest > 0) & (lowest < 0))),
            "change_norm": _rms(change.reshape(-1)),
            "density": float(np.count_nonzero(change) / max(1, change.size)),
        }
    measured = _numbers(context.measured)
    return {**found, "coefficients": measured} if measured is not None else found


def _rms(values: Any) -> float | None:
    import numpy as np

    return finite(math.sqrt(float(np.mean(np.square(values)))))


def _cosine(one: Any, other: Any) -> float | None:
    import numpy as np

    lengths = math.sqrt(float(np.sum(np.square(one)))) * math.sqrt(float(np.sum(np.square(other))))
    if not 0 < lengths < math.inf:
        return None
    return finite(float(np.sum(one * other)) / lengths)


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are defined; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def finite(value: float) -> float | None:
    """What is beyond all numbers is not defined."""
    return value if math.isfinite(value) else None


def _numbers(measured: Any) -> list[float] | None:
    """What was measured, where it is a number or some numbers."""
    listed = list(measured) if isinstance(measured, tuple | list) else [measured]
    numbers = [float(each) for each in listed if isinstance(each, int | float)]
    if not numbers or len(numbers) < len(listed) or not all(map(math.isfinite, numbers)):
        return None
    return numbers
