"""Zstandard frames in and out, shared by the codecs that are made of them."""

from __future__ import annotations

import threading

import zstandard

from arc_halo.errors import CodecError

# Level 1 without matches: what remains is Huffman coding of literals, which is all that the
# bytes of trained weights have to give. A target_length above 0 would switch that off.
HUFFMAN = zstandard.ZstdCompressionParameters(
    compression_level=1,
    strategy=zstandard.STRATEGY_FAST,
    window_log=17,
    hash_log=6,
    chain_log=6,
    search_log=1,
    min_match=7,
    target_length=0,
    write_content_size=1,
)


class Frames(threading.local):
    """Compressors and a decompressor of the calling thread: zstandard's are not thread-safe."""

    def __init__(self) -> None:
        self.huffman = zstandard.ZstdCompressor(compression_params=HUFFMAN)
        self.fast = zstandard.ZstdCompressor(level=1)
        self.default = zstandard.ZstdCompressor(level=3)
        self._decompressor = zstandard.ZstdDecompressor()

    def decompress(self, frame: memoryview, size_bytes: int, *, codec: str) -> bytes:
        """The `size_bytes` bytes in one frame; CodecError, named after `codec`, for anything else.

        No memory is taken before the frame's own word on its size is the size expected.
        """
        try:
            if zstandard.frame_content_size(frame) != size_bytes:
                raise damaged(codec, f"a frame does not hold the {size_bytes} bytes expected")
            return self._decompressor.decompress(
                frame, max_output_size=size_bytes, allow_extra_data=False
            )
        except zstandard.ZstdError as exc:
            raise damaged(codec, f"a frame is broken: {exc}") from exc


def damaged(codec: str, what: str) -> CodecError:
    """The error for a body that cannot be decoded."""
    return CodecError(
        f"{codec}: {what}", hint="the stored chunk is damaged: `arc-halo tensors verify` says more"
    )
