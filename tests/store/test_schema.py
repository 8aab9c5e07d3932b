"""What the schema guarantees by itself, and that its reference page is complete."""

from __future__ import annotations

import hashlib
import re
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from arc_halo.store.connection import Connection, connect

TABLES = [
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
]
VIEWS = ["v_model_architecture", "v_training_progress", "v_reactor_status"]
FUNCTIONS = ["calculate_model_parameters(uuid)", "get_latest_checkpoint(uuid)"]

EVERY_RELATION = """
SELECT relname, relkind, obj_description(oid, 'pg_class')
FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')
  AND NOT relispartition AND relname NOT LIKE '\\_yoyo%'
"""
EVERY_FUNCTION = """
SELECT oid::regprocedure::text, obj_description(oid, 'pg_proc')
FROM pg_proc WHERE pronamespace = 'public'::regnamespace
"""


def one(conn: Connection, query: str, *values: object) -> object:
    row = conn.execute(query.encode(), values).fetchone()
    assert row is not None
    return row[0]


def refuses(conn: Connection, error: type[psycopg.Error], query: str, *values: object) -> str:
    """The message with which the database refuses, without spoiling the transaction."""
    with pytest.raises(error) as refused:
        _run_in_savepoint(conn, query, values)
    return str(refused.value)


def _run_in_savepoint(conn: Connection, query: str, values: Sequence[object]) -> None:
    with conn.transaction():
        conn.execute(query.encode(), values)
        conn.execute("SET CONSTRAINTS ALL IMMEDIATE")


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def new_model(conn: Connection, name: str = "base", version: str = "1.0.0") -> UUID:
    query = """
        INSERT INTO models (model_name, version, model_type, architecture_config)
        VALUES (%s, %s, 'transformer', '{}') RETURNING id
    """
    found = one(conn, query, name, version)
    assert isinstance(found, UUID)
    return found


def new_tensor(conn: Connection, name: str = "w", elements: int = 6) -> int:
    query = """
        INSERT INTO tensor_metadata
            (digest, dtype, shape, element_count, size_bytes, chunk_bytes, chunk_count)
        VALUES (%s, 'F32', %s, %s, %s, 262144, 1) RETURNING id
    """
    return int(str(one(conn, query, digest(name), [elements], elements, elements * 4)))


def new_weight_set(conn: Connection, name: str = "set") -> int:
    query = """
        INSERT INTO weight_sets (root, tensor_count, parameter_count, size_bytes)
        VALUES (%s, 1, 6, 24) RETURNING id
    """
    return int(str(one(conn, query, digest(name))))


def new_reactor(conn: Connection, *members: UUID, kind: str = "ensemble") -> UUID:
    query = """
        INSERT INTO cognitive_fusion_reactors
            (reactor_name, reactor_type, strategy_name, strategy_uses)
        VALUES ('story', %s, 'linear', 'linear') RETURNING id
    """
    reactor = one(conn, query, kind)
    assert isinstance(reactor, UUID)
    for ordinal, member in enumerate(members):
        conn.execute(
            "INSERT INTO reactor_models (reactor_id, model_id, ordinal, role)"
            " VALUES (%s, %s, %s, 'primary')",
            [reactor, member, ordinal],
        )
    return reactor


def new_session(conn: Connection, **values: object) -> UUID:
    columns = {"model_name": "base", "model_version": "1.0.0", **values}
    query = f"""
        INSERT INTO training_sessions ({", ".join(columns)})
        VALUES ({", ".join(["%s"] * len(columns))}) RETURNING id
    """
    found = one(conn, query, *columns.values())
    assert isinstance(found, UUID)
    return found


def new_checkpoint(conn: Connection, session: UUID, step: int, *, is_best: bool = False) -> UUID:
    query = """
        INSERT INTO model_checkpoints
            (session_id, step, checkpoint_type, size_bytes, is_best, best_metric, best_mode)
        VALUES (%s, %s, 'optimizer_only', 0, %s, 'loss', 'min') RETURNING id
    """
    found = one(conn, query, session, step, is_best)
    assert isinstance(found, UUID)
    return found


# The whole catalogue.


def test_every_published_name_exists(conn: Connection) -> None:
    kinds = {name: kind for name, kind, _ in conn.execute(EVERY_RELATION)}
    assert {name for name in TABLES if kinds.get(name) in ("r", "p")} == set(TABLES)
    assert {name for name in VIEWS if kinds.get(name) == "v"} == set(VIEWS)
    assert set(FUNCTIONS) <= {name for name, _ in conn.execute(EVERY_FUNCTION)}


def test_every_table_view_and_function_has_a_comment(conn: Connection) -> None:
    commented = [
        *((name, comment) for name, _, comment in conn.execute(EVERY_RELATION)),
        *conn.execute(EVERY_FUNCTION),
    ]
    assert [name for name, comment in commented if not comment] == []


