"""`arc-halo plan`: what apply would do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from arc_halo.cli.choosing import (
    cache_option,
    limit_options,
    plugins_option,
    selection_options,
)
from arc_halo.cli.cutting import UNCUT, Cut, cut_options
from arc_halo.cli.invocation import Invocation, render
from arc_halo.errors import UsageError

if TYPE_CHECKING:
    from arc_halo.project import Project
    from arc_halo.reconcile.changes import Plan

CHANGES_PENDING = 2


@click.command("plan")
@selection_options
@limit_options
@cache_option
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the plan here, for `arc-halo apply FILE`.",
)
@click.option(
    "--show",
    "saved",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Show the plan that `--out` wrote, and make none.",
)
@plugins_option
@cut_options
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 2 when there are changes.")
@click.pass_context
def plan(
    context: click.Context,
    prune: bool | None,
    targets: tuple[str, ...],
    excludes: tuple[str, ...],
    max_deletes: int | None,
    allow_empty: bool,
    no_cache: bool,
    out: Path | None,
    saved: Path | None,
    plugins_from: str | None,
    cut: Cut,
    detailed_exitcode: bool,
) -> None:
    """Show what apply would do, and change nothing.

    \b
    Examples:
      arc-halo plan
      arc-halo plan --out plan.json && arc-halo apply plan.json
      arc-halo plan --show plan.json
      arc-halo plan --target "model/poet*" --exclude reactor/story
      arc-halo plan --output markdown >> "$GITHUB_STEP_SUMMARY"
      arc-halo plan --output markdown --max-bytes 60000 > comment.md
      arc-halo plan --detailed-exitcode || echo "changes or an error"
    """
    invocation: Invocation = context.obj
    if saved is not None:
        is_limited = prune is not None or targets or excludes or allow_empty
        if is_limited or out or plugins_from or max_deletes is not None:
            raise UsageError(
                "a saved plan is shown as it is", hint="leave out what says how to make another"
            )
        if _show(invocation, saved, cut).has_changes and detailed_exitcode:
            context.exit(CHANGES_PENDING)
        return
    with invocation.open(rereads=no_cache, plugins_from=plugins_from) as project:
        with invocation.console.task("read weight files", 0) as advance:
            made = project.plan(prune=prune, targets=targets, excludes=excludes, advance=advance)
        if out is not None:
            _save(project, made, out)
        show_plan(invocation, project, made, cut)
        if made.has_changes or made.conflicts:
            project.limits(max_deletes=max_deletes, allow_empty=allow_empty).check(made)
        if detailed_exitcode and made.has_changes:
            context.exit(CHANGES_PENDING)


def show_plan(invocation: Invocation, project: Project, plan: Plan, cut: Cut = UNCUT) -> None:
    """Print a plan in the form asked for."""
    from arc_halo.reconcile.git import git_state
    from arc_halo.reconcile.markdown import plan_markdown
    from arc_halo.reconcile.plan_document import plan_json
    from arc_halo.reconcile.report import as_json, plan_lines

    render(
        invocation,
        text=lambda: invocation.console.lines(plan_lines(plan)),
        json=lambda: as_json(plan_json(plan, git=git_state(project.directory))),
        markdown=lambda: cut.markdown(partial(plan_markdown, plan)),
    )


def _show(invocation: Invocation, file: Path, cut: Cut) -> Plan:
    """Print a plan from its file, without a project or a database."""
    from arc_halo.reconcile.markdown import plan_markdown
    from arc_halo.reconcile.plan_reading import plan_of
    from arc_halo.reconcile.report import as_json, plan_lines
    from arc_halo.reconcile.saved import read_plan

    saved = read_plan(file)
    plan = plan_of(saved.document)
    made = saved.document["created_at"]
    invocation.console.note(f"{file}: {plan.project} from revision {plan.base_revision}, {made}")
    render(
        invocation,
        text=lambda: invocation.console.lines(plan_lines(plan)),
        json=lambda: as_json(saved.document),
        markdown=lambda: cut.markdown(partial(plan_markdown, plan)),
    )
    return plan


def _save(project: Project, plan: Plan, out: Path) -> None:
    from arc_halo.reconcile.git import git_state
    from arc_halo.reconcile.saved import save_plan

    save_plan(out, plan, git_state(project.directory))
