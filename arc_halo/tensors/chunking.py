"""How a tensor's bytes are cut into chunks."""

from __future__ import annotations

from collections.abc import Iterator

DEFAULT_CHUNK_BYTES = 262144


def spans(size_bytes: int, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """(offset, length) of each chunk, in order; only the last may be shorter, none is empty."""
    if size_bytes < 0 or chunk_bytes < 1:
        raise ValueError(f"cannot cut {size_bytes} bytes into chunks of {chunk_bytes}")
    return (
        (offset, min(chunk_bytes, size_bytes - offset))
        for offset in range(0, size_bytes, chunk_bytes)
    )


def count(size_bytes: int, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> int:
    """How many chunks `spans` gives."""
    return -(-size_bytes // chunk_bytes)
