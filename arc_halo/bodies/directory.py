"""Objects as files of a directory: written beside their place, flushed, and then renamed."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from uuid import uuid4

from arc_halo.errors import BodyStoreError

PAGE = 1000

PART_SECONDS = 3600.0
"""What has not been renamed for this long beyond the age asked for, no writer waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """The files below `root`, which must be there: an unmounted disk is not an empty store."""

    root: Path
    url: str
    _kept: set[Path] = field(default_factory=set, repr=False)
    """Directories whose own entries have reached the disk."""

    @classmethod
    def open(cls, root: Path, *, url: str) -> Directory:
        if not root.is_dir():
            raise BodyStoreError(
                f"{url}: there is no such directory", hint=f"mount it, or mkdir -p {root}"
            )
        return cls(root=root, url=url)

    def write(self, key: str, body: memoryview) -> None:
        with self._told(), self._written(key, body) as (part, path):
            part.replace(path)

    def create(self, key: str, body: memoryview) -> None:
        with self._told(), self._written(key, body) as (part, path), suppress(FileExistsError):
            path.hardlink_to(part)

    def read(self, key: str) -> bytes | None:
        with self._told():
            try:
                return (self.root / key).read_bytes()
            except FileNotFoundError:
                self._check()
                return None

    def pages(self, folder: str, *, before: datetime) -> Iterator[Sequence[str]]:
        with self._told():
            self._check()
            keys = self._keys(folder, before.timestamp())
            while page := list(islice(keys, PAGE)):
                yield page

    def remove(self, keys: Sequence[str]) -> None:
        with self._told():
            self._check()
            for key in keys:
                (self.root / key).unlink(missing_ok=True)

    def _check(self) -> None:
        """Raise `FileNotFoundError` where the whole directory is gone, and not a file of it."""
        self.root.stat()

    @contextmanager
    def _written(self, key: str, body: memoryview) -> Iterator[tuple[Path, Path]]:
        """The flushed file and the name it is to get; what that leads to is flushed afterwards."""
        path = self.root / key
        self._keep(path.parent)
        part = path.with_name(f".{uuid4().hex}.part")
        try:
            with part.open("xb", buffering=0) as file:
                while body:
                    body = body[file.write(body) :]
                os.fsync(file.fileno())
            yield part, path
        finally:
            part.unlink(missing_ok=True)
        _flush(path.parent)

    def _keep(self, directory: Path) -> None:
        """Make `directory`, so that it is still there after a power cut."""
        if directory in self._kept or directory == self.root:
            return
        self._keep(directory.parent)
        directory.mkdir(exist_ok=True)
        _flush(directory.parent)
        self._kept.add(directory)

    def _keys(self, folder: str, before: float) -> Iterator[str]:
        """Two levels below `folder` and no more, so that a link in a circle is not followed.

        What a killed program has left unfinished there is removed on the way.
        """
        for one in _names(self.root / folder, _FANOUT):
            for two in _names(self.root / folder / one, _FANOUT):
                place = self.root / folder / one / two
                for name in _names(place, _PART):
                    if _written_at(place / name) < before - PART_SECONDS:
                        (place / name).unlink(missing_ok=True)
                for name in _names(place, _NAME):
                    if _written_at(place / name) <= before:
                        yield f"{folder}/{one}/{two}/{name}"

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise BodyStoreError(
                f"{self.url}: {exc.strerror or exc}",
                hint=_HINTS.get(exc.errno or 0, "look at the directory, and run it again"),
            ) from exc


_FANOUT = re.compile(r"[0-9a-f]{2}")
_NAME = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"\.[0-9a-f]{32}\.part")
_OWNER = "the directory must belong to the user who runs Arc-Halo"
_HINTS = {
    errno.ENOENT: "mount the directory again, and run it again",
    errno.ENOSPC: "free some space, and run it again",
    errno.EDQUOT: "free some space, and run it again",
    errno.EROFS: "the file system is mounted for reading only",
    errno.EACCES: _OWNER,
    errno.EPERM: _OWNER,
}


def _names(directory: Path, pattern: re.Pattern[str]) -> list[str]:
    """The names that fit, in order; none where `directory` is no directory."""
    try:
        return sorted(entry.name for entry in directory.iterdir() if pattern.fullmatch(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _written_at(path: Path) -> float:
    """Seconds since 1970; never, where somebody has removed it meanwhile."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
