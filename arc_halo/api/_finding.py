"""What callers may name a model by."""

from __future__ import annotations

from contextlib import suppress
from uuid import UUID

from arc_halo.errors import InvalidInputError, NotFoundError
from arc_halo.reconcile import showing
from arc_halo.store import models
from arc_halo.store.models import ModelRecord
from arc_halo.store.rows import Connection
from arc_halo.tensors import digests


def find_model(conn: Connection, model: str | UUID) -> ModelRecord:
    record = showing.find_model(conn, model) if isinstance(model, str) else None
    if record is None and isinstance(model, (str, UUID)):
        with suppress(ValueError):
            found = models.find(conn, id=model if isinstance(model, UUID) else UUID(model))
            record = found[0] if found else None
    if record is None:
        raise NotFoundError(f"there is no model {str(model)!r}", hint="`halo.models.list()`")
    return record


def find_root(conn: Connection, weights: bytes | str) -> bytes:
    """A root of weights: itself, as bytes or written `sha256:…`, or that of a registered model.

    Raises `InvalidInputError` for bytes that are none, and `NotFoundError`.
    """
    if isinstance(weights, bytes):
        if len(weights) != digests.DIGEST_BYTES:
            raise InvalidInputError(
                f"a root has {digests.DIGEST_BYTES} bytes, not {len(weights)}", code="AH006"
            )
        return weights
    if weights.startswith("sha256:"):
        return digests.parse_digest(weights)
    model = find_model(conn, weights)
    if model.root is None:
        raise NotFoundError(
            f"{model.full_name} has no weights",
            hint="import or declare them first",
            code="AH064",
        )
    return bytes(model.root)


def as_uuid(text: str) -> UUID | None:
    with suppress(ValueError):
        return UUID(text)
    return None
