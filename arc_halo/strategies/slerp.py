"""The strategy `slerp`: from one model to another along the arc between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from arc_halo.errors import FusionError
from arc_halo.hookspecs import hookimpl
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from arc_halo.types import FloatArray, Scan

PARALLEL = 0.9995


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="slerp",
        version=2,
        summary="spherical interpolation between two models",
        measure=measure,
        fuse_weights=slerp,
        part="elements",
        min_members=2,
        max_members=2,
        params_schema={
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "t": {
                    "type": ["number", "null"],
                    "minimum": 0,
                    "maximum": 1,
                    "default": None,
                    "description": "How far from the first member (0) to the second (1); "
                    "null: the second's share of the two weights.",
                }
            },
        },
    )


def measure(scan: Scan, context: FuseContext, *, t: float | None = None) -> tuple[float, float]:
    """What each member is multiplied by."""
    from arc_halo.strategies._sums import gram

    if len(context.weights) != 2:
        raise FusionError(
            f"slerp: {context.tensor!r}: it fuses exactly 2 members, not {len(context.weights)}",
            hint="use linear for more than two",
        )
    share = _share(context, t)
    products = gram(scan, of_deltas=False)
    if not products.size:
        return 1 - share, share
    cosine = _cosine(products[0, 1], products[0, 0], products[1, 1])
    return _coefficients(cosine, share)


def slerp(
    tensors: Sequence[FloatArray], context: FuseContext, *, t: float | None = None
) -> FloatArray:
    """The point at `t` on the arc from the first member to the second, each taken as one vector.

    With the angle a between the two, (sin((1-t)a) x + sin(ta) y) / sin(a); the lengths of both
    are kept, so the result's length lies between them. Where the arc is not defined (a member is
    zero) or too short or too flat to compute (the cosine is beyond 0.9995 either way) it is the
    straight line (1-t) x + t y. Computed in float64 and rounded once.

    K. Shoemake, "Animating rotation with quaternion curves" (SIGGRAPH 1985), of any dimension.
    """
    from arc_halo.strategies._sums import weighted_sum

    return weighted_sum(tensors, context.measured)


def _share(context: FuseContext, t: float | None) -> float:
    if t is None:
        total = math.fsum(context.weights)
        t = context.weights[1] / total if total else -1.0
    if not 0 <= t <= 1:
        raise FusionError(
            f"slerp: {context.tensor!r}: t is not between 0 and 1",
            hint="set params.t, or give both members weights from 0 up, not both of them 0",
        )
    return t


def _cosine(product: float, *squares: float) -> float:
    """The cosine of the angle; 1 where a vector is zero, to have the straight line taken."""
    if 0.0 in squares:
        return 1.0
    return product / math.sqrt(squares[0]) / math.sqrt(squares[1])


def _coefficients(cosine: float, t: float) -> tuple[float, float]:
    if t in (0, 1) or abs(cosine) > PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
