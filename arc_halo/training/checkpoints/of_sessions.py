"""What a session does with its checkpoints: `run.checkpoint(...)` and `run.restore(...)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from arc_halo.training.checkpoints.background import Pending
from arc_halo.training.checkpoints.checkpoints import Checkpoints, OnFailure, Restored
from arc_halo.training.checkpoints.choosing import Which, is_id
from arc_halo.training.checkpoints.generators import Generators
from arc_halo.training.checkpoints.retention import CheckpointType, Mode
from arc_halo.training.checkpoints.saving import Saved


class Checkpointing:
    """The part of a session that is about its checkpoints."""

    id: UUID
    step: int
    checkpoints: Checkpoints
    """To list, find, pin and prune them."""

    _is_new: bool

    def checkpoint(
        self,
        *,
        step: int | None = None,
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
        """Save what training can resume from, at `step` or at the one that was logged last.

        As `Checkpoints.save`, which says what each part may be; None where it was not saved, with
        `on_failure` "warn".
        """
        self._check_at_work()
        return self.checkpoints.save(
            step=self.step if step is None else step,
            epoch=epoch,
            model=model,
            optimizer=optimizer,
            scheduler=scheduler,
            scaler=scaler,
            data=data,
            extra=extra,
            metrics=metrics,
            best_metric=best_metric,
            best_mode=best_mode,
            type=type,
            rng=rng,
            named_generators=named_generators,
            pinned=pinned,
            async_=async_,
            on_failure=on_failure,
        )

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
        """Put what is given back to where it was at a checkpoint, bit for bit, and go on there.

        As `Checkpoints.restore`. The next step that is logged without a number is the one after.
        """
        restored = self.checkpoints.restore(
            which,
            model=model,
            optimizer=optimizer,
            scheduler=scheduler,
            scaler=scaler,
            data=data,
            rng=rng,
            named_generators=named_generators,
        )
        if not is_id(which) or restored.checkpoint.session_id == self.id:
            self.step, self._is_new = restored.checkpoint.step, False
        return restored

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is one to restore from, in this session or in what it was forked from."""
        return self.checkpoints.is_any()

    def _check_at_work(self) -> None:
        """Raise `CheckpointError` where this program does not write the session."""
        raise NotImplementedError

    def _close_checkpoints(self) -> Exception | None:
        """Wait for one that is being saved; what went wrong with it."""
        try:
            self.checkpoints.close()
        except Exception as exc:  # noqa: BLE001  it is raised, or told, when the session has ended
            return exc
        self.checkpoints.end()
        return None
