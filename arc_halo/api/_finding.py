"""What callers may name a model by."""

from __future__ import annotations

from contextlib import suppress
from typing import TypeGuard
from uuid import UUID

from arc_halo.errors import NotFoundError
from arc_halo.inference.checking import given_root
from arc_halo.names import shown
from arc_halo.reconcile import showing
from arc_halo.store import loaded_weights, models
from arc_halo.store.models import ModelRecord
from arc_halo.store.rows import Connection

GivenModel = str | UUID | ModelRecord


def find_model(conn: Connection, given: GivenModel) -> ModelRecord:
    """The model as it stands now, by a reference, its id, or a record. Raises `NotFoundError`."""
    model = given.id if isinstance(given, ModelRecord) else given
    record = showing.find_model(conn, model) if isinstance(model, str) else None
    if record is None and isinstance(model, (str, UUID)):
        with suppress(ValueError):
            found = models.find(conn, id=model if isinstance(model, UUID) else UUID(model))
            record = found[0] if found else None
    if record is None:
        raise NotFoundError(f"there is no model {shown(model)}", hint="`halo.models.list()`")
    return record


def find_root(conn: Connection, weights: bytes | GivenModel) -> bytes:
    """A root of weights: itself, as bytes or written `sha256:…`, or that of a registered model.

    Raises `InvalidInputError` for what is none, and `NotFoundError`.
    """
    if not _is_name(weights):
        return given_root(weights)
    model = find_model(conn, weights)
    if model.root is None:
        raise NotFoundError(
            f"{model.full_name} has no weights",
            hint="import or declare them first",
            code="AH064",
        )
    return bytes(model.root)


def find_roots(conn: Connection, weights: bytes | GivenModel) -> list[bytes]:
    """The same, of a registered model all roots that engines had of its weights, too."""
    if not _is_name(weights):
        return [given_root(weights)]
    return loaded_weights.roots(conn, find_model(conn, weights).id)


def _is_name(weights: object) -> TypeGuard[GivenModel]:
    if isinstance(weights, str):
        return not weights.startswith("sha256:")
    return isinstance(weights, UUID | ModelRecord)


def as_uuid(text: str) -> UUID | None:
    with suppress(ValueError):
        return UUID(text)
    return None
