"""A real PostgreSQL for every test: a server a session, a migrated database, copies of it.

`ARC_HALO_TEST_DSN` (a URL whose role may create databases) takes the place of the bundled server.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from hypothesis import settings
from psycopg import sql

from arc_halo.bundled.accounts import account_for
from arc_halo.bundled.programs import program
from arc_halo.store import migrate
from arc_halo.store.connection import Connection, connect

# The shell stops the server when its standard input ends: at the end of the session, and also
# when the process of the tests is killed.
SERVER = """
set -e
"$0/initdb" --no-sync --auth=trust --username=postgres --encoding=UTF8 --locale=C \
    -c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_wal_size=4GB \
    -c listen_addresses= -c unix_socket_directories="$1" -D "$1/data" >"$1/log" 2>&1
"$0/pg_ctl" -s -w -D "$1/data" -l "$1/log" start
echo ready
cat >/dev/null
"$0/pg_ctl" -s -m immediate -D "$1/data" stop
rm -rf "$1"
"""

MEMORY_BYTES = 4 * 2**30

SECRET = "pl4nted-in-every-address"
"""The password in the address of every database here: nothing that is printed or logged has it."""

# Who is started in the background by a shell ignores interrupts, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Properties are tried with fewer examples where everything runs, with hypothesis' own number by
# HYPOTHESIS_PROFILE=default.
settings.register_profile("quick", max_examples=40)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

CreateDatabase = Callable[[str | None], str]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pooler", action="store_true", help="reach migrated databases through a pgbouncer"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[pytest.TestReport]:
    report = yield
    if any(SECRET in text for _, text in report.sections):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} printed or logged the password of its database"
    return report


@pytest.fixture
def capsys(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    """As always, and what is read is looked through for the password."""
    read = capsys.readouterr

    def readouterr() -> pytest.CaptureResult[str]:
        found = read()
        assert SECRET not in found.out + found.err
        return found

    capsys.readouterr = readouterr  # type: ignore[method-assign]
    return capsys


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The address of a database from which others can be created."""
    if given := os.environ.get("ARC_HALO_TEST_DSN"):
        yield given
        return
    # In memory where there is some: what tests write need not survive them.
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > MEMORY_BYTES
    directory = Path(tempfile.mkdtemp(prefix="ah-", dir=memory if has_room else "/tmp"))
    with _bundled_server(directory) as server:
        assert server.stdout is not None
        if server.stdout.readline() != b"ready\n":
            pytest.fail((directory / "log").read_text())
        yield f"postgresql://postgres:{SECRET}@/postgres?host={directory}"
        # Among other things, every statement that failed, as it was sent.
        assert SECRET not in (directory / "log").read_text(errors="replace")
        server.communicate()


@pytest.fixture(scope="session")
def create_database(
    create_direct_database: CreateDatabase, request: pytest.FixtureRequest
) -> CreateDatabase:
    """Creates a database, as a copy of another or empty, and gives its URL.

    With `--pooler` a copy is reached through a pooler.
    """
    if not request.config.getoption("--pooler"):
        return create_direct_database
    create_pooled: CreateDatabase = request.getfixturevalue("create_pooled_database")
    return create_pooled


@pytest.fixture(scope="session")
def create_pooled_database(
    create_direct_database: CreateDatabase, server_url: str
) -> Iterator[CreateDatabase]:
    """As `create_database`: what is a copy is reached through a pooler in transaction mode."""
    from tests.poolers.pgbouncer import pooled, running

    with running(server_url) as directory:

        def create(template: str | None) -> str:
            url = create_direct_database(template)
            return url if template is None else pooled(directory, url)

        yield create


@pytest.fixture(scope="session")
def create_direct_database(server_url: str) -> Iterator[CreateDatabase]:
    """Creates a database, as a copy of another or empty, and gives its URL."""
    numbers = itertools.count(1)
    prefix = f"ah_{uuid.uuid4().hex[:8]}"
    created: list[sql.Identifier] = []
    with psycopg.connect(server_url, autocommit=True) as conn:

        def create(template: str | None) -> str:
            name = f"{prefix}_{next(numbers)}"
            source = urlsplit(template).path[1:] if template else "template0"
            created.append(sql.Identifier(name))
            conn.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    created[-1], sql.Identifier(source)
                )
            )
            return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))

        yield create
        if "ARC_HALO_TEST_DSN" in os.environ:
            for name in created:
                conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))


@pytest.fixture(scope="session")
def template(create_database: CreateDatabase) -> str:
    """A migrated database to copy; nobody may stay connected to it."""
    url = create_database(None)
    with connect(url) as conn:
        migrate.up(conn)
    return url


@pytest.fixture
def empty_database(create_database: CreateDatabase, server_url: str) -> Iterator[str]:
    """The URL of a new database that was never migrated."""
    url = create_database(None)
    yield url
    _drop(server_url, url)


@pytest.fixture
def database(create_database: CreateDatabase, server_url: str, template: str) -> Iterator[str]:
    """The URL of a migrated database of the test's own, for tests that commit."""
    url = create_database(template)
    yield url
    _drop(server_url, url)


@pytest.fixture(scope="session")
def shared_database(create_database: CreateDatabase, template: str) -> str:
    """The URL of the migrated database in which no test commits."""
    return create_database(template)


@pytest.fixture
def conn(shared_database: str) -> Iterator[Connection]:
    """A connection in a transaction that is rolled back after the test.

    Deferred foreign keys are never looked at then: `SET CONSTRAINTS ALL IMMEDIATE` does.
    """
    with connect(shared_database) as connection, connection.transaction(force_rollback=True):
        yield connection


def _drop(server_url: str, url: str) -> None:
    name = sql.Identifier(urlsplit(url).path[1:])
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))


def _bundled_server(directory: Path) -> subprocess.Popen[bytes]:
    account = account_for(directory)
    if account.is_other:  # root, which PostgreSQL refuses to run as, lends it a directory
        os.chown(directory, account.uid, account.gid)
    return subprocess.Popen(
        ["sh", "-c", SERVER, str(program("initdb", account).parent), str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        **account.options(),
    )
