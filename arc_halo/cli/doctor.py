"""`arc-halo doctor`: look at everything a database must be and have, and say what to do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render
from arc_halo.cli.target import database_url, target_of
from arc_halo.config import DatabaseTarget
from arc_halo.errors import ArcHaloError, SchemaMismatchError

if TYPE_CHECKING:
    from arc_halo.store.connection import Connection

State = Literal["ok", "warn", "fail"]

OLDEST, NEWEST = 15, 18


CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at, how it is, and what to do where it is not well."""

    check: str
    state: State
    message: str
    advice: str | None = None


@click.command("doctor")
@click.pass_context
def doctor(context: click.Context) -> None:
    """Examine the project's database and say what to do about each finding.

    Looks at the connection, TLS, the versions of the server and of pgvector, migrations, tables,
    schema drift and rights, and writes and reads back a small tensor in a transaction that is
    undone. Exits 1 when something fails.

    \b
    Examples:
      arc-halo doctor
      arc-halo --output json doctor
      arc-halo --database-url postgresql://halo@db.example.org/halo doctor
    """
    invocation: Invocation = context.obj
    findings = list(examine(invocation))
    render(
        invocation,
        text=lambda: invocation.console.print(_as_text(findings)),
        json=lambda: _as_json(findings),
        markdown=lambda: _as_markdown(findings),
    )
    context.exit(1 if any(finding.state == "fail" for finding in findings) else 0)


def examine(invocation: Invocation) -> Iterator[Finding]:
    """Every finding in turn; the first failure to reach the database is the last finding."""
    from arc_halo.store.connection import connect

    target = target_of(invocation)
    yield _found_target(target)
    try:
        with database_url(invocation, target) as url:
            started = time.monotonic()
            with connect(
                url,
                application_name="arc-halo doctor",
                timeout_seconds=CONNECT_SECONDS,
                waiting=invocation.console.note,
            ) as conn:
                milliseconds = (time.monotonic() - started) * 1000
                yield Finding(
                    check="connection", state="ok", message=f"made in {milliseconds:.0f} ms"
                )
                yield from examine_database(conn, is_embedded=target.url is None)
    except ArcHaloError as exc:
        yield Finding(check="connection", state="fail", message=exc.message, advice=exc.hint)


def examine_database(conn: Connection, *, is_embedded: bool = False) -> Iterator[Finding]:
    """What there is to find on an open connection. Each check stands by itself."""
    checks: Sequence[tuple[str, Callable[[Connection], Finding]]] = (
        ("tls", _tls),
        ("server", _server),
        ("encoding", _encoding),
        ("writes", _writes),
        *([("durability", _durability)] if is_embedded else []),
        ("vector", _vector),
        ("migrations", _migrations),
        ("tables", _tables),
        ("schema", _schema),
        ("rights", _rights),
        ("round trip", _round_trip),
    )
    for name, check in checks:
        yield _guarded(name, check, conn)


def _guarded(name: str, check: Callable[[Connection], Finding], conn: Connection) -> Finding:
    from arc_halo.store.failures import translate

    try:
        # In a transaction of its own: one check's failure must not be every check's.
        with translate(), conn.transaction():
            return check(conn)
    except ArcHaloError as exc:
        return Finding(check=name, state="fail", message=exc.message, advice=exc.hint)


def _found_target(target: DatabaseTarget) -> Finding:
    from arc_halo.cli.db import address

    if target.url is None:
        return Finding(check="database", state="ok", message="the embedded PostgreSQL")
    try:
        shown = address(target.url)
    except ArcHaloError as exc:
        return Finding(check="database", state="fail", message=exc.message, advice=exc.hint)
    return Finding(check="database", state="ok", message=f"{shown} (from {target.origin})")


def _tls(conn: Connection) -> Finding:
    from arc_halo.store.connection import is_local, parse

    words = parse(conn.info.dsn)
    mode = words.get("sslmode", "prefer")
    if conn.pgconn.ssl_in_use and mode == "verify-full":
        return Finding(check="tls", state="ok", message="encrypted, the server is verified")
    if is_local(words):
        return Finding(check="tls", state="ok", message="not needed: the server is on this machine")
    if conn.pgconn.ssl_in_use:
        return Finding(
            check="tls",
            state="warn",
            message=f"encrypted, but with sslmode={mode} anybody may pose as the server",
            advice="use sslmode=verify-full, or leave sslmode out of the address",
        )
    return Finding(
        check="tls",
        state="warn",
        message="not encrypted: passwords and weights can be read on the way",
        advice="leave sslmode out of the address, and switch TLS on at the server",
    )