def test_every_foreign_key_has_an_index_on_its_columns(conn: Connection) -> None:
    unindexed = conn.execute("""
        SELECT c.conrelid::regclass, c.conname
        FROM pg_constraint AS c
        WHERE c.contype = 'f' AND c.connamespace = 'public'::regnamespace
          AND NOT EXISTS (
              SELECT FROM pg_index AS i
              WHERE i.indrelid = c.conrelid
                AND (i.indkey::int2[])[0:cardinality(c.conkey) - 1] @> c.conkey
                AND (i.indpred IS NULL OR pg_get_expr(i.indpred, i.indrelid)
                     ~ '^\\(\\w+ IS NOT NULL\\)$'))
    """).fetchall()
    assert unindexed == []


def test_no_index_is_the_beginning_of_another(conn: Connection) -> None:
    redundant = conn.execute("""
        SELECT a.indexrelid::regclass, b.indexrelid::regclass
        FROM pg_index AS a JOIN pg_index AS b ON a.indrelid = b.indrelid
        JOIN pg_class AS r ON r.oid = a.indrelid
        WHERE r.relnamespace = 'public'::regnamespace
          AND a.indexrelid <> b.indexrelid
          AND NOT a.indisunique
          AND (b.indkey::int2[])[0:a.indnkeyatts - 1] = a.indkey::int2[]
          AND (b.indpred IS NULL
               OR pg_get_expr(a.indpred, a.indrelid) = pg_get_expr(b.indpred, b.indrelid))
    """).fetchall()
    assert redundant == []


def test_no_two_unique_keys_are_the_same(conn: Connection) -> None:
    same = conn.execute("""
        SELECT a.indexrelid::regclass, b.indexrelid::regclass
        FROM pg_index AS a JOIN pg_index AS b
          ON a.indrelid = b.indrelid AND a.indexrelid < b.indexrelid
        JOIN pg_class AS r ON r.oid = a.indrelid
        WHERE r.relnamespace = 'public'::regnamespace AND a.indkey = b.indkey
          AND a.indpred IS NOT DISTINCT FROM b.indpred
    """).fetchall()
    assert same == []


def test_every_time_has_a_zone(conn: Connection) -> None:
    without = conn.execute("""
        SELECT table_name, column_name FROM information_schema.columns
        WHERE table_schema = 'public' AND data_type = 'timestamp without time zone'
          AND table_name NOT LIKE '\\_yoyo%'
    """).fetchall()
    assert without == []


def test_every_digest_is_32_bytes_by_check(conn: Connection) -> None:
    unchecked = conn.execute("""
        SELECT a.attrelid::regclass, a.attname
        FROM pg_attribute AS a JOIN pg_class AS r ON r.oid = a.attrelid
        WHERE r.relnamespace = 'public'::regnamespace AND r.relkind IN ('r', 'p')
          AND NOT r.relispartition AND a.atttypid = 'bytea'::regtype
          AND a.attname NOT IN ('body', 'packed')
          AND NOT EXISTS (SELECT FROM pg_constraint AS c
                          WHERE c.conrelid = r.oid AND c.contype IN ('c', 'f')
                            AND a.attnum = ANY(c.conkey))
    """).fetchall()
    assert unchecked == [("kv_cache_bodies", "block_key")]


def test_every_updated_at_is_kept_by_a_trigger(conn: Connection) -> None:
    untouched = conn.execute("""
        SELECT c.table_name FROM information_schema.columns AS c
        JOIN information_schema.tables AS t USING (table_schema, table_name)
        WHERE c.table_schema = 'public' AND c.column_name = 'updated_at'
          AND t.table_type = 'BASE TABLE'
          AND NOT EXISTS (SELECT FROM pg_trigger
                          WHERE tgrelid = c.table_name::regclass
                            AND tgfoid = 'arc_halo_touch_updated_at'::regproc)
    """).fetchall()
    assert untouched == []


def test_the_reference_page_has_a_heading_for_everything(conn: Connection) -> None:
    headings = set(re.findall(r"^#{2,4} `([^`]+)`", reference_page(), re.MULTILINE))
    names = {name for name, _, _ in conn.execute(EVERY_RELATION)}
    names |= {name for name, _ in conn.execute(EVERY_FUNCTION)}
    assert headings == names


