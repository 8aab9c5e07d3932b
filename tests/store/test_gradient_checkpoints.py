"""The rows that say which layers a session computes again."""

from __future__ import annotations

from uuid import UUID

import pytest

from arc_halo.store import gradient_checkpoints
from arc_halo.store.connection import Connection
from arc_halo.store.gradient_checkpoints import GradientCheckpoint


@pytest.fixture
def session(conn: Connection) -> UUID:
    row = conn.execute(
        "INSERT INTO training_sessions (model_name, model_version) VALUES ('m', '1') RETURNING id"
    ).fetchone()
    assert row is not None
    return row[0]


def layer(index: int, *, saved: int | None = None) -> GradientCheckpoint:
    return GradientCheckpoint(
        layer_index=index,
        module_name=f"model.layers.{index}",
        is_checkpointed=bool(saved),
        activation_bytes=None if saved is None else 2**40,
        saved_bytes=saved,
    )


def test_rows_come_back_in_the_order_of_layers(conn: Connection, session: UUID) -> None:
    rows = [layer(0, saved=2**39), layer(1, saved=0), layer(2)]
    gradient_checkpoints.replace(conn, session, rows[::-1])
    assert gradient_checkpoints.of_session(conn, session) == rows


def test_a_new_plan_takes_the_place_of_the_old_one(conn: Connection, session: UUID) -> None:
    gradient_checkpoints.replace(conn, session, [layer(0), layer(1)])
    gradient_checkpoints.replace(conn, session, [layer(0, saved=5)])
    assert gradient_checkpoints.of_session(conn, session) == [layer(0, saved=5)]
    gradient_checkpoints.replace(conn, session, [])
    assert gradient_checkpoints.of_session(conn, session) == []
