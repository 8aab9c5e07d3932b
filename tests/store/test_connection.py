from __future__ import annotations

import os
import random
import re
import socket
import threading
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from arc_halo.errors import ConnectionFailedError, DatabaseError, LockNotHadError
from arc_halo.store.connection import connect, parameters, pool, translate, try_xact_lock
from arc_halo.store.failures import one_line
from arc_halo.store.locks import lock_holder

SECRET = "pl4nted-s3cret"
NEON = "ep-cool-rain-123456-pooler.eu-central-1.aws.neon.tech"


@pytest.fixture(autouse=True)
def no_libpq_variables(monkeypatch):
    for name in ("PGSSLMODE", "PGSSLROOTCERT", "PGHOST", "PGHOSTADDR", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


def failure(url, **options):
    with pytest.raises(ConnectionFailedError) as caught:
        connect(url, timeout_seconds=0, **options)
    return caught.value


def everything_said(error):
    return "".join(traceback.format_exception(error)) + f"{error!r} {error.hint}"


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_a_connection_commits_by_itself_and_prepares_nothing(database):
    with connect(database, application_name="a test") as conn:
        assert conn.autocommit
        for _ in range(10):
            conn.execute("SELECT %s::int", (1,))
        assert conn.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
        assert conn.execute("SHOW application_name").fetchone() == ("a test",)
        assert conn.execute("SHOW client_encoding").fetchone() == ("UTF8",)


def test_a_pool_gives_connections_of_the_same_kind(database):
    with pool(database, 2) as connections, connections.connection() as conn:
        assert conn.autocommit
        assert conn.prepare_threshold is None
        with connections.connection() as other:
            assert other.info.backend_pid != conn.info.backend_pid


def test_connections_draw_none_of_the_programs_random_numbers(database):
    random.seed(1)
    before = random.getstate()
    with pool(database, 4) as opened, ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(opened.connection()).execute("SELECT 1")
        assert random.getstate() == before
    with pytest.raises(ConnectionFailedError):
        connect(f"postgresql://127.0.0.1:{free_port()}/x", timeout_seconds=0.4)
    assert random.getstate() == before


def test_a_pool_that_finds_no_server_ends_in_our_error():
    lonely = pool(f"postgresql://127.0.0.1:{free_port()}/x", 1)
    with lonely, pytest.raises(ConnectionFailedError), translate(), lonely.connection(timeout=0.2):
        pass


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@db.example.org/x",
        "host=db.example.org dbname=x",
        f"postgresql://u@{NEON}/x",
        "postgresql://u@10.1.2.3/x",
        "host=/run/postgresql,db.example.org",
        "host=localhost hostaddr=10.1.2.3",
        "service=somewhere",
    ],
)
def test_a_remote_server_is_verified(url):
    found = parameters(url)
    assert found["sslmode"] == "verify-full"
    assert found["sslrootcert"]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///x?host=/run/postgresql",
        "postgresql://localhost/x",
        "postgresql://127.0.0.2/x",
        "postgresql://[::1]/x",
        "dbname=x",
        "host=@abstract",
        "host=db.example.org hostaddr=127.0.0.1",
    ],
)
def test_a_local_server_needs_no_tls(url):
    assert "sslmode" not in parameters(url)


def test_what_the_address_says_about_tls_stands():
    found = parameters("postgresql://db.example.org/x?sslmode=require&connect_timeout=3")
    assert found["sslmode"] == "require"
    assert "sslrootcert" not in found
    assert found["connect_timeout"] == "3"
    own = parameters("postgresql://db/x?sslmode=verify-ca&sslrootcert=/etc/our.crt")
    assert (own["sslmode"], own["sslrootcert"]) == ("verify-ca", "/etc/our.crt")


def test_what_libpqs_variables_say_about_tls_stands(monkeypatch):
    monkeypatch.setenv("PGSSLMODE", "require")
    assert "sslmode" not in parameters("postgresql://db.example.org/x")
    monkeypatch.setenv("PGHOST", "db.example.org")
    monkeypatch.delenv("PGSSLMODE")
    assert parameters("dbname=x")["sslmode"] == "verify-full"


def test_the_systems_authorities_are_a_file_that_exists_or_left_to_libpq(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = parameters("postgresql://db.example.org/x?sslrootcert=system")
    assert found["sslmode"] == "verify-full"
    assert found["sslrootcert"] == "system" or Path(found["sslrootcert"]).read_bytes()
    monkeypatch.setenv("SSL_CERT_FILE", "/somewhere.crt")
    assert parameters("postgresql://db.example.org/x")["sslrootcert"] == "system"


def test_libpqs_own_root_certificate_is_left_to_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".postgresql").mkdir()
    (tmp_path / ".postgresql" / "root.crt").touch()
    found = parameters("postgresql://db.example.org/x")
    assert (found["sslmode"], found.get("sslrootcert")) == ("verify-full", None)