def test_the_reference_page_has_every_column_with_its_type(conn: Connection) -> None:
    section = re.compile(r"^#{2,4} `(\w+)`\n(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
    written = [
        (table, row)
        for table, text in section.findall(reference_page())
        for row in re.findall(r"^(\| `.*?` \| .*?) \|", text, re.MULTILINE)
    ]
    existing = conn.execute("""
        SELECT c.relname, format('| `%s` | %s', a.attname,
            replace(format_type(a.atttypid, a.atttypmod), 'timestamp with time zone', 'timestamptz')
            || CASE WHEN NOT a.attnotnull AND c.relkind <> 'v' THEN ', null' ELSE '' END)
        FROM pg_class AS c
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v')
          AND NOT c.relispartition AND c.relname NOT LIKE '\\_yoyo%'
    """).fetchall()
    assert sorted(written) == sorted(existing)


def reference_page() -> str:
    return (Path(__file__).parents[2] / "docs" / "schema.md").read_text(encoding="utf-8")


# Projects.


def test_a_change_moves_updated_at_and_no_change_does_not(conn: Connection) -> None:
    conn.execute("INSERT INTO projects (name, updated_at) VALUES ('demo', '2000-01-01')")
    conn.execute("UPDATE projects SET head_revision = 0")
    assert one(conn, "SELECT updated_at = '2000-01-01' FROM projects") is True
    conn.execute("UPDATE projects SET head_revision = 1")
    assert one(conn, "SELECT updated_at = now() FROM projects") is True


def test_history_cannot_be_rewritten(conn: Connection) -> None:
    conn.execute("INSERT INTO projects (name) VALUES ('demo')")
    conn.execute(
        "INSERT INTO revisions (project, revision, actor, host, tool_version, manifest_digest,"
        " plan_digest) VALUES ('demo', 1, 'ann', 'here', '1', %s, %s)",
        [digest("manifest"), digest("plan")],
    )
    conn.execute(
        "INSERT INTO revision_changes VALUES ('demo', 1, 0, 'create', 'model', 'm@1', NULL, '{}')"
    )
    error = errors.RestrictViolation
    assert "revisions never change" in refuses(conn, error, "UPDATE revisions SET actor = 'bob'")
    refuses(conn, error, "UPDATE revision_changes SET name = 'n@1'")


def test_a_plan_is_applied_once(conn: Connection) -> None:
    conn.execute("INSERT INTO projects (name) VALUES ('demo')")
    query = (
        "INSERT INTO revisions (project, revision, actor, host, tool_version, manifest_digest,"
        " plan_digest) VALUES ('demo', %s, 'ann', 'here', '1', %s, %s)"
    )
    conn.execute(query, [1, digest("manifest"), digest("plan")])
    refuses(conn, errors.UniqueViolation, query, 2, digest("manifest"), digest("plan"))


# Tensors.


def test_a_body_is_neither_compressed_nor_too_long(conn: Connection) -> None:
    query = (
        "INSERT INTO chunk_bodies (digest, raw_bytes, stored_bytes, codec, codec_version, body)"
        " VALUES (%s, %s, octet_length(%s), 'raw', 1, %s)"
    )
    zeros = bytes(262_144)
    conn.execute(query, [digest("zeros"), len(zeros), zeros, zeros])
    stored = "SELECT stored_bytes, pg_column_size(body) FROM chunk_bodies"
    assert conn.execute(stored).fetchone() == (len(zeros), len(zeros))
    refuses(conn, errors.CheckViolation, query, digest("long"), 1_048_577, b"", b"")
    refuses(conn, errors.CheckViolation, query, digest("empty"), 0, b"", b"")
    refuses(conn, errors.CheckViolation, query, b"short", 1, b"", b"")


def test_a_body_is_in_one_place(conn: Connection) -> None:
    store = one(
        conn, "INSERT INTO body_stores (kind, url) VALUES ('object', 'file:///x') RETURNING id"
    )
    query = (
        "INSERT INTO chunk_bodies (digest, raw_bytes, stored_bytes, codec, codec_version, store_id,"
        " body) VALUES (%s, 1, 1, 'raw', 1, %s, %s)"
    )
    refuses(conn, errors.CheckViolation, query, digest("nowhere"), None, None)
    refuses(conn, errors.CheckViolation, query, digest("both"), store, b"x")
    conn.execute(query.encode(), [digest("there"), store, None])
    conn.execute(query.encode(), [digest("here"), None, b"x"])
    refuses(conn, errors.ForeignKeyViolation, "DELETE FROM body_stores")


def test_a_delta_is_one_deep_and_keeps_its_base(conn: Connection) -> None:
    query = (
        "INSERT INTO chunk_bodies (digest, raw_bytes, stored_bytes, codec, codec_version,"
        " base_digest, body) VALUES (%s, 1, 1, 'delta', 1, %s, 'x')"
    )
    conn.execute(query.encode(), [digest("base"), None])
    conn.execute(query.encode(), [digest("delta"), digest("base")])
    conn.execute(query.encode(), [digest("other"), None])
    point = "UPDATE chunk_bodies SET base_digest = %s WHERE digest = %s"
    for refused in (
        (query, digest("deeper"), digest("delta")),
        (query, digest("lost"), digest("nothing")),
        (point, digest("other"), digest("base")),  # a base cannot become a delta
        (point, digest("delta"), digest("other")),  # nor a delta a base
    ):
        refuses(conn, errors.RestrictViolation, *refused)
    refuses(
        conn,
        errors.ForeignKeyViolation,
        "DELETE FROM chunk_bodies WHERE digest = %s",
        digest("base"),
    )
    conn.execute(point.encode(), [None, digest("delta")])
    conn.execute(b"DELETE FROM chunk_bodies WHERE digest = %s", [digest("base")])


@pytest.mark.parametrize(("size", "chunks"), [(0, 0), (1, 1), (256, 1), (257, 2)])
def test_chunks_cover_a_tensor_exactly(conn: Connection, size: int, chunks: int) -> None:
    query = """
        INSERT INTO tensor_metadata
            (digest, dtype, shape, element_count, size_bytes, chunk_bytes, chunk_count)
        VALUES (%s, 'U8', %s, %s, %s, 256, %s)
    """
    for wrong in (chunks - 1, chunks + 1):
        refuses(conn, errors.CheckViolation, query, digest("t"), [size], size, size, wrong)
    conn.execute(query.encode(), [digest("t"), [size], size, size, chunks])


def test_tensors_and_weight_sets_never_change(conn: Connection) -> None:
    tensor, weights = new_tensor(conn), new_weight_set(conn)
    conn.execute("INSERT INTO weight_set_tensors VALUES (%s, 0, 'w', %s)", [weights, tensor])
    for table, column in (
        ("tensor_metadata", "dtype = 'I32'"),
        ("weight_sets", "tensor_count = 2"),
        ("weight_set_tensors", "tensor_name = 'v'"),
    ):
        refuses(conn, errors.RestrictViolation, f"UPDATE {table} SET {column}")


def test_a_weight_set_is_complete_or_in_the_making(conn: Connection) -> None:
    query = "INSERT INTO weight_sets (root, tensor_count) VALUES (%s, 1)"
    refuses(conn, errors.CheckViolation, query, digest("set"))
    conn.execute("INSERT INTO weight_sets (completed_at) VALUES (NULL)")
    conn.execute(
        "UPDATE weight_sets SET root = %s, tensor_count = 0, parameter_count = 0, size_bytes = 0,"
        " completed_at = now()",
        [digest("set")],
    )
    refuses(conn, errors.RestrictViolation, "UPDATE weight_sets SET root = sha256('x')")


def test_nothing_points_to_weights_in_the_making(conn: Connection) -> None:
    model = new_model(conn)
    unfinished = one(conn, "INSERT INTO weight_sets (completed_at) VALUES (NULL) RETURNING id")
    error = errors.ForeignKeyViolation
    refuses(conn, error, "UPDATE models SET weight_set_id = %s", unfinished)
    query = "INSERT INTO model_weight_history (model_id, weight_set_id, root) VALUES (%s, %s, %s)"
    refuses(conn, error, query, model, unfinished, digest("set"))
    session = new_session(conn)
    query = """
        INSERT INTO model_checkpoints
            (session_id, step, checkpoint_type, weight_set_id, root, size_bytes)
        VALUES (%s, 1, 'full', %s, %s, 0)
    """
    refuses(conn, error, query, session, unfinished, digest("set"))
    conn.execute("UPDATE models SET weight_set_id = %s", [new_weight_set(conn)])


def test_a_build_fills_a_set_of_its_own(conn: Connection) -> None:
    unfinished = one(conn, "INSERT INTO weight_sets (completed_at) VALUES (NULL) RETURNING id")
    query = """
        INSERT INTO weight_builds (purpose, recipe_key, recipe, weight_set_id)
        VALUES ('import', %s, '{}', %s)
    """
    conn.execute(query.encode(), [digest("one"), unfinished])
    refuses(conn, errors.UniqueViolation, query, digest("two"), unfinished)


def test_what_is_in_use_cannot_be_collected(conn: Connection) -> None:
    tensor, weights, model = new_tensor(conn), new_weight_set(conn), new_model(conn)
    conn.execute("INSERT INTO weight_set_tensors VALUES (%s, 0, 'w', %s)", [weights, tensor])
    conn.execute(
        "INSERT INTO chunk_bodies (digest, raw_bytes, stored_bytes, codec, codec_version, body)"
        " VALUES (%s, 24, 24, 'raw', 1, %s)",
        [digest("chunk"), bytes(24)],
    )
    conn.execute("INSERT INTO tensor_data VALUES (%s, 0, %s)", [tensor, digest("chunk")])
    conn.execute("UPDATE models SET weight_set_id = %s WHERE id = %s", [weights, model])
    for table in ("chunk_bodies", "tensor_metadata", "weight_sets"):
        refuses(conn, errors.ForeignKeyViolation, f"DELETE FROM {table}")


def test_a_complete_build_goes_with_its_weight_set(conn: Connection) -> None:
    weights = new_weight_set(conn)
    query = """
        INSERT INTO weight_builds (purpose, recipe_key, recipe, status, weight_set_id, finished_at)
        VALUES ('import', %s, '{}', %s, %s, %s)
    """
    refuses(conn, errors.NotNullViolation, query, digest("r"), "complete", None, "now")
    refuses(conn, errors.CheckViolation, query, digest("r"), "complete", weights, None)
    conn.execute(query.encode(), [digest("r"), "complete", weights, "now"])
    conn.execute("DELETE FROM weight_sets")
    assert one(conn, "SELECT count(*) FROM weight_builds") == 0


# Models.


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("model_type", "transformers"),
        ("status", "done"),
        ("model_name", "Base"),
        ("version", "1.0@0"),
        ("architecture_config", "[]"),
        ("tags", "1"),
    ],
)
def test_a_model_takes_only_what_is_allowed(conn: Connection, column: str, value: str) -> None:
    new_model(conn)
    refuses(conn, errors.CheckViolation, f"UPDATE models SET {column} = %s", value)


