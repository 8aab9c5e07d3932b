"""Sessions of Lightning's Trainer: a tiny module, trained on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import arc_halo

pytestmark = [
    pytest.mark.torch,
    # What Lightning does and torch would like otherwise.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    # How many processes load the data is for who has a lot of it.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]

Ask = Callable[..., list[tuple[Any, ...]]]
Make = Callable[..., Any]
STATUS = "SELECT session_name, status, error FROM training_sessions ORDER BY started_at"
SERIES = """
SELECT scope, metric_key, array_agg(step ORDER BY step), array_agg(epoch ORDER BY step)
FROM training_series JOIN training_metrics ON series_id = id GROUP BY 1, 2
"""


@pytest.fixture
def module() -> Any:
    """A module that logs what it does, as most do."""
    import lightning
    import torch

    class Tiny(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, lr: float = 0.1, hub_token: str = "s3cr3t") -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(4, 1)
            self.dropout = torch.nn.Dropout(0.5)
            self.losses: list[float] = []
            self.stop_at: tuple[int, BaseException] | None = None

        def loss(self, batch: Any) -> Any:
            return self.layer(self.dropout(batch)).square().mean()

        def training_step(self, batch: Any, index: int) -> Any:
            if self.stop_at is not None and self.global_step == self.stop_at[0]:
                raise self.stop_at[1]
            loss = self.loss(batch)
            self.losses.append(loss.item())
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", self.loss(batch))

        def test_step(self, batch: Any, index: int) -> None:
            self.log("test/loss", self.loss(batch))

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"], amsgrad=True)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

        def train_dataloader(self) -> Any:
            rows = torch.arange(32, dtype=torch.float32).reshape(8, 4) / 32
            return torch.utils.data.DataLoader(rows, batch_size=2)

        val_dataloader = test_dataloader = train_dataloader

    lightning.seed_everything(7, verbose=False)
    return Tiny()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    import lightning

    def make(logger: Any, **changed: Any) -> Any:
        given = {
            "max_epochs": 2, "accelerator": "cpu", "logger": logger, "log_every_n_steps": 1,
            "default_root_dir": tmp_path / "out", "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False,
        } | changed  # fmt: skip
        return lightning.Trainer(**given)

    return make


def logger(*given: Any, **options: Any) -> Any:
    from arc_halo.integrations.lightning import ArcHaloLogger

    return ArcHaloLogger(*given, **options)


def test_a_training_is_recorded_with_scopes_steps_and_epochs(
    halo: arc_halo.Halo, ask: Ask, make: Make, module: Any
) -> None:
    make(logger("story@1.0.0", halo=halo, name="tiny", total_epochs=2)).fit(module)
    assert ask(
        "SELECT step, epoch, value FROM training_series JOIN training_metrics ON series_id = id"
        " WHERE metric_key = 'loss' AND scope = 'train' ORDER BY step"
    ) == [(step, step // 4, loss) for step, loss in enumerate(module.losses)]
    found = {(scope, key): (steps, epochs) for scope, key, steps, epochs in ask(SERIES)}
    assert found["eval", "loss"] == ([3, 7], [0, 1])
    assert found.keys() == {("train", "loss"), ("eval", "loss")}
    assert ask(STATUS) == [("tiny", "completed", None)]
    assert ask("SELECT total_epochs, current_step FROM training_sessions") == [(2, 7)]


def test_hyperparameters_are_the_config_without_tokens(
    halo: arc_halo.Halo, ask: Ask, make: Make, module: Any
) -> None:
    make(logger("story@1.0.0", halo=halo, config={"note": "mine"}), max_epochs=1).fit(module)
    ((config,),) = ask("SELECT config FROM training_sessions")
    assert config == {"lr": 0.1, "note": "mine"}
    assert "s3cr3t" not in json.dumps(config)


def test_a_session_that_is_given_has_the_test_too(
    halo: arc_halo.Halo, ask: Ask, make: Make, module: Any
) -> None:
    with halo.training.session("story@1.0.0", name="mine") as run:
        given = logger(run)
        trainer = make(given, max_epochs=1)
        trainer.fit(module)
        trainer.test(module, verbose=False)
        assert (given.name, given.version, given.experiment) == ("mine", str(run.id), run)
        assert run.config == {"lr": 0.1}
        assert ask(STATUS) == [("mine", "running", None)]
    found = {(scope, key): steps for scope, key, steps, _ in ask(SERIES)}
    assert found["test", "loss"] == [4]
    assert ask(STATUS) == [("mine", "completed", None)]


def test_a_training_that_raises_has_failed(
    halo: arc_halo.Halo, ask: Ask, make: Make, module: Any
) -> None:
    module.stop_at = 3, ValueError("no way to postgresql://me:hunter2@there/db")
    with pytest.raises(ValueError, match="hunter2"):
        make(logger("story@1.0.0", halo=halo)).fit(module)
    ((_, status, error),) = ask(STATUS)
    assert (status, error) == ("failed", "ValueError: no way to postgresql://me:***@there/db")


@pytest.mark.parametrize("is_given", [False, True])
def test_a_training_that_is_interrupted_is_paused(
    halo: arc_halo.Halo, ask: Ask, make: Make, module: Any, is_given: bool
) -> None:
    module.stop_at = 3, KeyboardInterrupt()
    if is_given:
        with (
            pytest.raises(SystemExit),
            halo.training.session("story@1.0.0") as run,
        ):
            make(logger(run)).fit(module)
    else:
        with pytest.raises(SystemExit):
            make(logger("story@1.0.0", halo=halo)).fit(module)
    assert ask(STATUS) == [(None, "paused", None)]


def test_without_a_halo_it_is_the_projects_database(
    database: str,
    tmp_path: Path,
    ask: Ask,
    make: Make,
    module: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    monkeypatch.chdir(tmp_path)
    make(logger("story@1.0.0", name="short"), max_epochs=1).fit(module)
    assert ask(STATUS) == [("short", "completed", None)]
