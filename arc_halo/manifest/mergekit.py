"""A mergekit configuration as a part of a manifest, or every thing in it that cannot be one.

Field names and meanings are those of mergekit 0.1.5's documents; where its strategies' defaults
differ from ours, ours are written out so that the same merge comes out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from arc_halo.errors import InvalidInputError
from arc_halo.types import JsonObject

METHODS: Mapping[str, tuple[str, ...]] = {
    "linear": ("normalize",),
    "slerp": ("t",),
    "nuslerp": ("nuslerp_flatten", "nuslerp_row_wise"),
    "multislerp": ("normalize_weights", "eps"),
    "karcher": ("max_iter", "tol"),
    "task_arithmetic": ("lambda", "normalize"),
    "ties": ("density", "lambda", "normalize"),
    "dare_linear": ("density", "lambda", "normalize", "rescale"),
    "dare_ties": ("density", "lambda", "normalize", "rescale"),
    "della": ("density", "epsilon", "lambda", "normalize", "rescale"),
    "della_linear": ("density", "epsilon", "lambda", "normalize", "rescale"),
    "breadcrumbs": ("density", "gamma", "lambda", "normalize", "rescale"),
    "breadcrumbs_ties": ("density", "gamma", "lambda", "normalize", "rescale"),
    "model_stock": ("filter_wise",),
    "sce": ("select_topk",),
    "ram": ("epsilon",),
    "ramplus_tl": ("epsilon", "r", "alpha"),
    "nearswap": ("t",),
    "arcee_fusion": (),
    "passthrough": ("scale",),
}
INERT = ("int8_mask",)
"""What changes no result, and is passed over."""

RENAMED = {"lambda": "scale", "nuslerp_flatten": "flatten", "nuslerp_row_wise": "row_wise"}
ELECTING = {"ties": True, "dare_ties": False, "della": True, "breadcrumbs_ties": False}
"""Whether the sum of those who agree is divided by their weights, unless `normalize` says."""

RESCALING = {
    "dare_linear": True,
    "dare_ties": True,
    "della": True,
    "della_linear": True,
    "breadcrumbs": False,
    "breadcrumbs_ties": False,
}
UNWEIGHTED = ("model_stock", "sce", "ram", "ramplus_tl", "nearswap", "arcee_fusion", "karcher")
KNOWN = ("merge_method", "models", "base_model", "parameters", "dtype")


@dataclass(slots=True)
class Converted:
    """A part of a manifest, and what a reader of it should know."""

    document: JsonObject
    notes: list[str] = field(default_factory=list)


def convert(document: Mapping[str, Any], *, label: str, reactor: str) -> Converted:
    """The models and the merge reactor that a mergekit document means.

    Raises `InvalidInputError` that names everything that cannot be expressed.
    """
    reading = _Reading(document, reactor)
    converted = reading.convert()
    if reading.refused:
        listed = "".join(f"\n  {each}" for each in reading.refused)
        raise InvalidInputError(
            f"{label}: this cannot be expressed in a manifest:{listed}",
            hint="take these out, or merge it with mergekit",
            code="AH023",
        )
    return converted


class _Reading:
    def __init__(self, document: Mapping[str, Any], reactor: str) -> None:
        self.refused: list[str] = []
        self._document = document
        self._reactor = reactor
        self._names: dict[str, str] = {}

    def convert(self) -> Converted:
        document = self._document
        self.refused += [f"{key}: {_WHY.get(key, 'it is unknown')}" for key in document
                         if key not in KNOWN]  # fmt: skip
        method = document.get("merge_method")
        if not isinstance(method, str) or method not in METHODS:
            self.refused.append(f"merge_method: {method!r} is none of {', '.join(METHODS)}")
            return Converted({})
        base = self._model(document.get("base_model"), "base_model")
        listed = document.get("models")
        if not isinstance(listed, list) or not listed:
            self.refused.append("models: a list of models is needed")
            return Converted({})
        members = [self._member(each, index, method) for index, each in enumerate(listed)]
        params = self._params(method, listed)
        return self._written(method, base, [m for m in members if m], params)

    def _written(
        self, method: str, base: str | None, members: list[JsonObject], params: JsonObject
    ) -> Converted:
        if method == "slerp":
            # Theirs goes from the base to the other one, and has no base beside.
            others = [member for member in members if member["model"] != base]
            members, base = [{"model": base}, *others], None
        elif base is not None:
            members = [member for member in members if member["model"] != base]
        reactor: JsonObject = {"type": "merge", "strategy": method}
        if params:
            reactor["params"] = params
        if base is not None and method not in ("linear", "karcher", "passthrough"):
            reactor["base"] = base
        reactor["members"] = members
        reactor["produces"] = {"model": self._reactor, "version": "1.0.0"}
        models = {
            name: {
                "version": "1.0.0",
                "architecture": f"{path}/config.json",
                "weights": path,
            }
            for path, name in self._names.items()
        }
        notes = ["models are taken for directories: download what is not there"]
        if "dtype" in self._document:
            notes.append("dtype: merges are computed in float32 and written in the models' own")
        return Converted({"models": models, "reactors": {self._reactor: reactor}}, notes)

    def _model(self, reference: object, where: str) -> str | None:
        """The name that a model gets."""
        if reference is None:
            return None
        if not isinstance(reference, str) or not reference:
            self.refused.append(f"{where}: only the path of a model can be written")
            return None
        path, adapter, _ = reference.partition("+")
        if adapter:
            self.refused.append(f"{where}: a LoRA adapter is added to it ({reference})")
        path, revision, _ = path.partition("@")
        if revision:
            self.refused.append(f"{where}: a revision is named ({reference})")
        if path not in self._names:
            self._names[path] = self._free_name(path)
        return self._names[path]

    def _free_name(self, path: str) -> str:
        name = re.sub(r"[^a-z0-9._-]+", "-", PurePosixPath(path).name.lower()).strip("-._")
        name = name[:100] or "model"
        taken = set(self._names.values())
        number = 2
        while (found := name if number == 2 else f"{name}-{number - 1}") in taken:
            number += 1
        return found

    def _member(self, each: object, index: int, method: str) -> JsonObject | None:
        where = f"models[{index}]"
        if not isinstance(each, dict):
            self.refused.append(f"{where}: it is no mapping")
            return None
        self.refused += [f"{where}.{key}: it is unknown" for key in each
                         if key not in ("model", "parameters")]  # fmt: skip
        name = self._model(each.get("model"), f"{where}.model")
        if name is None:
            return None
        weight = self._number((each.get("parameters") or {}).get("weight"), f"{where}.weight")
        shared = (self._document.get("parameters") or {}).get("weight")
        if weight is None:
            weight = self._number(shared, "parameters.weight")
        if weight is None or method in UNWEIGHTED:
            return {"model": name}
        return {"model": name, "weight": weight}

    def _params(self, method: str, listed: list[Any]) -> JsonObject:
        shared = self._document.get("parameters") or {}
        # Of the base there is no change, so its parameters say nothing.
        owns = [
            (index, each.get("parameters") or {})
            for index, each in enumerate(listed)
            if isinstance(each, dict) and each.get("model") != self._document.get("base_model")
        ]
        for key in shared:
            self._check_param(method, key, f"parameters.{key}")
        for index, own in owns:
            for key in own:
                self._check_param(method, key, f"models[{index}].parameters.{key}")
        given: JsonObject = {}
        for name in METHODS[method]:
            values = [self._effective(name, index, own, shared) for index, own in owns]
            if any(repr(value) != repr(values[0]) for value in values):
                self.refused.append(f"parameters.{name}: models have different ones")
            elif values and values[0] is not None:
                given[name] = values[0]
        return _translated(method, given)

    def _effective(self, name: str, index: int, own: JsonObject, shared: JsonObject) -> Any:
        """What a parameter is for one model; None where nothing says."""
        if name in own:
            return self._value(own[name], f"models[{index}].parameters.{name}")
        return self._value(shared.get(name), f"parameters.{name}")

    def _check_param(self, method: str, key: str, where: str) -> None:
        if key not in (*METHODS[method], *INERT, "weight"):
            self.refused.append(f"{where}: {method} has no such parameter")

    def _value(self, value: object, where: str) -> Any:
        if isinstance(value, list):
            what = (
                "filters" if any(isinstance(v, dict) for v in value) else "a gradient over layers"
            )
            if (said := f"{where}: it is {what}") not in self.refused:
                self.refused.append(said)
            return None
        return value

    def _number(self, value: object, where: str) -> float | None:
        value = self._value(value, where)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refused.append(f"{where}: it is no number")
            return None
        return value


_WHY = {
    "slices": "layers of several models put together",
    "modules": "a merge for each module",
    "tokenizer_source": "tokenizers are not merged",
    "tokenizer": "tokenizers are not merged",
    "chat_template": "tokenizers are not merged",
    "out_dtype": "results have the models' own dtype",
}


def _translated(method: str, given: JsonObject) -> JsonObject:
    params = {RENAMED.get(name, name): value for name, value in given.items()}
    if method in ELECTING:
        is_divided = params.pop("normalize", ELECTING[method])
        params["divide"] = "weights" if is_divided else "none"
    if method in RESCALING:
        is_rescaled = params.pop("rescale", RESCALING[method])
        params["rescale"] = "l1" if is_rescaled else "none"
    if method == "della_linear":
        params.setdefault("normalize", False)
    return params
