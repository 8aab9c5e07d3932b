"""Collection takes what nothing refers to, all of it, and never anything else."""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from arc_halo.store import builds, collection, simulation
from arc_halo.store.connection import Connection
from arc_halo.types import TensorInfo
from arc_halo.weights.building import Recipe, build
from arc_halo.weights.collecting import Collected, collect, simulate
from arc_halo.weights.reading import read_array
from arc_halo.weights.store import OpenBodies, WeightStore
from tests.weights.sets import made, noise, stored

NOW = timedelta(0)
Sql = Callable[..., list[tuple[Any, ...]]]
Tensors = Mapping[str, bytes]

TIMES = (
    ("chunk_bodies", "seen_at"),
    ("tensor_metadata", "created_at"),
    ("weight_sets", "completed_at"),
    ("weight_builds", "started_at"),
    ("weight_builds", "heartbeat_at"),
)
HOLDERS = {
    "weight_sets": "FREE_SETS",
    "tensor_metadata": "FREE_TENSORS",
    "chunk_bodies": "FREE_CHUNKS",
}

PARTS = {
    ("weight_sets", "weight_set_tensors", "weight_set_id"),
    ("weight_sets", "weight_builds", "weight_set_id"),
    ("weight_sets", "loaded_weights", "weight_set_id"),
    ("tensor_metadata", "embedding_indexes", "tensor_id"),
    ("tensor_metadata", "tensor_data", "tensor_id"),
}
"""What goes with what it refers to, and keeps nothing."""


def point(sql: Sql, model: str, root: bytes | None) -> None:
    """Make a model, or move it, to the weights of this root, with its history."""
    sql(
        """
        WITH model AS (
            INSERT INTO models (model_name, version, model_type, architecture_config,
                                weight_set_id, status)
            SELECT %s, '1', 'other', '{}', s.id,
                   CASE WHEN s.id IS NULL THEN 'registered' ELSE 'ready' END
            FROM (SELECT) AS one LEFT JOIN weight_sets AS s ON s.root = %s
            ON CONFLICT (model_name, version) DO UPDATE
            SET weight_set_id = excluded.weight_set_id, status = excluded.status
            RETURNING id, weight_set_id)
        INSERT INTO model_weight_history (model_id, weight_set_id, root)
        SELECT model.id, weight_set_id, root
        FROM model JOIN weight_sets ON weight_sets.id = weight_set_id RETURNING id
        """,
        model,
        root,
    )


def delete_model(sql: Sql, model: str) -> None:
    sql("DELETE FROM models WHERE model_name = %s RETURNING id", model)


def counts(sql: Sql) -> dict[str, int]:
    tables = ("weight_builds", "weight_sets", "tensor_metadata", "tensor_data", "chunk_bodies")
    return {table: sql(f"SELECT count(*) FROM {table}")[0][0] for table in tables}


FIRST = {"own": noise("a", 700_000), "both": noise("b", 600_000), "small": b"a"}
SECOND = {"mine": noise("c", 300_000), "both": noise("b", 600_000), "tiny": b"b"}


def collected(store: WeightStore, **settings: Any) -> Collected:
    """Collect. What comes out was told beforehand, and nothing is left to do."""
    asked = {k: v for k, v in settings.items() if k != "batch"}
    expected = simulate(store, **asked)
    assert simulate(store, **asked) == expected
    done = collect(store, **settings)
    assert done == expected
    assert simulate(store, **asked) == Collected()
    return done


@pytest.fixture
def age(tamper: Callable[..., int]) -> Callable[[str], None]:
    """Lets time pass, in immutable tables too."""

    def aged(by: str) -> None:
        for table, column in TIMES:
            tamper(f"UPDATE {table} SET {column} = {column} - %s::interval", by)

    return aged


