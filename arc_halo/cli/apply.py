"""`arc-halo apply` and `arc-halo destroy`: make the database match, or take it all away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, render
from arc_halo.errors import RefusedError

if TYPE_CHECKING:
    from arc_halo.project import Project
    from arc_halo.reconcile.changes import Plan


@click.command("apply")
@click.option("--prune/--no-prune", default=None, help="Delete what left the manifest, or not.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.option(
    "--executor",
    metavar="NAME[://ADDRESS]",
    help="Where merges are computed: threads, processes, dask://HOST:PORT.",
)
@click.pass_obj
def apply(invocation: Invocation, prune: bool | None, yes: bool, executor: str | None) -> None:
    """Make the database match the manifest.

    Migrates it first. New weights are imported or fused, then everything changes in one
    transaction: all of it or nothing. An interrupted apply goes on where it stopped.

    \b
    Examples:
      arc-halo apply
      arc-halo apply --output json
      arc-halo apply --prune --yes       delete what left the manifest, without asking
      arc-halo apply --database-url postgresql://me@db.example.org/models
      arc-halo apply --executor processes
    """
    from arc_halo.reconcile.applying import check_applicable
    from arc_halo.reconcile.report import as_json, plan_json, plan_lines, plan_markdown

    with invocation.open(executor=executor) as project:
        project.desired_without_database()
        project.check_executor()
        _migrate(invocation, project)
        with invocation.console.task("read weight files", 0) as advance:
            plan = project.plan(prune=prune, advance=advance)
        if plan.changes and not plan.conflicts:
            check_applicable(plan, max_deletes=project.max_deletes)
            _confirm_deletions(invocation, plan, yes)
            _carry_out(invocation, project, plan)
            return
        render(
            invocation,
            text=lambda: invocation.console.lines(plan_lines(plan)),
            json=lambda: as_json(plan_json(plan)),
            markdown=lambda: plan_markdown(plan),
        )
        check_applicable(plan)


@click.command("destroy")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.pass_obj
def destroy(invocation: Invocation, yes: bool) -> None:
    """Delete everything the project manages from the database.

    Protected resources refuse it; other projects and unmanaged rows are left alone. Weights stay
    until they are collected, history stays for good.

    \b
    Examples:
      arc-halo destroy
      arc-halo destroy --yes
    """
    from arc_halo.reconcile.applying import check_applicable

    with invocation.open() as project:
        project.check_schema()
        plan = project.plan_destroy()
        check_applicable(plan)
        if not plan.changes:
            invocation.console.print(f"Nothing to destroy: {plan.project} manages nothing.")
            return
        _confirm_deletions(invocation, plan, yes)
        _carry_out(invocation, project, plan)


def _migrate(invocation: Invocation, project: Project) -> None:
    from arc_halo.sizes import format_count

    if applied := project.migrate():
        count = format_count(len(applied), "migration")
        invocation.console.note(f"migrated the database: {count} applied")


def _confirm_deletions(invocation: Invocation, plan: Plan, yes: bool) -> None:
    from arc_halo.reconcile.report import plan_lines
    from arc_halo.sizes import format_count

    if not plan.deletions or yes:
        return
    count = format_count(len(plan.deletions), "resource")
    for line in plan_lines(plan):
        invocation.console.note(line.text, line.style)
    if invocation.console.is_interactive:
        if invocation.console.confirm(f"Delete {count}?"):
            return
        raise RefusedError("nothing was changed", code="AH054")
    raise RefusedError(
        f"this deletes {count}, and nobody can be asked",
        hint="if that is what you want, say `--yes`",
        code="AH054",
    )


def _carry_out(invocation: Invocation, project: Project, plan: Plan) -> None:
    from arc_halo.reconcile.report import (
        Line,
        as_json,
        plan_lines,
        report_json,
        report_lines,
        report_markdown,
    )

    report = project.apply(plan, progress=invocation.console)
    notes = [Line(f"note: {note}", "dim") for note in plan.notes]
    notes += [line for line in plan_lines(plan) if line.text.startswith("?")]

    def text() -> None:
        *changes, summary = report_lines(report)
        invocation.console.lines([*changes, *notes, summary])

    render(
        invocation,
        text=text,
        json=lambda: as_json(report_json(report)),
        markdown=lambda: report_markdown(report),
    )
