"""SQL of drift: which managed rows are not as the last apply left them, found by the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString

from psycopg.rows import class_row

from arc_halo.store import cache_policies, models, reactors, strategies, trainings
from arc_halo.store.rows import Connection
from arc_halo.types import Key

_NAMES: LiteralString = "(SELECT array_agg(name ORDER BY name) FROM managed)::text[]"
_MODELS: tuple[LiteralString, LiteralString] = (
    "(SELECT array_agg(split_part(name, '@', 1) ORDER BY name) FROM managed)",
    "(SELECT array_agg(split_part(name, '@', 2) ORDER BY name) FROM managed)",
)


def _drifted(kind: LiteralString, live: LiteralString) -> LiteralString:
    """The managed resources of a kind whose live digest, which `live` computes, is another."""
    pairs = zip(("%(names)s::text[]", "%(versions)s::text[]"), _MODELS, strict=True)
    if kind == "model":
        for placeholder, names in pairs:
            live = live.replace(placeholder, names)
    live = live.replace("%(names)s", _NAMES)
    return f"""(
WITH managed AS MATERIALIZED (
    SELECT name, live_digest FROM managed_resources
    WHERE project = %(project)s AND kind = '{kind}'
)
SELECT '{kind}' AS kind, managed.name, live.digest IS NOT NULL AS is_there
FROM managed LEFT JOIN ({live}) AS live ON live.name = managed.name
WHERE live.digest IS DISTINCT FROM managed.live_digest)"""  # noqa: S608  constants of the store


_ALL: LiteralString = "\nUNION ALL\n".join(
    (
        _drifted("strategy", strategies.LIVE),
        _drifted("model", models.LIVE),
        _drifted("reactor", reactors.LIVE),
        _drifted("training", trainings.LIVE),
        _drifted("inference", cache_policies.LIVE),
    )
)

DRIFTED = f"""
SELECT kind, name, is_there FROM ({_ALL}) AS found ORDER BY kind, name
"""  # noqa: S608  constants of the store

MANAGED_COUNT = """
SELECT count(*) FROM managed_resources WHERE project = %(project)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftedRow:
    """A managed resource that is not as it was applied, or is not there any more."""

    kind: str
    name: str
    is_there: bool

    @property
    def key(self) -> Key:
        return Key(kind=self.kind, name=self.name)


def drifted(conn: Connection, project: str) -> list[DriftedRow]:
    """What differs from the last apply. All digests are computed and compared by the server."""
    with conn.cursor(row_factory=class_row(DriftedRow)) as cursor:
        return cursor.execute(DRIFTED, {"project": project}).fetchall()


def managed_count(conn: Connection, project: str) -> int:
    """How many resources the project manages."""
    row = conn.execute(MANAGED_COUNT, {"project": project}).fetchone()
    assert row is not None
    return int(str(row[0]))
