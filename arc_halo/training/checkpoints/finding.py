"""Checkpoints by what people call them: `tune:best`, `tune:400`, `0f6e2a`."""

from __future__ import annotations

import re

from arc_halo.errors import InvalidInputError, NotFoundError
from arc_halo.store import checkpoints as store_of
from arc_halo.store.checkpoints import Checkpoint
from arc_halo.store.rows import Connection
from arc_halo.training.checkpoints.choosing import choose
from arc_halo.training.checkpoints.saving import history
from arc_halo.training.naming import find_session, session_or_none

PREFIX = re.compile(r"[0-9a-f][0-9a-f-]{5,35}")
"""The beginning of an id, six digits or more."""

WHICH = re.compile(r"(?P<session>.+):(?P<which>latest|best|\d{1,18})")


def find_checkpoint(
    conn: Connection, text: str, *, parts: frozenset[str] = frozenset()
) -> Checkpoint:
    """What `SESSION`, `SESSION:STEP`, `SESSION:latest`, `SESSION:best` or an id's beginning means.

    A session alone means its latest that can hold `parts`. Raises `NotFoundError`, and
    `InvalidInputError` for the beginning of several ids.
    """
    named, which, session = text, "latest", session_or_none(conn, text)
    if session is None and (matched := WHICH.fullmatch(text)):
        named, which = matched["session"], matched["which"]
        session = find_session(conn, named)
    if session is None:
        return _by_prefix(conn, text)
    step_or_word = int(which) if which.isdigit() else which
    found = choose(history(conn, session.id), step_or_word, set(parts))
    if found is None:
        raise NotFoundError(
            f"the session {named!r} has no checkpoint {which!r}"
            + (f" with {', '.join(sorted(parts))}" if parts else ""),
            hint=f"`arc-halo training checkpoints ls {named}`",
        )
    return found


def _by_prefix(conn: Connection, text: str) -> Checkpoint:
    ids = store_of.ids_by_prefix(conn, _prefix(text))
    if len(ids) > 1:
        raise InvalidInputError(
            f"{text!r} begins several ids of checkpoints", hint="give more of the id"
        )
    found = store_of.by_id(conn, ids[0]) if ids else None
    if found is None:
        raise NotFoundError(
            f"there is no training session and no checkpoint {text!r}",
            hint="write SESSION, SESSION:STEP, SESSION:best or the beginning of an id",
        )
    return found


def _prefix(text: str) -> str:
    """The beginning of an id to look for; one that no id has where the text is none."""
    lowered = text.lower()
    return lowered if PREFIX.fullmatch(lowered) else "-"
