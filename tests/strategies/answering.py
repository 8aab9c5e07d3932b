"""Strategies that fuse answers, called as a reactor calls them, defaults of params filled in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from arc_halo.outputs import CombineContext, Outputs
from arc_halo.plugins import PluginManager

STRATEGIES = {
    name: provided.item
    for name, provided in PluginManager().strategies.items()
    if provided.item.combine_outputs is not None
}


def combine(name: str, outputs: Sequence[Outputs], *, params: Any = None, **context: Any) -> Any:
    """What a strategy makes of the answers, which is checked as a reactor checks it."""
    strategy = STRATEGIES[name]
    assert strategy.combine_outputs is not None
    fused = strategy.combine_outputs(outputs, about(outputs, **context), **given(name, params))
    fused.check(len(outputs[0]))
    return fused


def fit(name: str, outputs: Sequence[Outputs], labels: Any, *, params: Any = None, **context: Any):
    """What a strategy learns, as `combine` takes it for `fitted`."""
    strategy = STRATEGIES[name]
    assert strategy.fit_outputs is not None
    said = about(outputs, **context)
    found = strategy.fit_outputs(outputs, labels, said, **given(name, params))
    return {**found, "members": list(said.members)}


def given(name: str, params: Any) -> dict[str, Any]:
    properties = STRATEGIES[name].params_schema.get("properties", {})
    return {**{key: each["default"] for key, each in properties.items()}, **(params or {})}


def about(outputs: Sequence[Outputs], **context: Any) -> CombineContext:
    count = len(outputs)
    whole = {
        "members": tuple("abcdefgh"[:count]),
        "weights": (1.0,) * count,
        "roles": ("primary", *("secondary",) * (count - 1)),
        "inputs": [None] * len(outputs[0]),
    }
    return CombineContext(**{**whole, **context})


def shares(seed: int, rows: int = 20, columns: int = 4) -> Outputs:
    """Probabilities of no particular kind."""
    numbers = np.random.default_rng(seed).dirichlet(np.ones(columns), rows)
    return Outputs(scores=numbers, classes=tuple("wxyz"[:columns]))


def logits(seed: int, rows: int = 20, columns: int = 4) -> Outputs:
    numbers = np.random.default_rng(seed).normal(0, 5, (rows, columns))
    return Outputs(scores=numbers, meaning="logits", classes=tuple("wxyz"[:columns]))
