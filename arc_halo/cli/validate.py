"""`arc-halo validate` and `arc-halo schema`: the manifest alone, without a database."""

from __future__ import annotations

import click

from arc_halo.cli.choosing import plugins_option
from arc_halo.cli.invocation import Invocation, render


@click.command("validate")
@plugins_option
@click.pass_obj
def validate(invocation: Invocation, plugins_from: str | None) -> None:
    """Check the manifest: syntax, fields, names, references. Needs no database.

    All problems are shown at once, each with its file, line and column; the exit code is 4 then.

    \b
    Examples:
      arc-halo validate
      arc-halo validate --project path/to/project
      arc-halo validate --plugins-from origin/main
    """
    from arc_halo.manifest.overlays import overlay_label
    from arc_halo.manifest.resolve import resolve
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_count

    project = invocation.open(plugins_from=plugins_from)
    manifest = project.manifest
    for remark in manifest.plugins.remarks.values():
        invocation.console.note(remark, "warn")
    desired = resolve(manifest.sources, manifest.plugins, allow_paths=manifest.allow_paths)
    labels = [source.label for source in manifest.sources]
    labels += [overlay_label(desired.env)] if desired.env else []
    count, files = len(desired.declarations), len(labels)
    text = f"{format_count(count, 'resource')} in {format_count(files, 'file')}: valid."
    facts = {
        "valid": True,
        "project": desired.project,
        "environment": desired.env,
        "files": labels,
        "resources": [str(key) for key in desired.declarations],
    }
    render(
        invocation,
        text=lambda: invocation.console.print(text, "create"),
        json=lambda: as_json(facts),
        markdown=lambda: f"**{text}**",
    )


@click.command("schema")
@click.argument(
    "document",
    type=click.Choice(["manifest", "overlay", "plan", "report", "drift"]),
    default="manifest",
)
@click.pass_obj
def schema(invocation: Invocation, document: str) -> None:
    """Print the JSON Schema of the manifest, the params of every loaded plugin included.

    Editors use it through a first line `# yaml-language-server: $schema=FILE`. The schemas of what
    `plan`, `apply` and `drift` print with `--output json` are there, too.

    \b
    Examples:
      arc-halo schema > manifest.schema.json
      arc-halo schema plan > plan.schema.json
      arc-halo schema overlay > overlays/overlay.schema.json
    """
    from arc_halo.manifest.overlay_schema import overlay_schema
    from arc_halo.manifest.reading import schema_of
    from arc_halo.reconcile.report import as_json

    if document not in ("manifest", "overlay"):
        from arc_halo.reconcile.saved import published_schema

        invocation.console.print(as_json(published_schema(document)))
        return
    plugins = invocation.open(needs_manifest=False).plugins
    whole = schema_of(plugins)
    invocation.console.print(as_json(overlay_schema(whole) if document == "overlay" else whole))
