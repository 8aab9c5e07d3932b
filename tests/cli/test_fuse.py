"""`arc-halo fuse run`: the merge of a project, from files to a file, to the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from arc_halo import connect
from arc_halo.cli.main import run

NAMES = ("base", "poet", "coder")
RECIPE = """
strategies:
  calm: {{uses: {strategy}, params: {params}}}
reactors:
  blend:
    type: merge
    strategy: calm
    base: base
    members: [{{model: poet, weight: 0.6}}, {{model: coder, weight: 0.3}}]
    produces: {{model: blend, version: "1"}}
"""
PROJECT = """
version: 1
project: shop
include: [blend.yaml]
models:
  base@1: {type: other, weights: base/model.safetensors}
  poet@1: {type: other, weights: poet/model.safetensors}
  coder@1: {type: other, weights: coder/model.safetensors}
"""
STRATEGIES = {
    "linear": "{}",
    "ties": "{density: 0.4}",
    "dare_ties": "{density: 0.5, seed: 7}",
    "della_linear": "{rescale: l1}",
    "model_stock": "{}",
    "tsv_m": "{}",
}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    numbers = np.random.default_rng(0)
    base = numbers.normal(size=(300, 70)).astype(np.float32)
    for name in NAMES:
        change = numbers.normal(0, 0.1, base.shape) if name != "base" else 0
        (tmp_path / name).mkdir()
        save_file(
            {
                "w": (base + change).astype(np.float32),
                "b": np.float32(numbers.normal(size=5)),
                "ids": np.arange(9),
            },
            tmp_path / name / "model.safetensors",
            metadata={"format": "pt"},
        )
        (tmp_path / name / "config.json").write_text(json.dumps({"of": name}))
    write_recipe(tmp_path, "linear")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_recipe(directory: Path, strategy: str) -> None:
    text = RECIPE.format(strategy=strategy, params=STRATEGIES.get(strategy, "{}"))
    (directory / "blend.yaml").write_text(text)


def fuse(*arguments: str, recipe: str = "blend.yaml") -> int:
    files = [part for name in NAMES for part in ("--from-files", f"{name}={name}")]
    return run(["fuse", "run", recipe, *files, "--to-dir", "out", *arguments])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_comes_to_the_bits_of_apply(directory: Path, database: str, strategy: str) -> None:
    write_recipe(directory, strategy)
    (directory / "arc_halo.yaml").write_text(PROJECT)
    assert fuse("--memory", "1MiB") == 0
    with connect(database, project=directory) as halo:
        halo.project.apply(halo.project.plan())
        expected = halo.tensors.load("blend")
    found = load_file(directory / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert array.tobytes() == found[name].tobytes(), name
    assert json.loads((directory / "out" / "config.json").read_text()) == {"of": "base"}


def test_a_base_that_is_a_member_too_is_fused_by_any_strategy(
    directory: Path, database: str
) -> None:
    text = (directory / "blend.yaml").read_text().replace("{model: poet,", "{model: base,")
    (directory / "blend.yaml").write_text(text)
    (directory / "arc_halo.yaml").write_text(PROJECT)
    with connect(database, project=directory) as halo:
        halo.project.apply(halo.project.plan())
        found = halo.tensors.load("blend")["w"]
    base, coder = (load_file(f"{name}/model.safetensors")["w"] for name in ("base", "coder"))
    assert np.allclose(found, (0.6 * base + 0.3 * coder) / 0.9, atol=1e-6)


def test_a_project_is_a_recipe_too(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "arc_halo.yaml").write_text(PROJECT)
    assert fuse("--output", "json", recipe=".") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["reactor"], facts["strategy"], facts["tensor_count"]) == ("blend", "linear", 3)


def test_what_is_there_is_overwritten_by_force_only(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fuse() == 0
    before = (directory / "out" / "model.safetensors").read_bytes()
    write_recipe(directory, "ties")
    assert fuse() == 5
    assert "--force" in capsys.readouterr().err
    assert (directory / "out" / "model.safetensors").read_bytes() == before
    assert fuse("--force") == 0
    assert (directory / "out" / "model.safetensors").read_bytes() != before


MISTAKES = {
    "a file too few": (
        ["--from-files", "base=base", "--from-files", "poet=poet"],
        64,
        "no file is given for coder",
    ),
    "a name too many": (
        [p for n in (*NAMES, "extra") for p in ("--from-files", f"{n}={n}")],
        64,
        "names no model 'extra'",
    ),
    "no equals sign": (["--from-files", "base"], 64, "is not MODEL=PATH"),
    "no such file": (
        [p for n in NAMES for p in ("--from-files", f"{n}=nowhere")],
        4,
        "AH025",
    ),
    "no such reactor": (
        [*(p for n in NAMES for p in ("--from-files", f"{n}={n}")), "--reactor", "blond"],
        4,
        "did you mean 'blend'?",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_and_nothing_is_written(
    directory: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    arguments, code, told = MISTAKES[mistake]
    assert run(["fuse", "run", "blend.yaml", *arguments, "--to-dir", "out"]) == code
    assert told in capsys.readouterr().err
    assert not (directory / "out").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: {**t, "w": t["w"][:4]}, r"w: shape \[300, 70\] in poet, [[]4, 70[]]"),
        (lambda t: {k: v for k, v in t.items() if k != "b"}, "b: only in poet"),
        (lambda t: {**t, "ids": t["ids"] + 1}, "ids: dtype I64 cannot be averaged"),
        (lambda t: {**t, "b": t["b"] * np.float32("nan")}, "coder: 'b' holds NaN or infinity"),
    ],
    ids=["shape", "missing", "integers", "nan"],
)
def test_models_that_do_not_fit_are_refused(
    directory: Path, capsys: pytest.CaptureFixture[str], change, told: str
) -> None:
    file = directory / "coder" / "model.safetensors"
    save_file(change(load_file(file)), file)
    assert fuse() in (1, 4)
    message = capsys.readouterr().err
    assert told.replace("\\", "").replace("[[]", "[").replace("[]]", "]") in message
    assert not (directory / "out" / "model.safetensors").exists()


MEASURE = """
import resource, sys
from arc_halo.cli.main import run
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
code = run(["fuse", "run", "blend.yaml", "--from-files", "base=base", "--from-files", "poet=poet",
            "--from-files", "coder=coder", "--to-dir", "out", "--memory", "8MiB", "--quiet"])