def test_every_foreign_key_is_accounted_for(conn: Connection) -> None:
    """A table that comes to refer to a set, a tensor or a chunk keeps it, or goes with it."""
    keys = conn.execute(
        """
        SELECT target.relname, source.relname, attribute.attname, con.confdeltype::text,
               con.conparentid <> 0
        FROM pg_constraint AS con
        JOIN pg_class AS target ON target.oid = con.confrelid
        JOIN pg_class AS source ON source.oid = con.conrelid
        JOIN pg_attribute AS attribute
          ON attribute.attrelid = con.conrelid AND attribute.attnum = ANY(con.conkey)
        WHERE con.contype = 'f' AND target.relname = ANY(%s)
        """,
        [list(HOLDERS)],
    ).fetchall()
    found = set()
    for target, table, column, on_delete, is_of_partition in keys:
        if is_of_partition:
            continue
        found.add((target, table, column))
        if on_delete == "c":
            assert (target, table, column) in PARTS
            continue
        constant = HOLDERS[str(target)]
        looked_up = rf"NOT EXISTS \(SELECT FROM {table} AS r\s+WHERE r\.{column} = "
        assert re.search(looked_up, getattr(collection, constant)), (table, column, constant)
        simulated = rf"SELECT {column}( AS \w+)? FROM {table}\b"
        assert re.search(simulated, simulation.SIMULATION), (table, column, "SIMULATION")
    assert found >= PARTS
    assert {target for target, *_ in found} == HOLDERS.keys()
    assert len(found) >= 13


def test_what_a_deleted_model_alone_had_goes_and_what_it_shared_stays(
    store: WeightStore, sql: Sql
) -> None:
    first, second = made(store, FIRST), made(store, SECOND)
    point(sql, "first", first)
    point(sql, "second", second)
    before = counts(sql)
    assert collected(store, grace=NOW) == Collected()
    assert counts(sql) == before
    delete_model(sql, "first")
    ((freed,),) = sql(
        """
        SELECT sum(stored_bytes) FROM chunk_bodies WHERE digest NOT IN
        (SELECT chunk_digest FROM tensor_data JOIN weight_set_tensors USING (tensor_id)
         JOIN weight_sets AS s ON s.id = weight_set_id WHERE s.root = %s)
        """,
        second,
    )
    done = collected(store, grace=NOW)
    assert asdict(done) == {
        "builds": 1,
        "history_entries": 0,
        "weight_sets": 1,
        "tensors": 2,
        "chunks": 4,
        "tokenizers": 0,
        "fused_tensors": 0,
        "bodies": 0,
        "freed_bytes": freed,
    }
    assert stored(store, second) == SECOND
    delete_model(sql, "second")
    collected(store, grace=NOW)
    assert set(counts(sql).values()) == {0}


@pytest.mark.parametrize("batch", [1, 2, 1000])
def test_pages_of_any_size_find_everything(store: WeightStore, sql: Sql, batch: int) -> None:
    keep = made(store, {f"k{i}": noise(f"k{i % 3}", 10 + i % 3) for i in range(9)})
    point(sql, "keep", keep)
    for part in range(3):
        made(store, {f"t{i}": noise(f"{part}/{i}", 300_000 if i == 0 else 9) for i in range(5)})
    done = collected(store, grace=NOW, batch=batch)
    assert (done.weight_sets, done.tensors, done.chunks) == (3, 15, 18)
    assert counts(sql) == {
        "weight_builds": 1,
        "weight_sets": 1,
        "tensor_metadata": 3,
        "tensor_data": 3,
        "chunk_bodies": 3,
    }


def test_the_young_stay_until_the_grace_period_is_over(
    store: WeightStore, sql: Sql, age: Callable[[str], None]
) -> None:
    made(store, FIRST)
    before = counts(sql)
    assert collected(store) == Collected()
    assert counts(sql) == before
    age("23 hours")
    assert collected(store) == Collected()
    age("2 hours")
    collected(store)
    assert set(counts(sql).values()) == {0}


def test_each_kind_of_row_has_a_grace_period_of_its_own(
    store: WeightStore, sql: Sql, tamper: Callable[..., int]
) -> None:
    made(store, FIRST)
    for table, column in TIMES:
        assert collected(store) == Collected()
        tamper(f"UPDATE {table} SET {column} = {column} - interval '25 hours'")
    collected(store)
    assert set(counts(sql).values()) == {0}
    made(store, FIRST)
    tamper("DELETE FROM weight_set_tensors")
    tamper("DELETE FROM weight_sets")
    tamper("UPDATE chunk_bodies SET seen_at = seen_at - interval '25 hours'")
    assert collected(store) == Collected()
    tamper("UPDATE tensor_metadata SET created_at = created_at - interval '25 hours'")
    assert collected(store).tensors == len(FIRST)


