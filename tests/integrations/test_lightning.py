"""Sessions of Lightning's Trainer: a tiny module, trained on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import arc_halo
from arc_halo.errors import CheckpointError

pytestmark = [
    pytest.mark.torch,
    # What Lightning does and torch would like otherwise.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
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
def fresh() -> Make:
    """Makes modules that log what they do, as most do; all begin alike."""
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

        def train_dataloader(self, shuffle: bool = True) -> Any:
            rows = torch.arange(32, dtype=torch.float32).reshape(8, 4) / 32
            return torch.utils.data.DataLoader(rows, batch_size=2, shuffle=shuffle)

        def val_dataloader(self) -> Any:
            return self.train_dataloader(shuffle=False)

        test_dataloader = val_dataloader

    def fresh() -> Tiny:
        lightning.seed_everything(7, verbose=False)
        return Tiny()

    return fresh


@pytest.fixture
def module(fresh: Make) -> Any:
    return fresh()


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


@pytest.mark.parametrize(
    ("changed", "totals"),
    [
        ({}, (2, 8)),
        ({"max_steps": 3}, (2, 3)),
        ({"max_epochs": -1, "max_steps": 3}, (None, 3)),
        ({"accumulate_grad_batches": 3}, (2, 4)),
    ],
)
def test_how_many_steps_and_epochs_there_will_be_is_known(
    halo: arc_halo.Halo, ask: Ask, make: Make, module: Any, changed: dict[str, int], totals: Any
) -> None:
    make(logger("story@1.0.0", halo=halo), **changed).fit(module)
    assert ask("SELECT total_epochs, total_steps FROM training_sessions") == [totals]


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


def checkpoint_io(session: Any) -> Any:
    from arc_halo.integrations.lightning import ArcHaloCheckpointIO

    return ArcHaloCheckpointIO(session)


CHECKPOINTS = "SELECT step, checkpoint_type FROM model_checkpoints ORDER BY step"


def test_two_epochs_and_two_are_bit_for_bit_four(
    halo: arc_halo.Halo, ask: Ask, make: Make, fresh: Make
) -> None:
    whole = fresh()
    make(False, max_epochs=4).fit(whole)

    def go_on(epochs: int, **given: Any) -> Any:
        module = fresh()
        with halo.training.session("story@1.0.0", resume="allow") as run:
            parts = {"plugins": [checkpoint_io(run)], "enable_checkpointing": True}
            make(logger(run), max_epochs=epochs, **parts).fit(module, **given)
            run.pause()
        return module

    first = go_on(2)
    second = go_on(4, ckpt_path="latest")
    assert [loss.hex() for loss in whole.losses] == [
        loss.hex() for loss in first.losses + second.losses
    ]
    assert whole.layer.weight.tolist() == second.layer.weight.tolist()
    assert [row[2] for row in ask(SERIES) if row[:2] == ("train", "loss")] == [list(range(16))]


@pytest.mark.parametrize("is_one_directory", [True, False])
def test_what_lightning_removes_goes_unless_another_file_means_it(
    halo: arc_halo.Halo, make: Make, module: Any, tmp_path: Path, is_one_directory: bool
) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    first, second = tmp_path / "first", tmp_path / ("first" if is_one_directory else "second")
    best = ModelCheckpoint(first, filename="best-{step}", monitor="val_loss")
    newest = ModelCheckpoint(second, filename="newest-{step}")
    with halo.training.session("story@1.0.0", best_metric="val_loss") as run:
        parts = {"plugins": [checkpoint_io(run)], "enable_checkpointing": True}
        trainer = make(logger(run), max_epochs=3, callbacks=[best, newest], **parts)
        trainer.fit(module)
        best_step = int(best.best_model_path.partition("step=")[2].removesuffix(".ckpt"))
        assert {point.step for point in run.checkpoints.list()} == {best_step, 12}
        assert run.checkpoints.find("best").step == best_step
        files = [*first.iterdir(), *second.iterdir()]
        assert {file.name for file in files} == {
            f"best-step={best_step}.ckpt",
            "newest-step=12.ckpt",
        }
        assert all(file.stat().st_size < 300 for file in files)
        weights = module.layer.weight.tolist()
        module.layer.weight.data.zero_()
        trainer.test(module, ckpt_path=second / "newest-step=12.ckpt", verbose=False)
        assert module.layer.weight.tolist() == weights


@pytest.mark.parametrize("last", [True, "link"])
def test_what_the_last_file_pointed_to_goes_when_it_is_overwritten(
    halo: arc_halo.Halo, make: Make, module: Any, tmp_path: Path, last: Any
) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    # With the third, the second goes from the best while it is still the last.
    values = iter([2.0, 3.0, 1.0, 4.0, 0.0])
    module.on_validation_epoch_end = lambda: module.log("loss", next(values))
    given = {"monitor": "loss", "save_top_k": 2, "save_last": last}
    kept = ModelCheckpoint(tmp_path, save_on_train_epoch_end=False, **given)
    with halo.training.session("story@1.0.0") as run:
        parts = {"plugins": [checkpoint_io(run)], "enable_checkpointing": True}
        parts |= {"callbacks": [kept], "num_sanity_val_steps": 0}
        make(logger(run), max_epochs=5, **parts).fit(module)
        files = [Path(file) for file in (*kept.best_k_models, kept.last_model_path)]
        assert {json.loads(file.read_text())["step"] for file in files} == {12, 20}
        assert {point.step for point in run.checkpoints.list()} == {12, 20}


def test_what_a_file_points_to_is_loaded_without_a_trainer(
    halo: arc_halo.Halo, make: Make, fresh: Make, tmp_path: Path
) -> None:
    from arc_halo.integrations.lightning import load

    module = fresh()
    with halo.training.session("story@1.0.0") as run:
        trainer = make(logger(run), max_epochs=1, plugins=[checkpoint_io(run)])
        trainer.fit(module)
        trainer.save_checkpoint(tmp_path / "one.ckpt")
    saved = load(tmp_path / "one.ckpt", halo=halo)
    assert (saved["global_step"], saved["hyper_parameters"]) == (4, {"lr": 0.1})
    other = type(module)(**saved["hyper_parameters"])
    other.load_state_dict(saved["state_dict"])
    assert other.layer.weight.tolist() == module.layer.weight.tolist()
    (tmp_path / "other.ckpt").write_text("{}")
    with pytest.raises(CheckpointError, match="points to no checkpoint of Arc-Halo"):
        load(tmp_path / "other.ckpt", halo=halo)


def test_what_is_pinned_stays_when_lightning_removes_its_file(
    halo: arc_halo.Halo, make: Make, module: Any, tmp_path: Path
) -> None:
    with halo.training.session("story@1.0.0") as run:
        trainer = make(logger(run), max_epochs=1, plugins=[checkpoint_io(run)])
        trainer.fit(module)
        trainer.save_checkpoint(tmp_path / "one.ckpt")
        run.checkpoints.pin(4)
        trainer.strategy.remove_checkpoint(tmp_path / "one.ckpt")
        assert [point.step for point in run.checkpoints.list()] == [4]
        assert list(tmp_path.glob("*.ckpt")) == []


def test_weights_alone_are_a_checkpoint_too(
    halo: arc_halo.Halo, ask: Ask, make: Make, module: Any, tmp_path: Path
) -> None:
    with halo.training.session("story@1.0.0") as run:
        trainer = make(logger(run), max_epochs=1, plugins=[checkpoint_io(run)])
        trainer.fit(module)
        trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
        assert ask(CHECKPOINTS) == [(4, "weights_only")]
        weights = module.layer.weight.tolist()
        module.layer.weight.data.zero_()
        trainer.validate(module, ckpt_path=tmp_path / "weights.ckpt", verbose=False)
        assert module.layer.weight.tolist() == weights


def test_secrets_of_hyperparameters_are_in_no_checkpoint(
    halo: arc_halo.Halo, ask: Ask, make: Make, module: Any
) -> None:
    given = logger("story@1.0.0", halo=halo)
    trainer = make(given, max_epochs=1, plugins=[checkpoint_io(given)], enable_checkpointing=True)
    trainer.fit(module)
    ((found,),) = ask("SELECT id FROM model_checkpoints")
    with halo.training.session("story@1.0.0") as run:
        extra = run.checkpoints.read(found).state("extra")
    assert extra["hyper_parameters"] == {"lr": 0.1}
    assert "s3cr3t" not in str(extra)


def test_a_file_of_another_kind_is_told(
    halo: arc_halo.Halo, make: Make, module: Any, tmp_path: Path
) -> None:
    (tmp_path / "other.ckpt").write_bytes(b"PK\3\4" + bytes(9000))
    with halo.training.session("story@1.0.0") as run:
        trainer = make(logger(run), plugins=[checkpoint_io(run)])
        with pytest.raises(CheckpointError, match="points to no checkpoint of Arc-Halo"):
            trainer.fit(module, ckpt_path=tmp_path / "other.ckpt")
