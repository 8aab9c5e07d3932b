"""Trainings by the `Trainer` of Lightning, recorded as sessions."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from arc_halo.errors import ArcHaloError
from arc_halo.integrations._configs import as_config
from arc_halo.integrations._metrics import Scopes
from arc_halo.integrations._runs import Run

try:
    from lightning.fabric.loggers.logger import (  # pyright: ignore[reportMissingImports]
        rank_zero_experiment,
    )
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
    from arc_halo.training.sessions import TrainingSession

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
        self, session: TrainingSession | str | UUID, *, halo: Halo | None = None, **options: Any
    ) -> None:
        super().__init__()
        self._run = Run(session, halo, options)
        self._scopes = Scopes(SCOPES)

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
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record metrics in the scopes that their names begin with."""
        found = {name: value for name, value in metrics.items() if name != "epoch"}
        for scope, values in self._scopes.divide(found).items():
            self._run.log(values, step=step, epoch=metrics.get("epoch"), scope=scope)

    @rank_zero_only  # type: ignore[untyped-decorator]
    def finalize(self, status: str) -> None:
        """End a session of its own; pause any where Ctrl-C was pressed."""
        error = None if status == "success" else sys.exception() or RuntimeError(status)
        self._run.end(error)


def _is_first() -> bool:
    """Whether this is the process that records, of those that train together."""
    return getattr(rank_zero_only, "rank", 0) == 0
