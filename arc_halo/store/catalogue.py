"""The schema as named definitions, so that two databases, or one at two times, can be compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from psycopg.rows import class_row

from arc_halo.store.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaObject:
    """A thing in the schema, as in `column models.version`, part of a table, view or function."""

    object: str
    part_of: str
    definition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaChange:
    """What became of one object: its definition before and after, None where there was none."""

    object: str
    change: Literal["added", "removed", "changed"]
    before: str | None
    after: str | None

    def __str__(self) -> str:
        short = len(f"{self.before}{self.after}") <= 120
        if self.change == "changed" and short:
            return f"{self.object} was changed: {self.before} -> {self.after}"
        return f"{self.object} was {self.change}"


def read_catalogue(
    conn: Connection, *, parts: Collection[str] | None = None
) -> tuple[SchemaObject, ...]:
    """Everything in our tables' schema, sorted; of the tables, views and functions `parts` only.

    Tables, columns, constraints, indexes, triggers, policies, rules, views and functions, each
    with its comment. Extensions' objects, partitions (which come and go at run time) and yoyo's
    tables are left out, and the order of columns, which no rollback can restore. Comparable
    between servers of one major version only.
    """
    with conn.cursor(row_factory=class_row(SchemaObject)) as cursor:
        named = None if parts is None else list(parts)
        return tuple(cursor.execute(CATALOGUE, {"parts": named}))


def compare_catalogues(
    before: Sequence[SchemaObject], after: Sequence[SchemaObject]
) -> tuple[SchemaChange, ...]:
    """What lies between two catalogues, sorted. Of a table that came or went, it is told alone."""
    parts = {each.object: each.part_of for each in (*before, *after)}
    old, new = ({each.object: each.definition for each in side} for side in (before, after))
    changes = [
        SchemaChange(object=name, change=change, before=old.get(name), after=new.get(name))
        for name in sorted(parts)
        if (change := _what_became(old.get(name), new.get(name))) is not None
    ]
    whole = {parts[c.object] for c in changes if c.change != "changed" and _is_head(c, parts)}
    return tuple(c for c in changes if _is_head(c, parts) or parts[c.object] not in whole)


# Where our tables are, whichever schema the role's search_path begins with.
CATALOGUE = r"""
WITH ours AS (
    SELECT coalesce((SELECT relnamespace FROM pg_class WHERE oid = to_regclass('arc_halo_schema')),
                    current_schema()::regnamespace) AS namespace
),
relation AS (
    SELECT c.oid, c.relname::text AS name, c.relkind AS kind, c.relpersistence AS persistence,
           c.reloptions AS options, c.relrowsecurity AS has_policies,
           CASE c.relkind WHEN 'v' THEN 'view ' ELSE 'table ' END || c.relname AS object
    FROM pg_class AS c
    WHERE c.relnamespace = (SELECT namespace FROM ours)
      AND c.relkind IN ('r', 'p', 'v')
      AND NOT c.relispartition
      AND c.relname NOT IN ('_yoyo_log', '_yoyo_migration', '_yoyo_version', 'yoyo_lock')
      AND (%(parts)s::text[] IS NULL OR c.relname = ANY(%(parts)s::text[]))
      AND NOT EXISTS (SELECT FROM pg_depend AS d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                        AND d.deptype = 'e')
),
routine AS (
    SELECT p.oid, p.oid::regprocedure::text AS name
    FROM pg_proc AS p
    WHERE p.pronamespace = (SELECT namespace FROM ours)
      AND p.prokind IN ('f', 'p')
      AND (%(parts)s::text[] IS NULL OR p.oid::regprocedure::text = ANY(%(parts)s::text[]))
      AND NOT EXISTS (SELECT FROM pg_depend AS d
                      WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                        AND d.deptype = 'e')
),
line AS (
    SELECT r.object, r.name AS part_of,
           concat_ws(', ',
                     CASE r.kind WHEN 'p' THEN 'partitioned ' || pg_get_partkeydef(r.oid)
                                 WHEN 'v' THEN pg_get_viewdef(r.oid) ELSE 'plain' END,
                     CASE r.persistence WHEN 'u' THEN 'unlogged' WHEN 't' THEN 'temporary' END,
                     CASE WHEN r.has_policies THEN 'row level security' END,
                     'options ' || r.options::text) AS definition,
           obj_description(r.oid, 'pg_class') AS comment
    FROM relation AS r
    UNION ALL
    SELECT format('column %%s.%%s', r.name, a.attname), r.name,
           concat_ws(', ',
                     format_type(a.atttypid, a.atttypmod),
                     CASE WHEN a.attnotnull THEN 'not null' END,
                     CASE WHEN a.attgenerated <> '' THEN 'generated ' ELSE 'default ' END
                         || pg_get_expr(d.adbin, d.adrelid),
                     'identity ' || nullif(a.attidentity::text, ''),
                     CASE WHEN a.attstorage <> t.typstorage THEN 'storage ' || a.attstorage::text
                     END,
                     'compression ' || nullif(a.attcompression::text, '')),
           col_description(r.oid, a.attnum)
    FROM relation AS r
    JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type AS t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef AS d ON d.adrelid = r.oid AND d.adnum = a.attnum
    UNION ALL
    -- A column says itself that it is not null.
    SELECT format('constraint %%s of %%s', c.conname, r.name), r.name,
           pg_get_constraintdef(c.oid), obj_description(c.oid, 'pg_constraint')
    FROM relation AS r JOIN pg_constraint AS c ON c.conrelid = r.oid AND c.contype <> 'n'
    UNION ALL
    SELECT 'index ' || x.relname, r.name,
           concat_ws(', ', pg_get_indexdef(i.indexrelid),
                     CASE WHEN NOT i.indisvalid THEN 'invalid' END),
           obj_description(i.indexrelid, 'pg_class')
    FROM relation AS r
    JOIN pg_index AS i ON i.indrelid = r.oid
    JOIN pg_class AS x ON x.oid = i.indexrelid
    WHERE NOT EXISTS (SELECT FROM pg_constraint AS c
                      WHERE c.conrelid = r.oid AND c.conindid = i.indexrelid
                        AND c.contype IN ('p', 'u', 'x'))
    UNION ALL
    SELECT format('trigger %%s of %%s', t.tgname, r.name), r.name,
           concat_ws(', ', pg_get_triggerdef(t.oid),
                     CASE t.tgenabled WHEN 'D' THEN 'disabled' WHEN 'R' THEN 'on replicas'
                                      WHEN 'A' THEN 'always' END),
           obj_description(t.oid, 'pg_trigger')
    FROM relation AS r JOIN pg_trigger AS t ON t.tgrelid = r.oid AND NOT t.tgisinternal
    UNION ALL
    SELECT format('policy %%s of %%s', p.polname, r.name), r.name,
           concat_ws(', ', p.polcmd::text, CASE WHEN NOT p.polpermissive THEN 'restrictive' END,
                     'roles ' || p.polroles::regrole[]::text,
                     'using ' || pg_get_expr(p.polqual, p.polrelid),
                     'check ' || pg_get_expr(p.polwithcheck, p.polrelid)),
           obj_description(p.oid, 'pg_policy')
    FROM relation AS r JOIN pg_policy AS p ON p.polrelid = r.oid
    UNION ALL
    SELECT format('rule %%s of %%s', w.rulename, r.name), r.name, pg_get_ruledef(w.oid),
           obj_description(w.oid, 'pg_rewrite')
    FROM relation AS r JOIN pg_rewrite AS w ON w.ev_class = r.oid AND w.rulename <> '_RETURN'
    UNION ALL
    SELECT 'function ' || f.name, f.name, pg_get_functiondef(f.oid),
           obj_description(f.oid, 'pg_proc')
    FROM routine AS f
)
SELECT object, part_of, concat_ws(', ', definition, 'comment ' || quote_literal(comment))
           AS definition
FROM line
ORDER BY object COLLATE "C"
"""


def _what_became(
    before: str | None, after: str | None
) -> Literal["added", "removed", "changed"] | None:
    if before == after:
        return None
    return "added" if before is None else "removed" if after is None else "changed"


def _is_head(change: SchemaChange, parts: Mapping[str, str]) -> bool:
    """Whether it is of a table, a view or a function itself."""
    return change.object.partition(" ")[2] == parts[change.object]
