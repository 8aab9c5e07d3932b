"""Sign election, as TIES has it: who agrees with the majority at each element is added up.

P. Yadav et al., "TIES-Merging" (NeurIPS 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.types import FloatArray

    Float64 = NDArray[np.float64]


def elected(
    changes: Sequence[FloatArray],
    weights: Sequence[float],
    *,
    elect: str = "weighted",
    divide: str = "weights",
) -> Float64:
    """The sum of weight times change over the members that have the elected sign, divided.

    The sign is + where the sum of what is judged is 0 or more. Who has 0 agrees with nobody. A
    divisor of 0 counts as 1.
    """
    terms = [
        np.multiply(change, weight, dtype=np.float64)
        for change, weight in zip(changes, weights, strict=True)
    ]
    judged = terms if elect == "weighted" else [np.asarray(c, np.float64) for c in changes]
    is_positive = _sum(judged) >= 0
    total, divisor = np.zeros(terms[0].shape), np.zeros(terms[0].shape)
    for term, judge, weight in zip(terms, judged, weights, strict=True):
        agrees = np.where(is_positive, judge > 0, judge < 0)
        np.add(total, term, out=total, where=agrees)
        if divide != "none":
            np.add(divisor, 1.0 if divide == "count" else weight, out=divisor, where=agrees)
    if divide != "none":
        np.divide(total, divisor, out=total, where=divisor != 0)
    return total


def _sum(terms: Sequence[Float64]) -> Float64:
    total = np.zeros_like(terms[0])
    for term in terms:
        np.add(total, term, out=total)
    return total
