"""Imports that count on what collection is about to take: in every order, nothing is lost.

The interleavings are exact: where one program stands between two of its statements, the other
runs, on a connection of its own.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from arc_halo.errors import WeightsError
from arc_halo.store import builds, chunks, collection, models, tensors
from arc_halo.weights.bases import Bases
from arc_halo.weights.collecting import Collected, collect
from arc_halo.weights.store import WeightStore
from arc_halo.weights.verifying import verify
from tests.weights.sets import made, stored

NOW = timedelta(0)
Sql = Callable[..., list[tuple[Any, ...]]]
Hook = Callable[..., None]

STRESS_SECONDS = 6.0
SHARED = {f"t{i}": hashlib.shake_256(b"%d" % i).digest(size) for i, size in enumerate(
    [300_000, 262_144, 40_000, 9_000, 10, 1])}  # fmt: skip


def check(store: WeightStore, root: bytes, raw: dict[str, bytes]) -> None:
    assert stored(store, root) == raw


@pytest.fixture(autouse=True)
def never_for_ever(database: str) -> None:
    """Who waits for a lock that is never released fails, and does not hang."""
    with psycopg.connect(database, autocommit=True) as conn:
        name = psycopg.sql.Identifier(conn.info.dbname)
        conn.execute(psycopg.sql.SQL("ALTER DATABASE {} SET lock_timeout = '10s'").format(name))


@pytest.fixture
def garbage(store: WeightStore, sql: Sql) -> None:
    """All of `SHARED` is stored, and nothing refers to it."""
    made(store, SHARED, "forgotten")
    assert sql("SELECT count(*) FROM models") == [(0,)]


@pytest.fixture
def chunk_garbage(store: WeightStore, garbage: None, sql: Sql) -> None:
    """The same, but only the chunks are left."""
    sql("DELETE FROM weight_sets RETURNING 1")
    sql("DELETE FROM tensor_metadata RETURNING 1")
    assert sql("SELECT count(*) FROM chunk_bodies") == [(7,)]


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has `then` run once, right before or after a function of the other program is called."""

    def hooked(
        owner: Any, name: str, *, before: Hook | None = None, after: Hook | None = None
    ) -> None:
        real = getattr(owner, name)
        fired = threading.Event()

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            is_first = not fired.is_set()
            fired.set()
            if before is not None and is_first:
                before()
            result = real(*args, **kwargs)
            if after is not None and is_first:
                after()
            return result

        monkeypatch.setattr(owner, name, wrapped)

    return hooked


def test_a_chunk_touched_before_it_is_locked_stays(
    store: WeightStore, sql: Sql, chunk_garbage: None, between: Hook
) -> None:
    roots: list[bytes] = []
    between(collection, "lock_chunks", before=lambda: roots.append(made(store, SHARED)))
    assert collect(store, grace=NOW) == Collected()
    check(store, roots[0], SHARED)


def test_a_chunk_touched_but_not_used_yet_stays(
    make_store: Callable[..., WeightStore], sql: Sql, chunk_garbage: None, between: Hook
) -> None:
    """Between the commit of the touch and that of the tensor, nothing refers to the chunk."""
    store = make_store(threads=1)
    taken: list[Collected] = []
    between(tensors, "_insert", before=lambda: taken.append(collect(store, grace=NOW)))
    root = made(store, SHARED)
    assert taken[0].chunks == 7 - 2
    check(store, root, SHARED)


def test_a_chunk_that_is_gone_before_it_is_touched_is_written_again(
    make_store: Callable[..., WeightStore], chunk_garbage: None, between: Hook
) -> None:
    store = make_store(threads=1)
    taken: list[Collected] = []
    between(chunks, "existing", after=lambda: taken.append(collect(store, grace=NOW)))
    root = made(store, SHARED)
    assert taken[0].chunks == 7
    check(store, root, SHARED)


def test_collection_passes_over_what_is_being_touched(
    make_store: Callable[..., WeightStore], sql: Sql, chunk_garbage: None, between: Hook
) -> None:
    """The touch is not committed yet: collection neither waits for it nor takes the chunk."""
    store = make_store(threads=1)
    left: list[Any] = []

    def sweep() -> None:
        collect(store, grace=NOW)
        left.append(sql("SELECT count(*) FROM chunk_bodies")[0][0])

    between(chunks, "touch", after=sweep)
    root = made(store, SHARED)
    assert left[0] > 0
    check(store, root, SHARED)


