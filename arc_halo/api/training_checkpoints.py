"""The checkpoints of a session that is read: found, read and restored, nothing saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from arc_halo.project import Project

if TYPE_CHECKING:
    from arc_halo.store.checkpoints import Checkpoint
    from arc_halo.training.checkpoints.checkpoints import Checkpoints, Restored
    from arc_halo.training.checkpoints.choosing import Which
    from arc_halo.training.checkpoints.generators import Generators
    from arc_halo.training.checkpoints.loading import Contents


class RecordedCheckpoints:
    """The checkpoints of a session, whatever became of it; a fork's own and its parents'."""

    def __init__(self, project: Project, session_id: UUID) -> None:
        self._project = project
        self._session_id = session_id

    def restore(
        self,
        which: Which = "latest",
        *,
        model: Any = None,
        optimizer: Any = None,
        scheduler: Any = None,
        scaler: Any = None,
        data: Any = None,
        rng: bool = False,
        named_generators: Generators | None = None,
    ) -> Restored:
        """Put what is given back to where it was at a checkpoint, bit for bit.

        `which` is 'latest', 'best', a step or an id. Random generators are left alone unless `rng`
        or `named_generators` says otherwise. Raises `CheckpointError` for a part that is not there,
        or does not fit, and `NotFoundError`.
        """
        return self._checkpoints.restore(
            which,
            model=model,
            optimizer=optimizer,
            scheduler=scheduler,
            scaler=scaler,
            data=data,
            rng=rng or bool(named_generators),
            named_generators=named_generators,
        )

    def list(self) -> Sequence[Checkpoint]:
        """The session's own checkpoints, by step."""
        return self._checkpoints.list()

    def find(self, which: Which = "latest") -> Checkpoint:
        """The checkpoint that is meant. Raises `NotFoundError`."""
        return self._checkpoints.find(which)

    def read(self, which: Which = "latest") -> Contents:
        """All of a checkpoint: its `weights` by name, and with `state(part)` its states.

        `leaves` has the parts that there are. Raises `NotFoundError`.
        """
        return self._checkpoints.read(which)

    @property
    def _checkpoints(self) -> Checkpoints:
        from arc_halo.training.checkpoints.checkpoints import Checkpoints

        return Checkpoints(lambda: self._project.weights, self._session_id)
