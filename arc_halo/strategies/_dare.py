"""What `dare_linear` and `dare_ties` share: changes dropped at random.

L. Yu et al., "Language models are super Mario" (ICML 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.strategies._draws import kept
from arc_halo.strategies._schemas import PerMember, choice, of_each
from arc_halo.strategies._signs import factors
from arc_halo.strategies._sparse import Drop, l1_factors
from arc_halo.types import FuseContext

if TYPE_CHECKING:
    from arc_halo.types import FloatArray, Scan

RESCALE = choice(
    "What is kept is divided by `density` (as in the paper, and PEFT: the expectation stays), "
    "stretched to the sum of magnitudes it had (l1, as mergekit has it), or left (none).",
    "inverse_density",
    "l1",
    "none",
)


def dropping(context: FuseContext, density: PerMember, rescale: str, seed: int) -> Drop:
    densities = of_each(density, len(context.weights))

    def drop(changes: Sequence[FloatArray], start: int) -> list[FloatArray]:
        is_rescaled = rescale == "inverse_density"
        rest = []
        for member, (change, share) in enumerate(zip(changes, densities, strict=True)):
            if share < 1:
                mask = kept(change, share, context, seed, member, start)
                np.multiply(change, factors(mask, change), out=change)
                if is_rescaled:
                    np.divide(change, share, out=change)
            rest.append(change)
        return rest

    return drop


def measure(
    scan: Scan,
    context: FuseContext,
    *,
    density: PerMember = 1.0,
    rescale: str = "inverse_density",
    seed: int = 0,
    **_: object,
) -> list[float] | None:
    """The factors of `l1`; None where there are none."""
    if rescale != "l1" or min(of_each(density, len(context.weights))) >= 1:
        return None
    return l1_factors(scan, dropping(context, density, rescale, seed))
