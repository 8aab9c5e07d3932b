"""The model that a command names, and its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arc_halo.errors import NotFoundError

if TYPE_CHECKING:
    from arc_halo.store.models import ModelRecord
    from arc_halo.store.rows import Connection


def weights_of(conn: Connection, model: str) -> tuple[ModelRecord, int]:
    """The model and the id of its weight set. Raises `NotFoundError` where either is not."""
    from arc_halo.reconcile.showing import find_model

    record = find_model(conn, model)
    if record is None:
        raise NotFoundError(
            f"there is no model {model!r}", hint="see `arc-halo get models --all-projects`"
        )
    if record.weight_set_id is None:
        raise NotFoundError(
            f"{record.full_name} has no weights",
            hint="declare `weights:` for it, and apply",
            code="AH064",
        )
    return record, record.weight_set_id
