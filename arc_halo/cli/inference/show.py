"""`arc-halo inference show`: one session, with percentiles of what its requests took."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from arc_halo.cli.console import printable
from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.telling import facts, moment, number

if TYPE_CHECKING:
    from arc_halo.store.inference_metrics import Latency
    from arc_halo.store.inference_sessions import SessionRow

PERCENTILES = ("of requests", "p50", "p95", "p99")


@click.command("show")
@click.argument("session")
@click.pass_obj
def show(invocation: Invocation, session: str) -> None:
    """Show one SESSION: its config, its counts, its throughput, and percentiles of its requests.

    Percentiles and means are of the requests that succeeded, in milliseconds.

    \b
    Examples:
      arc-halo inference show 0f6e2a
      arc-halo inference show 0f6e2a1b-8c3d-4e5f-9a0b-1c2d3e4f5a6b --output json
    """
    from arc_halo.inference import reading
    from arc_halo.reconcile.report import as_json

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            found = reading.session(conn, session)
            latency = reading.latency(conn, found.id)
    fields = _fields(found, latency)
    rows = [
        _percentiles("latency", latency, "latency"),
        _percentiles("first token", latency, "first_token"),
    ]

    def text() -> None:
        width = max(len(name) for name, _ in fields)
        lines = [f"{name:<{width}}  {printable(value, one_line=True)}" for name, value in fields]
        invocation.console.print("\n".join(lines))
        if latency.requests:
            invocation.console.print("\n" + table(PERCENTILES, rows))

    render(
        invocation,
        text=text,
        json=lambda: as_json(
            {
                **facts(found),
                "model": found.model,
                "requests_per_second": found.per_second(found.request_count),
                "generated_per_second": found.per_second(found.generated_tokens),
                "latency": facts(latency),
            }
        ),
        markdown=lambda: (
            markdown_table(("field", "value"), fields) + "\n\n" + markdown_table(PERCENTILES, rows)
        ),
    )


def _fields(session: SessionRow, latency: Latency) -> list[tuple[str, str]]:
    from arc_halo.sizes import format_seconds, format_size
    from arc_halo.tensors.digests import format_digest
    from arc_halo.training.configs import flattened

    share, memory = latency.cached_share, latency.peak_memory_bytes
    found: dict[str, str | None] = {
        "id": str(session.id),
        "model": session.model,
        "weights": format_digest(session.root) if session.root else None,
        "tenant": session.tenant,
        "status": session.status,
        "error": session.error,
        "began": moment(session.started_at),
        "last sign": moment(session.heartbeat_at),
        "ended": moment(session.finished_at),
        "took": format_seconds(session.elapsed_seconds),
        "host": session.host,
        "requests": f"{session.request_count}, {session.failed_count} failed",
        "not kept": str(session.lost_count) if session.lost_count else None,
        "prompt tokens": str(session.prompt_tokens),
        "from the cache": "-" if share is None else f"{share:.1%}",
        "generated tokens": str(session.generated_tokens),
        "requests/s": number(session.per_second(session.request_count)),
        "tokens/s": number(session.per_second(session.generated_tokens)),
        "tokens/s of a request": number(latency.tokens_per_second),
        "peak memory": "-" if memory is None else format_size(memory),
    }
    told = [(name, value) for name, value in found.items() if value and value != "-"]
    for key, value in sorted(flattened(session.config).items()):
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        told.append((f"config.{key}", shown))
    return told


def _percentiles(title: str, latency: Latency, measure: str) -> tuple[str, ...]:
    return (
        title,
        *(number(getattr(latency, f"{measure}_{which}_ms")) for which in ("p50", "p95", "p99")),
    )
