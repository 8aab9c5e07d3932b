"""Migration files: where they lie, what they are called, and that none is missing or altered.

The format is yoyo's: `NNNN.family.sql` with `NNNN.family.rollback.sql` beside it. Two things are
ours: `NNNN.family.verify.sql`, which may stand beside them, and the directory's `arc_halo.sum`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from arc_halo.store.migration_sum import SUM_FILE, check_sum, sum_text
from arc_halo.store.migration_text import digest, read_text, wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationFile:
    """One migration, named by its file: its text, with LF line ends, and the digest of it."""

    id: str
    path: Path
    text: str
    digest: bytes
    rollback: str
    verify: str | None = None

    @property
    def rollback_path(self) -> Path:
        return self.path.with_suffix(".rollback.sql")

    @property
    def verify_path(self) -> Path:
        return self.path.with_suffix(".verify.sql")


def migrations_directory() -> Path:
    """Where this program's migrations are: in the installed package, or in the checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def read_files(directory: Path) -> list[MigrationFile]:
    """The migrations in `directory` by number; names, pairs, encoding and the sum are checked.

    Raises `SchemaMismatchError` (AH042), also when there is none.
    """
    texts = _texts(directory)
    digests = {path.name: digest(text) for path, text in texts.items()}
    check_sum(directory, digests)
    return [
        MigrationFile(
            id=path.stem,
            path=path,
            text=text,
            digest=digests[path.name],
            rollback=texts[path.with_suffix(".rollback.sql")],
            verify=texts.get(path.with_suffix(".verify.sql")),
        )
        for path, text in texts.items()
        if _role(path) is None
    ]


def write_sum(directory: Path) -> Path:
    """Write the directory's `arc_halo.sum` anew; its path."""
    path = directory / SUM_FILE
    digests = {file.name: digest(text) for file, text in _texts(directory).items()}
    try:
        path.write_text(sum_text(digests), encoding="utf-8", newline="\n")
    except OSError as exc:
        raise wrong(f"{path}: {exc.strerror}", hint="make the directory writable") from exc
    return path


_NAME = re.compile(r"\d{4}\.[a-z][a-z0-9_]*(?:\.(rollback|verify))?\.sql")


def _texts(directory: Path) -> Mapping[Path, str]:
    paths = _paths(directory)
    _check_names(paths)
    return {path: read_text(path) for path in paths}


def _paths(directory: Path) -> list[Path]:
    paths = sorted(path for path in directory.glob("*") if path.suffix in {".sql", ".py"})
    if not paths:
        is_ours = directory == migrations_directory()
        hint = "install Arc-Halo again" if is_ours else "name the directory of NNNN.family.sql"
        raise wrong(f"{directory}: no migrations are there", hint=hint)
    return paths


def _check_names(paths: Sequence[Path]) -> None:
    for path in paths:
        if not _NAME.fullmatch(path.name):
            raise wrong(
                f"{path}: the name is not NNNN.family.sql, NNNN.family.rollback.sql or "
                "NNNN.family.verify.sql",
                hint="rename the file, or move it elsewhere",
            )
    _check_pairs(paths)
    for first, second in pairwise(path for path in paths if _role(path) is None):
        if first.name[:4] == second.name[:4]:
            raise wrong(f"{second}: {first.name} has the same number")


def _check_pairs(paths: Sequence[Path]) -> None:
    names = {path.name for path in paths}
    for path in paths:
        role = _role(path)
        stem = path.name.removesuffix(f".{role}.sql") if role else path.stem
        other = f"{stem}.sql" if role else f"{stem}.rollback.sql"
        if other not in names:
            raise wrong(f"{path}: {other} is missing", hint=f"write {other}")


def _role(path: Path) -> str | None:
    """`rollback` or `verify`; None of the migration itself."""
    match = _NAME.fullmatch(path.name)
    return match[1] if match else None
