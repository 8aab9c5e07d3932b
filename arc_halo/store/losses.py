"""SQL of what a deletion takes along: bytes of weights, and rows that hang on the resource."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.rows import dict_row

from arc_halo.store.models import split_names
from arc_halo.store.rows import Connection

OF_MODELS = """
SELECT model.model_name || '@' || model.version AS name,
       coalesce(sets.size_bytes, 0)::bigint AS size_bytes,
       (SELECT count(*) FROM model_aliases AS x WHERE x.model_id = model.id) AS aliases,
       (SELECT count(*) FROM model_weight_history AS x WHERE x.model_id = model.id)
           AS weight_sets,
       (SELECT count(*) FROM training_sessions AS x WHERE x.model_id = model.id)
           AS training_sessions,
       (SELECT count(*) FROM inference_sessions AS x WHERE x.model_id = model.id)
           AS inference_sessions
FROM unnest(%(names)s::text[], %(versions)s::text[]) AS item (name, version)
JOIN models AS model ON model.model_name = item.name AND model.version = item.version
LEFT JOIN weight_sets AS sets ON sets.id = model.weight_set_id
"""

OF_REACTORS = """
SELECT reactor.reactor_name AS name,
       (SELECT count(*) FROM cognitive_state AS x WHERE x.reactor_id = reactor.id) AS states,
       (SELECT count(*) FROM reactor_metrics AS x WHERE x.reactor_id = reactor.id) AS metrics
FROM cognitive_fusion_reactors AS reactor
WHERE reactor.reactor_name = ANY(%(names)s)
"""


def of_models(conn: Connection, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """For each model: the bytes of its weights, and how many rows of each kind lose it."""
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(OF_MODELS, split_names(names)).fetchall()
    return {row.pop("name"): row for row in rows}


def of_reactors(conn: Connection, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """For each reactor: how many rows of each kind go with it."""
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(OF_REACTORS, {"names": list(names)}).fetchall()
    return {row.pop("name"): row for row in rows}
