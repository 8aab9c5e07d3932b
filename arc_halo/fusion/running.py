"""Running a merge: tensor by tensor, from the database to the database."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from arc_halo.errors import ArcHaloError, FusionError, WeightsError
from arc_halo.fusion import compatibility
from arc_halo.fusion.recipes import FusionInput, FusionRecipe
from arc_halo.store import builds
from arc_halo.store.builds import NamedTensor
from arc_halo.tensors import dtypes
from arc_halo.tensors.digests import format_digest
from arc_halo.types import FuseContext, TensorInfo
from arc_halo.weights.building import Built, Recipe, build
from arc_halo.weights.reading import read_array, read_pieces
from arc_halo.weights.store import Advance, WeightStore, no_progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tensors = dict[str, NamedTensor]


def fuse(
    store: WeightStore,
    recipe: FusionRecipe,
    *,
    project: str | None = None,
    advance: Advance = no_progress,
) -> Built:
    """Make the weights that `recipe` describes, or find them made; returns their root.

    Members are accumulated in float32 (float64 for F64 members) and rounded once to the members'
    dtype. A tensor that is the same in every member and the base, and is not of floats, is
    taken as it is. Raises `IncompatibleModelsError` before anything is computed.
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
        fused = self._compute(info)
        yield dtypes.raw_bytes(fused)

    def _compute(self, info: TensorInfo) -> NDArray[Any]:
        arrays = [self._read(tensors[info.name]) for tensors in self._members]
        context = FuseContext(
            tensor=info.name,
            weights=tuple(member.weight for member in self._recipe.members),
            base=None if self._base is None else self._read(self._base[info.name]),
        )
        fused = self._call(info, arrays, context)
        if fused.shape != info.shape:
            raise FusionError(
                f"the strategy {self._recipe.strategy.name!r} made {list(fused.shape)} of "
                f"{info.name!r}, whose shape is {list(info.shape)}"
            )
        if not _is_real(fused):
            raise FusionError(
                f"the strategy {self._recipe.strategy.name!r} made {fused.dtype} of {info.name!r}, "
                "not real numbers"
            )
        return _rounded(fused, info.dtype)

    def _call(
        self, info: TensorInfo, arrays: list[NDArray[Any]], context: FuseContext
    ) -> NDArray[Any]:
        import numpy as np

        strategy = self._recipe.strategy
        assert strategy.fuse_weights is not None
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                return np.asarray(strategy.fuse_weights(arrays, context, **self._recipe.params))
        except ArcHaloError:
            raise
        except Exception as exc:
            place = traceback.extract_tb(exc.__traceback__)[-1]
            raise FusionError(
                f"the strategy {strategy.name!r} failed on {info.name!r}: {exc!r} "
                f"({place.filename}:{place.lineno})"
            ) from exc

    def _read(self, tensor: NamedTensor) -> NDArray[Any]:
        import numpy as np

        array = read_array(self._store, tensor, tensor.name)
        if array.dtype != np.float64:
            array = array.astype(np.float32, copy=False)
        array.setflags(write=False)
        return array


def _is_real(array: NDArray[Any]) -> bool:
    # The floats of ml_dtypes are of numpy's kind "V", as structures are.
    return array.dtype.kind in "fiu" or dtypes.is_float(array.dtype)


def _rounded(fused: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Rounded once to the stored dtype; what is beyond its range becomes what it has for that."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        return fused.astype(dtypes.numpy_dtype(dtype))
