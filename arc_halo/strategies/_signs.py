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


def elected(
    changes: Sequence[FloatArray],
    weights: Sequence[float],
    *,
    elect: str = "weighted",
    divide: str = "weights",
) -> FloatArray:
    """The sum of weight times change over the members that have the elected sign, divided.

    The sign is + where the sum of what is judged is 0 or more. Who has 0 agrees with nobody. A
    divisor of 0 counts as 1. In the changes' dtype.
    """
    terms = [change * weight for change, weight in zip(changes, weights, strict=True)]
    judged = terms if elect == "weighted" else changes
    is_positive = _sum(judged) >= 0
    total = np.zeros_like(terms[0])
    divisor = np.zeros_like(terms[0])
    for term, judge, weight in zip(terms, judged, weights, strict=True):
        agrees = factors(((judge > 0) == is_positive) & (judge != 0), term)
        np.add(total, np.multiply(term, agrees, out=term), out=total)
        if divide != "none":
            share = total.dtype.type(_share(weight, divide))
            np.add(divisor, np.multiply(agrees, share, out=agrees), out=divisor)
    if divide != "none":
        np.divide(total, np.where(divisor == 0, total.dtype.type(1), divisor), out=total)
    return total


def factors(mask: NDArray[np.bool_], like: FloatArray) -> FloatArray:
    """1 where the mask is true and 0 elsewhere, in the dtype of what is to be multiplied.

    What is masked one by one takes ten times as long, and multiplied by booleans, twice.
    """
    return mask.astype(like.dtype)


def _share(weight: float, divide: str) -> float:
    return 1.0 if divide == "count" else weight


def _sum(terms: Sequence[FloatArray]) -> FloatArray:
    total = terms[0].copy()
    for term in terms[1:]:
        np.add(total, term, out=total)
    return total
