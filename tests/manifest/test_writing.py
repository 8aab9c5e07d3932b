"""Writing YAML: our loader reads back what was written, whatever it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arc_halo.manifest.load import load_project
from arc_halo.manifest.writing import is_writable, mapping_lines, size_of
from tests.manifest.test_rendering import ODD, TEXTS, VALUES

KEYS = TEXTS | st.sampled_from(["k" * 2000, "é" * 600])


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What our loader reads in a text."""
    file = tmp_path_factory.mktemp("written") / "arc_halo.yaml"

    def found(text: str) -> dict[str, Any]:
        file.write_text(text, newline="")
        (source,) = load_project(file, env={"A": "expanded"})
        return source.data

    return found


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=4))
@example({"k" * 2000: {"k" * 2000: [{"k" * 2000: ["x"]}]}})
@example({text: [{text: text}] for text in ODD})
@settings(max_examples=200, deadline=None)
def test_what_is_written_is_read_as_it_was(read: Any, data: dict[str, Any]) -> None:
    assert is_writable(data)
    text = "\n".join(mapping_lines(data))
    assert json.dumps(read(text)) == json.dumps(data)


def test_variables_stay_variables_where_they_are_to(read: Any) -> None:
    lines = mapping_lines({"a": {"b": ["${A}", "x"]}, "c": "${A}"}, is_escaped=False)
    assert read("\n".join(lines)) == {"a": {"b": ["expanded", "x"]}, "c": "expanded"}


def test_whole_numbers_that_only_json_has_are_floats_where_that_is_the_same(read: Any) -> None:
    assert is_writable(10**22)
    (line,) = mapping_lines({"a": 10**22})
    assert read(line) == {"a": 1e22}


@pytest.mark.parametrize(
    "value",
    ["\x01", {"\x9f": 1}, "x" * (2**20 + 1), 2**64 + 1, -(10**400), [[2**63 + 1]], {"a": "\x7f"}],
)
def test_what_a_manifest_cannot_hold_is_known_before_it_is_written(value: Any) -> None:
    assert not is_writable(value)


def test_depth_and_size_are_counted_as_the_loader_counts_them(read: Any) -> None:
    deep: Any = "x"
    for _ in range(62):
        deep = [deep]
    data = {"a": deep}
    assert is_writable(data)
    read("\n".join(mapping_lines(data)))
    assert not is_writable({"a": [[deep]]})
    assert size_of({"a": [1, {"b": 2}]}) == 7