def _server(conn: Connection) -> Finding:
    from arc_halo.store.server import server_facts

    facts = server_facts(conn)
    major = facts.version_number // 10_000
    message = f"PostgreSQL {facts.version}"
    if major < OLDEST:
        advice = f"upgrade it to {OLDEST} or later"
        return Finding(check="server", state="fail", message=f"{message} is too old", advice=advice)
    if major > NEWEST:
        advice = f"it is newer than this version of Arc-Halo was tried with ({NEWEST})"
        return Finding(check="server", state="warn", message=message, advice=advice)
    return Finding(check="server", state="ok", message=message)


def _encoding(conn: Connection) -> Finding:
    from arc_halo.store.server import server_facts

    facts = server_facts(conn)
    if facts.encoding == "UTF8":
        return Finding(check="encoding", state="ok", message="UTF8")
    return Finding(
        check="encoding",
        state="fail",
        message=f"the database {facts.database} is in {facts.encoding}: not every name fits",
        advice="create another with ENCODING 'UTF8' TEMPLATE template0",
    )


def _writes(conn: Connection) -> Finding:
    from arc_halo.store.server import server_facts

    facts = server_facts(conn)
    if facts.is_standby:
        message, advice = "the server is a standby and takes none", "connect to the primary"
    elif facts.is_read_only:
        message = "transactions are read-only by default"
        advice = f"ALTER ROLE {facts.user_name} RESET default_transaction_read_only, or connect "
        advice += "as another role"
    else:
        return Finding(check="writes", state="ok", message="the server takes them")
    return Finding(check="writes", state="fail", message=message, advice=advice)


def _durability(conn: Connection) -> Finding:
    from arc_halo.store.server import server_facts

    facts = server_facts(conn)
    if facts.fsync and facts.full_page_writes:
        return Finding(check="durability", state="ok", message="what is committed is on disk")
    return Finding(
        check="durability",
        state="warn",
        message="fsync or full_page_writes is off: a crash can destroy the database",
        advice="ALTER SYSTEM RESET fsync; ALTER SYSTEM RESET full_page_writes; then restart it",
    )


def _vector(conn: Connection) -> Finding:
    from arc_halo.store.server import extension_facts

    facts = extension_facts(conn, "vector")
    if facts.installed:
        return Finding(check="vector", state="ok", message=f"pgvector {facts.installed}")
    if facts.available:
        message = f"pgvector {facts.available} is there, but not in this database"
        advice = "`arc-halo embeddings index` makes it; without it embeddings are searched exactly"
    else:
        message = "pgvector is not there: embeddings are searched exactly, without an index"
        advice = "install pgvector on the server, if you want an index"
    return Finding(check="vector", state="warn", message=message, advice=advice)


def _migrations(conn: Connection) -> Finding:
    from arc_halo.store.migrate import check_names_are_free, status

    found = status(conn)
    if begun := [item.begun for item in found if item.begun]:
        verb = "is being run" if begun[0].is_running else "was interrupted"
        return Finding(
            check="migrations",
            state="fail",
            message=f"{begun[0].id} {verb}, outside of a transaction",
            advice=f"`arc-halo migrate {begun[0].direction}` goes on with it, or waits for it",
        )
    states = {item.id: item.state for item in found}
    for state, advice in _MIGRATION_FAULTS.items():
        named = [name for name in states if states[name] == state]
        if named:
            message = f"{state}: {', '.join(named)}"
            return Finding(check="migrations", state="fail", message=message, advice=advice)
    pending = [name for name in states if states[name] == "pending"]
    if pending:
        check_names_are_free(conn, found)
        message = f"{len(pending)} of {len(states)} pending"
        advice = "run `arc-halo migrate up`, or `arc-halo apply`, which does"
        return Finding(check="migrations", state="warn", message=message, advice=advice)
    return Finding(check="migrations", state="ok", message=f"all {len(states)} applied")


_MIGRATION_FAULTS = {
    "edited": "an applied migration's file was changed: reinstall the version of Arc-Halo that "
    "applied it, put the file back, or accept it by `arc-halo migrate repair ID --reason TEXT`",
    "missing": "a newer version of Arc-Halo has been here: install that version",
}


def _tables(conn: Connection) -> Finding:
    from arc_halo.store.server import FUNCTIONS, TABLES, VIEWS, missing_objects

    missing, wanted = missing_objects(conn), len(TABLES) + len(VIEWS) + len(FUNCTIONS)
    if not missing:
        message = f"all {wanted} tables, views and functions are there"
        return Finding(check="tables", state="ok", message=message)
    pending = _pending(conn)
    if pending and pending.is_all:
        return Finding(check="tables", state="warn", message="none yet", advice=pending.advice)
    return Finding(
        check="tables",
        state="fail",
        message=f"{len(missing)} of {wanted} are missing: {', '.join(missing)}",
        advice=pending.advice if pending else "restore them from a backup",
    )


