"""`arc-halo serve`: reactors over HTTP."""

from __future__ import annotations

from collections.abc import Sequence

import click

from arc_halo.cli.invocation import Invocation
from arc_halo.config import parse_size
from arc_halo.errors import UsageError


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="The port; 0 takes any that is free.",
)
@click.option(
    "--reactor",
    "names",
    metavar="NAME",
    multiple=True,
    help="A reactor that answers; all that run here if left out.",
)
@click.option(
    "--max-body",
    metavar="SIZE",
    default="1MiB",
    show_default=True,
    help="The largest body of a request.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 4096),
    default=64,
    show_default=True,
    help="Requests that are answered at once.",
)
@click.option(
    "--queue",
    type=click.IntRange(0, 1_000_000),
    default=1024,
    show_default=True,
    help="Requests that may wait; more are told to come again.",
)
@click.option("--no-keys", is_flag=True, help="Ask for no keys; on loopback addresses only.")
@click.pass_obj
def serve(
    invocation: Invocation,
    host: str,
    port: int,
    names: Sequence[str],
    max_body: str,
    concurrency: int,
    queue: int,
    no_keys: bool,
) -> None:
    """Answer as OpenAI's HTTP interface does, with reactors for models.

    It runs until SIGTERM or Ctrl-C, and then answers what it was asked before. `/healthz` says
    that it is there, `/metrics` what it does.

    \b
    Examples:
      arc-halo keys create laptop
      arc-halo serve
      arc-halo serve --host 0.0.0.0 --port 80 --reactor digits --reactor chorus
    """
    try:
        from arc_halo.serving import running
        from arc_halo.serving.app import Limits
    except ImportError as exc:
        raise UsageError(
            f"`arc-halo serve` needs the package {exc.name}", hint="pip install 'arc-halo[serve]'"
        ) from exc
    from arc_halo.reconcile.report import as_json

    console = invocation.console

    def ready(url: str, reactors: Sequence[str]) -> None:
        facts = {"url": url, "reactors": list(reactors), "keys": not no_keys}
        console.print(url if invocation.output != "json" else as_json(facts))
        console.note(f"answering: {', '.join(reactors)}")

    limits = Limits(max_body_bytes=parse_size(max_body), concurrency=concurrency, queue=queue)
    with invocation.open(needs_database=True) as project:
        running.serve(
            project,
            names=tuple(dict.fromkeys(names)),
            host=host,
            port=port,
            limits=limits,
            has_keys=not no_keys,
            note=console.note,
            ready=ready,
        )
    console.note("every request was answered")
