"""Secrets planted where they belong, and looked for everywhere else.

Shared by `gitops.py` and the tests of faults.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

SECRET = "pl4nted-pa55word"
KEY = "sk-pl4ntedKey0123456789abcdef"
PLANTED = (SECRET, KEY)

Run = Callable[[Sequence[str], Mapping[str, str]], str]
"""Runs the program with arguments and variables; all that it says, its exit code too."""

MANIFEST: dict[str, Any] = {
    "version": 1,
    "project": "secrets",
    "settings": {"allow": {"hosts": ["127.0.0.1"], "secrets": ["PLANTED_KEY"]}},
    "models": {
        "asked@1": {
            "type": "other",
            "runner": {
                "uses": "openai",
                "params": {
                    "url": "http://127.0.0.1:9/v1",
                    "model": "m",
                    "key_env": "PLANTED_KEY",
                },
            },
        }
    },
    "reactors": {
        "ask": {"type": "ensemble", "strategy": "voting", "members": [{"model": "asked@1"}]}
    },
}

TABLES = """
SELECT space.nspname, cls.relname FROM pg_class AS cls
JOIN pg_namespace AS space ON space.oid = cls.relnamespace
WHERE cls.relkind = 'r' AND space.nspname = 'public'
"""


def leaks(
    directory: Path, url: str, run: Run, server_log: Callable[[], str]
) -> tuple[list[str], int]:
    """Where a planted secret is found, and in how many places it was looked for.

    `url` leads to a migrated database of a superuser who needs no password; all its statements are
    logged from here on.
    """
    with psycopg.connect(url, autocommit=True) as conn:
        name = sql.Identifier(conn.info.dbname)
        conn.execute(sql.SQL("ALTER DATABASE {} SET log_statement = 'all'").format(name))
        conn.execute(sql.SQL("ALTER DATABASE {} SET log_min_duration_statement = 0").format(name))
    places = dict(_said(directory, url, run))
    assert places["validate"].startswith("0 "), places["validate"]
    assert places["apply PLAN"].startswith("0 "), places["apply PLAN"]
    unasked = [how for how, text in places.items() if not text.strip()]
    assert not unasked, unasked
    for path in directory.rglob("*"):
        if path.is_file():
            places[str(path.relative_to(directory))] = path.read_bytes().decode(errors="replace")
    places["the server's log"] = log = server_log()
    assert "managed_resources" in log, "no statement was logged"
    places |= _tables(url)
    found = [how for how, text in places.items() if any(secret in text for secret in PLANTED)]
    return found, len(places)


def _said(directory: Path, url: str, run: Run) -> Iterator[tuple[str, str]]:
    """What each command says, in each way in which the program may be told a password."""
    with_password = {"ARC_HALO_DATABASE_URL": make_conninfo(url, password=SECRET)}
    key = {"PLANTED_KEY": KEY}
    plan = str(directory / "plan.json")
    _write(directory, MANIFEST)
    (directory / "question.txt").write_text("what?")
    for arguments in (
        ("validate",),
        ("render",),
        ("plan",),
        ("plan", "--out", plan, "--output", "json"),
        ("plan", "--output", "markdown"),
        ("apply", plan),
        ("apply", plan, "--output", "json"),
        ("drift", "--output", "json"),
        ("history", "show", "--output", "json"),
        ("show", "model/asked@1", "--output", "json"),
        ("export-manifest",),
        ("reactor", "run", "ask", "--input", str(directory / "question.txt")),
        ("adopt", "model/asked@1"),
        ("rollback", "7", "--yes"),
        ("migrate", "status"),
        ("db", "status"),
        ("doctor",),
        ("get", "--output", "json"),
    ):
        yield _named(directory, arguments, run, {**with_password, **key})
    yield from _from_manifest(directory, url, run)
    yield from _failing(directory, url, run)


def _from_manifest(directory: Path, url: str, run: Run) -> Iterator[tuple[str, str]]:
    """A password that the manifest names by its variable, and one that stands in it by mistake."""
    words = {k: str(v) for k, v in conninfo_to_dict(url).items()}
    query = "&".join(f"{k}={words[k]}" for k in ("host", "port") if k in words)
    address = f"postgresql://{words.get('user', 'postgres')}@/{words['dbname']}?{query}"
    named = {"url": address, "password": {"env": "PLANTED_PASSWORD"}}
    _write(directory, {**MANIFEST, "database": named})
    environ = {"PLANTED_PASSWORD": SECRET, "ARC_HALO_DATABASE_URL": ""}
    for arguments in (("plan",), ("render",), ("doctor",), ("export-manifest",)):
        yield _named(directory, arguments, run, environ)
    literal = {"url": address, "password": SECRET}
    runner = {"uses": "openai", "params": {"url": "http://h/v1", "model": "m", "api_key": KEY}}
    for name, wrong in (
        ("a literal password", {**MANIFEST, "database": literal}),
        ("a literal key", {**MANIFEST, "models": {"asked@1": {"runner": runner}}}),
    ):
        _write(directory, wrong)
        yield name, run(["plan", "--project", str(directory)], environ)
    _write(directory, MANIFEST)


def _failing(directory: Path, url: str, run: Run) -> Iterator[tuple[str, str]]:
    """Addresses that lead nowhere, or are wrong, with a password in them."""
    for name, address in (
        ("nobody there", f"postgresql://ada:{SECRET}@127.0.0.1:9/halo?connect_timeout=1"),
        ("no such database", make_conninfo(url, password=SECRET, dbname="none")),
        ("a wrong port", f"postgresql://ada:{SECRET}@127.0.0.1:port/halo"),
        ("a wrong word", f"postgresql://ada:{SECRET}@127.0.0.1/halo?passwort={SECRET}"),
    ):
        environ = {"ARC_HALO_DATABASE_URL": address, "ARC_HALO_WAIT_SECONDS": "0"}
        yield name, run(["plan", "--project", str(directory)], environ)


def _named(
    directory: Path, arguments: Sequence[str], run: Run, environ: Mapping[str, str]
) -> tuple[str, str]:
    name = " ".join("PLAN" if each.endswith("plan.json") else each for each in arguments)
    return name, run([*arguments, "--project", str(directory)], environ)


def _write(directory: Path, manifest: Mapping[str, Any]) -> None:
    (directory / "arc_halo.yaml").write_text(json.dumps(manifest, indent=1))


def _tables(url: str) -> dict[str, str]:
    with psycopg.connect(url, autocommit=True) as conn:
        return {
            f"the table {table}": "\n".join(
                row[0]
                for row in conn.execute(
                    sql.SQL("SELECT each::text FROM {} AS each").format(
                        sql.Identifier(schema, table)
                    )
                )
            )
            for schema, table in conn.execute(TABLES).fetchall()
        }
