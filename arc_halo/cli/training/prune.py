"""`arc-halo training prune`: checkpoints that a policy does not keep are deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arc_halo.project import Project
    from arc_halo.store.rows import Connection
    from arc_halo.store.training_reading import SessionName
    from arc_halo.training.checkpoints.pruning import Pruned
    from arc_halo.training.checkpoints.retention import Retention
    from arc_halo.types import JsonObject

HEADER = ("session", "step", "type", "size", "what", "why")


@click.command("prune")
@click.argument("sessions", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="All sessions that have checkpoints.")
@click.option(
    "--keep-last", type=click.IntRange(min=1), metavar="N", help="Keep the last N of each type."
)
@click.option(
    "--keep-best", type=click.IntRange(min=1), metavar="N", help="Keep the best N by the metric."
)
@click.option(
    "--keep-every", type=click.IntRange(min=1), metavar="N", help="Keep steps that N divides."
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.pass_obj
def prune(
    invocation: Invocation,
    sessions: tuple[str, ...],
    all_: bool,
    keep_last: int | None,
    keep_best: int | None,
    keep_every: int | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Delete the checkpoints of SESSIONS that no rule keeps.

    Without `--keep-…` the rules are those that are declared for the session's training. The latest
    of each type, the best, what is pinned and what a fork came from always stay. It lists what
    would go and asks first. What nothing else needs of the weights, `arc-halo tensors gc` takes,
    once it is older than the grace.

    \b
    Examples:
      arc-halo training prune night-3 --keep-last 3 --dry-run
      arc-halo training prune night-3 --keep-last 3 --keep-best 1 --keep-every 1000
      arc-halo training prune --all --keep-last 1 --yes
    """
    from arc_halo.sizes import format_count
    from arc_halo.training.checkpoints.retention import Retention

    policy = Retention(keep_last=keep_last, keep_best=keep_best, keep_every=keep_every)
    if all_ is bool(sessions):
        raise UsageError("which sessions are meant?", hint="name some, or say `--all`")
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            found = [(each, _policy(conn, each, policy)) for each in _found(conn, sessions, all_)]
        if found and all(each.keeps_all for _, each in found):
            raise UsageError(
                "nothing says what is to be kept",
                hint="say `--keep-last N` or another `--keep-…`, or declare `retention`",
            )
        told = _pruned(invocation, project, found, dry_run=True)
        count = format_count(sum(len(each.gone) for _, each in told), "checkpoint")
        is_done = not dry_run and any(each.gone for _, each in told)
        if is_done:
            if not yes:
                _confirm(invocation, told, count)
            told = _pruned(invocation, project, found, dry_run=False)
    _render(invocation, told, is_done=is_done)


def _found(conn: Connection, sessions: Sequence[str], all_: bool) -> list[SessionName]:
    from arc_halo.store.checkpoints import sessions_with_checkpoints
    from arc_halo.training.naming import find_session

    if all_:
        return sessions_with_checkpoints(conn)
    found = [find_session(conn, text) for text in sessions]
    return list({each.id: each for each in found}.values())


def _policy(conn: Connection, named: SessionName, given: Retention) -> Retention:
    """What is given, and where nothing is, what is declared of the session's training."""
    from dataclasses import asdict

    from arc_halo.store import training_sessions, trainings
    from arc_halo.training.checkpoints.retention import Retention

    session = training_sessions.find(conn, named.id)
    if not given.keeps_all or session is None or session.training_name is None:
        return given
    declared = trainings.find(conn, session.training_name)
    kept = declared.retention if declared else None
    return given if kept is None else Retention.of(asdict(kept))


def _pruned(
    invocation: Invocation,
    project: Project,
    found: list[tuple[SessionName, Retention]],
    *,
    dry_run: bool,
) -> list[tuple[SessionName, Pruned]]:
    from arc_halo.training.checkpoints.pruning import prune as prune_session

    told = []
    for place, (named, policy) in enumerate(found, 1):
        if len(found) > 1:
            verb = "looking at" if dry_run else "pruning"
            invocation.console.note(f"{verb} {_name(named)} ({place} of {len(found)})")
        told.append((named, prune_session(project.weights, named.id, policy, dry_run=dry_run)))
    return told


def _confirm(invocation: Invocation, told: list[tuple[SessionName, Pruned]], count: str) -> None:
    invocation.console.note(table(HEADER, _rows(told, "would go")))
    if invocation.console.is_interactive:
        if invocation.console.confirm(f"Delete {count}?"):
            return
        raise RefusedError("nothing was changed", code="AH054")
    raise RefusedError(
        f"this deletes {count}, and nobody can be asked",
        hint="if that is what you want, say `--yes`",
        code="AH054",
    )


def _render(
    invocation: Invocation,
    told: list[tuple[SessionName, Pruned]],
    *,
    is_done: bool,
) -> None:
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_count, format_size

    rows = _rows(told, "deleted" if is_done else "would go")
    gone = sum(len(each.gone) for _, each in told)
    own_bytes = sum(each.own_bytes for _, each in told)
    if not gone:
        summary = "Nothing to prune."
    else:
        verb = "went" if is_done else "would go"
        summary = (
            f"{format_count(gone, 'checkpoint')} {verb}; {format_size(own_bytes)} of what is "
            "stored nothing else needs: `arc-halo tensors gc` frees it, once it is older than the "
            "grace (24h unless told otherwise)."
        )
    render(
        invocation,
        text=lambda: invocation.console.print(
            f"{table(HEADER, rows)}\n\n{summary}" if rows else summary
        ),
        json=lambda: as_json(
            {
                "sessions": [_facts(named, each) for named, each in told],
                "own_bytes": own_bytes,
                "is_done": is_done,
            }
        ),
        markdown=lambda: f"{markdown_table(HEADER, rows)}\n\n{summary}" if rows else summary,
    )


def _rows(told: list[tuple[SessionName, Pruned]], verb: str) -> list[tuple[str, ...]]:
    from arc_halo.sizes import format_size

    rows: list[tuple[str, ...]] = []
    for named, each in told:
        gone = {point.id for point in each.gone}
        for point in sorted([*each.gone, *each.kept], key=lambda point: (point.step, point.type)):
            is_gone = point.id in gone
            rows.append(
                (
                    _name(named),
                    str(point.step),
                    point.type,
                    format_size(point.size_bytes),
                    verb if is_gone else "stays",
                    "-" if is_gone else point.kept_because or "-",
                )
            )
    return rows


def _facts(named: SessionName, each: Pruned) -> JsonObject:
    from arc_halo.cli.training.checkpoint_facts import as_facts

    return {
        "session": str(named.id),
        "name": named.session_name,
        "gone": [as_facts(point) for point in each.gone],
        "kept": [as_facts(point) for point in each.kept],
        "own_bytes": each.own_bytes,
    }


def _name(named: SessionName) -> str:
    return named.session_name or str(named.id)[:8]
