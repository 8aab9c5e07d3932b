"""What the page about PyTorch shows is run, each block in a directory and a database of its own."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "train-with-pytorch.md"
CLASSES = (
    "transformers.ArcHaloCallback",
    "lightning.ArcHaloLogger",
    "lightning.ArcHaloCheckpointIO",
)
BLOCKS = re.findall(
    r"(?ms)^## ([^\n]+)$(?:(?!^## ).)*?^```python norun\n(.*?)^```$", PAGE.read_text()
)


@pytest.mark.parametrize(("title", "block"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_what_the_page_shows_happens(title: str, block: str, database: str, tmp_path: Path) -> None:
    environment = os.environ | {"ARC_HALO_DATABASE_URL": database, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with psycopg.connect(database) as conn:
        statuses = conn.execute("SELECT DISTINCT status FROM training_sessions").fetchall()
        (points,) = conn.execute("SELECT count(*) FROM training_metrics").fetchone() or (0,)
        (checkpoints,) = conn.execute("SELECT count(*) FROM model_checkpoints").fetchone() or (0,)
    assert (statuses, points > 8, checkpoints > 0) == ([("completed",)], True, True)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_in_the_python_reference_with_its_signature(name: str) -> None:
    module, _, class_name = name.partition(".")
    found = getattr(importlib.import_module(f"arc_halo.integrations.{module}"), class_name)
    signature = inspect.signature(found.__init__)
    parameters = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in signature.parameters.values()
        if each.name != "self"
    ]
    text = (ROOT / "docs" / "reference" / "python.md").read_text()
    assert f"### `{name}{inspect.Signature(parameters)}`" in text
