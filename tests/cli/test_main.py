"""The program as its users meet it: output, exit codes, interruptions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from arc_halo.cli.main import arc_halo, run

ROOT = Path(__file__).parents[2]
HEAVY = ("numpy", "psycopg", "jsonschema", "fastjsonschema", "yaml", "rich", "yoyo")

MANIFEST = """\
version: 1
project: shop
models:
  first@1.0.0:
    type: transformer
    architecture: {model_type: llama, num_hidden_layers: 2, num_attention_heads: 2, hidden_size: 8}
  second@1.0.0: {type: transformer, architecture: {}}
strategies:
  even: {uses: linear}
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "arc_halo.yaml").write_text(MANIFEST)
    return tmp_path


@pytest.fixture
def shop(project, database, monkeypatch):
    """Runs a command in the project, on a database of the test's own; its exit code."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    return lambda *arguments: run(list(arguments))


def edit(project: Path, old: str, new: str) -> None:
    path = project / "arc_halo.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from arc_halo.cli.main import run; run(['--help']); "
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "apply" in done.stdout


def commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield pytest.param(command, id=" ".join((*path, name)))


@pytest.mark.parametrize("command", list(commands(arc_halo)))
def test_every_command_has_help_with_an_example(command):
    assert command.help
    assert "Example" in command.help
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_apply_says_what_it_did_and_the_second_has_nothing_to_do(shop, capsys):
    assert shop("apply") == 0
    first = capsys.readouterr().out.splitlines()
    assert first[:3] == ["+ strategy/even", "+ model/first@1.0.0", "+ model/second@1.0.0"]
    assert first[-1].startswith("Applied revision 1 of shop: 3 created.")
    assert shop("apply") == 0
    assert capsys.readouterr().out == "Nothing to do: 3 resources are as declared.\n"


def test_plan_exits_with_2_only_when_asked_and_changed(shop):
    assert shop("plan") == 0
    assert shop("plan", "--detailed-exitcode") == 2
    assert shop("apply") == 0
    assert shop("plan", "--detailed-exitcode") == 0


def test_plan_changes_nothing(shop, capsys):
    shop("plan")
    shop("plan")
    assert capsys.readouterr().out.count("Plan: 3 to create.") == 2


def test_a_changed_field_is_shown_before_and_after(shop, project, capsys):
    shop("apply")
    edit(project, "num_hidden_layers: 2", "num_hidden_layers: 3")
    capsys.readouterr()
    assert shop("plan") == 0
    assert capsys.readouterr().out.splitlines() == [
        "~ model/first@1.0.0",
        "    architecture.num_hidden_layers: 2 -> 3",
        "Plan: 1 to update.",
    ]


def test_json_and_markdown_say_the_same_as_text(shop, capsys):
    shop("plan", "--output", "json")
    plan = json.loads(capsys.readouterr().out)
    assert plan["format_version"] == "1.0"
    assert plan["summary"] == {"create": 3, "unchanged": 0}
    addresses = [change["address"] for change in plan["resource_changes"]]
    assert addresses == ["strategy/even", "model/first@1.0.0", "model/second@1.0.0"]
    assert plan["resource_changes"][0]["change"]["actions"] == ["create"]
    shop("plan", "--output", "markdown")
    markdown = capsys.readouterr().out
    assert "**Plan: 3 to create.**" in markdown
    assert all(f"`+ {address}`" in markdown for address in addresses)


def test_the_output_of_apply_is_one_json_document(shop, capsys):
    shop("apply", "--output", "json")
    report = json.loads(capsys.readouterr().out)
    assert report["revision"] == 1
    assert report["summary"] == {"create": 3}


def test_an_invalid_manifest_exits_with_4_and_every_place(shop, project, capsys):
    edit(project, "type: transformer\n", "type: transformr\n")
    edit(project, "strategies:", "strategees:")
    assert shop("apply") == 4
    shown = capsys.readouterr().err
    assert "arc_halo.yaml:5:11: error[AH006]" in shown
    assert "arc_halo.yaml:8:1: error[AH003]: unknown field 'strategees'" in shown
    assert "did you mean 'strategies'?" in shown
    assert "2 errors in 1 file" in shown


def test_wrong_usage_exits_with_64(shop, capsys):
    assert shop("aply") == 64
    assert shop("plan", "--no-such-option") == 64
    assert "No such option" in capsys.readouterr().err


def test_outside_of_a_project_the_hint_is_init(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["plan"]) == 64
    assert "arc-halo init" in capsys.readouterr().err


def test_deleting_needs_a_yes(shop, project, capsys):
    shop("apply")
    edit(project, "  second@1.0.0: {type: transformer, architecture: {}}\n", "")
    capsys.readouterr()
    assert shop("plan") == 0
    assert "? model/second@1.0.0 is no longer declared, and kept" in capsys.readouterr().out
    assert shop("apply", "--prune") == 5
    assert "AH054" in capsys.readouterr().err
    assert shop("apply", "--prune", "--yes") == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("- model/second@1.0.0")


def test_a_protected_resource_stops_destroy(shop, project, capsys):
    edit(project, "{type: transformer, architecture: {}}", "{protected: true, architecture: {}}")
    shop("apply")
    assert shop("destroy", "--yes") == 5
    assert "model/second@1.0.0 is protected" in capsys.readouterr().err
    edit(project, "protected: true", "protected: false")
    assert shop("apply") == 0
    assert shop("destroy", "--yes") == 0
    assert "3 deleted" in capsys.readouterr().out


def test_get_and_show_tell_what_is_there(shop, capsys):
    shop("apply")
    capsys.readouterr()
    assert shop("get", "models", "--output", "json") == 0
    listed = json.loads(capsys.readouterr().out)["resources"]
    assert [item["address"] for item in listed] == ["model/first@1.0.0", "model/second@1.0.0"]
    assert shop("show", "model/first", "--output", "json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["project"], shown["family"]) == ("shop", "llama")
    assert shop("show", "model/third") == 1
    assert shop("show", "nonsense") == 64


def test_no_colours_unless_on_a_terminal_or_forced(shop, monkeypatch, capsys):
    shop("plan")
    assert "\x1b[" not in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    shop("plan")
    assert "\x1b[" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    shop("plan")
    assert "\x1b[" not in capsys.readouterr().out


def test_validate_and_schema_need_no_database(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert run(["validate"]) == 0
    assert capsys.readouterr().out == "3 resources in 1 file: valid.\n"
    assert run(["schema"]) == 0
    assert "linear" in capsys.readouterr().out
    assert not (project / ".arc-halo").exists()


def test_init_writes_a_project_that_applies(tmp_path, database, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    assert run(["init", "shop"]) == 0
    monkeypatch.chdir(tmp_path / "shop")
    for words in ("init -q", "add -A", "-c user.name=ada -c user.email=ada@h.org commit -qm one"):
        subprocess.run(["git", *words.split()], check=True)
    assert run(["plan", "--out", "plan.json"]) == 0
    assert run(["apply", "plan.json"]) == 0
    assert "+ model/tiny@1.0.0" in capsys.readouterr().out
    # The saved plan is ignored: the revision is that of the commit.
    assert run(["history", "--output", "json"]) == 0
    (revision,) = json.loads(capsys.readouterr().out)["revisions"]
    assert revision["git"]["is_dirty"] is False
    assert run(["init"]) == 5
    assert run(["init", str(tmp_path / "Bad Name!"), "--name", "Bad Name!"]) == 4


def test_plugins_lists_who_provides_what(project, monkeypatch, capsys):
    shutil.copytree(ROOT / "plugins", project / "plugins")
    edit(project, "project: shop", "project: shop\nplugins: [plugins/midrange.py]")
    monkeypatch.chdir(project)
    assert run(["plugins", "--output", "json"]) == 0
    listed = {item["name"]: item for item in json.loads(capsys.readouterr().out)["plugins"]}
    assert listed["midrange"]["provider"] == "plugins/midrange.py"
    assert listed["linear"]["provider"].startswith("arc-halo ")
    assert listed["planes"]["kind"] == "codec"


def test_migrate_goes_down_and_up_again(shop, capsys):
    assert shop("migrate", "down", "--to", "0") == 5
    assert shop("migrate", "down", "--to", "0", "--yes") == 0
    capsys.readouterr()
    assert shop("migrate", "status", "--output", "json") == 0
    states = {m["state"] for m in json.loads(capsys.readouterr().out)["migrations"]}
    assert states == {"pending"}
    assert shop("get") == 4
    assert "arc-halo migrate up" in capsys.readouterr().err
    assert shop("migrate", "up") == 0
    assert shop("apply") == 0


def test_export_never_overwrites_by_itself(shop, tmp_path, capsys):
    shop("apply")
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("mine")
    assert shop("export", "first", "-o", str(out)) == 5
    assert (out / "config.json").read_text() == "mine"
    assert shop("export", "first", "-o", str(tmp_path / "other")) == 1
    assert "has no weights" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing_half_done(tmp_path, empty_database):
    directory = tmp_path / "demo"
    for name in ("reactors", "plugins", "examples"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns(".arc-halo"))
    shutil.copy(ROOT / "arc_halo.yaml", directory)
    command = [sys.executable, "-m", "arc_halo", "apply", "--database-url", empty_database]
    process = subprocess.Popen(command, cwd=directory, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "migrated" in process.stderr.readline()
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=30)
    assert process.returncode == 130
    assert complaint.strip() == "interrupted: run the command again to go on"
    assert subprocess.run(command, cwd=directory, check=False, capture_output=True).returncode == 0
