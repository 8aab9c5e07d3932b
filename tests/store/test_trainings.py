"""Declared trainings as a session reads them."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest

from arc_halo.store import trainings
from arc_halo.store.connection import Connection
from arc_halo.store.trainings import BestMetric, GradientCheckpointing, Logging, Retention

LOGGING = {
    "flush_seconds": 0.5,
    "heartbeat_seconds": 5.0,
    "system_seconds": 15.0,
    "spool_bytes": 65536,
}
DOCUMENT = {
    "name": "tuning",
    "model": "story@1",
    "total_epochs": 10,
    "total_steps": 2**40,
    "config": {"lr": 3e-4, "deep": {"list": [1, None]}},
    "dataset": {"name": "tales"},
    "group": "tunings",
    "notes": "a first attempt",
    "metrics": {"best": "eval/top/5", "mode": "max"},
    "retention": {"keep_last": 3, "keep_best": 1, "keep_every": None},
    "logging": LOGGING,
    "gradient_checkpointing": {
        "layers": [0, 2],
        "modules": None,
        "batch_size": 8,
        "sequence_length": 512,
        "dtype": "BF16",
        "attention": "eager",
    },
    "description": None,
    "tags": {"team": "poetry"},
}
BARE = {
    **dict.fromkeys(DOCUMENT),
    "name": "bare",
    "model": "story@1",
    "config": {},
    "dataset": {},
    "logging": LOGGING,
    "tags": {},
}


@pytest.fixture
def model(conn: Connection) -> UUID:
    row = conn.execute(
        "INSERT INTO models (model_name, version, model_type, architecture_config)"
        " VALUES ('story', '1', 'other', '{\"n_layer\": 3}') RETURNING id"
    ).fetchone()
    assert row is not None
    return row[0]


def test_everything_that_was_declared_is_found(conn: Connection, model: UUID) -> None:
    ids = trainings.upsert(conn, [DOCUMENT])
    found = trainings.find(conn, "tuning")
    assert found is not None
    assert (found.id, found.model_id) == (ids["tuning"], model)
    assert (found.model_name, found.model_version) == ("story", "1")
    assert found.architecture == {"n_layer": 3}
    assert (found.total_epochs, found.total_steps) == (10, 2**40)
    assert (found.config, found.dataset) == (DOCUMENT["config"], DOCUMENT["dataset"])
    assert (found.group, found.notes) == ("tunings", "a first attempt")
    assert found.tags == {"team": "poetry"}
    assert found.best_metric == BestMetric(scope="eval", key="top/5", mode="max")
    assert found.retention == Retention(keep_last=3, keep_best=1)
    assert found.logging == Logging(**LOGGING)
    assert found.gradient_checkpointing == GradientCheckpointing(
        layers=[0, 2],
        modules=None,
        batch_size=8,
        sequence_length=512,
        dtype="BF16",
        attention="eager",
    )


def test_what_was_not_declared_is_none(conn: Connection, model: UUID) -> None:
    trainings.upsert(conn, [BARE])
    found = trainings.find(conn, "bare")
    assert found is not None
    assert (found.best_metric, found.retention, found.gradient_checkpointing) == (None, None, None)
    assert trainings.find(conn, "tuning") is None


@pytest.mark.parametrize("document", [DOCUMENT, BARE], ids=["full", "bare"])
def test_documents_come_back_as_they_were_written(conn, model, document) -> None:
    trainings.upsert(conn, [document])
    (spec,) = trainings.live_specs(conn, [document["name"]]).values()
    assert {"name": document["name"], **spec} == document


def test_the_best_cannot_be_kept_where_no_metric_is_named(conn: Connection, model: UUID) -> None:
    document = {**DOCUMENT, "metrics": None}
    with pytest.raises(psycopg.errors.CheckViolation, match="best_needs_metric"):
        trainings.upsert(conn, [document])
