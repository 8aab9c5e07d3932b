"""Points on the local disk, while the database is away."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import numpy as np

from arc_halo.errors import TrainingError
from arc_halo.store.training_points import Points
from arc_halo.training.points import Batch

logger = logging.getLogger("arc_halo.training")

MAGIC = b"arc-halo points 1\n"
SUFFIX = ".points"
DAMAGED = ".damaged"
END = "end.json"
ENDS = ("completed", "paused", "failed", "crashed")
"""How a session may end."""

ROW = np.dtype(
    [("series", "<i4"), ("epoch", "<f4"), ("step", "<i8"), ("value", "<f8"), ("micros", "<i8")]
)
"""A point in a file: the place of its series among the header's keys, and its columns."""


class Spool:
    """A directory of batches, which come out in the order they went in.

    Threads may put and drop at once. A file is whole or not there, and ends with the SHA-256 of all
    before. `limit_bytes` are kept at most: what goes beyond raises `TrainingError`, as does a disk
    that takes nothing.
    """

    def __init__(self, directory: Path, *, limit_bytes: int) -> None:
        self.directory = directory
        self._limit_bytes = limit_bytes
        files = self.files()
        self._lock = threading.Lock()
        self._size_bytes = sum(path.stat().st_size for path in files)
        self._next = 1 + max((int(path.stem) for path in files), default=0)

    def files(self) -> list[Path]:
        """What waits, the oldest first."""
        found = [path for path in self.directory.glob(f"*{SUFFIX}") if path.stem.isdecimal()]
        return sorted(found, key=lambda path: int(path.stem))

    def put(self, batch: Batch) -> None:
        """Keep a batch; it is on disk when this returns."""
        data = encode(batch)
        with self._lock:
            if self._size_bytes + len(data) > self._limit_bytes:
                raise TrainingError(
                    f"the spool {self.directory} is full: it may hold {self._limit_bytes} bytes",
                    hint="bring the database back, or give the session a larger `spool_bytes`",
                )
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                _write(self._free_path(), data)
            except OSError as exc:
                raise TrainingError(f"points cannot be spooled: {exc}") from exc
            self._size_bytes += len(data)

    def _free_path(self) -> Path:
        """Where nothing is: a program that has lost the session may write here too."""
        while (path := self.directory / f"{self._next:08}{SUFFIX}").exists():
            self._next += 1
        self._next += 1
        return path

    def batches(self) -> Iterator[tuple[Path, Batch]]:
        """Each batch with its file, to be `drop`ped when it is stored. A damaged file is put
        aside, and raises `TrainingError` once."""
        for path in self.files():
            data = path.read_bytes()
            batch = decode(data)
            if batch is None:
                path.rename(path.with_suffix(DAMAGED))
                raise TrainingError(
                    f"the spooled points in {path.with_suffix(DAMAGED)} are damaged"
                )
            yield path, batch

    def drop(self, path: Path) -> None:
        with self._lock:
            self._size_bytes -= path.stat().st_size
            path.unlink()

    def put_end(self, lease: UUID, status: str, error: str | None) -> None:
        """Keep how the session has ended, to be told when the database is back."""
        told = json.dumps({"lease": str(lease), "status": status, "error": error}).encode()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            _write(self.directory / END, told)
        except OSError as exc:
            raise TrainingError(f"the end of a session cannot be spooled: {exc}") from exc

    def end(self) -> tuple[UUID, str, str | None] | None:
        """The lease, status and error that a session has ended with."""
        path = self.directory / END
        try:
            told = json.loads(path.read_bytes())
            if told["status"] not in ENDS:
                raise ValueError(f"{told['status']} is no end")
            return UUID(told["lease"]), told["status"], told["error"]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError, LookupError, AttributeError):
            path.rename(path.with_suffix(DAMAGED))
            logger.warning("%s is damaged: how that session ended is not known", path)
            return None

    def drop_end(self) -> None:
        (self.directory / END).unlink(missing_ok=True)

    def drop_torn(self) -> None:
        """Drop what a killed program had not finished writing; for who has the session alone."""
        for path in self.directory.glob("*.new"):
            path.unlink()

    def close(self) -> None:
        """Leave no empty directory behind."""
        if self.directory.is_dir() and not any(self.directory.iterdir()):
            self.directory.rmdir()


def encode(batch: Batch) -> bytes:
    """A batch as a file holds it."""
    points = batch.points
    rows = np.empty(len(batch), dtype=ROW)
    rows["series"], rows["epoch"], rows["step"] = points.series, points.epochs, points.steps
    rows["value"], rows["micros"] = points.values, points.micros
    header = json.dumps(batch.keys).encode()
    data = MAGIC + len(header).to_bytes(4, "little") + header + rows.tobytes()
    return data + hashlib.sha256(data).digest()


def decode(data: bytes) -> Batch | None:
    """The batch of a file; None where the file is not as it was written."""
    body, digest = data[:-32], data[-32:]
    if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
        return None
    start = len(MAGIC) + 4
    size = int.from_bytes(body[len(MAGIC) : start], "little")
    rows = np.frombuffer(body, dtype=ROW, offset=start + size)
    return Batch(
        keys=tuple((str(metric), str(scope)) for metric, scope in json.loads(body[start:][:size])),
        points=Points(
            series=rows["series"],
            epochs=rows["epoch"],
            steps=rows["step"],
            values=rows["value"],
            micros=rows["micros"],
        ),
    )


def _write(path: Path, data: bytes) -> None:
    """Write a file that is whole or not there, whatever happens meanwhile."""
    made = path.with_suffix(f".{os.getpid()}.new")
    try:
        with made.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        made.rename(path)
    except BaseException:  # what is left of it would fill the disk
        with suppress(OSError):
            made.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
