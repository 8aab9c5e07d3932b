"""The codec `raw`: the body is the chunk itself."""

from __future__ import annotations

from collections.abc import Iterator

from arc_halo.codecs._frames import damaged
from arc_halo.hookspecs import hookimpl
from arc_halo.types import TensorCodec


@hookimpl
def arc_halo_tensor_codecs() -> Iterator[TensorCodec]:
    yield TensorCodec(
        name="raw", version=1, summary="the bytes as they are", encode=encode, decode=decode
    )


def encode(raw: memoryview, *, dtype: str) -> bytes:
    """A copy of the chunk."""
    return bytes(raw)


def decode(body: memoryview, out: memoryview) -> None:
    """Copy the body into `out`; CodecError unless their lengths are equal."""
    if body.nbytes != out.nbytes:
        raise damaged("raw", f"the body has {body.nbytes} bytes where {out.nbytes} belong")
    out[:] = body
