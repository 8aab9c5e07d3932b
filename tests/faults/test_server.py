"""The whole server killed, or out of space: what was said to be done is there."""

from __future__ import annotations

import os
import subprocess
import threading

import pytest

from arc_halo.errors import ConnectionFailedError, DatabaseError
from arc_halo.weights.reading import read_array
from tests.faults.contents import contents_of, write_contents
from tests.faults.scenes import Scene, check_error


def on(server, model):
    return Scene(server, server.create_database(), model)


@pytest.mark.parametrize(
    "at_bytes", [1, pytest.param(2**22, marks=pytest.mark.campaign), 7 * 2**20]
)
def test_a_killed_server_may_lose_steps_but_nothing_that_was_done(
    own_server, model, undisturbed, tmp_path, at_bytes
):
    """The steps of a build are committed without waiting for the disk; its end is not."""
    own_server.start()
    scene = on(own_server, model)
    early = Scene(own_server, scene.database, other_file(tmp_path))
    done = 0
    killed = threading.Event()

    def advance(size):
        nonlocal done
        done += size
        if done >= at_bytes and not killed.is_set():
            killed.set()
            own_server.kill()

    with scene.store() as store:
        early.bring_in(store)
        running = scene.running(lambda: scene.bring_in(store, advance=advance))
        check_error(running.exception(60), ConnectionFailedError)
    own_server.start()
    with scene.store() as store:
        assert len(early.rows(store)) == 6  # reported as done before the server was killed
        for name, row in early.rows(store).items():
            assert read_array(store, row, name).nbytes == row.size_bytes
        assert scene.query("SELECT count(*) FROM weight_sets WHERE root IS NOT NULL") == [(1,)]
        assert scene.bring_in(store).root == scene.root
        scene.check_reads(store)
    assert scene.query("SELECT DISTINCT status FROM weight_builds") == [("complete",)]
    check_contains(scene.facts(), undisturbed)


def test_a_server_killed_right_after_an_import_has_all_of_it(own_server, model, undisturbed):
    own_server.start()
    scene = on(own_server, model)
    with scene.store() as store:
        scene.bring_in(store)
        own_server.kill()
    own_server.start()
    assert scene.facts() == undisturbed
    with scene.store() as store:
        scene.check_reads(store)


def test_a_build_that_finds_another_s_unwritten_chunks_keeps_them_with_its_own_end(
    own_server, model
):
    """They were committed without waiting for the disk, by a program that never came further."""
    own_server.start()
    scene = on(own_server, model)

    class Enough(Exception):
        pass

    done = 0

    def advance(size):
        nonlocal done
        done += size
        if done >= 5 * 2**20:
            raise Enough

    part = contents_of(range(2))
    smaller = Scene(own_server, scene.database, write_contents(model.parent / "part.st", part))
    with scene.store(threads=1) as store:
        with pytest.raises(Enough):
            scene.bring_in(store, advance=advance)
        assert smaller.bring_in(store).new_bytes == 256  # the small ones, which come last
        own_server.kill()
    own_server.start()
    with scene.store() as store:
        smaller.check_reads(store)


# A limit on the size of files stands for a full disk: it needs no right to mount anything. The
# server's log, whose files have 1 MiB, goes on.
FULL_KIB = 4 * 1024


@pytest.mark.parametrize("threads", [1, 4])
def test_an_import_that_the_server_cannot_write_down_goes_on_when_there_is_space(
    own_server, model, undisturbed, threads
):
    own_server.start(file_kib=FULL_KIB)
    scene = on(own_server, model)
    with scene.store(threads=threads) as store:
        running = scene.running(lambda: scene.bring_in(store))
        check_full(running.exception(60))
        # The program's connections are as good as before: the same error, no worse one.
        with pytest.raises(DatabaseError) as caught:
            scene.bring_in(store)
        check_full(caught.value)
    assert scene.query("SELECT status FROM weight_builds") == [("building",)]
    assert scene.query("SELECT count(*) FROM weight_sets WHERE root IS NOT NULL") == [(0,)]
    own_server.stop("fast")
    own_server.start()
    scene.check_finished(undisturbed)


@pytest.mark.campaign
def test_an_import_into_a_full_file_system_goes_on_when_there_is_space(
    own_server, model, undisturbed
):
    """The real thing. Where nothing may be mounted this fails, and says so."""
    moved = own_server.directory / "moved"
    own_server.run("mv", own_server.data, moved)
    own_server.run("mkdir", "-m", "700", own_server.data)
    mount("-t", "tmpfs", "-o", "size=44m", "tmpfs", own_server.data)
    try:
        os.chown(own_server.data, own_server.account.uid, own_server.account.gid)
        own_server.data.chmod(0o700)
        own_server.run("sh", "-c", 'cp -a "$0/." "$1"', moved, own_server.data)
        own_server.start()
        scene = on(own_server, model)
        with scene.store() as store:
            error = scene.running(lambda: scene.bring_in(store)).exception(60)
        check_error(error, DatabaseError)
        mount("-o", "remount,size=400m", own_server.data)
        if not own_server.is_running:  # a full log stops the server itself
            own_server.start()
        own_server.wait()
        scene.check_finished(undisturbed)
        own_server.stop()
    finally:
        subprocess.run(["umount", "-l", own_server.data], check=True)


def mount(*arguments):
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_full(error):
    check_error(error, DatabaseError)
    assert not isinstance(error, ConnectionFailedError)
    assert "could not extend file" in error.message
    assert "space" in error.hint


def other_file(directory):
    return write_contents(directory / "early.safetensors", contents_of(range(10, 12)))


def check_contains(facts, expected):
    for name, rows in expected.items():
        assert set(map(repr, rows)) <= set(map(repr, facts[name])), name
        assert len(set(map(repr, facts[name]))) == len(facts[name])
