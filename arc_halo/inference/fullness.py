"""How full each cache of inference is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arc_halo.inference.keeping import keeping
from arc_halo.inference.policies import kv_policy
from arc_halo.store import activations, attention
from arc_halo.store import kv_cache_reading as reading
from arc_halo.store.kv_cache_reading import Usage
from arc_halo.store.rows import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Fullness:
    """How many of what a cache holds, what of its budget that takes, and how often it was found,
    where that is counted."""

    cache: str
    holds: int
    unit: str
    found: int | None
    taken_bytes: int
    budget_bytes: int | None
    ttl_seconds: float | None


def fullness(conn: Connection, usage: Sequence[Usage]) -> list[Fullness]:
    """Of each cache; `usage` is that of the KV cache."""
    policy = kv_policy(conn)
    captured = activations.usage(conn)
    captures, capture_bytes = attention.usage(conn)
    written, _ = reading.written_bytes(conn)
    return [
        Fullness(
            cache="kv_cache",
            holds=sum(each.blocks for each in usage),
            unit="block",
            found=sum(each.hits for each in usage),
            taken_bytes=written,
            budget_bytes=policy.budget_bytes,
            ttl_seconds=policy.ttl.total_seconds() if policy.ttl else None,
        ),
        _captured(
            conn, "activation_cache", captured.entries, "tensor", captured.hits, captured.size_bytes
        ),
        _captured(conn, "attention_patterns", captures, "capture", None, capture_bytes),
    ]


def _captured(
    conn: Connection, cache: str, holds: int, unit: str, found: int | None, taken_bytes: int
) -> Fullness:
    kept = keeping(conn, cache, None, None)
    return Fullness(
        cache=cache,
        holds=holds,
        unit=unit,
        found=found,
        taken_bytes=taken_bytes,
        budget_bytes=kept.budget_bytes,
        ttl_seconds=kept.ttl.total_seconds() if kept.ttl else None,
    )
