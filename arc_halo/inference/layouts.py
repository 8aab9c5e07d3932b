"""What decides the values of a KV cache beside weights and tokens, and how they are laid out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from arc_halo.errors import InvalidInputError
from arc_halo.plain import check_plain
from arc_halo.tensors.dtypes import get_dtype
from arc_halo.types import JsonObject

MAX_PART_BYTES = 1048576
"""A row of bodies holds at most that; a part is of whole heads, so a head's block must fit."""

MAX_BLOCK_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """Keys and values of a layer: `[heads, tokens, key_size]` and `[heads, tokens, value_size]`.

    A query of a layer with a `window` sees that many tokens, itself among them; None is all.
    """

    heads: int
    key_size: int
    value_size: int
    window: int | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        return self.key_size, self.value_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Layers that see equally far. A block of a group stands in the cache on its own."""

    window: int | None
    layers: tuple[int, ...]

    def first_token(self, length: int) -> int:
        """The first token that is needed to go on after `length` tokens."""
        return 0 if self.window is None else max(0, length - (self.window - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class KVLayout:
    """The layers of an engine's cache. `engine` is all else that decides the values.

    Of two caches with layouts that differ in anything, neither ever sees a block of the other.
    """

    dtype: str
    layers: tuple[LayerShape, ...]
    engine: JsonObject = field(default_factory=dict)

    @property
    def item_bytes(self) -> int:
        return get_dtype(self.dtype).item_bytes

    @property
    def groups(self) -> tuple[Group, ...]:
        """The layers by their windows, those that see everything first."""
        windows = sorted({layer.window for layer in self.layers}, key=lambda w: (w is not None, w))
        return tuple(
            Group(
                window=window,
                layers=tuple(i for i, layer in enumerate(self.layers) if layer.window == window),
            )
            for window in windows
        )

    def block_bytes(self, group: Group, block_tokens: int) -> int:
        """Raw bytes of a block of a group."""
        return sum(
            self.layers[i].heads * size * block_tokens * self.item_bytes
            for i in group.layers
            for size in self.layers[i].sizes
        )

    def digest(self) -> bytes:
        """SHA-256 of the layout as canonical JSON."""
        document = {
            "dtype": self.dtype,
            "layers": [[s.heads, s.key_size, s.value_size, s.window] for s in self.layers],
            "engine": self.engine,
        }
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=True)
        return hashlib.sha256(text.encode()).digest()


def check_layout(layout: KVLayout, block_tokens: int) -> None:
    """Raise `InvalidInputError` for a layout whose blocks could not be stored."""
    if type(block_tokens) is not int or not 1 <= block_tokens <= MAX_BLOCK_TOKENS:
        raise InvalidInputError(
            f"block_tokens={block_tokens!r}: write 1 to {MAX_BLOCK_TOKENS}", code="AH006"
        )
    if not isinstance(layout, KVLayout) or not _are_shapes(layout.layers):
        raise InvalidInputError(
            "a layout is a KVLayout, with a LayerShape of whole numbers for each layer",
            code="AH006",
        )
    check_plain(engine=layout.engine)
    if not layout.layers:
        raise InvalidInputError("a layout without layers has no keys and values", code="AH006")
    if not layout.item_bytes:
        raise InvalidInputError(f"keys and values of {layout.dtype} are not stored", code="AH006")
    for index, layer in enumerate(layout.layers):
        if min(layer.heads, *layer.sizes) < 1 or (layer.window is not None and layer.window < 1):
            raise InvalidInputError(f"layer {index} has no size: {layer}", code="AH006")
        row = max(layer.sizes) * block_tokens * layout.item_bytes
        if row > MAX_PART_BYTES:
            raise InvalidInputError(
                f"a block of one head of layer {index} has {row} bytes, more than {MAX_PART_BYTES}",
                hint="make block_tokens smaller",
                code="AH006",
            )


def _are_shapes(layers: Any) -> bool:
    return isinstance(layers, Sequence) and all(
        isinstance(each, LayerShape)
        and all(type(size) is int for size in (each.heads, *each.sizes))
        and (each.window is None or type(each.window) is int)
        for each in layers
    )


def usable_length(
    groups: Sequence[Group], present: Sequence[Sequence[bool]], block_tokens: int, limit: int
) -> int:
    """The most tokens, at most `limit`, that every group has what is needed to go on after.

    `present[g][b]` says whether block b of group g is there. Where the groups are one that sees
    everything, that is the longest prefix.
    """
    blocks = len(present[0]) if present else 0
    runs = [_run_begins(each) for each in present]
    for last in reversed(range(min(blocks, -(-limit // block_tokens)))):
        # Of the lengths that end in this block the greatest needs the fewest tokens before it.
        length = min(limit, (last + 1) * block_tokens)
        if all(
            run[last] * block_tokens <= (first := group.first_token(length)) or first == length
            for group, run in zip(groups, runs, strict=True)
        ):
            return length
    return 0


def _run_begins(present: Sequence[bool]) -> list[int]:
    """For each block the first of the run of blocks that are there and end with it."""
    begins: list[int] = []
    begin = 0
    for index, is_there in enumerate(present):
        if not is_there:
            begin = index + 1
        begins.append(begin)
    return begins
