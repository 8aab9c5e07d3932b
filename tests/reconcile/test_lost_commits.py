"""The line goes while an apply commits: what the database says afterwards is what is told."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from arc_halo import Project
from arc_halo.errors import ConnectionFailedError, LockTimeoutError
from arc_halo.reconcile import committing

MANIFEST = {"models": {"a@1": {"type": "other"}}}


COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"


class Relay:
    """Passes bytes between clients and a server's socket, until a client says COMMIT.

    Then the line is cut: before the server has heard it, or after. With `for_all`, nobody is let
    through from then on.
    """

    def __init__(self, directory: Path, server: str, *, heard: bool, for_all: bool) -> None:
        self._server = server
        self._heard = heard
        self._for_all = for_all
        self._is_cut = False
        self._open: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / ".s.PGSQL.5432"))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]

    def start(self) -> None:
        self._threads[0].start()

    def close(self) -> None:
        for each in (self._listener, *self._open):
            _shut(each)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._open):
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                self._open += [client, server]
                if self._is_cut and self._for_all:
                    _shut(client)
                    continue
                server.connect(self._server)
                for one, other in ((client, server), (server, client)):
                    thread = threading.Thread(target=self._pass, args=(one, other))
                    self._threads.append(thread)
                    thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if data == COMMIT and not self._is_cut:
                    self._is_cut = True
                    if self._heard:
                        sink.sendall(data)
                        _shut(source)
                        time.sleep(0.2)  # or the server would see its client go first
                    break
                if self._is_cut and self._for_all:  # one that was open before
                    break
                sink.sendall(data)
        _shut(source)
        _shut(sink)


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def cut(url: str, *, heard: bool, for_all: bool = False) -> Iterator[str]:
    """The address of a server whose line is cut at the first COMMIT."""
    host = parse_qs(urlsplit(url).query)["host"][0]
    with tempfile.TemporaryDirectory(prefix="ah-") as directory:
        relay = Relay(Path(directory), f"{host}/.s.PGSQL.5432", heard=heard, for_all=for_all)
        relay.start()
        try:
            yield url.replace(host, directory)
        finally:
            relay.close()


@pytest.fixture
def plan(workshop):
    workshop.write(MANIFEST)
    return workshop.plan()


def apply(workshop, url, plan):
    with Project(workshop.directory, database_url=url, environ={}) as project:
        _ = project.pool  # its first connection says nothing of commits
        return project.apply(plan)


def test_a_commit_whose_answer_was_lost_is_told_as_done(workshop, plan):
    with cut(workshop.url, heard=True) as url:
        assert apply(workshop, url, plan).revision == 1
    assert workshop.value("SELECT count(*) FROM models") == 1


def test_a_commit_that_was_never_heard_is_told_as_not_done(workshop, plan):
    with (
        cut(workshop.url, heard=False) as url,
        pytest.raises(ConnectionFailedError, match="nothing was changed") as caught,
    ):
        apply(workshop, url, plan)
    assert caught.value.hint == "run the command again"
    assert workshop.value("SELECT count(*) FROM models") == 0
    assert workshop.apply().revision == 1


def test_where_nobody_can_be_asked_it_is_said_to_be_unknown(workshop, plan, monkeypatch):
    monkeypatch.setattr("arc_halo.store.connection.CONNECT_SECONDS", 1.0)
    with (
        cut(workshop.url, heard=True, for_all=True) as url,
        pytest.raises(ConnectionFailedError, match="is not known") as caught,
    ):
        apply(workshop, url, plan)
    assert "arc-halo history" in (caught.value.hint or "")
    assert workshop.value("SELECT count(*) FROM models") == 1


def test_rows_that_another_program_holds_are_not_waited_for_for_ever(workshop, monkeypatch):
    monkeypatch.setattr(committing, "LOCK_SECONDS", 0.2)
    workshop.apply({"models": {"a@1": {"type": "other"}}})
    workshop.write({"models": {"a@1": {"type": "other", "description": "new"}}})
    with psycopg.connect(workshop.url) as other:
        other.execute("SELECT FROM models FOR UPDATE")
        with pytest.raises(LockTimeoutError, match="lock timeout") as caught:
            workshop.apply()
    assert (caught.value.error_code, caught.value.exit_code) == ("AH051", 3)
    assert workshop.apply().revision == 2
