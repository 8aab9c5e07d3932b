"""SQL of what requests took: written in batches, and read in percentiles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from psycopg.rows import class_row

from arc_halo.store.rows import Connection

COPY_REQUESTS = """
COPY inference_metrics (session_id, recorded_at, latency_ms, first_token_ms, tokens_per_second,
                        prompt_tokens, cached_tokens, generated_tokens, memory_bytes, succeeded)
FROM STDIN
"""

LATENCY = """
SELECT requests, failed, latency_p50_ms, latency_p95_ms, latency_p99_ms, first_token_p50_ms,
       first_token_p95_ms, first_token_p99_ms, tokens_per_second, cached_share, peak_memory_bytes
FROM v_inference_latency
WHERE session_id = %(session)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """What one request took; None for what is not known. It ended `recorded_at` (since 1970)."""

    recorded_at: float
    latency_ms: float
    first_token_ms: float | None = None
    tokens_per_second: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    generated_tokens: int | None = None
    memory_bytes: int | None = None
    succeeded: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """What the requests of a session took; percentiles and means are of those that succeeded."""

    requests: int
    failed: int
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    first_token_p50_ms: float | None
    first_token_p95_ms: float | None
    first_token_p99_ms: float | None
    tokens_per_second: float | None
    cached_share: float | None
    peak_memory_bytes: int | None


def copy_requests(conn: Connection, session_id: UUID, requests: Iterable[RequestMetrics]) -> None:
    with conn.cursor() as cursor, cursor.copy(COPY_REQUESTS) as copy:
        copy.write("".join(_line(session_id, each) for each in requests))


def latency(conn: Connection, session_id: UUID) -> Latency | None:
    """None where there is no such session."""
    with conn.cursor(row_factory=class_row(Latency)) as cursor:
        return cursor.execute(LATENCY, {"session": session_id}).fetchone()


def _line(session_id: UUID, request: RequestMetrics) -> str:
    """A row in the text form of COPY: numbers need no quoting."""
    fields = (
        session_id,
        datetime.fromtimestamp(request.recorded_at, UTC).isoformat(),
        request.latency_ms,
        request.first_token_ms,
        request.tokens_per_second,
        request.prompt_tokens,
        request.cached_tokens,
        request.generated_tokens,
        request.memory_bytes,
        request.succeeded,
    )
    return "\t".join("\\N" if each is None else str(each) for each in fields) + "\n"
