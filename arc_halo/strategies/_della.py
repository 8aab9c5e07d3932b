"""What `della` and `della_linear` share: changes dropped at random, small ones more likely.

P. Tej Deep et al., "DELLA-Merging" (arXiv 2406.11617).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.errors import FusionError
from arc_halo.strategies._draws import bounds, kept_below
from arc_halo.strategies._schemas import PerMember, choice, number, of_each
from arc_halo.strategies._signs import factors
from arc_halo.strategies._sparse import Drop, l1_factors
from arc_halo.types import FuseContext

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.types import FloatArray, Scan

DENSITY = number(
    "The share of each member's change that is kept on average.",
    0.5,
    exclusiveMinimum=0,
    exclusiveMaximum=1,
)
EPSILON = number(
    "How far the probability of a row's smallest lies below `density`, and of its largest above.",
    0.15,
    minimum=0,
    exclusiveMaximum=0.5,
)
RESCALE = choice(
    "What is kept is divided by its probability (as in the paper: the expectation stays), "
    "stretched to the sum of magnitudes it had (l1, as mergekit has it), or left (none).",
    "inverse_p",
    "l1",
    "none",
)


def check(context: FuseContext, density: PerMember, epsilon: PerMember) -> None:
    """Refuse probabilities of 0 or less, and of 1 or more."""
    for share, width in _pairs(context, density, epsilon):
        _check(context, share, width)


def _pairs(
    context: FuseContext, density: PerMember, epsilon: PerMember
) -> list[tuple[float, float]]:
    count = len(context.weights)
    return list(zip(of_each(density, count), of_each(epsilon, count), strict=True))


def _check(context: FuseContext, density: float, epsilon: float) -> None:
    if not (density - epsilon > 0 and density + epsilon < 1):
        raise FusionError(
            f"della: {context.tensor!r}: density {density:g} and epsilon {epsilon:g} give "
            "probabilities that do not lie between 0 and 1",
            hint="choose them so that density - epsilon > 0 and density + epsilon < 1",
        )


def dropping(
    context: FuseContext, density: PerMember, epsilon: PerMember, rescale: str, seed: int
) -> Drop:
    pairs = _pairs(context, density, epsilon)

    def drop(changes: Sequence[FloatArray], start: int) -> list[FloatArray]:
        is_rescaled = rescale == "inverse_p"
        rest: list[FloatArray] = []
        for member, (change, (share, width)) in enumerate(zip(changes, pairs, strict=True)):
            columns = change.shape[-1]
            places = ranks(change) if columns > 1 else np.zeros((), np.int64)
            by_rank = chances_by_rank(columns, share, width if columns > 1 else 0)
            mask = kept_below(bounds(by_rank)[places], change, context, seed, member, start)
            np.multiply(change, factors(mask, change), out=change)
            rest.append(np.divide(change, by_rank[places], out=change) if is_rescaled else change)
        return rest

    return drop


def chances_by_rank(columns: int, density: float, epsilon: float) -> NDArray[np.float64]:
    """The probability of each rank of a row of so many."""
    return np.asarray(density - epsilon + 2 * epsilon * np.arange(columns) / max(1, columns - 1))


def ranks(values: FloatArray) -> NDArray[np.int64]:
    """The place of each element in its row by magnitude, 0 for the smallest.

    Of equal ones the first counts as the larger.
    """
    rows, columns = values.shape
    magnitudes = np.abs(values)
    if values.dtype == np.float32 and columns < 2**32:
        # Both in one number, since sorting numbers is much faster than sorting their places.
        backwards = np.arange(columns - 1, -1, -1, dtype=np.uint64)
        keys = magnitudes.view(np.uint32).astype(np.uint64) << np.uint64(32) | backwards
        keys.sort(axis=1)
        places = (columns - 1) - (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    else:
        places = columns - 1 - np.argsort(magnitudes[:, ::-1], axis=1, kind="stable")
    places += np.arange(rows)[:, None] * columns
    found = np.empty(rows * columns, np.int64)
    found[places.reshape(-1)] = np.tile(np.arange(columns), rows)
    return found.reshape(rows, columns)


def measure(
    scan: Scan,
    context: FuseContext,
    *,
    density: PerMember = 0.5,
    epsilon: PerMember = 0.15,
    rescale: str = "inverse_p",
    seed: int = 0,
    **_: object,
) -> list[float] | None:
    """The factors of `l1`; None where there are none. Refuses params that do not fit."""
    check(context, density, epsilon)
    if rescale != "l1":
        return None
    return l1_factors(scan, dropping(context, density, epsilon, rescale, seed))
