"""Positions: every place that is named points at the text of what it names."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_halo.manifest.load import load_text, locate, problem
from arc_halo.manifest.positions import MAX_SNIPPET, redact, written


def source_of(text):
    return load_text(text, path=Path("/p/arc_halo.yaml"), label="arc_halo.yaml")


def place(text, *pointer, key=False):
    found = locate(source_of(text), pointer, key=key)
    return found.line, found.column, found.length


TEXT = """\
# a comment
models:
  base: {version: "1.0.0", aliases: [production, 'x y']}   # another
  poet:
    tags:
      - one
      -  two
    description: >-
      folded
      text
"""


@pytest.mark.parametrize(
    ("pointer", "key", "expected"),
    [
        ((), False, (2, 1, 7)),
        (("models",), True, (2, 1, 6)),
        (("models", "base"), True, (3, 3, 4)),
        (("models", "base"), False, (3, 9, 48)),
        (("models", "base", "version"), False, (3, 19, 7)),
        (("models", "base", "aliases", 1), False, (3, 50, 5)),
        (("models", "poet", "tags", 1), False, (7, 10, 3)),
        (("models", "poet", "tags", 1), True, (7, 10, 3)),
        (("models", "poet", "description"), False, (8, 18, 2)),
    ],
)
def test_a_pointer_leads_to_its_text(pointer, key, expected):
    assert place(TEXT, *pointer, key=key) == expected


@pytest.mark.parametrize(
    "pointer", [("models", "base", "nothing"), ("models", "base", "x", 3, "y")]
)
def test_the_nearest_ancestor_stands_in_for_what_is_not_there(pointer):
    assert place(TEXT, *pointer) == place(TEXT, "models", "base")
    assert place(TEXT, *pointer, key=True) == place(TEXT, "models", "base", key=True)


def test_an_empty_file_has_a_beginning():
    assert place("", "version") == (1, 1, 1)
    assert place("# nothing\n") == (1, 1, 1)


def test_a_value_behind_an_alias_stands_where_it_is_written():
    text = "a: &x {deep: [1, 22]}\nb: *x\n"
    assert place(text, "b") == (2, 4, 2)
    assert place(text, "b", "deep", 1) == (1, 18, 2)


def test_lines_and_columns_count_characters_whatever_the_line_ends():
    text = "\ufeffå: é\r\nb: \U0001f600x\rc: 'ü'\n"
    assert place(text.encode(), "å") == (1, 4, 1)
    assert place(text.encode(), "b") == (2, 4, 2)
    assert place(text.encode(), "c") == (3, 4, 3)


def test_a_problem_carries_its_line_and_its_place():
    found = problem(
        source_of(TEXT), ("models", "poet"), "AH005", "no type", hint="add it", key=True
    )
    assert (found.file, found.line, found.column, found.length) == ("arc_halo.yaml", 4, 3, 4)
    assert found.snippet == "  poet:"
    assert (found.code, found.message, found.hint) == ("AH005", "no type", "add it")


def test_a_snippet_is_never_too_long_to_print():
    source = source_of("a: 1, " + "x" * 1000 + "\nb: [" + "y, " * 1000 + "z]\n")
    assert len(locate(source, ("a",), key=True).snippet) == MAX_SNIPPET
    assert locate(source, ("b", 1000)).snippet is None


@pytest.mark.parametrize(
    "line",
    [
        "database: postgresql://ada:hunter2@db/halo",
        "database: postgresql://ada:hunter2/@hunter2@db/halo",
        "url: postgresql://db/halo?user=ada&password=hunter2",
        "  password: hunter2",
        "  password: 'hunter2 hunter2'",
        "  Password : hunter2",
        '{"password": "hunter2", x: 1}',
        "database: host=db password = hunter2",
    ],
)
def test_a_password_never_stands_in_a_snippet(line):
    covered = redact(line)
    assert "hunter" not in covered
    assert len(covered) == len(line)


@pytest.mark.parametrize(
    "line", ["password: {env: NAME}", "url: postgresql://ada@db:5432/halo", "a: x:y@z", "password:"]
)
def test_what_is_no_password_is_not_covered(line):
    assert redact(line) == line


# Without numbers like 1e3, which YAML 1.1 takes for text and writes without quotes.
keys = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=12
).filter(lambda text: not re.fullmatch(r"-?[0-9.]+[eE][-+]?[0-9]+", text))
scalars = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(-1e6, 1e6) | keys
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=25,
)


def pointers(value, pointer=()):
    yield pointer, value
    if isinstance(value, dict):
        for name, part in value.items():
            yield from pointers(part, (*pointer, name))
    if isinstance(value, list):
        for index, part in enumerate(value):
            yield from pointers(part, (*pointer, index))


@given(
    st.dictionaries(keys, trees, min_size=1, max_size=4),
    st.sampled_from([True, False, None]),
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=200, deadline=None)
def test_every_position_points_at_the_text_of_its_value(data, flow, unicode, line_break):
    text = yaml.safe_dump(
        data,
        default_flow_style=flow,
        allow_unicode=unicode,
        line_break=line_break,
        sort_keys=False,
        width=1000,
    )
    source = source_of(text)
    for pointer, value in pointers(source.data):
        found = written(source, pointer)
        if found is not None and not isinstance(value, (dict, list)):
            assert repr(source_of(f"a: {found}\n").data["a"]) == repr(value)
        if pointer and isinstance(pointer[-1], str):
            assert key_at(text, locate(source, pointer, key=True)) == pointer[-1]


def key_at(text, position):
    line = text.splitlines()[position.line - 1]
    key = line[position.column - 1 :][: position.length]
    return next(iter(source_of(f"{key}: 0\n").data))
