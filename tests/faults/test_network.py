"""The line between program and server cut after any number of bytes, or gone silent."""

from __future__ import annotations

import pytest

from arc_halo.errors import ConnectionFailedError
from arc_halo.formats.safetensors import arc_halo_weight_formats
from arc_halo.transfer.exporting import export_weights
from arc_halo.weights.reading import read_array
from tests.faults.proxies import Proxy
from tests.faults.scenes import check_error

(SAFETENSORS,) = arc_halo_weight_formats()

# A dead peer is noticed after seconds with these, after a minute without.
IMPATIENT = {
    "tcp_user_timeout": 1000,
    "keepalives_idle": 1,
    "keepalives_interval": 1,
    "connect_timeout": 2,
}

campaign = pytest.mark.campaign


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    ("direction", "after"),
    [
        ("up", 1),
        pytest.param("up", 200, marks=campaign),
        pytest.param("up", 2_000, marks=campaign),
        ("up", 300_000),
        pytest.param("up", 1_500_000, marks=campaign),
        ("up", 3_000_000),
        pytest.param("down", 1, marks=campaign),
        ("down", 700),
        pytest.param("down", 2_500, marks=campaign),
    ],
)
def test_an_import_whose_line_is_cut_goes_on_in_the_next(scene, undisturbed, how, direction, after):
    with Proxy(scene.server.port, how=how, direction=direction, after=after) as proxy:
        url = scene.server.url(scene.database, port=proxy.port)
        with scene.store(url, threads=1) as store:
            error = scene.running(lambda: scene.bring_in(store)).exception(60)
        assert proxy.broken.is_set()
        if error is not None:  # the pool's first connection is made again unseen
            check_error(error, ConnectionFailedError)
        else:
            assert after < 2_000
    scene.check_finished(undisturbed)


@pytest.mark.parametrize("how", ["close", "reset", "black hole"])
def test_a_read_and_an_export_whose_line_is_cut_fail_and_leave_no_file(scene, tmp_path, how):
    large = scene.large(tmp_path)
    out = tmp_path / "out" / "model.safetensors"
    out.parent.mkdir()
    with large.store() as store:
        large.bring_in(store)
        row, set_id = large.rows(store)["one"], large.set_id(store)
    ways = (
        lambda store: read_array(store, row, "one"),
        lambda store: export_weights(store, set_id, out, SAFETENSORS, metadata={}),
    )
    for way in ways:
        with Proxy(scene.server.port, how=how, direction="down", after=2**21) as proxy:
            url = scene.server.url(large.database, port=proxy.port, **IMPATIENT)
            with large.store(url) as store, pytest.raises(ConnectionFailedError) as caught:
                way(store)
        check_error(caught.value, ConnectionFailedError)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("moment", ["sending", "waiting"])
def test_a_server_that_is_gone_without_a_word_is_noticed(scene, gate, undisturbed, moment):
    """What is on its way is never acknowledged; or the answer never comes."""
    closed = gate("chunk_bodies") if moment == "waiting" else None

    def advance(size):
        if closed is None and not proxy.broken.is_set():
            proxy.break_all()

    with Proxy(scene.server.port, how="black hole") as proxy:
        url = scene.server.url(scene.database, port=proxy.port, **IMPATIENT)
        with scene.store(url) as store:
            running = scene.running(lambda: scene.bring_in(store, advance=advance))
            if closed is not None:
                closed.wait()
                proxy.break_all()
            check_error(running.exception(60), ConnectionFailedError)
    end_all(scene)
    if closed is not None:
        closed.remove()
    scene.check_finished(undisturbed)


def test_a_dead_peer_is_noticed_within_about_a_minute_unless_the_address_says_otherwise():
    from arc_halo.store.connection import parameters

    settings = parameters("postgresql://127.0.0.1/x")
    assert settings["tcp_user_timeout"] == "60000"
    idle = int(settings["keepalives_idle"])
    assert idle + int(settings["keepalives_interval"]) * int(settings["keepalives_count"]) <= 60
    assert parameters("postgresql://127.0.0.1/x?tcp_user_timeout=5000")["tcp_user_timeout"] == (
        "5000"
    )


def end_all(scene):
    """The server's side of the black hole, which would notice in its own time."""
    scene.query(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
