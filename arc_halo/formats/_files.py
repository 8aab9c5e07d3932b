"""Files opened, read and replaced with every failure named: shared by the weight formats."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from arc_halo.errors import ArcHaloError, FormatError


def open_regular(path: Path, stack: ExitStack, *, of: Path | None = None) -> tuple[int, int]:
    """The descriptor of a regular file, closed by the stack, and its size in bytes."""
    try:
        # Without O_NONBLOCK a named pipe would hold us up for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, descriptor)
        status = os.fstat(descriptor)
    except (OSError, ValueError) as exc:
        raise unreadable(path, exc, of=of) from exc
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(f"{path}: not a regular file", hint="name a file of weights")
    return descriptor, status.st_size


def read_exactly(descriptor: int, size_bytes: int, offset: int, path: Path) -> bytes:
    """That many bytes at `offset`, or FormatError."""
    data = bytearray(size_bytes)
    rest = memoryview(data)
    while rest.nbytes:
        rest = rest[read_some(descriptor, rest, offset + size_bytes - rest.nbytes, path) :]
    return bytes(data)


def read_some(descriptor: int, out: memoryview, position: int, path: Path) -> int:
    """Fill the front of `out` and say how far; FormatError where nothing is left to read."""
    try:
        count = os.preadv(descriptor, [out], position)
    except OSError as exc:
        raise unreadable(path, exc) from exc
    if not count:
        raise FormatError(
            f"{path}: it became shorter while it was read", hint="run it again", code="AH063"
        )
    return count


def unreadable(path: Path, exc: OSError | ValueError, *, of: Path | None = None) -> FormatError:
    """The error for a path that cannot be read; `of` is the file that names it, if one does."""
    reason = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
    return FormatError(
        f"{path}: cannot be read: {reason}" + (f" ({of.name} names it)" if of else ""),
        hint="check that the file is there and may be read",
        code="AH025" if isinstance(exc, FileNotFoundError) and of is None else None,
    )


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path` that takes its place, durably, once the block is through."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with _removed_on_error(temporary):
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as exc:
        raise ArcHaloError(
            f"{path}: cannot be written: {exc.strerror or exc}",
            hint="check the directory, its rights and the space on its disk",
            code="AH015",
        ) from exc


@contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
