"""Trainings by the `Trainer` of transformers, recorded as sessions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from uuid import UUID

from arc_halo.errors import ArcHaloError
from arc_halo.integrations._configs import as_config
from arc_halo.integrations._metrics import Scopes
from arc_halo.integrations._runs import Run
from arc_halo.types import JsonObject

try:
    from transformers import TrainerCallback  # pyright: ignore[reportMissingImports]
except ImportError as exc:
    raise ArcHaloError(
        "transformers is not installed", hint="pip install 'arc-halo[transformers]'", code="AH030"
    ) from exc

if TYPE_CHECKING:
    from arc_halo.api import Halo
    from arc_halo.training.sessions import TrainingSession

SCOPES = {"eval_": "eval", "test_": "test"}
"""What the Trainer writes before the names of metrics. `train_loss` is the mean of all steps."""

OF_THE_MACHINE = ("local_rank", "logging_dir", "ddp_backend")
"""Arguments that say where it ran, and differ from one start to the next."""

MAX_EPOCHS = 2**31 - 1


class ArcHaloCallback(TrainerCallback):  # type: ignore[misc]  # the base is untyped here
    """What a `Trainer` logs, in a session that is open, or in one of a model that is named.

    A session of its own begins and ends with `Trainer.train()`, and `options` are those of
    `halo.training.session`. The `TrainingArguments` are in the config, without tokens. With
    `checkpoints` the session has one whenever the Trainer saves.
    """

    def __init__(
        self,
        session: TrainingSession | str | UUID | None = None,
        *,
        halo: Halo | None = None,
        checkpoints: bool = False,
        **options: Any,
    ) -> None:
        self._run = Run(session, halo, options)
        self._scopes = Scopes(SCOPES)
        self._has_checkpoints = checkpoints
        self._evaluated: tuple[int, dict[str, Any]] = (-1, {})
        """What was evaluated last, and at which step."""

    @property
    def session(self) -> TrainingSession | None:
        """The session that is written to, while there is one."""
        return self._run.session

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        epochs = state.num_train_epochs
        self._run.begin(
            config_of(args),
            name=state.trial_name or _run_name(args),
            total_steps=state.max_steps,
            total_epochs=epochs if epochs <= MAX_EPOCHS else None,
        )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        self._log(state, logs or {})

    def on_save(
        self,
        args: Any,
        state: Any,
        control: Any,
        *,
        model: Any,
        optimizer: Any,
        lr_scheduler: Any,
        **_: Any,
    ) -> None:
        """Save what the Trainer saves, with what was evaluated at this step.

        A database that is away is warned of.
        """
        session = self._run.session
        if not self._has_checkpoints or session is None or not state.is_world_process_zero:
            return
        step, metrics = self._evaluated
        best = (args.metric_for_best_model or "").removeprefix("eval_")
        session.checkpoint(
            step=state.global_step,
            epoch=state.epoch,
            model=model,
            optimizer=optimizer,
            scheduler=lr_scheduler,
            extra={"trainer_state": json.dumps(asdict(state), default=str)},
            metrics=metrics if step == state.global_step else {},
            best_metric=best if step == state.global_step and best in metrics else None,
            best_mode="max" if args.greater_is_better else "min",
            on_failure="warn",
        )

    def on_predict(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **_: Any
    ) -> None:
        self._log(state, metrics)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._run.end()

    def _log(self, state: Any, logs: dict[str, Any]) -> None:
        if not state.is_world_process_zero:
            return
        metrics = {name: value for name, value in logs.items() if name != "epoch"}
        for scope, found in self._scopes.divide(metrics).items():
            if scope == "eval":
                self._evaluated = state.global_step, numbers(found)
            self._run.log(found, step=state.global_step, epoch=state.epoch, scope=scope)


def config_of(args: Any) -> JsonObject:
    """`TrainingArguments` as a config, without tokens and without what is the machine's."""
    settings = args.to_dict()
    return as_config({name: settings[name] for name in settings if name not in OF_THE_MACHINE})


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Those that are numbers."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _run_name(args: Any) -> str | None:
    """The name that a run was given; some versions take the directory for want of one."""
    return args.run_name if args.run_name != args.output_dir else None
