"""The strategy `passthrough`: one member as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._schemas import number, schema
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from arc_halo.types import FloatArray


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="passthrough",
        version=1,
        summary="one member as it is, or scaled",
        fuse_weights=passthrough,
        part="elements",
        numerics="exact",
        max_members=1,
        params_schema=schema(scale=number("What the member is multiplied by.", 1.0)),
    )


def passthrough(
    tensors: Sequence[FloatArray], context: FuseContext, *, scale: float = 1.0
) -> FloatArray:
    """scale * W. A base, where there is one, and the member's weight do not count."""
    from arc_halo.strategies._sums import weighted_sum

    return weighted_sum(tensors, [scale])
