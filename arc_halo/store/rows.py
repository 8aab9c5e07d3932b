"""What the store's modules share: the connection type and the shape of a live row."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from arc_halo.store.connection import Connection as Connection
from arc_halo.store.connection import Pool as Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRow:
    """A typed row as it stands: its id and the digest of everything reconcile manages in it."""

    name: str
    id: UUID
    digest: str


def as_uuid(value: object) -> UUID:
    assert isinstance(value, UUID)
    return value


def as_bytes(value: object) -> bytes:
    assert isinstance(value, (bytes, memoryview))
    return bytes(value)


def as_bytes_or_none(value: object) -> bytes | None:
    return None if value is None else as_bytes(value)
