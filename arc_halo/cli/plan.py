"""`arc-halo plan`: what apply would do."""

from __future__ import annotations

import click

from arc_halo.cli.invocation import Invocation, render

CHANGES_PENDING = 2


@click.command("plan")
@click.option("--prune/--no-prune", default=None, help="Delete what left the manifest, or not.")
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 2 when there are changes.")
@click.pass_context
def plan(context: click.Context, prune: bool | None, detailed_exitcode: bool) -> None:
    """Show what apply would do, and change nothing.

    \b
    Examples:
      arc-halo plan
      arc-halo plan --output markdown >> "$GITHUB_STEP_SUMMARY"
      arc-halo plan --detailed-exitcode || echo "changes or an error"
    """
    invocation: Invocation = context.obj
    from arc_halo.reconcile.applying import check_applicable
    from arc_halo.reconcile.report import as_json, plan_json, plan_lines, plan_markdown

    with invocation.open() as project:
        with invocation.console.task("read weight files", 0) as advance:
            made = project.plan(prune=prune, advance=advance)
        render(
            invocation,
            text=lambda: invocation.console.lines(plan_lines(made)),
            json=lambda: as_json(plan_json(made)),
            markdown=lambda: plan_markdown(made),
        )
        check_applicable(made)
        if detailed_exitcode and made.has_changes:
            context.exit(CHANGES_PENDING)
