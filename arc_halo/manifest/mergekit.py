"""A mergekit configuration as a part of a manifest, or every thing in it that cannot be one.

Field names and meanings are those of mergekit 0.1.5's documents, as running it shows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from arc_halo.errors import InvalidInputError
from arc_halo.manifest.mergekit_density import densities, gamma_of, is_whole
from arc_halo.manifest.mergekit_documents import MergekitDocument, Part, read_document
from arc_halo.manifest.mergekit_methods import (
    BY_MEMBER,
    FLAGS,
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

_OfMembers = dict[str, list[Chain | None]]
"""Chains of each member, slice by slice."""


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
        name: {
            "version": "1.0.0",
            "architecture": f"{path}/config.json",
            "weights": path,
            **({"tokenizer": f"{path}/tokenizer.json"} if read.tokenizer else {}),
        }
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
        own = {name: self._own_chains(name) for name in self._method.own}
        if self._document.method in WHOLE:
            self._mind_whole(own)
        for parameter, of_members in own.items():
            self._write_own(parameter, of_members)
        for parameter in self._method.shared:
            chains = [self._shared_chain(part, parameter) for part in self._document.parts]
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
        # Tokens and rows that a model lacks are the base's first, whatever else it is.
        is_beside = self._method.base in ("beside", "needed") or self._document.tokenizer
        base = self._document.base if is_beside else None
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
            "tokenizer": self._document.tokenizer,
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

    def _shared_chain(self, part: Part, parameter: str) -> Chain:
        found = self._document.shared_chain(part, parameter)
        if parameter in REQUIRED and rest(found) is None:
            where = f"{part.where}.parameters" if self._document.is_sliced else "parameters"
            self._refuse(f"{where}.{parameter}: one is needed for every tensor")
        return found

    def _own_chains(self, parameter: str) -> _OfMembers:
        return {member: self._chains_of(member, parameter) for member in self._document.members}

    def _chains_of(self, member: str, parameter: str) -> list[Chain | None]:
        """What holds for a parameter of a member, slice by slice; None where it takes no part."""
        found: list[Chain | None] = []
        for part in self._document.parts:
            source = next((each for each in part.sources if each.model == member), None)
            found.append(self._document.own_chain(part, source, parameter) if source else None)
        return found

    def _write_own(self, parameter: str, of_members: _OfMembers) -> None:
        """In one for all members where they agree, else for each."""
        together = _together(list(of_members.values()))
        if together is not None:
            self._write_param(parameter, together)
            return
        if parameter not in BY_MEMBER:
            self._refuse(f"parameters.{parameter}: models have different ones")
        for member, chains in of_members.items():
            found = self._placed(parameter, chains)
            if found.everywhere is not None:
                found = Placed(rules=((("*",), found.everywhere), *found.rules))
            self._write(found, "params", parameter, member)

    def _write_param(self, parameter: str, chains: Sequence[Chain | None]) -> None:
        name = our_name(self._document.method, parameter)
        found = self._placed(parameter, chains)
        if found.everywhere is not None:
            self._params[name] = found.everywhere
        self._write(found, "params", name)

    def _placed(self, parameter: str, chains: Sequence[Chain | None]) -> Placed:
        where = f"parameters.{parameter}"
        for choice in (choice for each in chains for choice in each or ()):
            values = choice.value if isinstance(choice.value, list) else []
            if values and isinstance(values[0], bool) != (parameter in FLAGS):
                wanted = "flags" if parameter in FLAGS else "numbers"
                self._refuse(f"{where}: it is a gradient of what are no {wanted}")
        translated = [
            None if each is None else _translated(self._document.method, parameter, each)
            for each in chains
        ]
        return placed(translated, self._document.made, where, self._refuse)

    def _mind_whole(self, own: dict[str, _OfMembers]) -> None:
        """Have nothing dropped where their density is 1, though ours would drop something."""
        method = self._document.method
        other = WHOLE[method]
        if other is not None:
            found = [is_whole(d) for each in own["density"].values() for d in densities(each)]
            hint = f": write merge_method: {other}" if all(found) else ""
            if any(found):
                self._refuse(f"parameters.density: where it is 1, {method} drops nothing{hint}")
            return
        for member, chains in own["gamma"].items():
            for index, density in enumerate(own["density"][member]):
                gamma = gamma_of(density, chains[index] or ()) if density is not None else ()
                if gamma is None:
                    told = f"it is 1 for some tensors, where {method} drops nothing"
                    self._refuse(f"parameters.density: {told}")
                elif density is not None:
                    chains[index] = gamma

    def _write_weights(self, member: str) -> None:
        chains = self._chains_of(member, "weight")
        for part, found in zip(self._document.parts, chains, strict=True):
            if found is not None and rest(found) is None:
                source = next(each for each in part.sources if each.model == member)
                self._refuse(f"{source.where}.parameters.weight: one is needed for every tensor")
        where = f"parameters.weight of {member}"
        values = [choice.value for each in chains for choice in each or ()]
        flat = [v for each in values for v in (each if isinstance(each, list) else [each])]
        if any(isinstance(each, str | bool) for each in flat):
            self._refuse(f"{where}: it is no number")
        weights = placed(chains, self._document.made, where, self._refuse)
        if weights.everywhere is not None:
            self._weights[member] = weights.everywhere
        self._write(weights, "weights", member)

    def _write(self, found: Placed, *place: str) -> None:
        """Values at a place in slices and rules."""
        for index, value in found.of_slices.items():
            _put(self._slices[index], place, value)
        start = 0
        for patterns, value in found.rules:
            match = patterns[0] if len(patterns) == 1 else list(patterns)
            same = (
                i for i, rule in enumerate(self._rules) if i >= start and rule["match"] == match
            )
            start = next(same, len(self._rules))
            if start == len(self._rules):
                self._rules.append({"match": match})
            _put(self._rules[start], place, value)


def _together(of_members: Sequence[Sequence[Chain | None]]) -> list[Chain | None] | None:
    """What all members of a slice have, slice by slice; None where they differ."""
    found: list[Chain | None] = []
    for of_slice in zip(*of_members, strict=True):
        chains = [each for each in of_slice if each is not None]
        if any(each != chains[0] for each in chains):
            return None
        found.append(chains[0] if chains else None)
    return found


def _translated(method: str, parameter: str, found: Chain) -> Chain:
    return tuple(Choice(each.filter, our_value(method, parameter, each.value)) for each in found)


def _put(holder: JsonObject, place: Sequence[str], value: Any) -> None:
    for key in place[:-1]:
        holder = holder.setdefault(key, {})
    # A list of its own, for YAML to write it and not an alias.
    holder[place[-1]] = list(value) if isinstance(value, list) else value
