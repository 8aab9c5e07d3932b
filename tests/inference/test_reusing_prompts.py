"""What pages show of stored prompts is run, each block in a database of its own."""

from __future__ import annotations

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
BLOCKS = [
    found
    for page in ("reuse-prompts", "record-inference")
    for found in re.findall(
        r"(?ms)^## ([^\n]+)$(?:(?!^## ).)*?^```python norun\n(.*?)^```$",
        (ROOT / "docs" / "how-to" / f"{page}.md").read_text(),
    )
]


@pytest.mark.parametrize(("title", "block"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_what_a_page_shows_happens(title: str, block: str, database: str, tmp_path: Path) -> None:
    environment = os.environ | {"ARC_HALO_DATABASE_URL": database, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with psycopg.connect(database) as conn:
        (blocks,) = conn.execute("SELECT count(*) FROM kv_cache").fetchone() or (0,)
    assert blocks == 3


def test_every_member_of_the_cache_is_in_the_python_reference() -> None:
    from arc_halo.inference.transformers_cache import TransformersCache

    text = (ROOT / "docs" / "reference" / "python.md").read_text()
    section = text.partition("## `halo.inference`")[2].partition("\n## ")[0]
    documented = set(re.findall(r"(?m)^\| `(\w+)", section))
    members = {
        name
        for name, _ in inspect.getmembers(TransformersCache, inspect.isfunction)
        if not name.startswith("_")
    }
    assert documented >= members
