"""What the changes of the members of a merge have to do with each other, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING

from arc_halo.fusion.facts import finite, mean

if TYPE_CHECKING:
    from arc_halo.types import FloatArray

WORST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorConflict:
    """How the changes of one tensor stand to each other; without a base, its members.

    `cosines` and `sign_conflicts` are of every two `members` in order. A sign conflict is the share
    of elements that differ in sign, of those that both changed: a half where two changes are
    unrelated. `relative_norms` are the norms of the changes over the base's. None is not defined:
    what is unchanged has no direction.
    """

    name: str
    elements: int
    sampled: int
    members: tuple[str, ...]
    cosines: tuple[float | None, ...]
    sign_conflicts: tuple[float | None, ...]
    relative_norms: tuple[float | None, ...] | None

    @property
    def mean_cosine(self) -> float | None:
        return mean(self.cosines)

    @property
    def sign_conflict(self) -> float | None:
        return mean(self.sign_conflicts)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The tensors of floats of a merge, in order. Means are weighted by elements.

    `read_bytes` were read, of `size_bytes` that the merge has to read at least once.
    """

    tensors: tuple[TensorConflict, ...]
    read_bytes: int
    size_bytes: int

    @cached_property
    def mean_cosine(self) -> float | None:
        return weighted(self.tensors, lambda each: each.mean_cosine)

    @cached_property
    def sign_conflict(self) -> float | None:
        return weighted(self.tensors, lambda each: each.sign_conflict)

    @cached_property
    def relative_norms(self) -> dict[str, float | None]:
        """How far each member went from its base; empty where there is none."""
        models = dict.fromkeys(
            m for each in self.tensors if each.relative_norms for m in each.members
        )
        return {model: weighted(self.tensors, _relative_norm_of(model)) for model in models}

    def worst(self, count: int = WORST) -> list[TensorConflict]:
        """The tensors whose signs are most at odds, the worst first."""
        known = [(each.sign_conflict, each) for each in self.tensors]
        found = [(value, each) for value, each in known if value is not None]
        found.sort(key=lambda pair: (-pair[0], pair[1].name))
        return [each for _, each in found[:count]]


def weighted(
    tensors: Sequence[TensorConflict], value: Callable[[TensorConflict], float | None]
) -> float | None:
    """The mean over the tensors that have such a value, by their elements; None where none has."""
    pairs = [(found, each.elements) for each in tensors if (found := value(each)) is not None]
    total = sum(elements for _, elements in pairs)
    return sum(found * elements for found, elements in pairs) / total if total else None


def _relative_norm_of(model: str) -> Callable[[TensorConflict], float | None]:
    def norm(each: TensorConflict) -> float | None:
        norms = zip(each.members, each.relative_norms or (), strict=False)
        return next((value for member, value in norms if member == model), None)

    return norm


class Sums:
    """What is added up block by block, and all that has to be remembered of a tensor."""

    def __init__(self, count: int) -> None:
        import numpy as np

        self._pairs = list(combinations(range(count), 2))
        self._products = np.zeros((count, count))
        self._both = np.zeros(len(self._pairs), np.int64)
        self._against = np.zeros(len(self._pairs), np.int64)
        self._base_square = 0.0
        self.sampled = 0

    def add(self, members: Sequence[FloatArray], base: FloatArray | None) -> None:
        """Elements of all inputs at one place, in float64."""
        import numpy as np

        vectors = np.stack(members) if base is None else np.stack(members) - base
        with np.errstate(over="ignore", invalid="ignore"):
            self._products += vectors @ vectors.T
            self._base_square += 0.0 if base is None else float(base @ base)
        signs = np.sign(vectors).astype(np.int8)
        for place, (one, other) in enumerate(self._pairs):
            agreement = signs[one] * signs[other]
            self._both[place] += np.count_nonzero(agreement)
            self._against[place] += np.count_nonzero(agreement < 0)
        self.sampled += vectors.shape[1]

    @property
    def cosines(self) -> tuple[float | None, ...]:
        return tuple(
            _ratio(
                float(self._products[one, other]),
                self._norm(one) * self._norm(other),
            )
            for one, other in self._pairs
        )

    @property
    def sign_conflicts(self) -> tuple[float | None, ...]:
        pairs = zip(self._against, self._both, strict=True)
        return tuple(_ratio(float(against), float(both)) for against, both in pairs)

    @property
    def relative_norms(self) -> tuple[float | None, ...]:
        base = math.sqrt(self._base_square)
        return tuple(_ratio(self._norm(place), base) for place in range(len(self._products)))

    def _norm(self, place: int) -> float:
        return math.sqrt(float(self._products[place, place]))


def _ratio(part: float, whole: float) -> float | None:
    return finite(part / whole) if 0 < whole < math.inf else None
