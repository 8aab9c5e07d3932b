"""What verification finds, and whom it touches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from arc_halo.store import integrity
from arc_halo.store.integrity import Holder
from arc_halo.store.rows import Connection

LOCATED_AT_ONCE = 100

What = Literal["chunk", "tensor", "weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something damaged: a chunk, the list of a tensor's chunks, or a weight set's tensors.

    `digest` names it. `touches` says whose tensors cannot be read for it; a damaged chunk damages
    the `delta_count` deltas that are taken against it, and their tensors are among them. One that
    `is_unread` needs a codec that is not loaded: it may be well.
    """

    what: What
    digest: bytes
    problem: str
    codec: str | None = None
    row_id: int = 0
    is_missing: bool = False
    is_unread: bool = False
    delta_count: int = 0
    touches: tuple[Holder, ...] = ()


class Findings:
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


def located(conn: Connection, findings: Sequence[Finding]) -> list[Finding]:
    """The findings with whom they touch, without missing chunks that nobody needs."""
    located: list[Finding] = []
    for start in range(0, len(findings), LOCATED_AT_ONCE):
        batch = findings[start : start + LOCATED_AT_ONCE]
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
