"""An ordinary loop of PyTorch: logged, interrupted, restored, and gone on with bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import arc_halo

pytestmark = pytest.mark.torch

Ask = Callable[..., list[tuple[Any, ...]]]
STEPS = 12


class Training:
    """A loop as people write it: a module with dropout, AdamW, a schedule, shuffled data."""

    def __init__(self) -> None:
        import torch

        torch.manual_seed(7)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05, amsgrad=True)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        self.rows = torch.rand(16, 4)
        self.position = {"step": 0}
        self.losses: list[float] = []

    def step(self) -> float:
        import torch

        batch = self.rows[torch.randperm(16)[:4]]
        loss = self.model(batch).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.position["step"] += 1
        self.losses.append(loss.item())
        return self.losses[-1]

    def run(self, run: Any, until: int) -> None:
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "data": self.position,
        }
        if run.has_checkpoint:
            run.restore(**parts)
        while self.position["step"] < until:
            loss = self.step()
            run.log({"loss": loss}, step=self.position["step"])
            if self.position["step"] % 4 == 0:
                run.checkpoint(metrics={"loss": loss}, best_metric="loss", **parts)


def test_a_loop_that_is_interrupted_goes_on_bit_for_bit(halo: arc_halo.Halo, ask: Ask) -> None:
    whole = Training()
    for _ in range(STEPS):
        whole.step()

    def interrupted() -> None:
        with halo.training.session("story@1.0.0", name="loop") as run:
            Training().run(run, until=6)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    again = Training()
    with halo.training.session("story@1.0.0", name="loop", resume="must") as run:
        again.run(run, until=STEPS)
    assert [loss.hex() for loss in again.losses] == [loss.hex() for loss in whole.losses[4:]]
    assert [each.tolist() for each in again.model.parameters()] == [
        each.tolist() for each in whole.model.parameters()
    ]
    logged = "SELECT step, value FROM training_metrics ORDER BY step"
    assert ask(logged) == list(enumerate(whole.losses, start=1))
    assert ask("SELECT session_name, status FROM training_sessions") == [("loop", "completed")]
    assert ask("SELECT step, is_best FROM model_checkpoints ORDER BY step") == [
        (step, whole.losses[step - 1] == min(whole.losses[3::4])) for step in (4, 8, 12)
    ]
