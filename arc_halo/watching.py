"""Reconciling for good: the manifest and the database compared again and again, and made equal.

What happens is told as events, one a tick: `unchanged`, `applied`, `held` (a manifest that was
rolled back waits for another one), `blocked` (a conflict, a limit, a policy, a deletion that nobody
confirmed), `failed` (an error; it is tried again, ever less often).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from arc_halo.errors import ArcHaloError, ManifestError, RefusedError
from arc_halo.sizes import format_count

if TYPE_CHECKING:
    from arc_halo.project import Project
    from arc_halo.reconcile.changes import Plan
    from arc_halo.types import JsonObject

LONGEST_PAUSE = 10
"""Of the pauses between failures, in intervals."""

TOLD = 20
"""Changes that an event names, the gravest first; it counts all of them."""

Happened = Literal["started", "unchanged", "applied", "held", "blocked", "failed", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """How a watch reconciles: whether it deletes, and what at most; whether it applies at all."""

    prune: bool | None = None
    may_delete: bool = False
    max_deletes: int | None = None
    applies: bool = True


class Watch:
    """Opens the project anew at each tick, and tells what happened."""

    def __init__(
        self,
        open_project: Callable[[], Project],
        tell: Callable[[JsonObject], None],
        watched: Watched,
    ) -> None:
        self._open = open_project
        self._tell = tell
        self._watched = watched
        self._failures = 0
        self._jitter = random.Random()

    def run(self, interval: float, stop: threading.Event) -> None:
        """Reconcile every `interval` seconds until `stop` is set; a tick that runs is finished."""
        self._event("started", interval_seconds=interval)
        while not stop.is_set():
            self.tick()
            stop.wait(self._pause(interval))
        self._event("stopped")

    def tick(self) -> Happened:
        """Compare, apply what is to be applied, and tell; errors are told, too."""
        try:
            happened = self._reconcile()
        except RefusedError as exc:
            return self._refused("blocked", exc)
        except ArcHaloError as exc:
            self._failures += 1
            return self._refused("failed", exc)
        self._failures = 0
        return happened

    def _reconcile(self) -> Happened:
        with self._open() as project:
            if self._watched.applies:
                project.migrate()
            plan = project.plan(prune=self._watched.prune)
            if not plan.has_changes and not plan.conflicts:
                return self._event(
                    "unchanged", revision=plan.base_revision, resources=plan.unchanged_count
                )
            if plan.undone_by is not None:
                return self._event("held", revision=plan.undone_by, **_changes(plan))
            return self._apply(project, plan)

    def _apply(self, project: Project, plan: Plan) -> Happened:
        limits = project.limits(max_deletes=self._watched.max_deletes)
        try:
            limits.check(plan)
            self._check_deletions(plan)
        except RefusedError as exc:
            return self._refused("blocked", exc, **_changes(plan))
        if not self._watched.applies:
            return self._event("blocked", message="only watching", **_changes(plan))
        drifted = sum(change.is_drift for change in plan.changes)
        report = project.apply(plan, limits=limits)
        return self._event(
            "applied",
            revision=report.revision,
            **_changes(plan),
            drifted=drifted,
            seconds=round(report.seconds, 3),
        )

    def _check_deletions(self, plan: Plan) -> None:
        if plan.deletions and not self._watched.may_delete:
            count = format_count(len(plan.deletions), "resource")
            raise RefusedError(
                f"this deletes {count}, and nobody can be asked",
                hint="if that is what you want, watch with `--yes`",
                code="AH054",
            )

    def _refused(self, happened: Happened, exc: ArcHaloError, **told: object) -> Happened:
        facts: dict[str, object] = {
            "code": exc.error_code,
            "message": exc.message,
            "hint": exc.hint,
            **told,
        }
        if isinstance(exc, ManifestError):
            facts["problems"] = len(exc.problems)
        return self._event(happened, **facts)

    def _event(self, happened: Happened, **facts: object) -> Happened:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._tell({"at": at, "event": happened, **facts})
        return happened

    def _pause(self, interval: float) -> float:
        # Jitter, so that many watches of one server do not ask it at the same moment for good.
        times = min(2**self._failures, LONGEST_PAUSE) if self._failures else 1
        return interval * times * self._jitter.uniform(0.9, 1.1)


def _changes(plan: Plan) -> dict[str, object]:
    """How many changes of each kind there are, and which the first of them are."""
    from arc_halo.reconcile.report import sections

    ordered = [change for _, changes in sections(plan.changes) for change in changes]
    named = [{"address": str(each.key), "action": each.action} for each in ordered[:TOLD]]
    return {"changes": dict(plan.counts), "resource_changes": named}
