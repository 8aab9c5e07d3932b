"""`arc-halo get` and `arc-halo show`: what the database has."""

from __future__ import annotations

from collections.abc import Mapping

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.errors import NotFoundError, UsageError
from arc_halo.types import JsonObject

KINDS: Mapping[str, str] = {
    "models": "model",
    "strategies": "strategy",
    "reactors": "reactor",
    "training": "training",
    "inference": "inference",
}
"""What `get` lists, by the words of a manifest."""


@click.command("get")
@click.argument("kind", type=click.Choice((*KINDS, "all")), default="all")
@click.option(
    "--all-projects",
    is_flag=True,
    help="Those of every project in the database, and what no project manages.",
)
@click.pass_obj
def get(invocation: Invocation, kind: str, all_projects: bool) -> None:
    """List what the project manages in the database.

    \b
    Examples:
      arc-halo get
      arc-halo get models --output json
      arc-halo get --all-projects
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.store import projects

    singular = KINDS.get(kind)
    with invocation.open(needs_manifest=not all_projects, needs_database=all_projects) as project:
        project.check_schema()
        owner = None if all_projects else project.manifest.project
        with project.connection() as conn:
            found = projects.list_managed(conn, kind=singular, project=owner)
            free = projects.list_unmanaged(conn, kind=singular) if all_projects else []
    header = ("resource", "project", "revision", "declared in")
    rows = [
        (f"{row.kind}/{row.name}", row.project, str(row.updated_revision), row.source_file or "")
        for row in found
    ] + [(str(key), "-", "-", "") for key in free]
    facts: list[JsonObject] = [
        {
            "address": f"{row.kind}/{row.name}",
            "kind": row.kind,
            "name": row.name,
            "project": row.project,
            "protected": row.protected,
            "source": row.source_file,
            "revision": row.updated_revision,
            "updated_at": row.updated_at.isoformat(),
        }
        for row in found
    ]
    facts += [
        {"address": str(key), "kind": key.kind, "name": key.name, "project": None} for key in free
    ]
    render(
        invocation,
        text=lambda: invocation.console.print(
            table(header, rows) if rows else "Nothing is managed here."
        ),
        json=lambda: as_json({"resources": facts}),
        markdown=lambda: markdown_table(header, rows),
    )


@click.command("show")
@click.argument("address", metavar="KIND/NAME")
@click.pass_obj
def show(invocation: Invocation, address: str) -> None:
    """Show one resource: its document, and for a model its tensors.

    \b
    Examples:
      arc-halo show model/story
      arc-halo show model/story:production
      arc-halo show reactor/story --output json
      arc-halo show training/story-tuning
      arc-halo show inference/kv_cache
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.reconcile.showing import describe

    kind, _, name = address.partition("/")
    if kind not in KINDS.values() or not name:
        raise UsageError(
            f"{address!r} is not an address",
            hint=f"write model/{name or kind}, strategy/NAME, reactor/NAME, training/NAME or "
            "inference/kv_cache",
        )
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            facts = describe(conn, kind, name)
    if facts is None:
        raise NotFoundError(
            f"there is no {kind} {name!r} in the database",
            hint="`arc-halo get` lists what is there",
        )
    render(
        invocation,
        text=lambda: _print_facts(invocation, facts),
        json=lambda: as_json(facts),
        markdown=lambda: _markdown(facts),
    )


def _print_facts(invocation: Invocation, facts: JsonObject) -> None:
    console = invocation.console
    console.print(facts["address"], "bold")
    for name, value in facts.items():
        if name not in ("address", "tensors", "document"):
            console.print(f"  {name:<14} {_text(value)}")
    for name, value in _document(facts).items():
        console.print(f"  {name:<14} {_text(value)}")
    tensors = facts.get("tensors")
    if tensors:
        console.print("")
        header = ("tensor", "dtype", "shape", "part", "bytes")
        rows = [
            (t["name"], t["dtype"], "x".join(map(str, t["shape"])), t["part"], str(t["size_bytes"]))
            for t in tensors
        ]
        console.print(table(header, rows))


def _markdown(facts: JsonObject) -> str:
    shown = {**facts, **_document(facts)}
    rows = [
        (name, f"`{_text(value)}`")
        for name, value in shown.items()
        if name not in ("address", "tensors", "document")
    ]
    return f"### {facts['address']}\n\n" + markdown_table(("field", "value"), rows)


def _document(facts: JsonObject) -> JsonObject:
    """Its fields as people write them."""
    from arc_halo.manifest.caches import as_written

    document: JsonObject = facts.get("document", {})
    if not facts["address"].startswith("inference/"):
        return document
    return {name: as_written(name, value) for name, value in document.items()}


def _text(value: object) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
