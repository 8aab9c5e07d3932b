"""The KV cache kept in order by hand: emptied, in whole or in part, and searched for damage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby

from arc_halo.errors import InvalidInputError
from arc_halo.inference.blocks import digest_of
from arc_halo.inference.checking import check_count
from arc_halo.inference.pinning import release
from arc_halo.plain import check_texts
from arc_halo.store import kv_cache as store
from arc_halo.store import kv_cache_reading as reading
from arc_halo.store.kv_cache import Place
from arc_halo.store.rows import Connection

Advance = Callable[[int], None]

ROOT_BYTES = 32
MAX_IDLE = timedelta(days=1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """What went: blocks, with the bytes that they had."""

    blocks: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedBlock:
    """A block whose bytes are not what was stored, or of which some are missing."""

    key: bytes
    tenant: str
    index: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a look through the cache found."""

    blocks: int
    size_bytes: int
    damaged: tuple[DamagedBlock, ...]


def evict(
    conn: Connection,
    *,
    tenant: str | None = None,
    roots: Sequence[bytes] | None = None,
    idle: timedelta | None = None,
    pinned: bool = False,
    dry_run: bool = False,
) -> Eviction:
    """Let blocks go: of a tenant, of models by the roots of their weights, what nobody used for
    so long; all that meet every condition. Pinned ones stay unless they are asked for.

    Of a tenant of which nothing is left the counters go, too, unless only what is idle goes.
    Raises `InvalidInputError` for what is no condition.
    """
    _check_conditions(tenant, roots, idle)
    _check_truths(pinned=pinned, dry_run=dry_run)
    with conn.transaction():
        store.lock(conn)
        found: list[Place] = []
        for root in [None] if roots is None else roots:
            found += store.of_scope(
                conn, tenant=tenant, weights_root=root, idle=idle, pinned=pinned
            )
        if found and not dry_run:
            store.delete(conn, found)
            release(conn)
        if tenant is not None and idle is None and not dry_run:
            store.forget_counters(conn, tenant, roots)
    return Eviction(blocks=len(found), size_bytes=sum(place.stored_bytes for place in found))


def clear(conn: Connection, *, dry_run: bool = False) -> Eviction:
    """Empty the cache, pinned prefixes, counters and all. It takes no longer for more."""
    _check_truths(dry_run=dry_run)
    with conn.transaction():
        store.lock(conn)
        held = reading.usage(conn)
        if not dry_run:
            store.empty(conn, range(store.PINNED, store.SLOTS))
            store.forget_pins(conn)
            store.forget_counters(conn)
    return Eviction(
        blocks=sum(each.blocks for each in held), size_bytes=sum(each.held_bytes for each in held)
    )


def verify(
    conn: Connection, *, sample: int | None = None, advance: Advance | None = None
) -> Verification:
    """Compute the digests of blocks anew: of so many at random, or of all.

    What is written meanwhile is not looked at. `advance` is told of the bytes that were. Raises
    `InvalidInputError` for a `sample` that is no whole number from 1.
    """
    if sample is not None:
        check_count("sample", sample)
    blocks = size_bytes = 0
    damaged: list[DamagedBlock] = []
    for key, parts in groupby(reading.sample(conn, sample), key=lambda part: part.block_key):
        block = list(parts)
        first = block[0]
        bodies = [part.body for part in block if part.body is not None]
        problem = ""
        if len(bodies) != first.part_count:
            problem = f"{first.part_count - len(bodies)} of {first.part_count} parts are missing"
        elif digest_of(key, bodies) != first.digest:
            problem = "the bytes do not have the digest they were stored with"
        if problem:
            damaged.append(
                DamagedBlock(key=key, tenant=first.tenant, index=first.block_index, problem=problem)
            )
        blocks += 1
        read = sum(body.nbytes for body in bodies)
        size_bytes += read
        if advance is not None:
            advance(read)
    return Verification(blocks=blocks, size_bytes=size_bytes, damaged=tuple(damaged))


def drop_damaged(conn: Connection, damaged: Sequence[DamagedBlock]) -> Eviction:
    """Let damaged blocks go, and all that are of no use without them."""
    with conn.transaction():
        store.lock(conn)
        gone = store.following(conn, [each.key for each in damaged])
        store.delete(conn, gone)
        release(conn)
    return Eviction(blocks=len(gone), size_bytes=sum(place.stored_bytes for place in gone))


def _check_truths(**given: object) -> None:
    for name, value in given.items():
        if not isinstance(value, bool):
            raise _refused(name, value, "write True or False")


def _check_conditions(tenant: object, roots: object, idle: object) -> None:
    check_texts(tenant=tenant)
    is_list = isinstance(roots, Sequence) and all(
        isinstance(each, bytes) and len(each) == ROOT_BYTES for each in roots
    )
    if roots is not None and not is_list:
        hint = f"write a list of roots of weights, of {ROOT_BYTES} bytes each"
        raise _refused("roots", roots, hint)
    if idle is not None and not (isinstance(idle, timedelta) and timedelta(0) <= idle <= MAX_IDLE):
        raise _refused("idle", idle, f"write a timedelta, of {MAX_IDLE.days} days at most")


def _refused(name: str, value: object, hint: str) -> InvalidInputError:
    return InvalidInputError(f"{name} cannot be {value!r:.80}", hint=hint, code="AH006")
