"""`arc-halo training rm`: sessions are deleted, with all that they recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.telling import facts
from arc_halo.errors import RefusedError

if TYPE_CHECKING:
    from arc_halo.training.deleting import Deletion

HEADER = ("session", "model", "status", "points", "checkpoints", "what")


@click.command("rm")
@click.argument("sessions", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Pinned checkpoints and the history of forks, too.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.pass_obj
def rm(
    invocation: Invocation, sessions: tuple[str, ...], force: bool, dry_run: bool, yes: bool
) -> None:
    """Delete SESSIONS, with their points and their checkpoints.

    It lists what would go and asks first. A session that a program is at work on is refused; one
    that has pinned checkpoints, or that others were forked from, needs `--force`. A fork stays,
    with its own points alone. What nothing else needs of the weights, `arc-halo tensors gc` takes,
    once it is older than the grace.

    \b
    Examples:
      arc-halo training rm night-1 --dry-run
      arc-halo training rm night-1 night-2
      arc-halo training rm 0f6e2a --force --yes
    """
    from arc_halo.api.training import Training
    from arc_halo.training import deleting, reading
    from arc_halo.training.programs import this_program

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            ids = list(dict.fromkeys(reading.session(conn, each).id for each in sessions))
            told = deleting.look(conn, ids, this_program())
        if not dry_run:
            deleting.check(told, force=force)
            if not yes:
                _confirm(invocation, told)
            told = Training(project).delete(*ids, force=force)
    _render(invocation, told, is_done=not dry_run)


def _confirm(invocation: Invocation, told: Deletion) -> None:
    from arc_halo.sizes import format_count

    count = format_count(len(told.sessions), "session")
    invocation.console.note(f"{table(HEADER, _rows(told, 'would go'))}\n\n{_summary(told, False)}")
    if invocation.console.is_interactive:
        if invocation.console.confirm(f"Delete {count}?"):
            return
        raise RefusedError("nothing was changed", code="AH054")
    raise RefusedError(
        f"this deletes {count}, and nobody can be asked",
        hint="if that is what you want, say `--yes`",
        code="AH054",
    )


def _render(invocation: Invocation, told: Deletion, *, is_done: bool) -> None:
    from arc_halo.reconcile.report import as_json

    rows = _rows(told, "deleted" if is_done else "would go")
    summary = _summary(told, is_done)
    render(
        invocation,
        text=lambda: invocation.console.print(f"{table(HEADER, rows)}\n\n{summary}"),
        json=lambda: as_json(
            {
                "sessions": [
                    {**facts(each), "points": told.points.get(each.id, 0)} for each in told.sessions
                ],
                "forks": [facts(each) for each in told.forks],
                "pinned": len(told.pinned),
                "own_bytes": told.own_bytes,
                "is_done": is_done,
            }
        ),
        markdown=lambda: f"{markdown_table(HEADER, rows)}\n\n{summary}",
    )


def _rows(told: Deletion, verb: str) -> list[tuple[str, ...]]:
    from arc_halo.cli.training import telling

    return [
        (
            name,
            each.model,
            each.status,
            f"{told.points.get(each.id, 0):,}",
            str(each.checkpoint_count),
            verb,
        )
        for name, each in zip(telling.labels(list(told.sessions)), told.sessions, strict=True)
    ]


def _summary(told: Deletion, is_done: bool) -> str:
    from arc_halo.cli.training import telling
    from arc_halo.sizes import format_count, format_size

    verb = "went" if is_done else "would go"
    sessions = format_count(len(told.sessions), "session")
    points = format_count(sum(told.points.values()), "point")
    checkpoints = format_count(len(told.checkpoints), "checkpoint")
    lines = [f"{sessions}, {points} and {checkpoints} {verb}."]
    if told.pinned:
        lines.append(
            f"Of the checkpoints {len(told.pinned)} {'were' if is_done else 'are'} pinned."
        )
    if told.forks:
        forks = ", ".join(telling.labels(list(told.forks)))
        lines.append(f"Forks that lose a part of their history: {forks}.")
    if told.own_bytes:
        lines.append(
            f"Nothing else needs {format_size(told.own_bytes)} of what is stored: `arc-halo "
            "tensors gc` frees it, once it is older than the grace (24h unless told otherwise)."
        )
    return "\n".join(lines)
