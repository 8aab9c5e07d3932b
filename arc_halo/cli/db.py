"""`arc-halo db`: the embedded server, and the way into whichever database the project uses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render
from arc_halo.cli.target import database_url, embedded_directory, target_of
from arc_halo.config import DatabaseTarget
from arc_halo.errors import ConnectionFailedError, UsageError

if TYPE_CHECKING:
    from arc_halo.embedded import Status


@click.group("db")
def db() -> None:
    """The project's database: its embedded server, its address, a psql in it.

    A project without a database address gets a PostgreSQL of its own under .arc-halo/. It starts
    with the first command that needs it and stops with the last.

    \b
    Examples:
      arc-halo db start                       keep the embedded server running
      arc-halo db psql -c 'SELECT * FROM v_reactor_status'
      arc-halo db stop
    """


@db.command("start")
@click.pass_obj
def start(invocation: Invocation) -> None:
    """Start the embedded server, to stay until `arc-halo db stop`.

    Other programs can then reach it, at the address that `arc-halo db url` prints.

    \b
    Example:
      arc-halo db start && pg_dump "$(arc-halo db url)" > backup.sql
    """
    from arc_halo import embedded

    _warn_if_unused(invocation)
    _report(invocation, embedded.start(embedded_directory(invocation)))


@db.command("stop")
@click.option("--force", is_flag=True, help="Throw out whoever still uses it.")
@click.pass_obj
def stop(invocation: Invocation, force: bool) -> None:
    """Stop the embedded server, also one that was to stay.

    It refuses while others use the server, and tells who they are. With --force their
    transactions are undone; what was committed stays.

    \b
    Examples:
      arc-halo db stop
      arc-halo db stop --force
    """
    from arc_halo import embedded

    stopped = embedded.stop(embedded_directory(invocation), force=force)
    said = "stopped" if stopped else "it was not running"
    render(
        invocation,
        text=lambda: invocation.console.print(said),
        json=lambda: json.dumps({"stopped": stopped}),
        markdown=lambda: said,
    )


@db.command("status")
@click.pass_obj
def status(invocation: Invocation) -> None:
    """Say which database the project uses, and how its embedded server is.

    Starts nothing and connects to nothing.

    \b
    Examples:
      arc-halo db status
      arc-halo --output json db status
    """
    target = target_of(invocation)
    if target.url is None:
        from arc_halo import embedded

        _report(invocation, embedded.status(embedded_directory(invocation)))
    else:
        facts = {"database": "url", "origin": target.origin, "url": address(target.url)}
        _print_facts(invocation, facts)


@db.command("url")
@click.pass_obj
def url(invocation: Invocation) -> None:
    """Print the database's address, without its password.

    The embedded server answers there while it runs: start it with `arc-halo db start`. For
    another one, give the password as PGPASSWORD or in ~/.pgpass.

    \b
    Example:
      psql "$(arc-halo db url)"
    """
    target = target_of(invocation)
    if target.url is not None:
        invocation.console.print(address(target.url))
        return
    from arc_halo import embedded

    found = embedded.status(embedded_directory(invocation))
    invocation.console.print(found.url)
    if not found.running:
        invocation.console.note("the embedded server is not running: `arc-halo db start`")


@db.command(
    "psql", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def psql(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Open psql in the project's database; ARGUMENTS go to psql.

    The password reaches psql through its environment, never through its arguments. Write `--`
    before options of psql that arc-halo has too, such as --output.

    \b
    Examples:
      arc-halo db psql
      arc-halo db psql -c 'SELECT model_name, version FROM models'
      arc-halo db psql -- --csv --output report.csv -f report.sql
    """
    invocation: Invocation = context.obj
    target = target_of(invocation)
    with database_url(invocation, target) as url:
        code = _run_psql(_psql_program(target), url, arguments)
    context.exit(code)


@db.command("roles")
@click.option(
    "--member",
    "members",
    metavar="ROLE=USER",
    multiple=True,
    help="Let a user of the server in: reader, writer or admin. May be given again.",
)
@click.option("--dry-run", is_flag=True, help="Print the SQL that it would take, and run none.")
@click.pass_obj
def roles(invocation: Invocation, members: tuple[str, ...], dry_run: bool) -> None:
    """Make three roles: arc_halo_reader plans, arc_halo_writer applies, arc_halo_admin migrates.

    They cannot log in: let users of the server in with --member. Tables go to arc_halo_admin, and
    those of later migrations with them. What is as it should be is left alone, and memberships are
    not taken back: who is in two of them is told.

    \b
    Examples:
      arc-halo db roles --dry-run
      arc-halo db roles --member reader=ci --member writer=deploy
    """
    from arc_halo.store import roles as store

    pairs = [_membership(member) for member in members]
    with (
        invocation.open(needs_database=True) as project,
        project.direct_connection() as conn,
    ):
        done = store.set_up(conn, members=pairs, dry_run=dry_run)
    facts = {
        "dry_run": dry_run,
        "statements": done.statements,
        "wider": [asdict(each) for each in done.wider],
    }
    script = "\n".join(f"{statement};" for statement in done.statements)
    told = _told(done.statements)
    text = (script or f"-- {told}") if dry_run else told
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: json.dumps(facts, indent=2),
        markdown=lambda: f"```sql\n{script}\n```" if script else text,
    )
    for each in done.wider:
        invocation.console.note(
            f"note: {each.user} is in {each.role}, and has the rights of {each.also} besides; "
            f"memberships are not taken back: REVOKE {each.also} FROM {each.user}"
        )
    if dry_run and done.statements and not done.is_in_charge:
        invocation.console.note(
            f"note: {done.user_name} may not run this: have an administrator run "
            "`arc-halo db roles` with the same options and an address of their own"
        )
    if done.open_schema:
        invocation.console.note(
            f"note: anybody may create tables in the schema {done.open_schema}: "
            f"REVOKE CREATE ON SCHEMA {done.open_schema} FROM PUBLIC"
        )


