"""Verification: stored bytes read again and hashed, and everything that is made of them checked."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from arc_halo.store import integrity
from arc_halo.store.integrity import TensorSize
from arc_halo.store.rows import Connection
from arc_halo.weights.checking import (
    Page,
    Part,
    check_chunks,
    check_deltas,
    check_sets,
    check_tensors,
)
from arc_halo.weights.findings import Finding, Findings, located
from arc_halo.weights.store import Advance, WeightStore, no_progress

PAGE_CHUNKS = 64
GROUP_CHUNKS = 10_000
ALL_DIGESTS = 2**256


@dataclass(slots=True, kw_only=True)
class Verified:
    """How much was looked at, and all that is wrong with it.

    `elsewhere` counts chunks in body stores that the project does not name, by the store's number:
    they were not read.
    """

    chunks: int = 0
    raw_bytes: int = 0
    tensors: int = 0
    weight_sets: int = 0
    findings: list[Finding] = field(default_factory=list)
    elsewhere: Counter[int] = field(default_factory=Counter)


def verify(
    store: WeightStore,
    weight_set_id: int | None = None,
    *,
    part: Part | None = None,
    advance: Advance = no_progress,
) -> Verified:
    """Read all chunks again, or those of one weight set, and check tensors and sets against them.

    Of the chunks only those with a digest in `part` are read. Nothing that is damaged is an error
    here; what needs a codec that is not loaded is a finding too. `advance` is told raw bytes.
    """
    spans = part or all_digests()
    done = Verified()
    found = Findings()
    for page in _read(store, _pages(store, weight_set_id, spans), advance):
        done.chunks += page.chunks
        done.raw_bytes += page.raw_bytes
        found.add(page.findings)
        done.elsewhere += page.elsewhere
    with store.pool.connection() as conn:
        failed = None if weight_set_id is None else found.chunk_digests
        found.explain(check_deltas(conn, failed))
        for group in _groups(_tensors(conn, weight_set_id)):
            done.tensors += len(group)
            found.add(check_tensors(store, conn, [t.id for t in group], spans))
        for ids in _sets(conn, weight_set_id):
            done.weight_sets += len(ids)
            found.add(check_sets(conn, ids))
        done.findings = located(conn, list(found))
    return done


def verify_again(store: WeightStore, findings: Sequence[Finding]) -> list[Finding]:
    """Those of `findings` that are still true, as they are now."""
    found = Findings()
    damaged = [finding.digest for finding in findings if finding.what == "chunk"]
    for start in range(0, len(damaged), PAGE_CHUNKS):
        found.add(check_chunks(store, damaged[start : start + PAGE_CHUNKS]).findings)
    with store.pool.connection() as conn:
        found.explain(check_deltas(conn, damaged))
        for finding in findings:
            if finding.what == "tensor":
                found.add(check_tensors(store, conn, [finding.row_id], all_digests()))
            elif finding.what == "weights":
                found.add(check_sets(conn, [finding.row_id]))
        return located(conn, list(found))


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


def _read(store: WeightStore, pages: Iterable[list[bytes]], advance: Advance) -> Iterator[Page]:
    """Check pages by `store.threads` threads, a few pages ahead of whoever takes the results."""
    waiting: deque[Future[Page]] = deque()
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


def _taken(waiting: deque[Future[Page]], advance: Advance) -> Page:
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
