"""`arc-halo keys`: who may ask reactors over HTTP."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.errors import InvalidInputError, NotFoundError, RefusedError, UsageError

if TYPE_CHECKING:
    from arc_halo.store.keys import ApiKey
    from arc_halo.types import JsonObject


@click.group("keys")
def keys() -> None:
    """Keys with which reactors are asked over HTTP.

    \b
    Examples:
      arc-halo keys create laptop
      arc-halo keys ls
      arc-halo keys revoke laptop
    """


@keys.command("create")
@click.argument("name")
@click.option("--tenant", metavar="TEXT", default="", help="On whose behalf it asks.")
@click.option("--expires", metavar="TIME", help="How long it is good (24h, 30d); for ever if not.")
@click.pass_obj
def create(invocation: Invocation, name: str, tenant: str, expires: str | None) -> None:
    """Make a key, and print it: this once, since only its digest is kept.

    \b
    Examples:
      arc-halo keys create laptop
      arc-halo keys create shop --tenant acme --expires 30d
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.serving.keys import digest_of, new_key
    from arc_halo.store import keys

    _check_text(name, "name")
    if tenant:
        _check_text(tenant, "tenant")
    period = None if expires is None else _period(expires)
    key = new_key()
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            made = keys.create(conn, name, tenant, digest_of(key), period)
    if made is None:
        raise RefusedError(
            f"there is a key {name!r} already",
            hint=f"revoke it, `arc-halo keys revoke {name}`, or choose another name",
            code="AH013",
        )
    facts = {**_facts(made), "key": key}
    render(
        invocation,
        text=lambda: invocation.console.print(key),
        json=lambda: as_json(facts),
        markdown=lambda: f"`{key}`",
    )
    invocation.console.note("it is not shown again")


@keys.command("revoke")
@click.argument("name")
@click.pass_obj
def revoke(invocation: Invocation, name: str) -> None:
    """Refuse the key of that name, or of that id, from now on.

    \b
    Examples:
      arc-halo keys revoke laptop
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.store import keys

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            gone = keys.revoke(conn, name)
    if gone is None:
        raise NotFoundError(f"there is no key {name!r} in use", hint="`arc-halo keys ls`")
    said = f"revoked the key {gone.name}"
    render(
        invocation,
        text=lambda: invocation.console.print(said),
        json=lambda: as_json(_facts(gone)),
        markdown=lambda: said,
    )


@keys.command("ls")
@click.pass_obj
def ls(invocation: Invocation) -> None:
    """List the keys, those that are no longer good too.

    \b
    Examples:
      arc-halo keys ls
      arc-halo keys ls --output json
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.store import keys

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            found = keys.every(conn)
    header = ("name", "tenant", "created", "expires", "revoked", "last used", "id")
    rows = [
        (
            each.name,
            each.tenant,
            _day(each.created_at),
            _day(each.expires_at),
            _day(each.revoked_at),
            _day(each.last_used_at),
            str(each.id),
        )
        for each in found
    ]
    render(
        invocation,
        text=lambda: invocation.console.print(
            table(header, rows) if rows else "There are no keys."
        ),
        json=lambda: as_json({"keys": [_facts(each) for each in found]}),
        markdown=lambda: markdown_table(header, rows),
    )


def _facts(key: ApiKey) -> JsonObject:
    return {
        "id": str(key.id),
        "name": key.name,
        "tenant": key.tenant,
        "created_at": _iso(key.created_at),
        "expires_at": _iso(key.expires_at),
        "revoked_at": _iso(key.revoked_at),
        "last_used_at": _iso(key.last_used_at),
    }


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


def _day(at: datetime | None) -> str:
    return at.isoformat(sep=" ", timespec="minutes") if at else ""


def _check_text(text: str, what: str) -> None:
    if not text.strip() or not text.isprintable() or len(text) > 128:
        raise InvalidInputError(
            f"{text[:40]!r} is no {what} of a key",
            hint="write 1 to 128 printable characters",
            code="AH006",
        )


def _period(text: str) -> timedelta:
    from arc_halo.cli.tensors.gc import parse_grace

    period = parse_grace(text)
    if not period:
        raise UsageError(
            f"a key that expires after {text.strip()} is never good",
            hint="write 24h or 30d, or leave `--expires` out for a key that is good for ever",
        )
    return period