def test_what_is_made_again_of_old_parts_is_young(
    store: WeightStore, sql: Sql, age: Callable[[str], None]
) -> None:
    made(store, FIRST, "one recipe")
    age("25 hours")
    root = made(store, FIRST, "another recipe")
    done = collected(store)
    assert (done.weight_sets, done.tensors, done.chunks) == (0, 0, 0)
    assert stored(store, root) == FIRST


class Killed(Exception):
    """Stands for whatever ends an importer."""


def interrupted(store: WeightStore, tensors: Tensors, at: str, key: str = "k") -> None:
    def produce(info: TensorInfo) -> list[bytes]:
        if info.name == at:
            raise Killed
        return [tensors[info.name]]

    infos = [
        TensorInfo(name=name, dtype="U8", shape=(len(raw),), size_bytes=len(raw))
        for name, raw in tensors.items()
    ]
    recipe = Recipe(purpose="write", key=hashlib.sha256(key.encode()).digest(), recipe={})
    with pytest.raises(Killed):
        build(store, recipe, infos, produce)


def test_a_build_that_is_alive_keeps_all_it_may_count_on(
    make_store: Callable[..., WeightStore], sql: Sql, age: Callable[[str], None]
) -> None:
    store = make_store(threads=1)
    made(store, SECOND)
    age("20 minutes")
    interrupted(store, FIRST, "small")
    age("50 minutes")
    # `SECOND` was last wanted before the build began, all else since.
    done = collected(store, grace=NOW)
    assert (done.builds, done.weight_sets, done.tensors) == (1, 1, 2)
    assert sql(
        "SELECT count(*) FROM weight_set_tensors JOIN weight_builds USING (weight_set_id)"
    ) == [(2,)]
    made(store, FIRST, "k")
    assert sql("SELECT count(*) FROM weight_builds") == [(1,)]


def test_a_build_that_nobody_works_at_goes_after_an_hour_at_least(
    make_store: Callable[..., WeightStore], sql: Sql, age: Callable[[str], None]
) -> None:
    store = make_store(threads=1)
    interrupted(store, FIRST, "small")
    age("59 minutes")
    assert collected(store, grace=NOW) == Collected()
    age("2 minutes")
    assert collected(store, grace=timedelta(hours=2)) == Collected()
    assert collected(store, grace=NOW).builds == 1
    assert set(counts(sql).values()) == {0}


def test_a_build_that_failed_goes_with_the_grace_period(
    make_store: Callable[..., WeightStore], sql: Sql, age: Callable[[str], None]
) -> None:
    store = make_store(threads=1)
    interrupted(store, FIRST, "small")
    sql("UPDATE weight_builds SET status = 'failed', finished_at = now() RETURNING id")
    assert collected(store) == Collected()
    assert collected(store, grace=NOW).builds == 1
    assert set(counts(sql).values()) == {0}


def test_history_keeps_the_last_distinct_sets_and_the_one_in_use(
    store: WeightStore, sql: Sql
) -> None:
    roots = [made(store, {"t": noise(f"v{i}", 50)}) for i in range(6)]
    for i in (0, 1, 2, 3, 4, 5, 4, 5, 4, 0):
        point(sql, "m", roots[i])
    done = collected(store, grace=NOW, retain_revisions=3)
    # Kept: 0, which it has now, 4 and 5. Let go: 1, 2 and 3.
    assert (done.history_entries, done.weight_sets) == (3, 3)
    entries = sql("SELECT root, weight_set_id IS NULL FROM model_weight_history ORDER BY id")
    gone = {bytes(root) for root, is_gone in entries if is_gone}
    assert (len(entries), gone) == (10, set(roots[1:4]))


