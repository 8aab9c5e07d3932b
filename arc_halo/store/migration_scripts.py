"""What is in a migration file: its statements, its directives, and what is wrong with them.

A leading comment may hold `-- depends: NNNN.family` and `-- transactional: false`. yoyo's parser
reads them, but what it passes over in silence (a misspelt directive, a COMMIT) is an error here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arc_halo.store.migration_files import MigrationFile
from arc_halo.store.migration_text import wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One SQL statement and the offset of its first character in the file's text."""

    sql: str
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A file taken apart into statements, and the ids of the migrations it depends on.

    One that is not transactional has its statements run one by one, each committed by itself.
    """

    path: Path
    text: str
    statements: tuple[Statement, ...]
    depends: frozenset[str]
    is_transactional: bool

    def where(self, offset: int) -> str:
        """`file:line:column` of a character of the text; both count from 1."""
        line = self.text.count("\n", 0, offset) + 1
        column = offset - self.text.rfind("\n", 0, offset)
        return f"{self.path}:{line}:{column}"


def parse(file: MigrationFile, known: Collection[str]) -> Script:
    """The statements of a migration, which may depend on those of `known` that come before it.

    Raises `SchemaMismatchError` (AH042).
    """
    script = _parse(file.path, file.text)
    for name in sorted(script.depends):
        if name not in known or name >= file.id:
            where = script.where(max(script.text.find(name), 0))
            raise wrong(f"{where}: it depends on {name!r}, which is no earlier migration")
    return script


def parse_rollback(file: MigrationFile) -> Script:
    """The statements that undo a migration, in the order of its rollback file."""
    return _parse(file.rollback_path, file.rollback)


def parse_verify(file: MigrationFile) -> Script | None:
    """The statements that must not fail once a migration has run, where it brings any."""
    if file.verify is None:
        return None
    script = _parse(file.verify_path, file.verify)
    if not script.is_transactional:
        raise wrong(f"{file.verify_path}: it runs in a transaction", hint="remove the directive")
    return script


def created_names(files: Iterable[MigrationFile]) -> set[str]:
    """The names of the tables, views and functions that migrations create."""
    return {name for file in files for name in _CREATES.findall(file.text)}


_CREATES = re.compile(
    r"^CREATE\s+(?:UNLOGGED\s+)?(?:TABLE|VIEW|FUNCTION)\s+(\w+)", re.IGNORECASE | re.MULTILINE
)
_DIRECTIVES = ("depends", "transactional")
_DIRECTIVE_LIKE = re.compile(r"^[ \t]*--\s*([A-Za-z_]+)\s*:", re.MULTILINE)
_COMMENTS = re.compile(r"(?:\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*", re.DOTALL)
_TRANSACTION_CONTROL = re.compile(
    r"(BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE\s+TRANSACTION)\b",
    re.IGNORECASE,
)


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
        is_transactional=directives.get("transactional", "true").strip() == "true",
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
        raise wrong(f"{script.path}:1:1: there is no statement in it", hint="restore the file")
    for statement in script.statements:
        control = _TRANSACTION_CONTROL.match(statement.sql)
        if control:
            raise wrong(
                f"{script.where(statement.offset)}: {control[1].upper()} in a migration",
                hint="remove it: transactions are begun and committed for the file",
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
    if transactional not in ("true", "false"):
        where = script.where(script.text.index("transactional"))
        raise wrong(
            f"{where}: 'transactional: {transactional}' is neither true nor false",
            hint="write '-- transactional: false', or leave it out",
        )
