"""Names, sizes and files that come from anywhere: no traceback, and nothing a terminal obeys."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from arc_halo.cli.main import run


@pytest.fixture
def shell(tmp_path, database, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    return lambda *arguments: run([str(argument) for argument in arguments])


def write(path, names):
    header = {
        name: {"dtype": "U8", "shape": [1], "data_offsets": [at, at + 1]}
        for at, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(len(names))))
    return path


NAMES = ["\x1b[31mred", "two\nlines", "\x9b2J", "a|b", "\u2028"]


@pytest.mark.parametrize("form", ["text", "markdown", "json"])
def test_names_of_tensors_cannot_steer_the_terminal(shell, tmp_path, capsys, form):
    assert shell("import", write(tmp_path / "m.safetensors", NAMES), "--as", "odd@1") == 0
    capsys.readouterr()
    assert shell("tensors", "ls", "odd", "--output", form) == 0
    told = capsys.readouterr().out
    assert not set(told) & {"\x1b", "\x9b"}
    if form == "json":
        assert [t["name"] for t in json.loads(told)["tensors"]] == NAMES
    else:
        assert "\\x1b[31mred" in told
        assert "two\\x0alines" in told
    for name in NAMES:
        assert shell("tensors", "show", "odd", name, "--output", form) == 0
    assert not set(capsys.readouterr().out) & {"\x1b", "\x9b"}


def test_a_file_whose_name_is_no_text_is_imported(shell, tmp_path, capsys):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/ba\xffd.safetensors"))
    assert shell("import", write(path, ["w"]), "--as", "bad@1") == 0
    assert shell("tensors", "show", "bad", os.fsdecode(b"st\xff")) == 1
    assert "no tensor" in capsys.readouterr().err


def test_a_broken_cache_of_digests_is_begun_anew(shell, tmp_path):
    (tmp_path / ".arc-halo").mkdir()
    for text in ("[" * 200_000, '{"format": 1, "sources": {"x": 3}}', "null", "\0"):
        (tmp_path / ".arc-halo" / "digests.json").write_text(text)
        path = write(tmp_path / "m.safetensors", [f"w{len(text)}"])
        assert shell("import", path, "--as", "m@1", "--force") == 0


def test_a_size_beyond_all_numbers_is_refused(shell, tmp_path, capsys):
    assert shell("import", write(tmp_path / "m.safetensors", ["w"]), "--as", "m@1") == 0
    assert shell("export", "m", "-o", "out", "--max-shard-size", "9" * 400 + "GB") == 4
    assert "is not a size" in capsys.readouterr().err


def test_statistics_are_exact_for_integers_and_never_infinite(shell, tmp_path, capsys):
    large = 2**53 + 1
    path = tmp_path / "m.safetensors"
    save_file({"i": np.array([large, 3]), "f": np.array([1e308, 1e308, -1e308])}, path)
    assert shell("import", path, "--as", "m@1") == 0
    capsys.readouterr()
    facts = []
    for name in "if":
        assert shell("tensors", "show", "m", name, "--stats", "--output", "json") == 0
        facts.append(json.loads(capsys.readouterr().out, parse_constant=pytest.fail))
    assert (facts[0]["min"], facts[0]["max"]) == (3, large)
    assert (facts[1]["max"], facts[1]["mean"], facts[1]["std"]) == (1e308, None, None)


def test_a_path_that_is_not_there_is_told_as_such(shell, tmp_path, capsys):
    assert shell("import", "nope", "--as", "m@1") == 4
    assert "error[AH025]: nope: cannot be read: No such file" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert shell("import", "empty", "--as", "m@1") == 4
    assert "no file of weights is in this directory" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["tensors", "recode", "m"], ["import", "m.safetensors"]])
def test_a_codec_of_deltas_wants_a_base(shell, tmp_path, capsys, command):
    write(tmp_path / "m.safetensors", ["w"])
    assert shell("import", "m.safetensors", "--as", "m@1") == 0
    name = ["--as", "n@1"] if command[0] == "import" else []
    assert shell(*command, *name, "--codec", "delta") == 4
    assert "no model is named to take them against" in capsys.readouterr().err


def test_what_nobody_manages_is_listed_and_shared_tensors_of_one_set_too(shell, tmp_path, capsys):
    path = write(tmp_path / "m.safetensors", ["w"])
    for name in ("m@1", "n@1"):
        assert shell("import", path, "--as", name) == 0
    capsys.readouterr()
    assert shell("get", "--all-projects", "--output", "json") == 0
    listed = json.loads(capsys.readouterr().out)["resources"]
    assert [(each["address"], each["project"]) for each in listed] == [
        ("model/m@1", None),
        ("model/n@1", None),
    ]
    assert shell("tensors", "show", "m", "w", "--output", "json") == 0
    assert json.loads(capsys.readouterr().out)["shared_by"] == ["n@1: w"]


def test_deltas_of_what_is_stored_already_are_pointed_at(shell, tmp_path, capsys):
    path = write(tmp_path / "m.safetensors", ["w"])
    assert shell("import", path, "--as", "m@1") == 0
    assert shell("import", path, "--as", "n@1", "--delta-from", "m") == 0
    assert "arc-halo tensors recode n@1 --delta-from m" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ("training", "ls", "--model"),
        ("training", "show"),
        ("inference", "ls", "--tenant"),
        ("cache", "ls", "--tenant"),
        ("attention", "ls", "--label"),
    ],
)
def test_an_argument_that_is_no_text_is_invalid(shell, capsys, command):
    assert shell(*command, os.fsdecode(b"st\xff")) == 4
    assert "st\\udcff" in capsys.readouterr().err
