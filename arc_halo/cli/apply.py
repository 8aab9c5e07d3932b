"""`arc-halo apply` and `arc-halo destroy`: make the database match, or take it all away."""

from __future__ import annotations

from dataclasses import replace
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
from arc_halo.cli.plan import show_plan
from arc_halo.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from arc_halo.project import Project
    from arc_halo.reconcile.applying import Report
    from arc_halo.reconcile.changes import Plan
    from arc_halo.reconcile.limits import Limits
    from arc_halo.reconcile.saved import SavedPlan


@click.command("apply")
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@selection_options
@limit_options
@cache_option
@plugins_option
@cut_options
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.option("--dry-run", is_flag=True, help="Do it all in a transaction, and roll it back.")
@click.option(
    "--executor",
    metavar="NAME[://ADDRESS]",
    help="Where merges are computed: threads, processes, dask://HOST:PORT.",
)
@click.pass_obj
def apply(
    invocation: Invocation,
    file: Path | None,
    prune: bool | None,
    targets: tuple[str, ...],
    excludes: tuple[str, ...],
    max_deletes: int | None,
    allow_empty: bool,
    no_cache: bool,
    plugins_from: str | None,
    cut: Cut,
    yes: bool,
    dry_run: bool,
    executor: str | None,
) -> None:
    """Make the database match the manifest.

    Migrates it first. New weights are imported or fused, then everything changes in one
    transaction: all of it or nothing. An interrupted apply goes on where it stopped.

    With a FILE that `arc-halo plan --out` wrote, exactly that is done: if the manifest or the
    database has moved since, nothing is, and what moved is told.

    \b
    Examples:
      arc-halo apply
      arc-halo apply plan.json --yes
      arc-halo apply --dry-run           try it all, constraints and policies too, and undo it
      arc-halo apply --output json
      arc-halo apply --prune --yes       delete what left the manifest, without asking
      arc-halo apply --target "model/poet*"
      arc-halo apply --database-url postgresql://me@db.example.org/models
      arc-halo apply --executor processes
    """
    if file is not None and (prune is not None or targets or excludes):
        raise UsageError(
            "a saved plan says itself what it is limited to",
            hint="leave out --prune, --target and --exclude, or plan again with them",
        )
    from arc_halo.reconcile.saved import read_plan

    saved = None if file is None else read_plan(file)
    env = saved.environment if saved else None
    with invocation.open(
        executor=executor, rereads=no_cache, env=env, plugins_from=plugins_from
    ) as project:
        if saved is not None or not project.looks_unchanged(prune=prune):
            project.desired_without_database()
            project.check_executor()
            project.check_first_weights(targets=targets, excludes=excludes)
        if saved is not None:
            plan = _saved(invocation, project, saved, is_dry_run=dry_run)
        else:
            if not dry_run:
                _migrate(invocation, project)
            with invocation.console.task("read weight files", 0) as advance:
                plan = project.plan(
                    prune=prune, targets=targets, excludes=excludes, advance=advance
                )
        if not plan.has_changes and not plan.conflicts:
            show_plan(invocation, project, plan)
            return
        limits = project.limits(max_deletes=max_deletes, allow_empty=allow_empty)
        if dry_run:
            report = project.try_plan(plan, limits=limits, saved=saved)
            _tell_tried(invocation, report, cut)
        elif plan.changes and not plan.conflicts:
            limits.check(plan)
            _confirm_deletions(invocation, plan, yes)
            carry_out(invocation, project, plan, limits, cut)
        else:
            show_plan(invocation, project, plan, cut)
            limits.check(plan)


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
    from arc_halo.reconcile.limits import UNLIMITED

    with invocation.open() as project:
        project.check_schema()
        plan = project.plan_destroy()
        UNLIMITED.check(plan)
        if not plan.changes:
            invocation.console.print(f"Nothing to destroy: {plan.project} manages nothing.")
            return
        _confirm_deletions(invocation, plan, yes)
        carry_out(invocation, project, plan, UNLIMITED)


def _saved(invocation: Invocation, project: Project, saved: SavedPlan, *, is_dry_run: bool) -> Plan:
    """The plan, if it is still what an apply would do; its migrations are applied."""
    with invocation.console.task("read weight files", 0) as advance:
        plan = project.plan_again(saved, advance=advance)
    if not plan.migrations or is_dry_run:
        return plan
    _migrate(invocation, project)
    if plan.changes:
        return project.plan_again(saved, is_migrated=True)
    invocation.console.note("the plan was for the migrations alone: plan again for the rest")
    return replace(plan, migrations=())


def _tell_tried(invocation: Invocation, report: Report, cut: Cut) -> None:
    """Say what a plan came to that was carried out and rolled back."""
    from arc_halo.reconcile.markdown import plan_markdown
    from arc_halo.reconcile.plan_document import report_json
    from arc_halo.reconcile.report import Line, as_json, plan_lines

    plan = report.plan
    unbuilt = sum(change.build is not None for change in plan.changes)
    notes = [f"{unbuilt} models were tried without their new weights"] if unbuilt else []
    done = Line("Dry run: all of it would be applied, and is rolled back.", "bold")

    def text() -> None:
        *lines, summary = plan_lines(plan)
        told = [Line(f"note: {note}", "dim") for note in notes]
        invocation.console.lines([*lines, *told, summary, *([done] if plan.has_changes else [])])

    render(
        invocation,
        text=text,
        json=lambda: as_json(report_json(report)),
        markdown=lambda: cut.markdown(
            partial(plan_markdown, plan, remarks=[done.text] if plan.has_changes else [])
        ),
    )


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


def carry_out(
    invocation: Invocation, project: Project, plan: Plan, limits: Limits, cut: Cut = UNCUT
) -> None:
    """Apply a plan, and print what it did in the form asked for."""
    from arc_halo.reconcile.markdown import report_markdown
    from arc_halo.reconcile.plan_document import report_json
    from arc_halo.reconcile.report import Line, as_json, plan_lines, report_lines

    report = project.apply(plan, limits=limits, progress=invocation.console)
    notes = [Line(f"note: {note}", "dim") for note in plan.notes]
    notes += [line for line in plan_lines(plan) if line.text.startswith("?")]

    def text() -> None:
        *changes, summary = report_lines(report)
        invocation.console.lines([*changes, *notes, summary])

    render(
        invocation,
        text=text,
        json=lambda: as_json(report_json(report)),
        markdown=lambda: cut.markdown(partial(report_markdown, report)),
    )
