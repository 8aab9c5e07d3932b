"""Opening the body store that a project names, and making sure that it is this database's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from arc_halo.errors import BodyStoreError, InvalidInputError
from arc_halo.store import body_stores
from arc_halo.store.rows import Pool
from arc_halo.types import BodyStore
from arc_halo.weights.store import OpenBodies


@contextmanager
def open_bodies(pool: Pool, descriptor: BodyStore, url: str | None) -> Iterator[OpenBodies | None]:
    """The open store, or None for one that keeps bodies in the database's own rows.

    Raises `InvalidInputError` for a missing or needless URL, and `BodyStoreError` for a store that
    another database has claimed: each collects what its own catalogue does not name.
    """
    if descriptor.open is None:
        if url is not None:
            raise _wrong_url(f"the body store {descriptor.name!r} takes no `url`", "leave it out")
        yield None
        return
    if url is None:
        raise _wrong_url(
            f"the body store {descriptor.name!r} needs a `url`", "write url: s3://bucket/prefix"
        )
    with descriptor.open(url) as bodies:
        with pool.connection() as conn:
            known = body_stores.register(conn, kind=descriptor.name, url=url)
        if bodies.claim(str(known.marker)) != str(known.marker):
            raise BodyStoreError(
                f"{url} holds the bodies of another database",
                hint="give each database a directory or a prefix of its own",
            )
        yield OpenBodies(store_id=known.id, bodies=bodies)


def _wrong_url(what: str, hint: str) -> InvalidInputError:
    return InvalidInputError(f"storage.bodies: {what}", hint=hint, code="AH005")
