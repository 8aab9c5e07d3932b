"""Plugins from another commit, in a real repository: what a pull request brings is never run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from arc_halo import Project
from arc_halo.cli.main import run
from arc_halo.errors import InvalidInputError, ManifestError, PluginError
from arc_halo.manifest.reading import read_manifest
from arc_halo.plugins import PluginManager

STRATEGY = """
from arc_halo import FusionStrategy, hookimpl

def blend(ctx, tensors):
    return tensors[0]

@hookimpl
def arc_halo_fusion_strategies():
    yield FusionStrategy(
        name="{name}", version=1, summary="one of them", fuse_weights=blend,
        params_schema={{"type": "object", "additionalProperties": False}},
    )
"""

REPORTING = """
import os, pathlib
pathlib.Path(os.environ["CALLED"]).touch()
"""


def git(directory: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", directory, "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def write(directory: Path, **more: object) -> None:
    manifest = {"version": 1, "project": "work", **more}
    (directory / "arc_halo.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project two directories down in a repository, whose `main` has one plugin."""
    called = tmp_path / "called"
    monkeypatch.setenv("CALLED", str(called))
    directory = tmp_path / "repository" / "teams" / "work"
    (directory / "plugins").mkdir(parents=True)
    (directory / "plugins" / "first.py").write_text(STRATEGY.format(name="first"))
    write(directory, plugins=["plugins/first.py"], strategies={"s": {"uses": "first"}})
    root = tmp_path / "repository"
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "base")
    git(root, "checkout", "-qb", "change")
    yield directory
    assert not called.exists(), "a plugin of the pull request was run"


def read(directory: Path, ref: str = "main"):
    return read_manifest(directory, env=dict(os.environ), plugins_from=ref)


def loaded(directory: Path) -> str:
    return PluginManager.load({"f.py": directory / "plugins" / "first.py"}).providers[-1].version


def test_a_changed_plugin_is_loaded_as_the_base_has_it(project):
    version = loaded(project)
    (project / "plugins" / "first.py").write_text(REPORTING)
    git(project, "commit", "-qam", "change")
    manifest = read(project)
    assert "first" in manifest.plugins.strategies
    provider = manifest.plugins.providers[-1]
    assert (provider.file, provider.version) == ("plugins/first.py", version)
    assert manifest.plugins.remarks == {
        "plugins/first.py": "plugins/first.py was changed, and is loaded as main has it"
    }


def test_a_plugin_that_another_file_is_listed_for_is_not_loaded(project):
    (project / "plugins" / "evil.py").write_text(REPORTING)
    write(project, plugins=["plugins/evil.py"], strategies={"s": {"uses": "first"}})
    manifest = read(project)
    assert list(manifest.plugins.files) == ["plugins/first.py"]
    assert sorted(manifest.plugins.remarks.values()) == [
        "plugins/evil.py is new, and not loaded: main does not list it",
        "plugins/first.py is loaded all the same: main lists it",
    ]


def test_a_link_in_the_checkout_leads_nowhere(project):
    (project / "plugins" / "evil.py").write_text(REPORTING)
    (project / "plugins" / "first.py").unlink()
    (project / "plugins" / "first.py").symlink_to("evil.py")
    assert "first" in read(project).plugins.strategies


def test_what_needs_a_new_plugin_is_told_so_at_its_line(project):
    (project / "plugins" / "second.py").write_text(REPORTING)
    write(
        project,
        plugins=["plugins/first.py", "plugins/second.py"],
        strategies={"s": {"uses": "second"}},
    )
    with pytest.raises(ManifestError) as caught:
        read(project)
    told = {problem.code: problem for problem in caught.value.problems}
    assert "second" in told["AH032"].message
    assert told["AH033"].message.startswith("plugins/second.py is new, and not loaded")
    assert told["AH033"].line == 5
    assert told["AH033"].hint == "merge the plugin first, then what uses it"


def test_a_project_without_changes_to_plugins_says_nothing(project):
    write(project, plugins=["plugins/first.py"])
    assert read(project).plugins.remarks == {}


def test_a_project_that_is_new_has_no_plugins_yet(project):
    git(project, "rm", "-q", "--cached", "arc_halo.yaml")
    git(project, "commit", "-qm", "none")
    (project / "plugins" / "first.py").write_text(REPORTING)
    write(project, plugins=["plugins/first.py"])
    assert read(project, "HEAD").plugins.files == {}


@pytest.mark.parametrize("ref", ["nowhere", "--output=x", "main:arc_halo.yaml", ""])
def test_a_commit_that_there_is_not_is_an_error(project, ref):
    with pytest.raises(InvalidInputError) as caught:
        read(project, ref)
    assert "fetch-depth" in caught.value.hint


def test_a_plugin_that_the_base_only_links_to_is_refused(project):
    (project / "plugins" / "link.py").symlink_to("first.py")
    write(project, plugins=["plugins/link.py"])
    git(project, "add", "-A")
    git(project, "commit", "-qm", "link")
    with pytest.raises(InvalidInputError, match=r"link\.py is a link"):
        read(project, "HEAD")


def test_a_project_outside_of_a_repository_is_told_so(tmp_path):
    write(tmp_path)
    with pytest.raises(InvalidInputError, match="not a git repository"):
        read(tmp_path)


def test_a_broken_plugin_of_the_base_is_named_by_its_label(project):
    (project / "plugins" / "first.py").write_text("import nothing_like_it")
    git(project, "commit", "-qam", "broken")
    with pytest.raises(PluginError, match=r"plugins/first\.py:1: the plugin cannot be imported"):
        read(project, "HEAD")


def test_validate_and_plan_tell_what_was_not_run(project, database, capsys, monkeypatch):
    (project / "plugins" / "first.py").write_text(REPORTING)
    monkeypatch.chdir(project)
    assert run(["validate", "--plugins-from", "main"]) == 0
    assert "plugins/first.py was changed, and is loaded as main has it" in capsys.readouterr().err
    with Project(project, database_url=database, environ={}, plugins_from="main") as opened:
        assert opened.plan().notes == (
            "plugins/first.py was changed, and is loaded as main has it",
        )
