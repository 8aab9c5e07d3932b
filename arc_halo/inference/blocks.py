"""Blocks of keys and values: cut out of an engine's arrays, and put back into them.

A block of a group is the rows of its layers one after another, keys before values; a row is what
one head has for the tokens of the block, `[tokens, size]`. Parts are of whole rows, so that a part
goes from the message it came in to where it belongs by one copy. The digest is over the bodies of
all parts, seeded by the key: bytes of another block are not taken for this one's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import xxhash

from arc_halo.errors import ArcHaloError, CodecError, InvalidInputError
from arc_halo.inference import quantising
from arc_halo.inference.layouts import Group, KVLayout
from arc_halo.store.kv_cache import NewBlock, Part
from arc_halo.tensors import dtypes
from arc_halo.types import TensorCodec
from arc_halo.weights.decoding import decode_with
from arc_halo.weights.encoding import encode_with

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"

PART_BYTES = 128 * 1024
"""Raw bytes of a part, unless one row has more: what goes through the caches of a processor is
copied from where it was just received."""

RAW, INT8 = "raw", "int8"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKV:
    """Keys `[heads, tokens, key_size]` and values `[heads, tokens, value_size]` of a layer, of the
    tokens from `start` on."""

    keys: Array
    values: Array
    start: int = 0

    @property
    def stop(self) -> int:
        return self.start + int(self.keys.shape[1])

    @property
    def both(self) -> tuple[Array, Array]:
        return self.keys, self.values


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Some heads of the keys (0) or the values (1) of a layer."""

    layer: int
    which: int
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where a block stands in a prompt, and what it is called."""

    key: bytes
    parent_key: bytes | None
    index: int
    tokens: bytes


def check_arrays(layout: KVLayout, layers: Sequence[LayerKV]) -> None:
    """Raise `InvalidInputError` unless the arrays are of the layout, and all end alike."""
    if not isinstance(layers, Sequence) or not all(isinstance(each, LayerKV) for each in layers):
        raise InvalidInputError("layers are a list, with a LayerKV for each", code="AH006")
    if len(layers) != len(layout.layers):
        raise InvalidInputError(
            f"the layout has {len(layout.layers)} layers, {len(layers)} came", code="AH006"
        )
    dtype = dtypes.numpy_dtype(layout.dtype)
    for index, (shape, given) in enumerate(zip(layout.layers, layers, strict=True)):
        for array, size in zip(given.both, shape.sizes, strict=True):
            fits = array.ndim == 3 and array.shape[0] == shape.heads and array.shape[2] == size
            if not fits or array.dtype != dtype or array.shape[1] != given.keys.shape[1]:
                raise InvalidInputError(
                    f"layer {index}: [{shape.heads}, tokens, {size}] of {layout.dtype} is what "
                    f"the layout says, {list(array.shape)} of {array.dtype} came",
                    code="AH006",
                )
        if given.stop != layers[0].stop or given.start < 0:
            raise InvalidInputError(
                f"layer {index} has tokens {given.start} to {given.stop}, and layer 0 to "
                f"{layers[0].stop}",
                code="AH006",
            )


def digest_of(key: bytes, bodies: Iterable[bytes | memoryview]) -> bytes:
    """The digest of a block, by the bodies of its parts in order: 16 bytes."""
    hasher = xxhash.xxh3_128(seed=int.from_bytes(key[:8], "little"))
    for body in bodies:
        hasher.update(body)
    digest: bytes = hasher.digest()
    return digest


def empty_layers(layout: KVLayout, starts: Sequence[int], stop: int) -> list[LayerKV]:
    """Arrays to be filled, of the tokens from each layer's start to `stop`, in one piece of memory:
    the system gives large ones in large pages, at a fifth of the cost."""
    dtype = dtypes.numpy_dtype(layout.dtype)
    shapes = [
        (shape.heads, stop - start, size)
        for shape, start in zip(layout.layers, starts, strict=True)
        for size in shape.sizes
    ]
    memory = np.empty(sum(map(math.prod, shapes)), dtype)
    arrays: list[Array] = []
    at = 0
    for shape in shapes:
        size = math.prod(shape)
        arrays.append(memory[at : at + size].reshape(shape))
        at += size
    return [
        LayerKV(keys=keys, values=values, start=start)
        for keys, values, start in zip(arrays[::2], arrays[1::2], starts, strict=True)
    ]


class BlockCodec:
    """Blocks of one group of a layout, in and out."""

    def __init__(
        self,
        layout: KVLayout,
        group: Group,
        block_tokens: int,
        codecs: Mapping[str, TensorCodec],
        storage: str,
    ) -> None:
        self._layout = layout
        self._group = group
        self._block_tokens = block_tokens
        self._codecs = codecs
        self._storage = storage
        self._dtype = dtypes.numpy_dtype(layout.dtype)
        self._parts = tuple(_plan(layout, group, block_tokens))

    def encode(self, cut: Cut, layers: Sequence[LayerKV]) -> NewBlock:
        """The block as it will be stored, in the codec asked for, or raw where that does not
        pay."""
        raws = [self._gather(rows, layers, cut.index) for rows in self._parts]
        name, version, parts, error = self._encoded(raws)
        return NewBlock(
            key=cut.key,
            parent_key=cut.parent_key,
            index=cut.index,
            tokens=cut.tokens,
            digest=digest_of(cut.key, parts),
            codec=name,
            codec_version=version,
            raw_bytes=sum(map(len, raws)),
            parts=parts,
            error=error,
        )

    def decode(self, cut: Cut, parts: Sequence[Part], layers: Sequence[LayerKV]) -> bool:
        """Put a block where it belongs; False, and what is there then is undefined, where it is not
        what was stored."""
        first = parts[0]
        if len(parts) != first.part_count or len(parts) != len(self._parts):
            return False
        if first.tokens != cut.tokens:
            return False
        if digest_of(cut.key, [part.body for part in parts]) != first.digest:
            return False
        try:
            for part, rows in zip(parts, self._parts, strict=True):
                self._put(part, rows, layers, cut.index)
        except ArcHaloError:  # of a codec that we do not have, or that does not know the body
            return False
        return True

    def holds(self, index: int, layers: Sequence[LayerKV]) -> bool:
        """Whether all tokens of a block are in these arrays."""
        begin, end = index * self._block_tokens, (index + 1) * self._block_tokens
        return all(layers[i].start <= begin and end <= layers[i].stop for i in self._group.layers)

    def _gather(self, parts: Sequence[Rows], layers: Sequence[LayerKV], index: int) -> memoryview:
        out = np.empty(sum(self._row_bytes(rows) for rows in parts), np.uint8)
        at = 0
        for rows in parts:
            there = self._there(rows, layers, index)
            size = self._row_bytes(rows)
            out[at : at + size].view(self._dtype).reshape(there.shape)[...] = there
            at += size
        return out.data

    def _put(
        self,
        part: Part,
        rows: Sequence[Rows],
        layers: Sequence[LayerKV],
        index: int,
    ) -> None:
        size = sum(map(self._row_bytes, rows))
        if part.codec == INT8:
            raw = quantising.restore(part.body, self._shapes(rows), self._dtype).data
        elif part.codec == RAW:
            raw = part.body
        else:
            raw = memoryview(bytearray(size))
            codec = self._codecs.get(part.codec)
            if codec is None or part.codec_version > codec.version:
                raise CodecError(f"{part.codec} {part.codec_version} is not loaded")
            decode_with(codec, part.body, raw)
        if len(raw) != size:
            raise CodecError(f"a part has {len(raw)} bytes, not {size}")
        source = np.frombuffer(raw, np.uint8)
        at = 0
        for each in rows:
            step = self._row_bytes(each)
            self._into(each, source[at : at + step], layers, index)
            at += step

    def _into(self, rows: Rows, source: Array, layers: Sequence[LayerKV], index: int) -> None:
        """Copy the tokens of the block that the arrays have a place for."""
        layer = layers[rows.layer]
        target = layer.both[rows.which][rows.first : rows.last]
        shape = (rows.last - rows.first, self._block_tokens, target.shape[2])
        begin = index * self._block_tokens
        first, last = max(begin, layer.start), min(begin + self._block_tokens, layer.stop)
        if first < last:
            block = source.view(self._dtype).reshape(shape)
            there = block[:, first - begin : last - begin]
            target[:, first - layer.start : last - layer.start] = there

    def _there(self, rows: Rows, layers: Sequence[LayerKV], index: int) -> Array:
        layer = layers[rows.layer]
        begin = index * self._block_tokens - layer.start
        return layer.both[rows.which][rows.first : rows.last, begin : begin + self._block_tokens]

    def _shapes(self, rows: Sequence[Rows]) -> list[tuple[bool, tuple[int, int, int]]]:
        """Of each run of rows whether it is of keys, and its shape."""
        return [
            (
                each.which == 0,
                (
                    each.last - each.first,
                    self._block_tokens,
                    self._layout.layers[each.layer].sizes[each.which],
                ),
            )
            for each in rows
        ]

    def _row_bytes(self, rows: Rows) -> int:
        size = self._layout.layers[rows.layer].sizes[rows.which]
        return (rows.last - rows.first) * self._block_tokens * size * self._layout.item_bytes

    def _encoded(
        self, raws: Sequence[memoryview]
    ) -> tuple[str, int, Sequence[bytes | memoryview], float | None]:
        if self._storage == INT8:
            quantised = quantising.quantise(
                raws, [self._shapes(rows) for rows in self._parts], self._dtype
            )
            if quantised is not None:
                return INT8, quantising.VERSION, quantised.parts, quantised.error
        elif self._storage != RAW:
            codec = self._codecs[self._storage]
            bodies: list[bytes] = []
            for raw in raws:
                body = encode_with(codec, raw, self._layout.dtype)
                if body is None:
                    break
                bodies.append(body)
            else:
                return codec.name, codec.version, bodies, None
        return RAW, 1, raws, None


def _plan(layout: KVLayout, group: Group, block_tokens: int) -> Iterator[tuple[Rows, ...]]:
    """The rows of each part."""
    part: list[Rows] = []
    left = PART_BYTES
    for layer in group.layers:
        shape = layout.layers[layer]
        for which, size in enumerate(shape.sizes):
            row_bytes = size * block_tokens * layout.item_bytes
            first = 0
            while first < shape.heads:
                count = min(shape.heads - first, left // row_bytes)
                if count < 1 and part:
                    yield tuple(part)
                    part, left = [], PART_BYTES
                    continue
                count = max(count, 1)
                part.append(Rows(layer=layer, which=which, first=first, last=first + count))
                first += count
                left -= count * row_bytes
    if part:
        yield tuple(part)
