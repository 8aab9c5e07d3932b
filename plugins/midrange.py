"""An example plugin: the fusion strategy `midrange`. Copy it, rename it, change the formula.

A project loads it by naming the file in its `arc_halo.yaml`:

    plugins: [plugins/midrange.py]

and uses it as any other strategy:

    reactors:
      calm: {type: merge, strategy: midrange, ...}
"""

from __future__ import annotations

import numpy as np

from arc_halo import FusionStrategy, hookimpl


@hookimpl
def arc_halo_fusion_strategies():
    yield FusionStrategy(
        name="midrange",
        version=1,  # raise it whenever the same inputs give other bits
        summary="halfway between the least and the greatest member",
        fuse_weights=midrange,
        part="elements",  # each element by itself: tensors come in parts, however large they are
        numerics="exact",
        is_symmetric=True,
    )


def midrange(tensors, context):
    """Halfway between the least and the greatest of each element over all members.

    The members' weights do not count. Where a member is NaN, so is the result.
    """
    stacked = np.stack(tensors)
    return (stacked.min(axis=0) + stacked.max(axis=0)) / 2
