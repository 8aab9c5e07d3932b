"""Pruning: checkpoints that a policy does not keep are let go, or only told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from arc_halo.errors import InvalidInputError
from arc_halo.store import checkpoints as store_of
from arc_halo.store.checkpoints import Checkpoint
from arc_halo.training.checkpoints.retention import Retention
from arc_halo.training.checkpoints.saving import let_go, lock
from arc_halo.weights.store import WeightStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What goes and what stays; each that stays says by which rules.

    Nothing but those that go needs `own_bytes` of what is stored: the next collection frees them.
    """

    gone: Sequence[Checkpoint]
    kept: Sequence[Checkpoint]
    own_bytes: int


def prune(
    store: WeightStore,
    session_id: UUID,
    policy: Retention,
    *,
    lease: UUID | None = None,
    dry_run: bool = False,
) -> Pruned:
    """Let go of a session's checkpoints what the policy does not keep, in one transaction.

    With `dry_run` nothing is changed, and what would be is told.
    """
    with store.pool.connection() as conn, conn.transaction(force_rollback=dry_run):
        lock(conn, session_id, lease)
        if policy.keep_best is not None:
            _check_metric(store_of.checkpoints(conn, [session_id]))
        with conn.transaction(force_rollback=True):
            gone = let_go(conn, session_id, policy)
        own_bytes = store_of.own_bytes(conn, [point.id for point in gone])
        let_go(conn, session_id, policy)
        kept = store_of.checkpoints(conn, [session_id])
    return Pruned(gone=gone, kept=kept, own_bytes=own_bytes)


def _check_metric(points: Sequence[Checkpoint]) -> None:
    if points and all(point.best_metric is None for point in points):
        raise InvalidInputError(
            f"keep_best: nothing says which metric of the session {points[0].session_id} decides "
            "what is best",
            hint="save its checkpoints with `best_metric`, or prune without `keep_best`",
            code="AH027",
        )
