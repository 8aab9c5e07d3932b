"""Blocks of a KV cache into the database, within what the cache and the tenant may take.

A write is a transaction under the cache's lock: blocks that are not there yet go into the newest
generation, those that they follow move there too, and what must go for them goes at the end. So
after each commit the budget holds, and no block outlives one that it follows.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from arc_halo.inference.blocks import BlockCodec, Cut, LayerKV
from arc_halo.inference.evicting import available_bytes, make_room, oldest
from arc_halo.inference.keys import Scope
from arc_halo.inference.pinning import release
from arc_halo.inference.policies import KVPolicy, kv_policy
from arc_halo.store import kv_cache as store
from arc_halo.store.kv_cache import PINNED, Counts, Generation, NewBlock, Place
from arc_halo.store.loaded_weights import recognise
from arc_halo.store.rows import Connection, Pool
from arc_halo.store.silence import patient

WRITE_BYTES = 64 * 1024**2
"""Raw bytes of one transaction, about: what a thread holds encoded, and others wait for."""

SWEEP_SECONDS = 60.0
"""How often what nobody used for long is looked for, while something is written at all."""


OVER_BUDGET = "the budget has no place beside what is pinned and in use"
OVER_QUOTA = "the tenant's quota has no place beside what is pinned and in use"
UNLINKED = "what they follow is not stored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Blocks of one group of layers, in the order of the prompt, and the keys of those before
    them that are in no array, and have to be there."""

    codec: BlockCodec
    cuts: tuple[Cut, ...]
    before: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Blocks to be stored, and the arrays that they are in."""

    chains: tuple[Chain, ...]
    layers: tuple[LayerKV, ...]
    size_bytes: int


class BlockStore:
    """The blocks of one scope. Not for several threads at a time."""

    def __init__(self, pool: Pool, scope: Scope) -> None:
        self._pool = pool
        self._scope = scope
        self._swept_at = -float("inf")
        self._is_recognised = not scope.tensors

    def use(self, used: Mapping[bytes, int], counts: Counts) -> None:
        """Say that blocks were used, each so many times: they move to the newest generation."""
        self._in_transaction(used, [], counts)

    def store(self, write: Write, counts: Counts) -> str:
        """The blocks that are not there, some transactions of them, the first blocks first. Why
        some are not kept; empty where all are."""
        keys = [cut.key for chain in write.chains for cut in chain.cuts]
        with patient(self._pool) as conn:
            known = set(store.places(conn, keys))
        before = dict.fromkeys((key for chain in write.chains for key in chain.before), 0)
        for blocks, passed in _portions(write, known):
            before.update(dict.fromkeys(passed, 0))
            if refusal := self._in_transaction(before, blocks, counts):
                return refusal
            before.update(dict.fromkeys((block.key for block in blocks), 0))
        return ""

    def delete(self, damaged: set[bytes]) -> None:
        """Let go what is no good, so that it is written anew, and what is of no use without it."""
        with patient(self._pool) as conn, conn.transaction():
            store.lock(conn)
            store.delete(conn, store.following(conn, damaged))
            release(conn)

    def sweep(self) -> None:
        """Let go what nobody used for as long as the policy says, now and then."""
        if time.monotonic() - self._swept_at < SWEEP_SECONDS:
            return
        self._swept_at = time.monotonic()
        with patient(self._pool) as conn:
            ttl = kv_policy(conn).ttl
            if ttl is not None:
                with conn.transaction():
                    store.lock(conn)
                    store.delete(conn, store.expired(conn, ttl))

    def count(self, counts: Counts) -> None:
        """Write down what happened, and the first time whose weights they are."""
        scope = self._scope
        with patient(self._pool) as conn, conn.transaction():
            if not self._is_recognised:
                recognise(conn, scope.weights, scope.tensors, scope.parameters)
            store.count(conn, scope.tenant, scope.weights, scope.model, counts)
        self._is_recognised = True

    def _in_transaction(
        self, used: Mapping[bytes, int], blocks: Sequence[NewBlock], counts: Counts
    ) -> str:
        """Use blocks, each so many times, and store new ones that follow them. Why some of these
        are not kept; empty where all are."""
        with patient(self._pool) as conn, conn.transaction():
            store.lock(conn)
            policy = kv_policy(conn)
            there = store.places(conn, [*used, *(block.key for block in blocks)])
            wanted = [block for block in blocks if block.key not in there]
            store.touch(conn, {key: used.get(key, 0) for key in there})
            generations = store.generations(conn)
            new, refusal = self._admitted(conn, policy, generations, wanted, there)
            if not self._settle(conn, policy, generations, new, there):
                new, refusal = [], OVER_BUDGET
        counts.stored_blocks += len(new)
        counts.stored_bytes += sum(block.stored_bytes for block in new)
        counts.refused_blocks += len(wanted) - len(new)
        return refusal if len(new) < len(wanted) else ""

    def _admitted(
        self,
        conn: Connection,
        policy: KVPolicy,
        generations: Sequence[Generation],
        blocks: Sequence[NewBlock],
        there: dict[bytes, Place],
    ) -> tuple[list[NewBlock], str]:
        """The first of them, as many as the budget and the tenant's quota allow, and what did not
        allow the others."""
        linked = _linked(blocks, there)
        budget = available_bytes(generations, policy.budget_bytes) - _bytes(_movable(there))
        fitting = _fitting(linked, budget)
        new = _fitting(fitting, self._quota_left(conn, policy, fitting, there))
        if len(new) < len(fitting):
            return new, OVER_QUOTA
        return new, OVER_BUDGET if len(fitting) < len(linked) else UNLINKED

    def _settle(
        self,
        conn: Connection,
        policy: KVPolicy,
        generations: Sequence[Generation],
        new: Sequence[NewBlock],
        there: dict[bytes, Place],
    ) -> bool:
        """Put new blocks, and those that they follow, into the newest generation; False where there
        is no room for them. What is over the budget goes in any case."""
        movable = _movable(there)
        stored = sum(block.stored_bytes for block in new)
        room = make_room(
            generations,
            policy.budget_bytes,
            stored + _bytes(each for each in movable if not _is_newest(each, generations)),
            stored + _bytes(movable),
        )
        if room is None:
            written = sum(each.written_bytes for each in generations)
            gone = oldest(generations, written - policy.budget_bytes)
            store.empty(conn, [each.generation for each in gone])
            return False
        moved = [each for each in movable if each.generation != room.generation]
        if new or moved:
            store.open_generation(conn, room.generation, room.sequence)
        if moved:
            store.move(conn, moved, room.generation)
        if new:
            self._insert(conn, new, room.generation)
        store.empty(conn, room.evict)
        return True

    def _quota_left(
        self,
        conn: Connection,
        policy: KVPolicy,
        new: Sequence[NewBlock],
        there: dict[bytes, Place],
    ) -> int:
        """What the tenant may add, after its least used blocks went as far as that is needed."""
        wanted = sum(block.stored_bytes for block in new)
        quota = policy.quota_of(self._scope.tenant)
        if quota is None:
            return wanted
        left = quota - store.tenant_bytes(conn, self._scope.tenant)
        if left < wanted:
            # Some more than is needed, so that the next write need not look again.
            free = wanted - left + quota // 16
            gone = store.least_used(conn, self._scope.tenant, free, keep=list(there))
            store.delete(conn, gone)
            left += _bytes(gone)
        return left

    def _insert(self, conn: Connection, new: Sequence[NewBlock], generation: int) -> None:
        scope = self._scope
        store.insert(
            conn, new, generation=generation, tenant=scope.tenant, weights_root=scope.weights
        )
        places = [
            Place(
                block_key=block.key,
                generation=generation,
                tenant=scope.tenant,
                weights_root=scope.weights,
                stored_bytes=block.stored_bytes,
            )
            for block in new
        ]
        store.add_usage(conn, places)
        store.count_written(conn, generation, _bytes(places))


def _portions(write: Write, known: set[bytes]) -> Iterator[tuple[list[NewBlock], list[bytes]]]:
    """Blocks that are not known, encoded, some at a time; and the known ones that stand before
    them. All groups of a block go together."""
    portion: list[NewBlock] = []
    passed: list[bytes] = []
    size = 0
    cuts = [(cut, chain.codec) for chain in write.chains for cut in chain.cuts]
    for _, of_index in groupby(sorted(cuts, key=_index), key=_index):
        if size >= WRITE_BYTES:
            yield portion, passed
            portion, passed, size = [], [], 0
        for cut, codec in of_index:
            if cut.key in known:
                passed.append(cut.key)
            else:
                portion.append(codec.encode(cut, write.layers))
                size += portion[-1].raw_bytes
    if portion or passed:
        yield portion, passed


def _index(each: tuple[Cut, BlockCodec]) -> int:
    return each[0].index


def _linked(blocks: Sequence[NewBlock], there: dict[bytes, Place]) -> list[NewBlock]:
    """Those that follow a block which is there, or comes too, if they have to follow one."""
    keys = set(there)
    found: list[NewBlock] = []
    for block in blocks:
        if block.parent_key is None or block.parent_key in keys:
            found.append(block)
            keys.add(block.key)
    return found


def _movable(there: dict[bytes, Place]) -> list[Place]:
    return [place for place in there.values() if place.generation != PINNED]


def _is_newest(place: Place, generations: Sequence[Generation]) -> bool:
    return bool(generations) and place.generation == generations[-1].generation


def _fitting(blocks: Sequence[NewBlock], left_bytes: int) -> list[NewBlock]:
    """The first of them, as many as fit."""
    found: list[NewBlock] = []
    for block in blocks:
        left_bytes -= block.stored_bytes
        if left_bytes < 0:
            break
        found.append(block)
    return found


def _bytes(places: Iterable[Place]) -> int:
    return sum(place.stored_bytes for place in places)
