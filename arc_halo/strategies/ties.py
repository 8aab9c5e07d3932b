"""The strategy `ties`: small changes trimmed, signs elected, and who agrees averaged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.errors import FusionError
from arc_halo.hookspecs import hookimpl
from arc_halo.strategies._schemas import (
    DENSITY,
    DIVIDE,
    ELECT,
    SCALE,
    SCOPE,
    PerMember,
    of_each,
    schema,
)
from arc_halo.types import FuseContext, FusionStrategy, JsonObject, SurveyTensor

if TYPE_CHECKING:
    from arc_halo.strategies._selection import Keeper
    from arc_halo.types import FloatArray, Scan


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="ties",
        version=1,
        summary="trim small changes, elect signs, add up who agrees",
        measure=measure,
        survey=survey,
        fuse_weights=ties,
        part="elements",
        numerics="exact",
        is_symmetric=True,
        needs_base=True,
        member_params=("density",),
        params_schema=schema(density=DENSITY, elect=ELECT, divide=DIVIDE, scope=SCOPE, scale=SCALE),
    )


def measure(
    scan: Scan,
    context: FuseContext,
    *,
    density: PerMember = 1.0,
    scope: str = "tensor",
    **_: object,
) -> list[Keeper] | None:
    """Who is among the largest, for each member; None where all are kept."""
    from arc_halo.strategies._selection import cut_at, cuts
    from arc_halo.strategies._sums import deltas

    if context.surveyed is not None:
        pairs = zip(context.surveyed["thresholds"], context.surveyed["ties"], strict=True)
        return [cut_at(threshold, count).keeper() for threshold, count in pairs]
    size = math.prod(context.shape)
    counts = [max(1, int(each * size)) for each in of_each(density, len(context.weights))]
    if min(counts) >= size:
        return None
    if scope == "global":
        raise FusionError(
            f"ties: {context.tensor!r}: it was not looked for in all tensors",
            hint="set `scope: global` in the reactor's params, not in a rule",
        )
    found = cuts(lambda: (deltas(block) for block in scan()), counts, size)
    return [cut.keeper() for cut in found]


def survey(
    tensors: Sequence[SurveyTensor], *, density: PerMember = 1.0, scope: str = "tensor", **_: object
) -> dict[str, JsonObject] | None:
    """Where each member's largest elements of all tensors end, and how many equal ones count."""
    from arc_halo.strategies._selection import cuts
    from arc_halo.strategies._sums import deltas

    size = sum(tensor.size for tensor in tensors)
    if scope == "tensor":
        return None
    count = len(next(iter(tensors[0].scan())).tensors)
    counts = [max(1, int(each * size)) for each in of_each(density, count)]
    if min(counts) >= size:
        return None
    # One dtype for all, where some are wide.
    dtype = np.float64 if any(tensor.is_wide for tensor in tensors) else np.float32

    def changes(tensor: SurveyTensor) -> Iterator[list[FloatArray]]:
        for block in tensor.scan():
            if len(block.tensors) != count:
                raise FusionError(
                    f"ties: {tensor.name!r} is fused of {len(block.tensors)} members, others of "
                    f"{count}",
                    hint="`scope: global` needs every member in every slice",
                )
            yield [delta.astype(dtype, copy=False) for delta in deltas(block)]

    found = cuts(lambda: (part for t in tensors for part in changes(t)), counts, size)
    left = [cut.ties for cut in found]
    surveyed: dict[str, JsonObject] = {}
    for tensor in tensors:
        taken = [0] * count
        for part in changes(tensor):
            for member, (values, cut) in enumerate(zip(part, found, strict=True)):
                taken[member] += int(np.count_nonzero(np.abs(values) == cut.threshold))
        taken = [min(one, other) for one, other in zip(taken, left, strict=True)]
        left = [one - other for one, other in zip(left, taken, strict=True)]
        surveyed[tensor.name] = {"thresholds": [cut.threshold for cut in found], "ties": taken}
    return surveyed


def ties(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    *,
    density: PerMember = 1.0,
    elect: str = "weighted",
    divide: str = "weights",
    scope: str = "tensor",
    scale: float = 1.0,
) -> FloatArray:
    """B + scale * the sum of w_i d_i over the members that agree with the elected sign, divided.

    Of each change d_i = W_i - B only its max(1, floor(density * n)) largest elements count, of the
    tensor's n or, by `scope`, of those of all tensors; equal ones by their place. Signs are elected
    and the sum divided as `elect` and `divide` say; the defaults are mergekit's.

    P. Yadav et al., "TIES-Merging" (NeurIPS 2023).
    """
    from arc_halo.strategies._signs import elected, factors
    from arc_halo.strategies._sums import differences, moved

    changes = differences(tensors, context.base)
    for change, keeper in zip(changes, context.measured or (), strict=False):
        np.multiply(change, factors(keeper.mask(change), change), out=change)
    merged = elected(changes, context.weights, elect=elect, divide=divide)
    return moved(context, merged, scale)
