"""The demo project of the checkout, in a directory of the test's own."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A copy of what `arc-halo apply` reads in a checkout."""
    directory = tmp_path / "demo"
    for name in ("reactors", "plugins", "examples"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns(".arc-halo"))
    shutil.copy(ROOT / "arc_halo.yaml", directory)
    return directory
