"""The schema as text, so that two databases, or one at two times, can be compared line by line."""

from __future__ import annotations

from psycopg.rows import scalar_row

from arc_halo.store.connection import Connection


def read_catalogue(conn: Connection) -> tuple[str, ...]:
    """One line for each thing in the current schema, sorted: the same schema, the same lines.

    Columns, constraints, indexes, triggers, views, functions and comments. Extensions' objects,
    partitions (which come and go at run time) and yoyo's tables are left out. Comparable between
    servers of one major version only.
    """
    with conn.cursor(row_factory=scalar_row) as cursor:
        return tuple(str(line) for line in cursor.execute(CATALOGUE))


CATALOGUE = r"""
WITH relation AS (
    SELECT c.oid, c.relname AS name, c.relkind AS kind, c.relpersistence AS persistence,
           c.reloptions AS options
    FROM pg_class AS c
    WHERE c.relnamespace = current_schema()::regnamespace
      AND c.relkind IN ('r', 'p', 'v')
      AND NOT c.relispartition
      AND c.relname NOT IN ('_yoyo_log', '_yoyo_migration', '_yoyo_version', 'yoyo_lock')
      AND NOT EXISTS (SELECT FROM pg_depend AS d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                        AND d.deptype = 'e')
),
line AS (
    SELECT format('%s: kind %s, persistence %s, options %s, comment %L', name, kind, persistence,
                  options, obj_description(oid, 'pg_class')) AS text
    FROM relation
    UNION ALL
    SELECT format('%s.%s: number %s, %s, not null %s, default %s, generated %s, identity %s, '
                  'storage %s, comment %L',
                  r.name, a.attname, row_number() OVER (PARTITION BY r.oid ORDER BY a.attnum),
                  format_type(a.atttypid, a.atttypmod), a.attnotnull,
                  pg_get_expr(d.adbin, d.adrelid), a.attgenerated, a.attidentity, a.attstorage,
                  col_description(r.oid, a.attnum))
    FROM relation AS r
    JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef AS d ON d.adrelid = r.oid AND d.adnum = a.attnum
    UNION ALL
    SELECT format('%s: constraint %s %s', r.name, c.conname, pg_get_constraintdef(c.oid))
    FROM relation AS r JOIN pg_constraint AS c ON c.conrelid = r.oid
    UNION ALL
    SELECT format('%s: %s', r.name, pg_get_indexdef(i.indexrelid))
    FROM relation AS r JOIN pg_index AS i ON i.indrelid = r.oid
    UNION ALL
    SELECT format('%s: %s', r.name, pg_get_triggerdef(t.oid))
    FROM relation AS r JOIN pg_trigger AS t ON t.tgrelid = r.oid AND NOT t.tgisinternal
    UNION ALL
    SELECT format('%s: view %s', name, pg_get_viewdef(oid)) FROM relation WHERE kind = 'v'
    UNION ALL
    SELECT format('%s: %s, comment %L', p.oid::regprocedure, pg_get_functiondef(p.oid),
                  obj_description(p.oid, 'pg_proc'))
    FROM pg_proc AS p
    WHERE p.pronamespace = current_schema()::regnamespace
      AND p.prokind IN ('f', 'p')
      AND NOT EXISTS (SELECT FROM pg_depend AS d
                      WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                        AND d.deptype = 'e')
)
SELECT text FROM line ORDER BY text COLLATE "C"
"""
