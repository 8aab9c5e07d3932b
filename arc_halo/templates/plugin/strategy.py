"""The fusion strategy `plugin_name`: a weighted mean that no single member can pull far.

Each member is first kept within `limit` of the median of all members, element by element; what is
left is averaged by the members' weights. Change the formula, the summary and the params to yours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from arc_halo import FuseContext, FusionStrategy, hookimpl
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="plugin_name",
        version=1,  # raise it whenever the same inputs give other bits
        summary="weighted mean of members kept near their median",
        fuse_weights=fuse,
        # Each element by itself, so tensors come in parts and memory stays flat. "rows" are vectors
        # along the last axis; "tensor", the default, is all of it at once.
        part="elements",
        # Only + - * / and square roots, in an order that the shape decides: the same bits on every
        # machine. With exp, powers, trigonometry, @ or numpy.linalg say "platform".
        numerics="exact",
        # The order of members does not matter: they come in that of their names.
        is_symmetric=True,
        # A JSON Schema: manifests are checked by it. Its properties are the keyword-only parameters
        # below, exactly, and its defaults theirs; each needs a description.
        params_schema={
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "limit": {
                    "type": "number",
                    "minimum": 0,
                    "default": 0.01,
                    "description": "How far from the median a member may be before it is cut.",
                }
            },
        },
    )


def fuse(tensors: Sequence[Array], context: FuseContext, *, limit: float = 0.01) -> Array:
    """The fused part, of the members' shape.

    `tensors` has one array a member, float32 (float64 for F64 members) and not to be written into;
    `context.weights` has one number a member. Called from several threads.
    """
    total_weight = sum(context.weights)
    if total_weight == 0:
        # Whoever merges is told, with the names of the strategy and the tensor.
        raise ValueError("the members' weights add up to 0")
    middle = np.median(np.stack(tensors), axis=0)
    # Added up in float64: the result is rounded once, at the end.
    total = np.zeros(middle.shape, np.float64)
    for tensor, weight in zip(tensors, context.weights, strict=True):
        total += weight * np.clip(tensor, middle - limit, middle + limit).astype(np.float64)
    return (total / total_weight).astype(tensors[0].dtype)
