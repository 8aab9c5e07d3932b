"""How much a cache may take, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from arc_halo.store import cache_policies
from arc_halo.store.rows import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class KVPolicy:
    """What the KV cache of a database keeps. `ttl` is how long a block stays that nobody uses.

    `quotas` are bytes by tenant; `quota_bytes` is that of the others, None for the budget alone.
    """

    budget_bytes: int = 4 * 1024**3
    ttl: timedelta | None = None
    quota_bytes: int | None = None
    quotas: Mapping[str, int] = field(default_factory=dict)

    def quota_of(self, tenant: str) -> int | None:
        return self.quotas.get(tenant, self.quota_bytes)


def kv_policy(conn: Connection) -> KVPolicy:
    """What a manifest declares of the KV cache, or the usual."""
    found = cache_policies.find(conn, "kv_cache")
    if found is None:
        return KVPolicy()
    return KVPolicy(
        budget_bytes=found.budget_bytes,
        ttl=found.ttl,
        quota_bytes=found.quota_bytes,
        quotas=found.quotas,
    )
