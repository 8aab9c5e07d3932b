"""Several processes that train together: one session, of the first of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.torch

Ask = Callable[..., list[tuple[Any, ...]]]

LIGHTNING = """
import lightning, torch, arc_halo
from arc_halo.integrations.lightning import ArcHaloCheckpointIO, ArcHaloLogger

class Tiny(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
    def training_step(self, batch, index):
        loss = self.layer(batch).square().mean()
        self.log("train_loss", loss)
        return loss
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)

def fit(logger, module, epochs, **given):
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=2, strategy="ddp", logger=logger,
        plugins=[ArcHaloCheckpointIO(logger)], log_every_n_steps=1, enable_progress_bar=False)
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(8, 4), batch_size=2), **given)
    return trainer.checkpoint_callback.best_model_path

first, second = Tiny(), Tiny()
with arc_halo.connect() as halo:
    logger = ArcHaloLogger("story@1.0.0", halo=halo, name="both")
    path = fit(logger, first, 1)
    fit(logger, second, 1, ckpt_path=path)
assert second.layer.weight.tolist() == first.layer.weight.tolist()
"""

TRANSFORMERS = """
import torch, arc_halo
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from arc_halo.integrations.transformers import ArcHaloCallback

model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=16,
                                     num_hidden_layers=1, num_attention_heads=2))
rows = [{"input_ids": row, "labels": row} for row in torch.arange(32).reshape(8, 4)]
arguments = TrainingArguments("out", num_train_epochs=1, per_device_train_batch_size=2,
                              logging_steps=1, save_strategy="epoch", use_cpu=True, report_to=[])
with arc_halo.connect() as halo:
    callback = ArcHaloCallback("story@1.0.0", halo=halo, name="both", checkpoints=True)
    Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
"""


def run_two(program: str, directory: Path, database: str) -> None:
    """Run a program as two processes that train together."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    environment = os.environ | {
        "ARC_HALO_DATABASE_URL": database, "HF_HUB_OFFLINE": "1", "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=directory,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [each.communicate(timeout=120)[0] for each in both]
    finally:
        for each in both:
            each.kill()
    assert [each.returncode for each in both] == [0, 0], "\n".join(told)


SESSIONS = "SELECT session_name, status, total_steps FROM training_sessions ORDER BY started_at"
STEPS = """
SELECT step FROM training_series JOIN training_metrics ON series_id = id
WHERE metric_key = 'loss' AND scope = 'train' ORDER BY step
"""
CHECKPOINTS = "SELECT step FROM model_checkpoints"


def test_of_lightnings_processes_the_first_records_and_all_of_them_load(
    tmp_path: Path, database: str, ask: Ask
) -> None:
    run_two(LIGHTNING, tmp_path, database)
    # The second had nothing left to do.
    assert ask(SESSIONS) == [("both", "completed", 2), ("both", "completed", None)]
    assert ask(STEPS) == [(0,), (1,)]


def test_of_transformers_processes_the_first_records(
    tmp_path: Path, database: str, ask: Ask
) -> None:
    run_two(TRANSFORMERS, tmp_path, database)
    assert ask(SESSIONS) == [("both", "completed", 2)]
    assert ask(STEPS) == [(1,), (2,)]
    assert ask(CHECKPOINTS) == [(2,)]
