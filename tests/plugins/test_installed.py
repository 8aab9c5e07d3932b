"""Plugins as others have them: in an environment of their own, from what pip installs.

The one test that needs an index of packages.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "plugins" / "halo-geometric-median"
DROP_IN = ROOT / "plugins" / "midrange.py"
SECONDS = 300
PIP = ("python", "-m", "pip", "install", "--quiet")

CONTRACT = """
from pathlib import Path

from arc_halo.plugins import PluginManager
from arc_halo.testing import StrategyContract


class TestMidrange(StrategyContract):
    strategy = PluginManager.load({"m": Path("plugins/midrange.py")}).strategy("midrange").item
"""

RECIPE = """
reactors:
  blend:
    type: merge
    strategy: {strategy}
    members: [{{model: a}}, {{model: b}}, {{model: c}}]
    produces: {{model: blend, version: 1.0.0}}
"""
VALUES = {"a": [0.0, 0.0], "b": [1.0, 0.0], "c": [100.0, 0.0]}

Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of a new environment in which Arc-Halo is installed; its output."""
    home = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True, timeout=SECONDS)
    ours = ("ARC_HALO_", "PYTHON", "PYTEST_", "VIRTUAL_ENV")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # nothing is left in the repository

    def run(*command: str | Path, cwd: Path = home) -> str:
        program, *arguments = command
        done = subprocess.run(
            [home / "venv" / "bin" / program, *arguments],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    # hatchling once, and not for each package again.
    run(*PIP, ROOT, "pytest", "hypothesis", "hatchling", "editables")
    return run


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name, values in VALUES.items():
        save_file({"w": np.float32(values)}, tmp_path / f"{name}.safetensors")
    return tmp_path


def merge(run: Run, directory: Path, strategy: str, *options: str | Path) -> list[float]:
    (directory / "blend.yaml").write_text(RECIPE.format(strategy=strategy))
    files = [part for name in VALUES for part in ("--from-files", f"{name}={name}.safetensors")]
    command = ("arc-halo", "fuse", "run", "blend.yaml", *files, "--to-dir", "out", *options)
    run(*command, cwd=directory)
    found: list[float] = load_file(directory / "out" / "model.safetensors")["w"].tolist()
    return found


def provider(run: Run, name: str, directory: Path) -> str:
    """Who provides it, as `arc-halo plugins` says."""
    listed = json.loads(run("arc-halo", "plugins", "--output", "json", cwd=directory))["plugins"]
    return "".join(each["provider"] for each in listed if each["name"] == name)


def test_the_package_is_installed_listed_merged_with_and_keeps_its_contract(
    run: Run, models: Path
) -> None:
    run(*PIP, "--no-build-isolation", PACKAGE)
    assert provider(run, "geometric_median", models) == "halo-geometric-median 0.1.0"
    # Of three points on a line, the one in the middle.
    assert merge(run, models, "geometric_median") == pytest.approx([1.0, 0.0], abs=1e-3)
    assert "passed" in run("pytest", "-q", "-p", "no:cacheprovider", PACKAGE, cwd=models)


def test_the_drop_in_file_is_listed_merged_with_and_keeps_its_contract(
    run: Run, models: Path
) -> None:
    (models / "plugins").mkdir()
    (models / "plugins" / "midrange.py").write_bytes(DROP_IN.read_bytes())
    (models / "arc_halo.yaml").write_text(
        "version: 1\nproject: shop\nplugins: [plugins/midrange.py]\n"
    )
    assert provider(run, "midrange", models) == "plugins/midrange.py"
    assert merge(run, models, "midrange", "--plugin", "plugins/midrange.py") == [50.0, 0.0]
    (models / "test_midrange.py").write_text(CONTRACT)
    assert "passed" in run("python", "-m", "pytest", "-q", "test_midrange.py", cwd=models)


@pytest.mark.parametrize("kind", ["strategy", "codec"])
def test_a_new_package_installs_as_it_is_written_and_keeps_its_contract(
    run: Run, models: Path, kind: str
) -> None:
    name = f"fresh_{kind}"
    root = models / f"halo-fresh-{kind}"
    new = ("arc-halo", "plugin", "new", name, "--kind", kind)
    said = run(*new, "--package", cwd=models)
    assert f"  pip install -e 'halo-fresh-{kind}[test]'\n" in said
    run(*PIP, "--no-build-isolation", "-e", f"halo-fresh-{kind}[test]", cwd=models)
    assert provider(run, name, models) == f"halo-fresh-{kind} 0.1.0"
    assert "passed" in run("pytest", "-q", root, cwd=models)
    # A file of that name would be a second one; the package may be written again.
    with pytest.raises(AssertionError, match=f"of halo-fresh-{kind} 0.1.0 already"):
        run(*new, cwd=models)
    run(*new, "--package", "--force", cwd=models)
    if kind == "strategy":
        # Each element is a mean of what stays within 0.01 of the median.
        assert merge(run, models, name) == pytest.approx([1.0, 0.0], abs=0.01)
    # The next one finds nothing of it: what an editable package points to is gone by then.
    run(*PIP[:3], "uninstall", "--quiet", "--yes", f"halo-fresh-{kind}")
