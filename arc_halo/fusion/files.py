"""A merge from files to a file: the same engine, without a database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from arc_halo.errors import IncompatibleModelsError
from arc_halo.fusion import compatibility
from arc_halo.fusion.inputs import Input, fused_bytes
from arc_halo.types import (
    FuseContext,
    FusionStrategy,
    JsonObject,
    TensorInfo,
    WeightFormat,
    WeightReader,
)
from arc_halo.weights.store import Advance, no_progress

PAGE_BYTES = 65536
COMPARED_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenModel:
    """A model whose files are open; `root` is there where the strategy needs it."""

    name: str
    reader: WeightReader
    weight: float = 1.0
    root: bytes | None = None
    tensors: Mapping[str, TensorInfo] = field(init=False)

    def __post_init__(self) -> None:
        tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        object.__setattr__(self, "tensors", tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMerge:
    """What is to be merged, and how. At most `memory_bytes` are taken for windows and parts."""

    strategy: FusionStrategy
    params: JsonObject
    members: Sequence[OpenModel]
    base: OpenModel | None = None
    memory_bytes: int = 256 * 1024 * 1024

    @property
    def tensors(self) -> list[TensorInfo]:
        """What will be written, in the order of the first member's file."""
        return list(self.members[0].reader.tensors)

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    def check(self) -> None:
        """Raise `IncompatibleModelsError` for models that cannot be fused."""
        models = [(model.name, model.tensors) for model in self._models]
        compatibility.check_shapes(models)
        for tensor in self.tensors:
            if not compatibility.is_computable(tensor.dtype):
                self._check_equal(tensor)

    def write(
        self, weight_format: WeightFormat, path: Path, *, advance: Advance = no_progress
    ) -> None:
        """Write the merge to `path`, tensor by tensor; it appears complete or not at all."""

        def read(tensor: TensorInfo) -> Iterator[memoryview]:
            for piece in self._pieces(tensor):
                yield piece
                advance(piece.nbytes)

        assert weight_format.write is not None
        weight_format.write(path, self.tensors, self.members[0].reader.metadata, read)

    @property
    def _models(self) -> list[OpenModel]:
        return [*self.members, *([self.base] if self.base else [])]

    def _pieces(self, tensor: TensorInfo) -> Iterator[memoryview]:
        if not compatibility.is_computable(tensor.dtype):
            yield from _raw(self.members[0], tensor)
            return
        window = self.memory_bytes // (4 * len(self._models))
        members = [_input(model, tensor, window) for model in self.members]
        base = _input(self.base, tensor, window) if self.base else None
        roots = [model.root for model in self.members if model.root is not None]
        context = FuseContext(
            tensor=tensor.name,
            weights=tuple(model.weight for model in self.members),
            shape=tensor.shape,
            roots=tuple(roots),
        )
        yield from fused_bytes(self.strategy, self.params, context, members, base, tensor.dtype)

    def _check_equal(self, tensor: TensorInfo) -> None:
        first, *others = self._models
        for other in others:
            pairs = zip(_raw(first, tensor), _raw(other, tensor), strict=True)
            if any(one != two for one, two in pairs):
                raise IncompatibleModelsError(
                    f"{first.name}, {other.name} cannot be fused: {tensor.name}: dtype "
                    f"{tensor.dtype} cannot be averaged",
                    hint="fuse models that agree in all tensors that are not of floats",
                )


@dataclass(frozen=True, slots=True)
class _FileTensor:
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


def _input(model: OpenModel, tensor: TensorInfo, window_bytes: int) -> Input:
    source = _FileTensor(model.reader, model.tensors[tensor.name])
    return Input(model.name, tensor.name, source, window_bytes)


def _raw(model: OpenModel, tensor: TensorInfo) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(COMPARED_BYTES, tensor.size_bytes)))
    for offset in range(0, tensor.size_bytes, COMPARED_BYTES):
        out = buffer[: min(COMPARED_BYTES, tensor.size_bytes - offset)]
        model.reader.read_into(tensor.name, offset, out)
        yield out