def test_history_keeps_what_any_model_has_now(store: WeightStore, sql: Sql) -> None:
    roots = [made(store, {"t": noise(f"v{i}", 50)}) for i in range(3)]
    for root in roots:
        point(sql, "m", root)
    point(sql, "n", roots[0])
    done = collected(store, grace=NOW, retain_revisions=1)
    assert (done.history_entries, done.weight_sets) == (1, 1)
    assert stored(store, roots[0]) == {"t": noise("v0", 50)}


@pytest.mark.parametrize("batch", [1, 3])
def test_long_histories_are_let_go_in_batches(store: WeightStore, sql: Sql, batch: int) -> None:
    for model in ("a", "b"):
        for i in range(6):
            point(sql, model, made(store, {"t": noise(f"{model}{i}", 50)}))
    done = collected(store, grace=NOW, retain_revisions=2, batch=batch)
    assert (done.history_entries, done.weight_sets, done.chunks) == (8, 8, 8)


def test_a_checkpoint_keeps_its_weights_and_its_state(store: WeightStore, sql: Sql) -> None:
    root = made(store, FIRST)
    made(store, {"momentum": noise("m", 300_000), "other": b"o"})
    sql(
        """
        WITH session AS (
            INSERT INTO training_sessions (model_name, model_version) VALUES ('m', '1')
            RETURNING id
        ), checkpoint AS (
            INSERT INTO model_checkpoints (session_id, step, checkpoint_type, weight_set_id,
                                           root, size_bytes)
            SELECT session.id, 1, 'full', s.id, s.root, 0
            FROM session, weight_sets AS s WHERE s.root = %s RETURNING id
        )
        INSERT INTO optimizer_state (checkpoint_id, ordinal, path, tensor_id)
        SELECT checkpoint.id, 0, 'state.0', t.id
        FROM checkpoint, tensor_metadata AS t WHERE t.size_bytes = 300000 RETURNING 1
        """,
        root,
    )
    done = collected(store, grace=NOW)
    assert (done.weight_sets, done.tensors, done.chunks) == (1, 1, 1)
    assert stored(store, root) == FIRST
    sql("DELETE FROM training_sessions RETURNING id")
    collected(store, grace=NOW)
    assert set(counts(sql).values()) == {0}


@pytest.fixture
def delta(store: WeightStore, sql: Sql) -> tuple[bytes, bytes]:
    """The roots of a base and of a set of deltas against it, pointed to by models."""
    base = noise("base", 600_000)
    tuned = bytes(byte ^ (place % 97 == 0) for place, byte in enumerate(base))
    first = made(store, {"t": base})
    second = made(store, {"t": tuned}, delta_from=first)
    point(sql, "base", first)
    point(sql, "tuned", second)
    assert sql("SELECT count(*) FROM chunk_bodies WHERE base_digest IS NOT NULL") == [(3,)]
    return first, second


def test_a_base_stays_as_long_as_its_deltas(
    store: WeightStore, sql: Sql, delta: tuple[bytes, bytes]
) -> None:
    delete_model(sql, "base")
    done = collected(store, grace=NOW)
    assert (done.weight_sets, done.tensors, done.chunks) == (1, 1, 0)
    with store.pool.connection() as conn:
        (row,) = builds.set_tensors(conn, builds.sets_by_root(conn, [delta[1]])[delta[1]].id)
    assert read_array(store, row, "t").size == 600_000
    delete_model(sql, "tuned")
    assert collected(store, grace=NOW).chunks == 6
    assert set(counts(sql).values()) == {0}


@pytest.mark.parametrize("batch", [1, 1000])
def test_deltas_go_before_what_they_were_taken_against(
    store: WeightStore, sql: Sql, delta: tuple[bytes, bytes], batch: int
) -> None:
    delete_model(sql, "tuned")
    assert collected(store, grace=NOW, batch=batch).chunks == 3
    assert stored(store, delta[0]) == {"t": noise("base", 600_000)}


