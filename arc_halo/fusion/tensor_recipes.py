"""One tensor of a merge: what it is computed from and how, and the key of the result."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from arc_halo.fusion.recipes import NUMERICS_VERSION, Compute, canonical
from arc_halo.types import FusionStrategy, JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """What an adapter adds to a matrix: `scale` times b times a, or the transpose of that."""

    a: TensorSource
    b: TensorSource
    rank: int
    scale: float
    is_transposed: bool

    def identity(self) -> JsonObject:
        return {
            "a": self.a.identity(),
            "b": self.b.identity(),
            "rank": self.rank,
            "scale": self.scale,
            "is_transposed": self.is_transposed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows put together from those of several tensors.

    A run has its number of rows and then, for each tensor that they come from, its place among
    the `sources` and its first row. Of several sources a row is the mean, of none it is zero.
    """

    sources: tuple[TensorSource, ...]
    runs: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, runs: Sequence[Sequence[int]], sources: Sequence[TensorSource]) -> Rows:
        """Those of `sources` that the runs make use of, in the same order."""
        used = sorted({place for run in runs for place in run[1::2]})
        places = {place: index for index, place in enumerate(used)}
        return cls(
            sources=tuple(sources[place] for place in used),
            runs=tuple(
                tuple(n if i % 2 == 0 else places[n] for i, n in enumerate(run)) for run in runs
            ),
        )

    def identity(self) -> JsonObject:
        return {
            "sources": [source.identity() for source in self.sources],
            "runs": [list(run) for run in self.runs],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSource:
    """A tensor of an input. `model` and `tensor` say where it is, `digest` what it is.

    Tensors of files have no digest. `updates` are added to it before anything else. With `rows`
    it is these that are read in its place.
    """

    model: str
    tensor: str
    dtype: str
    digest: bytes | None = None
    updates: tuple[LowRank, ...] = ()
    rows: Rows | None = None

    def identity(self) -> JsonObject:
        told: JsonObject = {
            "dtype": self.dtype,
            "tensor": self.digest.hex() if self.digest else None,
        }
        if self.updates:
            told["updates"] = [update.identity() for update in self.updates]
        if self.rows is not None:
            told["rows"] = self.rows.identity()
        return told

    @property
    def read(self) -> tuple[TensorSource, ...]:
        """The tensors that are read in its place, or this one."""
        return (self,) if self.rows is None else self.rows.sources

    @property
    def all_sources(self) -> list[TensorSource]:
        """This one, what its updates are made of, and what its rows come from."""
        updates = [each for update in self.updates for each in (update.a, update.b)]
        return [self, *updates, *(self.rows.sources if self.rows else ())]


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
    surveyed: Any = None

    @property
    def sources(self) -> tuple[TensorSource, ...]:
        """The members' tensors, then the base's."""
        return (*self.members, *([self.base] if self.base else []))

    @property
    def all_sources(self) -> list[TensorSource]:
        """Those, then what is added to them and what their rows come from."""
        return [*self.sources, *(each for one in self.sources for each in one.all_sources[1:])]

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
            "surveyed": self.surveyed,
        }

    def labels(self) -> list[JsonObject]:
        """Where each source was found, for people."""
        return [{"model": each.model, "tensor": each.tensor} for each in self.all_sources]


def from_identity(
    identity: JsonObject, labels: list[JsonObject], strategy: FusionStrategy, size_bytes: int
) -> TensorRecipe:
    """The recipe that said this of itself, its sources named by `labels`."""
    told = [*identity["members"], *([identity["base"]] if identity["base"] else [])]
    added = iter(labels[len(told) :])
    sources = [_source(each, label, added) for each, label in zip(told, labels, strict=False)]
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
        surveyed=identity["surveyed"],
    )


def told_sources(identity: JsonObject) -> list[JsonObject]:
    """What an identity says of all its sources, in the order of their labels."""
    told = [*identity["members"], *([identity["base"]] if identity["base"] else [])]
    added = [each for source in told for each in _added(source)]
    return [*told, *added]


def _added(told: JsonObject) -> list[JsonObject]:
    updates = [update[part] for update in told.get("updates", ()) for part in ("a", "b")]
    return [*updates, *told.get("rows", {}).get("sources", ())]


def _source(told: JsonObject, label: JsonObject, added: Iterator[JsonObject]) -> TensorSource:
    """The source that said this of itself; the labels of what is added to it come in turn."""
    return TensorSource(
        model=label["model"],
        tensor=label["tensor"],
        dtype=told["dtype"],
        digest=bytes.fromhex(told["tensor"]),
        updates=tuple(
            LowRank(
                a=_source(update["a"], next(added), added),
                b=_source(update["b"], next(added), added),
                rank=update["rank"],
                scale=update["scale"],
                is_transposed=update["is_transposed"],
            )
            for update in told.get("updates", ())
        ),
        rows=_rows(told["rows"], added) if "rows" in told else None,
    )


def _rows(told: JsonObject, added: Iterator[JsonObject]) -> Rows:
    return Rows(
        sources=tuple(_source(each, next(added), added) for each in told["sources"]),
        runs=tuple(tuple(run) for run in told["runs"]),
    )
