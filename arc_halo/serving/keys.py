"""Keys of those who ask: made once, shown once, and kept as digests."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from arc_halo.store import keys
from arc_halo.store.keys import ApiKey
from arc_halo.store.rows import Connection

PREFIX = "ah-"
KEY_BYTES = 32


def new_key() -> str:
    """A key that nobody can guess."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest_of(key: str) -> bytes:
    """What is kept of a key: a plain SHA-256, since 32 random bytes cannot be searched for."""
    return hashlib.sha256(key.encode()).digest()


def find_key(conn: Connection, key: str) -> ApiKey | None:
    """Whose key this is; None for one that is not, or no longer, good."""
    digest = digest_of(key)
    found = keys.use(conn, digest)
    is_it = found is not None and hmac.compare_digest(bytes(found.key_sha256), digest)
    return found if is_it else None
