"""Random numbers that belong to elements: the same for every part, thread, worker and machine.

Each element of each member has 32 bits of its own, from a counter-based generator (Philox 4x64-10:
J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) keyed by the seed, the
root of the member's weights and the tensor's name, at the place of the element's flat index.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.types import FuseContext

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.types import FloatArray

NUMBERS_A_COUNT = 8
"""Numbers of 32 bits that one value of the counter gives."""


def draws(
    context: FuseContext, seed: int, member: int, start: int, count: int
) -> NDArray[np.uint32]:
    """The numbers of a member's elements from flat index `start` on, uniform in [0, 2**32)."""
    generator = np.random.Philox(key=_key(context, seed, member), counter=start // NUMBERS_A_COUNT)
    skipped = start % NUMBERS_A_COUNT
    words = generator.random_raw(-(-(skipped + count) // 2))
    return words.astype("<u8", copy=False).view("<u4")[skipped : skipped + count]


def kept(
    values: FloatArray,
    probability: float | FloatArray,
    context: FuseContext,
    seed: int,
    member: int,
    start: int,
) -> NDArray[np.bool_]:
    """A mask that keeps each element with its probability."""
    return kept_below(bounds(probability), values, context, seed, member, start)


def bounds(probability: float | FloatArray) -> NDArray[np.uint32]:
    """Below which number an element is kept."""
    return np.asarray(np.minimum(np.asarray(probability) * 2.0**32, 2**32 - 1), np.uint32)


def kept_below(
    bound: NDArray[np.uint32],
    values: FloatArray,
    context: FuseContext,
    seed: int,
    member: int,
    start: int,
) -> NDArray[np.bool_]:
    """A mask that keeps each element whose number is below its bound."""
    numbers = draws(context, seed, member, start, values.size).reshape(values.shape)
    mask: NDArray[np.bool_] = numbers < bound
    return mask


def _key(context: FuseContext, seed: int, member: int) -> int:
    # Without roots, as in a test of a strategy by itself, the member's number stands for it.
    root = context.roots[member] if context.roots else member.to_bytes(32, "little")
    name = context.tensor.encode()
    said = b"arc-halo/draws/1\0" + seed.to_bytes(8, "little") + root + name
    return int.from_bytes(hashlib.sha256(said).digest()[:16], "little")
