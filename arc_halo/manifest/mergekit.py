"""A mergekit configuration as a part of a manifest, or every thing in it that cannot be one.

Field names and meanings are those of mergekit 0.1.5's documents, as running it shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from arc_halo.errors import InvalidInputError
from arc_halo.manifest.mergekit_documents import MergekitDocument, Part, read_document
from arc_halo.manifest.mergekit_methods import (
    METHODS,
    REQUIRED,
    WHOLE,
    defaults,
    our_name,
    our_value,
)
from arc_halo.manifest.mergekit_settings import Chain, Choice, Placed, placed, rest
from arc_halo.types import JsonObject

__all__ = ["METHODS", "Converted", "convert"]


@dataclass(slots=True)
class Converted:
    """A part of a manifest, and what a reader of it should know."""

    document: JsonObject
    notes: list[str] = field(default_factory=list)


def convert(document: Mapping[str, Any], *, label: str, reactor: str) -> Converted:
    """The models and the merge reactor that a mergekit document means.

    Raises `InvalidInputError` that names everything that cannot be expressed.
    """
    refused: dict[str, None] = {}
    read = read_document(document, refused.setdefault)
    writing = _Writing(read, refused) if read else None
    written = writing.reactor(reactor) if writing else {}
    if refused or read is None:
        listed = "".join(f"\n  {each}" for each in refused)
        raise InvalidInputError(
            f"{label}: this cannot be expressed in a manifest:{listed}",
            hint="take these out, or merge it with mergekit",
            code="AH023",
        )
    models = {
        name: {"version": "1.0.0", "architecture": f"{path}/config.json", "weights": path}
        for path, name in read.models.items()
    }
    notes = ["models are taken for directories: download what is not there", *read.notes]
    return Converted({"models": models, "reactors": {reactor: written}}, notes)


class _Writing:
    """The reactor of a document, parameter by parameter."""

    def __init__(self, document: MergekitDocument, refused: dict[str, None]) -> None:
        self._document = document
        self._method = METHODS[document.method]
        self._refuse = refused.setdefault
        self._params: JsonObject = defaults(document.method)
        self._weights: dict[str, Any] = {}
        self._slices: list[JsonObject] = [self._slice(part) for part in document.parts]
        self._rules: list[JsonObject] = []

    def reactor(self, name: str) -> JsonObject:
        for parameter in self._method.parameters:
            if parameter == "gamma" and self._params.get("gamma") == 0:
                continue
            chains = [self._chain(part, parameter) for part in self._document.parts]
            self._write_param(parameter, chains)
        if self._method.is_weighted:
            for member in self._document.members:
                self._write_weights(member)
        members = [
            {
                "model": member,
                **({"weight": self._weights[member]} if member in self._weights else {}),
            }
            for member in self._document.members
        ]
        base = self._document.base if self._method.base in ("beside", "needed") else None
        found: JsonObject = {
            "type": "merge",
            "strategy": self._document.method,
            "params": self._params,
            "base": base,
            "members": members,
            "tensors": self._rules,
            "slices": self._slices if self._document.is_sliced else [],
            "compute": self._document.compute,
            "out_dtype": self._document.out_dtype,
            "produces": {"model": name, "version": "1.0.0"},
        }
        return {key: value for key, value in found.items() if value}

    def _slice(self, part: Part) -> JsonObject:
        spans = {source.model: source.layers for source in part.sources if source.layers}
        layers = {name: list(spans[name]) for name in self._document.members if name in spans}
        written: JsonObject = {"layers": layers}
        base = spans.get(self._document.base or "")
        if base and layers and base[0] != next(iter(layers.values()))[0]:
            written["base"] = base[0]
        return written

    def _chain(self, part: Part, parameter: str) -> Chain:
        """What holds for a parameter of all members of a slice."""
        if parameter in self._method.shared:
            found = self._document.shared_chain(part, parameter)
            if parameter in REQUIRED and rest(found) is None:
                where = f"{part.where}.parameters" if self._document.is_sliced else "parameters"
                self._refuse(f"{where}.{parameter}: one is needed for every tensor")
            return found
        members = [s for s in part.sources if s.model in self._document.members]
        chains = [self._document.own_chain(part, source, parameter) for source in members]
        if any(each != chains[0] for each in chains):
            where = f"{part.where}: parameters" if self._document.is_sliced else "parameters"
            self._refuse(f"{where}.{parameter}: models have different ones")
        return chains[0] if chains else ()

    def _write_param(self, parameter: str, chains: list[Chain]) -> None:
        method = self._document.method
        name = our_name(method, parameter)
        found = placed(
            [_translated(method, parameter, each) for each in chains],
            self._document.made,
            f"parameters.{parameter}",
            self._refuse,
        )
        if found.everywhere is not None:
            self._params[name] = found.everywhere
        self._write(found, "params", name)
        if parameter == "density" and method in WHOLE:
            self._mind_whole(chains)

    def _mind_whole(self, chains: list[Chain]) -> None:
        """Have nothing dropped where their density is 1, though ours would drop something."""
        method = self._document.method
        densities = [choice.value for each in chains for choice in each]
        densities += [1 for each in chains if rest(each) is None]
        flat = [d for each in densities for d in (each if isinstance(each, list) else [each])]
        whole = [isinstance(each, int | float) and each >= 1 for each in flat]
        other = WHOLE[method]
        if other and any(whole):
            hint = f"write merge_method: {other}"
            self._refuse(f"parameters.density: where it is 1, {method} drops nothing: {hint}")
        elif all(whole):
            self._params["gamma"] = 0
        elif any(whole):
            self._refuse(
                f"parameters.density: it is 1 for some tensors, where {method} drops nothing"
            )

    def _write_weights(self, member: str) -> None:
        chains: list[Chain | None] = []
        for part in self._document.parts:
            source = next((each for each in part.sources if each.model == member), None)
            chains.append(self._document.own_chain(part, source, "weight") if source else None)
            if source and rest(chains[-1] or ()) is None:
                self._refuse(f"{source.where}.parameters.weight: one is needed for every tensor")
        where = f"parameters.weight of {member}"
        if any(isinstance(choice.value, str | bool) for each in chains for choice in each or ()):
            self._refuse(f"{where}: it is no number")
        found = placed(chains, self._document.made, where, self._refuse)
        if found.everywhere is not None:
            self._weights[member] = found.everywhere
        self._write(found, "weights", member)

    def _write(self, found: Placed, kind: str, name: str) -> None:
        for index, value in found.of_slices.items():
            self._slices[index].setdefault(kind, {})[name] = _copied(value)
        start = 0
        for patterns, value in found.rules:
            match = patterns[0] if len(patterns) == 1 else list(patterns)
            same = (
                i for i, rule in enumerate(self._rules) if i >= start and rule["match"] == match
            )
            start = next(same, len(self._rules))
            if start == len(self._rules):
                self._rules.append({"match": match})
            self._rules[start].setdefault(kind, {})[name] = _copied(value)


def _translated(method: str, parameter: str, found: Chain) -> Chain:
    return tuple(Choice(each.filter, our_value(method, parameter, each.value)) for each in found)


def _copied(value: Any) -> Any:
    """A list of its own, for YAML to write it and not an alias."""
    return list(value) if isinstance(value, list) else value
