"""A plan that had nothing to do is known again without reading the manifest, until it moves."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import psycopg
import pytest

from arc_halo import Project
from arc_halo.reconcile import unchanged
from arc_halo.store.standing import standing

BUILDERS = ("numpy", "jsonschema", "arc_halo.plugins", "arc_halo.reconcile.applying")

PLUGIN = """
from arc_halo import hookimpl

@hookimpl
def arc_halo_before_apply(plan):
    return None
"""


@pytest.fixture
def settled(workshop, monkeypatch):
    """A workshop in which there is nothing to do, whose files count as old enough to trust."""
    monkeypatch.setattr(unchanged, "SETTLED_SECONDS", 0)
    (workshop.directory / "parts").mkdir()
    (workshop.directory / "config.json").write_text('{"hidden_size": 8}')
    (workshop.directory / "guard.py").write_text(PLUGIN)
    weights = workshop.weights("a.safetensors", {"t": np.ones(3, np.float32)})
    workshop.write(
        {
            "include": ["parts/*.yaml"],
            "plugins": ["guard.py"],
            "models": {
                "a@1": {"type": "other", "weights": weights, "description": "${WORDS:-none}"},
                "b@1": {"type": "other", "architecture": "config.json"},
            },
        }
    )
    workshop.write({"version": 1, "strategies": {"even": {"uses": "linear"}}}, "parts/one.yaml")
    workshop.apply()
    workshop.plan()
    return workshop


def plan(workshop, environ=None, **options):
    """A plan, and whether the manifest was read for it."""
    project = Project(workshop.directory, database_url=workshop.url, environ=environ or {})
    with project:
        made = project.plan(**options)
        return made, "manifest" in vars(project)


def test_what_builds_and_commits_is_not_even_imported(settled):
    """It would take a fifth of the time."""
    code = (
        "import sys; from arc_halo.reconcile import unchanged; unchanged.SETTLED_SECONDS = 0\n"
        f"from arc_halo.cli.main import run; assert run(['plan', "
        f"'--database-url', {settled.url!r}]) == 0\n"
        f"print([m for m in {BUILDERS!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=settled.directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["Nothing to do: 3 resources are as declared.", "[]"]


def test_nothing_is_read_while_nothing_moves(settled):
    made, was_read = plan(settled)
    assert not was_read
    assert not made.has_changes
    assert made.unchanged_count == 3
    assert (made.base_revision, made.project) == (1, "work")


def rewrite(name, text):
    return lambda workshop: (workshop.directory / name).write_text(text)


def same_size(workshop):
    path = workshop.directory / "config.json"
    stat = path.stat()
    path.write_text('{"hidden_size": 9}')
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def sql(text):
    return lambda workshop: workshop.sql(text)


def other_weights(workshop):
    workshop.weights("a.safetensors", {"t": np.zeros(3, np.float32)})


MOVES = {
    "an included file": rewrite("parts/one.yaml", "version: 1\nstrategies: {odd: {uses: linear}}"),
    "a new included file": rewrite("parts/two.yaml", "version: 1\nmodels: {c@1: {type: other}}"),
    "an architecture, its times restored": same_size,
    "weights": other_weights,
    "a row": sql("UPDATE models SET description = 'by hand'"),
    "a row that went": sql("DELETE FROM fusion_strategies"),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_what_moves_is_noticed(settled, move):
    move(settled)
    made, was_read = plan(settled)
    assert was_read
    assert made.has_changes or made.orphans


def test_variables_plugins_and_options_are_noticed(settled):
    made, was_read = plan(settled, environ={"WORDS": "some"})
    assert (was_read, made.has_changes) == (True, True)
    assert plan(settled, prune=True)[1]
    assert plan(settled, targets=["model/a"])[1]
    (settled.directory / "guard.py").write_text(PLUGIN + "# another\n")
    assert plan(settled)[1]


def test_an_apply_by_somebody_else_is_noticed(settled, open_workshop):
    other = open_workshop("elsewhere")
    other.apply({"strategies": {"new": {"uses": "linear"}}})
    made, was_read = plan(settled)
    assert was_read
    assert [str(orphan.key) for orphan in made.orphans] == ["strategy/new"]
    again, was_read = plan(settled)
    assert not was_read
    assert again.orphans == made.orphans


def test_a_file_that_changed_just_now_is_not_trusted(settled, monkeypatch):
    monkeypatch.setattr(unchanged, "SETTLED_SECONDS", 3600)
    (settled.directory / "config.json").write_text('{"hidden_size":  8}')
    for _ in range(2):
        assert plan(settled)[1]


def test_a_broken_note_is_no_error(settled):
    note = settled.directory / ".arc-halo" / "unchanged.json"
    whole = json.loads(note.read_text())
    for text in (
        "",
        "[]",
        "{}",
        json.dumps({**whole, "plan": {}}),
        json.dumps({**whole, "files": 1}),
    ):
        note.write_text(text)
        assert plan(settled)[1]


def test_no_cache_reads_anew(settled):
    project = Project(settled.directory, database_url=settled.url, environ={}, rereads=True)
    with project:
        project.plan()
        assert "manifest" in vars(project)


def test_a_copy_of_the_database_is_another_one(settled, create_database, open_workshop):
    """A branch begins with the same numbers, and goes on with the same ones."""
    copy = create_database(settled.url)
    manifest = (settled.directory / "arc_halo.yaml").read_text()
    here, there = (manifest.replace("none}", f"{name}}}") for name in ("here", "there"))
    elsewhere = Project(settled.directory, database_url=copy, environ={})
    with elsewhere:
        (settled.directory / "arc_halo.yaml").write_text(there)
        elsewhere.apply(elsewhere.plan())
    (settled.directory / "arc_halo.yaml").write_text(here)
    settled.apply()
    plan(settled)
    assert not plan(settled)[1]
    with Project(settled.directory, database_url=copy, environ={}) as project:
        assert project.plan().has_changes
        with project.connection() as conn, psycopg.connect(settled.url) as own:
            assert standing(conn, "work") != standing(own, "work")
