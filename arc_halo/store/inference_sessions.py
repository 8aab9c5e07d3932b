"""SQL of inference sessions: begun, counted on, kept alive, ended, and read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from arc_halo.store.rows import Connection, as_uuid
from arc_halo.types import JsonObject

BEGIN = """
INSERT INTO inference_sessions (model_id, model_name, model_version, root, tenant, config, host,
                                pid)
VALUES ((SELECT model.id FROM models AS model
         WHERE model.model_name = %(model_name)s AND model.version = %(model_version)s),
        %(model_name)s, %(model_version)s, %(root)s, %(tenant)s, %(config)s, %(host)s, %(pid)s)
RETURNING id
"""

# Whoever tries a batch again waits here for the first try, if the server is at that still.
COUNT = """
UPDATE inference_sessions
SET batch_count = %(number)s, heartbeat_at = clock_timestamp(),
    request_count = request_count + %(requests)s, failed_count = failed_count + %(failed)s,
    lost_count = lost_count + %(lost)s, prompt_tokens = prompt_tokens + %(prompt_tokens)s,
    cached_tokens = cached_tokens + %(cached_tokens)s,
    generated_tokens = generated_tokens + %(generated_tokens)s
WHERE id = %(id)s AND batch_count < %(number)s
"""

BEAT = """
UPDATE inference_sessions SET heartbeat_at = clock_timestamp() WHERE id = %(id)s
"""

EXISTS = """
SELECT FROM inference_sessions WHERE id = %(id)s
"""

# A clock that was set back does not keep a session from its end.
END = """
UPDATE inference_sessions
SET status = %(status)s, error = %(error)s, heartbeat_at = clock_timestamp(),
    finished_at = greatest(clock_timestamp(), started_at)
WHERE id = %(id)s AND status = 'active'
"""

SESSIONS = """
SELECT session_id AS id, model_name, model_version, root, tenant, status, config, request_count,
       failed_count, lost_count, prompt_tokens, cached_tokens, generated_tokens, elapsed_seconds,
       host, pid, error, started_at, heartbeat_at, finished_at
FROM v_inference_sessions
WHERE (%(ids)s::uuid[] IS NULL OR session_id = ANY (%(ids)s::uuid[]))
  AND (%(model)s::text IS NULL OR model_name = %(model)s)
  AND (%(version)s::text IS NULL OR model_version = %(version)s)
  AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
  AND (%(status)s::text IS NULL OR status = %(status)s)
ORDER BY started_at DESC, session_id
LIMIT %(limit)s
"""

FIND = """
SELECT id FROM inference_sessions
WHERE starts_with(replace(id::text, '-', ''), %(digits)s)
ORDER BY started_at DESC, id
LIMIT 11
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSession:
    """A session that begins; `root` is that of the weights that answer."""

    model_name: str
    model_version: str
    root: bytes | None
    tenant: str
    config: JsonObject
    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Requests counted together. Of the `lost` the metrics are not kept."""

    requests: int = 0
    failed: int = 0
    lost: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            requests=self.requests + other.requests,
            failed=self.failed + other.failed,
            lost=self.lost + other.lost,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            generated_tokens=self.generated_tokens + other.generated_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """A session as it stands: one that is silent for a minute is `crashed`."""

    id: UUID
    model_name: str
    model_version: str
    root: bytes | None
    tenant: str
    status: str
    config: JsonObject
    request_count: int
    failed_count: int
    lost_count: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    elapsed_seconds: float
    host: str | None
    pid: int | None
    error: str | None
    started_at: datetime
    heartbeat_at: datetime
    finished_at: datetime | None

    @property
    def model(self) -> str:
        return f"{self.model_name}@{self.model_version}"

    def per_second(self, count: int) -> float | None:
        """So many in the time that it took; None where that was none."""
        return count / self.elapsed_seconds if self.elapsed_seconds > 0 else None


def begin(conn: Connection, new: NewSession) -> UUID:
    """Enter a session; its id."""
    row = conn.execute(BEGIN, asdict(new) | {"config": Jsonb(new.config)}).fetchone()
    assert row is not None
    return as_uuid(row[0])


def count(conn: Connection, id: UUID, number: int, tally: Tally) -> bool:
    """Add a batch to a session's counts; False where it has one of this number, or is not there."""
    fields = {"id": id, "number": number, **asdict(tally)}
    return conn.execute(COUNT, fields).rowcount == 1


def beat(conn: Connection, id: UUID) -> bool:
    """Give a sign of life; False where there is no such session any more."""
    return conn.execute(BEAT, {"id": id}).rowcount == 1


def exists(conn: Connection, id: UUID) -> bool:
    return conn.execute(EXISTS, {"id": id}).fetchone() is not None


def end(conn: Connection, id: UUID, status: str, error: str | None) -> None:
    """End a session, once."""
    conn.execute(END, {"id": id, "status": status, "error": error})


def sessions(
    conn: Connection,
    *,
    ids: Sequence[UUID] | None = None,
    model: str | None = None,
    version: str | None = None,
    tenant: str | None = None,
    status: str | None = None,
    limit: int | None = None,
) -> list[SessionRow]:
    """Sessions, the newest first."""
    asked = {
        "ids": None if ids is None else list(ids),
        "model": model,
        "version": version,
        "tenant": tenant,
        "status": status,
        "limit": limit,
    }
    with conn.cursor(row_factory=class_row(SessionRow)) as cursor:
        return cursor.execute(SESSIONS, asked).fetchall()


def find(conn: Connection, digits: str) -> list[UUID]:
    """The ids that begin with these hexadecimal digits, up to 11, those of the newest first."""
    return [as_uuid(row[0]) for row in conn.execute(FIND, {"digits": digits})]
