"""Opening the body store that a project names, and making sure that it is this database's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from arc_halo.errors import BodyStoreError, InvalidInputError
from arc_halo.store import body_stores
from arc_halo.store.body_stores import RegisteredStore
from arc_halo.store.rows import Connection, Pool
from arc_halo.types import BodyStore, ChunkBodies
from arc_halo.weights.store import OpenBodies


@contextmanager
def open_bodies(pool: Pool, descriptor: BodyStore, url: str | None) -> Iterator[OpenBodies | None]:
    """The open store, or None for one that keeps bodies in the database's own rows.

    Raises `InvalidInputError` for a missing or needless URL, and `BodyStoreError` for a store that
    another database has claimed, or the one that this is a copy of: each collects what its own
    catalogue does not name.
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
    url = url.rstrip("/")
    with descriptor.open(url) as bodies:
        with pool.connection() as conn:
            known = _claimed(conn, bodies, descriptor.name, url)
            if not body_stores.hold(conn, known):
                raise BodyStoreError(
                    f"{url} belongs to the database that this one is a copy of",
                    hint="name a copy of the store; or if the other one is gone, take it over: "
                    f"set holder to NULL in row {known.id} of body_stores",
                )
        yield OpenBodies(store_id=known.id, bodies=bodies)


def _claimed(conn: Connection, bodies: ChunkBodies, kind: str, url: str) -> RegisteredStore:
    """The store as the catalogue has it, at its new address if it was moved."""
    known = body_stores.register(conn, kind=kind, url=url)
    there = bodies.claim(str(known.marker))
    if there == str(known.marker):
        return known
    moved = body_stores.by_marker(conn, there)
    if moved is None:
        body_stores.forget(conn, known)
        raise BodyStoreError(
            f"{url} holds the bodies of another database",
            hint="give each database a directory or a prefix of its own",
        )
    with conn.transaction():
        body_stores.forget(conn, known)
        body_stores.move(conn, moved, url)
    return replace(moved, url=url)


def _wrong_url(what: str, hint: str) -> InvalidInputError:
    return InvalidInputError(f"storage.bodies: {what}", hint=hint, code="AH005")
