"""`arc-halo training compare`: sessions beside one another."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.cli.telling import facts, number, short

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from arc_halo.training.comparing import Comparison, Setting
    from arc_halo.types import JsonObject

VALUES = {"last": "last", "least": "low", "greatest": "high", "mean": "mean"}
Table = tuple["Sequence[str]", "Sequence[Sequence[str]]"]


@click.command("compare")
@click.argument("sessions", nargs=-1, required=True)
@click.option(
    "--metric", metavar="GLOB", default="*", help="Only these metrics: loss, eval/loss, grad*."
)
@click.option("--scope", metavar="SCOPE", help="Only this scope: train, eval, system.")
@click.option(
    "--value",
    "which",
    type=click.Choice(list(VALUES)),
    default="last",
    show_default=True,
    help="What of each metric the table has.",
)
@click.option("--all", "is_all", is_flag=True, help="Config that is the same in all, too.")
@click.pass_obj
def compare(
    invocation: Invocation,
    sessions: tuple[str, ...],
    metric: str,
    scope: str | None,
    which: str,
    is_all: bool,
) -> None:
    """Compare SESSIONS: what differs in their configs, and what came of each metric.

    Only what is not the same in all of them is shown of the configs and the datasets.

    \b
    Examples:
      arc-halo training compare night-2 night-3
      arc-halo training compare night-2 night-3 --metric 'loss*' --value least
      arc-halo training compare 0f6e2a 77ab01 --output markdown
    """
    from arc_halo.cli.training import telling
    from arc_halo.reconcile.report import as_json
    from arc_halo.training import comparing

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            found = comparing.compare(conn, sessions, metric=metric, scope=scope)
    names = telling.labels(list(found.sessions))
    tables = _tables(found, names, which, is_all=is_all)
    render(
        invocation,
        text=lambda: invocation.console.print("\n\n".join(table(*each) for each in tables)),
        json=lambda: as_json(_facts(found)),
        markdown=lambda: "\n\n".join(markdown_table(*each) for each in tables),
    )


def _tables(found: Comparison, names: Sequence[str], which: str, *, is_all: bool) -> list[Table]:

    ids = [each.id for each in found.sessions]
    about = [
        ("id", *(short(each.id) for each in found.sessions)),
        ("model", *(each.model for each in found.sessions)),
        ("status", *(each.status for each in found.sessions)),
        ("step", *(str(each.current_step) for each in found.sessions)),
        ("commit", *(_commit(each.git_commit, each.git_dirty) for each in found.sessions)),
    ]
    config = [
        (f"{title}{each.key}", *(_value(each, id) for id in ids))
        for title, settings in (("", found.config), ("dataset.", found.dataset))
        for each in settings
        if is_all or not each.is_same
    ]
    metrics = [
        (
            f"{each.scope}/{each.key}",
            *(
                number(getattr(each.summaries[id], VALUES[which])) if id in each.summaries else "-"
                for id in ids
            ),
        )
        for each in found.metrics
    ]
    tables: list[Table] = [(("session", *names), about)]
    if config:
        tables.append((("config", *names), config))
    if metrics:
        tables.append(((which, *names), metrics))
    return tables


def _commit(commit: str | None, is_dirty: bool | None) -> str:
    return "-" if commit is None else commit[:8] + ("+" if is_dirty else "")


def _value(setting: Setting, session: UUID) -> str:
    if session not in setting.values:
        return "-"
    value = setting.values[session]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _facts(found: Comparison) -> JsonObject:

    def settings(listed: Sequence[Setting]) -> list[JsonObject]:
        return [
            {
                "key": each.key,
                "is_same": each.is_same,
                "values": {str(id): value for id, value in each.values.items()},
            }
            for each in listed
        ]

    return {
        "sessions": [facts(each) for each in found.sessions],
        "config": settings(found.config),
        "dataset": settings(found.dataset),
        "metrics": [
            {
                "key": each.key,
                "scope": each.scope,
                "sessions": {str(id): facts(summary) for id, summary in each.summaries.items()},
            }
            for each in found.metrics
        ],
    }
