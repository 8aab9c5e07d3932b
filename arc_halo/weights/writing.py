"""Writing chunks: asked for by digest first, encoded, stored in one transaction a batch."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from arc_halo.store import builds, chunks
from arc_halo.store.chunks import NewChunk
from arc_halo.store.rows import Connection
from arc_halo.types import TensorInfo
from arc_halo.weights.bases import Bases
from arc_halo.weights.encoding import encode_chunk
from arc_halo.weights.store import WeightStore

BEAT_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An open build, as its writers need it.

    Chunks that nobody has seen `since` it was opened are said to be needed still.
    """

    build_id: UUID
    since: datetime
    codec: str | None
    bases: Bases
    heart: Heart


class Heart:
    """Says now and then that somebody works at a build, whichever of its threads comes by."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._beaten_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time to beat; to one thread only, which then does."""
        with self._lock:
            now = time.monotonic()
            if now - self._beaten_at < BEAT_SECONDS:
                return False
            self._beaten_at = now
            return True


@dataclass(slots=True)
class Totals:
    """Raw bytes of the chunks that were new, and the bytes of their bodies."""

    new_bytes: int = 0
    stored_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """A chunk cut off a tensor: its place, its raw bytes and their digest."""

    tensor: TensorInfo
    index: int
    raw: bytes | memoryview
    digest: bytes


def cut(tensor: TensorInfo, index: int, raw: bytes | memoryview) -> Cut:
    return Cut(tensor, index, raw, hashlib.sha256(raw).digest())


class ChunkWriter:
    """Stores chunks over one connection, for one thread."""

    def __init__(self, store: WeightStore, conn: Connection, session: Session) -> None:
        self.totals = Totals()
        self._store = store
        self._conn = conn
        self._session = session

    def write(self, cuts: Sequence[Cut]) -> None:
        """Store the chunks that are not there yet; all of them are safe from collection now."""
        self._beat()
        pending = {item.digest: item for item in cuts}
        while pending:
            there = self._find(list(pending))
            missing = [item for digest, item in pending.items() if digest not in there]
            new = {chunk.digest for chunk in self._insert(self._encode(missing))}
            # What another build has inserted meanwhile is looked at again, and touched.
            pending = {item.digest: item for item in missing if item.digest not in new}

    def _beat(self) -> None:
        if self._session.heart.is_due():
            builds.beat(self._conn, self._session.build_id)

    def _find(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those that are there to stay: seen since the build began, if only by us now."""
        since = self._session.since
        found = chunks.existing(self._conn, digests, since)
        there = {digest for digest, is_stale in found.items() if not is_stale}
        if stale := [digest for digest, is_stale in found.items() if is_stale]:
            with self._conn.transaction():
                builds.as_step(self._conn)
                there |= chunks.touch(self._conn, stale, since)
        return there

    def _encode(self, cuts: Sequence[Cut]) -> list[NewChunk]:
        by_tensor: dict[str, list[int]] = defaultdict(list)
        for item in cuts:
            by_tensor[item.tensor.name].append(item.index)
        bases = {
            item.tensor.name: self._session.bases.read(
                self._conn, item.tensor, by_tensor[item.tensor.name]
            )
            for item in {item.tensor.name: item for item in cuts}.values()
        }
        # What is counted on is needed from now on; what was collected meanwhile is done without.
        digests = {base.digest for found in bases.values() for base in found.values()}
        kept = self._find(list(digests)) if digests else set()
        usable = {
            (name, index): base
            for name, found in bases.items()
            for index, base in found.items()
            if base.digest in kept
        }
        return [
            encode_chunk(
                self._store,
                item.digest,
                item.raw,
                dtype=item.tensor.dtype,
                codec=self._session.codec,
                base=usable.get((item.tensor.name, item.index)),
            )
            for item in cuts
        ]

    def _insert(self, encoded: Sequence[NewChunk]) -> list[NewChunk]:
        if not encoded:
            return []
        with self._conn.transaction():
            builds.as_step(self._conn)
            new = store_chunks(self._store, self._conn, encoded)
        self.totals.new_bytes += sum(chunk.raw_bytes for chunk in new)
        self.totals.stored_bytes += sum(len(chunk.body) for chunk in new)
        return new


def store_chunks(
    store: WeightStore, conn: Connection, encoded: Sequence[NewChunk]
) -> list[NewChunk]:
    """Store chunks in the transaction that `conn` is in; those that were new.

    Into a body store go only those whose rows are ours, and before these can be seen: so a row
    always names a body that its own codec wrote.
    """
    if store.bodies is None:
        return chunks.insert_chunks(conn, encoded)
    chunks.lock_bodies_shared(conn)
    new = chunks.insert_chunks(conn, encoded, store_id=store.bodies.store_id)
    store.bodies.bodies.put({chunk.digest: chunk.body for chunk in new})
    return new
