"""The demo, and its models as transformers loads them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from arc_halo.project import Project

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WEIGHTS = ROOT / "examples" / "weights"
sys.path.insert(0, str(HERE))


@pytest.fixture
def demo(tmp_path, database):
    """The demo project, applied."""
    directory = tmp_path / "demo"
    for name in ("reactors", "plugins", "examples"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns(".arc-halo"))
    shutil.copy(ROOT / "arc_halo.yaml", directory)
    with Project(directory, database_url=database) as project:
        project.apply(project.plan())
        yield project


@pytest.fixture(scope="module")
def references():
    """Scripture and Python, loaded by transformers from their files."""
    import torch
    from transformers import AutoModelForCausalLM

    return [
        AutoModelForCausalLM.from_pretrained(WEIGHTS / name, dtype=torch.float32).eval()
        for name in ("scripture", "python")
    ]
