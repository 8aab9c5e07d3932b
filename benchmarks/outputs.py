"""The corpus's plugin: the strategy `mean_outputs`, so that its reactors have one to name."""

from __future__ import annotations

import numpy as np

from arc_halo import FusionStrategy, hookimpl


@hookimpl
def arc_halo_fusion_strategies():
    yield FusionStrategy(
        name="mean_outputs",
        version=1,
        summary="element-wise mean of the members' outputs",
        combine_outputs=mean_outputs,
        params_schema={
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "weighted": {
                    "type": "boolean",
                    "default": True,
                    "description": "Count each member by its weight.",
                }
            },
        },
    )


def mean_outputs(outputs, context, *, weighted=True):
    """The mean of arrays of one shape, each counted by its member's weight if `weighted`."""
    return np.average(np.stack(outputs), axis=0, weights=context.weights if weighted else None)
