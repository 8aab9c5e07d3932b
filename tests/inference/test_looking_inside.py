"""What the page about looking inside shows happens, from top to bottom, on one database."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

pytestmark = pytest.mark.torch

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "look-inside-a-model.md"
BLOCKS = re.findall(r"(?ms)^```(python|sh|sql)([^\n]*)\n(.*?)^```$", PAGE.read_text())


def test_what_the_page_shows_happens(database: str, tmp_path: Path) -> None:
    environment = os.environ | {
        "ARC_HALO_DATABASE_URL": database,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PAGE.parents[2])]),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    assert len(BLOCKS) == 8
    for language, options, text in BLOCKS:
        if "file=" in options:
            (tmp_path / options.partition("file=")[2]).write_text(text)
        elif language == "sql":
            with psycopg.connect(database) as conn:
                for query in text.split(";")[:-1]:
                    assert len(conn.execute(query.encode()).fetchall()) == 5
        else:
            command = [sys.executable, "-c", text] if language == "python" else ["sh", "-ec", text]
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
    assert (tmp_path / "head.svg").read_text().startswith("<svg")
