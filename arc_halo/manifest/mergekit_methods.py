"""mergekit's merge methods: their parameters, and what the same thing is called here.

Where defaults differ from those of our strategies, theirs are written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from arc_halo.types import JsonObject

Base = Literal["member", "first", "beside", "needed"]
"""What becomes of `base_model`: one member among others, the first of two, or beside the members;
`needed` has to be there as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The parameters that a method looks for: `own` with each model, `shared` in a slice or above.

    `inert` ones change nothing.
    """

    own: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    inert: tuple[str, ...] = ()
    base: Base = "needed"
    is_weighted: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        return (*self.own, *self.shared)


_SUMS = ("lambda", "normalize")
_SPARSE = (*_SUMS, "rescale")

METHODS: Mapping[str, Method] = {
    "linear": Method(shared=("normalize",), base="member", is_weighted=True),
    "slerp": Method(shared=("t",), base="first"),
    "nuslerp": Method(
        shared=("nuslerp_flatten", "nuslerp_row_wise"), base="beside", is_weighted=True
    ),
    "multislerp": Method(shared=("normalize_weights", "eps"), base="beside", is_weighted=True),
    "karcher": Method(shared=("max_iter", "tol"), base="member"),
    "task_arithmetic": Method(shared=_SUMS, inert=("density", "rescale"), is_weighted=True),
    "ties": Method(own=("density",), shared=_SUMS, inert=("rescale",), is_weighted=True),
    "dare_linear": Method(own=("density",), shared=_SPARSE, is_weighted=True),
    "dare_ties": Method(own=("density",), shared=_SPARSE, is_weighted=True),
    "della": Method(own=("density", "epsilon"), shared=_SPARSE, is_weighted=True),
    "della_linear": Method(own=("density", "epsilon"), shared=_SPARSE, is_weighted=True),
    "breadcrumbs": Method(own=("density", "gamma"), shared=_SPARSE, is_weighted=True),
    "breadcrumbs_ties": Method(own=("density", "gamma"), shared=_SPARSE, is_weighted=True),
    "model_stock": Method(shared=("filter_wise",)),
    "sce": Method(shared=("select_topk",)),
    "ram": Method(shared=("epsilon",)),
    "ramplus_tl": Method(shared=("epsilon", "r", "alpha")),
    "nearswap": Method(shared=("t",)),
    "arcee_fusion": Method(),
    "passthrough": Method(own=("scale",), base="member"),
}
INERT = ("int8_mask", "weight")
"""What no method that does not look for it minds."""

REQUIRED = ("t",)
BY_MEMBER = ("density", "epsilon", "gamma")
"""What may differ from model to model."""

WHOLE: Mapping[str, str | None] = {
    "della": "ties",
    "della_linear": "task_arithmetic",
    "breadcrumbs": None,
    "breadcrumbs_ties": None,
}
"""Methods that drop nothing where the density is 1, which it is unless it is given: the same under
another name; None where ours can be told so by `gamma: 0`."""

_RENAMED = {"lambda": "scale", "nuslerp_flatten": "flatten", "nuslerp_row_wise": "row_wise"}
FLAGS = (
    "normalize", "rescale", "filter_wise", "nuslerp_flatten", "nuslerp_row_wise",
    "normalize_weights",
)  # fmt: skip
_ELECTING = {"ties": True, "dare_ties": False, "della": True, "breadcrumbs_ties": False}
"""Whether the sum of those who agree is divided by their weights, unless `normalize` says."""

_RESCALING = {
    "dare_linear": True,
    "dare_ties": True,
    "della": True,
    "della_linear": True,
    "breadcrumbs": False,
    "breadcrumbs_ties": False,
}


def our_name(method: str, name: str) -> str:
    """What we call a parameter of a method."""
    if name == "normalize" and method in _ELECTING:
        return "divide"
    return _RENAMED.get(name, name)


def our_value(method: str, name: str, value: Any) -> Any:
    """What we write for its value, or for those of a gradient."""
    if name not in FLAGS:
        return value
    if isinstance(value, list):
        return [our_value(method, name, each) for each in value]
    if name == "normalize" and method in _ELECTING:
        return "weights" if value else "none"
    if name == "rescale":
        return "l1" if value else "none"
    return bool(value)


def defaults(method: str) -> JsonObject:
    """What their defaults are in our words, where our own are others."""
    found: JsonObject = {}
    if method in _ELECTING:
        found["divide"] = our_value(method, "normalize", _ELECTING[method])
    if method in _RESCALING:
        found["rescale"] = our_value(method, "rescale", _RESCALING[method])
    return found