def test_a_ready_model_has_weights(conn: Connection) -> None:
    new_model(conn)
    refuses(conn, errors.CheckViolation, "UPDATE models SET status = 'ready'")
    conn.execute("UPDATE models SET status = 'ready', weight_set_id = %s", [new_weight_set(conn)])


def test_a_version_of_a_name_exists_once(conn: Connection) -> None:
    new_model(conn, "base", "1.0.0")
    new_model(conn, "base", "1.1.0")
    with pytest.raises(errors.UniqueViolation):
        new_model(conn, "base", "1.0.0")


def test_an_alias_stands_for_one_version_at_a_time(conn: Connection) -> None:
    query = """
        INSERT INTO model_alias_history (model_name, alias, version, released_at)
        VALUES ('base', 'production', %s, %s)
    """
    conn.execute(query.encode(), ["1", "infinity"])
    conn.execute(query.encode(), ["2", None])
    refuses(conn, errors.UniqueViolation, query, "3", None)


def test_parameters_are_counted_by_name(conn: Connection) -> None:
    model, tensor = new_model(conn), new_tensor(conn, elements=6)
    counted = "SELECT calculate_model_parameters(%s)"
    assert one(conn, counted, model) == 0
    for name in ("embed", "lm_head"):  # tied: one tensor under two names
        conn.execute(
            "INSERT INTO model_weights (model_id, tensor_name, tensor_id) VALUES (%s, %s, %s)",
            [model, name, tensor],
        )
    assert one(conn, counted, model) == 12
    assert one(conn, counted, uuid4()) is None


