"""Sessions and checkpoints by what people call them."""

from __future__ import annotations

import numpy as np
import pytest

from arc_halo.errors import InvalidInputError, NotFoundError
from arc_halo.training.checkpoints.checkpoints import Checkpoints
from arc_halo.training.checkpoints.finding import find_checkpoint
from arc_halo.training.naming import find_session


@pytest.fixture
def named(store, new_session, sql):
    """Two sessions of one name, the newer with checkpoints; what is found for a text."""
    sql("UPDATE training_sessions SET started_at = started_at - interval '1 day'")
    new_session(session_name="tune", started_at="2020-01-01")
    session = new_session(session_name="tune")
    for step, loss in ((10, 1), (20, 2)):
        Checkpoints(store, session).save(
            step=step, model={"w": np.full(3, step)}, metrics={"loss": loss}, best_metric="loss"
        )
    Checkpoints(store, session).save(step=30, optimizer={"t": 1}, type="optimizer_only")
    return session


def test_a_session_is_found_by_its_name_and_its_id(named, store):
    with store.pool.connection() as conn:
        for text in ("tune", str(named), str(named)[:12], str(named).upper()):
            assert find_session(conn, text).id == named
        for text in ("tun", "", "%", "_", str(named)[:5], "tune:latest"):
            with pytest.raises(NotFoundError):
                find_session(conn, text)


def test_a_checkpoint_is_found_by_session_and_step_word_or_id(named, store):
    with store.pool.connection() as conn:

        def step(text, *parts):
            return find_checkpoint(conn, text, parts=frozenset(parts)).step

        assert (step("tune"), step("tune", "model"), step("tune:latest")) == (30, 20, 30)
        assert (step("tune:10"), step("tune:best"), step(f"{named}:20")) == (10, 10, 20)
        id_ = str(find_checkpoint(conn, "tune:10").id)
        assert (step(id_), step(id_[:13])) == (10, 10)
        for text in ("tune:11", "tune:best:10", "nobody:latest", "0" * 8, "tune:30x"):
            with pytest.raises(NotFoundError):
                step(text)
        with pytest.raises(NotFoundError, match="with model"):
            step("tune:30", "model")


def test_the_beginning_of_several_ids_is_told(store, new_session):
    for last in (1, 2):
        new_session(id=f"abcdef00-0000-0000-0000-00000000000{last}")
    with store.pool.connection() as conn:
        with pytest.raises(InvalidInputError, match="several"):
            find_session(conn, "abcdef")
        with pytest.raises(InvalidInputError, match="several"):
            find_checkpoint(conn, "abcdef:latest")


def test_a_name_with_a_colon_is_a_name(store, new_session):
    session = new_session(session_name="a:best")
    Checkpoints(store, session).save(step=3, model={"w": np.zeros(3)})
    with store.pool.connection() as conn:
        assert find_checkpoint(conn, "a:best:latest").step == 3
        assert find_checkpoint(conn, "a:best").step == 3
