"""Storing a snapshot: its tensors, then what makes it a checkpoint, in one transaction."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from arc_halo.errors import CheckpointError, NotFoundError
from arc_halo.store import checkpoints as store_of
from arc_halo.store.checkpoints import Checkpoint, NewCheckpoint, StateRow
from arc_halo.store.rows import Connection
from arc_halo.training.checkpoints.retention import Candidate, Mode, Retention, best, decide
from arc_halo.training.checkpoints.snapshots import Snapshot, as_metrics, metric_value
from arc_halo.types import JsonObject
from arc_halo.weights.arrays import build_arrays, fresh_key
from arc_halo.weights.building import Built, Recipe
from arc_halo.weights.store import AUTO, WeightStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRIES = 3
"""How often tensors are stored anew that a collection took before they were pointed to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is said of a checkpoint beside what is in it. `best_metric` may not be measured."""

    session_id: UUID
    lease: UUID | None
    step: int
    epoch: float | None
    state: JsonObject
    metrics: JsonObject
    best_metric: str | None
    best_mode: Mode
    is_pinned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint that is stored. `new_bytes` of its chunks were not there before.

    `gone` are the steps of earlier ones that the policy let go with it.
    """

    checkpoint: Checkpoint
    new_bytes: int
    stored_bytes: int
    gone: tuple[int, ...]


def save(store: WeightStore, snapshot: Snapshot, facts: Facts, policy: Retention) -> Saved:
    """Store a snapshot as a checkpoint of its session, and let go what the policy says.

    Killed anywhere, it leaves the session as it was or with the whole checkpoint.
    """
    facts = _measured(store, facts)
    arrays = {
        f"{part}{leaf.path}": leaf.array
        for part, leaves in snapshot.states.items()
        for leaf in leaves
        if leaf.array is not None
    }
    new_bytes = stored_bytes = 0
    for _ in range(TRIES):
        weights, state = _store_tensors(store, snapshot, arrays, facts)
        made = [each for each in (weights, state) if each is not None]
        new_bytes += sum(each.new_bytes for each in made)
        stored_bytes += sum(each.stored_bytes for each in made)
        with store.pool.connection() as conn, conn.transaction():
            done = _enter(conn, snapshot, facts, weights, state, policy)
        if done is not None:
            checkpoint, gone = done
            return Saved(
                checkpoint=checkpoint, new_bytes=new_bytes, stored_bytes=stored_bytes, gone=gone
            )
    raise CheckpointError(
        "a collection took the tensors before the checkpoint could point to them",
        hint="collect with a grace period while models are trained, and save again",
    )


def lock(conn: Connection, session_id: UUID, lease: UUID | None = None) -> None:
    """Keep others from the session's checkpoints until the transaction ends.

    Raises `NotFoundError`, and `CheckpointError` where another program has taken the session up.
    """
    held = store_of.lock_session(conn, session_id)
    if held is None:
        raise NotFoundError(f"there is no training session {session_id}")
    if lease is not None and held != lease:
        raise CheckpointError(
            "another program has taken this training session up",
            hint="resume it in one program, or fork it",
        )


def candidates(points: Sequence[Checkpoint], metric: str | None) -> list[Candidate]:
    """What the policy needs to know of checkpoints; their values are those of `metric`."""
    return [
        Candidate(
            id=each.id,
            step=each.step,
            type=each.type,
            created_at=each.created_at,
            value=metric_value(each.metrics, metric),
            is_best=each.is_best,
            is_pinned=each.is_pinned,
            is_forked=each.is_forked,
        )
        for each in points
    ]


def measured_by(points: Sequence[Checkpoint]) -> tuple[str | None, Mode | None]:
    """The metric that tells a session's best, and its direction: the last that has a value."""
    named = [each for each in points if each.best_metric in each.metrics]
    if not named:
        return None, None
    last = max(named, key=lambda each: each.created_at)
    return last.best_metric, last.best_mode


def let_go(conn: Connection, session_id: UUID, policy: Retention) -> list[Checkpoint]:
    """Apply the policy to a locked session; what goes, by step. What stays says why.

    The best is told first, with what was logged since checkpoints were saved.
    """
    points = choose_best(conn, session_id)
    metric, mode = measured_by(points)
    decision = decide(candidates(points, metric), policy, mode)
    kept = [(id_, ", ".join(rules) or None) for id_, rules in decision.kept.items()]
    store_of.set_kept(conn, kept)
    if decision.gone:
        store_of.delete(conn, decision.gone)
    gone = set(decision.gone)
    return [point for point in points if point.id in gone]


def choose_best(conn: Connection, session_id: UUID) -> list[Checkpoint]:
    """Have the best of a locked session be known; its checkpoints.

    One that has no value of the best metric gets what was logged at its step, by now.
    """
    points = store_of.checkpoints(conn, [session_id])
    named = {each.best_metric for each in points if each.best_metric is not None}
    filled = [store_of.fill_metric(conn, session_id, name) for name in sorted(named)]
    if any(filled):
        points = store_of.checkpoints(conn, [session_id])
    metric, mode = measured_by(points)
    found = best(candidates(points, metric), mode) if mode is not None else None
    if [each.id for each in points if each.is_best] != ([found.id] if found else []):
        store_of.set_best(conn, session_id, found.id if found else None, metric, mode)
        points = store_of.checkpoints(conn, [session_id])
    return points


