"""The codec `planes`: floats split into byte planes, each coded by what pays for it.

Trained weights have little to repeat, but their exponents are few: gathered in a plane of their
own they shrink to a third, and the mantissas, which are noise, are kept as they are. For bfloat16
that is two thirds of the bytes.

The body is that of `arc_halo.codecs._planes`, and 0x80 says that words are rotated: each stands
one bit to the left, the sign at the bottom, so that its top byte is the exponent alone (with the
first bits of the mantissa where the exponent is shorter).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from arc_halo.codecs import _planes
from arc_halo.codecs._planes import Layout, Scratch, Words
from arc_halo.hookspecs import hookimpl
from arc_halo.types import TensorCodec

MIN_BYTES = 16384


@hookimpl
def arc_halo_tensor_codecs() -> Iterator[TensorCodec]:
    yield TensorCodec(
        name="planes",
        version=1,
        summary="byte planes of floats, lossless; bfloat16 to about two thirds",
        encode=encode,
        decode=decode,
    )


def encode(raw: memoryview, *, dtype: str) -> bytes | None:
    """The body of a chunk of that dtype, or None where it would be no shorter than the chunk.

    A chunk that ends inside a word is taken as bytes; one below 16 KiB is not worth a body.
    """
    size_bytes = raw.nbytes
    if not MIN_BYTES <= size_bytes <= _planes.MAX_BYTES:
        return None
    found = _planes.layout_of(dtype, size_bytes)
    layout = Layout(word=found.word, floats=found.floats and found.word > 1)
    words = layout.view(np.frombuffer(raw, np.uint8))
    planes = _scratch.get(1, size_bytes)
    shifted = layout.view(_scratch.get(0, size_bytes))
    if layout.floats:
        carried = layout.view(planes)
        np.right_shift(words, layout.word * 8 - 1, out=carried)
        np.left_shift(words, 1, out=shifted)
        np.bitwise_or(shifted, carried, out=shifted)
    else:
        np.copyto(shifted, words)
    return _planes.encode(shifted, planes, layout)


def decode(body: memoryview, out: memoryview) -> None:
    """Fill `out` from a body; CodecError for a damaged body or one of another length."""
    parsed = _planes.parse(body, out.nbytes, codec="planes")
    words = parsed.layout.view(np.frombuffer(out, np.uint8))
    part = parsed.layout.view(_scratch.get(0, out.nbytes))
    _planes.join(parsed, words, part, codec="planes")
    if parsed.layout.floats:
        _rotate_back(words, part)


_scratch = Scratch()


def _rotate_back(words: Words, part: Words) -> None:
    np.left_shift(words, words.itemsize * 8 - 1, out=part)
    np.right_shift(words, 1, out=words)
    np.bitwise_or(words, part, out=words)