def test_the_architecture_view_sums_a_model_up(conn: Connection) -> None:
    model = new_model(conn)
    for index in range(2):
        layer = one(
            conn,
            "INSERT INTO transformer_layers (model_id, layer_index, layer_type, hidden_size,"
            " num_heads, num_kv_heads, head_dim) VALUES (%s, %s, 'decoder', 8, 2, 1, 4)"
            " RETURNING id",
            model,
            index,
        )
        conn.execute(
            "INSERT INTO attention_heads (layer_id, head_index, head_dim, kv_head_index)"
            " SELECT %s, i, 4, 0 FROM generate_series(0, 1) AS i",
            [layer],
        )
    conn.execute(
        "INSERT INTO model_aliases VALUES ('base', 'b', %s), ('base', 'a', %s)", [model, model]
    )
    conn.execute(
        "INSERT INTO embeddings (model_id, embedding_type, num_embeddings, dimension)"
        " VALUES (%s, 'token', 256, 8), (%s, 'position', 64, 8)",
        [model, model],
    )
    row = conn.execute(
        "SELECT model_name, layer_count, head_count, hidden_size, num_heads, num_kv_heads,"
        " vocabulary_size, aliases FROM v_model_architecture"
    ).fetchall()
    assert row == [("base", 2, 4, 8, 2, 1, 256, ["a", "b"])]


def test_deleting_a_model_takes_its_rows_along_but_no_tensor(conn: Connection) -> None:
    model, tensor = new_model(conn), new_tensor(conn)
    conn.execute(
        "INSERT INTO model_weights (model_id, tensor_name, tensor_id) VALUES (%s, 'w', %s)",
        [model, tensor],
    )
    conn.execute("DELETE FROM models")
    assert one(conn, "SELECT count(*) FROM model_weights") == 0
    assert one(conn, "SELECT count(*) FROM tensor_metadata") == 1


# Reactors.


def test_a_model_and_its_reactor_come_in_any_order(database: str) -> None:
    model = uuid4()
    with connect(database) as conn, conn.transaction():
        new_reactor(conn, model)
        conn.execute(
            "INSERT INTO models (id, model_name, version, model_type, architecture_config)"
            " VALUES (%s, 'late', '1', 'other', '{}')",
            [model],
        )
    with connect(database) as conn:
        with pytest.raises(errors.ForeignKeyViolation):
            conn.execute("DELETE FROM models")
        with conn.transaction():
            conn.execute("DELETE FROM models")
            conn.execute("DELETE FROM cognitive_fusion_reactors")


def test_a_model_is_a_member_once(conn: Connection) -> None:
    model = new_model(conn)
    with pytest.raises(errors.UniqueViolation):
        new_reactor(conn, model, model)


def test_members_can_change_places_in_one_statement(conn: Connection) -> None:
    new_reactor(conn, new_model(conn, "a"), new_model(conn, "b"))
    conn.execute("UPDATE reactor_models SET ordinal = 1 - ordinal")
    conn.execute("SET CONSTRAINTS ALL IMMEDIATE")


@pytest.mark.parametrize(
    "change", ["role = 'first'", "weight = 'NaN'", "weight = 'Infinity'", "ordinal = -1"]
)
def test_a_member_takes_only_what_is_allowed(conn: Connection, change: str) -> None:
    new_reactor(conn, new_model(conn))
    refuses(conn, errors.CheckViolation, f"UPDATE reactor_models SET {change}")


