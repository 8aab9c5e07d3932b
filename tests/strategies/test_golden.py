"""What each version of an exact strategy makes of fixed inputs never changes.

After a change of bits on purpose, raise the strategy's `version`, and write the digests anew:

    python -m tests.strategies.test_golden
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arc_halo.fusion.blocks import fuse_arrays
from arc_halo.plugins import PluginManager
from arc_halo.types import FuseContext, FusionStrategy

FILE = Path(__file__).parent / "golden" / "digests.json"
STRATEGIES = {
    name: provided.item
    for name, provided in PluginManager().strategies.items()
    if provided.item.numerics == "exact" and provided.item.fuse_weights is not None
}
PARAMS: dict[str, list[dict[str, Any]]] = {
    "nearswap": [{"t": 0.25}],
    "ties": [{}, {"density": 0.4}, {"density": 0.4, "elect": "unweighted", "divide": "count"}],
    "dare_linear": [{"density": 0.4}, {"density": 0.4, "rescale": "l1", "seed": 5}],
    "dare_ties": [{"density": 0.4}],
    "della": [{}, {"rescale": "l1"}],
    "breadcrumbs": [{"density": 0.5, "gamma": 0.1}],
    "model_stock": [{}, {"filter_wise": True}],
    "sce": [{}, {"select_topk": 0.3}],
}


def inputs(count: int) -> list[np.ndarray[Any, Any]]:
    """By integer arithmetic alone, so that they are the same anywhere; more than one part."""
    ramp = np.arange(70_000, dtype=np.int64).reshape(700, 100)
    primes = (104729, 130363, 155921, 181081)[: count + 1]
    return [(ramp * prime % 65521 / 32768 - 1).astype(np.float32) for prime in primes]


def digest(strategy: FusionStrategy, params: dict[str, Any]) -> str:
    count = max(strategy.min_members, min(3, strategy.max_members or 3))
    *members, base = inputs(count)
    context = FuseContext(
        tensor="layer.weight",
        weights=(0.5, 0.25, 1.5)[:count],
        base=base if strategy.needs_base else None,
        roots=tuple(bytes([index]) * 32 for index in range(count)),
    )
    properties = strategy.params_schema.get("properties", {})
    defaults = {name: each["default"] for name, each in properties.items() if "default" in each}
    fused = fuse_arrays(strategy, members, context, {**defaults, **params})
    return hashlib.sha256(fused.astype("<f4").tobytes()).hexdigest()


def current() -> dict[str, str]:
    """By strategy, version and params."""
    return {
        f"{name}-{strategy.version} {json.dumps(params, sort_keys=True)}": digest(strategy, params)
        for name, strategy in STRATEGIES.items()
        for params in PARAMS.get(name, [{}])
    }


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_bits_of_a_version_never_change(name: str) -> None:
    golden = json.loads(FILE.read_text())
    prefix = f"{name}-{STRATEGIES[name].version} "
    found = {key: value for key, value in current().items() if key.startswith(prefix)}
    assert found == {key: golden.get(key) for key in found}


if __name__ == "__main__":
    FILE.write_text(json.dumps(current(), indent=2, sort_keys=True) + "\n")
