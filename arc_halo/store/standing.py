"""SQL of where a project stands: cheap marks that any change of it, or of the schema, moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString

from psycopg.rows import class_row

from arc_halo.store.rows import Connection

_TABLES: tuple[LiteralString, ...] = (
    "managed_resources", "fusion_strategies", "models", "model_aliases", "model_weights",
    "transformer_layers", "attention_heads", "embeddings", "cognitive_fusion_reactors",
    "reactor_models", "reactor_adapters", "model_interaction_graph", "training_definitions",
    "cache_policies",
)  # fmt: skip
"""Every table whose rows an apply writes and compares."""


def _mark(table: LiteralString) -> LiteralString:
    """The rows of a table, and the sum of the transactions that wrote them.

    A row that is changed or added is of a later transaction than any before, so that with as many
    rows the sum is greater. `age` counts back from the transaction of now, whose own is `age('3')`.
    """
    return f"""SELECT '{table}' AS name, count(*) AS rows,
       count(*) * age('3'::xid)::bigint - coalesce(sum(age(xmin)), 0) AS written
FROM {table}"""  # noqa: S608  constants of this module


_MARKS: LiteralString = "\nUNION ALL\n".join([_mark(table) for table in _TABLES])

STANDING = f"""
SELECT project.id::text AS id, project.head_revision,
       (SELECT concat(encode(plan_digest, 'hex'), ' ', created_at) FROM revisions
        WHERE revisions.project = project.name AND revision = project.head_revision) AS head,
       (SELECT concat(count(*), ' ', max(applied_at)) FROM arc_halo_migrations) AS migrations,
       (SELECT string_agg(concat(mark.rows, ':', mark.written), ' ' ORDER BY mark.name)
        FROM ({_MARKS}) AS mark) AS marks
FROM projects AS project WHERE project.name = %(project)s
"""  # noqa: S608  constants of this module


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Equal to an earlier one only while no row that an apply compares was written since.

    Rows of other projects count too: then more is looked at than need be. `head` tells a copy of a
    database, which began with the same numbers, from what it was copied of.
    """

    id: str
    head_revision: int
    head: str | None
    migrations: str
    marks: str


def standing(conn: Connection, project: str) -> Standing | None:
    """Where the project stands; None for one that never applied."""
    with conn.cursor(row_factory=class_row(Standing)) as cursor:
        return cursor.execute(STANDING, {"project": project}).fetchone()
