"""Sessions of transformers' Trainer: a tiny model, trained on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import arc_halo
from arc_halo.errors import InvalidInputError

pytestmark = pytest.mark.torch

Ask = Callable[..., list[tuple[Any, ...]]]
Make = Callable[..., Any]
STATUS = "SELECT session_name, status, error FROM training_sessions ORDER BY started_at"
SERIES = """
SELECT scope, metric_key, array_agg(step ORDER BY step), array_agg(epoch ORDER BY step)
FROM training_series JOIN training_metrics ON series_id = id GROUP BY 1, 2
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A Trainer of a tiny Llama with callbacks; its arguments may be changed."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

    def make(*callbacks: Any, **changed: Any) -> Trainer:
        set_seed(7)
        sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "vocab_size": 32}
        heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
        rows = [{"input_ids": row, "labels": row} for row in torch.arange(32).reshape(8, 4)]
        given = {
            "output_dir": str(tmp_path / "out"), "use_cpu": True, "report_to": [],
            "per_device_train_batch_size": 2, "num_train_epochs": 2, "logging_steps": 1,
            "eval_strategy": "epoch", "save_strategy": "no", "disable_tqdm": True,
            "hub_token": "hf_s3cr3t", "dataloader_pin_memory": False,
        } | changed  # fmt: skip
        return Trainer(
            model=model,
            args=TrainingArguments(**given),
            train_dataset=rows,
            eval_dataset=rows[:2],
            callbacks=list(callbacks),
        )

    return make


def callback(*given: Any, **options: Any) -> Any:
    from arc_halo.integrations.transformers import ArcHaloCallback

    return ArcHaloCallback(*given, **options)


def test_a_training_is_recorded_with_scopes_steps_and_epochs(
    halo: arc_halo.Halo, ask: Ask, make: Make
) -> None:
    make(callback("story@1.0.0", halo=halo, name="tiny", tags={"by": "hand"})).train()
    found = {(scope, key): (steps, epochs) for scope, key, steps, epochs in ask(SERIES)}
    steps = list(range(1, 9))
    assert found["train", "loss"] == (steps, [step / 4 for step in steps])
    assert found["train", "learning_rate"][0] == steps
    assert found["train", "grad_norm"][0] == steps
    assert found["eval", "loss"] == ([4, 8], [1.0, 2.0])
    assert found["train", "train_loss"] == ([8], [2.0])
    assert {scope for scope, _ in found} == {"train", "eval"}
    assert not [key for _, key in found if key == "epoch" or key.startswith("eval_")]
    assert ask(STATUS) == [("tiny", "completed", None)]
    assert ask("SELECT total_steps, total_epochs, current_step, tags FROM training_sessions") == [
        (8, 2, 8, {"by": "hand"})
    ]


def test_what_is_recorded_is_what_the_trainer_saw(
    halo: arc_halo.Halo, ask: Ask, make: Make
) -> None:
    trainer = make(callback("story@1.0.0", halo=halo))
    trainer.train()
    seen = [(log["step"], log["loss"]) for log in trainer.state.log_history if "loss" in log]
    assert seen == ask(
        "SELECT step, value FROM training_series JOIN training_metrics ON series_id = id"
        " WHERE metric_key = 'loss' AND scope = 'train' ORDER BY step"
    )


def test_the_arguments_are_the_config_without_tokens(
    halo: arc_halo.Halo, ask: Ask, make: Make
) -> None:
    for name in ("first", "second"):
        given = callback("story@1.0.0", halo=halo, config={"note": "mine"})
        make(given, run_name=name, max_steps=1, learning_rate=0.25).train()
    (first,), (second,) = ask("SELECT config FROM training_sessions ORDER BY started_at")
    assert (first["learning_rate"], first["max_steps"], first["note"]) == (0.25, 1, "mine")
    assert "s3cr3t" not in json.dumps(first)
    assert "hub_token" not in first
    assert {key for key in first if first[key] != second[key]} == {"run_name"}
    assert [name for name, _, _ in ask(STATUS)] == ["first", "second"]


