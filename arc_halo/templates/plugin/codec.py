"""The tensor codec `plugin_name`: zero bytes are left out, and a map says where they were.

For weights with many zeros: pruned ones, masks, or float32 that was bfloat16 before. A body is

    8 bytes            how many bytes the chunk has, little-endian
    an eighth of that  a bit for each byte of the chunk, first byte first: is it other than zero?
    the rest           those bytes that are, in order

Change it to yours; a released version never changes what it writes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from arc_halo import TensorCodec, hookimpl
from arc_halo.errors import CodecError

HEADER_BYTES = 8


@hookimpl
def arc_halo_tensor_codecs() -> Iterator[TensorCodec]:
    yield TensorCodec(
        name="plugin_name",
        version=1,  # stored with each chunk: a newer version still reads what an older one wrote
        summary="zero bytes left out",
        encode=encode,
        decode=decode,
    )


def encode(raw: memoryview, *, dtype: str) -> bytes | None:
    """The body of a chunk, or None where it would be no shorter: it is then stored raw.

    `dtype` may help to choose a way; decoding does not get it, so what it needs, the body must say.
    Called from several threads.
    """
    values = np.frombuffer(raw, np.uint8)
    is_kept = values != 0
    header = len(values).to_bytes(HEADER_BYTES, "little")
    body = header + np.packbits(is_kept).tobytes() + values[is_kept].tobytes()
    return body if len(body) < len(values) else None


def decode(body: memoryview, out: memoryview) -> None:
    """Fill `out`, whose length is that of the chunk; `CodecError` for a body that is damaged.

    A damaged body may decode to other bytes, which the chunk's digest finds; it may raise nothing
    else, and take no memory for a length that it merely claims.
    """
    if int.from_bytes(body[:HEADER_BYTES], "little") != len(out):
        raise _damaged(f"it is not that of a chunk of {len(out)} bytes")
    map_end = HEADER_BYTES + (len(out) + 7) // 8
    if len(body) < map_end:
        raise _damaged("its map is cut short")
    bits = np.unpackbits(np.frombuffer(body[HEADER_BYTES:map_end], np.uint8))
    is_kept, beyond = bits[: len(out)].astype(bool), bits[len(out) :]
    kept = np.frombuffer(body[map_end:], np.uint8)
    if np.count_nonzero(is_kept) != len(kept) or beyond.any():
        raise _damaged("its map does not fit the bytes that follow")
    values = np.frombuffer(out, np.uint8)
    values[:] = 0
    values[is_kept] = kept


def _damaged(why: str) -> CodecError:
    return CodecError(f"plugin_name: the body is damaged: {why}")