def test_who_touches_what_is_being_deleted_waits_and_writes_it_again(
    store: WeightStore, database: str, chunk_garbage: None, between: Hook
) -> None:
    """The row is locked and looked at for the last time: now a build wants it."""
    with ThreadPoolExecutor(1) as pool:
        importing: list[Any] = []

        def begin() -> None:
            importing.append(pool.submit(made, store, SHARED))
            wait_for_a_waiter(database)

        between(collection, "delete_chunks", before=begin)
        assert collect(store, grace=NOW).chunks == 7
        check(store, importing[0].result(30), SHARED)


def wait_for_a_waiter(database: str) -> None:
    """Until another program waits for a lock."""
    waiters = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    until = time.monotonic() + 30
    with psycopg.connect(database, autocommit=True) as conn:
        while conn.execute(waiters).fetchall() == [(0,)]:
            assert time.monotonic() < until, "nobody waits"
            time.sleep(0.01)


def test_a_tensor_that_is_gone_after_it_was_found_is_entered_again(
    make_store: Callable[..., WeightStore], garbage: None, sql: Sql, between: Hook
) -> None:
    """Its chunks were touched, so they are still there."""
    store = make_store(threads=1)
    taken: list[Collected] = []
    between(tensors, "_keep", before=lambda: taken.append(collect(store, grace=NOW)))
    root = made(store, SHARED)
    assert taken[0].tensors > 0
    check(store, root, SHARED)


def test_a_tensor_that_was_found_stays(
    make_store: Callable[..., WeightStore], garbage: None, sql: Sql, between: Hook
) -> None:
    """The build has not committed that it refers to it: its lock is enough."""
    store = make_store(threads=1)
    taken: list[Collected] = []
    between(tensors, "_keep", after=lambda: taken.append(collect(store, grace=NOW)))
    root = made(store, SHARED)
    assert taken[0].tensors < len(SHARED)
    check(store, root, SHARED)


def test_a_tensor_taken_up_before_it_is_locked_stays(
    store: WeightStore, garbage: None, between: Hook
) -> None:
    roots: list[bytes] = []
    between(collection, "lock_tensors", before=lambda: roots.append(made(store, SHARED)))
    collect(store, grace=NOW)
    check(store, roots[0], SHARED)


def test_a_set_made_again_before_it_is_locked_stays(
    store: WeightStore, garbage: None, between: Hook
) -> None:
    roots: list[bytes] = []
    between(collection, "lock_sets", before=lambda: roots.append(made(store, SHARED)))
    assert collect(store, grace=NOW).weight_sets == 0
    check(store, roots[0], SHARED)


def test_a_set_that_is_asked_for_again_before_it_is_locked_stays(
    store: WeightStore, garbage: None, between: Hook
) -> None:
    """By the same recipe: nothing is made, and yet it is wanted."""
    roots: list[bytes] = []
    between(collection, "lock_sets", before=lambda: roots.append(made(store, SHARED, "forgotten")))
    assert collect(store, grace=NOW).weight_sets == 0
    check(store, roots[0], SHARED)


def test_a_set_that_is_asked_for_while_it_is_deleted_is_made_again(
    store: WeightStore, database: str, garbage: None, between: Hook
) -> None:
    with ThreadPoolExecutor(1) as pool:
        importing: list[Any] = []

        def begin() -> None:
            importing.append(pool.submit(made, store, SHARED, "forgotten"))
            wait_for_a_waiter(database)

        between(collection, "delete_sets", after=begin)
        assert collect(store, grace=NOW).weight_sets == 1
        check(store, importing[0].result(30), SHARED)


def test_a_set_that_is_gone_when_another_build_completes_it_is_made_again(
    store: WeightStore, garbage: None, between: Hook
) -> None:
    between(builds, "lock", after=lambda: collect(store, grace=NOW))
    check(store, made(store, SHARED, "another"), SHARED)


def test_a_set_deleted_while_another_build_completes_it_is_made_again(
    store: WeightStore, database: str, garbage: None, between: Hook
) -> None:
    with ThreadPoolExecutor(1) as pool:
        importing: list[Any] = []

        def begin() -> None:
            importing.append(pool.submit(made, store, SHARED, "another"))
            wait_for_a_waiter(database)

        between(collection, "delete_sets", before=begin)
        collect(store, grace=NOW)
        check(store, importing[0].result(30), SHARED)


def test_a_base_that_is_gone_after_it_was_read_is_done_without(
    store: WeightStore, garbage: None, sql: Sql, between: Hook
) -> None:
    ((root,),) = sql("SELECT root FROM weight_sets")
    near = {"t0": bytes([1]) + SHARED["t0"][1:]}
    taken: list[Collected] = []
    between(Bases, "read", after=lambda: taken.append(collect(store, grace=NOW)))
    check(store, made(store, near, delta_from=bytes(root)), near)
    assert taken[0].chunks > 0
    assert sql("SELECT count(*) FROM chunk_bodies WHERE base_digest IS NOT NULL") == [(0,)]


