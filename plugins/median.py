"""An example plugin: the fusion strategy `median`. Copy it, rename it, change the formula.

A project loads it by naming the file in its `arc_halo.yaml`:

    plugins: [plugins/median.py]

and uses it as any other strategy:

    reactors:
      calm: {type: merge, strategy: median, ...}
"""

from __future__ import annotations

import numpy as np

from arc_halo import FusionStrategy, hookimpl


@hookimpl
def arc_halo_fusion_strategies():
    yield FusionStrategy(
        name="median",
        version=1,  # raise it whenever the same inputs give other bits
        summary="element-wise median of the members",
        fuse_weights=median,
    )


def median(tensors, context):
    """The median of each element over all members; of an even number, the middle two's mean.

    The members' weights do not count. Where a member is NaN, so is the result.
    """
    return np.asarray(np.median(np.stack(tensors), axis=0))
