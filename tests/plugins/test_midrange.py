"""The example plugin, as a project uses it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from arc_halo import Project
from arc_halo.api import Halo
from arc_halo.plugins import PluginManager
from arc_halo.testing import StrategyContract

FILE = Path(__file__).parents[2] / "plugins" / "midrange.py"
MANIFEST = """
version: 1
project: calm
plugins: [plugins/midrange.py]
models:
  a@1: {type: other, weights: a.safetensors}
  b@1: {type: other, weights: b.safetensors}
  c@1: {type: other, weights: c.safetensors}
reactors:
  calm:
    type: merge
    strategy: midrange
    members: [{model: a}, {model: b}, {model: c}]
    produces: {model: calm, version: "1"}
"""


class TestMidrange(StrategyContract):
    strategy = PluginManager.load({"plugins/midrange.py": FILE}).strategy("midrange").item


def save(path: Path, values: list[float]) -> None:
    raw = np.array(values, np.float32).tobytes()
    entry = {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, len(raw)]}
    header = json.dumps({"w": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "arc_halo.yaml").write_text(MANIFEST)
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "midrange.py").write_bytes(FILE.read_bytes())
    for name, values in (("a", [1, 9, -1]), ("b", [2, 5, -3]), ("c", [30, 7, -2])):
        save(tmp_path / f"{name}.safetensors", values)
    return tmp_path


def test_a_project_merges_by_midrange(directory: Path, database: str) -> None:
    with Project(directory, database_url=database, environ={}) as project:
        project.apply(project.plan())
        assert Halo(project).tensors.read("calm", "w").tolist() == [15.5, 7, -2]
        assert not project.plan().has_changes
        with project.connection() as conn:
            row = conn.execute("SELECT strategy_name, strategy_version FROM fusion_operations")
            assert row.fetchall() == [("midrange", "1")]


def test_another_text_of_an_unversioned_plugin_is_another_version(
    directory: Path, database: str
) -> None:
    file = directory / "plugins" / "midrange.py"
    file.write_text(file.read_text().replace("version=1,", ""))
    with Project(directory, database_url=database, environ={}) as project:
        project.apply(project.plan())
    file.write_text(file.read_text().replace("stacked.min", "stacked.max"))
    with Project(directory, database_url=database, environ={}) as project:
        report = project.apply(project.plan())
        assert [str(key) for key in report.builds] == ["model/calm@1"]
        assert Halo(project).tensors.read("calm", "w").tolist() == [30, 9, -1]
