"""`arc-halo render`: the manifest in one piece, and where each value of it comes from."""

from __future__ import annotations

import click

from arc_halo.cli.choosing import plugins_option
from arc_halo.cli.invocation import Invocation
from arc_halo.cli.invocation import render as print_result


@click.command("render")
@plugins_option
@click.pass_obj
def render(invocation: Invocation, plugins_from: str | None) -> None:
    """Print the final manifest: includes and overlay merged, variables expanded.

    Each value is followed by the file and line it comes from. Secrets stay references. The result
    is a valid project file, in the same directory. Needs no database and no weights.

    \b
    Examples:
      arc-halo render --env prod
      diff <(arc-halo render --env dev) <(arc-halo render --env prod)
      arc-halo render --env prod --output json | jq .origins
    """
    from arc_halo.manifest.origins import final
    from arc_halo.manifest.rendering import as_yaml, origins_json
    from arc_halo.reconcile.report import as_json

    project = invocation.open(plugins_from=plugins_from)
    desired = project.desired_without_database()
    found = final(project.manifest.sources)
    text = as_yaml(found).rstrip("\n")
    facts = {
        "format": "arc-halo.manifest/1",
        "project": desired.project,
        "environment": desired.env,
        "manifest_digest": desired.manifest_digest.hex(),
        "manifest": found.data,
        "origins": origins_json(found),
    }
    print_result(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json(facts),
        markdown=lambda: f"```yaml\n{text}\n```",
    )
