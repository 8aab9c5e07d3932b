"""Runs what the pages show, each in a copy of the demo project of its own.

What a block is decided by its info string:

- `sh`              runs, and must succeed
- `console`         each line after `$ ` runs, and prints what stands below it; `exit=4` names the
                    exit code of the last one, `fresh` begins with a new copy
- `python`          runs
- `yaml`            must be valid
- `… file=NAME`     is written to that file of the copy instead; a `test_*.py` is run at the end
- `text`, `mermaid`, `sql`, and whatever says `norun`, is for reading only

`pip install`, `git clone` and `pytest` are taken out of commands: installing and testing as the
README says is what `.ci/run` does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import arc_halo
from arc_halo.manifest.load import load_text
from arc_halo.manifest.overlay_schema import overlay_schema
from arc_halo.manifest.reading import schema_of
from arc_halo.plugins import PluginManager

ROOT = Path(__file__).parents[2]
DEMO = ("arc_halo.yaml", "reactors", "plugins", "examples")
EMBEDDED = ["README.md", "docs/tutorial.md", "docs/how-to/embedded-server.md"]
"""Pages about the bundled server; the others use a database that the test gives them."""

PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
)

SELDOM = {
    "compare-training-runs", "compute-elsewhere", "declare-training", "ensemble-predictions",
    "export-for-transformers", "inspect-a-merge", "judge-and-correct-answers", "record-a-training",
    "record-inference", "run-your-own-model", "search-embeddings", "serve-reactors",
}  # fmt: skip
"""Pages that run with the campaigns: `pytest -m campaign tests/docs`."""

LANGUAGES = {"sh", "console", "python", "yaml", "text", "mermaid", "sql"}

DONE_BY_CI = re.compile(r"(?:\bpython -m )?\b(?:pip install|git clone|pytest)\b[^&\n]*")
SECONDS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block; `options` are the words of its info string after the language."""

    page: str
    line: int
    language: str
    options: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether something is done with it, other than looking whether it is valid."""
        if "norun" in self.options:
            return False
        return self.language in ("sh", "console", "python") or self.option("file") is not None

    def option(self, name: str) -> str | None:
        values = [word.partition("=")[2] for word in self.options if word.startswith(f"{name}=")]
        return values[0] if values else None


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = enumerate((ROOT / page).read_text().splitlines(), start=1)
    for number, line in lines:
        if not line.startswith("```"):
            continue
        language, *options = line.removeprefix("```").split() or [""]
        body: list[str] = []
        for _, inner in lines:
            if inner == "```":
                break
            body.append(inner)
        yield Block(
            page=page,
            line=number,
            language=language,
            options=tuple(options),
            text="\n".join(body) + "\n",
        )


RUN = [page for page in PAGES if any(block.is_run for block in blocks(page))]


class Reader:
    """Somebody who types what a page shows: the directory they are in goes from block to block."""

    def __init__(self, home: Path, database_url: str | None) -> None:
        self.home = home
        self.environment = _environment(home, database_url)
        self._begin()

    def _begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(dir=self.home))
        self.directory = self.root
        for name in DEMO:
            _copy(ROOT / name, self.root / name)

    def read(self, block: Block) -> None:
        if not block.is_run:
            return
        if "fresh" in block.options:
            self._begin()
        if file := block.option("file"):
            (self.root / file).write_text(block.text)
        elif block.language == "console":
            self._check_transcript(block)
        elif block.language == "sh":
            finished = self._run(DONE_BY_CI.sub("true ", block.text))
            assert finished.returncode == 0, f"{block} failed:\n{finished.stdout}"
        else:
            self._run_python(block)

    def finish(self) -> None:
        """Run the tests that the page wrote."""
        places = [*self.root.glob("test_*.py"), *self.root.glob("tests/test_*.py")]
        if tests := sorted(path.relative_to(self.root).as_posix() for path in places):
            self.directory = self.root
            finished = self._run(f"python -m pytest -q -p no:cacheprovider {' '.join(tests)}")
            assert finished.returncode == 0, finished.stdout

    def _check_transcript(self, block: Block) -> None:
        finished = None
        for command, expected in _steps(block.text):
            finished = self._run(DONE_BY_CI.sub("true ", command))
            shown = finished.stdout.strip("\n")
            assert _comparable(shown) == _comparable(expected), f"{block}: {command}"
        assert finished is not None, f"{block}: no line begins with '$ '"
        assert finished.returncode == int(block.option("exit") or 0), f"{block}"

    def _run_python(self, block: Block) -> None:
        finished = subprocess.run(
            [sys.executable, "-W", "error", "-c", block.text],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert finished.returncode == 0, f"{block} failed:\n{finished.stdout}"

    def _run(self, script: str) -> subprocess.CompletedProcess[str]:
        where = self.home / "where"
        finished = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", f"trap 'pwd >\"{where}\"' EXIT\n{script}"],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        self.directory = Path(where.read_text().strip())
        return finished


@pytest.fixture(scope="module")
def schema() -> dict[str, object]:
    """The schema of manifests that use the demo's plugins."""
    return schema_of(PluginManager.load({"plugins/midrange.py": ROOT / "plugins" / "midrange.py"}))


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.campaign] if Path(page).stem in SELDOM else [])
        for page in RUN
    ],
)
def test_what_a_page_shows_happens(
    page: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = None if page in EMBEDDED else request.getfixturevalue("empty_database")
    reader = Reader(tmp_path, url)
    try:
        for block in blocks(page):
            reader.read(block)
        reader.finish()
    finally:
        _stop_servers(reader)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page: str) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block}: a block of {block.language!r}"


