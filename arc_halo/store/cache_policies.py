"""SQL of declared caches: how much each may take, and for how long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from arc_halo.store.rows import Connection, LiveRow, as_uuid
from arc_halo.types import JsonObject

SPECS = """
SELECT policy.id, policy.name,
       jsonb_build_object(
           'budget', policy.budget_bytes,
           'ttl', extract(epoch FROM policy.ttl)::bigint,
           'block_tokens', policy.block_tokens,
           'codec', policy.codec,
           'quota', policy.quota_bytes,
           'quotas', policy.quotas,
           'description', policy.description,
           'tags', policy.tags) AS spec
FROM cache_policies AS policy
WHERE policy.name = ANY(%(names)s)
"""

LIVE = f"""
SELECT live.name, live.id, md5(live.spec::text) AS digest FROM ({SPECS}) AS live
"""  # noqa: S608  both are constants of this module

LIVE_SPECS = f"""
SELECT live.name, live.spec FROM ({SPECS}) AS live
"""  # noqa: S608  both are constants of this module

UPSERT = """
INSERT INTO cache_policies (name, budget_bytes, ttl, block_tokens, codec, quota_bytes, quotas,
                            description, tags)
SELECT item.name, item.budget, make_interval(secs => item.ttl), item.block_tokens, item.codec,
       item.quota, item.quotas, item.description, item.tags
FROM jsonb_to_recordset(%(items)s) AS item (
    name text, budget bigint, ttl double precision, block_tokens int, codec text, quota bigint,
    quotas jsonb, description text, tags jsonb)
ON CONFLICT (name) DO UPDATE
SET budget_bytes = excluded.budget_bytes, ttl = excluded.ttl,
    block_tokens = excluded.block_tokens, codec = excluded.codec,
    quota_bytes = excluded.quota_bytes, quotas = excluded.quotas,
    description = excluded.description, tags = excluded.tags
RETURNING name, id
"""

DELETE = """
DELETE FROM cache_policies WHERE name = ANY(%(names)s)
"""

FIND = """
SELECT name, budget_bytes, extract(epoch FROM ttl)::double precision AS ttl_seconds, block_tokens,
       codec, quota_bytes, quotas
FROM cache_policies
WHERE name = %(name)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """What is declared of a cache. `block_tokens`, `codec` and quotas are those of the KV cache."""

    name: str
    budget_bytes: int
    ttl_seconds: float | None
    block_tokens: int | None
    codec: str | None
    quota_bytes: int | None
    quotas: Mapping[str, int]

    @property
    def ttl(self) -> timedelta | None:
        """How long that stays which nobody uses."""
        return None if self.ttl_seconds is None else timedelta(seconds=self.ttl_seconds)


def live(conn: Connection, names: Iterable[str]) -> dict[str, LiveRow]:
    with conn.cursor(row_factory=class_row(LiveRow)) as cursor:
        return {row.name: row for row in cursor.execute(LIVE, {"names": list(names)})}


def live_specs(conn: Connection, names: Iterable[str]) -> dict[str, JsonObject]:
    rows = conn.execute(LIVE_SPECS, {"names": list(names)}).fetchall()
    return {str(name): spec for name, spec in rows if isinstance(spec, dict)}


def upsert(conn: Connection, items: Sequence[JsonObject]) -> dict[str, UUID]:
    rows = conn.execute(UPSERT, {"items": Jsonb(items)}).fetchall()
    return {str(name): as_uuid(id_) for name, id_ in rows}


def delete(conn: Connection, names: Iterable[str]) -> None:
    """Let caches have the usual budgets again; what they hold stays."""
    conn.execute(DELETE, {"names": list(names)})


def find(conn: Connection, name: str) -> CachePolicy | None:
    """What is declared of the cache of that name, or None."""
    with conn.cursor(row_factory=class_row(CachePolicy)) as cursor:
        return cursor.execute(FIND, {"name": name}).fetchone()
