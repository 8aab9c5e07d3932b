"""The codec `zstd`: the body is one Zstandard frame, for integers, masks and text."""

from __future__ import annotations

from collections.abc import Iterator

from arc_halo.codecs._frames import Frames
from arc_halo.hookspecs import hookimpl
from arc_halo.types import TensorCodec


@hookimpl
def arc_halo_tensor_codecs() -> Iterator[TensorCodec]:
    yield TensorCodec(
        name="zstd", version=1, summary="Zstandard, level 3", encode=encode, decode=decode
    )


def encode(raw: memoryview, *, dtype: str) -> bytes | None:
    """The chunk as one frame, or None where that is no shorter."""
    body = _frames.default.compress(raw)
    return body if len(body) < raw.nbytes else None


def decode(body: memoryview, out: memoryview) -> None:
    """Fill `out` from the frame; CodecError unless it holds exactly that many bytes."""
    out[:] = _frames.decompress(body, out.nbytes, codec="zstd")


_frames = Frames()