def _membership(text: str) -> tuple[str, str]:
    role, _, user = text.partition("=")
    if role not in ("reader", "writer", "admin") or not user:
        raise UsageError(
            f"--member {text}: it is no ROLE=USER", hint="write reader=, writer= or admin=USER"
        )
    return f"arc_halo_{role}", user


def _told(statements: Sequence[str]) -> str:
    """What statements did, by what they begin with, in one line."""
    if not statements:
        return "nothing to do: the roles are there, with their rights"
    from arc_halo.sizes import format_count

    counted = Counter(statement.split()[0] for statement in statements)
    told = (
        ("CREATE", "role", " made"),
        ("ALTER", "thing", " handed to arc_halo_admin"),
        ("GRANT", "grant", ""),
        ("REVOKE", "revocation", ""),
    )
    return ", ".join(
        format_count(counted[verb], noun) + end for verb, noun, end in told if counted[verb]
    )


def address(url: str) -> str:
    """A URL for `url` (a URL or a conninfo string) without its passwords."""
    return _as_url(_words(url))


def _words(url: str) -> dict[str, str]:
    """What the address itself says, and no default; no password."""
    from arc_halo.store.connection import parse

    return {name: value for name, value in parse(url).items() if name not in _SECRETS}


_SECRETS = (
    "password",
    "sslpassword",
    "oauth_client_secret",
    "scram_client_key",
    "scram_server_key",
)


def _as_url(words: dict[str, str]) -> str:
    user, name = words.pop("user", ""), words.pop("dbname", "")
    host, port = words.get("host", ""), words.get("port", "")
    authority = ""
    if host and not set(host) & set(",/@") and "," not in port:
        bracketed = f"[{host}]" if ":" in host else host
        authority = bracketed + (f":{port}" if port else "")
        words = {key: value for key, value in words.items() if key not in ("host", "port")}
    query = "&".join(f"{key}={quote(value, safe='/,')}" for key, value in words.items())
    at = f"{quote(user, safe='')}@" if user else ""
    path = f"/{quote(name, safe='')}" if name or query else ""
    return f"postgresql://{at}{authority}{path}" + (f"?{query}" if query else "")


def _warn_if_unused(invocation: Invocation) -> None:
    target = target_of(invocation)
    if target.url is not None:
        invocation.console.note(
            f"note: this project uses another database, named by {target.origin}"
        )


def _report(invocation: Invocation, found: Status) -> None:
    facts: dict[str, object] = {
        "database": "embedded",
        "running": found.running,
        "pid": found.pid,
        "stays": found.kept,
        "version": found.version,
        "url": found.url,
        "data": str(found.data_directory),
        "size_bytes": found.size_bytes,
    }
    _print_facts(invocation, facts)


def _print_facts(invocation: Invocation, facts: Mapping[str, object]) -> None:
    width = max(map(len, facts)) + 2
    shown = {name: _shown(name, value) for name, value in facts.items()}
    lines = [f"{name + ':':{width}}{shown[name]}" for name in shown]
    render(
        invocation,
        text=lambda: invocation.console.print("\n".join(lines)),
        json=lambda: json.dumps(facts, indent=2),
        markdown=lambda: markdown_table(("fact", "value"), list(shown.items())),
    )


def _shown(name: str, value: object) -> str:
    from arc_halo.sizes import format_size

    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int() if name == "size_bytes":
            return format_size(value)
        case _:
            return str(value)


def _psql_program(target: DatabaseTarget) -> str:
    """The bundled psql for the bundled server, which may be newer than the system's psql."""
    from arc_halo.bundled import programs

    installed = shutil.which("psql")
    if target.url is None or installed is None:
        return str(programs.program("psql"))
    return installed


def _run_psql(program: str, url: str, arguments: tuple[str, ...]) -> int:
    from psycopg.conninfo import make_conninfo

    from arc_halo.store.connection import parameters

    words = parameters(url, application_name="arc-halo psql")
    _refuse_without_tls(program, words)
    environment = dict(os.environ)
    if password := words.pop("password", None):
        environment["PGPASSWORD"] = password
    if "sslpassword" in words:
        raise ConnectionFailedError(
            "psql would show the 'sslpassword' of this address in the list of processes",
            hint="take the passphrase off the client's key, or run psql by hand",
        )
    # psql answers Ctrl-C itself. A handler, unlike SIG_IGN, is not handed down to it.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        command = [program, "--dbname", make_conninfo("", **words), *arguments]
        return subprocess.run(command, env=environment, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)


def _refuse_without_tls(program: str, words: Mapping[str, str]) -> None:
    from arc_halo.bundled import programs

    needs_tls = words.get("sslmode") in ("require", "verify-ca", "verify-full")
    if needs_tls and program == str(programs.program("psql")):
        raise ConnectionFailedError(
            "the bundled psql knows no TLS, and this database asks for it",
            hint="install PostgreSQL's own client, so that `psql` is on the PATH",
        )
