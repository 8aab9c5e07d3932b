"""One tensor of a merge: what it is computed from and how, and the key of the result."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from arc_halo.fusion.recipes import NUMERICS_VERSION, Compute, canonical
from arc_halo.types import FusionStrategy, JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSource:
    """A tensor of an input. `model` and `tensor` say where it is, `digest` what it is.

    Tensors of files have no digest.
    """

    model: str
    tensor: str
    dtype: str
    digest: bytes | None = None

    def identity(self) -> JsonObject:
        return {"dtype": self.dtype, "tensor": self.digest.hex() if self.digest else None}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecipe:
    """A tensor to be fused: everything resolved, nothing left to be looked up by name.

    `params` has every param of the strategy, `weights` one number a member. Without a `strategy`
    the tensor is taken as it is from the first member. `roots` are there for what is random.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    strategy: FusionStrategy | None
    strategy_version: str
    params: JsonObject
    weights: tuple[float, ...]
    members: tuple[TensorSource, ...]
    base: TensorSource | None = None
    roots: tuple[bytes, ...] = ()
    compute: Compute = "F32"

    @property
    def sources(self) -> tuple[TensorSource, ...]:
        """The members' tensors, then the base's."""
        return (*self.members, *([self.base] if self.base else []))

    @property
    def key(self) -> bytes:
        """Equal keys give equal tensors: what was computed once is never computed again."""
        return hashlib.sha256(b"arc-halo/fuse-tensor/1\0" + canonical(self.identity())).digest()

    def identity(self) -> JsonObject:
        """All that decides the bits; from it the tensor can be computed again."""
        assert self.strategy is not None
        return {
            "numerics": NUMERICS_VERSION,
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "strategy": self.strategy.name,
            "strategy_version": self.strategy_version,
            "params": self.params,
            "weights": list(self.weights),
            "members": [member.identity() for member in self.members],
            "base": self.base.identity() if self.base else None,
            "roots": [root.hex() for root in self.roots],
            "compute": self.compute,
        }

    def labels(self) -> list[JsonObject]:
        """Where each source was found, for people."""
        return [{"model": each.model, "tensor": each.tensor} for each in self.sources]


def from_identity(
    identity: JsonObject, labels: list[JsonObject], strategy: FusionStrategy, size_bytes: int
) -> TensorRecipe:
    """The recipe that said this of itself, its sources named by `labels`."""
    told = [*identity["members"], *([identity["base"]] if identity["base"] else [])]
    sources = [
        TensorSource(
            model=label["model"],
            tensor=label["tensor"],
            dtype=each["dtype"],
            digest=bytes.fromhex(each["tensor"]),
        )
        for each, label in zip(told, labels, strict=True)
    ]
    count = len(identity["members"])
    return TensorRecipe(
        name=identity["name"],
        dtype=identity["dtype"],
        shape=tuple(identity["shape"]),
        size_bytes=size_bytes,
        strategy=strategy,
        strategy_version=identity["strategy_version"],
        params=identity["params"],
        weights=tuple(identity["weights"]),
        members=tuple(sources[:count]),
        base=sources[count] if identity["base"] else None,
        roots=tuple(bytes.fromhex(root) for root in identity["roots"]),
        compute=identity["compute"],
    )