def test_interactions_are_between_two_members(conn: Connection) -> None:
    one_, other, stranger = (new_model(conn, name) for name in ("a", "b", "c"))
    reactor = new_reactor(conn, one_, other)
    query = """
        INSERT INTO model_interaction_graph
            (reactor_id, from_model_id, to_model_id, interaction_kind)
        VALUES (%s, %s, %s, %s)
    """
    conn.execute(query.encode(), [reactor, one_, other, "validates"])
    refuses(conn, errors.CheckViolation, query, reactor, one_, one_, "validates")
    refuses(conn, errors.CheckViolation, query, reactor, other, one_, "likes")
    refuses(conn, errors.UniqueViolation, query, reactor, one_, other, "validates")
    refuses(conn, errors.ForeignKeyViolation, query, reactor, one_, stranger, "validates")
    conn.execute("DELETE FROM cognitive_fusion_reactors")
    conn.execute("SET CONSTRAINTS ALL IMMEDIATE")


def test_only_a_merge_produces_a_model(conn: Connection) -> None:
    model = new_model(conn)
    reactor = new_reactor(conn, model, kind="cascade")
    change = "UPDATE cognitive_fusion_reactors SET produces_model_id = %s"
    refuses(conn, errors.CheckViolation, change, model)
    conn.execute("UPDATE cognitive_fusion_reactors SET reactor_type = 'merge'")
    conn.execute(change.encode(), [model])
    conn.execute("DELETE FROM reactor_models WHERE reactor_id = %s", [reactor])
    conn.execute("DELETE FROM models")
    assert one(conn, "SELECT produces_model_id FROM cognitive_fusion_reactors") is None


def test_lineage_outlives_the_models_and_the_reactor(conn: Connection) -> None:
    model = new_model(conn)
    reactor = new_reactor(conn, kind="merge")
    operation = one(
        conn,
        "INSERT INTO fusion_operations (reactor_id, reactor_name, operation_type, status,"
        " strategy_name, output_model_id, output_model_name, output_model_version, output_root,"
        " started_at, finished_at)"
        " VALUES (%s, 'story', 'merge', 'completed', 'linear', %s, 'base', '1', %s, now(), now())"
        " RETURNING id",
        reactor,
        model,
        digest("out"),
    )
    conn.execute(
        "INSERT INTO fusion_operation_inputs VALUES (%s, 0, 'a', '1', %s, 'primary', false, 1)",
        [operation, digest("in")],
    )
    conn.execute("DELETE FROM cognitive_fusion_reactors")
    conn.execute("DELETE FROM models")
    assert conn.execute(
        "SELECT reactor_id, reactor_name, output_model_id, output_model_name, root"
        " FROM fusion_operations JOIN fusion_operation_inputs ON operation_id = id"
    ).fetchall() == [(None, "story", None, "base", digest("in"))]


def test_a_finished_operation_has_a_time_and_a_failed_one_an_error(conn: Connection) -> None:
    query = """
        INSERT INTO fusion_operations (operation_type, status, strategy_name, finished_at, error)
        VALUES ('merge', %s, 'linear', %s, %s)
    """
    refuses(conn, errors.CheckViolation, query, "completed", None, None)
    refuses(conn, errors.CheckViolation, query, "pending", "now", None)
    refuses(conn, errors.CheckViolation, query, "failed", "now", None)
    conn.execute(query.encode(), ["failed", "now", "disk full"])


def test_the_status_view_shows_members_and_operations(conn: Connection) -> None:
    reactor = new_reactor(conn, new_model(conn, "b"), new_model(conn, "a"))
    conn.execute(
        "INSERT INTO fusion_operations (reactor_id, operation_type, status, strategy_name,"
        " created_at, started_at, finished_at, error) VALUES"
        " (%(id)s, 'ensemble', 'completed', 's', '2000-01-01', '2000-01-01 00:00:00',"
        "  '2000-01-01 00:00:02', NULL),"
        " (%(id)s, 'ensemble', 'failed', 's', '2000-01-02', '2000-01-02', '2000-01-02', 'bang'),"
        " (%(id)s, 'ensemble', 'processing', 's', '2000-01-01', '2000-01-01', NULL, NULL)",
        {"id": reactor},
    )
    assert conn.execute(
        "SELECT reactor_name, member_count, members, interaction_count, operation_count,"
        " running_count, completed_count, failed_count, mean_seconds, last_operation_status,"
        " last_error FROM v_reactor_status"
    ).fetchall() == [("story", 2, ["b@1.0.0", "a@1.0.0"], 0, 3, 1, 1, 1, 2.0, "failed", "bang")]


# Training.


def test_a_step_that_is_logged_again_replaces_the_point(conn: Connection) -> None:
    session = new_session(conn)
    series = one(
        conn,
        "INSERT INTO training_series (session_id, metric_key) VALUES (%s, 'loss') RETURNING id",
        session,
    )
    query = """
        INSERT INTO training_metrics (series_id, step, value) VALUES (%s, 1, %s)
        ON CONFLICT (series_id, step) DO UPDATE SET value = excluded.value
    """
    for value in (1.5, float("nan"), float("-inf")):
        conn.execute(query.encode(), [series, value])
    assert one(conn, "SELECT array_agg(value) FROM training_metrics") == [float("-inf")]


