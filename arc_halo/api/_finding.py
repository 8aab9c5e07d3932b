"""What callers may name a model by."""

from __future__ import annotations

from contextlib import suppress
from uuid import UUID

from arc_halo.errors import NotFoundError
from arc_halo.reconcile import showing
from arc_halo.store import models
from arc_halo.store.models import ModelRecord
from arc_halo.store.rows import Connection


def find_model(conn: Connection, model: str | UUID) -> ModelRecord:
    record = showing.find_model(conn, model) if isinstance(model, str) else None
    if record is None and isinstance(model, (str, UUID)):
        with suppress(ValueError):
            found = models.find(conn, id=model if isinstance(model, UUID) else UUID(model))
            record = found[0] if found else None
    if record is None:
        raise NotFoundError(f"there is no model {str(model)!r}", hint="`halo.models.list()`")
    return record


def as_uuid(text: str) -> UUID | None:
    with suppress(ValueError):
        return UUID(text)
    return None
