"""SQL of drift: which managed rows are not as the last apply left them, found by the server."""

from __future__ import annotations

from typing import LiteralString

from psycopg.rows import class_row

from arc_halo.store import cache_policies, models, reactors, strategies, trainings
from arc_halo.store.rows import Connection
from arc_halo.types import Key

_MANAGED = "(SELECT name FROM managed)"
_MODELS_NAMED = """
    FROM unnest(%(names)s::text[], %(versions)s::text[]) AS item (name, version)
    JOIN models AS model ON model.model_name = item.name AND model.version = item.version
"""
_MODELS_MANAGED = f"""
    FROM models AS model WHERE model.model_name || '@' || model.version IN {_MANAGED}
"""


def _drifted(kind: LiteralString, live: LiteralString) -> LiteralString:
    """The managed resources of a kind whose live digest, which `live` computes, is another.

    Neither lists of names nor joins of what was computed: of both, the server cannot know how many
    rows they give, and would compare each with each.
    """
    live = live.replace(_MODELS_NAMED, _MODELS_MANAGED)
    live = live.replace("= ANY(%(names)s)", f"IN {_MANAGED}")
    return f"""(
WITH managed AS MATERIALIZED (
    SELECT name, live_digest FROM managed_resources
    WHERE project = %(project)s AND kind = '{kind}'
)
SELECT '{kind}' AS kind, differing.name FROM (
    SELECT name, live_digest FROM managed EXCEPT SELECT name, digest FROM ({live}) AS live
) AS differing)"""  # noqa: S608  constants of the store


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
SELECT kind, name FROM ({_ALL}) AS found ORDER BY kind, name
"""  # noqa: S608  constants of the store

MANAGED_COUNT = """
SELECT count(*) FROM managed_resources WHERE project = %(project)s
"""


def drifted(conn: Connection, project: str) -> list[Key]:
    """What differs from the last apply, or is not there any more.

    All digests are computed and compared by the server.
    """
    with conn.cursor(row_factory=class_row(Key)) as cursor:
        return cursor.execute(DRIFTED, {"project": project}).fetchall()


def managed_count(conn: Connection, project: str) -> int:
    """How many resources the project manages."""
    row = conn.execute(MANAGED_COUNT, {"project": project}).fetchone()
    assert row is not None
    return int(str(row[0]))
