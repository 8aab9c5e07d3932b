"""What people do wrong, and what they are told."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

import arc_halo
from arc_halo import embedded
from arc_halo.cli.main import run

ROOT = Path(__file__).parents[2]
PYTHON = "examples/weights/python/model.safetensors"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The demo project, not applied, and the current directory."""
    directory = tmp_path / "demo"
    for name in ("reactors", "plugins", "examples"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns(".arc-halo"))
    shutil.copy(ROOT / "arc_halo.yaml", directory)
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def demo(checkout, database, monkeypatch):
    """The demo project, applied."""
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    assert run(["apply"]) == 0
    return checkout


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_source_that_is_gone_keeps_its_weights_and_says_so(demo, capsys):
    (demo / PYTHON).unlink()
    assert run(["plan", "--detailed-exitcode"]) == 0
    assert "is not here; its weights are kept as recorded" in capsys.readouterr().out


def test_a_path_that_was_never_imported_is_not_taken_for_the_recorded_one(demo, capsys):
    edit(demo / "arc_halo.yaml", PYTHON, "examples/weights/pyhton/model.safetensors")
    assert run(["plan"]) == 4
    assert "error[AH025]" in capsys.readouterr().err


def test_weights_that_are_absent_are_told_before_an_empty_database_is_migrated(
    checkout, empty_database, monkeypatch, capsys
):
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", empty_database)
    (checkout / PYTHON).unlink()
    assert run(["apply"]) == 4
    shown = capsys.readouterr().err
    assert "error[AH025]" in shown
    assert "migrated" not in shown
    with psycopg.connect(empty_database) as conn:
        assert conn.execute("SELECT to_regclass('models')").fetchone() == (None,)
    assert run(["apply", "--target", "model/base"]) == 0


def test_a_promised_digest_is_checked_where_the_file_is_not(demo, capsys):
    (demo / PYTHON).unlink()
    promise = f"{{source: {PYTHON}, digest: 'sha256:{'a' * 64}'}}"
    edit(demo / "arc_halo.yaml", f"weights: {PYTHON}", f"weights: {promise}")
    assert run(["plan"]) == 4
    assert "error[AH063]" in capsys.readouterr().err


def test_a_moved_source_is_an_update_without_an_import(demo, capsys):
    (demo / PYTHON).rename(demo / "moved.safetensors")
    edit(demo / "arc_halo.yaml", PYTHON, "moved.safetensors")
    capsys.readouterr()
    assert run(["apply"]) == 0
    assert "1 updated. 6.1 MB of weights, 0 B new" in capsys.readouterr().out
    (demo / "moved.safetensors").unlink()
    assert run(["plan", "--detailed-exitcode"]) == 0


def test_a_pointer_of_git_lfs_is_told_from_a_broken_file(demo, capsys):
    (demo / PYTHON).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\n")
    assert run(["plan"]) == 4
    assert "hint: run `git lfs pull`" in capsys.readouterr().err


def test_members_that_cannot_be_fused_are_refused_before_anything_is_imported(
    checkout, database, monkeypatch, capsys
):
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"model.norm.weight": np.zeros(7, np.float32)}, checkout / PYTHON)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    assert run(["plan"]) == 4
    shown = capsys.readouterr().err
    assert "error[AH070]: reactors/story.yaml:5: reactors.story: scripture@1.0.0, python" in shown
    assert "lm_head.weight: only in scripture@1.0.0" in shown


@pytest.mark.parametrize("output", ["text", "markdown"])
def test_one_members_weight_is_shown_before_and_after(demo, capsys, output):
    edit(demo / "reactors/story.yaml", "role: specialist, weight: 0.5", "weight: 0.25")
    capsys.readouterr()
    assert run(["plan", "--output", output]) == 0
    shown = capsys.readouterr().out
    assert "members[python@1.0.0].weight: 0.5 -> 0.25" in shown
    assert "members[scripture@1.0.0]" not in shown


