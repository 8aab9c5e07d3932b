"""Sessions whose server restarts: what they record is waited for as long as somebody says."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import psycopg
import pytest

import arc_halo
from arc_halo.inference import sessions

SECONDS = 0.5


@contextmanager
def restarting(server):
    """A server that is stopped, and started again a moment later."""
    server.stop("fast")
    starter = threading.Thread(target=lambda: (time.sleep(SECONDS), server.start()))
    starter.start()
    try:
        yield
    finally:
        starter.join()


@pytest.fixture
def url(own_server):
    own_server.start()
    return own_server.url(own_server.create_database())


def rows(url, statement):
    with psycopg.connect(url) as conn:
        return conn.execute(statement).fetchall()


@pytest.mark.parametrize("waiting", [0, 500])
def test_the_end_of_an_inference_session_waits_while_the_server_restarts(
    own_server, url, tmp_path, waiting, caplog, monkeypatch
):
    monkeypatch.setattr(sessions, "END_SECONDS", 60)
    with arc_halo.connect(url, project=tmp_path) as halo:
        session = halo.inference.session("story@1.0.0")
        for _ in range(500):
            session.record(latency_ms=1)
        assert session.flush()
        for _ in range(waiting):
            session.record(latency_ms=1)
        with restarting(own_server):
            session.finish()
    assert rows(url, "SELECT status, request_count FROM inference_sessions") == [
        ("completed", 500 + waiting)
    ]
    assert session.dropped == 0
    assert "is not recorded" not in caplog.text


def test_a_flush_of_an_inference_session_waits_while_the_server_restarts(own_server, url, tmp_path):
    with (
        arc_halo.connect(url, project=tmp_path) as halo,
        halo.inference.session("story@1.0.0") as session,
    ):
        with restarting(own_server):
            session.record(latency_ms=1)
            assert not session.flush()
            assert session.flush(60)
        assert rows(url, "SELECT request_count FROM inference_sessions") == [(1,)]


def test_a_flush_of_a_training_session_waits_while_the_server_restarts(own_server, url, tmp_path):
    with (
        arc_halo.connect(url, project=tmp_path) as halo,
        halo.training.session("story@1.0.0") as run,
    ):
        with restarting(own_server):
            run.log({"loss": 1}, step=1)
            assert not run.flush()
            assert run.flush(60)
        assert rows(url, "SELECT step, value FROM training_metrics") == [(1, 1)]


def test_a_training_session_that_ends_while_the_server_restarts_waits_on_the_disk(
    own_server, url, tmp_path
):
    with arc_halo.connect(url, project=tmp_path) as halo:
        run = halo.training.session("story@1.0.0")
        with restarting(own_server):
            run.log({"loss": 1}, step=1)
            run.finish()
        assert halo.training.sync() == {run.id: 1}
    assert rows(url, "SELECT status FROM training_sessions") == [("completed",)]
