"""The demo's ensemble: what it writes and what it foretells are as the pages show it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from arc_halo.cli.main import run
from arc_halo.project import Project

ROOT = Path(__file__).parents[2]
TEXTS = [f"examples/weights/eval_{name}.txt" for name in ("scripture", "python", "general")]


@pytest.fixture
def applied(demo, database, monkeypatch):
    with Project(demo, database_url=database) as project:
        project.apply(project.plan())
    monkeypatch.chdir(demo)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)


@pytest.mark.torch
def test_the_pages_show_the_table_that_is_printed(applied, capsys):
    options = [word for text in TEXTS for word in ("--text", text)]
    assert run(["reactor", "eval", "chorus", *options, "--quiet"]) == 0
    printed = capsys.readouterr().out
    for page in ("README.md", "docs/demo.md"):
        command = f"$ arc-halo reactor eval chorus {' '.join(options)} --quiet"
        assert f"{command}\n{printed}```" in (ROOT / page).read_text(), page


@pytest.mark.torch
def test_the_readme_shows_what_the_cascade_foretells(applied, capsys):
    options = [word for text in TEXTS for word in ("--text", text)]
    assert run(["reactor", "eval", "relay", *options, "--quiet"]) == 0
    printed = capsys.readouterr().out
    command = f"$ arc-halo reactor eval relay {' '.join(options)} --quiet"
    assert f"{command}\n{printed}```" in (ROOT / "README.md").read_text()


@pytest.mark.torch
def test_the_readme_shows_what_the_ensemble_writes(applied, capsys, tmp_path):
    (tmp_path / "prompt.txt").write_text("In the beginning\n")
    assert run(["reactor", "run", "chorus", "--input", str(tmp_path / "prompt.txt")]) == 0
    printed = capsys.readouterr().out
    assert f"| arc-halo reactor run chorus --quiet\n{printed}$" in (ROOT / "README.md").read_text()


@pytest.mark.torch
def test_the_table_comes_as_json_and_markdown_too(applied, capsys):
    text = Path("short.txt")
    text.write_bytes(Path(TEXTS[0]).read_bytes()[:1000])
    arguments = ["reactor", "eval", "chorus", "--text", str(text), "--window", "100", "--output"]
    assert run([*arguments, "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| text | model | loss | perplexity |"
    assert [line.split(" | ")[1] for line in lines[2:]] == [
        "scripture@1.0.0", "python@1.0.0", "chorus",
    ]  # fmt: skip
    assert run([*arguments, "json"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r'"predictions": 990\b', printed)
    assert '"operation": "' in printed


def test_the_demo_is_applied_without_torch(demo, database, monkeypatch):
    import sys

    for package in ("torch", "transformers", "tokenizers"):
        monkeypatch.setitem(sys.modules, package, None)
    with Project(demo, database_url=database) as project:
        project.apply(project.plan())
        assert not project.plan().has_changes


def test_who_runs_it_without_torch_is_told_what_to_install(demo, database, monkeypatch, capsys):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    with Project(demo, database_url=database) as project:
        project.apply(project.plan())
    arguments = ["--project", str(demo), "--database-url", database]
    assert run(["reactor", "eval", "chorus", "--text", str(demo / TEXTS[0]), *arguments]) == 1
    told = capsys.readouterr().err
    assert "scripture@1.0.0: torch is not installed" in told
    assert "pip install 'arc-halo[torch]'" in told


def test_the_readme_shows_the_demos_ensemble():
    declared = (ROOT / "reactors" / "chorus.yaml").read_text()
    shown = "".join(line for line in declared.splitlines(True) if not line.startswith("#"))
    assert shown in (ROOT / "README.md").read_text()
