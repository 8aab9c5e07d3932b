"""What inference recorded, read: sessions by the beginning of their ids, and what requests took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from arc_halo.errors import InvalidInputError, NotFoundError
from arc_halo.inference.checking import check_limit
from arc_halo.names import ID_DIGITS, id_digits, shown
from arc_halo.plain import check_texts
from arc_halo.store import inference_metrics, inference_sessions, models
from arc_halo.store.inference_metrics import Latency
from arc_halo.store.inference_sessions import SessionRow
from arc_halo.store.rows import Connection

if TYPE_CHECKING:
    from arc_halo.inference.sessions import InferenceSession

    GivenSession = str | UUID | SessionRow | InferenceSession

STATUSES = ("active", "completed", "failed", "crashed")


def sessions(
    conn: Connection,
    *,
    model: str | None = None,
    tenant: str | None = None,
    status: str | None = None,
    limit: int | None = None,
) -> list[SessionRow]:
    """Sessions, the newest first. `model` is a name, name@version or name:alias.

    Raises `InvalidInputError` for what is no status, no text or no number, and `NotFoundError`.
    """
    check_texts(tenant=tenant, status=status)
    check_limit(limit)
    if status is not None and status not in STATUSES:
        raise InvalidInputError(
            f"status={status!r} is no status of a session",
            hint=f"write {', '.join(STATUSES)}",
            code="AH006",
        )
    name, version = model_filter(conn, model)
    return inference_sessions.sessions(
        conn, model=name, version=version, tenant=tenant, status=status, limit=limit
    )


def model_filter(conn: Connection, model: str | None) -> tuple[str | None, str | None]:
    """The name, and the version, that a model is asked for by.

    Raises `InvalidInputError`, and `NotFoundError` for an alias of none.
    """
    check_texts(model=model)
    name, _, alias = (model or "").partition(":")
    if alias:
        for record in models.find(conn, name=name, alias=alias):
            return record.name, record.version
        raise NotFoundError(f"there is no model {shown(model)}", hint="`arc-halo ls models`")
    name, at, version = (model or "").partition("@")
    return name or None, version if at else None


def session(conn: Connection, given: GivenSession) -> SessionRow:
    """The session with this id, or whose id begins so, with 6 digits or more; of one at work, or
    read before, how it stands now.

    Raises `NotFoundError`, and `InvalidInputError` for the beginning of several ids.
    """
    named: Any = getattr(given, "id", given)
    digits = id_digits(str(named)) if isinstance(named, str | UUID) else ""
    ids = inference_sessions.find(conn, digits) if digits else []
    if len(ids) > 1:
        listed = ", ".join(str(each) for each in ids[:10]) + (", …" if ids[10:] else "")
        raise InvalidInputError(
            f"{str(named)!r} begins several ids of inference sessions: {listed}",
            hint="give more of the id",
            code="AH006",
        )
    found = inference_sessions.sessions(conn, ids=ids) if ids else []
    if not found:
        raise NotFoundError(
            f"there is no inference session {shown(named)}",
            hint=f"give its id, or {ID_DIGITS} digits of it or more: `arc-halo inference ls`",
        )
    return found[0]


def latency(conn: Connection, session_id: UUID) -> Latency:
    """What the requests of a session took. Raises `NotFoundError`."""
    found = inference_metrics.latency(conn, session_id)
    if found is None:
        raise NotFoundError(f"there is no inference session {session_id}")
    return found
