"""Trainings by the `Trainer` of Lightning, recorded as sessions."""

from __future__ import annotations

import logging
import math
import sys
from argparse import Namespace
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from arc_halo.api import connect
from arc_halo.errors import ArcHaloError, CheckpointError, ConnectionFailedError, NotFoundError
from arc_halo.integrations import _pointers
from arc_halo.integrations._configs import as_config
from arc_halo.integrations._metrics import Scopes
from arc_halo.integrations._pointers import Pointer
from arc_halo.integrations._runs import Run
from arc_halo.integrations._states import checkpoint_of, files_of, monitored, without_secrets
from arc_halo.training.checkpoints import generators
from arc_halo.training.checkpoints.checkpoints import Checkpoints
from arc_halo.training.checkpoints.saving import Saved

try:
    from lightning.fabric.loggers.logger import (  # pyright: ignore[reportMissingImports]
        rank_zero_experiment,
    )
    from lightning.fabric.plugins import CheckpointIO  # pyright: ignore[reportMissingImports]
    from lightning.fabric.utilities.rank_zero import (  # pyright: ignore[reportMissingImports]
        rank_zero_only,
    )
    from lightning.pytorch.loggers.logger import Logger  # pyright: ignore[reportMissingImports]
except ImportError as exc:
    raise ArcHaloError(
        "lightning is not installed", hint="pip install 'arc-halo[lightning]'", code="AH030"
    ) from exc

if TYPE_CHECKING:
    from arc_halo.api import Halo
    from arc_halo.store.checkpoints import Checkpoint
    from arc_halo.training.sessions import TrainingSession

logger = logging.getLogger("arc_halo.training")

SCOPES = {
    f"{name}{separator}": scope
    for name, scope in (
        ("train", "train"),
        ("validation", "eval"),
        ("valid", "eval"),
        ("val", "eval"),
        ("eval", "eval"),
        ("test", "test"),
    )
    for separator in "_/"
}
"""What people write before the names of metrics, for want of scopes."""