class Bodies:
    """A body store in memory."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.before_page: Callable[[], None] = lambda: None

    def put(self, bodies: Mapping[bytes, bytes | memoryview]) -> None:
        self.kept |= {digest: bytes(body) for digest, body in bodies.items()}

    def get(self, digests: Sequence[bytes]) -> Mapping[bytes, bytes | memoryview]:
        return {digest: self.kept[digest] for digest in digests if digest in self.kept}

    def pages(self, *, older_than: timedelta) -> Iterator[Sequence[bytes]]:
        listed = sorted(self.kept)
        for start in range(0, len(listed), 2):
            yield listed[start : start + 2]
            self.before_page()

    def delete(self, digests: Sequence[bytes]) -> None:
        for digest in digests:
            self.kept.pop(digest, None)

    def claim(self, marker: str) -> str:
        return marker


@pytest.fixture
def elsewhere(make_store: Callable[..., WeightStore], sql: Sql) -> tuple[WeightStore, Bodies]:
    bodies = Bodies()
    ((store_id,),) = sql(
        "INSERT INTO body_stores (kind, url) VALUES ('object', 'memory:') RETURNING id"
    )
    return make_store(bodies=OpenBodies(store_id=store_id, bodies=bodies)), bodies


def test_bodies_elsewhere_go_with_their_chunks_and_so_do_orphans(
    elsewhere: tuple[WeightStore, Bodies], sql: Sql
) -> None:
    store, bodies = elsewhere
    first, second = made(store, FIRST), made(store, SECOND)
    point(sql, "first", first)
    point(sql, "second", second)
    assert collected(store, grace=NOW) == Collected()
    bodies.put(
        {noise(f"orphan{i}", 32): b"left by an upload that never committed" for i in range(5)}
    )
    delete_model(sql, "first")
    done = collected(store, grace=NOW)
    assert (done.chunks, done.bodies) == (4, 9)
    assert bodies.kept.keys() == {bytes(d) for (d,) in sql("SELECT digest FROM chunk_bodies")}
    assert stored(store, second) == SECOND


def test_bodies_that_another_store_has_now_are_orphans(
    elsewhere: tuple[WeightStore, Bodies], make_store: Callable[..., WeightStore], sql: Sql
) -> None:
    store, bodies = elsewhere
    root = made(make_store(), FIRST)
    point(sql, "first", root)
    digests = [bytes(d) for (d,) in sql("SELECT digest FROM chunk_bodies")]
    bodies.put(dict.fromkeys(digests, b"moved into the database since"))
    assert collected(store, grace=NOW).bodies == len(digests)
    assert bodies.kept == {}
    assert stored(store, root) == FIRST


LOOKED_UP = ("chunk_bodies", "tensor_data", "weight_set_tensors", "tensor_metadata")


@pytest.mark.parametrize("analysed", [False, True])
@pytest.mark.parametrize("name", ["TENSOR_PAGE", "FREE_TENSORS", "CHUNK_PAGE", "FREE_CHUNKS"])
def test_a_sweep_reads_its_page_and_not_the_table(
    database: str, sql: Sql, name: str, analysed: bool
) -> None:
    """Whether the planner knows the tables or not."""
    grow(sql, tensors=8_000, chunks_each=2)
    with psycopg.connect(database, autocommit=True) as conn:
        if analysed:
            conn.execute("ANALYZE")
        plan = explained(conn, name)
    assert "Index" in plan
    assert [table for table in LOOKED_UP if f"Seq Scan on {table}" in plan] == [], plan


@pytest.mark.campaign
def test_a_large_database_is_swept_in_short_statements(
    database: str, make_store: Callable[..., WeightStore], sql: Sql
) -> None:
    """Prints the plans and times of 100,000 tensors of 500,000 chunks, half of them garbage."""
    store = make_store()
    grow(sql, tensors=100_000, chunks_each=5)
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("ANALYZE")
        for name in ("TENSOR_PAGE", "FREE_TENSORS", "CHUNK_PAGE", "FREE_CHUNKS"):
            said(name, explained(conn, name, "(ANALYZE, BUFFERS, COSTS OFF)"))
    began = time.monotonic()
    simulate(store, grace=NOW)
    said(f"simulation {time.monotonic() - began:.1f} s")
    began = time.monotonic()
    assert collect(store, grace=NOW).chunks == 250_000
    said(f"collection {time.monotonic() - began:.1f} s")
    began = time.monotonic()
    assert collect(store, grace=NOW) == Collected()
    said(f"collection of nothing {time.monotonic() - began:.1f} s")


def said(*lines: str) -> None:
    sys.stdout.write("\n".join((*lines, "")))


def grow(sql: Sql, *, tensors: int, chunks_each: int, in_use: float = 0.5) -> None:
    """Tensors of one-byte chunks, `in_use` of them in weight sets of a hundred each."""
    given = {"tensors": tensors, "each": chunks_each, "used": int(tensors * in_use)}
    for statement in GROWTH:
        for name, number in given.items():
            statement = statement.replace(f"%({name})s", str(number))
        sql(statement)


GROWTH = (
    """
    WITH new AS (
        INSERT INTO chunk_bodies (digest, raw_bytes, stored_bytes, codec, codec_version, body)
        SELECT sha256(int8send(t * 1000::bigint + c)), 1, 1, 'raw', 1, 'x'
        FROM generate_series(1, %(tensors)s) AS t, generate_series(1, %(each)s) AS c RETURNING 1)
    SELECT count(*) FROM new
    """,
    """
    WITH new AS (
        INSERT INTO tensor_metadata (digest, dtype, shape, element_count, size_bytes, chunk_bytes,
                                     chunk_count)
        SELECT sha256(int8send(t::bigint)), 'U8', ARRAY[%(each)s], %(each)s, %(each)s, 1, %(each)s
        FROM generate_series(1, %(tensors)s) AS t ORDER BY t RETURNING 1)
    SELECT count(*) FROM new
    """,
    """
    WITH new AS (
        INSERT INTO tensor_data (tensor_id, chunk_index, chunk_digest)
        SELECT t.id, c - 1, sha256(int8send(t.number * 1000::bigint + c))
        FROM (SELECT id, row_number() OVER (ORDER BY id) AS number FROM tensor_metadata) AS t,
             generate_series(1, %(each)s) AS c RETURNING 1)
    SELECT count(*) FROM new
    """,
    """
    WITH sets AS (
        INSERT INTO weight_sets (root, tensor_count, parameter_count, size_bytes)
        SELECT sha256(int8send(n::bigint)), 100, 1, 1
        FROM generate_series(0, (%(used)s - 1) / 100) AS n ORDER BY n RETURNING 1)
    SELECT count(*) FROM sets
    """,
    """
    WITH new AS (
        INSERT INTO weight_set_tensors (weight_set_id, ordinal, tensor_name, tensor_id)
        SELECT (SELECT min(id) FROM weight_sets) + (t.id - 1) / 100, mod(t.id - 1, 100),
               'layer.' || t.id, t.id
        FROM tensor_metadata AS t WHERE t.id <= %(used)s RETURNING 1)
    SELECT count(*) FROM new
    """,
    """
    WITH new AS (
        INSERT INTO models (model_name, version, model_type, architecture_config, weight_set_id,
                            status)
        SELECT 'm' || id, '1', 'other', '{}', id, 'ready' FROM weight_sets RETURNING 1)
    SELECT count(*) FROM new
    """,
)


def explained(conn: psycopg.Connection[Any], name: str, analyse: str = "") -> str:
    """The plan of a constant for the third page of its table."""
    with conn.transaction(force_rollback=True):
        conn.execute("SET LOCAL max_parallel_workers_per_gather = 0")
        is_chunk = "CHUNK" in name
        key = "decode('40', 'hex')" if is_chunk else "2000"
        last = "decode('4010', 'hex')" if is_chunk else "2100"
        text = getattr(collection, name)
        for placeholder, value in (
            ("after", key), ("last", last), ("batch", "100"), ("cutoff", "now()"),
            ("deltas", "false"), ("ids", "NULL"), ("digests", "NULL"),
        ):  # fmt: skip
            text = text.replace(f"%({placeholder})s", value)
        return "\n".join(row[0] for row in conn.execute(f"EXPLAIN {analyse} {text}"))
