"""A merge from files to a file: the same engine, without a database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from arc_halo.errors import IncompatibleModelsError, NotFiniteError
from arc_halo.fusion.compatibility import Described, Table
from arc_halo.fusion.computing import fused_pieces, surveyed
from arc_halo.fusion.finiteness import every_not_finite
from arc_halo.fusion.planning import plan_tensors
from arc_halo.fusion.recipes import FusionRecipe
from arc_halo.fusion.tensor_recipes import TensorRecipe, TensorSource
from arc_halo.types import TensorInfo, WeightFormat, WeightReader
from arc_halo.weights.store import Advance, no_progress

PAGE_BYTES = 65536
COMPARED_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenModel:
    """A model whose files are open."""

    name: str
    reader: WeightReader
    tensors: Mapping[str, TensorInfo] = field(init=False)

    def __post_init__(self) -> None:
        tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        object.__setattr__(self, "tensors", tensors)

    @property
    def table(self) -> Table:
        described = {n: Described(t.dtype, t.shape) for n, t in self.tensors.items()}
        return Table(self.name, described)


class FileMerge:
    """A merge whose inputs are open files: what is to be written, and how.

    At most `memory_bytes` are taken for windows and parts. Raises `IncompatibleModelsError` for
    models that cannot be fused.
    """

    def __init__(
        self,
        recipe: FusionRecipe,
        models: Mapping[str, OpenModel],
        *,
        memory_bytes: int = 256 * 1024 * 1024,
    ) -> None:
        members = [models[member.model] for member in recipe.members]
        base = models[recipe.base.model] if recipe.base else None
        self._models = models
        self._metadata = (base or members[0]).reader.metadata
        self._memory_bytes = memory_bytes
        planned = plan_tensors(
            recipe,
            [model.table for model in members],
            base.table if base else None,
            {name: model.table for name, model in models.items()},
        )
        for each in planned:
            if each.strategy is None:
                self._check_equal(each)
        found = surveyed(recipe, planned, lambda _: self._open, memory_bytes // 4)
        self._recipes = {each.name: each for each in found}

    @property
    def tensors(self) -> list[TensorInfo]:
        """What will be written, in that order."""
        return [
            TensorInfo(name=t.name, dtype=t.dtype, shape=t.shape, size_bytes=t.size_bytes)
            for t in self._recipes.values()
        ]

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in self._recipes.values())

    def write(
        self, weight_format: WeightFormat, path: Path, *, advance: Advance = no_progress
    ) -> None:
        """Write the merge to `path`, tensor by tensor; it appears complete or not at all."""

        def read(tensor: TensorInfo) -> Iterator[memoryview]:
            for piece in self._pieces(self._recipes[tensor.name]):
                yield piece
                advance(piece.nbytes)

        assert weight_format.write is not None
        try:
            weight_format.write(path, self.tensors, self._metadata, read)
        except NotFiniteError as exc:
            recipes = list(self._recipes.values())
            memory = self._memory_bytes // 4
            raise every_not_finite(exc, recipes, lambda _: self._open, memory) from exc

    def _pieces(self, recipe: TensorRecipe) -> Iterator[memoryview]:
        if recipe.strategy is None:
            return _raw(*self._find(recipe.members[0]))
        return fused_pieces(recipe, self._open, self._memory_bytes // 4)

    def _open(self, source: TensorSource) -> FileTensor:
        return FileTensor(*self._find(source))

    def _find(self, source: TensorSource) -> tuple[WeightReader, TensorInfo]:
        model = self._models[source.model]
        return model.reader, model.tensors[source.tensor]

    def _check_equal(self, recipe: TensorRecipe) -> None:
        first, *others = recipe.sources
        for other in others:
            pairs = zip(_raw(*self._find(first)), _raw(*self._find(other)), strict=True)
            if any(one != two for one, two in pairs):
                raise IncompatibleModelsError(
                    f"{first.model}, {other.model} cannot be fused: {recipe.name}: dtype "
                    f"{recipe.dtype} cannot be averaged",
                    hint="fuse models that agree in all tensors that are not of floats",
                )


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor of an open file, as the engine reads it."""

    reader: WeightReader
    info: TensorInfo

    @property
    def dtype(self) -> str:
        return self.info.dtype

    @property
    def size_bytes(self) -> int:
        return self.info.size_bytes

    @property
    def alignment(self) -> int:
        return PAGE_BYTES

    def read_into(self, offset: int, out: memoryview) -> None:
        self.reader.read_into(self.info.name, offset, out)


def _raw(reader: WeightReader, tensor: TensorInfo) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(COMPARED_BYTES, tensor.size_bytes)))
    for offset in range(0, tensor.size_bytes, COMPARED_BYTES):
        out = buffer[: min(COMPARED_BYTES, tensor.size_bytes - offset)]
        reader.read_into(tensor.name, offset, out)
        yield out
