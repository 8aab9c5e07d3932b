"""The conflicts of a merge, predicted from a sample of its inputs; nothing is merged."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace

from arc_halo.fusion.computing import OpenSource, raw_tensor
from arc_halo.fusion.conflicts import Inspection, Sums, TensorConflict
from arc_halo.fusion.files import FileTensor, OpenModel
from arc_halo.fusion.inputs import FloatParts, RawTensor
from arc_halo.fusion.planning import plan_tensors
from arc_halo.fusion.recipes import FusionInput, FusionRecipe
from arc_halo.fusion.running import plan_merge
from arc_halo.fusion.sampling import SAMPLE_ITEMS, SampledTensor, places
from arc_halo.fusion.tensor_recipes import TensorRecipe, TensorSource
from arc_halo.fusion.updates import UpdatedInput, factors
from arc_halo.plugins import Provided
from arc_halo.store.tensors import by_digest
from arc_halo.types import FusionStrategy
from arc_halo.weights.spans import StoredTensor
from arc_halo.weights.store import Advance, WeightStore, no_progress

PAGE_BYTES = 4096


def bare_recipe(
    members: Sequence[FusionInput], base: FusionInput | None, strategy: Provided[FusionStrategy]
) -> FusionRecipe:
    """The recipe of models that no reactor names. Their dtypes may differ."""
    return FusionRecipe(
        strategy=strategy.item,
        strategy_version=strategy.version,
        params={},
        members=tuple(members),
        base=base,
        out_dtype="F32",
    )


def inspect_stored(
    store: WeightStore,
    recipe: FusionRecipe,
    *,
    sample: int = SAMPLE_ITEMS,
    advance: Advance = no_progress,
) -> Inspection:
    """Inspect a merge whose inputs are in the database.

    Raises what planning the merge raises, and `FusionError` for NaN and infinities.
    """
    tensors = plan_merge(store, _as_named(recipe))
    with store.pool.connection() as conn:
        rows = by_digest(conn, [each.digest for each in _sources(tensors) if each.digest])

    def open_source(source: TensorSource) -> StoredTensor:
        return StoredTensor(store, rows[source.digest or b""], source.tensor)

    return inspect_tensors(tensors, open_source, sample, advance)


def inspect_files(
    models: Mapping[str, OpenModel],
    recipe: FusionRecipe,
    *,
    sample: int = SAMPLE_ITEMS,
    advance: Advance = no_progress,
) -> Inspection:
    """Inspect a merge whose inputs are open files. Raises as `inspect_stored` does."""
    tables = {name: model.table for name, model in models.items()}
    members = [tables[member.model] for member in recipe.members]
    base = tables[recipe.base.model] if recipe.base else None
    tensors = plan_tensors(_as_named(recipe), members, base, tables)

    def open_source(source: TensorSource) -> _PagedTensor:
        model = models[source.model]
        return _PagedTensor(model.reader, model.tensors[source.tensor])

    return inspect_tensors(tensors, open_source, sample, advance)


def inspect_tensors(
    tensors: Sequence[TensorRecipe],
    open_source: OpenSource,
    sample: int = SAMPLE_ITEMS,
    advance: Advance = no_progress,
) -> Inspection:
    """Look at up to `sample` elements of each tensor of floats.

    `advance` is told the raw bytes of what a merge would read, as they are dealt with. A few
    places are in memory at a time, however many elements are looked at.
    """
    found: list[TensorConflict] = []
    read_bytes = size_bytes = 0
    for tensor in tensors:
        if tensor.strategy is not None and math.prod(tensor.shape) > 0:
            inputs = _Inputs(open_source, tensor)
            found.append(_inspect(tensor, inputs, sample))
            read_bytes += inputs.read_bytes
            size_bytes += inputs.size_bytes
            advance(inputs.size_bytes)
    return Inspection(tensors=tuple(found), read_bytes=read_bytes, size_bytes=size_bytes)


def _as_named(recipe: FusionRecipe) -> FusionRecipe:
    """Its members stay in the order in which somebody asked for them."""
    return replace(recipe, strategy=replace(recipe.strategy, is_symmetric=False))


def _sources(tensors: Sequence[TensorRecipe]) -> Iterator[TensorSource]:
    for tensor in tensors:
        for source in tensor.sources:
            yield from source.all_sources


class _Inputs:
    """The tensors that one is made of, opened; equal ones are read once."""

    def __init__(self, open_source: OpenSource, recipe: TensorRecipe) -> None:
        self._open_source = open_source
        self._recipe = recipe
        self._opened: dict[Hashable, _CountedTensor] = {}
        self._tensors: dict[Hashable, SampledTensor] = {}

    def parts(self, source: TensorSource, columns: int) -> FloatParts:
        """An input with what adapters add to it."""
        tensor = self._tensor(source)
        pairs = [
            factors(
                update,
                self._tensor(update.a).whole().reshape(update.rank, -1),
                self._tensor(update.b).whole().reshape(-1, update.rank),
            )
            for update in source.updates
        ]
        return UpdatedInput(tensor, pairs, columns) if pairs else tensor

    @property
    def read_bytes(self) -> int:
        return sum(each.read_bytes for each in self._opened.values())

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in self._opened.values())

    def _tensor(self, source: TensorSource) -> SampledTensor:
        identity = (*_identity(source), source.rows)
        if identity not in self._tensors:
            raw = raw_tensor(source, self._open, self._recipe)
            self._tensors[identity] = SampledTensor(source, raw)
        return self._tensors[identity]

    def _open(self, source: TensorSource) -> _CountedTensor:
        identity = _identity(source)
        if identity not in self._opened:
            self._opened[identity] = _CountedTensor(self._open_source(source))
        return self._opened[identity]


def _identity(source: TensorSource) -> tuple[Hashable, ...]:
    return (source.digest,) if source.digest else (source.model, source.tensor)


class _CountedTensor:
    """A tensor, and how much of it was read."""

    def __init__(self, raw: RawTensor) -> None:
        self.dtype = raw.dtype
        self.size_bytes = raw.size_bytes
        self.alignment = raw.alignment
        self.read_bytes = 0
        self._raw = raw

    def read_into(self, offset: int, out: memoryview) -> None:
        self._raw.read_into(offset, out)
        self.read_bytes += out.nbytes


def _inspect(tensor: TensorRecipe, inputs: _Inputs, sample: int) -> TensorConflict:
    columns = tensor.shape[-1] if tensor.shape else 1
    members = [inputs.parts(member, columns) for member in tensor.members]
    base = inputs.parts(tensor.base, columns) if tensor.base else None
    elements = math.prod(tensor.shape)
    sums = Sums(len(members))
    for place in places(elements, sample):
        sums.add([member.block(place) for member in members], base.block(place) if base else None)
    return TensorConflict(
        name=tensor.name,
        elements=elements,
        sampled=sums.sampled,
        members=tuple(member.model for member in tensor.members),
        cosines=sums.cosines,
        sign_conflicts=sums.sign_conflicts,
        relative_norms=sums.relative_norms if base else None,
    )


class _PagedTensor(FileTensor):
    """A tensor of which little is read: files, unlike the database, need not be read in chunks."""

    __slots__ = ()

    @property
    def alignment(self) -> int:
        return PAGE_BYTES
