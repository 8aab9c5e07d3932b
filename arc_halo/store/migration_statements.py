"""Running the statements of a migration file, and saying where in it one failed."""

from __future__ import annotations

import re

import psycopg

from arc_halo.errors import ConnectionFailedError, DatabaseError
from arc_halo.store.connection import Connection
from arc_halo.store.failures import translated
from arc_halo.store.migration_scripts import Script, Statement


def run_script(conn: Connection, script: Script) -> None:
    """Run them all. Raises `DatabaseError` with file, line and column."""
    for statement in script.statements:
        try:
            conn.execute(statement.sql.encode())
        except psycopg.Error as exc:
            raise failed(script, statement, exc) from exc


def failed(
    script: Script,
    statement: Statement,
    exc: psycopg.Error,
    after: str = "correct the file; nothing was changed",
) -> DatabaseError:
    """The error to show; `after` says how things are now."""
    error = translated(exc)
    if isinstance(error, ConnectionFailedError):
        return error
    # 42: the statement itself is wrong, unless it is only that this role may not run it.
    is_wrong = (exc.sqlstate or "").startswith("42") and exc.sqlstate != "42501"
    return DatabaseError(
        f"{script.where(_offset(statement, exc))}: {error.message}",
        code="AH042" if is_wrong else "AH044",
        hint=after if is_wrong else error.hint or after,
    )


_IN_BLOCK = re.compile(r"inline_code_block \D*(\d+)")


def _offset(statement: Statement, exc: psycopg.Error) -> int:
    """Where in the file an error is: as the server says, also of a line of a DO block."""
    if exc.diag.statement_position:
        return statement.offset + int(exc.diag.statement_position) - 1
    block = _IN_BLOCK.search(exc.diag.context or "")
    body = statement.sql.find("$")
    if block is None or body < 0:
        return statement.offset
    lines = statement.sql[body:].split("\n")
    line = int(block[1]) - 1
    if line >= len(lines):
        return statement.offset
    indent = len(lines[line]) - len(lines[line].lstrip())
    return statement.offset + body + sum(len(each) + 1 for each in lines[:line]) + indent
