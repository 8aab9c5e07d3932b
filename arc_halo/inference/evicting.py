"""What has to go so that something fits: decided from numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from arc_halo.store.kv_cache import PINNED, SLOTS, Generation

SHARES = 6
"""A generation is closed when it has this part of the budget; with one kept free to open next,
there are slots enough for all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Where new blocks go, and which generations are emptied for them at the end."""

    generation: int
    sequence: int
    evict: tuple[int, ...]


def available_bytes(generations: Sequence[Generation], budget_bytes: int) -> int:
    """The most that could be written at once, if all that is not pinned went."""
    return max(0, budget_bytes - _pinned_bytes(generations))


def make_room(
    generations: Sequence[Generation], budget_bytes: int, more_bytes: int, fresh_bytes: int
) -> Room | None:
    """Room for what is written: `more_bytes` in the newest generation, or `fresh_bytes` in a new
    one, to which what stands in the newest comes along.

    A new one is opened where others have had their share of the newest; what this prompt itself
    has there makes no difference, or a long one would be written again with every block it gets.
    The oldest go until all that is left is within the budget. All of one write is in one
    generation, the newest, so that no block is older than those that come after it in a prefix.
    None where it does not fit.
    """
    ring = [each for each in generations if each.generation != PINNED]
    newest = ring[-1] if ring else None
    if newest is not None:
        of_others = newest.written_bytes - (fresh_bytes - more_bytes)
        if not more_bytes or of_others + more_bytes <= budget_bytes // SHARES:
            room = Room(generation=newest.generation, sequence=newest.sequence, evict=())
            if (kept := _kept(room, generations, budget_bytes, more_bytes)) is not None:
                return kept
    free = next(slot for slot in range(SLOTS) if slot not in {g.generation for g in ring})
    room = Room(generation=free, sequence=newest.sequence + 1 if newest else 1, evict=())
    return _kept(room, generations, budget_bytes, fresh_bytes)


def _kept(
    room: Room, generations: Sequence[Generation], budget_bytes: int, added_bytes: int
) -> Room | None:
    """The room with what has to go for it, or None where that is not enough."""
    older = [g for g in generations if g.generation not in (PINNED, room.generation)]
    written = sum(each.written_bytes for each in generations) + added_bytes
    # One slot stays free: a generation is opened before another is emptied.
    evict = oldest(older, written - budget_bytes, at_least=len(older) + 2 - SLOTS)
    written -= sum(each.written_bytes for each in evict)
    found = tuple(each.generation for each in evict)
    return replace(room, evict=found) if written <= budget_bytes else None


def oldest(
    generations: Sequence[Generation], free_bytes: int, *, at_least: int = 0
) -> list[Generation]:
    """The oldest generations that have so many bytes together, or all; those that are pinned not
    among them."""
    found: list[Generation] = []
    for each in generations:
        if each.generation == PINNED:
            continue
        if free_bytes <= 0 and len(found) >= at_least:
            break
        found.append(each)
        free_bytes -= each.written_bytes
    return found


def _pinned_bytes(generations: Sequence[Generation]) -> int:
    return sum(each.written_bytes for each in generations if each.generation == PINNED)
