"""`arc-halo plugin new`: plugins that work as they are written, and names that are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import arc_halo
from arc_halo.cli.main import run

MANIFEST = "version: 1\nproject: shop\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "arc_halo.yaml").write_text(MANIFEST)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(name: str, kind: str = "strategy", *options: str) -> int:
    return run(["plugin", "new", name, "--kind", kind, *options])


def contract(directory: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """pytest by itself, as whoever wrote the plugin runs it."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(Path(arc_halo.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("name", "kind"), [("sum", "strategy"), ("two_words", "codec")])
def test_a_new_plugin_loads_and_keeps_its_contract(
    project: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    assert new(name, kind) == 0
    assert f"  plugins:\n    - plugins/{name}.py\n" in capsys.readouterr().out
    (project / "arc_halo.yaml").write_text(f"{MANIFEST}plugins:\n  - plugins/{name}.py\n")
    assert run(["plugins", "--output", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)["plugins"]
    assert [each["kind"] for each in listed if each["name"] == name] == [kind]
    done = contract(project, f"tests/test_{name}.py")
    assert done.returncode == 0, done.stdout
    # Nothing is left of the template's own name.
    for file in (f"plugins/{name}.py", f"tests/test_{name}.py"):
        assert "plugin_name" not in (project / file).read_text()


def test_a_mistake_in_a_new_plugin_is_found_by_its_test(project: Path) -> None:
    assert new("calm") == 0
    file = project / "plugins" / "calm.py"
    file.write_text(file.read_text().replace("middle + limit", "middle + 2 * limit"))
    done = contract(project, "tests")
    assert done.returncode == 1
    assert "oracle" in done.stdout
    assert new("sparse", "codec") == 0
    file = project / "plugins" / "sparse.py"
    file.write_text(file.read_text().replace('"little"', '"big"'))
    done = contract(project, "tests/test_sparse.py")
    assert done.returncode == 1
    assert "writes other bytes than it did" in done.stdout


@pytest.mark.parametrize("kind", ["strategy", "codec"])
def test_a_new_package_has_what_an_installer_needs(
    project: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    assert new("two_words", kind, "--package", "--to", "out", "--output", "json") == 0
    facts = json.loads(capsys.readouterr().out)
    root = Path("out/halo-two-words")
    assert facts == {
        "name": "two_words",
        "kind": kind,
        "files": [
            str(root / "pyproject.toml"),
            str(root / "README.md"),
            str(root / "src" / "halo_two_words" / "__init__.py"),
            str(root / "tests" / "test_two_words.py"),
        ],
        "add_plugins": [],
    }
    text = (root / "pyproject.toml").read_text()
    assert '[project.entry-points.arc_halo]\ntwo_words = "halo_two_words"\n' in text
    assert kind in (root / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("My-Thing", "use 'my_thing', or "),
        ("2fast", "a letter first"),
        ("lambda", "no word of Python's"),
        ("../up", "use 'up', or "),
        ("", "small letters"),
    ],
)
def test_a_name_that_is_none_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str], name: str, hint: str
) -> None:
    assert new(name) == 4
    said = capsys.readouterr().err
    assert "AH006" in said
    assert hint in said
    assert not (project / "plugins").exists()


@pytest.mark.parametrize(("name", "kind"), [("linear", "strategy"), ("zstd", "codec")])
@pytest.mark.parametrize("options", [[], ["--package"], ["--force"]], ids=str)
def test_a_name_that_is_taken_is_refused(
    project: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    kind: str,
    options: list[str],
) -> None:
    assert new(name, kind, *options) == 1
    said = capsys.readouterr().err
    assert f"AH031]: {name!r} is the name of a {kind} of arc-halo" in said
    assert "hint: choose another" in said
    assert list(project.iterdir()) == [project / "arc_halo.yaml"]


def test_a_name_that_another_file_of_the_project_has_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new("calm") == 0
    (project / "plugins" / "calm.py").rename(project / "mine.py")
    (project / "arc_halo.yaml").write_text(MANIFEST + "plugins: [mine.py]\n")
    assert new("calm", "strategy", "--force") == 1
    assert "of mine.py already" in capsys.readouterr().err
    assert new("calm", "codec", "--force") == 0


def test_what_is_there_is_overwritten_by_force_only(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new("calm") == 0
    file = project / "plugins" / "calm.py"
    written = file.read_text()
    file.write_text("# mine\n")
    assert new("calm") == 5
    said = capsys.readouterr().err
    assert "plugins/calm.py is there already" in said
    assert "--force" in said
    assert file.read_text() == "# mine\n"
    assert new("calm", "strategy", "--force") == 0
    assert file.read_text() == written


def test_nothing_is_written_where_one_file_is_there(project: Path) -> None:
    (project / "tests").mkdir()
    (project / "tests" / "test_calm.py").touch()
    assert new("calm") == 5
    assert not (project / "plugins").exists()


def test_a_plugin_that_is_listed_already_can_be_written(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "arc_halo.yaml").write_text(MANIFEST + "plugins: [./plugins/calm.py]\n")
    assert new("calm") == 0
    said = capsys.readouterr()
    assert "there is no plugin file ./plugins/calm.py" in said.err
    # And once more, now that it is loaded.
    assert new("calm", "strategy", "--force") == 0
    assert "Add to arc_halo.yaml" not in capsys.readouterr().out


def test_it_needs_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert new("calm", "strategy", "--output", "markdown") == 0
    assert capsys.readouterr().out.startswith("```text\n+ plugins/calm.py\n")
    assert new("calm", "strategy", "--to", "elsewhere") == 0
    assert "    - plugins/calm.py\n" in capsys.readouterr().out
    assert (tmp_path / "elsewhere" / "tests" / "test_calm.py").is_file()


def test_from_a_directory_below_it_is_written_into_the_project(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "reactors").mkdir()
    monkeypatch.chdir(project / "reactors")
    assert new("calm") == 0
    assert (project / "plugins" / "calm.py").is_file()
    assert new("quiet", "strategy", "--to", "../more") == 0
    assert "    - more/plugins/quiet.py\n" in capsys.readouterr().out
