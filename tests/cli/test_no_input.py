"""Nothing to ask and nothing to learn from: told as such, with one exit code."""

from __future__ import annotations

import pytest

from arc_halo.cli.main import run
from arc_halo.cli.reactor import read_inputs


@pytest.mark.parametrize("text", ["", " \n\n"])
@pytest.mark.parametrize(
    ("command", "option", "told"),
    [("run", "--input", "there is no input"), ("fit", "--data", "there is no example")],
)
def test_a_file_of_nothing_is_told(tmp_path, monkeypatch, capsys, command, option, told, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing.txt").write_text(text)
    code = run(["reactor", command, "some", option, "nothing.txt"])
    said = capsys.readouterr()
    assert (code, said.out) == (4, "")
    assert f"error[AH006]: {told}" in said.err


def test_empty_lines_between_inputs_are_passed_over():
    assert read_inputs('{"a": 1}\n  \n\n{"a": 2}\n') == [{"a": 1}, {"a": 2}]
