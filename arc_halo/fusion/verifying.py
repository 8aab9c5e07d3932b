"""Merges computed once more, tensor by tensor, from what their lineage says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from arc_halo.errors import ArcHaloError, NotFoundError
from arc_halo.fusion.tensor_recipes import TensorRecipe
from arc_halo.fusion.working import Strategies, compute, known_recipe
from arc_halo.store import builds, fused
from arc_halo.store.builds import NamedTensor
from arc_halo.store.fused import FusedTensor
from arc_halo.tensors import digests, dtypes
from arc_halo.tensors.digests import format_digest
from arc_halo.weights.spans import StoredTensor
from arc_halo.weights.store import Advance, WeightStore, no_progress
from arc_halo.weights.threads import Cancellation, in_threads

Verdict = Literal["same", "close", "different", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What computing a tensor again came to.

    `close` are tensors of a strategy whose numerics are the platform's: other bits, but the norm
    of the difference is no more than the dtype's epsilon times that of the tensor (`distance` is
    their quotient). `unknown` says in `reason` why nothing could be computed.
    """

    name: str
    verdict: Verdict
    digest: str
    computed: str | None = None
    distance: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Of all tensors in the order of their file; `taken` were no matter of computing."""

    tensors: Sequence[Verified]
    taken: int

    @property
    def is_sound(self) -> bool:
        return all(each.verdict in ("same", "close") for each in self.tensors)


def bytes_to_compute(store: WeightStore, weight_set_id: int, name: str | None = None) -> int:
    """The raw bytes of the tensors that `verify` computes."""
    with store.pool.connection() as conn:
        made = fused.of_set(conn, weight_set_id, name)
    return sum(tensor.size_bytes for tensor in made if tensor.key is not None)


def verify(
    store: WeightStore,
    strategies: Strategies,
    weight_set_id: int,
    name: str | None = None,
    *,
    advance: Advance = no_progress,
) -> Verification:
    """Compute the tensors of merged weights again, or the one of that name, and compare.

    Nothing is stored. Raises `NotFoundError` for weights that were not merged here, or a name that
    no tensor has.
    """
    with store.pool.connection() as conn:
        made = fused.of_set(conn, weight_set_id, name)
        stored = {tensor.name: tensor for tensor in builds.set_tensors(conn, weight_set_id)}
    if not made:
        what = "these weights were" if name is None else f"the tensor {name!r} was"
        raise NotFoundError(
            f"{what} not fused here", hint="weights that were imported have no recipe"
        )
    cancellation = Cancellation()

    def one(tensor: FusedTensor) -> Verified:
        with cancellation.guard():
            found = _verified(store, strategies, tensor, stored[tensor.name])
        advance(tensor.size_bytes)
        return found

    computed = [tensor for tensor in made if tensor.key is not None]
    return Verification(
        tensors=in_threads(store.threads, one, computed, cancellation),
        taken=len(made) - len(computed),
    )


def _verified(
    store: WeightStore, strategies: Strategies, tensor: FusedTensor, stored: NamedTensor
) -> Verified:
    expected = format_digest(bytes(stored.digest))
    try:
        assert tensor.recipe is not None
        recipe = known_recipe(tensor.recipe, tensor.labels, tensor.size_bytes, strategies)
        computed = _digest(compute(store, recipe), recipe)
    except ArcHaloError as exc:
        return Verified(name=tensor.name, verdict="unknown", digest=expected, reason=exc.message)
    if computed == bytes(stored.digest):
        return Verified(name=tensor.name, verdict="same", digest=expected, computed=expected)
    distance = _distance(store, recipe, stored)
    assert recipe.strategy is not None
    is_close = recipe.strategy.numerics == "platform" and distance <= epsilon(recipe.dtype)
    return Verified(
        name=tensor.name,
        verdict="close" if is_close else "different",
        digest=expected,
        computed=format_digest(computed),
        distance=distance if math.isfinite(distance) else None,
    )


def epsilon(dtype: str) -> float:
    """The distance from 1 to the next number of the dtype."""
    import ml_dtypes

    found: Any = ml_dtypes.finfo(dtypes.numpy_dtype(dtype))  # type: ignore[no-untyped-call]
    return float(found.eps)


def _digest(pieces: Iterator[memoryview], recipe: TensorRecipe) -> bytes:
    hasher = digests.TensorHasher(recipe.dtype, recipe.shape)
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()


def _distance(store: WeightStore, recipe: TensorRecipe, stored: NamedTensor) -> float:
    """The norm of the difference over that of what is stored."""
    import numpy as np

    source, offset = StoredTensor(store, stored, stored.name), 0
    dtype = dtypes.numpy_dtype(recipe.dtype)
    gap = square = 0.0
    for piece in compute(store, recipe):
        there = memoryview(bytearray(piece.nbytes))
        source.read_into(offset, there)
        offset += piece.nbytes
        one, two = (_floats(raw, dtype) for raw in (piece, there))
        gap += float(np.sum(np.square(one - two)))
        square += float(np.sum(np.square(two)))
    if square == 0:
        return 0.0 if gap == 0 else math.inf
    return math.sqrt(gap / square)


def _floats(raw: memoryview, dtype: Any) -> Any:
    import numpy as np

    return np.frombuffer(raw, dtype).astype(np.float64)