@pytest.mark.parametrize("secret", ["pa/ssW0rd", "12/ssW0rd"])
@pytest.mark.parametrize("command", [["plan"], ["db", "url"], ["db", "status"], ["doctor"]])
def test_a_password_with_a_slash_is_refused_and_never_shown(
    checkout, monkeypatch, capsys, secret, command
):
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", f"postgresql://halo:{secret}@127.0.0.1:1/halo")
    assert run(command) == 1
    shown = capsys.readouterr()
    assert "ssW0rd" not in shown.out + shown.err
    assert "%2F" in shown.out + shown.err


@pytest.mark.parametrize("command", [["lineage", "x"], ["show", "model/x"], ["export", "x", "-oy"]])
def test_a_reading_command_makes_no_database_where_there_is_none(
    tmp_path, monkeypatch, capsys, command
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARC_HALO_DATABASE_URL", raising=False)
    assert run(command) == 64
    assert "there is no arc_halo.yaml here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error_and_no_traceback(demo, capsys):
    assert run(["export", "story", "-o", "/proc/here"]) == 1
    assert run(["init", "/proc/here", "--name", "here"]) == 1
    assert capsys.readouterr().err.count("error[AH015]: /proc/here") == 2


def test_full_disks_behind_the_output_are_an_error(demo):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "arc_halo", "get"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["123", "true", "null", "1e3"])
def test_init_quotes_names_that_yaml_reads_otherwise(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert run(["init", name]) == 0
    assert run(["validate", "--project", name]) == 0


def test_a_model_may_be_named_by_its_address(demo, capsys):
    assert run(["lineage", "model/story"]) == 0
    assert "scripture@1.0.0" in capsys.readouterr().out


def test_a_failing_plugin_is_told_with_its_line(demo, capsys):
    (demo / "plugins/boom.py").write_text(
        "from arc_halo import FusionStrategy, hookimpl\n"
        "@hookimpl\n"
        "def arc_halo_fusion_strategies():\n"
        "    yield FusionStrategy(name='boom', summary='fails', fuse_weights=boom)\n"
        "def boom(tensors, context):\n"
        "    tensors[0][:] = 0\n"
        "    return tensors[0]\n"
    )
    listed = "- plugins/midrange.py"
    edit(demo / "arc_halo.yaml", listed, f"{listed}\n  - plugins/boom.py")
    edit(demo / "reactors/story.yaml", "strategy: even", "strategy: boom")
    assert run(["apply"]) == 1
    shown = capsys.readouterr().err
    assert "error[AH071]: the strategy 'boom' failed" in shown
    assert "boom.py:6)" in shown


def test_sigterm_ends_the_embedded_server_too(checkout):
    environment = {k: v for k, v in os.environ.items() if k != "ARC_HALO_DATABASE_URL"}
    command = [sys.executable, "-m", "arc_halo", "apply"]
    process = subprocess.Popen(
        command, cwd=checkout, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert "migrated" in process.stderr.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode in (143, 0)
    assert not embedded.status(checkout).running


def test_where_there_is_no_manifest_the_hint_names_the_database_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARC_HALO_DATABASE_URL", raising=False)
    assert run(["training", "ls"]) == 64
    assert "`--database-url URL`" in capsys.readouterr().err


def test_the_embedded_database_of_a_directory_needs_no_manifest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARC_HALO_DATABASE_URL", raising=False)
    monkeypatch.delenv("NEON_DATABASE_URL", raising=False)
    try:
        assert run(["training", "ls", "--database-url", "embedded"]) == 4
        shown = capsys.readouterr().err
        assert "error[AH041]" in shown
        assert "run 'arc-halo migrate up'" in shown
        assert run(["migrate", "up"]) == 0
        with arc_halo.connect() as halo, halo.training.session("story@1", name="tune"):
            pass
        capsys.readouterr()
        assert run(["training", "ls"]) == 0
        assert "tune" in capsys.readouterr().out
    finally:
        embedded.stop(tmp_path, force=True)