def test_a_base_stays_once_a_build_counts_on_it(
    store: WeightStore, garbage: None, sql: Sql, between: Hook
) -> None:
    ((root,),) = sql("SELECT root FROM weight_sets")
    near = {"t0": bytes([1]) + SHARED["t0"][1:]}
    between(chunks, "insert_chunks", before=lambda: collect(store, grace=NOW))
    check(store, made(store, near, delta_from=bytes(root)), near)
    assert sql("SELECT count(*) FROM chunk_bodies WHERE base_digest IS NOT NULL") == [(1,)]


@dataclass
class Importer:
    """Makes weights of overlapping tensors again and again, and has a model point to them."""

    store: WeightStore
    sql: Sql
    number: int
    pointed: int = 0
    has: dict[str, bytes] | None = None

    def run(self, until: float) -> None:
        dice = random.Random(self.number)
        while time.monotonic() < until:
            raw = {name: PARTS[name] for name in dice.sample(sorted(PARTS), 4)}
            key = f"{sorted(raw)}"
            if dice.random() < 0.5:
                # Half of the recipes are everybody's, the others were never seen before.
                key = f"{self.number}/{dice.random()}"
                raw["own"] = key.encode()
            root = made(self.store, raw, key)
            if dice.random() < 0.2:
                self.sql("DELETE FROM models WHERE model_name = %s RETURNING 1", self.model)
                self.has = None
            if point(self.sql, self.model, root):
                self.has = raw
                self.pointed += 1

    @property
    def model(self) -> str:
        return f"m{self.number}"


PARTS = {f"p{i}": hashlib.shake_256(b"p%d" % i).digest(20_000 + i) for i in range(8)}


def test_many_at_once(make_store: Callable[..., WeightStore], sql: Sql) -> None:
    """Importers, deletions, and a collector that gives no grace."""
    store = make_store(threads=1)
    until = time.monotonic() + STRESS_SECONDS
    importers = [Importer(store, sql, number) for number in range(3)]

    def sweep() -> int:
        count = 0
        while time.monotonic() < until:
            count += collect(store, grace=NOW, batch=5, retain_revisions=1).chunks
        return count

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(importer.run, until) for importer in importers]
        swept = pool.submit(sweep)
    for future in running:
        future.result()
    assert swept.result() > 0
    assert all(importer.pointed for importer in importers)
    found = sql("SELECT model_name, root FROM models JOIN weight_sets AS s ON s.id = weight_set_id")
    roots = {name: bytes(root) for name, root in found}
    assert roots.keys() == {importer.model for importer in importers if importer.has is not None}
    for importer in importers:
        if importer.has is not None:
            check(store, roots[importer.model], importer.has)
    assert verify(store).findings == []
    sql("DELETE FROM models RETURNING 1")
    collect(store, grace=NOW)
    for table in ("weight_builds", "weight_sets", "tensor_metadata", "tensor_data", "chunk_bodies"):
        assert sql(f"SELECT count(*) FROM {table}") == [(0,)], table


def test_a_model_written_while_its_weights_are_collected_is_refused_by_name(
    store: WeightStore, database: str
) -> None:
    root = made(store, SHARED, "k")
    item = {"name": "m", "version": "1", "type": "other", "architecture": {}, "tags": {},
            "root": root.hex()}  # fmt: skip

    def write() -> None:
        with store.pool.connection() as conn, conn.transaction():
            models.upsert(conn, [item])

    with psycopg.connect(database) as collector, ThreadPoolExecutor(1) as pool:
        collector.execute("SELECT FROM weight_sets FOR UPDATE")
        writing = pool.submit(write)
        with pytest.raises(TimeoutError):
            writing.result(0.5)
        collector.execute("DELETE FROM weight_sets")
        collector.commit()
        with pytest.raises(WeightsError) as caught:
            writing.result(30)
    assert caught.value.error_code == "AH064"


def point(sql: Sql, model: str, root: bytes) -> bool:
    """Make the model's weights those of `root`, unless they were collected since."""
    return bool(
        sql(
            """
            WITH kept AS (SELECT id FROM weight_sets WHERE root = %s FOR KEY SHARE)
            INSERT INTO models (model_name, version, model_type, architecture_config,
                                weight_set_id, status)
            SELECT %s, '1', 'other', '{}', kept.id, 'ready' FROM kept
            ON CONFLICT (model_name, version) DO UPDATE
            SET weight_set_id = excluded.weight_set_id, status = 'ready' RETURNING id
            """,
            root,
            model,
        )
    )
