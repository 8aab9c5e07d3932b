"""What a merge is made of, and the key that names the result before it exists."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from arc_halo.fusion.vocabularies import Vocabularies
from arc_halo.manifest.documents import Gradient, ReactorSpec
from arc_halo.manifest.tokenizers import Tokenizer
from arc_halo.plugins import Provided
from arc_halo.tensors.digests import format_digest
from arc_halo.types import FusionStrategy, JsonObject

NUMERICS_VERSION = 2
"""Raised when the engine itself, not a strategy, gives other bits for the same inputs."""

ADAPTER_FIELDS = (
    "peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out",
)  # fmt: skip
"""What of an adapter's architecture decides what it does."""

Compute = Literal["F32", "F64"]
"""What members of narrower dtypes are widened to; members of F64 are always computed in F64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInput:
    """An adapter that is added to a member, `scale` times. `config` is its architecture."""

    model: str
    root: bytes | None
    scale: float = 1.0
    config: JsonObject = field(default_factory=dict)

    def identity(self) -> JsonObject:
        config = {name: self.config[name] for name in ADAPTER_FIELDS if name in self.config}
        return {"root": _digest(self.root), "scale": self.scale, "config": config}


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionInput:
    """A model that goes into a merge: `root` decides, `model` is for people.

    What `model` decides is only in which order a symmetric strategy gets its members. Files
    whose root nobody needs have none.
    """

    model: str
    root: bytes | None
    role: str | None = None
    weight: float = 1.0
    adapters: tuple[AdapterInput, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRule:
    """What is different for the tensors whose names match one of the patterns.

    Patterns are those of a shell. `weights` are by the place of the member, and so may params be.
    """

    match: tuple[str, ...]
    params: JsonObject = field(default_factory=dict)
    weights: Mapping[int, Gradient] = field(default_factory=dict)

    def as_json(self) -> JsonObject:
        return {
            "match": list(self.match),
            "params": self.params,
            "weights": {str(place): weight for place, weight in sorted(self.weights.items())},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSlice:
    """Layers of the result: from each member, by its place, those from the first up to the end.

    `base` is where the base's begin; None takes the same ones as of the first member here.
    """

    layers: Mapping[int, tuple[int, int]]
    base: int | None = None
    params: JsonObject = field(default_factory=dict)
    weights: Mapping[int, Gradient] = field(default_factory=dict)

    def as_json(self) -> JsonObject:
        return {
            "layers": {str(place): list(span) for place, span in sorted(self.layers.items())},
            "base": self.base,
            "params": self.params,
            "weights": {str(place): weight for place, weight in sorted(self.weights.items())},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionRecipe:
    """A merge whose inputs are all known.

    `params` and weights hold for every tensor of which no rule says otherwise; of several rules
    the last one that matches counts, param by param. `out_dtype` is written where it is given,
    else the members' own. With `vocabularies` the rows of tokens are aligned first.
    """

    strategy: FusionStrategy
    strategy_version: str
    params: JsonObject
    members: tuple[FusionInput, ...]
    base: FusionInput | None = None
    rules: tuple[TensorRule, ...] = ()
    slices: tuple[LayerSlice, ...] = ()
    compute: Compute = "F32"
    out_dtype: str | None = None
    vocabularies: Vocabularies | None = None

    @property
    def fuses_base(self) -> bool:
        """Whether the base goes into each tensor; else it only gives rows that members lack."""
        return self.base is not None and (self.vocabularies is None or self.strategy.uses_base)

    @property
    def key(self) -> bytes:
        """Equal keys give equal weights, so what is made once is never made again."""
        return hashlib.sha256(b"arc-halo/fuse/2\0" + canonical(self.identity())).digest()

    @property
    def roots(self) -> list[bytes]:
        """Those of all inputs that are known."""
        inputs = [*self.members, *([self.base] if self.base else [])]
        roots = [each.root for each in inputs]
        roots += [adapter.root for each in inputs for adapter in each.adapters]
        return [root for root in roots if root is not None]

    def identity(self) -> JsonObject:
        """All that decides the result, and nothing else: names and roles do not."""
        identity = {
            "numerics": NUMERICS_VERSION,
            "strategy": self.strategy.name,
            "strategy_version": self.strategy_version,
            "params": self.params,
            "base": _digest(self.base.root) if self.base else None,
            "members": [
                {
                    "root": _digest(member.root),
                    "weight": member.weight,
                    "adapters": [adapter.identity() for adapter in member.adapters],
                }
                for member in self.members
            ],
            "rules": [rule.as_json() for rule in self.rules],
            "slices": [each.as_json() for each in self.slices],
            "compute": self.compute,
            "out_dtype": self.out_dtype,
        }
        if self.vocabularies is None:
            return identity
        return {**identity, "vocabularies": self.vocabularies.identity()}

    def lineage(self) -> list[JsonObject]:
        """The inputs as `fusion_operation_inputs` keeps them, the base last."""
        listed = [(member, False) for member in self.members]
        if self.base is not None:
            listed.append((self.base, True))
        return [
            {
                "ordinal": ordinal,
                "model_name": item.model.partition("@")[0],
                "model_version": item.model.partition("@")[2],
                "root": item.root.hex() if item.root else None,
                "role": None if is_base else item.role,
                "is_base": is_base,
                "weight": None if is_base else item.weight,
            }
            for ordinal, (item, is_base) in enumerate(listed)
        ]


def recipe_of(
    spec: ReactorSpec,
    provided: Provided[FusionStrategy],
    roots: Mapping[str, bytes | None],
    architectures: Mapping[str, JsonObject],
    tokenizers: Mapping[str, Tokenizer] | None = None,
) -> FusionRecipe:
    """The recipe of a merge reactor, with the roots of its models as far as they are known.

    Of adapters the architectures are wanted, of members and base the tokenizers where the reactor
    says `tokenizer`. A base of which nothing is made is left out.
    """
    strategy = provided.item
    base = None
    if spec.base is not None and (strategy.uses_base or spec.tokenizer):
        base = FusionInput(model=spec.base, root=roots.get(spec.base))
    places = {member.model: place for place, member in enumerate(spec.members)}
    return FusionRecipe(
        strategy=strategy,
        strategy_version=provided.version,
        params=spec.params,
        members=tuple(
            FusionInput(
                model=member.model,
                root=roots.get(member.model),
                role=member.role,
                weight=member.weight,
                adapters=tuple(
                    AdapterInput(
                        model=adapter.model,
                        root=roots.get(adapter.model),
                        scale=adapter.scale,
                        config=architectures.get(adapter.model, {}),
                    )
                    for adapter in member.adapters
                ),
            )
            for member in spec.members
        ),
        base=base,
        rules=tuple(
            TensorRule(
                match=rule.match,
                params=_by_place(rule.params, places),
                weights={places[model]: weight for model, weight in rule.weights.items()},
            )
            for rule in spec.tensors
        ),
        slices=tuple(
            LayerSlice(
                # In the order of members, whatever order is written: a mapping has none.
                layers=dict(sorted((places[model], s) for model, s in each.layers.items())),
                base=each.base,
                params=_by_place(each.params, places),
                weights={places[model]: weight for model, weight in each.weights.items()},
            )
            for each in spec.slices
        ),
        compute=spec.compute,
        out_dtype=spec.out_dtype,
        vocabularies=vocabularies_of(spec, tokenizers or {}),
    )


def vocabularies_of(spec: ReactorSpec, tokenizers: Mapping[str, Tokenizer]) -> Vocabularies | None:
    """The vocabularies that a merge reactor aligns, or None where it says nothing of them."""
    if spec.tokenizer is None:
        return None
    members = [member.model for member in spec.members]
    of = spec.tokenizer.of
    chosen: int | Literal["union", "base"] = "union"
    if of in ("base", spec.base):
        chosen = "base"
    elif of != "union":
        chosen = members.index(of)
    return Vocabularies(
        chosen=chosen,
        members=tuple(tokenizers[model] for model in members),
        base=tokenizers[spec.base] if spec.base else None,
        pad_to_multiple_of=spec.tokenizer.pad_to_multiple_of,
    )


def _by_place(params: JsonObject, places: Mapping[str, int]) -> JsonObject:
    """Params that differ by model, by the place of the member; as text, which JSON keys are."""
    return {
        name: {str(places[model]): each for model, each in value.items()}
        if isinstance(value, dict)
        else value
        for name, value in params.items()
    }


def canonical(value: JsonObject) -> bytes:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(root: bytes | None) -> str | None:
    return None if root is None else format_digest(root)
