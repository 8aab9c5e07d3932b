"""What a manifest declares, as typed values: one spec a kind, and the whole desired state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from arc_halo.types import JsonObject, Key

if TYPE_CHECKING:
    from arc_halo.errors import Problem
    from arc_halo.manifest.load import Source

MODEL, STRATEGY, REACTOR, TRAINING = "model", "strategy", "reactor", "training"
INFERENCE = "inference"
KINDS = (STRATEGY, MODEL, REACTOR, TRAINING, INFERENCE)
"""The kinds in the order in which they can be created; deletion goes the other way."""

Deletion = Literal["delete", "orphan"]

MODEL_TYPES = (
    "transformer", "cnn", "rnn", "lstm", "gru", "gan", "vae", "diffusion", "moe", "ssm", "hybrid",
    "embedding", "classifier", "other",
)  # fmt: skip
REACTOR_TYPES = ("merge", "ensemble", "cascade", "parallel", "hierarchical")
LOOKING_BACK = ("validates", "corrects")
"""Interactions in which the member they come from is asked about the other's answer."""

ROLES = ("primary", "secondary", "validator", "specialist")


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """The place of a declaration: a file's label and the path of keys inside it."""

    file: str
    pointer: tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifecycle:
    """What every resource accepts besides its own fields."""

    protected: bool = False
    deletion: Deletion = "delete"
    renamed_from: str | None = None
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSource:
    """Weights in a file, and the directories that its files must lie in.

    `digest` is the root the manifest promises, if it does; `delta_from` the full name of the
    model that deltas are taken against.
    """

    path: Path
    label: str
    format: str
    roots: tuple[Path, ...] = ()
    codec: str | None = None
    delta_from: str | None = None
    digest: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSource:
    """A `tokenizer.json`, and what the manifest calls it."""

    path: Path
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    type: str
    architecture: JsonObject
    description: str | None = None
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, Any] = field(default_factory=dict)
    weights: WeightsSource | None = None
    tokenizer: TokenizerSource | None = None
    runner: JsonObject | None = None
    produced_by: str | None = None

    def as_json(self) -> JsonObject:
        """Everything but weights and tokenizer, whose identity is known once they are read."""
        return {
            "type": self.type,
            "architecture": self.architecture,
            "description": self.description,
            "runner": self.runner,
            "aliases": sorted(self.aliases),
            "tags": dict(self.tags),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategySpec:
    uses: str
    params: JsonObject
    description: str | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> JsonObject:
        return {
            "uses": self.uses,
            "params": self.params,
            "description": self.description,
            "tags": dict(self.tags),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """A LoRA adapter that is added to a member, `scale` times."""

    model: str
    scale: float = 1.0

    def as_json(self) -> JsonObject:
        return {"model": self.model, "scale": self.scale}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSpec:
    model: str
    role: str
    weight: float
    priority: int | None
    adapters: tuple[AdapterSpec, ...] = ()
    cost: float = 1.0
    domains: tuple[str, ...] = ()

    def as_json(self) -> JsonObject:
        return {
            "model": self.model,
            "role": self.role,
            "weight": self.weight,
            "priority": self.priority,
            "adapters": [adapter.as_json() for adapter in self.adapters],
            "cost": self.cost,
            "domains": list(self.domains),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class InteractionSpec:
    source: str
    target: str
    kind: str
    weight: float

    @property
    def first(self) -> str:
        """The member whose answer the other one waits for."""
        return self.target if self.kind in LOOKING_BACK else self.source

    @property
    def second(self) -> str:
        return self.source if self.kind in LOOKING_BACK else self.target

    def as_json(self) -> JsonObject:
        return {"from": self.source, "to": self.target, "kind": self.kind, "weight": self.weight}


Gradient = float | tuple[float, ...]
"""A number, or several that the layers go through from the first to the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSpec:
    """What is different for the tensors whose names match one of the patterns."""

    match: tuple[str, ...]
    params: JsonObject = field(default_factory=dict)
    weights: Mapping[str, Gradient] = field(default_factory=dict)

    def as_json(self) -> JsonObject:
        return {
            "match": list(self.match),
            "params": self.params,
            "weights": _weights_json(self.weights),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceSpec:
    """Layers of the result: of each model the first one and the one before which it ends."""

    layers: Mapping[str, tuple[int, int]]
    base: int | None = None
    params: JsonObject = field(default_factory=dict)
    weights: Mapping[str, Gradient] = field(default_factory=dict)

    def as_json(self) -> JsonObject:
        return {
            "layers": {model: list(span) for model, span in self.layers.items()},
            "base": self.base,
            "params": self.params,
            "weights": _weights_json(self.weights),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularySpec:
    """Which tokens a merge has: those of `union`, of `base`, or of a model by its name."""

    of: str
    pad_to_multiple_of: int = 1

    def as_json(self) -> JsonObject:
        return {"of": self.of, "pad_to_multiple_of": self.pad_to_multiple_of}


def _weights_json(weights: Mapping[str, Gradient]) -> JsonObject:
    return {m: list(w) if isinstance(w, tuple) else w for m, w in weights.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReactorSpec:
    """`strategy` is the name written, `uses` the implementation, `params` what reaches it."""

    type: str
    strategy: str
    uses: str
    params: JsonObject
    members: tuple[MemberSpec, ...]
    base: str | None = None
    tensors: tuple[RuleSpec, ...] = ()
    slices: tuple[SliceSpec, ...] = ()
    compute: Literal["F32", "F64"] = "F32"
    out_dtype: str | None = None
    tokenizer: VocabularySpec | None = None
    interactions: tuple[InteractionSpec, ...] = ()
    produces: str | None = None
    run: JsonObject = field(default_factory=dict)
    config: JsonObject = field(default_factory=dict)
    description: str | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Its members, then its base."""
        members = (member.model for member in self.members)
        return (*members, *([self.base] if self.base else []))

    @property
    def models(self) -> tuple[str, ...]:
        """The models whose weights it names: members, the base, adapters; each once."""
        adapters = (adapter.model for member in self.members for adapter in member.adapters)
        return tuple(dict.fromkeys([*self.inputs, *adapters]))

    @property
    def layers(self) -> list[int] | None:
        """Where each layer of a sliced result comes from, in the first member of its slice."""
        if not self.slices:
            return None
        order = [member.model for member in self.members]
        spans = [each.layers[min(each.layers, key=order.index)] for each in self.slices]
        return [layer for first, end in spans for layer in range(first, end)]

    def as_json(self) -> JsonObject:
        return {
            "type": self.type,
            "strategy": self.strategy,
            "uses": self.uses,
            "params": self.params,
            "members": [member.as_json() for member in self.members],
            "base": self.base,
            "tensors": [rule.as_json() for rule in self.tensors],
            "slices": [each.as_json() for each in self.slices],
            "compute": self.compute,
            "out_dtype": self.out_dtype,
            "tokenizer": self.tokenizer.as_json() if self.tokenizer else None,
            "interactions": [edge.as_json() for edge in self.interactions],
            "produces": self.produces,
            "run": self.run,
            "config": self.config,
            "description": self.description,
            "tags": dict(self.tags),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """What sessions of a training begin with. Parts have their defaults filled in; `metrics`,
    `retention` and `gradient_checkpointing` are None where nothing is said of them.
    """

    model: str
    total_epochs: int | None = None
    total_steps: int | None = None
    config: JsonObject = field(default_factory=dict)
    dataset: JsonObject = field(default_factory=dict)
    group: str | None = None
    notes: str | None = None
    metrics: JsonObject | None = None
    retention: JsonObject | None = None
    logging: JsonObject = field(default_factory=dict)
    gradient_checkpointing: JsonObject | None = None
    description: str | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> JsonObject:
        return {
            "model": self.model,
            "total_epochs": self.total_epochs,
            "total_steps": self.total_steps,
            "config": self.config,
            "dataset": self.dataset,
            "group": self.group,
            "notes": self.notes,
            "metrics": self.metrics,
            "retention": self.retention,
            "logging": self.logging,
            "gradient_checkpointing": self.gradient_checkpointing,
            "description": self.description,
            "tags": dict(self.tags),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """How much a cache of inference may take, in bytes, and for how long, in seconds.

    `block_tokens` and `codec` are None for all but the KV cache.
    """

    budget: int
    ttl: int | None = None
    block_tokens: int | None = None
    codec: str | None = None
    quota: int | None = None
    quotas: Mapping[str, int] = field(default_factory=dict)
    description: str | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> JsonObject:
        return {
            "budget": self.budget,
            "ttl": self.ttl,
            "block_tokens": self.block_tokens,
            "codec": self.codec,
            "quota": self.quota,
            "quotas": dict(self.quotas),
            "description": self.description,
            "tags": dict(self.tags),
        }


Spec = ModelSpec | StrategySpec | ReactorSpec | TrainingSpec | CacheSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """One declared resource, its references resolved to full names."""

    key: Key
    spec: Spec
    lifecycle: Lifecycle
    where: Where
    depends_on: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredModel:
    """A model that the manifest does not declare but refers to by `name:alias`."""

    name: str
    version: str
    type: str
    architecture: JsonObject
    root: bytes | None
    tokenizer: JsonObject | None = None

    @property
    def full_name(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BodiesSetting:
    """`storage.bodies`: the plugin that keeps bodies, and where."""

    store: str
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`storage:` and `settings:` of the project file, in bytes and counts."""

    codec: str | None = None
    chunk_bytes: int = 262144
    memory_bytes: int = 256 * 1024 * 1024
    threads: int = 2
    prune: bool = False
    max_deletes: int | None = None
    retain_revisions: int = 20
    allowed_hosts: tuple[str, ...] = ()
    allowed_secrets: tuple[str, ...] = ()
    executor: str = "threads"
    bodies: BodiesSetting | None = None


@dataclass(frozen=True, kw_only=True)
class Desired:
    """The desired state: declarations in dependency order, and what goes with them.

    `env` is the environment whose overlay was merged. `files` were read for it, directories in
    which `include` looked among them; one that is not there may change it by coming. `variables`
    has the SHA-256 of each variable that was used, None for one without a value. While these
    stay as they are, so does `manifest_digest`; weights and tokenizers have digests of their own.
    """

    project: str
    declarations: Mapping[Key, Declaration]
    settings: Settings
    manifest_digest: bytes
    registered: Mapping[str, RegisteredModel] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    env: str | None = None
    files: frozenset[Path] = frozenset()
    variables: Mapping[str, bytes | None] = field(default_factory=dict)

    def problem(
        self,
        declaration: Declaration,
        pointer: tuple[str | int, ...],
        code: str,
        message: str,
        hint: str | None,
    ) -> Problem:
        """A problem at a field of a declaration, with its line and column."""
        from arc_halo.manifest import load

        where = declaration.where
        source = self.sources[where.file]
        return load.problem(source, (*where.pointer, *pointer), code, message, hint=hint)

    @cached_property
    def merges(self) -> Mapping[Key, ReactorSpec]:
        """The merge reactor of each model that one produces."""
        return {
            Key(kind=MODEL, name=d.spec.produces): d.spec
            for d in self.declarations.values()
            if isinstance(d.spec, ReactorSpec) and d.spec.produces is not None
        }


def canonical(value: object) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def spec_digest(value: object) -> bytes:
    return hashlib.sha256(canonical(value)).digest()
