"""A store on a database of its own, and training sessions in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from arc_halo.plugins import PluginManager
from arc_halo.store.connection import pool
from arc_halo.training.checkpoints.checkpoints import Checkpoints
from arc_halo.weights.store import WeightStore

Sql = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def store(database: str) -> Iterator[WeightStore]:
    codecs = {name: provided.item for name, provided in PluginManager().codecs.items()}
    with pool(database, 8) as opened:
        yield WeightStore(pool=opened, codecs=codecs)


@pytest.fixture
def sql(database: str) -> Sql:
    """Runs a statement and commits; its rows, if it has any."""

    def run(query: str, *params: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(database) as conn:
            cursor = conn.execute(query, params)
            return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
def new_session(sql: Sql) -> Callable[..., UUID]:
    """Begins a training session, as its row alone."""

    def begun(**columns: object) -> UUID:
        columns = {"model_name": "m", "model_version": "1", **columns}
        ((id_,),) = sql(
            f"INSERT INTO training_sessions ({', '.join(columns)}) "
            f"VALUES ({', '.join(['%s'] * len(columns))}) RETURNING id",
            *columns.values(),
        )
        return id_

    return begun


@pytest.fixture
def session(new_session: Callable[..., UUID]) -> UUID:
    return new_session()


@pytest.fixture
def checkpoints(store: WeightStore, session: UUID) -> Iterator[Checkpoints]:
    with Checkpoints(store, session) as opened:
        yield opened