def has_value(points: Sequence[Checkpoint]) -> bool:
    """Whether the best of these can be told: one of them has a value of its best metric."""
    return any(each.best_metric in each.metrics for each in points)


def _measured(store: WeightStore, facts: Facts) -> Facts:
    """With the best metric as it was logged at the step, if it was by now."""
    name = facts.best_metric
    if name is None or name in facts.metrics:
        return facts
    with store.pool.connection() as conn:
        value = store_of.logged(conn, facts.session_id, name, facts.step)
    if value is None:
        return facts
    return replace(facts, metrics={**facts.metrics, **as_metrics({name: value})})


def _store_tensors(
    store: WeightStore,
    snapshot: Snapshot,
    arrays: Mapping[str, NDArray[Any]],
    facts: Facts,
) -> tuple[Built | None, Built | None]:
    about = {"session": str(facts.session_id), "step": facts.step}
    weights_base, state_base = _bases(store, facts)
    weights = state = None
    if snapshot.weights is not None:
        weights = _build(store, snapshot.weights, {**about, "of": "weights"}, weights_base)
    if arrays:
        state = _build(store, arrays, {**about, "of": "state"}, state_base)
    return weights, state


def _build(
    store: WeightStore, arrays: Mapping[str, NDArray[Any]], about: JsonObject, base: bytes | None
) -> Built:
    recipe = Recipe(purpose="checkpoint", key=fresh_key(), recipe=about, delta_from=base)
    return build_arrays(store, recipe, arrays)


def _bases(store: WeightStore, facts: Facts) -> tuple[bytes | None, bytes | None]:
    """The roots that deltas are taken against: of the checkpoint before, or of the model."""
    if store.codec not in (None, AUTO) and not store.find_codec(store.codec).needs_base:
        return None, None
    with store.pool.connection() as conn:
        weights = state = None
        for point in reversed(history(conn, facts.session_id)):
            weights = weights or point.root
            if state is None and point.state_set_id is not None:
                state = store_of.root_of_set(conn, point.state_set_id)
            if weights and state:
                break
        return weights or store_of.model_root(conn, facts.session_id), state


def history(conn: Connection, session_id: UUID) -> list[Checkpoint]:
    """A session's checkpoints by step, after those of what it was forked from, up to there."""
    line = store_of.lineage(conn, session_id)
    points = store_of.checkpoints(conn, [id_ for id_, _ in line])
    return [
        point
        for id_, until in reversed(line)
        for point in points
        if point.session_id == id_ and (until is None or point.step <= until)
    ]


def _enter(
    conn: Connection,
    snapshot: Snapshot,
    facts: Facts,
    weights: Built | None,
    state: Built | None,
    policy: Retention,
) -> tuple[Checkpoint, tuple[int, ...]] | None:
    """Make the checkpoint visible, all at once; None where its tensors are gone again."""
    lock(conn, facts.session_id, facts.lease)
    roots = [each.root for each in (weights, state) if each is not None]
    sets = store_of.keep_sets(conn, roots)
    if any(root not in sets for root in roots):
        return None
    weight_set_id = sets[weights.root][0] if weights else None
    state_set_id = sets[state.root][0] if state else None
    points = store_of.checkpoints(conn, [facts.session_id])
    earlier = _replaced(points, snapshot.type, facts.step)
    if earlier is not None:
        if earlier.is_pinned or earlier.is_forked:
            _check_same(earlier, weight_set_id, state_set_id)
            return earlier, ()
        store_of.delete(conn, [earlier.id])
    new = NewCheckpoint(
        id=uuid.uuid4(),
        session_id=facts.session_id,
        step=facts.step,
        epoch=facts.epoch,
        type=snapshot.type,
        weight_set_id=weight_set_id,
        root=weights.root if weights else None,
        state_set_id=state_set_id,
        training_state=facts.state,
        metrics=facts.metrics,
        best_metric=facts.best_metric,
        best_mode=facts.best_mode if facts.best_metric else None,
        is_pinned=facts.is_pinned,
        size_bytes=sum(sets[root][1] for root in roots),
    )
    store_of.insert(conn, new, list(_rows(snapshot)))
    gone = let_go(conn, facts.session_id, policy)
    entered = store_of.by_id(conn, new.id)
    assert entered is not None
    return entered, tuple(point.step for point in gone)


def _replaced(points: Sequence[Checkpoint], type_: str, step: int) -> Checkpoint | None:
    """What a run that was resumed before it saves again."""
    return next((p for p in points if (p.step, p.type) == (step, type_)), None)


def _check_same(earlier: Checkpoint, weight_set_id: int | None, state_set_id: int | None) -> None:
    if (earlier.weight_set_id, earlier.state_set_id) != (weight_set_id, state_set_id):
        why = "pinned" if earlier.is_pinned else "what another session went on from"
        raise CheckpointError(
            f"the checkpoint of step {earlier.step} is {why}: it is not replaced by another",
            hint="unpin it, save at another step, or fork the session",
        )


def _rows(snapshot: Snapshot) -> Iterator[StateRow]:
    for part, leaves in snapshot.states.items():
        for leaf in leaves:
            tensor = None if leaf.array is None else f"{part}{leaf.path}"
            yield StateRow(component=part, path=leaf.path, value=leaf.value, tensor=tensor)
