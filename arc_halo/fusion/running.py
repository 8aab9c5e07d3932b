"""Running a merge: tensor by tensor, from the database to the database."""

from __future__ import annotations

from collections.abc import Iterator

from arc_halo.errors import WeightsError
from arc_halo.fusion import compatibility
from arc_halo.fusion.inputs import Input, fused_bytes
from arc_halo.fusion.recipes import FusionInput, FusionRecipe
from arc_halo.store import builds
from arc_halo.store.builds import NamedTensor
from arc_halo.tensors.digests import format_digest
from arc_halo.types import FuseContext, TensorInfo
from arc_halo.weights.building import Built, Recipe, build
from arc_halo.weights.reading import read_pieces
from arc_halo.weights.spans import StoredTensor
from arc_halo.weights.store import Advance, WeightStore, no_progress

Tensors = dict[str, NamedTensor]


def fuse(
    store: WeightStore,
    recipe: FusionRecipe,
    *,
    project: str | None = None,
    advance: Advance = no_progress,
) -> Built:
    """Make the weights that `recipe` describes, or find them made; returns their root.

    Tensors go through part by part, within `store.memory_bytes` unless the strategy wants them
    whole. Members are accumulated in float32 or wider and rounded once to the members' dtype. A
    tensor that is the same in every member and the base, and is not of floats, is taken as it is.
    Raises `IncompatibleModelsError` before anything is computed.
    """
    members = [_tensors(store, member) for member in recipe.members]
    base = _tensors(store, recipe.base) if recipe.base else None
    named = [(m.model, t) for m, t in zip(recipe.members, members, strict=True)]
    if recipe.base is not None and base is not None:
        named.append((f"{recipe.base.model} (base)", base))
    compatibility.check_shapes(named)
    compatibility.check_contents(named)
    merge = _Merge(store, recipe, members, base)
    infos = [
        TensorInfo(name=t.name, dtype=t.dtype, shape=tuple(t.shape), size_bytes=t.size_bytes)
        for t in members[0].values()
    ]
    request = Recipe(purpose="fuse", key=recipe.key, recipe=recipe.identity(), project=project)
    return build(store, request, infos, merge.produce, advance=advance)


def output_bytes(store: WeightStore, recipe: FusionRecipe) -> int:
    """Raw bytes that `fuse` will write: as many as the first member has; 0 while it has none."""
    root = recipe.members[0].root
    with store.pool.connection() as conn:
        found = builds.sets_by_root(conn, [root]).get(root)
    return found.size_bytes if found else 0


def _tensors(store: WeightStore, source: FusionInput) -> Tensors:
    with store.pool.connection() as conn:
        found = builds.sets_by_root(conn, [source.root]).get(source.root)
        if found is None:
            raise WeightsError(
                f"the weights {format_digest(source.root)} of {source.model} are not stored",
                hint="apply the manifest that declares this model",
                code="AH064",
            )
        return {tensor.name: tensor for tensor in builds.set_tensors(conn, found.id)}


class _Merge:
    """Computes one output tensor at a time; called from several threads."""

    def __init__(
        self,
        store: WeightStore,
        recipe: FusionRecipe,
        members: list[Tensors],
        base: Tensors | None,
    ) -> None:
        self._store = store
        self._recipe = recipe
        self._members = members
        self._base = base

    def produce(self, info: TensorInfo) -> Iterator[bytes | memoryview]:
        first = self._members[0][info.name]
        if not compatibility.is_computable(info.dtype):
            yield from read_pieces(self._store, first, info.name)
            return
        recipe = self._recipe
        members = [
            self._input(member, tensors[info.name])
            for member, tensors in zip(recipe.members, self._members, strict=True)
        ]
        base = None
        if recipe.base is not None and self._base is not None:
            base = self._input(recipe.base, self._base[info.name])
        context = FuseContext(
            tensor=info.name,
            weights=tuple(member.weight for member in recipe.members),
            shape=info.shape,
            roots=tuple(member.root for member in recipe.members),
        )
        yield from fused_bytes(recipe.strategy, recipe.params, context, members, base, info.dtype)

    def _input(self, source: FusionInput, tensor: NamedTensor) -> Input:
        # A thread's share; the rest is for parts as floats, and for what is being written.
        share = self._store.memory_bytes // (4 * self._store.threads)
        count = len(self._members) + (self._base is not None)
        stored = StoredTensor(self._store, tensor, tensor.name)
        return Input(source.model, tensor.name, stored, share // count)
