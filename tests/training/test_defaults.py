"""Sessions that begin with what a manifest declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import arc_halo
from arc_halo.errors import InvalidInputError, NotFoundError
from arc_halo.store import trainings
from arc_halo.store.connection import connect
from arc_halo.store.trainings import BestMetric, Retention
from arc_halo.training.defaults import log_settings
from arc_halo.training.logging import LogSettings

Halo = arc_halo.Halo
TUNING = {
    "name": "tuning",
    "model": "story@1",
    "total_epochs": 3,
    "total_steps": 300,
    "config": {"lr": 0.1, "seed": 7},
    "dataset": {"name": "tales"},
    "group": "tunings",
    "notes": "as declared",
    "metrics": {"best": "eval/loss", "mode": "min"},
    "retention": {"keep_last": 3, "keep_best": 1, "keep_every": None},
    "logging": {
        "flush_seconds": 0.25,
        "heartbeat_seconds": 5.0,
        "system_seconds": 15.0,
        "spool_bytes": 65536,
    },
    "gradient_checkpointing": None,
    "description": None,
    "tags": {"team": "poetry", "stage": "first"},
}
SESSION = """
SELECT model_name || '@' || model_version, training_name, total_epochs, total_steps, config,
       dataset, group_name, notes, tags
FROM training_sessions ORDER BY started_at DESC LIMIT 1
"""


@pytest.fixture
def declare(database: str) -> Callable[..., None]:
    def declare(**changes: Any) -> None:
        with connect(database) as conn:
            trainings.upsert(conn, [TUNING | changes])

    return declare


@pytest.fixture
def halo(tmp_path: Path, database: str, declare: Callable[..., None]) -> Iterator[Halo]:
    with arc_halo.connect(database, project=tmp_path) as opened:
        opened.models.create_model(
            model_name="story", version="1", model_type="other", architecture_config={}
        )
        declare()
        yield opened


def begun(database: str) -> tuple[Any, ...]:
    with psycopg.connect(database) as conn:
        row = conn.execute(SESSION).fetchone()
    assert row is not None
    return row


def test_what_the_program_leaves_open_is_as_declared(halo: Halo, database: str) -> None:
    with halo.training.session(training="tuning") as run:
        assert (run.model, run.config) == ("story@1", {"lr": 0.1, "seed": 7})
        assert run.training is not None
        assert run.training.retention == Retention(keep_last=3, keep_best=1)
        assert run.training.best_metric == BestMetric(scope="eval", key="loss", mode="min")
    assert begun(database) == (
        "story@1",
        "tuning",
        3,
        300,
        {"lr": 0.1, "seed": 7},
        {"name": "tales"},
        "tunings",
        "as declared",
        {"team": "poetry", "stage": "first"},
    )


def test_what_the_program_gives_goes_before_it(halo: Halo, database: str) -> None:
    with halo.training.session(
        "story@1",
        training="tuning",
        config={"lr": 0.5, "extra": True},
        dataset={},
        total_epochs=9,
        group="mine",
        tags={"stage": "second"},
        notes="as given",
    ):
        pass
    assert begun(database) == (
        "story@1",
        "tuning",
        9,
        300,
        {"lr": 0.5, "seed": 7, "extra": True},
        {},
        "mine",
        "as given",
        {"team": "poetry", "stage": "second"},
    )


def test_points_are_sent_as_declared_unless_the_program_says_how(halo: Halo, database: str) -> None:
    with connect(database) as conn:
        found = trainings.find(conn, "tuning")
    declared = LogSettings(
        flush_seconds=0.25, heartbeat_seconds=5, spool_bytes=65536, system_seconds=15
    )
    assert log_settings(found) == declared
    given = log_settings(
        found, flush_seconds=2, heartbeat_seconds=20, spool_bytes=2**20, system_seconds=60
    )
    assert given == LogSettings(
        flush_seconds=2, heartbeat_seconds=20, spool_bytes=2**20, system_seconds=60
    )
    assert log_settings() == LogSettings()


@pytest.mark.parametrize("name", ["flush_seconds", "heartbeat_seconds"])
@pytest.mark.parametrize("seconds", [0, -1.0, 61])
def test_intervals_that_make_no_sense_are_refused(halo: Halo, name: str, seconds: float) -> None:
    with pytest.raises(InvalidInputError, match=name):
        halo.training.session("story@1", **{name: seconds})


def test_a_session_that_is_resumed_keeps_its_config_and_is_kept_as_is_declared_now(
    halo: Halo, declare: Callable[..., None]
) -> None:
    with halo.training.session(training="tuning", config={"lr": 0.5}) as run:
        run.pause()
    declare(config={"lr": 0.2}, retention={"keep_last": 9, "keep_best": None, "keep_every": None})
    with halo.training.session("story@1", resume="must") as again:
        assert again.id == run.id
        assert again.config == {"lr": 0.5, "seed": 7}
        assert again.training is not None
        assert again.training.retention == Retention(keep_last=9)


def test_only_sessions_of_the_training_are_resumed_with_it(halo: Halo) -> None:
    with halo.training.session("story@1") as other:
        other.pause()
    with halo.training.session(training="tuning", resume="allow") as run:
        assert run.id != other.id
        run.pause()
    with halo.training.session(training="tuning", resume="must") as again:
        assert again.id == run.id


def test_a_fork_has_the_training_and_the_config_of_its_parent(halo: Halo, database: str) -> None:
    with halo.training.session(training="tuning", config={"lr": 0.5}) as run:
        run.log({"loss": 1.0}, step=4)
    with halo.training.session("story@1", fork_from=run.id, at_step=2) as fork:
        assert fork.config == {"lr": 0.5, "seed": 7}
    assert begun(database)[1:4] == ("tuning", 3, 300)


def test_a_session_goes_on_when_its_training_is_gone(halo: Halo, database: str) -> None:
    with halo.training.session(training="tuning") as run:
        run.pause()
    with connect(database) as conn:
        trainings.delete(conn, ["tuning"])
    with halo.training.session("story@1", resume="must") as again:
        assert (again.id, again.training) == (run.id, None)


def test_a_training_that_is_not_declared_is_told(halo: Halo) -> None:
    with pytest.raises(NotFoundError, match="there is no training 'tunning'"):
        halo.training.session("story@1", training="tunning")


def test_a_session_is_of_the_model_of_its_training(halo: Halo) -> None:
    with pytest.raises(InvalidInputError, match="training/tuning trains story@1, not story@2"):
        halo.training.session("story@2", training="tuning")
    with pytest.raises(InvalidInputError, match="of a model, or of a training"):
        halo.training.session()
