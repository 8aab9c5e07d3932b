"""What a PostgreSQL server, a database and its user are and may do: the facts behind `doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg.rows import class_row, tuple_row

from arc_halo.store.connection import Connection

TABLES = (
    "models",
    "transformer_layers",
    "attention_heads",
    "tensor_metadata",
    "tensor_data",
    "model_weights",
    "embeddings",
    "training_sessions",
    "training_metrics",
    "optimizer_state",
    "model_checkpoints",
    "gradient_checkpoints",
    "inference_sessions",
    "activation_cache",
    "kv_cache",
    "inference_metrics",
    "attention_patterns",
    "cognitive_fusion_reactors",
    "reactor_models",
    "fusion_operations",
    "model_interaction_graph",
    "cognitive_state",
    "reactor_metrics",
)
VIEWS = ("v_model_architecture", "v_training_progress", "v_reactor_status")
FUNCTIONS = ("calculate_model_parameters(uuid)", "get_latest_checkpoint(uuid)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """`version_number` is PostgreSQL's own: 180004 for 18.4."""

    version_number: int
    version: str
    database: str
    user_name: str
    encoding: str
    is_standby: bool
    is_read_only: bool
    fsync: bool
    full_page_writes: bool
    can_create: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionFacts:
    """An extension's version in this database and on this server; None where it is not there."""

    installed: str | None
    available: str | None


def server_facts(conn: Connection) -> ServerFacts:
    with conn.cursor(row_factory=class_row(ServerFacts)) as cursor:
        facts = cursor.execute(_FACTS).fetchone()
    assert facts is not None
    return facts


def place_of(conn: Connection) -> tuple[object, ...]:
    """What two connections have in common if, and only if, they lead to one database."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(_PLACE).fetchone() or ()


def extension_facts(conn: Connection, name: str) -> ExtensionFacts:
    with conn.cursor(row_factory=class_row(ExtensionFacts)) as cursor:
        facts = cursor.execute(_EXTENSION, {"name": name}).fetchone()
    return facts or ExtensionFacts(installed=None, available=None)


def missing_objects(conn: Connection) -> list[str]:
    """Those of the published tables, views and functions that the database lacks."""
    names = {"relations": [*TABLES, *VIEWS], "functions": list(FUNCTIONS)}
    with conn.cursor(row_factory=tuple_row) as cursor:
        return [name for (name,) in cursor.execute(_MISSING, names)]


def missing_rights(conn: Connection) -> dict[tuple[str, ...], list[str]]:
    """The rights that the connected role lacks together, and our tables that it lacks them on."""
    found: dict[tuple[str, ...], list[str]] = {}
    with conn.cursor(row_factory=tuple_row) as cursor:
        for table, rights in cursor.execute(_MISSING_RIGHTS, {"tables": list(TABLES)}):
            found.setdefault(tuple(rights), []).append(table)
    return found


_FACTS = """
SELECT current_setting('server_version_num')::int AS version_number,
       current_setting('server_version') AS version,
       current_database() AS database,
       current_user AS user_name,
       current_setting('server_encoding') AS encoding,
       pg_is_in_recovery() AS is_standby,
       current_setting('default_transaction_read_only')::bool AS is_read_only,
       current_setting('fsync')::bool AS fsync,
       current_setting('full_page_writes')::bool AS full_page_writes,
       has_schema_privilege('public', 'CREATE') AS can_create
"""

_PLACE = """
SELECT pg_postmaster_start_time(), oid FROM pg_database WHERE datname = current_database()
"""

_EXTENSION = """
SELECT installed_version AS installed, default_version AS available
FROM pg_available_extensions WHERE name = %(name)s
"""

_MISSING = """
SELECT name FROM unnest(%(relations)s::text[]) AS name WHERE to_regclass('public.' || name) IS NULL
UNION ALL
SELECT name FROM unnest(%(functions)s::text[]) AS name
WHERE to_regprocedure('public.' || name) IS NULL
"""

_MISSING_RIGHTS = """
SELECT name, array_agg(privilege ORDER BY place)
FROM unnest(%(tables)s::text[]) AS name
CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'])
    WITH ORDINALITY AS rights (privilege, place)
WHERE to_regclass('public.' || name) IS NOT NULL
  AND NOT has_table_privilege(to_regclass('public.' || name), privilege)
GROUP BY name
ORDER BY name
"""
