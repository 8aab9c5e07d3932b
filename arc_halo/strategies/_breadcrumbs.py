"""What `breadcrumbs` and `breadcrumbs_ties` share: the largest and the smallest changes dropped.

M. Davari, E. Belilovsky, "Model breadcrumbs" (ECCV 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.strategies._schemas import PerMember, choice, number, of_each
from arc_halo.strategies._selection import Cut, cuts
from arc_halo.strategies._signs import factors
from arc_halo.strategies._sparse import Drop, l1_factors, parts
from arc_halo.types import FuseContext

if TYPE_CHECKING:
    from arc_halo.types import FloatArray, Scan

GAMMA = number("The share of the largest changes that is dropped.", 0.01, minimum=0, maximum=1)
RESCALE = choice(
    "What is kept is left (none, as in the paper and mergekit), or stretched to the sum of "
    "magnitudes it had (l1).",
    "none",
    "l1",
)

Cuts = list[tuple[Cut, Cut]]
"""For each member where the largest end that are dropped, and where all end that are not small."""


def measure(
    scan: Scan,
    context: FuseContext,
    *,
    density: PerMember = 1.0,
    gamma: PerMember = 0.01,
    rescale: str = "none",
    **_: object,
) -> tuple[Drop, list[float] | None]:
    """What drops the changes in the next pass, and the factors of `l1`."""
    size = math.prod(context.shape)
    members = len(context.weights)
    tops = [int(each * size) for each in of_each(gamma, members)]
    kept = [int(each * size) for each in of_each(density, members)]
    low = [max(0, size - keep - top) for keep, top in zip(kept, tops, strict=True)]
    found = cuts(
        lambda: ([*changes, *changes] for changes in parts(scan)),
        [*tops, *(size - each for each in low)],
        size,
    )
    pairs = list(zip(found[:members], found[members:], strict=True))
    factors = l1_factors(scan, _dropping(pairs)) if rescale == "l1" else None
    return _dropping(pairs), factors


def _dropping(pairs: Cuts) -> Drop:
    keepers = [(top.keeper(), rest.keeper()) for top, rest in pairs]

    def drop(changes: Sequence[FloatArray], start: int) -> list[FloatArray]:
        for change, (top, rest) in zip(changes, keepers, strict=True):
            mask = rest.mask(change) & ~top.mask(change)
            np.multiply(change, factors(mask, change), out=change)
        return list(changes)

    return drop
