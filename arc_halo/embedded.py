"""The embedded server's life: who uses it, when it starts, when it stops.

Each project has a PostgreSQL of its own, for its user only, with its files below `.arc-halo`. It
starts with its first user and stops with its last, or stays by choice. A process that is killed
loses its claim by itself; the server it may leave behind serves the next process.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from arc_halo.bundled import programs
from arc_halo.bundled.accounts import Account, account_for
from arc_halo.bundled.cluster import (
    PORT,
    create_cluster,
    give,
    hint_for,
    launch,
    write_configuration,
)
from arc_halo.bundled.place import Place, controlled, explained, lock, open_private
from arc_halo.errors import EmbeddedServerError

# Recovery after a crash has as much write-ahead log to replay as max_wal_size allows.
START_SECONDS = 300.0
STOP_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What there is to know of a project's embedded server without connecting to it."""

    running: bool
    pid: int | None
    version: str | None
    data_directory: Path
    socket_directory: Path
    url: str
    kept: bool
    size_bytes: int | None


class Lease:
    """A claim on the running server, until `release` or the end of the process."""

    def __init__(self, place: Place, handle: int) -> None:
        self.url = place.url
        self._place = place
        self._handle: int | None = handle
        self._owner = os.getpid()
        atexit.register(self.release)

    def release(self) -> None:
        """Give the claim back; the last one stops the server, unless it is to be kept.

        A second call does nothing. In a forked child the claim stays the parent's.
        """
        handle, self._handle = self._handle, None
        if handle is None:
            return
        atexit.unregister(self.release)
        try:
            if self._owner == os.getpid() and self._place.home.is_dir():
                _leave(self._place, handle)
        finally:
            os.close(handle)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def acquire(directory: Path) -> Lease:
    """Use the server of the project in `directory`, made and started where it must be.

    Raises `EmbeddedServerError`.
    """
    place = Place(directory)
    with explained(place), controlled(place, _CONTROL_SECONDS) as control:
        handle = open_private(place.lease)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            _ensure_running(place, control)
        except BaseException:
            os.close(handle)
            raise
    return Lease(place, handle)


def start(directory: Path, *, keep: bool = True) -> Status:
    """Start the server, to stay (`keep`) or to be stopped by its next last user."""
    place = Place(directory)
    with explained(place), controlled(place, _CONTROL_SECONDS) as control:
        _ensure_running(place, control)
        if keep:
            os.close(open_private(place.keep))
    return status(directory)


def stop(directory: Path, *, force: bool = False) -> bool:
    """Stop the server, kept or not; whether there was one to stop.

    While others use it this is an `EmbeddedServerError`, unless `force` throws them out.
    """
    place = Place(directory)
    if not place.home.is_dir():
        return False
    with explained(place), controlled(place, _CONTROL_SECONDS):
        was_running = place.is_running()
        if was_running and not force:
            _refuse_while_used(place)
        place.keep.unlink(missing_ok=True)
        if was_running:
            _shut_down(place)
    return was_running


def status(directory: Path) -> Status:
    """How the server of the project in `directory` is. Changes nothing."""
    place = Place(directory)
    with explained(place):
        running = place.is_running()
        return Status(
            running=running,
            pid=_postmaster(place) if running else None,
            version=_version(),
            data_directory=place.data,
            socket_directory=place.socket_directory,
            url=place.url,
            kept=place.keep.exists(),
            size_bytes=place.size_bytes() if place.data.is_dir() else None,
        )


_CONTROL_SECONDS = START_SECONDS + STOP_SECONDS


def _ensure_running(place: Place, control: int) -> None:
    account = account_for(place.data)
    _ensure_cluster(place, account, control)
    place.link_socket_directory()
    if _await_ready(place):
        return
    _launch(place, account)
    if not _await_ready(place):
        said = place.log_tail()
        raise EmbeddedServerError(
            f"the embedded PostgreSQL in {place.home} does not start:\n{said}",
            hint=hint_for(said),
        )


