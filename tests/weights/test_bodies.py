"""Whose a body store is: one database's, wherever the store is moved, and never a copy's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql as pg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from arc_halo.bodies.object import arc_halo_body_stores
from arc_halo.errors import BodyStoreError
from arc_halo.plugins import PluginManager
from arc_halo.store import body_stores
from arc_halo.store.connection import pool
from arc_halo.store.rows import Pool
from arc_halo.weights.bodies import open_bodies
from arc_halo.weights.collecting import collect_bodies
from arc_halo.weights.store import OpenBodies, WeightStore
from tests.weights.sets import made, noise, stored

(OBJECT,) = arc_halo_body_stores()
RAW = {"t": noise("a", 300_000)}
HOUR = 3600.0


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "bodies").mkdir()
    return tmp_path / "bodies"


@contextmanager
def opened(conns: Pool, url: str) -> Iterator[OpenBodies]:
    with open_bodies(conns, OBJECT, url) as bodies:
        assert bodies is not None
        yield bodies


def store_of(conns: Pool, bodies: OpenBodies) -> WeightStore:
    codecs = {name: provided.item for name, provided in PluginManager().codecs.items()}
    return WeightStore(pool=conns, codecs=codecs, bodies=bodies)


@pytest.fixture
def copy(open_pool: Pool, database: str) -> Iterator[Callable[[], Pool]]:
    """A copy of the database, made when it is asked for."""
    name = f"{conninfo_to_dict(database)['dbname']}_copy"
    pools: list[Any] = []

    def make() -> Pool:
        open_pool.close()
        with psycopg.connect(make_conninfo(database, dbname="postgres"), autocommit=True) as conn:
            conn.execute(
                pg.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    pg.Identifier(name), pg.Identifier(str(conninfo_to_dict(database)["dbname"]))
                )
            )
        pools.append(pool(make_conninfo(database, dbname=name), 4))
        return pools[-1].__enter__()

    yield make
    for each in pools:
        each.__exit__(None, None, None)
    with psycopg.connect(make_conninfo(database, dbname="postgres"), autocommit=True) as conn:
        conn.execute(pg.SQL("DROP DATABASE IF EXISTS {} (FORCE)").format(pg.Identifier(name)))


def test_a_copy_of_the_database_is_refused_and_deletes_nothing(
    open_pool: Pool, copy: Callable[[], Pool], database: str, place: Path
) -> None:
    with opened(open_pool, place.as_uri()) as bodies:
        made(store_of(open_pool, bodies), RAW)
    copied = copy()
    with (
        pytest.raises(BodyStoreError, match="that this one is a copy of") as caught,
        opened(copied, place.as_uri()),
    ):
        pass
    assert caught.value.hint
    assert "holder" in caught.value.hint
    with pool(database, 4) as conns, opened(conns, place.as_uri()) as bodies:
        store = store_of(conns, bodies)
        assert stored(store, made(store, RAW)) == RAW


def test_a_copy_may_take_the_store_over(
    open_pool: Pool, copy: Callable[[], Pool], database: str, place: Path
) -> None:
    with opened(open_pool, place.as_uri()) as bodies:
        root = made(store_of(open_pool, bodies), RAW)
    copied = copy()
    with copied.connection() as conn:
        conn.execute("UPDATE body_stores SET holder = NULL")
    with opened(copied, place.as_uri()) as bodies:
        assert stored(store_of(copied, bodies), root) == RAW


def test_two_programs_may_open_a_new_store_at_once(open_pool: Pool, place: Path) -> None:
    with open_pool.connection() as conn:
        first = body_stores.register(conn, kind="object", url=place.as_uri())
        assert first.holder is None
        assert body_stores.hold(conn, first)
        # What the other one had read before.
        assert body_stores.hold(conn, first)
    with opened(open_pool, place.as_uri()):
        pass


@pytest.mark.parametrize("way", ["a slash at the end", "moved"])
def test_a_store_is_known_at_its_new_address(
    open_pool: Pool, place: Path, sql: Callable[..., Any], way: str
) -> None:
    with opened(open_pool, place.as_uri()) as bodies:
        root = made(store_of(open_pool, bodies), RAW)
    url = f"{place.as_uri()}/"
    if way == "moved":
        url = place.rename(place.with_name("elsewhere")).as_uri()
    with opened(open_pool, url) as bodies:
        assert stored(store_of(open_pool, bodies), root) == RAW
    assert sql("SELECT url FROM body_stores") == [(url.rstrip("/"),)]


def test_another_database_s_store_is_refused_and_leaves_no_row(
    open_pool: Pool, place: Path, sql: Callable[..., Any]
) -> None:
    with OBJECT.open(place.as_uri()) as bodies:  # type: ignore[misc]
        assert bodies.claim("somebody's") == "somebody's"
    with (
        pytest.raises(BodyStoreError, match="holds the bodies of another database"),
        opened(open_pool, place.as_uri()),
    ):
        pass
    assert sql("SELECT count(*) FROM body_stores") == [(0,)]


def test_young_bodies_that_no_chunk_names_stay(open_pool: Pool, place: Path) -> None:
    with opened(open_pool, place.as_uri()) as bodies:
        store = store_of(open_pool, bodies)
        bodies.bodies.put({bytes(32): b"young", bytes([1]) * 32: b"old"})
        (old,) = place.rglob("01" * 32)
        os.utime(old, (old.stat().st_mtime - 2 * HOUR,) * 2)
        grace = timedelta(hours=1)
        assert collect_bodies(store, bodies.bodies, bodies.store_id, grace=grace) == 1
        assert bodies.bodies.get([bytes(32), bytes([1]) * 32]) == {bytes(32): b"young"}


def test_what_a_killed_upload_left_is_removed_once_it_is_old(open_pool: Pool, place: Path) -> None:
    with opened(open_pool, place.as_uri()) as bodies:
        bodies.bodies.put({bytes(32): b"body"})
        (folder,) = {path.parent for path in place.rglob("00" * 32)}
        parts = [folder / f".{name * 32}.part" for name in "ab"]
        for part in parts:
            part.write_bytes(b"half")
        os.utime(parts[0], (parts[0].stat().st_mtime - 3 * HOUR,) * 2)
        store = store_of(open_pool, bodies)
        collect_bodies(store, bodies.bodies, bodies.store_id, grace=timedelta(hours=1))
        assert [part.exists() for part in parts] == [False, True]
