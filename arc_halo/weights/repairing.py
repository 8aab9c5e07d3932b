"""Repair: damaged and missing chunks written again from the file that the weights came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from arc_halo.store import chunks, integrity
from arc_halo.store.rows import Connection
from arc_halo.types import TensorInfo
from arc_halo.weights.encoding import encode_chunk
from arc_halo.weights.findings import Finding
from arc_halo.weights.store import Advance, WeightStore, no_progress

Produce = Callable[[TensorInfo], Iterable["bytes | memoryview"]]


def repair(
    store: WeightStore,
    findings: Sequence[Finding],
    tensors: Sequence[TensorInfo],
    produce: Produce,
    *,
    advance: Advance = no_progress,
) -> set[bytes]:
    """Write damaged chunks again wherever a piece of `tensors` has their digest; which ones.

    `produce` gives a tensor's raw bytes in pieces. They are cut as the damaged tensors are cut.
    What is written is no delta, and names no other chunk. Each chunk commits by itself.
    """
    wanted = {finding.digest for finding in findings if finding.what == "chunk"}
    healed: set[bytes] = set()
    with store.pool.connection() as conn:
        sizes = integrity.chunk_sizes(conn, sorted(wanted)) or [store.chunk_bytes]
        for info in tensors:
            for size in sizes:
                for raw in _cut(produce(info), size):
                    digest = hashlib.sha256(raw).digest()
                    if digest in wanted:
                        _write(store, conn, info, digest, raw)
                        wanted.discard(digest)
                        healed.add(digest)
                if not wanted:
                    return healed
            advance(info.size_bytes)
    return healed


def _write(
    store: WeightStore, conn: Connection, info: TensorInfo, digest: bytes, raw: bytes
) -> None:
    # Into the row first: whenever this stops, the row and the body it names belong together.
    chunk = encode_chunk(store, digest, raw, dtype=info.dtype)
    with conn.transaction():
        integrity.heal_chunk(conn, chunk, store_id=None)
    if store.bodies is not None:
        with conn.transaction():
            chunks.lock_bodies_shared(conn)
            integrity.heal_chunk(conn, chunk, store_id=store.bodies.store_id)
            store.bodies.bodies.put({digest: chunk.body})


def _cut(pieces: Iterable[bytes | memoryview], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of `size`, the last one shorter."""
    rest = bytearray()
    for piece in pieces:
        rest += piece
        whole = len(rest) - len(rest) % size
        for start in range(0, whole, size):
            yield bytes(rest[start : start + size])
        del rest[:whole]
    if rest:
        yield bytes(rest)
