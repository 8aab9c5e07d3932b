"""The strategy `plugin_name` keeps the contract of strategies, and does what its formula says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from arc_halo.plugins import PluginManager
from arc_halo.testing import StrategyContract
from numpy.typing import NDArray

FILE = Path(__file__).parents[1] / "plugins" / "plugin_name.py"
LOADED = PluginManager.load({"plugins/plugin_name.py": FILE})


class TestPluginName(StrategyContract):
    """Shapes, dtypes, threads, parts, order, NaN and more, each as a test.

    Where yours differs on purpose, say `has_fixed_point` or `spreads_nan` = False.
    """

    strategy = LOADED.strategy("plugin_name").item
    params: ClassVar[Mapping[str, Any]] = {
        "limit": 0.5
    }  # in which some members are cut, and some are not

    def oracle(
        self,
        tensors: Sequence[NDArray[Any]],
        weights: Sequence[float],
        base: NDArray[Any] | None,
        params: Mapping[str, Any],
    ) -> NDArray[Any]:
        """The formula once more, in float64 and as plainly as can be: element by element."""
        fused = np.empty(tensors[0].shape)
        for index in np.ndindex(fused.shape):
            values = [float(tensor[index]) for tensor in tensors]
            middle, limit = float(np.median(values)), params["limit"]
            kept = [min(max(value, middle - limit), middle + limit) for value in values]
            fused[index] = sum(w * v for w, v in zip(weights, kept, strict=True)) / sum(weights)
        return fused
