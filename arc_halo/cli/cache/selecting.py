"""Which models a word means, as the KV cache knows them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from arc_halo.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from arc_halo.store.rows import Connection

DIGITS = re.compile("[0-9a-f]{6,64}")


def roots_of(conn: Connection, model: str | None) -> list[bytes] | None:
    """Roots of the weights of a model, by its name, or by one of them that begins so; None where
    none is asked for. Raises `NotFoundError`, and `InvalidInputError` where several begin so."""
    from arc_halo.plain import check_texts
    from arc_halo.store import kv_cache_reading as reading

    if model is None:
        return None
    check_texts(model=model)
    if found := reading.roots_of_model(conn, model) if model else []:
        return found
    digits = model.removeprefix("sha256:")
    if DIGITS.fullmatch(digits):
        found = reading.roots_that_begin(conn, digits)
    if len(found) > 1:
        raise InvalidInputError(
            f"{model!r} begins several roots of weights", hint="write more digits", code="AH006"
        )
    if not found:
        raise NotFoundError(
            f"neither the KV cache nor the registry knows a model {model!r}",
            hint="`arc-halo cache stats` lists those that the cache knows",
        )
    return reading.roots_of_same_model(conn, found[0])
