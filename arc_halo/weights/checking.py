"""Chunks read again and hashed; tensors and weight sets checked against their digests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from arc_halo.errors import (
    ArcHaloError,
    CodecError,
    CorruptChunkError,
    MissingChunkError,
    UnknownPluginError,
)
from arc_halo.store import chunks, integrity
from arc_halo.store.chunks import StoredChunk
from arc_halo.store.integrity import ChunkList, Members
from arc_halo.store.rows import Connection
from arc_halo.tensors import digests
from arc_halo.weights.decoding import decode_base, decode_chunk, with_bodies
from arc_halo.weights.findings import Finding
from arc_halo.weights.store import WeightStore

MAX_CHUNK_BYTES = 1_048_576

Part = Sequence[tuple[bytes, bytes]]
"""Spans of digests, both ends included."""


@dataclass(slots=True)
class Page:
    """How much was read, what of it was not well, and how much could not be read here."""

    chunks: int = 0
    raw_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    elsewhere: Counter[int] = field(default_factory=Counter)
    """Chunks in body stores that the project does not name, by the store's number."""


def check_chunks(store: WeightStore, names: Sequence[bytes]) -> Page:
    """Read the chunks of these digests and hash them."""
    page = Page()
    buffer = memoryview(bytearray(MAX_CHUNK_BYTES))
    with (
        store.pool.connection() as conn,
        closing(chunks.read_chunks_by_digest(conn, names)) as stream,
    ):
        for chunk in with_bodies(store, _within_reach(store, stream, page)):
            size = chunk.encoded.raw_bytes if chunk.encoded else 0
            page.chunks += 1
            page.raw_bytes += size
            _check_chunk(store, chunk, buffer[:size], page)
    return page


def check_deltas(conn: Connection, of: Sequence[bytes] | None) -> Iterator[Finding]:
    """Deltas whose bases are gone, or deltas themselves; and the bases that are gone."""
    for delta in integrity.broken_deltas(conn, of):
        base = bytes(delta.base_digest)
        said = "is missing" if delta.is_missing else "is a delta itself"
        problem = f"its base {base.hex()[:16]}… {said}"
        yield Finding(what="chunk", digest=bytes(delta.digest), problem=problem)
        if delta.is_missing:
            yield _gone(base)


def check_tensors(
    store: WeightStore, conn: Connection, ids: Sequence[int], part: Part
) -> list[Finding]:
    """Whether the chunks of these tensors are all there, and add up to what they are named by.

    Those that are not cut as digests are must be read for it: only with a digest in `part`.
    """
    found = [_gone(digest) for digest in integrity.missing_chunks(conn, ids)]
    for item in integrity.chunk_lists(conn, ids):
        if problem := _list_problem(store, item, part, found):
            digest = bytes(item.digest)
            found.append(Finding(what="tensor", digest=digest, problem=problem, row_id=item.id))
    return found


def check_sets(conn: Connection, ids: Sequence[int]) -> Iterator[Finding]:
    """Whether the tensors of these weight sets add up to the roots they are named by."""
    for item in integrity.set_members(conn, ids):
        if problem := _set_problem(item):
            yield Finding(what="weights", digest=bytes(item.root), problem=problem, row_id=item.id)


def _within_reach(
    store: WeightStore, stream: Iterable[StoredChunk], page: Page
) -> Iterator[StoredChunk]:
    """Leave out, and count, the chunks whose bodies this project cannot read."""
    own = {None} if store.bodies is None else {None, store.bodies.store_id}
    for chunk in stream:
        places = {encoded.store_id for encoded in (chunk.encoded, chunk.base) if encoded}
        if places <= own:
            yield chunk
            continue
        (place, *_) = places - own
        page.elsewhere[int(place or 0)] += 1


def _check_chunk(store: WeightStore, chunk: StoredChunk, out: memoryview, page: Page) -> None:
    try:
        decode_chunk(store, chunk, out)
    except (CorruptChunkError, MissingChunkError, UnknownPluginError) as exc:
        problem = exc.message.removeprefix(f"chunk {chunk.index} ")
        is_unread = isinstance(exc, UnknownPluginError)
        page.findings.append(replace(_finding(chunk, problem), is_unread=is_unread))
        if chunk.base is not None:
            _check_base(store, chunk.base, page)


def _check_base(store: WeightStore, base: chunks.Encoded, page: Page) -> None:
    try:
        decode_base(store, base)
    except (CodecError, UnknownPluginError) as exc:
        page.findings.append(
            Finding(
                what="chunk",
                digest=base.digest,
                problem=str(exc),
                codec=base.codec,
                is_unread=isinstance(exc, UnknownPluginError),
            )
        )


def _finding(chunk: StoredChunk, problem: str) -> Finding:
    return Finding(
        what="chunk",
        digest=chunk.digest,
        problem=problem,
        codec=chunk.encoded.codec if chunk.encoded else None,
        is_missing=chunk.encoded is None,
    )


def _gone(digest: bytes) -> Finding:
    return Finding(what="chunk", digest=digest, problem="is missing", is_missing=True)


def _list_problem(
    store: WeightStore, item: ChunkList, part: Part, found: list[Finding]
) -> str | None:
    if item.indexes != list(range(item.chunk_count)):
        return (
            f"its {item.chunk_count} chunks are not all in its list, "
            f"which has {len(item.indexes)} of them"
        )
    is_sampled = any(first <= bytes(item.digest) <= last for first, last in part)
    if item.chunk_bytes != digests.LEAF_BYTES and not is_sampled:
        return None
    try:
        hasher = digests.TensorHasher(item.dtype, item.shape)
        if not _feed(store, item, hasher, found):
            return None
        adds_up = hasher.digest() == bytes(item.digest)
    except ArcHaloError as exc:
        return exc.message
    return None if adds_up else "its chunks do not add up to the digest it is named by"


def _feed(
    store: WeightStore, item: ChunkList, hasher: digests.TensorHasher, found: list[Finding]
) -> bool:
    """Hash the tensor: by its chunks' digests where they are its leaves', else by its bytes.

    False where the bytes cannot be had: that is the chunk's fault, and said of the chunk.
    """
    if item.chunk_bytes == digests.LEAF_BYTES:
        for digest in item.digests:
            hasher.update_leaf(bytes(digest))
        return True
    page = Page()
    buffer = memoryview(bytearray(MAX_CHUNK_BYTES))
    with (
        store.pool.connection() as conn,
        closing(chunks.read_chunks(conn, item.id)) as stream,
    ):
        for chunk in with_bodies(store, _within_reach(store, stream, page)):
            out = buffer[: chunk.encoded.raw_bytes if chunk.encoded else 0]
            _check_chunk(store, chunk, out, page)
            if page.findings or page.elsewhere:
                break
            hasher.update(out)
    found.extend(page.findings)
    return not (page.findings or page.elsewhere)


def _set_problem(item: Members) -> str | None:
    if len(item.names) != item.tensor_count:
        return f"it has {len(item.names)} tensors of {item.tensor_count}"
    named: list[tuple[str, bytes]] = []
    for name, digest in zip(item.names, item.digests, strict=True):
        if digest is None:
            return f"its tensor {name!r} is missing"
        named.append((name, bytes(digest)))
    if digests.weights_root(named) != bytes(item.root):
        return "its tensors do not add up to the root it is named by"
    return None
