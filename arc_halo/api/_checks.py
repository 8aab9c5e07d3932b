"""What callers are refused, in words."""

from __future__ import annotations

from collections.abc import Iterable

from arc_halo.errors import InvalidInputError, RefusedError
from arc_halo.names import did_you_mean
from arc_halo.reconcile import kinds
from arc_halo.store import projects
from arc_halo.store.rows import Connection


def check_name(text: str, is_valid: bool, what: str, pattern: str) -> None:
    if not is_valid:
        raise InvalidInputError(
            f"{text!r} is not a {what}", hint=f"a {what} matches {pattern}", code="AH006"
        )


def check_choice(text: str, choices: Iterable[str], what: str) -> None:
    if text not in choices:
        raise InvalidInputError(
            f"{text!r} is not a {what}",
            hint=did_you_mean(text, choices) or f"a {what} is one of {', '.join(choices)}",
            code="AH006",
        )


def refuse_existing(conn: Connection, kind: str, name: str) -> None:
    if kinds.BY_NAME[kind].live(conn, [name]):
        raise RefusedError(f"{kind}/{name} exists already", hint="choose another", code="AH013")


def refuse_managed(conn: Connection, kind: str, name: str) -> None:
    if rows := projects.list_managed(conn, kind=kind, name=name):
        raise RefusedError(
            f"{kind}/{name} belongs to the project {rows[0].project!r}",
            hint="change its manifest, and apply",
            code="AH053",
        )
