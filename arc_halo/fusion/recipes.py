"""What a merge is made of, and the key that names the result before it exists."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from arc_halo.tensors.digests import format_digest
from arc_halo.types import FusionStrategy, JsonObject

NUMERICS_VERSION = 1
"""Raised when the engine itself, not a strategy, gives other bits for the same inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionInput:
    """A model that goes into a merge: `model` is for people, `root` decides."""

    model: str
    root: bytes
    role: str | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionRecipe:
    """A merge whose inputs are all known."""

    strategy: FusionStrategy
    strategy_version: str
    params: JsonObject
    members: tuple[FusionInput, ...]
    base: FusionInput | None = None

    @property
    def key(self) -> bytes:
        """Equal keys give equal weights, so what is made once is never made again."""
        return hashlib.sha256(b"arc-halo/fuse/1\0" + _canonical(self.identity())).digest()

    def identity(self) -> JsonObject:
        """All that decides the result, and nothing else: names and roles do not."""
        return {
            "numerics": NUMERICS_VERSION,
            "strategy": self.strategy.name,
            "strategy_version": self.strategy_version,
            "params": self.params,
            "base": format_digest(self.base.root) if self.base else None,
            "members": [
                {"root": format_digest(member.root), "weight": member.weight}
                for member in self.members
            ],
        }

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
                "root": item.root.hex(),
                "role": None if is_base else item.role,
                "is_base": is_base,
                "weight": None if is_base else item.weight,
            }
            for ordinal, (item, is_base) in enumerate(listed)
        ]


def _canonical(value: JsonObject) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