small = peak()
code |= run(["fuse", "run", "blend.yaml", "--from-files", "base=large", "--from-files",
             "poet=large", "--from-files", "coder=large", "--to-dir", "out", "--memory", "8MiB",
             "--quiet", "--force"])
print(code, peak() - small)
"""


@pytest.mark.parametrize("strategy", ["linear", "ties", "della_linear", "model_stock"])
def test_memory_does_not_grow_with_the_tensors(directory: Path, strategy: str) -> None:
    write_recipe(directory, strategy)
    (directory / "large").mkdir()
    large = np.random.default_rng(1).normal(size=(12_000, 2_000)).astype(np.float32)
    save_file({"w": large}, directory / "large" / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    code, grown_mib = done.stdout.split()[-2:]
    assert code == "0"
    assert float(grown_mib) < 24  # one input alone has 92 MiB


PRIVATE = """
import sys, threading
def private_mib():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_")) / 1024
import numpy
bare, most, ended = private_mib(), [], threading.Event()
def watch():
    while not ended.wait(0.01):
        most.append(private_mib())
watcher = threading.Thread(target=watch)
watcher.start()
from arc_halo.cli.main import run
files = [part for name in ("base", "poet", "coder") for part in ("--from-files", f"{name}=large")]
code = run(["fuse", "run", "blend.yaml", *files, "--to-dir", "out", "--memory", "64MiB", "--quiet"])
ended.set()
watcher.join()
print(code, max(most) - bare)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells it")
@pytest.mark.parametrize("strategy", ["ties", "della_linear"])
def test_the_memory_asked_for_holds_all_but_the_interpreter(directory: Path, strategy: str) -> None:
    write_recipe(directory, strategy)
    (directory / "large").mkdir()
    large = np.random.default_rng(1).normal(size=(12_000, 2_000)).astype(np.float32)
    save_file({"w": large}, directory / "large" / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    code, private_mib = done.stdout.split()[-2:]
    assert code == "0"
    assert float(private_mib) <= 64
