"""The text of a migration file: how it is read and digested, and how one complains of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from arc_halo.errors import SchemaMismatchError


def read_text(path: Path) -> str:
    """The file's text, with LF line ends. Raises `SchemaMismatchError` (AH042)."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        before = exc.object[: exc.start]
        line, column = before.count(b"\n") + 1, exc.start - before.rfind(b"\n")
        raise wrong(
            f"{path}:{line}:{column}: the byte {exc.object[exc.start]:#x} is not UTF-8",
            hint="save the file as UTF-8",
        ) from exc
    except OSError as exc:
        raise wrong(f"{path}: {exc.strerror}", hint="make the file readable") from exc


def digest(text: str) -> bytes:
    """Its SHA-256, blind to what editors and Git change unasked: line ends and trailing blanks."""
    lines = (line.rstrip() for line in text.rstrip().split("\n"))
    return hashlib.sha256("\n".join(lines).encode()).digest()


def wrong(message: str, hint: str = "correct the file") -> SchemaMismatchError:
    """The error for a migration file that cannot be used."""
    return SchemaMismatchError(message, code="AH042", hint=hint)
