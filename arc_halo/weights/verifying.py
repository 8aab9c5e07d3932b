"""Verification: stored bytes read again and hashed, and everything that is made of them checked."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

from arc_halo.errors import (
    ArcHaloError,
    CodecError,
    CorruptChunkError,
    MissingChunkError,
    UnknownPluginError,
)
from arc_halo.store import chunks, integrity
from arc_halo.store.chunks import StoredChunk
from arc_halo.store.integrity import ChunkList, Holder, Members, TensorSize
from arc_halo.store.rows import Connection
from arc_halo.tensors import digests
from arc_halo.weights.decoding import decode_base, decode_chunk, with_bodies
from arc_halo.weights.store import Advance, WeightStore, no_progress

PAGE_CHUNKS = 64
GROUP_CHUNKS = 10_000
MAX_CHUNK_BYTES = 1_048_576
ALL_DIGESTS = 2**256

What = Literal["chunk", "tensor", "weights"]
Part = Sequence[tuple[bytes, bytes]]
"""Spans of digests, both ends included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something damaged: a chunk, the list of a tensor's chunks, or a weight set's tensors.

    `digest` names it. `touches` says whose tensors cannot be read for it; a damaged chunk damages
    the `delta_count` deltas that are taken against it, and their tensors are among them.
    """

    what: What
    digest: bytes
    problem: str
    codec: str | None = None
    row_id: int = 0
    is_missing: bool = False
    delta_count: int = 0
    touches: tuple[Holder, ...] = ()


@dataclass(slots=True, kw_only=True)
class Verified:
    """How much was looked at, and all that is wrong with it."""

    chunks: int = 0
    raw_bytes: int = 0
    tensors: int = 0
    weight_sets: int = 0
    findings: list[Finding] = field(default_factory=list)


def verify(
    store: WeightStore,
    weight_set_id: int | None = None,
    *,
    part: Part | None = None,
    advance: Advance = no_progress,
) -> Verified:
    """Read all chunks again, or those of one weight set, and check tensors and sets against them.

    Of the chunks only those with a digest in `part` are read. Nothing that is damaged is an error
    here; what cannot be read for another reason (no such codec, another body store) is a finding
    too. `advance` is told raw bytes.
    """
    spans = part or all_digests()
    done = Verified()
    found = _Findings()
    for page in _read(store, _pages(store, weight_set_id, spans), advance):
        done.chunks += page.chunks
        done.raw_bytes += page.raw_bytes
        found.add(page.findings)
    with store.pool.connection() as conn:
        failed = None if weight_set_id is None else found.chunk_digests
        found.explain(_broken_deltas(conn, failed))
        for group in _groups(_tensors(conn, weight_set_id)):
            done.tensors += len(group)
            found.add(_check_tensors(store, conn, group, spans))
        for ids in _sets(conn, weight_set_id):
            done.weight_sets += len(ids)
            found.add(_check_sets(conn, ids))
        done.findings = _located(conn, list(found))
    return done


def verify_again(store: WeightStore, findings: Sequence[Finding]) -> list[Finding]:
    """Those of `findings` that are still true, as they are now."""
    found = _Findings()
    damaged = [finding.digest for finding in findings if finding.what == "chunk"]
    for start in range(0, len(damaged), PAGE_CHUNKS):
        found.add(check_chunks(store, damaged[start : start + PAGE_CHUNKS]).findings)
    with store.pool.connection() as conn:
        found.explain(_broken_deltas(conn, damaged))
        for finding in findings:
            if finding.what == "tensor":
                found.add(_check_tensors(store, conn, [finding.row_id], all_digests()))
            elif finding.what == "weights":
                found.add(_check_sets(conn, [finding.row_id]))
        return _located(conn, list(found))


def all_digests() -> Part:
    return [(bytes(32), b"\xff" * 32)]


def part_of_digests(share: float, start: float) -> Part:
    """That share of all digests, beginning at `start` of the way round; both from 0 to 1."""
    first, width = int(start * ALL_DIGESTS) % ALL_DIGESTS, int(share * ALL_DIGESTS)
    if width >= ALL_DIGESTS:
        return all_digests()
    last = first + max(width, 1) - 1
    if last < ALL_DIGESTS:
        return [(first.to_bytes(32), last.to_bytes(32))]
    return [(bytes(32), (last - ALL_DIGESTS).to_bytes(32)), (first.to_bytes(32), b"\xff" * 32)]


@dataclass(slots=True)
class _Page:
    chunks: int = 0
    raw_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)


def check_chunks(store: WeightStore, names: Sequence[bytes]) -> _Page:
    """Read the chunks of these digests and hash them."""
    page = _Page()
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


def _within_reach(
    store: WeightStore, stream: Iterable[StoredChunk], page: _Page
) -> Iterator[StoredChunk]:
    """Leave out, and report, the chunks whose bodies this project cannot read."""
    own = {None} if store.bodies is None else {None, store.bodies.store_id}
    for chunk in stream:
        places = {encoded.store_id for encoded in (chunk.encoded, chunk.base) if encoded}
        if places <= own:
            yield chunk
            continue
        (place, *_) = places - own
        problem = f"it is in body store {place}, which this project does not name"
        page.findings.append(_finding(chunk, problem))


def _check_chunk(store: WeightStore, chunk: StoredChunk, out: memoryview, page: _Page) -> None:
    try:
        decode_chunk(store, chunk, out)
    except (CorruptChunkError, MissingChunkError, UnknownPluginError) as exc:
        problem = exc.message.removeprefix(f"chunk {chunk.index} ")
        page.findings.append(_finding(chunk, problem))
        if chunk.base is not None:
            _check_base(store, chunk.base, page)


def _check_base(store: WeightStore, base: chunks.Encoded, page: _Page) -> None:
    try:
        decode_base(store, base)
    except (CodecError, UnknownPluginError) as exc:
        page.findings.append(
            Finding(what="chunk", digest=base.digest, problem=str(exc), codec=base.codec)
        )


def _finding(chunk: StoredChunk, problem: str) -> Finding:
    return Finding(
        what="chunk",
        digest=chunk.digest,
        problem=problem,
        codec=chunk.encoded.codec if chunk.encoded else None,
        is_missing=chunk.encoded is None,
    )


class _Findings:
    """Findings in the order of what they name, each thing once."""

    def __init__(self) -> None:
        self._found: dict[tuple[What, bytes], Finding] = {}

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self._found.setdefault((finding.what, finding.digest), finding)

    def explain(self, findings: Iterable[Finding]) -> None:
        """Add findings that say better what is wrong than those that are there."""
        for finding in findings:
            key = (finding.what, finding.digest)
            known = self._found.get(key, finding)
            self._found[key] = replace(known, problem=finding.problem)

    def __iter__(self) -> Iterator[Finding]:
        return iter(sorted(self._found.values(), key=lambda f: (f.what, f.digest)))

    @property
    def chunk_digests(self) -> list[bytes]:
        return [digest for what, digest in self._found if what == "chunk"]


def _read(store: WeightStore, pages: Iterable[list[bytes]], advance: Advance) -> Iterator[_Page]:
    """Check pages by `store.threads` threads, a few pages ahead of whoever takes the results."""
    waiting: deque[Future[_Page]] = deque()
    with ThreadPoolExecutor(store.threads, thread_name_prefix="arc-halo-verify") as pool:
        try:
            for page in pages:
                waiting.append(pool.submit(check_chunks, store, page))
                if len(waiting) > 2 * store.threads:
                    yield _taken(waiting, advance)
            while waiting:
                yield _taken(waiting, advance)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _taken(waiting: deque[Future[_Page]], advance: Advance) -> _Page:
    page = waiting.popleft().result()
    advance(page.raw_bytes)
    return page


def _pages(store: WeightStore, weight_set_id: int | None, part: Part) -> Iterator[list[bytes]]:
    with store.pool.connection() as conn:
        if weight_set_id is None:
            yield from _all_pages(conn, part)
            return
        for group in _groups(_tensors(conn, weight_set_id)):
            for named in _digests_of(conn, group):
                wanted = (d for d in named if any(first <= d <= last for first, last in part))
                while page := list(islice(wanted, PAGE_CHUNKS)):
                    yield page


def _all_pages(conn: Connection, part: Part) -> Iterator[list[bytes]]:
    for first, last in part:
        after = b""
        while page := integrity.digest_page(
            conn, after=after, first=first, last=last, batch=PAGE_CHUNKS
        ):
            yield page
            after = page[-1]


def _digests_of(conn: Connection, group: Sequence[TensorSize]) -> Iterator[list[bytes]]:
    """The chunks of a group of tensors; of a large one that is alone, some at a time."""
    ids = [tensor.id for tensor in group]
    for start in range(0, max(tensor.chunk_count for tensor in group), GROUP_CHUNKS):
        yield integrity.digests_of_tensors(conn, ids, range(start, start + GROUP_CHUNKS))


def _tensors(conn: Connection, weight_set_id: int | None) -> Iterator[TensorSize]:
    if weight_set_id is not None:
        yield from integrity.tensors_of_set(conn, weight_set_id)
        return
    after = 0
    while page := integrity.tensor_page(conn, after=after, batch=1000):
        yield from page
        after = page[-1].id


def _groups(tensors: Iterable[TensorSize]) -> Iterator[list[TensorSize]]:
    """Tensors together that have about as many chunks as may be held at once."""
    group: list[TensorSize] = []
    count = 0
    for tensor in tensors:
        if group and count + tensor.chunk_count >= GROUP_CHUNKS:
            yield group
            group, count = [], 0
        group.append(tensor)
        count += tensor.chunk_count + 1
    if group:
        yield group


def _sets(conn: Connection, weight_set_id: int | None) -> Iterator[list[int]]:
    if weight_set_id is not None:
        yield [weight_set_id]
        return
    after = 0
    while page := integrity.set_page(conn, after=after, batch=100):
        yield page
        after = page[-1]


def _broken_deltas(conn: Connection, of: Sequence[bytes] | None) -> Iterator[Finding]:
    for delta in integrity.broken_deltas(conn, of):
        base = bytes(delta.base_digest)
        said = "is missing" if delta.is_missing else "is a delta itself"
        problem = f"its base {base.hex()[:16]}… {said}"
        yield Finding(what="chunk", digest=bytes(delta.digest), problem=problem)
        if delta.is_missing:
            yield _gone(base)


def _gone(digest: bytes) -> Finding:
    return Finding(what="chunk", digest=digest, problem="is missing", is_missing=True)


def _check_tensors(
    store: WeightStore, conn: Connection, tensors: Sequence[TensorSize | int], part: Part
) -> list[Finding]:
    ids = [tensor if isinstance(tensor, int) else tensor.id for tensor in tensors]
    found = [_gone(digest) for digest in integrity.missing_chunks(conn, ids)]
    for item in integrity.chunk_lists(conn, ids):
        if problem := _list_problem(store, item, part, found):
            digest = bytes(item.digest)
            found.append(Finding(what="tensor", digest=digest, problem=problem, row_id=item.id))
    return found


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
    page = _Page()
    buffer = memoryview(bytearray(MAX_CHUNK_BYTES))
    with (
        store.pool.connection() as conn,
        closing(chunks.read_chunks(conn, item.id)) as stream,
    ):
        for chunk in with_bodies(store, _within_reach(store, stream, page)):
            out = buffer[: chunk.encoded.raw_bytes if chunk.encoded else 0]
            _check_chunk(store, chunk, out, page)
            if page.findings:
                break
            hasher.update(out)
    found.extend(page.findings)
    return not page.findings


def _check_sets(conn: Connection, ids: Sequence[int]) -> Iterator[Finding]:
    for item in integrity.set_members(conn, ids):
        if problem := _set_problem(item):
            yield Finding(what="weights", digest=bytes(item.root), problem=problem, row_id=item.id)


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


def _located(conn: Connection, findings: Sequence[Finding]) -> list[Finding]:
    """The findings with whom they touch, without missing chunks that nobody needs."""
    located: list[Finding] = []
    for start in range(0, len(findings), 100):
        batch = findings[start : start + 100]
        named = [finding.digest for finding in batch if finding.what == "chunk"]
        deltas = integrity.delta_counts(conn, named)
        tensors: dict[bytes, list[int]] = {}
        for digest, id_ in integrity.tensors_of_chunks(conn, named):
            tensors.setdefault(digest, []).append(id_)
        ids = {id_ for found in tensors.values() for id_ in found}
        ids |= {finding.row_id for finding in batch if finding.what == "tensor"}
        of_tensors = _by_id(integrity.holders_of_tensors(conn, sorted(ids)))
        sets = [finding.row_id for finding in batch if finding.what == "weights"]
        of_sets = _by_id(integrity.holders_of_sets(conn, sets))
        for finding in batch:
            if finding.what == "chunk":
                rows = tensors.get(finding.digest, [])
                count = deltas.get(finding.digest, 0)
                if finding.is_missing and not rows and not count:
                    continue
                touches = tuple(holder for id_ in rows for holder in of_tensors.get(id_, []))
                located.append(replace(finding, touches=touches, delta_count=count))
            else:
                held = of_sets if finding.what == "weights" else of_tensors
                located.append(replace(finding, touches=tuple(held.get(finding.row_id, []))))
    return located


def _by_id(holders: Iterable[Holder]) -> dict[int, list[Holder]]:
    found: dict[int, list[Holder]] = {}
    for holder in holders:
        found.setdefault(holder.id, []).append(holder)
    return found