class ArcHaloLogger(Logger):  # type: ignore[misc]  # the base is untyped here
    """What a `Trainer` logs, in a session that is open, or in one of a model that is named.

    A session of its own begins and ends with `fit`, `validate` or `test`, and `options` are those
    of `halo.training.session`. Hyperparameters are in the config, without tokens.
    """

    def __init__(
        self,
        session: TrainingSession | str | UUID | None = None,
        *,
        halo: Halo | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._run = Run(session, halo, options)
        self._scopes = Scopes(SCOPES)
        self.halo = halo
        """Where sessions of its own are; None for that of the project the program runs in."""
        self._begun: Any = None
        """A trainer whose length is not told yet: it knows when it has its data."""

    @property
    @rank_zero_experiment  # type: ignore[untyped-decorator]
    def experiment(self) -> TrainingSession:
        """The session; one of its own is opened."""
        return self._run.session or self._run.begin({})

    @property
    def name(self) -> str | None:
        """The name of the session, or of its model."""
        if not _is_first():
            return None
        session: TrainingSession = self.experiment
        return session.name or session.model

    @property
    def version(self) -> str | None:
        """The id of the session."""
        return str(self.experiment.id) if _is_first() else None

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_hyperparams(
        self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Put them into the config of the session."""
        found = vars(params) if isinstance(params, Namespace) else params
        self._run.begin(as_config(found))

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Take note of the trainer, which says how long it will be."""
        self._begun = model.trainer

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record metrics in the scopes that their names begin with."""
        if self._begun is not None and self._begun.training and self._run.session is not None:
            trainer, self._begun = self._begun, None
            with suppress(ArcHaloError):  # a training does not end because this is not known
                self._run.session.configure(**totals_of(trainer))
        found = {name: value for name, value in metrics.items() if name != "epoch"}
        for scope, values in self._scopes.divide(found).items():
            self._run.log(values, step=step, epoch=metrics.get("epoch"), scope=scope)

    @rank_zero_only  # type: ignore[untyped-decorator]
    def finalize(self, status: str) -> None:
        """End a session of its own; pause any where Ctrl-C was pressed."""
        error = None if status == "success" else sys.exception() or RuntimeError(status)
        self._run.end(error)


class ArcHaloCheckpointIO(CheckpointIO):  # type: ignore[misc]  # the base is untyped here
    """A `Trainer`'s checkpoints, in a session: the one given, or that of an `ArcHaloLogger`.

    Where Lightning has its files there are small ones that say which checkpoint is meant. What it
    removes goes from the session too, unless it is pinned. Nothing is pickled.
    """

    def __init__(self, session: TrainingSession | ArcHaloLogger) -> None:
        self._given = session
        self._files: set[Path] = set()
        """Those that are known to point to checkpoints, wherever they are."""

    def save_checkpoint(
        self, checkpoint: Mapping[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Save it at its step, with the random generators, which Lightning leaves out.

        A database that is away is warned of, and the file is left as it is. Raises
        `CheckpointError` for what cannot be kept, and names it.
        """
        saved = self._save(checkpoint)
        if saved is None:
            return
        pointer = Pointer(session=saved.session_id, step=saved.step, type=saved.type, id=saved.id)
        file = Path(path)
        before = _pointers.find(file)
        _pointers.write(file, pointer)
        self._files.add(file)
        if before is not None and before != pointer:
            self._let_go(before, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """What was saved, its tensors on the CPU; `path` may be "latest", a step or an id too.

        The random generators go on from where they were, those of the first process.
        """
        if not _is_first():
            return self._load_as_told(str(path))
        try:
            point = self._find(str(path))
        except BaseException:
            _tell(None)  # the others wait for it
            raise
        _tell([str(point.session_id), str(point.id)])
        contents = self._session.checkpoints.read(point.id)
        found = checkpoint_of(contents, point)
        self._files.update(files_of(found))
        if "rng" in contents.leaves:
            generators.restore(contents.state("rng"))
        return found

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the file, and the checkpoint if no other file beside it means that."""
        file = Path(path)
        if not file.is_file():
            return
        self._let_go(_pointers.read(file), file)
        file.unlink()
        self._files.discard(file)

    def _load_as_told(self, path: str) -> dict[str, Any]:
        """What the first process of several loads, in another, which has no session."""
        told = _tell(None)
        if told is None:
            raise CheckpointError(f"the first process has found no checkpoint {path!r}")
        session_id, point_id = map(UUID, told)
        if not isinstance(self._given, ArcHaloLogger):
            return _read(self._given.checkpoints, point_id)
        with nullcontext(self._given.halo) if self._given.halo else connect() as halo:
            return _read(_checkpoints(halo, session_id), point_id)

    def _let_go(self, pointer: Pointer, file: Path) -> None:
        """Remove what a file means no longer, if it is the session's and no other file means it."""
        if _pointers.is_only(file, pointer, self._files) and pointer.session == self._session.id:
            try:
                self._session.checkpoints.remove(_meant(self._session.checkpoints, pointer).id)
            except NotFoundError:  # the session's retention may have let it go
                pass
            except ConnectionFailedError as exc:
                logger.warning("the checkpoint of step %d stays: %s", pointer.step, exc.message)

    def _save(self, checkpoint: Mapping[str, Any]) -> Checkpoint | None:
        parts = dict(checkpoint)
        given: dict[str, Any] = {
            "step": checkpoint["global_step"],
            "epoch": checkpoint["epoch"],
            "model": parts.pop("state_dict"),
            "on_failure": "warn",
        }
        if "optimizer_states" not in parts:
            saved = self._session.checkpoint(type="weights_only", **given)
        else:
            saved = self._session.checkpoint(
                optimizer=parts.pop("optimizer_states"),
                scheduler=parts.pop("lr_schedulers"),
                extra=without_secrets(parts),
                metrics=monitored(parts),
                **given,
            )
        return saved.checkpoint if isinstance(saved, Saved) else None

    def _find(self, path: str) -> Checkpoint:
        if Path(path).is_file():
            return _meant(self._session.checkpoints, _pointers.read(Path(path)))
        return self._session.checkpoints.find(int(path) if path.isdecimal() else path)

    @property
    def _session(self) -> TrainingSession:
        given = self._given
        session: TrainingSession = given.experiment if isinstance(given, ArcHaloLogger) else given
        return session


def load(path: str | Path, *, halo: Halo | None = None) -> dict[str, Any]:
    """What Lightning saved in the checkpoint that a file points to: `state_dict` and all else.

    Without `halo` it is in the database of the project that the program runs in. Raises
    `CheckpointError` for another's file, and `NotFoundError` where the checkpoint is gone.
    """
    if halo is None:
        with connect() as own:
            return load(path, halo=own)
    pointer = _pointers.read(Path(path))
    checkpoints = _checkpoints(halo, pointer.session)
    return _read(checkpoints, _meant(checkpoints, pointer).id)


def totals_of(trainer: Any) -> dict[str, Any]:
    """How many steps and epochs a training will have, as far as it is known."""
    epochs, steps, batches = trainer.max_epochs, trainer.max_steps, trainer.num_training_batches
    found = {}
    if epochs is not None and epochs > 0:
        found["total_epochs"] = epochs
        if math.isfinite(batches):
            by_epochs = math.ceil(batches / trainer.accumulate_grad_batches) * epochs
            steps = min(steps, by_epochs) if steps > 0 else by_epochs
    return found | ({"total_steps": int(steps)} if steps > 0 else {})


def _checkpoints(halo: Halo, session_id: UUID) -> Checkpoints:
    """Those of a session, to be read."""
    return Checkpoints(lambda: halo.project.weights, session_id)


def _meant(checkpoints: Checkpoints, pointer: Pointer) -> Checkpoint:
    for point in checkpoints.list():
        if (point.session_id, point.step, point.type) == (
            pointer.session,
            pointer.step,
            pointer.type,
        ):
            return point
    return checkpoints.find(pointer.id)


def _read(checkpoints: Checkpoints, point_id: UUID) -> dict[str, Any]:
    return checkpoint_of(checkpoints.read(point_id), checkpoints.find(point_id))


def _tell(ids: list[str] | None) -> list[str] | None:
    """Tell the other processes what the first one gives; in those, what they are told."""
    import torch.distributed as processes  # pyright: ignore[reportMissingImports]

    if not (processes.is_available() and processes.is_initialized()):
        return ids
    told = [ids]
    processes.broadcast_object_list(told, src=0)
    return told[0]


def _is_first() -> bool:
    """Whether this is the process that records, of those that train together."""
    return getattr(rank_zero_only, "rank", 0) == 0
