"""Migrations tried on a database of their own: up, down and up again, and what is left over."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo

from arc_halo.errors import DatabaseError, RefusedError
from arc_halo.store import migrate
from arc_halo.store.catalogue import SchemaChange, SchemaObject, compare_catalogues, read_catalogue
from arc_halo.store.connection import Connection, Waiting, connect, parse, translate


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """What a file did not do as it should have: of a rollback undo, of a migration repeat."""

    file: str
    change: SchemaChange

    def __str__(self) -> str:
        return f"{self.file}: {self.change}"


def try_migrations(conn: Connection, *, directory: Path | None = None) -> tuple[Leftover, ...]:
    """Apply, roll back and apply again each migration in turn; then all of them, in one go.

    `conn` is to an empty database, and leaves it migrated. Where a rollback leaves so much that its
    migration cannot be applied again, what it left is told, and nothing more is tried.
    """
    files = migrate.read(directory)
    found: list[Leftover] = []
    before = _catalogue(conn)
    for file, previous in zip(files, ["0", *(file.id for file in files)], strict=False):
        migrate.up(conn, to=file.id, directory=directory)
        after = _catalogue(conn)
        migrate.down(conn, to=previous, directory=directory)
        left = _leftovers(file.rollback_path.name, before, _catalogue(conn))
        found += left
        try:
            migrate.up(conn, to=file.id, directory=directory)
        except DatabaseError:
            if left:
                return tuple(found)
            raise
        found += _leftovers(file.path.name, after, _catalogue(conn))
        before = after
    migrate.down(conn, to="0", directory=directory)
    migrate.up(conn, directory=directory)
    found += _leftovers("all of them", before, _catalogue(conn))
    return tuple(found)


@contextmanager
def scratch_database(url: str, *, waiting: Waiting | None = None) -> Iterator[Connection]:
    """A connection to an empty database on the server of `url`, which is dropped at the end.

    Raises `RefusedError` when the role may not create one.
    """
    name = f"arc_halo_scratch_{uuid.uuid4().hex}"
    with connect(url, direct=True, waiting=waiting) as server:
        try:
            _create(server, name)
            with connect(make_conninfo("", **parse(url) | {"dbname": name}), direct=True) as conn:
                yield conn
        finally:
            with translate():
                server.execute(_DROP.format(sql.Identifier(name)))


_CREATE = sql.SQL("CREATE DATABASE {} ENCODING 'UTF8' TEMPLATE template0")
_DROP = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")

_OURS = frozenset({"arc_halo_migrations", "arc_halo_migrations_begun", "arc_halo_schema"})


def _catalogue(conn: Connection) -> tuple[SchemaObject, ...]:
    return tuple(each for each in read_catalogue(conn) if each.part_of not in _OURS)


def _leftovers(
    file: str, before: Sequence[SchemaObject], after: Sequence[SchemaObject]
) -> list[Leftover]:
    return [Leftover(file=file, change=each) for each in compare_catalogues(before, after)]


def _create(server: Connection, name: str) -> None:
    try:
        server.execute(_CREATE.format(sql.Identifier(name)))
    except errors.InsufficientPrivilege as exc:
        raise RefusedError(
            f"the role {server.info.user} may not create databases on this server",
            hint=f"have an administrator run `ALTER ROLE {server.info.user} CREATEDB`, or use the "
            "embedded server: `--database-url embedded`",
            code="AH044",
        ) from exc
    except psycopg.Error:
        with translate():
            raise
