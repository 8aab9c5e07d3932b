"""Where a project's embedded server has its things, and the locks that processes meet at.

Below `<project>/.arc-halo/postgres`, private to its user:

- `data`     PostgreSQL's data directory; its socket lies there too
- `control`  locked while somebody starts or stops the server
- `lease`    locked, shared, by every process that uses the server
- `running`  locked by the server itself: each of its processes inherits the lock, so it says
             whether the server runs, whatever became of those who started it
- `keep`     there while the server is to stay although nobody uses it
- `server.log`
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from arc_halo.bundled.accounts import USE_ANOTHER
from arc_halo.bundled.cluster import DATABASE, PORT, ROLE
from arc_halo.errors import EmbeddedServerError


class Place:
    """The files of the server of the project in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.home = directory.resolve() / ".arc-halo" / "postgres"
        self.data = self.home / "data"
        self.control = self.home / "control"
        self.lease = self.home / "lease"
        self.running = self.home / "running"
        self.keep = self.home / "keep"
        self.log = self.home / "server.log"
        self._is_long = len(os.fsencode(self.data)) > _MAX_SOCKET_DIRECTORY
        self.socket_directory = _short_name(self.data) if self._is_long else self.data

    @property
    def url(self) -> str:
        host = quote(str(self.socket_directory), safe="/")
        return f"postgresql://{ROLE}@/{DATABASE}?host={host}&port={PORT}"

    def is_running(self) -> bool:
        """Whether any process of the server lives."""
        return self.running.exists() and _is_locked(self.running, fcntl.LOCK_SH)

    def is_leased(self) -> bool:
        """Whether a process uses the server. Ask under `controlled` only."""
        return _is_locked(self.lease, fcntl.LOCK_EX)

    def postmaster(self) -> tuple[int | None, str]:
        """The server's process and its state ("ready"), as its own file has them."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None, ""
        pid = int(lines[0]) if lines and lines[0].strip().isdigit() else None
        return pid, lines[7].strip() if len(lines) > 7 else ""

    def answers(self) -> bool:
        """Whether the server listens. A dead one leaves its file, its socket, even its number."""
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self.socket_directory / f".s.PGSQL.{PORT}"))
            except (ConnectionRefusedError, FileNotFoundError):
                return False
        return True

    def link_socket_directory(self) -> None:
        """Where the path is too long for a socket, make a short one lead there."""
        link = self.socket_directory
        if not self._is_long:
            return
        link.parent.mkdir(mode=0o700, exist_ok=True)
        if not _is_private(link.parent):
            raise EmbeddedServerError(
                f"{link.parent} is not a private directory of ours",
                hint="remove it, or set XDG_RUNTIME_DIR to a private directory with a short path",
            )
        if not (link.is_symlink() and link.readlink() == self.data):
            link.unlink(missing_ok=True)
            link.symlink_to(self.data)

    def open_log(self) -> int:
        """The log, for appending; a large one is put aside first."""
        if self.log.exists() and self.log.stat().st_size > 2**20:
            self.log.replace(self.log.with_name("server.log.1"))
        return open_private(self.log, os.O_WRONLY | os.O_APPEND)

    def log_tail(self, lines: int = 10) -> str:
        try:
            said = self.log.read_bytes()[-8192:].decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return "\n".join(said.splitlines()[-lines:])

    def size_bytes(self) -> int:
        """What the data directory holds. Files may come and go meanwhile."""
        total = 0
        for parent, _, names in os.walk(self.data):
            for name in names:
                with suppress(FileNotFoundError):
                    total += (Path(parent) / name).lstat().st_size
        return total


@contextmanager
def controlled(place: Place, seconds: float) -> Iterator[int]:
    """Be the only one to start or stop the server; gives the lock's handle."""
    for directory in (place.home.parent, place.home):
        directory.mkdir(mode=0o700, exist_ok=True)
    handle = open_private(place.control)
    try:
        lock(handle, seconds, place)
        yield handle
    finally:
        os.close(handle)


def lock(handle: int, seconds: float, place: Place) -> None:
    """Lock an open file, waiting for as long as `seconds`."""
    deadline = time.monotonic() + seconds
    while not _try_lock(handle, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            raise EmbeddedServerError(
                f"another process has been starting or stopping the server in {place.home} for "
                f"{seconds:.0f} seconds",
                hint="look for an arc-halo or an initdb process that hangs, and end it",
            )
        time.sleep(0.02)


def open_private(path: Path, flags: int = os.O_RDWR) -> int:
    """Open a file of ours, made where it is missing, for its directory's owner alone."""
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    if os.geteuid() == 0:
        # Root may be visiting a user's project: the user must be able to come back.
        owner = path.parent.stat()
        os.fchown(handle, owner.st_uid, owner.st_gid)
    return handle


@contextmanager
def explained(place: Place) -> Iterator[None]:
    """Turn what the operating system refuses inside into `EmbeddedServerError`."""
    try:
        yield
    except OSError as exc:
        raise EmbeddedServerError(
            f"the embedded PostgreSQL in {place.home}: {exc}",
            hint=_OS_HINTS.get(exc.errno or 0, f"set it right, {USE_ANOTHER}"),
        ) from exc


# A socket's name has 103 bytes on macOS (107 on Linux), and PostgreSQL's ends so.
_MAX_SOCKET_DIRECTORY = 103 - len(f"/.s.PGSQL.{PORT}")

_NOT_OURS = f"check who owns the directory and may write there, {USE_ANOTHER}"
_OS_HINTS = {
    errno.ENOSPC: "the disk is full: free some space, then try again",
    errno.EDQUOT: "the disk quota is used up: free some space, then try again",
    errno.EROFS: f"the directory takes no writes: use another, {USE_ANOTHER}",
    errno.EACCES: _NOT_OURS,
    errno.EPERM: _NOT_OURS,
    errno.ENOENT: "the project directory must exist",
    errno.ENOLCK: f"this file system has no locks: put the project on another, {USE_ANOTHER}",
}


def _short_name(data: Path) -> Path:
    """A short path, private to its user, for a link to `data`."""
    return _runtime_directory() / hashlib.sha256(os.fsencode(data)).hexdigest()[:16]


def _runtime_directory() -> Path:
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given and len(given) < 60 and Path(given).is_dir() and _is_private(Path(given)):
        return Path(given) / "arc-halo"
    scratch = tempfile.gettempdir()
    return Path(scratch if len(scratch) < 40 else "/tmp") / f"arc-halo-{os.geteuid()}"


def _is_private(directory: Path) -> bool:
    # Not through a link: in /tmp, anybody may have put one there before us.
    found = directory.lstat()
    mine = found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return stat.S_ISDIR(found.st_mode) and mine


def _is_locked(path: Path, against: int) -> bool:
    handle = open_private(path)
    try:
        return not _try_lock(handle, against)
    finally:
        os.close(handle)


def _try_lock(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