def test_a_session_that_is_given_is_left_open(halo: arc_halo.Halo, ask: Ask, make: Make) -> None:
    with halo.training.session("story@1.0.0", name="mine", config={"seed": 1}) as run:
        trainer = make(callback(run), max_steps=2)
        trainer.train()
        trainer.evaluate()
        trainer.predict(trainer.eval_dataset)
        assert run.flush()
        assert ask(STATUS) == [("mine", "running", None)]
        assert (run.config["seed"], run.config["max_steps"]) == (42, 2)
    found = {(scope, key): steps for scope, key, steps, _ in ask(SERIES)}
    assert found["eval", "loss"] == [2]
    assert found["test", "loss"] == [2]
    assert ask(STATUS) == [("mine", "completed", None)]


def test_a_training_that_raises_has_failed(
    database: str, tmp_path: Path, ask: Ask, make: Make
) -> None:
    def program() -> None:
        with arc_halo.connect(database, project=tmp_path) as halo:
            trainer = make(callback("story@1.0.0", halo=halo))
            trainer.train_dataset[5]["labels"] = None
            trainer.train()

    with pytest.raises(TypeError, match="NoneType"):
        program()
    ((_, status, error),) = ask(STATUS)
    assert status == "failed"
    assert error.startswith("TypeError: expected Tensor")


def test_a_training_that_is_interrupted_is_paused_and_goes_on(
    database: str, tmp_path: Path, ask: Ask, make: Make
) -> None:
    from transformers import TrainerCallback

    class Interrupt(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    def program(*others: Any) -> None:
        with arc_halo.connect(database, project=tmp_path) as halo:
            make(callback("story@1.0.0", halo=halo, resume="allow"), *others).train()

    with pytest.raises(KeyboardInterrupt):
        program(Interrupt())
    assert ask(STATUS) == [(None, "paused", None)]
    program()
    assert ask(STATUS) == [(None, "completed", None)]
    found = {(scope, key): steps for scope, key, steps, _ in ask(SERIES)}
    assert found["train", "loss"] == list(range(1, 9))


def test_metrics_outside_of_the_training_are_told_to_need_a_session(
    halo: arc_halo.Halo, ask: Ask, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(callback("story@1.0.0", halo=halo), max_steps=1)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    assert caplog.text.count("open the session yourself") == 1
    assert ask(STATUS) == [(None, "completed", None)]


def test_without_a_halo_it_is_the_projects_database(
    database: str, tmp_path: Path, ask: Ask, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    monkeypatch.chdir(tmp_path)
    given = callback("story@1.0.0", name="short")
    make(given, max_steps=1).train()
    assert ask(STATUS) == [("short", "completed", None)]
    assert given.session is None


def test_options_that_make_no_sense_are_told_at_once(halo: arc_halo.Halo) -> None:
    with pytest.raises(TypeError, match="total_step"):
        callback("story@1.0.0", total_step=3)
    with (
        halo.training.session("story@1.0.0") as run,
        pytest.raises(InvalidInputError, match="takes no more options"),
    ):
        callback(run, name="other")


def test_what_the_trainer_saves_is_in_the_session(
    halo: arc_halo.Halo, ask: Ask, make: Make
) -> None:
    import torch

    saving = {"save_strategy": "epoch", "load_best_model_at_end": True, "num_train_epochs": 3}
    with halo.training.session("story@1.0.0") as run:
        trainer = make(callback(run, checkpoints=True), learning_rate=0.05, **saving)
        trainer.train()
        points = run.checkpoints.list()
        assert [(point.step, point.epoch, point.type) for point in points] == [
            (4, 1.0, "full"), (8, 2.0, "full"), (12, 3.0, "full"),
        ]  # fmt: skip
        assert run.checkpoints.find("best").step == trainer.state.best_global_step
        losses = {log["step"]: log["eval_loss"] for log in trainer.state.log_history
                  if "eval_loss" in log}  # fmt: skip
        assert {point.step: point.metrics["loss"] for point in points} == losses

        other = make(learning_rate=0.05, **saving)
        other.create_optimizer_and_scheduler(num_training_steps=12)
        restored = run.restore(
            "best", model=other.model, optimizer=other.optimizer, scheduler=other.lr_scheduler
        )
        best = trainer.model.state_dict()
        assert all(
            torch.equal(best[name], value) for name, value in other.model.state_dict().items()
        )
        state = json.loads(restored.extra["trainer_state"])
        assert state["global_step"] == trainer.state.best_global_step


def test_without_checkpoints_what_the_trainer_saves_stays_its_own(
    halo: arc_halo.Halo, make: Make
) -> None:
    with halo.training.session("story@1.0.0") as run:
        make(callback(run), save_strategy="epoch", num_train_epochs=1).train()
        assert not run.has_checkpoint