@pytest.mark.parametrize("page", PAGES)
def test_every_piece_of_manifest_is_valid(page: str, schema: dict[str, object]) -> None:
    checked = {key: value for key, value in schema.items() if key not in ("if", "then")}
    of_overlays = overlay_schema(schema)
    fields = schema["properties"]
    assert isinstance(fields, dict)
    for block in blocks(page):
        if block.language != "yaml" or block.is_run:
            continue
        data = load_text(block.text, path=ROOT / page, label=str(block)).data
        if block.text.startswith("# overlays/"):
            Draft202012Validator(of_overlays).validate(data)
        elif data.keys() <= fields.keys():
            Draft202012Validator(checked).validate(data)


def test_the_readme_shows_the_demos_reactor() -> None:
    text = (ROOT / "README.md").read_text()
    story = (ROOT / "reactors" / "story.yaml").read_text()
    declared = "".join(line for line in story.splitlines(True) if not line.startswith("#"))
    assert declared in text


def test_the_readme_begins_with_the_two_commands() -> None:
    first, second = [b.text.strip() for b in blocks("README.md") if b.language == "sh"][:2]
    assert first == "pip install . && arc-halo apply"
    assert second == "pip install '.[test]' && pytest"


def test_the_readmes_losses_are_those_of_the_demo() -> None:
    losses = json.loads((ROOT / "examples" / "weights" / "losses.json").read_text())["losses"]
    losses["story"] = losses["linear 0.5/0.5, rounded to bfloat16"]
    text = (ROOT / "README.md").read_text().replace("**", "")
    for model in ("base", "scripture", "python", "story"):
        figures = (f"{losses[model][on]:.4f}" for on in ("scripture", "python", "general"))
        assert f"| `{model}` | {' | '.join(figures)} |" in text


def _steps(transcript: str) -> Iterator[tuple[str, str]]:
    """(command, output) of each line that begins with `$ `."""
    for part in re.split(r"^\$ ", transcript, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output.strip("\n")


_CHANGING = (
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:\+\d\d:?\d\d)?", "TIME"),
    (r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", "UUID"),
    (r"\b\d+(?:\.\d+)? (?:ms|s)\b", "DURATION"),
    # How well zstandard compresses depends on its version.
    (r"\d+\.\d MB stored|stored in \d+\.\d MB", "STORED"),
)


def _comparable(text: str) -> str:
    """`text` without what differs from run to run."""
    for pattern, name in _CHANGING:
        text = re.sub(pattern, name, text)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _environment(home: Path, database_url: str | None) -> dict[str, str]:
    """An environment in which `arc-halo` is the package under test, and nothing is the user's."""
    programs = home / "bin"
    programs.mkdir()
    for name, arguments in (("arc-halo", " -m arc_halo"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        (programs / name).chmod(0o755)
    ours = ("ARC_HALO_", "NEON_", "PG", "PYTHON", "NO_COLOR", "FORCE_COLOR", "GITHUB_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    given = {"ARC_HALO_DATABASE_URL": database_url, "DATABASE": database_url}
    return {
        **kept,
        **{name: value for name, value in given.items() if value is not None},
        "HOME": str(home),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(arc_halo.__file__).parents[1]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".arc-halo"))
    else:
        shutil.copy(source, target)


def _stop_servers(reader: Reader) -> None:
    """Whatever a failing page left running."""
    for place in reader.home.rglob(".arc-halo/postgres/data"):
        subprocess.run(
            [reader.home / "bin" / "arc-halo", "db", "stop", "--force"],
            cwd=place.parents[2],
            env={**reader.environment, "ARC_HALO_DATABASE_URL": ""},
            stdout=subprocess.DEVNULL,
            check=False,
        )