def test_direct_goes_round_a_neon_pooler_and_only_that():
    def host(url):
        return parameters(url, direct=True)["host"]

    assert host(f"postgresql://u@{NEON}/x") == NEON.replace("-pooler", "")
    assert host("postgresql://u@my-pooler.example.org/x") == "my-pooler.example.org"
    assert parameters(f"postgresql://u@{NEON}/x")["host"] == NEON


def test_a_refused_password_never_shows(server_url):
    parts = conninfo_to_dict(server_url)
    for url in (
        f"postgresql://nobody_at_all:{SECRET}@/x?host={parts['host']}",
        f"host={parts['host']} user=nobody_at_all password={SECRET}",
        f"postgresql://u:{SECRET}@127.0.0.1:{free_port()}/x",
        f"postgresql://u@127.0.0.1:{free_port()}/x?password={SECRET}",
    ):
        error = failure(url)
        assert SECRET not in everything_said(error)
        assert error.__cause__ is None
        assert error.__context__ is None


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:p@{SECRET}@127.0.0.1/x",
        f"postgresql://u:{SECRET}%zz@127.0.0.1/x",
        f"host=127.0.0.1 password=a {SECRET}",
        f"host=127.0.0.1 password='{SECRET}",
        f"postgresql://u:{SECRET}@[::1/x",
        f"postgresql://u:x@127.0.0.1/x?{SECRET}",
    ],
)
def test_an_address_that_cannot_be_read_is_refused_without_its_password(url):
    error = failure(url)
    assert error.error_code == "AH040"
    assert SECRET not in everything_said(error)


def test_an_unknown_database_is_not_waited_for(server_url):
    url = re.sub(r"/[^/?]*\?", "/no_such_database?", server_url, count=1)
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError, match="no_such_database") as caught:
        connect(url, timeout_seconds=20)
    assert time.monotonic() - started < 5
    assert "createdb" in str(caught.value.hint)


def test_an_unknown_role_is_not_waited_for(server_url):
    parts = conninfo_to_dict(server_url)
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError, match="nobody_at_all") as caught:
        connect(f"postgresql://nobody_at_all@/postgres?host={parts['host']}", timeout_seconds=20)
    assert time.monotonic() - started < 5
    assert "check the user" in str(caught.value.hint)


def test_a_server_that_is_not_there_yet_is_waited_for(server_url):
    port, said = free_port(), []
    relay = threading.Thread(target=_relay_after, args=(0.6, port, server_url))
    relay.start()
    url = make_conninfo(server_url, host="127.0.0.1", port=port, sslmode="disable")
    with connect(f"{url} gssencmode=disable", timeout_seconds=20, waiting=said.append) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    relay.join()
    assert len(said) == 1
    assert "refused" in said[0]


def _relay_after(seconds, port, url):
    """A server that wakes late: one TCP connection handed on to the real server."""
    time.sleep(seconds)
    with socket.create_server(("127.0.0.1", port)) as listener:
        client, _ = listener.accept()
    with client, _socket_to(url) as server:
        back = threading.Thread(target=_pump, args=(server, client))
        back.start()
        _pump(client, server)
        back.join()


def _socket_to(url):
    parts = conninfo_to_dict(url)
    port = int(parts.get("port", 5432))
    if not parts["host"].startswith("/"):
        return socket.create_connection((parts["host"], port))
    server = socket.socket(socket.AF_UNIX)
    server.connect(f"{parts['host']}/.s.PGSQL.{port}")
    return server


def _pump(source, sink):
    while data := source.recv(65536):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)


def test_patience_ends_and_says_why():
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError, match="refused") as caught:
        connect(f"postgresql://127.0.0.1:{free_port()}/x", timeout_seconds=1)
    assert time.monotonic() - started < 5
    assert "check the host and the port" in str(caught.value.hint)


def test_a_server_without_tls_is_refused_where_tls_is_asked_for(server_url):
    listener = socket.create_server(("127.0.0.1", 0))
    refuser = threading.Thread(target=_refuse_tls, args=(listener,))
    refuser.start()
    port = listener.getsockname()[1]
    error = failure(f"postgresql://u:{SECRET}@127.0.0.1:{port}/x?sslmode=require")
    refuser.join()
    assert "does not support SSL" in str(error)
    assert SECRET not in everything_said(error)


