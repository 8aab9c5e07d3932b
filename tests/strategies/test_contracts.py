"""Our own strategies keep the contract that is shipped for everybody's."""

from __future__ import annotations

from typing import Any

from arc_halo.plugins import PluginManager
from arc_halo.testing import StrategyContract

STRATEGIES = {
    name: provided.item
    for name, provided in PluginManager().strategies.items()
    if provided.item.fuse_weights is not None
}

# The engine refuses members with NaN. By itself, what drops elements may drop that one too.
QUIET: dict[str, Any] = {"spreads_nan": False}

CLAIMS: dict[str, dict[str, Any]] = {
    "arcee_fusion": QUIET,
    "karcher": QUIET,
    "nearswap": {"params": {"t": 0.5}},
    "ram": QUIET,
    "ramplus_tl": QUIET,
    # Half way the order of two does not matter.
    "slerp": {"params": {"t": 0.2}},
    "wudi": QUIET,
}
MORE: list[tuple[str, str, dict[str, Any]]] = [
    ("linear", "plain_sum", {"params": {"normalize": False}, "has_fixed_point": False}),
    ("nuslerp", "by_rows", {"params": {"flatten": False}}),
    ("nuslerp", "by_columns", {"params": {"flatten": False, "row_wise": True}}),
    ("passthrough", "scaled", {"params": {"scale": 0.5}, "has_fixed_point": False}),
    ("ties", "half", {"params": {"density": 0.5}}),
    ("ties", "as_peft", {"params": {"elect": "unweighted", "divide": "count"}}),
    ("dare_linear", "half", {"params": {"density": 0.5}}),
    ("dare_ties", "stretched", {"params": {"density": 0.5, "rescale": "l1"}}),
    ("della", "stretched", {"params": {"rescale": "l1"}}),
    ("breadcrumbs", "few", {"params": {"density": 0.3, "gamma": 0.1}}),
    ("model_stock", "by_rows", {"params": {"filter_wise": True}}),
    ("sce", "few", {"params": {"select_topk": 0.2}}),
]


def contract(name: str, claims: dict[str, Any]) -> type[StrategyContract]:
    return type(f"Test_{name}", (StrategyContract,), {"strategy": STRATEGIES[name], **claims})


for _name in STRATEGIES:
    globals()[f"Test_{_name}"] = contract(_name, CLAIMS.get(_name, {}))
for _name, _what, _claims in MORE:
    globals()[f"Test_{_name}_{_what}"] = contract(_name, _claims)
