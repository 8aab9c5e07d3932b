"""SQL of the keys with which reactors are asked over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from psycopg.rows import class_row

from arc_halo.store.rows import Connection

CREATE_KEY = """
INSERT INTO api_keys (name, tenant, key_sha256, expires_at)
VALUES (%(name)s, %(tenant)s, %(digest)s, now() + %(expires)s)
ON CONFLICT (name) WHERE revoked_at IS NULL DO NOTHING
RETURNING id, name, tenant, key_sha256, created_at, expires_at, revoked_at, last_used_at
"""

# Noted once a minute, so that a busy key does not write a row with every request.
USE_KEY = """
WITH used AS (
    UPDATE api_keys SET last_used_at = now()
    WHERE key_sha256 = %(digest)s AND revoked_at IS NULL
      AND (expires_at IS NULL OR expires_at > now())
      AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
)
SELECT id, name, tenant, key_sha256, created_at, expires_at, revoked_at, last_used_at
FROM api_keys
WHERE key_sha256 = %(digest)s AND revoked_at IS NULL
  AND (expires_at IS NULL OR expires_at > now())
"""

REVOKE_KEY = """
UPDATE api_keys SET revoked_at = now()
WHERE (name = %(key)s OR id::text = %(key)s) AND revoked_at IS NULL
RETURNING id, name, tenant, key_sha256, created_at, expires_at, revoked_at, last_used_at
"""

LIST_KEYS = """
SELECT id, name, tenant, key_sha256, created_at, expires_at, revoked_at, last_used_at
FROM api_keys ORDER BY created_at, name
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it is kept: whose it is and until when, and the SHA-256 of its text."""

    id: UUID
    name: str
    tenant: str
    key_sha256: bytes
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


def create(
    conn: Connection, name: str, tenant: str, digest: bytes, expires: timedelta | None
) -> ApiKey | None:
    """A new key; None where one of that name is in use."""
    given = {"name": name, "tenant": tenant, "digest": digest, "expires": expires}
    with conn.cursor(row_factory=class_row(ApiKey)) as cursor:
        return cursor.execute(CREATE_KEY, given).fetchone()


def use(conn: Connection, digest: bytes) -> ApiKey | None:
    """The key with that digest; None for one that is not, or no longer, good."""
    with conn.cursor(row_factory=class_row(ApiKey)) as cursor:
        return cursor.execute(USE_KEY, {"digest": digest}).fetchone()


def revoke(conn: Connection, name_or_id: str) -> ApiKey | None:
    """The key that is no longer good from now on; None where there is none in use."""
    with conn.cursor(row_factory=class_row(ApiKey)) as cursor:
        return cursor.execute(REVOKE_KEY, {"key": name_or_id}).fetchone()


def every(conn: Connection) -> list[ApiKey]:
    """All keys, those that are no longer good too."""
    with conn.cursor(row_factory=class_row(ApiKey)) as cursor:
        return cursor.execute(LIST_KEYS).fetchall()
