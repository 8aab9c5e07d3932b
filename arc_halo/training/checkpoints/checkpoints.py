"""The checkpoints of one training session: saved, restored, listed, pinned, pruned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from types import TracebackType
from typing import Any, Literal
from uuid import UUID

from arc_halo.errors import (
    ArcHaloError,
    CheckpointError,
    ConnectionFailedError,
    InvalidInputError,
    NotFoundError,
)
from arc_halo.names import is_storable
from arc_halo.store import checkpoints as store_of
from arc_halo.store.checkpoints import Checkpoint
from arc_halo.training.checkpoints import generators, holders, loading, saving, snapshots
from arc_halo.training.checkpoints.background import Pending
from arc_halo.training.checkpoints.choosing import Which, choose, is_id
from arc_halo.training.checkpoints.generators import Generators
from arc_halo.training.checkpoints.loading import Contents
from arc_halo.training.checkpoints.pruning import Pruned, prune
from arc_halo.training.checkpoints.retention import CheckpointType, Mode, Retention, with_rule
from arc_halo.training.checkpoints.saving import Saved
from arc_halo.training.checkpoints.snapshots import Snapshot
from arc_halo.training.steps import whole_step
from arc_halo.weights.store import WeightStore

logger = logging.getLogger("arc_halo.training")

OnFailure = Literal["raise", "warn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """Which of a session's checkpoints stay; the best has the least `best_metric`, or the most."""

    policy: Retention = field(default_factory=Retention)
    best_metric: str | None = None
    best_mode: Mode = "min"

    def __post_init__(self) -> None:
        _check_metric(self.best_metric)
        _check_mode(self.best_mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was restored from which checkpoint, and which parts of it were `left` where they are.

    `state` has the session's own `data` and `extra`, whether or not there was a place for them.
    """

    checkpoint: Checkpoint
    restored: tuple[str, ...]
    left: tuple[str, ...]
    state: Mapping[str, Any] = field(repr=False)

    @property
    def extra(self) -> Any:
        """What was saved as `extra`. Raises `CheckpointError` where nothing was."""
        return self._own("extra")

    @property
    def data(self) -> Any:
        """What was saved as `data`. Raises `CheckpointError` where nothing was."""
        return self._own("data")

    def _own(self, part: str) -> Any:
        if part not in self.state:
            raise _missing(self.checkpoint, [part])
        return self.state[part]


class Checkpoints:
    """The checkpoints of the session `session_id`.

    With a `lease`, saving is refused once another program has taken the session up. `settle` is
    called before one can be seen, to have written what belongs before it.
    """

    def __init__(
        self,
        store: WeightStore | Callable[[], WeightStore],
        session_id: UUID,
        *,
        lease: UUID | None = None,
        keeping: Keeping | None = None,
        settle: Callable[[], object] | None = None,
    ) -> None:
        self._open = store
        self._session_id = session_id
        self._lease = lease
        self._keeping = keeping or Keeping()
        self._settle = settle
        self._lock = Lock()
        self._pending: Pending[Saved] | None = None
        self._forgives = False
        """Whether a database that is away is only warned of by what is pending."""
        self._saves = 0
        self._is_measured = False
        """Whether some checkpoint has a value of the best metric, or it was told that none has."""

    def save(
        self,
        *,
        step: int,
        epoch: float | None = None,
        model: Any = None,
        optimizer: Any = None,
        scheduler: Any = None,
        scaler: Any = None,
        data: Any = None,
        extra: Any = None,
        metrics: Mapping[str, Any] | None = None,
        best_metric: str | None = None,
        best_mode: Mode | None = None,
        type: CheckpointType = "full",
        rng: bool = True,
        named_generators: Generators | None = None,
        pinned: bool = False,
        async_: bool = False,
        on_failure: OnFailure = "raise",
    ) -> Saved | Pending[Saved] | None:
        """Save a checkpoint at `step`; it can be seen when all of it is stored, and never before.

        `model` is a module, several by name, or a mapping of arrays; the other parts are whatever
        has a `state_dict()`, or plain states. The random generators of Python, numpy and torch
        are kept unless `rng` is False. One of the same step and type, from before a resume, is
        replaced. Where the best metric is not among `metrics`, what is logged of it at that step
        counts, before or after.

        With `async_` all of it is copied before this returns a `Pending`: memory for one more
        model and state is held until it is stored. The next save waits for that, and raises what
        went wrong with it.

        With `on_failure` "warn" a database that is away is only warned of: None comes back, and
        the next save goes on. All else is raised still.
        """
        step = _checked_step(step)
        if on_failure not in ("raise", "warn"):
            raise InvalidInputError(f"on_failure is {on_failure!r:.80}: it is 'raise' or 'warn'")
        mode = best_mode or self._keeping.best_mode
        _check_mode(mode)
        _check_metric(best_metric)
        measured = snapshots.as_metrics(metrics)
        metric = best_metric or self._keeping.best_metric
        facts = saving.Facts(
            session_id=self._session_id,
            lease=self._lease,
            step=step,
            epoch=None if epoch is None else float(epoch),
            state=snapshots.facts(),
            metrics=measured,
            best_metric=metric,
            best_mode=mode,
            is_pinned=pinned,
        )
        with self._lock:
            self._finish()
            snapshot = snapshots.take(
                type,
                model=model,
                parts={
                    "optimizer": optimizer,
                    "scheduler": scheduler,
                    "scaler": scaler,
                    "data": data,
                    "extra": extra,
                },
                rng=rng,
                named=named_generators,
                copy=async_,
            )
            try:
                store = self._store
                if not async_:
                    return self._store_in(store, snapshot, facts)
            except ConnectionFailedError as exc:
                if on_failure == "raise":
                    raise
                _warn_of(facts, exc)
                return None
            self._forgives = on_failure == "warn"
            self._pending = Pending(lambda: self._store_later(store, snapshot, facts, on_failure))
            return self._pending

    def restore(
        self,
        which: Which = "latest",
        *,
        model: Any = None,
        optimizer: Any = None,
        scheduler: Any = None,
        scaler: Any = None,
        data: Any = None,
        rng: bool | None = None,
        named_generators: Generators | None = None,
    ) -> Restored:
        """Put what is given back to where it was at a checkpoint, bit for bit.

        'latest', 'best' and a step mean one that can hold all that is given; a fork's own come
        before those of what it was forked from. Random generators are restored from full
        checkpoints, unless `rng` is False. Raises `CheckpointError` for a part that is not there,
        or does not fit, and `NotFoundError`; where a part is not there nothing is restored.
        """
        given = {
            "optimizer": optimizer,
            "scheduler": scheduler,
            "scaler": scaler,
            "data": data,
        }
        asked = {name: holder for name, holder in given.items() if holder is not None}
        wanted = {*asked, *(["model"] if model is not None else [])}
        point = self.find(which, parts=wanted | ({"rng"} if rng or named_generators else set()))
        has_rng = rng if rng is not None else point.type == "full" or bool(named_generators)
        wanted |= {"rng"} if has_rng else set()
        listed = loading.look(self._store, point)
        there = listed.parts
        if absent := wanted - there:
            raise _missing(point, sorted(absent))
        own = {"data", "extra"} & there
        contents = loading.read(self._store, listed, wanted | own)
        states = {part: contents.state(part) for part in contents.leaves}
        rest = states.get("model", {})
        if model is not None:
            holders.check_model(model, contents.weights, rest)
        for part, holder in asked.items():
            holders.check_fits(part, holder, states[part])
        if has_rng:
            generators.check(states["rng"], named_generators)
        if model is not None:
            holders.load_model(model, contents.weights, rest)
        for part, holder in asked.items():
            holders.load_into(part, holder, states[part])
        if has_rng:
            # Last of all: loading the others may draw numbers.
            generators.restore(states["rng"], named_generators)
        return Restored(
            checkpoint=point,
            restored=tuple(part for part in PARTS if part in wanted),
            left=tuple(part for part in PARTS if part in there - wanted - own),
            state={part: states[part] for part in own},
        )

    def list(self) -> Sequence[Checkpoint]:
        """The session's own checkpoints, by step."""
        self._tell_best()
        with self._store.pool.connection() as conn:
            return store_of.checkpoints(conn, [self._session_id])

    def is_any(self) -> bool:
        """Whether there is one to restore from, in the session or in what it was forked from."""
        with self._store.pool.connection() as conn:
            return bool(saving.history(conn, self._session_id))

    def find(self, which: Which = "latest", *, parts: set[str] | None = None) -> Checkpoint:
        """The checkpoint that is meant, one that can hold all of `parts`.

        By its id it may be any session's. Raises `NotFoundError`.
        """
        if which == "best":
            self._tell_best()
        with self._store.pool.connection() as conn:
            if is_id(which):
                found = store_of.by_id(conn, UUID(str(which)))
            else:
                found = choose(saving.history(conn, self._session_id), which, parts or set())
        if found is None:
            raise NotFoundError(
                f"session {self._session_id} has no checkpoint {which!r}"
                + (f" that can hold {', '.join(sorted(parts))}" if parts else ""),
                hint="see `arc-halo training checkpoints ls`",
            )
        return found

    def read(self, which: Which = "latest") -> Contents:
        """All of a checkpoint: its `weights` by name, and with `state(part)` its states.

        `leaves` has the parts that there are. Raises `NotFoundError`.
        """
        return loading.read(self._store, loading.look(self._store, self.find(which)), PARTS)

    def remove(self, which: Which) -> bool:
        """Let go of one of the session's own; False for one that is pinned or forked from."""
        found = self.find(which)
        with self._store.pool.connection() as conn, conn.transaction():
            saving.lock(conn, self._session_id, self._lease)
            points = store_of.checkpoints(conn, [self._session_id])
            there = [point for point in points if point.id == found.id]
            if not there or there[0].is_pinned or there[0].is_forked:
                return False
            store_of.delete(conn, [found.id])
        return True

    def pin(self, which: Which = "latest", *, pinned: bool = True) -> Checkpoint:
        """Have a checkpoint stay whatever the policy says, or no longer."""
        found = self.find(which)
        with self._store.pool.connection() as conn, conn.transaction():
            saving.lock(conn, found.session_id)
            reason = with_rule(found.kept_because, "pinned", holds=pinned)
            store_of.set_pinned(conn, found.id, is_pinned=pinned, kept_because=reason)
            again = store_of.by_id(conn, found.id)
        if again is None:
            raise NotFoundError(f"the checkpoint {found.id} has just been deleted")
        return again

    def prune(self, policy: Retention | Mapping[str, int], *, dry_run: bool = False) -> Pruned:
        """Let go what a policy does not keep; what goes, what stays and why."""
        kept_by = Retention.of(policy)
        if self._settle is not None:
            self._settle()
        return prune(self._store, self._session_id, kept_by, lease=self._lease, dry_run=dry_run)

    def close(self) -> None:
        """Wait for a save that is under way, and raise what went wrong with it."""
        with self._lock:
            self._finish()

    def end(self) -> None:
        """Have the best be told by what was logged until now, where this program has saved one.

        What keeps it from that is warned of.
        """
        if self._saves:
            try:
                self._tell_best()
            except ArcHaloError as exc:
                logger.warning("which checkpoint is the best is not known anew: %s", exc.message)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @cached_property
    def _store(self) -> WeightStore:
        return self._open() if callable(self._open) else self._open

    def _store_in(self, store: WeightStore, snapshot: Snapshot, facts: saving.Facts) -> Saved:
        if self._settle is not None:
            self._settle()
        saved = saving.save(store, snapshot, facts, self._keeping.policy)
        self._saves += 1
        if self._keeping.policy.keep_best and not self._is_measured:
            self._check_measured(store, facts.best_metric)
        return saved

    def _store_later(
        self, store: WeightStore, snapshot: Snapshot, facts: saving.Facts, on_failure: OnFailure
    ) -> Saved:
        try:
            return self._store_in(store, snapshot, facts)
        except ConnectionFailedError as exc:
            if on_failure == "warn":
                _warn_of(facts, exc)
            raise

    def _check_measured(self, store: WeightStore, metric: str | None) -> None:
        """Warn, once, where no checkpoint has a value that says whether it is one of the best.

        The first of all may be measured only after it was saved.
        """
        with store.pool.connection() as conn:
            points = store_of.checkpoints(conn, [self._session_id])
        self._is_measured = saving.has_value(points)
        if not self._is_measured and (len(points) > 1 or self._saves > 1):
            self._is_measured = True
            logger.warning(
                "keep_best keeps nothing: no checkpoint has a value of %r, neither in `metrics` "
                "nor logged at its step",
                metric,
            )

    def _tell_best(self) -> None:
        """Have the best be told by what was logged until now, if it is this program's to tell."""
        if self._lease is None or (self._settle is not None and self._settle() is False):
            return
        with self._store.pool.connection() as conn, conn.transaction():
            if store_of.lock_session(conn, self._session_id) == self._lease:
                saving.choose_best(conn, self._session_id)

    def _finish(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.raise_untold()
        except ConnectionFailedError:
            if not self._forgives:  # else it was warned of
                raise


PARTS = ("model", "optimizer", "scheduler", "scaler", "data", "rng", "extra")


def _missing(point: Checkpoint, parts: Sequence[str]) -> CheckpointError:
    said = ", ".join(parts)
    return CheckpointError(
        f"the checkpoint of step {point.step} ({point.type}) has no {said}: nothing was restored",
        hint="restore from another one, or leave it out"
        + (", as rng=False" if "rng" in parts else ""),
    )


def _checked_step(step: Any) -> int:
    whole = whole_step(step)
    if whole is None:
        raise InvalidInputError(f"the step is {step!r:.80}: it is a whole number from 0 on")
    return whole


def _warn_of(facts: saving.Facts, exc: ConnectionFailedError) -> None:
    logger.warning("the checkpoint of step %d was not saved: %s", facts.step, exc.message)


def _check_metric(metric: Any) -> None:
    if metric is not None and not (isinstance(metric, str) and metric and is_storable(metric)):
        raise InvalidInputError(
            f"best_metric={metric!r:.80} names no metric",
            hint="write a text, such as 'eval/loss'",
        )


def _check_mode(mode: str) -> None:
    if mode not in ("min", "max"):
        raise InvalidInputError(f"the best mode is {mode!r}: it is 'min' or 'max'")
