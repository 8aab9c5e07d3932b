"""XOR with the base chunk, and then the coder of planes that our own deltas go through too."""

from __future__ import annotations

import numpy as np

from arc_halo.codecs import _planes, delta
from arc_halo.codecs._planes import Bytes, Layout
from arc_halo.types import TensorCodec


def xor_codec() -> TensorCodec:
    """A codec to take the place of `delta`."""
    return TensorCodec(
        name="delta", version=1, summary="XOR", encode=encode, decode=decode, needs_base=True
    )


def encode(raw: memoryview, *, dtype: str, base: memoryview) -> bytes | None:
    """The planes of the words' XOR; None where `delta` would not try, or where it does not pay."""
    if base.nbytes != raw.nbytes or raw.nbytes < delta.MIN_BYTES:
        return None
    layout = Layout(word=_planes.layout_of(dtype, raw.nbytes).word, floats=False)
    return _planes.encode(layout.view(_xor(raw, base)), np.empty(raw.nbytes, np.uint8), layout)


def decode(body: memoryview, out: memoryview, *, base: memoryview) -> None:
    """Undo `encode`."""
    parsed = _planes.parse(body, out.nbytes, codec="delta")
    words = parsed.layout.view(np.frombuffer(out, np.uint8))
    _planes.join(parsed, words, np.empty_like(words), codec="delta")
    out[:] = _xor(out, base).data


def _xor(one: memoryview, other: memoryview) -> Bytes:
    return np.bitwise_xor(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8))
