"""The codec `delta`: what a chunk adds to the same chunk of a base model, in byte planes.

A fine-tune or a checkpoint moves each weight by a few units in the last place, across exponents
too. So floats are mapped to integers of the same order (a negative one has its lower bits
inverted, as two's complement has them), the base's are subtracted modulo the word, and the
difference is folded to 0, -1, 1, -2, 2 and so on: small numbers, whose upper planes are all but
empty. Integers are subtracted as they are.

The body is that of `arc_halo.codecs._planes`, of the folded differences, and 0x80 says that words
were mapped.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from arc_halo.codecs import _planes
from arc_halo.codecs._frames import damaged
from arc_halo.codecs._planes import Layout, Scratch, Words
from arc_halo.hookspecs import hookimpl
from arc_halo.types import TensorCodec

MIN_BYTES = 4096


@hookimpl
def arc_halo_tensor_codecs() -> Iterator[TensorCodec]:
    yield TensorCodec(
        name="delta",
        version=1,
        summary="differences from a base model's chunk, lossless; for fine-tunes and checkpoints",
        encode=encode,
        decode=decode,
        needs_base=True,
    )


def encode(raw: memoryview, *, dtype: str, base: memoryview) -> bytes | None:
    """The body of a chunk against its base, or None where it would be no shorter than the chunk.

    None too for a base of another length, and for a chunk below 4 KiB. A chunk that ends inside a
    word is taken as bytes.
    """
    size_bytes = raw.nbytes
    if base.nbytes != size_bytes or not MIN_BYTES <= size_bytes <= _planes.MAX_BYTES:
        return None
    layout = _layout(dtype, size_bytes)
    words = layout.view(np.frombuffer(raw, np.uint8))
    base_words = layout.view(np.frombuffer(base, np.uint8))
    planes = _scratch.get(1, size_bytes)
    change, other = layout.view(_scratch.get(0, size_bytes)), layout.view(planes)
    if layout.floats:
        _map(words, change)
        _map(base_words, other)
        np.subtract(change, other, out=change)
    else:
        np.subtract(words, base_words, out=change)
    _fold(change, other)
    return _planes.encode(change, planes, layout)


def decode(body: memoryview, out: memoryview, *, base: memoryview) -> None:
    """Fill `out` from a body and its base.

    CodecError for a damaged body, or one or a base of another length. Another base of the same
    length gives other bytes, which the chunk's digest finds.
    """
    size_bytes = out.nbytes
    if base.nbytes != size_bytes:
        raise damaged("delta", f"the base has {base.nbytes} bytes where {size_bytes} belong")
    parsed = _planes.parse(body, size_bytes, codec="delta")
    layout = parsed.layout
    base_words = layout.view(np.frombuffer(base, np.uint8))
    words = layout.view(np.frombuffer(out, np.uint8))
    change, other = (layout.view(_scratch.get(index, size_bytes)) for index in (0, 1))
    _planes.join(parsed, change, other, codec="delta")
    _unfold(change, other)
    if layout.floats:
        _map(base_words, other)
        np.add(change, other, out=change)
        _map(change, words)
    else:
        np.add(change, base_words, out=words)


_scratch = Scratch()


def _layout(dtype: str, size_bytes: int) -> Layout:
    found = _planes.layout_of(dtype, size_bytes)
    # An exponent alone has no sign: its bits are in order already.
    return Layout(word=found.word, floats=found.floats and dtype != "F8_E8M0")


def _map(words: Words, out: Words) -> None:
    """Floats' bits to integers of the same order, modulo the word; it undoes itself."""
    signed = f"<i{words.itemsize}"
    np.right_shift(words.view(signed), words.itemsize * 8 - 1, out=out.view(signed))
    np.right_shift(out, 1, out=out)
    np.bitwise_xor(out, words, out=out)


def _fold(change: Words, other: Words) -> None:
    """In place, the signed 0, -1, 1, -2 to 0, 1, 2, 3; `other` is written over."""
    signed = f"<i{change.itemsize}"
    np.right_shift(change.view(signed), change.itemsize * 8 - 1, out=other.view(signed))
    np.left_shift(change, 1, out=change)
    np.bitwise_xor(change, other, out=change)


def _unfold(change: Words, other: Words) -> None:
    np.bitwise_and(change, 1, out=other)
    np.negative(other, out=other)
    np.right_shift(change, 1, out=change)
    np.bitwise_xor(change, other, out=change)
