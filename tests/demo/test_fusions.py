"""The ten fusions of the demo: figures, chart and pages say what the weights do."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import llama
import pytest
import yaml

from arc_halo.cli.main import run

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FUSIONS = EXAMPLES / "fusions"
TRAINED = ("base", "scripture", "python")
REACTORS = yaml.safe_load((FUSIONS / "reactors.yaml").read_text())["reactors"]
RESULTS = json.loads((FUSIONS / "results.json").read_text())
LOSSES: dict[str, dict[str, float]] = RESULTS["losses"]
NO_PARAMS = "\N{EN DASH}"
QUARTER = 32  # windows of 128
REST = {
    model: {
        text: (4 * loss - RESULTS["first_quarter"][model][text]) / 3 for text, loss in each.items()
    }
    for model, each in LOSSES.items()
}
"""Losses on the windows that no param was chosen by."""


def fused(reactor: str, directory: Path) -> Path:
    """The directory that `arc-halo fuse run` writes for a reactor of the example."""
    files = [
        word
        for name in TRAINED
        for word in ("--from-files", f"{name}={EXAMPLES / 'weights' / name}")
    ]
    recipe = ["fuse", "run", str(FUSIONS), "--reactor", reactor, *files]
    assert run([*recipe, "--to-dir", str(directory / reactor), "--quiet"]) == 0
    return directory / reactor


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def test_the_results_are_of_the_reactors_and_of_what_they_fuse():
    assert LOSSES.keys() == {*TRAINED, *REACTORS}
    assert [reactor["produces"]["model"] for reactor in REACTORS.values()] == list(REACTORS)


@pytest.mark.parametrize(
    ("model", "known"),
    [*((name, name) for name in TRAINED), ("linear", "linear 0.5/0.5, rounded to bfloat16")],
)
def test_the_results_are_those_of_the_weights_own_table(model, known):
    table = json.loads((EXAMPLES / "weights" / "losses.json").read_text())["losses"]
    assert LOSSES[model] == pytest.approx(table[known], abs=6e-5)


@pytest.mark.parametrize(("model", "text"), [("ties", "general"), ("breadcrumbs", "python")])
def test_a_fusion_has_the_loss_of_the_results(tmp_path, model, text):
    words = (EXAMPLES / "weights" / f"eval_{text}.txt").read_bytes()
    loss = llama.mean_nats(fused(model, tmp_path), words, QUARTER)
    assert loss == pytest.approx(RESULTS["first_quarter"][model][text], abs=6e-5)


def test_the_chart_is_drawn_from_the_results():
    chart = script(FUSIONS / "chart.py")
    assert chart.CHART.read_text() == chart.draw(chart.read())


def test_the_page_has_a_row_for_each_model_with_its_perplexities():
    page = (ROOT / "docs" / "demo.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [_row(model) for model in script(FUSIONS / "chart.py").read()]


def test_ties_is_better_than_the_base_on_each_text():
    for losses in (LOSSES, REST):
        assert all(losses["ties"][text] < losses["base"][text] for text in losses["base"])


def test_the_fusions_of_scaled_changes_are_better_than_the_base_on_average():
    scaled = [name for name, each in REACTORS.items() if each.get("params", {}).get("scale") == 0.3]
    assert len(scaled) == 6
    for losses in (LOSSES, REST):
        assert all(_mean(losses[name]) < _mean(losses["base"]) for name in scaled)


def test_the_whole_sum_of_both_changes_is_too_much():
    whole = LOSSES["task_arithmetic_full"]
    assert all(whole[text] > LOSSES["base"][text] for text in whole)
    assert whole["general"] > max(LOSSES[name]["general"] for name in TRAINED)


@pytest.mark.campaign
@pytest.mark.parametrize("model", LOSSES)
def test_transformers_computes_the_results(tmp_path, model):
    """With torch and transformers installed: `pytest -m campaign tests/demo`."""
    perplexity = script(EXAMPLES / "perplexity.py")
    directory = EXAMPLES / "weights" / model if model in TRAINED else fused(model, tmp_path)
    computed = perplexity.as_json({model: perplexity.losses_of(directory)})
    for part in ("losses", "first_quarter"):
        # Strategies with sines and singular vectors have other bits on other machines.
        assert computed[part][model] == pytest.approx(RESULTS[part][model], abs=2e-4)


def _row(model: str) -> str:
    params = REACTORS.get(model, {}).get("params", {})
    written = ", ".join(f"{name}: {value:g}" for name, value in params.items())
    losses = [*LOSSES[model].values(), _mean(LOSSES[model])]
    bases = [*LOSSES["base"].values(), _mean(LOSSES["base"])]
    cells = (
        f"**{math.exp(loss):.3f}**" if loss < base else f"{math.exp(loss):.3f}"
        for loss, base in zip(losses, bases, strict=True)
    )
    return f"| `{model}` | {written or NO_PARAMS} | {' | '.join(cells)} |"


def _mean(losses: dict[str, float]) -> float:
    return sum(losses.values()) / len(losses)