def _ensure_cluster(place: Place, account: Account, control: int) -> None:
    if not place.data.exists():
        create_cluster(place.data, account, hold=control)
        return
    try:
        version = (place.data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        version = ""
    if version == str(programs.MAJOR_VERSION):
        return
    what = f"is of PostgreSQL {version}" if version else "is not a PostgreSQL data directory"
    raise EmbeddedServerError(
        f"{place.data} {what}; the bundled server is of version {programs.MAJOR_VERSION}",
        hint="move it away and a new one is made; to keep what is in it, dump it with the "
        "PostgreSQL that made it, then restore",
    )


def _launch(place: Place, account: Account) -> None:
    _remove_stale_pid_files(place)
    if place.data.stat().st_uid != account.uid:
        # Root copied the project: the files came out as root's, whom PostgreSQL will not serve.
        give(place.data, account)
    write_configuration(place.data, account)
    running = open_private(place.running)
    log = place.open_log()
    try:
        # Patiently: somebody may be probing the lock just now.
        lock(running, START_SECONDS, place)
        launch(place.data, account, log=log, running=running)
    finally:
        os.close(running)
        os.close(log)


def _remove_stale_pid_files(place: Place) -> None:
    """PostgreSQL would take any process that has the number now for the server of then."""
    pid, _ = place.postmaster()
    if pid is not None and not _is_foreign_server(pid, place):
        for name in ("postmaster.pid", f".s.PGSQL.{PORT}.lock"):
            (place.data / name).unlink(missing_ok=True)


def _is_foreign_server(pid: int, place: Place) -> bool:
    """Whether `pid` may be a server on this data that we did not start."""
    if not Path("/proc/self").exists():
        return _is_alive(pid)
    try:
        return Path(f"/proc/{pid}/cwd").samefile(place.data)
    except OSError:
        return False


def _await_ready(place: Place) -> bool:
    """Wait while the server comes up, or goes down: whether it is there in the end."""
    deadline = time.monotonic() + START_SECONDS
    while place.is_running():
        if place.postmaster()[1] == "ready" and place.answers():
            return True
        if time.monotonic() > deadline:
            raise EmbeddedServerError(
                f"the embedded PostgreSQL in {place.home} is still starting after "
                f"{START_SECONDS:.0f} seconds:\n{place.log_tail()}",
                hint="it may be recovering from a crash: wait, then try again",
            )
        time.sleep(0.02)
    return False


def _leave(place: Place, handle: int) -> None:
    with explained(place), controlled(place, _CONTROL_SECONDS):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if not place.keep.exists() and place.is_running():
            _shut_down(place)


def _shut_down(place: Place) -> None:
    """A fast shutdown: open transactions are undone, everything committed is on disk."""
    pid = _postmaster(place) if _await_ready(place) else None
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
    deadline = time.monotonic() + STOP_SECONDS
    while place.is_running():
        if time.monotonic() > deadline:
            raise EmbeddedServerError(
                f"the embedded PostgreSQL in {place.home} (pid {pid}) does not stop:\n"
                f"{place.log_tail()}",
                hint="it may have much to write: wait, then run `arc-halo db stop` again",
            )
        time.sleep(0.01)


def _refuse_while_used(place: Place) -> None:
    users = _sessions(place)
    if not users and place.is_leased():
        users = ["an arc-halo process"]
    if users:
        raise EmbeddedServerError(
            f"the embedded PostgreSQL in {place.home} is in use: {', '.join(users)}",
            hint="end them first, or throw them out with `arc-halo db stop --force`",
        )


def _sessions(place: Place) -> list[str]:
    import psycopg

    if not _await_ready(place):
        return []
    found: list[tuple[str, int]] = []
    try:
        with psycopg.connect(place.url, autocommit=True) as conn:
            # A client that has just left is seen for another moment.
            for _ in range(10):
                found = conn.execute(_SESSIONS).fetchall()
                if not found:
                    break
                time.sleep(0.05)
    except psycopg.Error as exc:
        return [f"its sessions cannot be listed ({' '.join(str(exc).split())})"]
    return [f"{name or 'a client'} (pid {pid})" for name, pid in found]


_SESSIONS = """
SELECT application_name, pid FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND usename IS NOT NULL
ORDER BY backend_start
"""


def _postmaster(place: Place) -> int | None:
    """The server's process. The file that names it is the server's, so it is not just believed."""
    pid, _ = place.postmaster()
    if pid is None or not _is_alive(pid):
        return None
    process = Path(f"/proc/{pid}")
    if process.exists() and process.stat().st_uid != place.data.stat().st_uid:
        return None
    return pid


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _version() -> str | None:
    try:
        return programs.version()
    except EmbeddedServerError:
        return None
