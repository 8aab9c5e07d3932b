"""A real pgbouncer in transaction mode, in front of the tests' server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from arc_halo.bundled.accounts import account_for

SERVERS = 4
"""Connections to the server, for each database: fewer than the clients that the tests have."""
SECONDS = 30.0

# No startup parameter is let pass that transaction mode cannot keep, as on Neon.
SETTINGS = """
[databases]
* = {server}
[pgbouncer]
listen_addr =
unix_socket_dir = {directory}
listen_port = 6432
logfile = {directory}/log
pool_mode = transaction
auth_type = any
default_pool_size = {servers}
max_client_conn = 200
server_fast_close = 1
"""

# Ends the pooler when its standard input ends: with the tests, or with their process.
KEEPER = """
"$0" -q "$1/pgbouncer.ini" &
cat >/dev/null
kill $!
wait $!
rm -rf "$1"
"""


def program() -> str:
    """The path of pgbouncer. A test that needs it fails where it is not installed."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.fail("pgbouncer is not installed: apt-get install pgbouncer")
    return found


@contextmanager
def running(server_url: str) -> Iterator[Path]:
    """A pooler in front of a server, as the directory of its socket."""
    directory = Path(tempfile.mkdtemp(prefix="ahp-", dir="/tmp"))
    account = account_for(directory)
    kept = ("host", "port", "user", "password")
    words = {name: str(word) for name, word in conninfo_to_dict(server_url).items() if name in kept}
    server = " ".join(f"{name}='{word}'" for name, word in words.items())
    settings = SETTINGS.format(server=server, directory=directory, servers=SERVERS)
    (directory / "pgbouncer.ini").write_text(settings)
    if account.is_other:  # pgbouncer refuses to run as root
        os.chown(directory, account.uid, account.gid)
        os.chown(directory / "pgbouncer.ini", account.uid, account.gid)
    keeper = subprocess.Popen(
        ["sh", "-c", KEEPER, program(), str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        **account.options(),
    )
    try:
        _wait(directory)
        yield directory
    finally:
        keeper.communicate()


def pooled(directory: Path, url: str) -> str:
    """The address of a database behind the pooler."""
    user = quote(str(conninfo_to_dict(url).get("user", "postgres")))
    return f"postgresql://{user}@/{urlsplit(url).path[1:]}?host={directory}&port=6432"


def _wait(directory: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            psycopg.connect(f"host={directory} port=6432 dbname=postgres user=postgres").close()
        except psycopg.OperationalError as exc:
            if time.monotonic() > deadline:
                log = directory / "log"
                pytest.fail(f"{exc}\n{log.read_text() if log.exists() else ''}")
            time.sleep(0.02)
        else:
            return
