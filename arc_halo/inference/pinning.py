"""Prefixes that stay whatever else has to go: in a generation that is never emptied."""

from __future__ import annotations

from collections.abc import Sequence

from arc_halo.errors import RefusedError
from arc_halo.inference.evicting import make_room, oldest
from arc_halo.inference.policies import KVPolicy, kv_policy
from arc_halo.sizes import format_size, manifest_size
from arc_halo.store import kv_cache as store
from arc_halo.store import kv_cache_reading as reading
from arc_halo.store.kv_cache import PINNED, Place
from arc_halo.store.rows import Connection


def pin(
    conn: Connection,
    pin_key: bytes,
    blocks: Sequence[Place],
    ends: Sequence[bytes],
    label: str,
) -> None:
    """Keep blocks until every pin that needs them is gone; `ends` are those that no other of them
    follows, `pin_key` is what the prefix is called. Call it under the lock.

    Raises `RefusedError` for more than half of the budget, or of a tenant's quota.
    """
    policy = kv_policy(conn)
    new = [block for block in blocks if block.generation != PINNED]
    more = sum(block.stored_bytes for block in new)
    generations = store.generations(conn)
    size = more + sum(g.written_bytes for g in generations if g.generation == PINNED)
    if size > policy.budget_bytes // 2:
        raise RefusedError(
            f"{format_size(size)} would be pinned, more than half of the KV cache's budget of "
            f"{manifest_size(policy.budget_bytes)}",
            hint="unpin others, or raise `inference.kv_cache.budget`",
        )
    for tenant in {block.tenant for block in blocks}:
        _check_quota(conn, policy, tenant, new)
    store.open_generation(conn, PINNED, 0)
    store.move(conn, new, PINNED)
    store.pin(conn, pin_key, ends, label)
    # What moved counts where it was, too, until that is emptied.
    written = sum(each.written_bytes for each in generations) + more
    gone = oldest(generations, written - policy.budget_bytes)
    store.empty(conn, [each.generation for each in gone])


def unpin(conn: Connection, keys: Sequence[bytes]) -> bool:
    """Take the pin off the longest of these prefixes that has one; False where none has. Call it
    under the lock.

    What no other pin needs moves to the newest generation. Where the budget was made smaller than
    what is pinned it may not fit there: then it goes, with everything that might follow it.
    """
    found = store.unpin(conn, keys)
    release(conn)
    return found


def release(conn: Connection) -> None:
    """Let blocks that were pinned, and that no pin needs any more, go like others. Call it under
    the lock."""
    if not (freed := store.unneeded_pinned(conn)):
        return
    size = sum(place.stored_bytes for place in freed)
    generations = store.generations(conn)
    room = make_room(generations, kv_policy(conn).budget_bytes, size, size)
    if room is None:
        store.delete(conn, freed)
        store.empty(conn, [g.generation for g in generations if g.generation != PINNED])
        return
    store.open_generation(conn, room.generation, room.sequence)
    store.move(conn, freed, room.generation)
    store.empty(conn, room.evict)


def _check_quota(conn: Connection, policy: KVPolicy, tenant: str, new: Sequence[Place]) -> None:
    """What is pinned counts, so that with all of a quota pinned nothing new would be kept."""
    quota = policy.quota_of(tenant)
    size = reading.pinned_bytes(conn, tenant)
    size += sum(block.stored_bytes for block in new if block.tenant == tenant)
    if quota is not None and size > quota // 2:
        raise RefusedError(
            f"{format_size(size)} would be pinned, more than half of the tenant's quota of "
            f"{manifest_size(quota)}",
            hint="unpin others, or raise its quota in `inference.kv_cache`",
        )
