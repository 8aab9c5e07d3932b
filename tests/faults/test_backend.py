"""SIGKILL to the server process that works for an import, a read or an export."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from arc_halo.errors import ConnectionFailedError
from arc_halo.formats.safetensors import arc_halo_weight_formats
from arc_halo.transfer.exporting import export_weights
from arc_halo.weights.reading import read_array, read_arrays, read_pieces
from tests.faults.scenes import check_error
from tests.faults.servers import kill_process

(SAFETENSORS,) = arc_halo_weight_formats()

# In the order in which an import comes to them.
MOMENTS = {
    "opening": ("weight_builds", "true", False),
    "first chunk": ("chunk_bodies", "true", False),
    "a chunk's commit": ("chunk_bodies", "NEW.raw_bytes = 37856", True),
    "small chunks": ("chunk_bodies", "NEW.raw_bytes = 128", False),
    "a tensor": ("tensor_metadata", "NEW.dtype = 'F32'", False),
    "its chunks": ("tensor_data", "NEW.chunk_index = 1", False),
    "in the set": ("weight_set_tensors", "NEW.ordinal = 9", False),
    "in the set, commit": ("weight_set_tensors", "NEW.ordinal = 9", True),
    "the set": ("weight_sets", "true", False),
    "the set's commit": ("weight_sets", "true", True),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_import_whose_server_process_is_killed_goes_on_in_the_next(
    scene, gate, undisturbed, moment
):
    table, when, commit = MOMENTS[moment]
    closed = gate(table, when, commit=commit)
    with scene.store() as store:
        running = scene.running(lambda: scene.bring_in(store))
        kill_process(closed.wait())
        check_error(running.exception(60), ConnectionFailedError)
    scene.server.wait()
    closed.remove()
    assert scene.query("SELECT count(*) FROM weight_sets WHERE root IS NOT NULL") == [(0,)]
    scene.check_finished(undisturbed)


@pytest.mark.parametrize("at_bytes", [0, 2**20, 5 * 2**20])
def test_all_connections_killed_at_once_between_two_steps(scene, undisturbed, at_bytes):
    done = 0

    def advance(size):
        nonlocal done
        done += size
        # Threads come here at once, and one kills.
        if done >= at_bytes and once.acquire(blocking=False):
            killed.append(kill_all(scene))

    once, killed = threading.Lock(), []
    with scene.store() as store:
        running = scene.running(lambda: scene.bring_in(store, advance=advance))
        check_error(running.exception(60), ConnectionFailedError)
    assert killed
    scene.server.wait()
    scene.check_finished(undisturbed)


def read_all(store, row, set_id, rows):
    read_arrays(store, set_id, list(rows.values()))


READS = {
    "array": lambda store, row, *_: read_array(store, row, row.name),
    "arrays": read_all,
    "pieces": lambda store, row, *_: list(read_pieces(store, row, row.name)),
}


@pytest.mark.parametrize("way", READS)
def test_a_read_whose_server_process_is_killed_fails_and_the_next_succeeds(
    server, scene, tmp_path, way
):
    large = scene.large(tmp_path)
    with large.store() as store:
        large.bring_in(store)
        rows, set_id = large.rows(store), large.set_id(store)
        killing = killing_store(large, store)
        with pytest.raises(ConnectionFailedError) as caught:
            READS[way](killing, rows["one"], set_id, rows)
        check_error(caught.value, ConnectionFailedError)
    server.wait()
    with large.store() as store:
        READS[way](store, rows["one"], set_id, rows)


def test_an_export_whose_server_process_is_killed_leaves_no_file(server, scene, tmp_path):
    large = scene.large(tmp_path)
    out = tmp_path / "out" / "model.safetensors"
    out.parent.mkdir()
    with large.store() as store:
        large.bring_in(store)
        set_id = large.set_id(store)
        with pytest.raises(ConnectionFailedError) as caught:
            export_weights(killing_store(large, store), set_id, out, SAFETENSORS, metadata={})
        check_error(caught.value, ConnectionFailedError)
        assert list(out.parent.iterdir()) == []
    server.wait()
    with large.store() as store:
        export_weights(store, set_id, out, SAFETENSORS, metadata={})
    assert [path.name for path in out.parent.iterdir()] == ["model.safetensors"]
    assert out.read_bytes().endswith(large.tail())


def test_the_pool_of_a_living_program_survives_the_server_s_restart(scene, undisturbed):
    """What a service or a notebook holds: connections that rested while the server went."""
    with scene.store() as store:
        scene.bring_in(store)
        rows = scene.rows(store)
        held = [store.pool.getconn() for _ in range(4)]
        for conn in held:
            store.pool.putconn(conn)
        kill_all(scene)
        scene.server.wait()
        for name in list(rows)[:6]:
            assert read_array(store, rows[name], name).nbytes == rows[name].size_bytes
        assert scene.bring_in(store).root == scene.root
    assert scene.facts() == undisturbed


def test_one_connection_that_breaks_does_not_break_the_others(scene):
    """Each read has a connection of its own; one ended by the administrator fails alone."""
    with scene.store() as store:
        scene.bring_in(store)
        rows = scene.rows(store)

        def end_one():
            with store.pool.connection() as other, store.pool.connection() as conn:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", [conn.info.backend_pid])
                conn.execute("SELECT 1")

        with pytest.raises(ConnectionFailedError):
            end_one()
        assert read_array(store, rows["layer.0"], "layer.0").shape == (512, 512)
        assert store.pool.get_stats().get("connections_lost", 0) <= 1


def kill_all(scene):
    """SIGKILL to one server process of the database: the server then ends all others itself."""
    pids = scene.query(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
        "AND backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY pid"
    )
    kill_process(pids[0][0])
    return pids


def killing_store(scene, store):
    """The store, whose third decoding comes after its server process was killed."""
    codec = store.codecs["raw"]
    calls = []

    def decode(body, out):
        calls.append(1)
        if len(calls) == 3:
            kill_all(scene)
        codec.decode(body, out)

    return replace(store, codecs={**store.codecs, "raw": replace(codec, decode=decode)})
