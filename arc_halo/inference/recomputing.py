"""Stored keys and values beside those that a model computes of the same tokens now."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from arc_halo.errors import InvalidInputError
from arc_halo.inference.blocks import INT8, Array, LayerKV
from arc_halo.inference.kv_cache import Prefix

Compute = Callable[[list[int]], Sequence[LayerKV]]

EXACT = {"F64": 1e-3, "F32": 1e-3}
ROUNDED = 0.1
"""What is allowed, and where values have 16 bits or are quantised. Rounding alone is far below,
and keys and values of another prompt or model are about 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongPrompt:
    """A prompt whose stored keys and values are not what the model computes."""

    tokens: tuple[int, ...]
    layer: int
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputation:
    """What was computed again. `error` is the largest of a layer: the root mean square of the
    differences, by that of the values."""

    prompts: int
    tokens: int
    error: float
    wrong: tuple[WrongPrompt, ...]


def recompute(
    stored: Iterable[tuple[list[int], Prefix]], compute: Compute, tolerance: float
) -> Recomputation:
    """Compare what is stored of prompts with what is computed of as many of their tokens.

    Raises `InvalidInputError` for a tolerance that is no number from 0.
    """
    if not isinstance(tolerance, int | float) or not tolerance >= 0:
        raise InvalidInputError(
            f"tolerance cannot be {tolerance!r:.80}",
            hint="write a number from 0, such as 0.001",
            code="AH007",
        )
    prompts = count = 0
    worst = 0.0
    wrong: list[WrongPrompt] = []
    for tokens, prefix in stored:
        if not prefix.length:
            continue
        known = tokens[: prefix.length]
        found = layer_errors(prefix.layers, compute(known))
        error = max(found)
        if error > tolerance:
            wrong.append(WrongPrompt(tokens=tuple(known), layer=found.index(error), error=error))
        prompts, count, worst = prompts + 1, count + len(known), max(worst, error)
    return Recomputation(prompts=prompts, tokens=count, error=worst, wrong=tuple(wrong))


def layer_errors(stored: Sequence[LayerKV], computed: Sequence[LayerKV]) -> list[float]:
    """By layer. What is computed has all tokens that are stored, and may have more."""
    found = []
    for there, here in zip(stored, computed, strict=True):
        part = slice(there.start - here.start, there.stop - here.start)
        pairs = zip(there.both, here.both, strict=True)
        found.append(max(_error(each, other[:, part]) for each, other in pairs))
    return found


def tolerance_of(dtype: str, storage: str) -> float:
    """How far rounding may go."""
    return ROUNDED if storage == INT8 else EXACT.get(dtype, ROUNDED)


def _error(stored: Array, computed: Array) -> float:
    there, expected = stored.astype(np.float64), computed.astype(np.float64)
    if np.array_equal(there, expected, equal_nan=True):
        return 0.0
    size = float(np.sqrt(np.mean(expected**2)))
    difference = float(np.sqrt(np.mean((there - expected) ** 2)))
    error = difference / size if size else math.inf
    return error if math.isfinite(error) else math.inf