NEW_SERIES = "INSERT INTO training_series (session_id, metric_key) VALUES (%s, %s) RETURNING id"
NEW_POINT = "INSERT INTO training_metrics (series_id, step, value) VALUES (%s, %s, 0)"


def test_points_have_a_series_and_go_with_it(conn: Connection) -> None:
    session = new_session(conn)
    kept, gone = (one(conn, NEW_SERIES, session, key) for key in ("kept", "gone"))
    conn.cursor().executemany(NEW_POINT, [(kept, 1), (gone, 1), (gone, 2)])
    for statement in (
        "INSERT INTO training_metrics (series_id, step, value) VALUES (%s, 3, 0), (-1, 3, 0)",
        "UPDATE training_metrics SET series_id = -1 WHERE series_id = %s",
    ):
        with pytest.raises(errors.ForeignKeyViolation), conn.transaction():
            conn.execute(statement.encode(), [kept])
    conn.execute("DELETE FROM training_series WHERE id = %s", [gone])
    assert one(conn, "SELECT array_agg(series_id) FROM training_metrics") == [kept]
    conn.execute("DELETE FROM training_sessions WHERE id = %s", [session])
    assert one(conn, "SELECT count(*) FROM training_metrics") == 0


def test_a_series_is_deleted_with_the_points_that_come_meanwhile(database: str) -> None:
    with psycopg.connect(database) as writer, psycopg.connect(database) as deleter:
        series = one(writer, NEW_SERIES, new_session(writer), "loss")
        writer.commit()
        writer.execute(NEW_POINT, [series, 1])
        with ThreadPoolExecutor() as pool:
            deleting = pool.submit(deleter.execute, "DELETE FROM training_series")
            wait_until_blocked(writer, deleter.info.backend_pid)
            writer.commit()
            deleting.result(60)
        deleter.commit()
        assert one(writer, "SELECT count(*) FROM training_metrics") == 0
        with pytest.raises(errors.ForeignKeyViolation):
            writer.execute(NEW_POINT, [series, 2])


def wait_until_blocked(conn: Connection, pid: int) -> None:
    while not one(conn, "SELECT pg_blocking_pids(%s) <> '{}'", pid):
        time.sleep(0.01)


def test_progress_counts_steps_before_epochs(conn: Connection) -> None:
    new_session(conn, session_name="steps", current_step=5, total_steps=20, total_epochs=2)
    new_session(conn, session_name="epochs", current_epoch=1.5, total_epochs=2)
    new_session(conn, session_name="done", status="completed", finished_at="now")
    new_session(conn, session_name="unknown")
    progress = dict(conn.execute("SELECT session_name, progress FROM v_training_progress"))
    assert progress == {"steps": 0.25, "epochs": 0.75, "done": 1.0, "unknown": None}


def test_progress_shows_the_last_loss_and_the_checkpoints(conn: Connection) -> None:
    session = new_session(conn)
    series = one(
        conn,
        "INSERT INTO training_series (session_id, metric_key) VALUES (%s, 'loss') RETURNING id",
        session,
    )
    conn.execute(
        "INSERT INTO training_metrics (series_id, step, value) VALUES (%(s)s, 1, 3), (%(s)s, 2, 2)",
        {"s": series},
    )
    best = new_checkpoint(conn, session, 1, is_best=True)
    latest = new_checkpoint(conn, session, 2)
    assert conn.execute(
        "SELECT series_count, last_loss_step, last_loss, checkpoint_count, latest_checkpoint_id,"
        " best_checkpoint_id, best_metric FROM v_training_progress"
    ).fetchall() == [(1, 2, 2.0, 2, latest, best, "loss")]


def test_the_latest_checkpoint_is_that_of_the_highest_step(conn: Connection) -> None:
    session = new_session(conn)
    latest = "SELECT get_latest_checkpoint(%s)"
    assert one(conn, latest, session) is None
    tenth = new_checkpoint(conn, session, 10)
    new_checkpoint(conn, session, 9)
    new_checkpoint(conn, new_session(conn), 99)
    assert one(conn, latest, session) == tenth


def test_one_checkpoint_of_a_session_is_the_best(conn: Connection) -> None:
    session = new_session(conn)
    new_checkpoint(conn, session, 1, is_best=True)
    with pytest.raises(errors.UniqueViolation):
        new_checkpoint(conn, session, 2, is_best=True)


def test_a_checkpoint_keeps_its_weights(conn: Connection) -> None:
    weights = new_weight_set(conn)
    query = """
        INSERT INTO model_checkpoints
            (session_id, step, checkpoint_type, weight_set_id, root, size_bytes)
        VALUES (%s, 1, %s, %s, %s, 24)
    """
    session = new_session(conn)
    refuses(conn, errors.CheckViolation, query, session, "full", None, None)
    refuses(conn, errors.CheckViolation, query, session, "optimizer_only", weights, digest("set"))
    conn.execute(query.encode(), [session, "full", weights, digest("set")])
    refuses(conn, errors.ForeignKeyViolation, "DELETE FROM weight_sets")


