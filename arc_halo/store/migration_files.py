"""Migration files: where they lie, what is in them, and what is wrong with them.

The format is yoyo's: `NNNN.family.sql` with `NNNN.family.rollback.sql` beside it, and a leading
comment that may hold `-- depends: NNNN.family`. yoyo's parser reads them, but what it passes over
in silence (a misspelt directive, a COMMIT, a missing rollback) is an error here.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from arc_halo.errors import SchemaMismatchError


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationFile:
    """One migration, named by its file: its text, with LF line ends, and the digest of it."""

    id: str
    path: Path
    text: str
    digest: bytes

    @property
    def rollback_path(self) -> Path:
        return self.path.with_suffix(".rollback.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One SQL statement and the offset of its first character in the file's text."""

    sql: str
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A file taken apart into statements, and the ids of the migrations it depends on."""

    path: Path
    text: str
    statements: tuple[Statement, ...]
    depends: frozenset[str]

    def where(self, offset: int) -> str:
        """`file:line:column` of a character of the text; both count from 1."""
        line = self.text.count("\n", 0, offset) + 1
        column = offset - self.text.rfind("\n", 0, offset)
        return f"{self.path}:{line}:{column}"


def migrations_directory() -> Path:
    """Where this program's migrations are: in the installed package, or in the checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def read_files(directory: Path) -> list[MigrationFile]:
    """The migrations in `directory` by number; names, pairs and encoding are checked.

    Raises `SchemaMismatchError` (AH042), also when there is none.
    """
    paths = _paths(directory)
    _check_pairs(paths)
    files = [_read(path) for path in paths if not _is_rollback(path)]
    for first, second in pairwise(files):
        if first.id[:4] == second.id[:4]:
            raise wrong(f"{second.path}: {first.path.name} has the same number")
    return files


def parse(file: MigrationFile, known: Collection[str]) -> Script:
    """The statements of a migration, which may depend on those of `known` that come before it.

    Raises `SchemaMismatchError` (AH042).
    """
    script = _parse(file.path, file.text)
    for name in sorted(script.depends):
        if name not in known or name >= file.id:
            raise wrong(f"{file.path}: it depends on {name!r}, which is no earlier migration")
    return script


def parse_rollback(file: MigrationFile) -> Script:
    """The statements that undo a migration, in the order of its rollback file."""
    return _parse(file.rollback_path, _decode(file.rollback_path))


def wrong(message: str, hint: str = "correct the file") -> SchemaMismatchError:
    """The error for a migration file that cannot be used."""
    return SchemaMismatchError(message, code="AH042", hint=hint)


_NAME = re.compile(r"\d{4}\.[a-z][a-z0-9_]*(\.rollback)?\.sql")
_DIRECTIVES = ("depends", "transactional")
_DIRECTIVE_LIKE = re.compile(r"^[ \t]*--\s*([A-Za-z_]+)\s*:", re.MULTILINE)
_COMMENTS = re.compile(r"(?:\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*", re.DOTALL)
_TRANSACTION_CONTROL = re.compile(
    r"(BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE\s+TRANSACTION)\b",
    re.IGNORECASE,
)


def _paths(directory: Path) -> list[Path]:
    paths = sorted(path for path in directory.glob("*") if path.suffix in {".sql", ".py"})
    if not paths:
        raise wrong(f"{directory}: no migrations are there", hint="install Arc-Halo again")
    for path in paths:
        if not _NAME.fullmatch(path.name):
            raise wrong(
                f"{path}: the name is neither NNNN.family.sql nor NNNN.family.rollback.sql",
                hint="rename the file, or move it elsewhere",
            )
    return paths


def _is_rollback(path: Path) -> bool:
    return path.name.endswith(".rollback.sql")


def _check_pairs(paths: Sequence[Path]) -> None:
    names = {path.name for path in paths}
    for path in paths:
        stem = path.name.removesuffix(".sql").removesuffix(".rollback")
        other = f"{stem}.sql" if _is_rollback(path) else f"{stem}.rollback.sql"
        if other not in names:
            raise wrong(f"{path}: {other} is missing", hint=f"write {other}")


def _read(path: Path) -> MigrationFile:
    text = _decode(path)
    return MigrationFile(id=path.stem, path=path, text=text, digest=_digest(text))


def _decode(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        hint = "save the file as UTF-8"
        raise wrong(f"{path}: byte {exc.start} is not UTF-8", hint=hint) from exc
    except OSError as exc:
        raise wrong(f"{path}: {exc.strerror}", hint="make the file readable") from exc


def _digest(text: str) -> bytes:
    # Blind to what editors and Git change unasked: line ends, blanks before them and at the end.
    lines = (line.rstrip() for line in text.rstrip().split("\n"))
    return hashlib.sha256("\n".join(lines).encode()).digest()


def _parse(path: Path, text: str) -> Script:
    import sqlparse
    from yoyo.migrations import parse_metadata_from_sql_comments

    pieces: list[str] = sqlparse.split(text)
    directives, _, first = parse_metadata_from_sql_comments(pieces[0] if pieces else "")
    script = Script(
        path=path,
        text=text,
        statements=tuple(_locate(text, [first, *pieces[1:]])),
        depends=frozenset(directives.get("depends", "").split()),
    )
    _check_statements(script)
    _check_directives(script, directives)
    return script


def _locate(text: str, pieces: Sequence[str]) -> Iterator[Statement]:
    end = 0
    for piece in pieces:
        start = text.index(piece, end)
        end = start + len(piece)
        comments = _COMMENTS.match(piece)
        skipped = comments.end() if comments else 0
        if skipped < len(piece):
            yield Statement(sql=piece[skipped:], offset=start + skipped)


def _check_statements(script: Script) -> None:
    if not script.statements:
        raise wrong(f"{script.path}: there is no statement in it", hint="restore the file")
    for statement in script.statements:
        control = _TRANSACTION_CONTROL.match(statement.sql)
        if control:
            raise wrong(
                f"{script.where(statement.offset)}: {control[1].upper()} in a migration",
                hint="remove it: all pending migrations run in one transaction",
            )


def _check_directives(script: Script, directives: Mapping[str, str]) -> None:
    first = script.statements[0].offset
    for match in _DIRECTIVE_LIKE.finditer(script.text):
        word = match[1]
        meant = difflib.get_close_matches(word.lower(), _DIRECTIVES, n=1, cutoff=0.75)
        if meant and (word not in directives or match.start() > first):
            raise wrong(
                f"{script.where(match.start(1))}: '{word}:' is not read as a directive",
                hint=f"write '-- {meant[0]}: ...' in the comment lines before the first statement",
            )
    transactional = directives.get("transactional", "true").strip()
    if transactional != "true":
        raise wrong(
            f"{script.path}: 'transactional: {transactional}' is not supported yet",
            hint="use statements that may run in a transaction",
        )
