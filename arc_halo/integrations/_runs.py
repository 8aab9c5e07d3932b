"""The session that an integration writes to: one that it is given, or one that it opens."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from arc_halo.api import Halo, connect
from arc_halo.api.training import Training
from arc_halo.errors import InvalidInputError
from arc_halo.types import JsonObject

if TYPE_CHECKING:
    from arc_halo.training.sessions import TrainingSession

logger = logging.getLogger("arc_halo.training")


class Run:
    """A session of somebody else's, who ends it; or a model, or None, for one of its own.

    That one is opened with `options`, those of `halo.training.session`, by `begin`, and ended by
    `end`. Without `halo` it is in the database of the project that the program runs in.
    """

    def __init__(
        self,
        given: TrainingSession | str | UUID | None,
        halo: Halo | None,
        options: Mapping[str, Any],
    ) -> None:
        self.session: TrainingSession | None = None
        self._model: str | UUID | None = None
        self.is_own = given is None or isinstance(given, str | UUID)
        """Whether the session is opened and ended here."""
        if given is None or isinstance(given, str | UUID):
            self._model = given
            # What it does not have is told now, not when the training begins.
            inspect.signature(Training.session).bind(None, given, **options)
        elif halo is not None or options:
            raise InvalidInputError(
                "a session that is open already takes no more options",
                hint="give them to `halo.training.session`, or give the name of a model",
            )
        else:
            self.session = given
        self._options = dict(options)
        self._halo = halo
        self._own: Halo | None = None
        self._has_told = False

    def begin(
        self,
        config: JsonObject,
        *,
        name: str | None = None,
        total_epochs: int | None = None,
        total_steps: int | None = None,
    ) -> TrainingSession:
        """The session, opened if it is not, with what is found only now in its config."""
        if self.session is None:
            self.session = self._open(config, name)
        self.session.configure(config, total_epochs=total_epochs, total_steps=total_steps)
        return self.session

    def log(
        self, metrics: Mapping[str, Any], *, step: int | None, epoch: float | None, scope: str
    ) -> None:
        """Record metrics; where there is no session that is open, say so once."""
        if self.session is not None:
            self.session.log(metrics, step=step, epoch=epoch, scope=scope)
        elif not self._has_told:
            self._has_told = True
            logger.warning(
                "metrics before or after the training are not recorded: "
                "for these open the session yourself, and give that"
            )

    def end(self, error: BaseException | None = None) -> None:
        """End a session of one's own: as completed, or by what ended the training.

        With Ctrl-C one that was given is paused too.
        """
        if self.session is None or not (self.is_own or isinstance(error, KeyboardInterrupt)):
            return
        try:
            self.session.__exit__(None if error is None else type(error), error, None)
        finally:
            self._close()

    def _open(self, config: JsonObject, name: str | None) -> TrainingSession:
        if self._halo is None:
            self._own = connect()
        halo = self._own or self._halo
        assert halo is not None
        options: dict[str, Any] = {"name": name} | self._options
        given = options.pop("config", None) or {}
        try:
            return halo.training.session(self._model, config={**given, **config}, **options)
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        """Let go of a session of one's own, and of the database it was in."""
        own, self._own = self._own, None
        if self.is_own:
            self.session = None
        if own is not None:
            own.close()
