"""Which models a word means, as the KV cache knows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arc_halo.errors import NotFoundError

if TYPE_CHECKING:
    from arc_halo.store.rows import Connection


def roots_of(conn: Connection, model: str | None) -> list[bytes] | None:
    """Roots of the weights of a model; None where none is asked for. Raises `NotFoundError`."""
    from arc_halo.store import kv_cache_reading

    if model is None:
        return None
    found = kv_cache_reading.roots_of_model(conn, model.removeprefix("sha256:"))
    if not found:
        raise NotFoundError(
            f"neither the KV cache nor the registry knows a model {model!r}",
            hint="`arc-halo cache stats` lists those that the cache knows",
        )
    return found
