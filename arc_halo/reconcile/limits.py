"""What a plan may not do: be carried out past conflicts, or delete more than was expected."""

from __future__ import annotations

from dataclasses import dataclass

from arc_halo.errors import RefusedError
from arc_halo.reconcile.changes import Plan
from arc_halo.sizes import format_count

LEAST_DELETES, DELETED_SHARE = 10, 0.2
"""Without a limit of its own, a plan may delete so many resources, or that share of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far an apply may go; `max_deletes` None stands for the usual limit."""

    max_deletes: int | None = None
    allow_empty: bool = False

    def check(self, plan: Plan) -> None:
        """Raise `RefusedError` when the plan has conflicts or deletes more than is allowed."""
        if plan.conflicts:
            first = plan.conflicts[0]
            more = f" (and {len(plan.conflicts) - 1} more)" if len(plan.conflicts) > 1 else ""
            raise RefusedError(first.message + more, hint=first.hint, code=first.code)
        if plan.is_emptying and not self.allow_empty:
            past = plan.rolled_back_to
            wanted = "the manifest declares" if past is None else f"revision {past} had"
            raise RefusedError(
                f"{wanted} nothing, and {plan.project} manages {plan.managed_count}, all of which "
                "would go",
                hint="if that is what you want, say `--allow-empty`, or `arc-halo destroy`",
                code="AH054",
            )
        allowed = self._allowed(plan)
        if len(plan.deletions) > allowed:
            raise RefusedError(
                f"the plan deletes {format_count(len(plan.deletions), 'resource')}, at most "
                f"{allowed} are allowed",
                hint="if that is what you want, raise `--max-deletes` or `settings.max_deletes`",
                code="AH054",
            )

    def _allowed(self, plan: Plan) -> int:
        if self.max_deletes is not None:
            return self.max_deletes
        if self.allow_empty:
            return plan.managed_count
        return max(LEAST_DELETES, int(DELETED_SHARE * plan.managed_count))


UNLIMITED = Limits(max_deletes=2**31, allow_empty=True)
"""For what deletes everything on purpose."""