def test_a_leaf_of_state_is_a_tensor_or_a_value(conn: Connection) -> None:
    checkpoint = new_checkpoint(conn, new_session(conn), 1)
    tensor = new_tensor(conn)
    query = """
        INSERT INTO optimizer_state (checkpoint_id, ordinal, path, tensor_id, value)
        VALUES (%s, %s, '["state", 0, "exp_avg"]', %s, %s)
    """
    conn.execute(query.encode(), [checkpoint, 0, tensor, None])
    conn.execute(query.encode(), [checkpoint, 1, None, Jsonb(0.9)])
    conn.execute(query.encode(), [checkpoint, 2, tensor, Jsonb({"as": "torch"})])
    refuses(conn, errors.CheckViolation, query, checkpoint, 3, None, None)


# Inference.


def test_a_generation_of_the_cache_is_emptied_whole(conn: Connection) -> None:
    for generation in (0, 1):
        conn.execute(
            "INSERT INTO kv_cache (block_key, generation, weights_root, block_index, token_count,"
            " tokens, digest, codec, codec_version, part_count, raw_bytes, stored_bytes)"
            " VALUES (%s, %s, %s, 0, 1, 'four', %s, 'raw', 1, 1, 3, 3)",
            [digest("key"), generation, digest("root"), digest("raw")[:16]],
        )
        conn.execute(
            "INSERT INTO kv_cache_bodies VALUES (%s, %s, 0, 'raw')", [digest("key"), generation]
        )
    conn.execute("TRUNCATE kv_cache_g0, kv_cache_bodies_g0")
    assert one(conn, "SELECT array_agg(generation) FROM kv_cache") == [1]
    assert one(conn, "SELECT array_agg(generation) FROM kv_cache_bodies") == [1]


def test_nothing_of_the_cache_is_logged_but_its_counters(conn: Connection) -> None:
    logged = conn.execute("""
        SELECT relname FROM pg_class
        WHERE relname LIKE 'kv_cache%' AND relkind = 'r' AND relpersistence <> 'u'
    """).fetchall()
    assert logged == [("kv_cache_counters",)]


def test_cached_bodies_are_unlogged_and_not_compressed(conn: Connection) -> None:
    assert conn.execute("""
        SELECT DISTINCT c.relpersistence, a.attstorage
        FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'body'
        WHERE c.relispartition AND c.relkind = 'r'
    """).fetchall() == [("u", "e")]


INSERT_PATTERN = """
    INSERT INTO attention_patterns (capture_id, layer_index, head_index,
        query_count, key_count, is_causal, dtype, entropy, sink_mass, peak, packed)
    VALUES (%s, 0, 0, 3, %s, %s, %s, '{0,0,0}', '{1,1,1}', '{1,1,1}', %s)
"""


def new_capture(conn: Connection) -> UUID:
    query = """
        INSERT INTO attention_captures (input_digest, sequence_index, token_count, size_bytes)
        VALUES (%s, 0, 3, 0) RETURNING id
    """
    found = one(conn, query, digest("in"))
    assert isinstance(found, UUID)
    return found


@pytest.mark.parametrize(("dtype", "letter"), [("F32", "f"), ("F16", "e")])
def test_the_attention_of_one_token_is_read_alone(
    conn: Connection, dtype: str, letter: str
) -> None:
    capture = new_capture(conn)
    triangle = struct.pack(f"<6{letter}", 1.0, 0.25, 0.75, 0.5, 0.125, 0.375)
    conn.execute(INSERT_PATTERN.encode(), [capture, 3, True, dtype, triangle])
    for query, expected in enumerate(([1.0], [0.25, 0.75], [0.5, 0.125, 0.375], None)):
        assert one(conn, "SELECT attention_row(%s, 0, 0, %s)", capture, query) == expected
    for layer, head, query in ((1, 0, 0), (0, 1, 0), (0, 0, -1)):
        assert (
            one(conn, "SELECT attention_row(%s, %s, %s, %s)", capture, layer, head, query) is None
        )


def test_attention_goes_with_its_capture_and_its_session(conn: Connection) -> None:
    capture = new_capture(conn)
    conn.execute(INSERT_PATTERN.encode(), [capture, 3, True, "F16", bytes(12)])
    session = one(
        conn,
        "INSERT INTO inference_sessions (model_name, model_version) VALUES ('m', '1') RETURNING id",
    )
    conn.execute(b"UPDATE attention_captures SET session_id = %s", [session])
    conn.execute(b"DELETE FROM inference_sessions")
    assert one(conn, "SELECT count(*) FROM attention_patterns") == 0


@pytest.mark.parametrize(
    ("keys", "is_causal", "floats"), [(3, True, 6), (3, False, 9), (5, True, 12), (5, False, 15)]
)
def test_packed_attention_has_the_length_of_its_shape(
    conn: Connection, keys: int, is_causal: bool, floats: int
) -> None:
    values = [new_capture(conn), keys, is_causal, "F32"]
    for wrong in (floats - 1, floats + 1):
        refuses(conn, errors.CheckViolation, INSERT_PATTERN, *values, bytes(4 * wrong))
    conn.execute(INSERT_PATTERN.encode(), [*values, bytes(4 * floats)])
