"""Sessions by what people call them: a name, an id, or the beginning of one."""

from __future__ import annotations

from uuid import UUID

from arc_halo.errors import InvalidInputError, NotFoundError
from arc_halo.names import did_you_mean, id_digits
from arc_halo.store import training_reading
from arc_halo.store.rows import Connection
from arc_halo.store.training_reading import SessionName


def find_session(conn: Connection, named: str | UUID) -> SessionName:
    """The session with this id or name, of several the newest; or the one whose id begins so.

    Raises `NotFoundError`, and `InvalidInputError` for the beginning of several ids.
    """
    found = session_or_none(conn, named)
    if found is None:
        close = did_you_mean(str(named), training_reading.names(conn))
        raise NotFoundError(
            f"there is no training session {str(named)!r}",
            hint=close or "`arc-halo training ls` lists them",
        )
    return found


def session_or_none(conn: Connection, named: str | UUID) -> SessionName | None:
    """As `find_session`; None where there is none."""
    text = str(named)
    if "\0" in text:
        return None
    found = training_reading.find(conn, text, id_digits(text))
    if len(found) > 1 and text not in (str(found[0].id), found[0].session_name):
        listed = ", ".join(str(each.id) for each in found[:10]) + (", …" if found[10:] else "")
        raise InvalidInputError(
            f"{text!r} begins several ids of training sessions: {listed}",
            hint="give more of the id",
            code="AH006",
        )
    return found[0] if found else None
