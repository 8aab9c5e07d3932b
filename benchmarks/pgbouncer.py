"""A pgbouncer in transaction mode before a server, for as long as a block lasts."""

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
from psycopg.conninfo import conninfo_to_dict

from arc_halo.bundled.accounts import account_for

SECONDS = 30.0

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
default_pool_size = 4
max_client_conn = 400
server_fast_close = 1
"""


@contextmanager
def pooler(server_url: str) -> Iterator[Path]:
    """The directory of its socket. Raises `SystemExit` where pgbouncer is not installed."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        raise SystemExit("pgbouncer is not installed: apt-get install pgbouncer")
    directory = Path(tempfile.mkdtemp(prefix="ahp-", dir="/tmp"))
    account = account_for(directory)
    words = conninfo_to_dict(server_url).items()
    server = " ".join(f"{k}='{v}'" for k, v in words if k in ("host", "port", "user", "password"))
    settings = directory / "pgbouncer.ini"
    settings.write_text(SETTINGS.format(server=server, directory=directory))
    if account.is_other:  # pgbouncer refuses to run as root
        for path in (directory, settings):
            os.chown(path, account.uid, account.gid)
    process = subprocess.Popen([found, "-q", str(settings)], cwd="/", **account.options())
    try:
        _await(directory)
        yield directory
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(directory)


def pooled(directory: Path, url: str) -> str:
    """The address of a database behind the pooler."""
    user = quote(str(conninfo_to_dict(url).get("user", "postgres")))
    return f"postgresql://{user}@/{urlsplit(url).path[1:]}?host={directory}&port=6432"


def _await(directory: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            psycopg.connect(f"host={directory} port=6432 dbname=postgres user=postgres").close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
