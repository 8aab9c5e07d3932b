"""Servers of the tests' own, to be killed, filled and cut off."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from arc_halo.bundled.accounts import account_for
from arc_halo.bundled.programs import program

PASSWORD = "pl4nted-s3cret"
SECONDS = 60.0
"""How long a test waits for what must come; nothing is asserted of it."""

# Asynchronous commits stay in memory as long as the server lets them, to be lost with it.
SETTINGS = {
    "fsync": "on",
    "wal_writer_delay": "10s",
    "wal_writer_flush_after": "1GB",
    "max_connections": "60",
    "shared_buffers": "32MB",
}

# Takes the server away when its standard input ends: with the test, or with its process.
KEEPER = """
cat >/dev/null
"$0/pg_ctl" -s -m immediate -D "$1/data" stop >/dev/null 2>&1
rm -rf "$1"
"""


class Server:
    """A PostgreSQL that a test may end in any way and start again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.account = account_for(directory)
        self.programs = program("initdb", self.account).parent
        self.port: int | None = None
        self._numbers = count(1)

    def run(self, *command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        # Not into pipes, which the server would keep open.
        with tempfile.TemporaryFile("w+") as said:
            done = subprocess.run(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                cwd="/",
                check=False,
                **self.account.options(),
            )
            said.seek(0)
            text = said.read()
        if check and done.returncode:
            pytest.fail(f"{command[0]}: {text}\n{self.log()}")
        return subprocess.CompletedProcess(command, done.returncode, text)

    def start(self, *, file_kib: int | None = None, tcp: bool = False) -> None:
        """Start it; with `file_kib` no file of it can grow beyond that."""
        settings = {**SETTINGS, "listen_addresses": "", "unix_socket_directories": self.directory}
        if tcp:
            self.port = self.port or free_port()
            settings |= {"listen_addresses": "127.0.0.1", "port": self.port}
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        limit = f"ulimit -S -f {file_kib * 2}; " if file_kib else ""
        command = f'{limit}exec "$0/pg_ctl" -s -w -t 60 -D "$1/data" -l "$1/log" -o "$2" start'
        deadline = time.monotonic() + SECONDS
        while True:
            # The children of a killed postmaster may still be on their way out.
            done = self.run(
                "sh", "-c", command, self.programs, self.directory, options, check=False
            )
            if done.returncode == 0:
                return
            if time.monotonic() > deadline:
                pytest.fail(f"{done.stdout}\n{self.log()}")
            time.sleep(0.1)

    def stop(self, mode: str = "immediate") -> None:
        self.run(self.programs / "pg_ctl", "-s", "-w", "-m", mode, "-D", self.data, "stop")

    def kill(self) -> None:
        """SIGKILL to the postmaster: nothing is written any more."""
        os.kill(int((self.data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    @property
    def is_running(self) -> bool:
        status = self.run(self.programs / "pg_ctl", "-D", self.data, "status", check=False)
        return status.returncode == 0

    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text() if path.exists() else ""

    def url(self, database: str, *, port: int | None = None, **words: object) -> str:
        """The address of a database, by the socket or, with a port, by loopback."""
        host = f"127.0.0.1:{port}" if port else ""
        by_socket = {"host": self.directory, "port": self.port or 5432}
        query = {**({} if port else by_socket), **words}
        text = "&".join(f"{name}={value}" for name, value in query.items())
        return f"postgresql://postgres:{PASSWORD}@{host}/{database}" + (f"?{text}" if text else "")

    def wait(self) -> None:
        """Until it takes connections again, after one of its processes was killed."""
        wait_for(self._takes_connections)

    def _takes_connections(self) -> bool:
        try:
            psycopg.connect(self.url("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True

    def create_database(self) -> str:
        """The name of a new, migrated database."""
        name = f"d{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as conn:
            conn.execute(f"CREATE DATABASE {name} TEMPLATE migrated")
        return name


def kill_process(pid: int) -> None:
    """SIGKILL to one process of a server, which has noticed when this returns: until then it takes
    connections, and lets the others work."""
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists())


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def new_directory() -> Path:
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 2**31
    return Path(tempfile.mkdtemp(prefix="ahf-", dir=memory if has_room else "/tmp"))


@contextmanager
def kept(directory: Path) -> Iterator[Server]:
    """A server in `directory`, which goes with it."""
    server = Server(directory)
    if server.account.is_other:
        os.chown(directory, server.account.uid, server.account.gid)
    keeper = subprocess.Popen(
        ["sh", "-c", KEEPER, str(server.programs), str(directory)],
        stdin=subprocess.PIPE,
        cwd="/",
        **server.account.options(),
    )
    try:
        yield server
    finally:
        keeper.communicate()
        shutil.rmtree(directory, ignore_errors=True)


def wait_for(ask: Callable[[], Any]) -> Any:
    """What `ask` says once it says something."""
    deadline = time.monotonic() + SECONDS
    while not (found := ask()):
        if time.monotonic() > deadline:
            pytest.fail("what the test waits for did not come")
        time.sleep(0.01)
    return found