def _refuse_tls(listener):
    with listener:
        client, _ = listener.accept()
        with client:
            client.recv(8)
            client.sendall(b"N")


def test_what_libpq_says_for_each_try_is_said_once():
    said = "connection failed: it is closed\n\tIs it?\nconnection failed: it is closed"
    assert one_line(said) == "it is closed Is it?"


@pytest.mark.parametrize(
    ("statement", "words", "hint"),
    [
        ("SELECT * FROM nowhere", "nowhere.*SQLSTATE 42P01", "migrate up"),
        ("SELECT nothing_such()", "SQLSTATE 42883", "migrate up"),
        ("SET LOCAL transaction_read_only = on; CREATE TABLE t ()", "SQLSTATE 25006", "primary"),
        ("SET LOCAL ROLE pg_monitor; CREATE TABLE t ()", "SQLSTATE 42501", "grant"),
    ],
)
def test_a_refused_statement_says_its_state_and_what_to_do(conn, statement, words, hint):
    with pytest.raises(DatabaseError, match=words) as caught, translate(), conn.transaction():
        conn.execute(statement)
    assert caught.value.error_code == "AH044"
    assert hint in str(caught.value.hint)


def test_a_broken_constraint_is_named_with_its_table(conn):
    conn.execute("CREATE TEMP TABLE once (n int CONSTRAINT only_once PRIMARY KEY)")
    with pytest.raises(DatabaseError) as caught, translate(), conn.transaction():
        conn.execute("INSERT INTO once VALUES (7), (7)")
    for words in ("table once", "constraint only_once", "SQLSTATE 23505", "(n)=(7)"):
        assert words in str(caught.value)
    assert isinstance(caught.value.__cause__, psycopg.errors.UniqueViolation)


def test_a_lost_connection_is_told_apart(database):
    with connect(database) as killer, connect(database) as victim:
        killer.execute("SELECT pg_terminate_backend(%s)", (victim.info.backend_pid,))
        with pytest.raises(ConnectionFailedError, match="lost") as caught, translate():
            victim.execute("SELECT 1")
        assert caught.value.error_code == "AH040"
        with pytest.raises(ConnectionFailedError, match="lost"), translate():
            victim.execute("SELECT 1")


def test_a_line_that_is_cut_within_a_statement_is_a_lost_connection(database):
    with (
        connect(database) as victim,
        pytest.raises(ConnectionFailedError, match="lost"),
        translate(),
    ):
        _copy_over_a_cut_line(victim)


def _copy_over_a_cut_line(conn):
    with (
        conn.cursor() as cursor,
        cursor.copy("COPY (SELECT generate_series(1, 3000000)) TO STDOUT") as copy,
    ):
        with socket.socket(fileno=os.dup(conn.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)
        while copy.read():
            pass


def test_other_errors_pass_through_translate():
    with pytest.raises(ZeroDivisionError), translate():
        1 / 0  # noqa: B018


def test_a_held_lock_is_not_had_and_its_holder_is_named(database):
    with (
        connect(database, application_name="arc-halo apply") as holder,
        connect(database) as other,
        holder.transaction(),
    ):
        try_xact_lock(holder, "arc-halo/demo", 0)
        with pytest.raises(LockNotHadError) as caught, other.transaction():
            try_xact_lock(other, "arc-halo/demo", 0.1)
        assert f"pid {holder.info.backend_pid}, arc-halo apply, since 20" in str(caught.value)
        with other.transaction():
            try_xact_lock(other, "arc-halo/another", 0)


@pytest.mark.parametrize("key", ["a", "b", "c", "d", "e", "f", "", "ünïcode", "x" * 1000])
def test_the_holder_is_found_for_any_key(database, key):
    with connect(database) as holder, connect(database) as other, holder.transaction():
        assert lock_holder(other, key) is None
        try_xact_lock(holder, key, 0)
        found = lock_holder(other, key)
        assert found is not None
        assert found.pid == holder.info.backend_pid


def test_a_lock_is_gone_with_its_transaction_and_is_waited_for(database):
    got = []

    def wait():
        with connect(database) as other, other.transaction():
            try_xact_lock(other, "k", 10)
            got.append(time.monotonic())

    waiter = threading.Thread(target=wait)
    with connect(database) as holder:
        with holder.transaction():
            try_xact_lock(holder, "k", 0)
            waiter.start()
            time.sleep(0.3)
            assert got == []
            released = time.monotonic()
        waiter.join(10)
    assert len(got) == 1
    assert got[0] >= released


def test_a_lock_outside_of_a_transaction_is_a_mistake(database):
    with connect(database) as conn, pytest.raises(ValueError, match="needs a transaction"):
        try_xact_lock(conn, "k", 0)
