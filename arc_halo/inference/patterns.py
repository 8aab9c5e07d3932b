"""Attention as bytes: one head's rows one after another, causal ones without what they cannot see.

A *pattern* is [queries, keys]; the last query stands at the last key. Where nothing goes to keys
behind the query, the pattern is causal, and query i has `keys - queries + i + 1` numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from arc_halo.errors import InvalidInputError
from arc_halo.tensors import dtypes

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is needed to find a row among packed bytes."""

    query_count: int
    key_count: int
    is_causal: bool
    dtype: str

    def row(self, query: int) -> tuple[int, int]:
        """The first number of a query's row, and how many it has."""
        if not self.is_causal:
            return query * self.key_count, self.key_count
        before = self.key_count - self.query_count
        return query * before + query * (query + 1) // 2, before + query + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One head of a capture: its numbers, and what each query does with its attention.

    `entropy` is in nats, `sink_mass` what the first key gets, `peak` the most that one key gets.
    """

    shape: Shape
    entropy: NDArray[np.float32]
    sink_mass: NDArray[np.float32]
    peak: NDArray[np.float32]
    packed: bytes


def pack(weights: NDArray[Any], dtype: str) -> Packed:
    """A pattern [queries, keys] packed. What it tells of queries is computed before it is cast."""
    queries, keys = weights.shape
    wide = weights.astype(np.float64)
    seen = visible(queries, keys)
    is_causal = keys >= queries and not wide[~seen].any()
    cast = weights.astype(dtypes.numpy_dtype(dtype), copy=False)
    return Packed(
        shape=Shape(query_count=queries, key_count=keys, is_causal=is_causal, dtype=dtype),
        entropy=entropy(wide).astype(np.float32),
        sink_mass=wide[:, 0].astype(np.float32),
        peak=wide.max(axis=1).astype(np.float32),
        packed=bytes(dtypes.raw_bytes(cast[seen] if is_causal else cast)),
    )


def unpack(packed: bytes, shape: Shape) -> NDArray[Any]:
    """The pattern [queries, keys] in its dtype."""
    whole = (shape.query_count, shape.key_count)
    if not shape.is_causal:
        return dtypes.view(packed, shape.dtype, whole).copy()
    found = np.zeros(whole, dtypes.numpy_dtype(shape.dtype))
    seen = visible(*whole)
    found[seen] = dtypes.view(packed, shape.dtype, [int(seen.sum())])
    return found


def visible(queries: int, keys: int) -> NDArray[np.bool_]:
    """Which keys each query of a causal pattern sees."""
    return np.tri(queries, keys, keys - queries, dtype=bool)


def entropy(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row, in nats; 0 for one that gives all to one key."""
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(weights == 0, 0.0, weights * np.log(weights))
    found: NDArray[np.float64] = -each.sum(axis=-1)
    return found


def assembled(parts: Sequence[NDArray[Any]], total: int) -> NDArray[Any]:
    """The patterns [batch, heads, queries, keys] of passes that went on from one another, as one.

    Each pass has the last of the keys until then: a window forgets the first. A cache of a fixed
    size has more, which nothing may go to. Raises `InvalidInputError` where it does.
    """
    first = parts[0]
    if len(parts) == 1 and first.shape[2:] == (total, total):
        return first
    found = np.zeros((*first.shape[:2], total, total), first.dtype)
    done = 0
    for part in parts:
        queries, keys = part.shape[2:]
        end = done + queries
        if keys > end and part[..., end:].any():
            raise InvalidInputError(
                f"{queries} queries attend to {keys} keys, of which there are {end}",
                hint="attention to what was not among the tokens is not captured",
            )
        used = part[..., :end]
        found[:, :, done:end, end - used.shape[-1] : end] = used
        done = end
    return found
