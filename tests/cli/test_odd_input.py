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