def _schema(conn: Connection) -> Finding:
    from arc_halo.store.schema_drift import schema_drift

    if pending := _pending(conn):
        message = "not compared: migrations are pending"
        return Finding(check="schema", state="warn", message=message, advice=pending.advice)
    try:
        changes = [str(change) for change in schema_drift(conn)]
    except SchemaMismatchError as exc:
        return Finding(check="schema", state="warn", message=exc.message, advice=exc.hint)
    if not changes:
        return Finding(check="schema", state="ok", message="as the migrations made it")
    message = "; ".join(changes[:_SHOWN]) + (
        f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    )
    return Finding(check="schema", state="warn", message=message, advice=_DRIFTED)


_SHOWN = 5
_DRIFTED = (
    "it was changed by hand: undo that, or accept it by "
    "`arc-halo migrate accept-drift --reason TEXT`"
)


def _rights(conn: Connection) -> Finding:
    from arc_halo.store.server import missing_rights, server_facts

    facts, missing = server_facts(conn), missing_rights(conn)
    if missing and not any("SELECT" in rights for rights in missing):
        return Finding(
            check="rights",
            state="warn",
            message=f"{facts.user_name} may plan, but not apply",
            advice="apply as a member of arc_halo_writer; an administrator lets one in: "
            "`arc-halo db roles --member writer=USER`",
        )
    if missing:
        return Finding(
            check="rights",
            state="fail",
            message=f"{facts.user_name} lacks "
            + "; ".join(
                f"{', '.join(rights)} on {', '.join(tables)}" for rights, tables in missing.items()
            ),
            advice="connect as the role that owns the tables, or have an administrator run "
            f"`arc-halo db roles --member writer={facts.user_name}`",
        )
    if not facts.can_create:
        return Finding(
            check="rights",
            state="warn",
            message=f"{facts.user_name} may apply, but not migrate",
            advice="migrate as the role that owns the tables, or as a member of arc_halo_admin; an "
            "administrator lets one in: `arc-halo db roles --member admin=USER`",
        )
    message = f"{facts.user_name} may migrate, read and write"
    return Finding(check="rights", state="ok", message=message)


def _round_trip(conn: Connection) -> Finding:
    if pending := _pending(conn):
        why = "there is no schema yet" if pending.is_all else "migrations are pending"
        message = f"not tried: {why}"
        return Finding(check="round trip", state="warn", message=message, advice=pending.advice)
    from arc_halo.store.server import missing_rights
    from arc_halo.weights.probe import round_trip

    if missing_rights(conn):
        return Finding(check="round trip", state="warn", message="not tried: it needs to write")
    started = time.monotonic()
    round_trip(conn)
    milliseconds = (time.monotonic() - started) * 1000
    message = f"a tensor came back as it was, in {milliseconds:.0f} ms"
    return Finding(check="round trip", state="ok", message=message)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """That migrations wait: whether all of them do, and what to do about it."""

    is_all: bool
    advice: str


def _pending(conn: Connection) -> _Pending | None:
    from arc_halo.store.migrate import check_names_are_free, status

    found = status(conn)
    if not any(item.state == "pending" for item in found):
        return None
    advice = "run `arc-halo migrate up`"
    try:
        check_names_are_free(conn, found)
    except SchemaMismatchError as exc:
        advice = exc.hint or advice
    return _Pending(is_all=all(item.state == "pending" for item in found), advice=advice)


def _as_text(findings: Sequence[Finding]) -> str:
    width = max(len(finding.check) for finding in findings)
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.state:<4}  {finding.check:<{width}}  {finding.message}")
        if finding.advice:
            lines.append(f"{'':<{width + 8}}-> {finding.advice}")
    return "\n".join([*lines, "", _summary(findings)])


def _as_json(findings: Sequence[Finding]) -> str:
    return json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2)


def _as_markdown(findings: Sequence[Finding]) -> str:
    rows = [
        [
            found.state,
            found.check,
            *(" ".join(t.split()) for t in (found.message, found.advice or "")),
        ]
        for found in findings
    ]
    header = ("state", "check", "finding", "what to do")
    return f"{markdown_table(header, rows)}\n\n{_summary(findings)}"


def _summary(findings: Sequence[Finding]) -> str:
    states = [finding.state for finding in findings]
    if set(states) == {"ok"}:
        return f"all {len(states)} checks are well"
    return f"{states.count('fail')} failed, {states.count('warn')} to look at, of {len(states)}"
