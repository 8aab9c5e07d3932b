"""Tensors with a row for each token, aligned to the vocabulary of the result."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from arc_halo.architectures import is_vocabulary_tensor
from arc_halo.errors import IncompatibleModelsError
from arc_halo.fusion.adapters import source_of
from arc_halo.fusion.compatibility import Known, Table, is_computable, refuse
from arc_halo.fusion.tensor_recipes import Rows
from arc_halo.fusion.vocabularies import Vocabularies
from arc_halo.tensors import dtypes

if TYPE_CHECKING:
    from arc_halo.fusion.inputs import RawTensor
    from arc_halo.types import FloatArray

SCRATCH_BYTES = 2**20
WINDOW_BYTES = 2**19
"""A window has at least a part of float64, and some times that where memory allows."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """A tensor of an input as it is once its rows are the result's."""

    dtype: str
    shape: Sequence[int]
    digest: bytes | None
    rows: Rows


def aligned_tables(vocabularies: Vocabularies, tables: Sequence[Table]) -> list[Table]:
    """The tables of the members and then the base, each with its rows aligned.

    Raises `IncompatibleModelsError` for matrices that have fewer rows than their tokenizer tokens,
    and where there is nothing to be aligned.
    """
    names = [name for name in tables[0].tensors if _is_aligned(name, vocabularies, tables)]
    if not names:
        raise IncompatibleModelsError(
            f"no tensor of {tables[0].name} has a row for each token",
            hint="leave out `tokenizer`: nothing is to be aligned",
        )
    refuse(tables, [each for name in names for each in _problems(name, vocabularies, tables)])
    changed: list[dict[str, Known]] = [dict(table.tensors) for table in tables]
    for name in names:
        sources = [source_of(table, name) for table in tables]
        for place, runs in enumerate(vocabularies.runs):
            known = tables[place].tensors[name]
            shape = (vocabularies.row_count, *known.shape[1:])
            if runs != ((known.shape[0], place, 0),):
                rows = Rows.of(runs, sources)
                changed[place][name] = Aligned(known.dtype, shape, known.digest, rows)
    return [Table(t.name, tensors) for t, tensors in zip(tables, changed, strict=True)]


def _is_aligned(name: str, vocabularies: Vocabularies, tables: Sequence[Table]) -> bool:
    """What one model has no row a token for is no such tensor in the others either."""
    return all(
        name in table.tensors
        and is_vocabulary_tensor(name, table.tensors[name].shape, tokenizer.size)
        for table, tokenizer in zip(tables, vocabularies.all, strict=True)
    )


def _problems(name: str, vocabularies: Vocabularies, tables: Sequence[Table]) -> Iterator[str]:
    for table, tokenizer in zip(tables, vocabularies.all, strict=True):
        tensor = table.tensors[name]
        if tensor.shape[0] < tokenizer.size:
            yield (
                f"{name}: {tensor.shape[0]} rows in {table.name}, "
                f"whose tokenizer has {tokenizer.size} tokens"
            )
        if not is_computable(tensor.dtype):
            yield f"{name}: dtype {tensor.dtype} in {table.name} cannot be aligned"


@dataclass(frozen=True, slots=True)
class _Segment:
    """Elements of a source that follow one another, and where they go: `count` of them are the
    `start`-th and following of a part."""

    source: int
    first: int
    start: int
    count: int


class AlignedTensor:
    """The rows of several tensors as one of float32, or of float64, read as they are asked for.

    Each part that is asked for is read source by source and from their beginnings on, what lies
    close together at once. Rows of several sources are added up in the order of the sources.
    """

    def __init__(self, rows: Rows, sources: Sequence[RawTensor], columns: int, dtype: str) -> None:
        self.dtype = dtype
        self._runs = rows.runs
        self._ends = list(accumulate(run[0] for run in rows.runs))
        self._sources = sources
        self._columns = columns

    @property
    def size_bytes(self) -> int:
        return self._ends[-1] * self._columns * dtypes.numpy_dtype(self.dtype).itemsize

    @property
    def alignment(self) -> int:
        return WINDOW_BYTES

    def read_into(self, offset: int, out: memoryview) -> None:
        import numpy as np

        dtype = dtypes.numpy_dtype(self.dtype)
        part: FloatArray = np.frombuffer(out, dtype)
        part[:] = -0.0  # which nothing is changed by, not even another -0.0
        start = offset // dtype.itemsize
        segments = sorted(
            self._segments(start, start + part.size), key=lambda each: (each.source, each.first)
        )
        for group in self._groups(segments):
            self._add(group, part)
        self._finish(start, part)

    def _segments(self, start: int, end: int) -> Iterator[_Segment]:
        for run, first, last in self._pieces(start, end):
            run_start = (self._ends[run] - self._runs[run][0]) * self._columns
            for source, row in _pairs(self._runs[run]):
                place = row * self._columns + first - run_start
                yield from _cut(_Segment(source, place, first - start, last - first))

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The runs that elements from `start` to `end` are of, and those of each."""
        run = bisect_right(self._ends, start // self._columns)
        while start < end:
            last = min(end, self._ends[run] * self._columns)
            yield run, start, last
            start, run = last, run + 1

    def _groups(self, segments: Sequence[_Segment]) -> Iterator[list[_Segment]]:
        """Segments that are read at once, since what lies between would be read anyway."""
        group: list[_Segment] = []
        for each in segments:
            if group and not self._is_near(group, each):
                yield group
                group = []
            group.append(each)
        if group:
            yield group

    def _is_near(self, group: Sequence[_Segment], other: _Segment) -> bool:
        first, last = group[0], group[-1]
        if other.source != first.source:
            return False
        source = self._sources[other.source]
        itemsize = dtypes.numpy_dtype(source.dtype).itemsize
        gap = (other.first - last.first - last.count) * itemsize
        size = (other.first + other.count - first.first) * itemsize
        return gap <= source.alignment and size <= SCRATCH_BYTES

    def _add(self, group: Sequence[_Segment], part: FloatArray) -> None:
        import numpy as np

        source = self._sources[group[0].source]
        dtype = dtypes.numpy_dtype(source.dtype)
        first = group[0].first
        end = max(each.first + each.count for each in group)
        raw = memoryview(bytearray((end - first) * dtype.itemsize))
        source.read_into(first * dtype.itemsize, raw)
        values = np.frombuffer(raw, dtype)
        for each in group:
            place = slice(each.first - first, each.first - first + each.count)
            part[each.start : each.start + each.count] += values[place].astype(part.dtype)

    def _finish(self, start: int, part: FloatArray) -> None:
        for run, first, last in self._pieces(start, start + part.size):
            count = (len(self._runs[run]) - 1) // 2
            if count == 0:
                part[first - start : last - start] = 0
            elif count > 1:
                part[first - start : last - start] /= count


def _pairs(run: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip(run[1::2], run[2::2], strict=True)


def _cut(segment: _Segment) -> Iterator[_Segment]:
    """In pieces whose raw bytes fit, of whatever dtype they are."""
    step = SCRATCH_BYTES // 8
    for done in range(0, segment.count, step):
        yield _Segment(
            segment.source,
            segment.first + done,
            segment.start + done,
            min(step, segment.count - done),
        )
