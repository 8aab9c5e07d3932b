"""Two imports at once: one is killed, stopped, or in the other's way."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import types
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from arc_halo.store import chunks
from arc_halo.store.chunks import NewChunk
from arc_halo.types import TensorInfo
from arc_halo.weights import writing
from arc_halo.weights.building import Recipe, build
from tests.faults.contents import contents_of, shake, write_contents
from tests.faults.scenes import Scene

IMPORT = """
import sys
from pathlib import Path
from tests.faults.scenes import Scene
from tests.faults.servers import Server

class Remote:
    def url(self, database): return sys.argv[1]

scene = Scene(Remote(), "", Path(sys.argv[2]))
with scene.store() as store:
    scene.bring_in(store)
"""


@pytest.fixture
def client(scene):
    """Starts an import in another process; killed at the end."""
    started = []

    def start(file):
        root = str(Path(__file__).parents[2])
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", IMPORT, scene.url, str(file)],
                env=environ,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


MOMENTS = {
    "chunk": ("chunk_bodies", "NEW.raw_bytes = 37856"),
    "tensor": ("tensor_metadata", "NEW.dtype = 'U8'"),
    "set": ("weight_sets", "true"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_of_two_imports_of_one_file_one_killed_leaves_the_other_to_finish(
    scene, gate, client, undisturbed, moment
):
    closed = gate(*MOMENTS[moment])
    killed = client(scene.file)
    closed.wait()
    with scene.store() as store:
        running = scene.running(lambda: scene.bring_in(store))
        killed.kill()
        killed.wait()
        closed.open()
        assert running.result(60).root == scene.root
    closed.remove()
    scene.check_finished(undisturbed)


def test_an_import_that_shares_chunks_with_a_killed_one_finishes(
    scene, gate, client, undisturbed, tmp_path
):
    closed = gate("chunk_bodies", "NEW.raw_bytes = 37856")
    killed = client(scene.file)
    closed.wait()
    part = Scene(
        scene.server, scene.database, write_contents(tmp_path / "p", contents_of(range(2, 9)))
    )
    with part.store() as store:
        running = part.running(lambda: part.bring_in(store))
        killed.kill()
        killed.wait()
        closed.open()
        assert running.result(60).root == part.root
        part.check_reads(store)
    closed.remove()
    with scene.store() as store:
        scene.bring_in(store)
        scene.check_reads(store)
    assert scene.query("SELECT DISTINCT status FROM weight_builds") == [("complete",)]


def test_a_stopped_program_goes_on_when_it_is_continued(scene, gate, client, undisturbed):
    closed = gate("chunk_bodies", "NEW.raw_bytes = 37856")
    process = client(scene.file)
    closed.wait()
    os.kill(process.pid, signal.SIGSTOP)
    closed.open()
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(60) == 0
    closed.remove()
    scene.check_finished(undisturbed)


def test_a_program_that_stops_in_a_transaction_does_not_hold_up_the_others_for_ever(
    scene, monkeypatch
):
    """A lost line: the server would keep its transaction, and its locks, for two hours."""
    from arc_halo.store import builds

    with scene.store() as store, store.pool.connection() as conn, conn.transaction():
        builds.as_step(conn)
        (limit,) = conn.execute("SHOW idle_in_transaction_session_timeout").fetchone()
        assert limit == "5min"
    with scene.store() as store, store.pool.connection() as conn:
        (limit,) = conn.execute("SHOW idle_in_transaction_session_timeout").fetchone()
        assert limit == "0"


def test_a_long_build_of_quick_tensors_shows_that_it_lives(scene, monkeypatch):
    """Collection takes a build for dead when it has not been heard of for an hour."""
    now = [0.0]
    monkeypatch.setattr(writing, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    infos = [
        TensorInfo(name=f"t{n}", dtype="U8", shape=(10**6,), size_bytes=10**6) for n in range(8)
    ]
    heard = []

    def produce(info):
        now[0] += 20
        heard.append(scene.query("SELECT heartbeat_at FROM weight_builds")[0][0])
        return [shake(info.name, info.size_bytes)]

    recipe = Recipe(purpose="write", key=bytes(32), recipe={})
    with scene.store(threads=1) as store:
        build(store, recipe, infos, produce)
    assert len(set(heard)) >= 4


def test_a_delta_and_a_touch_of_its_bases_do_not_deadlock(scene):
    """One import stores deltas against chunks that another, at once, finds there."""
    low, high = sorted((chunk("base one"), chunk("base two")), key=lambda c: c.digest)
    first, blocker, second = sorted((chunk("a"), chunk("b"), chunk("c")), key=lambda c: c.digest)
    deltas = [delta(first, high), blocker, delta(second, low)]
    connect = lambda: psycopg.connect(scene.url, autocommit=True)  # noqa: E731
    with connect() as setup, connect() as holder, connect() as one, connect() as two:
        chunks.insert_chunks(setup, [low, high])
        holder.execute("BEGIN")
        chunks.insert_chunks(holder, [blocker])

        def insert():
            with one.transaction():
                return chunks.insert_chunks(one, deltas)

        def touch():
            with two.transaction():
                return chunks.touch(two, [low.digest, high.digest], datetime.now(UTC))

        inserting = scene.running(insert)
        wait_until_blocked(scene, 1)
        touching = scene.running(touch)
        wait_until_blocked(scene, 2)
        holder.execute("ROLLBACK")
        assert len(inserting.result(60)) == 3
        assert len(touching.result(60)) == 2


def chunk(text):
    raw = shake(text, 20_000)
    return NewChunk(
        digest=hashlib.sha256(raw).digest(),
        raw_bytes=len(raw),
        codec="raw",
        codec_version=1,
        body=raw,
    )


def delta(of, base):
    from dataclasses import replace

    return replace(of, codec="delta", base_digest=base.digest, body=b"delta")


def wait_until_blocked(scene, count):
    from tests.faults.servers import wait_for

    query = """SELECT count(*) FROM pg_stat_activity
               WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"""
    wait_for(lambda: scene.query(query)[0][0] >= count)
