"""What PostgreSQL's refusals mean to a user, and what to do about each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from arc_halo.config import redact
from arc_halo.errors import ConnectionFailedError, DatabaseError, LockTimeoutError


@contextmanager
def translate() -> Iterator[None]:
    """Turn what psycopg raises inside into the error of `translated`."""
    try:
        yield
    except psycopg.Error as exc:
        raise translated(exc) from exc


def translated(exc: psycopg.Error) -> DatabaseError:
    """The error to show for `exc`: its SQLSTATE, table and constraint, and what to do.

    `ConnectionFailedError` where the connection is lost, `LockTimeoutError` where rows or tables
    were held for too long.
    """
    state = exc.sqlstate or ""
    if state.startswith("08") or state in _LOST or _is_lost(exc):
        return ConnectionFailedError(
            f"the connection to the database was lost: {one_line(redact(str(exc)))}",
            hint="run the command again: what it had not committed, the server has undone",
        )
    said = exc.diag.message_primary or one_line(str(exc))
    detail = f": {exc.diag.message_detail}" if exc.diag.message_detail else ""
    facts = {
        "SQLSTATE": exc.sqlstate,
        "table": exc.diag.table_name,
        "column": exc.diag.column_name,
        "constraint": exc.diag.constraint_name,
    }
    shown = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    message = redact(f"{said}{detail}") + (f" ({shown})" if shown else "")
    hint = _STATEMENT_HINTS.get(state, exc.diag.message_hint)
    if state == _LOCK_NOT_AVAILABLE:
        return LockTimeoutError(message, hint=hint)
    return DatabaseError(message, hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a connect failed: what to do, and whether it may be tried again."""

    pattern: str
    hint: str
    retry: bool = False


def failure_for(reason: str) -> Failure:
    """What a failed connect means, judged by libpq's words."""
    for failure in _CONNECT_FAILURES:
        if re.search(failure.pattern, reason, re.IGNORECASE):
            return failure
    return _UNKNOWN


def one_line(text: str) -> str:
    """libpq's words on one line. What it says once with TLS and once without is said once."""
    lines = (
        " ".join(line.split()).removeprefix("connection failed: ") for line in text.split("\n")
    )
    return " ".join(dict.fromkeys(line for line in lines if line))


_LOCK_NOT_AVAILABLE = "55P03"
_LOST = frozenset({"57P01", "57P02", "57P03", "57P05"})

_MIGRATE = "run `arc-halo migrate status`, then `arc-halo migrate up`"
_STATEMENT_HINTS: Mapping[str, str] = {
    "42501": "connect as a role that may, or have it grant the right: arc_halo_reader plans, "
    "arc_halo_writer applies, arc_halo_admin migrates (`arc-halo db roles`); `arc-halo doctor` "
    "lists what is missing",
    "53100": "the server's disk is full: free some space there, then run the command again",
    "53200": "the server ran out of memory: give it more, or use fewer connections",
    "53300": "the server has no connection left: close some, or raise max_connections",
    "25006": "the server takes no writes: connect to the primary, not to a replica",
    "3F000": _MIGRATE,
    "42P01": _MIGRATE,
    "42703": _MIGRATE,
    "42883": _MIGRATE,
    "40001": "another transaction came first: run the command again",
    "40P01": "two transactions waited for each other: run the command again",
    _LOCK_NOT_AVAILABLE: "another session holds the lock, which `pg_locks` and "
    "`pg_stat_activity` show: run the command again when it is done",
    "57014": "the statement was cancelled, or took longer than statement_timeout allows",
}


# libpq gives a failed connect no SQLSTATE, so its words are all there is. Whatever is not
# recognised (a server may speak another language) is not tried again.
_CONNECT_FAILURES = (
    Failure(
        pattern="does not match host name",
        hint="TLS: give the server's name as its certificate has it, in the address's host",
    ),
    Failure(
        pattern="certificate|SSL error|root\\.crt|sslmode|sslrootcert",
        hint="TLS: give the authority's certificate as sslrootcert=FILE in the address; "
        "sslmode=require encrypts without verifying the server",
    ),
    Failure(
        pattern="does not support SSL|server does not accept SSL|SSL is not supported",
        hint="this server has no TLS: on a network you trust, add sslmode=disable to the address",
    ),
    Failure(
        pattern="unsupported startup parameter",
        hint="a pooler stands before the server: take `options` out of the address, or give the "
        "server's own address",
    ),
    Failure(
        pattern="authentication failed|no password supplied|SCRAM|channel binding|"
        "pg_hba\\.conf|role .* does not exist|authentication method",
        hint="check the user and the password, and that the server lets this user in from here",
    ),
    Failure(
        pattern="database .* does not exist",
        hint="create the database first (createdb NAME), or correct its name in the address",
    ),
    Failure(
        pattern="permission denied|not permitted|not allowed",
        hint="ask the server's administrator for the right to connect",
    ),
    Failure(
        pattern="too many (clients|connections)|remaining connection slots|reached the limit",
        hint="the server has no connection left: close some, or raise max_connections",
        retry=True,
    ),
    Failure(
        pattern="starting up|shutting down|recovery mode|not yet accepting|compute node|"
        "server closed the connection|Connection reset|EOF detected|timeout|timed out",
        hint="the server does not answer yet: try again, and look at its log",
        retry=True,
    ),
    Failure(
        pattern="Connection refused|No such file or directory|unreachable|No route to host",
        hint="check the host and the port, and that the server runs "
        "(`arc-halo db start` starts the bundled one)",
        retry=True,
    ),
    Failure(
        pattern="Temporary failure in name resolution|Try again",
        hint="the name service does not answer: check the network",
        retry=True,
    ),
    Failure(
        pattern="translate host name|resolve host|Name or service not known|nodename nor",
        hint="check the host's name in the address",
    ),
)
_UNKNOWN = Failure(pattern="", hint="`arc-halo doctor` says more")


def _is_lost(exc: psycopg.Error) -> bool:
    # Without a SQLSTATE the server said nothing: the socket did, or the pool. Where libpq notices
    # before it sends, psycopg has no class for it either.
    is_of_line = isinstance(exc, psycopg.OperationalError) or type(exc) is psycopg.DatabaseError
    return is_of_line and exc.sqlstate is None
