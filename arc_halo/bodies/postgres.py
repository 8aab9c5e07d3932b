"""The body store `postgres`: bodies stand in the rows of the chunks they belong to."""

from __future__ import annotations

from collections.abc import Iterator

from arc_halo.hookspecs import hookimpl
from arc_halo.types import BodyStore


@hookimpl
def arc_halo_body_stores() -> Iterator[BodyStore]:
    yield BodyStore(name="postgres", version=1, summary="in the database, beside their digests")
