"""Loading: what YAML means here, which files belong to a project, what is refused and where."""

import gc
import hashlib
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from arc_halo.errors import ManifestError
from arc_halo.manifest.load import load_project, load_text


def data_of(text):
    return load_text(text, path=Path("/p/arc_halo.yaml"), label="arc_halo.yaml").data


def problems_of(text):
    with pytest.raises(ManifestError) as caught:
        data_of(text)
    return caught.value.problems


# Scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(text, None) for text in ("", "~", "null", "Null", "NULL")],
        *[(text, True) for text in ("true", "True", "TRUE")],
        *[(text, False) for text in ("false", "False", "FALSE")],
        ("0", 0),
        ("-0", 0),
        ("42", 42),
        ("-17", -17),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("0.5", 0.5),
        ("-1.25e-3", -1.25e-3),
        ("1e3", 1000.0),
        ("1E+3", 1000.0),
        ("!!str 1.0", "1.0"),
        ("!!int '5'", 5),
        ("!!float 5", 5),
        ("!!bool 'true'", True),
        ("!!null ''", None),
    ],
)
def test_scalars_have_the_values_of_json(text, value):
    found = data_of(f"a: {text}\n")["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        *["no", "yes", "on", "off", "y", "n", "No", "YES", "nULL", "tRUE"],
        *["010", "0o7", "0x1F", "0b1", "1_000", "+5", "1.", ".5", "-.5", "1e", "--1", "1.2.3"],
        *["12:30:45", "2024-01-31", "2024-01-31T12:00:00Z", "=", "-a", "1a", "٣", "1 2"],
        *["nan", "inf", "NaN", ".Nan", "..inf"],
    ],
)
def test_what_json_does_not_know_as_a_number_stays_text(text):
    assert data_of(f"a: {text}\n") == {"a": text}


@pytest.mark.parametrize("text", ["1", "1.5", "true", "null", "~", ".nan", "9" * 40, "1e999", ""])
@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_quoted_scalar_is_text(text, quote):
    assert data_of(f"a: {quote}{text}{quote}\n") == {"a": text}


def test_a_block_scalar_is_text():
    assert data_of("a: |\n  1\nb: >-\n  true\n") == {"a": "1\n", "b": "true"}


def has_exponent(text):
    return re.fullmatch(r"-?[0-9]+(\.[0-9]+)?[eE][-+]?[0-9]+", text) is not None


# YAML 1.1 takes 1e3 for text and writes it without quotes; here, as in JSON, it is a number.
texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], include_characters="\n\t"), max_size=40
).filter(lambda text: not has_exponent(text))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
styles = st.fixed_dictionaries(
    {
        "default_flow_style": st.sampled_from([True, False, None]),
        "allow_unicode": st.booleans(),
        "width": st.sampled_from([20, 80, 1000]),
        "indent": st.sampled_from([2, 4]),
        "explicit_start": st.booleans(),
        "line_break": st.sampled_from(["\n", "\r\n", "\r"]),
    }
)


@given(st.dictionaries(texts, values, max_size=5), styles)
@settings(max_examples=300, deadline=None)
def test_what_another_writer_wrote_reads_back_equal(data, style):
    written = yaml.safe_dump(data, sort_keys=False, **style)
    # PyYAML 6.0.4 folds some texts so that its own readers find others: those say nothing of ours.
    assume(repr(yaml.safe_load(written)) == repr(data))
    assert repr(data_of(written)) == repr(data)


@given(st.dictionaries(texts, values, max_size=5))
@settings(deadline=None)
def test_aliases_read_back_equal_and_share_nothing(data):
    found = data_of(yaml.safe_dump({"a": data, "b": data, "c": [data]}, sort_keys=False))
    assert repr(found) == repr({"a": data, "b": data, "c": [data]})
    for container in containers(found["a"]):
        assert all(container is not other for other in containers([found["b"], found["c"]]))


def containers(value):
    if isinstance(value, (dict, list)):
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from containers(part)


# Text


def test_windows_line_ends_and_a_byte_order_mark_are_fine():
    source = load_text("\ufeffa: 1\r\nb: x\r\n".encode(), path=Path("/p"), label="p")
    assert source.data == {"a": 1, "b": "x"}


def test_the_digest_is_of_the_bytes_of_the_file():
    raw = "\ufeffa: é\r\n".encode()
    assert load_text(raw, path=Path("/p"), label="p").digest == hashlib.sha256(raw).digest()


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "--- ~\n", "{}"])
def test_a_file_with_nothing_in_it_is_an_empty_mapping(text):
    assert data_of(text) == {}


def test_all_problems_of_a_text_come_at_once_and_in_order():
    text = "a: 1\na: 2\nb: .nan\nc: !x 1\n1: d\ne: 99999999999999999999\n<<: {}\n"
    found = [(p.line, p.column, p.code) for p in problems_of(text)]
    assert found == [
        (2, 1, "AH002"),
        (3, 4, "AH010"),
        (4, 4, "AH010"),
        (5, 1, "AH010"),
        (6, 4, "AH007"),
        (7, 1, "AH010"),
    ]


def test_a_duplicate_key_names_the_line_of_the_first():
    [problem] = problems_of("models:\n  a: 1\n  b: {x: 1}\n  'a': 2\n")
    assert problem.code == "AH002"
    assert problem.message == "the key 'a' stands twice; the first is on line 2"
    assert (problem.line, problem.column, problem.length) == (4, 3, 3)
    assert problem.snippet == "  'a': 2"


def test_more_than_a_hundred_problems_are_cut_and_the_last_says_so():
    problems = problems_of("".join(f"{number}: x\n" for number in range(500)))
    assert len(problems) == 100
    assert "only 100 problems are shown" in problems[-1].hint


@pytest.mark.parametrize("end", ["a: [\n", "a: 'x\n", "x: 1\n", "!x a: 1\n"])
def test_the_hundredth_problem_may_be_of_any_kind(end):
    problems = problems_of("x: 1\n" + "x: 2\n" * 99 + end)
    assert len(problems) == 100
    assert "only 100 problems are shown" in problems[-1].hint


# Projects


@pytest.fixture
def project(tmp_path):
    def write(files):
        for name, text in files.items():
            path = tmp_path / "project" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "project"

    return write


def labels_of(directory, **options):
    return [source.label for source in load_project(directory, env={}, **options)]


def load_problems(directory, **options):
    with pytest.raises(ManifestError) as caught:
        load_project(directory, env={}, **options)
    return caught.value.problems


def test_a_project_loads_from_its_directory_and_from_its_file(project):
    directory = project({"arc_halo.yaml": "project: p\n"})
    [source] = load_project(directory, env={})
    assert source.path == directory / "arc_halo.yaml"
    assert source.label == "arc_halo.yaml"
    assert source.data == {"project": "p"}
    assert not source.included
    assert labels_of(directory / "arc_halo.yaml") == ["arc_halo.yaml"]


def test_a_relative_path_gives_absolute_sources(project, monkeypatch):
    monkeypatch.chdir(project({"arc_halo.yaml": "project: p\n"}))
    [source] = load_project(Path(), env={})
    assert source.path.is_absolute()


def test_includes_come_in_order_sorted_and_once(project):
    directory = project(
        {
            "arc_halo.yaml": "include: [z.yaml, 'r/*.yaml', '**/*.yaml', ./r/../z.yaml]\n",
            "z.yaml": "models: {}\n",
            "r/b.yaml": "",
            "r/a.yaml": "reactors: {}\n",
            "r/skip.yml": "not: loaded\n",
            "r/deep/er/c.yaml": "",
            ".hidden/x.yaml": "",
            "r/.x.yaml": "",
        }
    )
    expected = ["arc_halo.yaml", "z.yaml", "r/a.yaml", "r/b.yaml", "r/deep/er/c.yaml"]
    assert labels_of(directory) == expected
    assert [s.included for s in load_project(directory, env={})] == [False] + [True] * 4


def test_includes_do_not_nest(project):
    directory = project(
        {
            "arc_halo.yaml": "include: [a.yaml]\n",
            "a.yaml": "include: [b.yaml]\n",
            "b.yaml": "models: {}\n",
        }
    )
    assert labels_of(directory) == ["arc_halo.yaml", "a.yaml"]


def test_a_variable_may_stand_in_an_include(project):
    directory = project({"arc_halo.yaml": "include: ['${D}/*.yaml']\n", "r/a.yaml": ""})
    assert [s.label for s in load_project(directory, env={"D": "r"})][1:] == ["r/a.yaml"]


def test_a_pattern_may_match_nothing_but_a_name_must_exist(project):
    directory = project(
        {
            "arc_halo.yaml": "include:\n  - none/*.yaml\n  - missing.yaml\n  - sub\n",
            "sub/a.yaml": "",
        }
    )
    found = load_problems(directory)
    assert [(p.code, p.file, p.line, p.column) for p in found] == [
        ("AH011", "arc_halo.yaml", 3, 5),
        ("AH011", "arc_halo.yaml", 4, 5),
    ]
    assert found[0].snippet == "  - missing.yaml"
    assert "directory" in found[1].message
    assert "sub/*.yaml" in found[1].hint


@pytest.mark.parametrize(
    "item", ["../outside.yaml", "../*.yaml", "a/../../outside.yaml", "/etc/passwd"]
)
def test_an_include_may_not_leave_the_project(project, item):
    directory = project(
        {"arc_halo.yaml": f"include: ['{item}']\n", "../outside.yaml": "models: {}\n"}
    )
    [problem] = load_problems(directory)
    assert (problem.code, problem.line, problem.column) == ("AH012", 1, 11)


@pytest.mark.parametrize("item", ["link.yaml", "*.yaml", "linked/outside.yaml", "*/outside.yaml"])
def test_a_symlink_may_not_lead_an_include_out_of_the_project(project, item):
    directory = project(
        {"arc_halo.yaml": f"include: ['{item}']\n", "../outside.yaml": "models: {}\n"}
    )
    (directory / "link.yaml").symlink_to("../outside.yaml")
    (directory / "linked").symlink_to("..")
    [problem] = load_problems(directory)
    assert problem.code == "AH012"


def test_an_allowed_directory_may_be_included_from(project, tmp_path):
    directory = project(
        {"arc_halo.yaml": "include: ['../shared/*.yaml']\n", "../shared/a.yaml": ""}
    )
    assert load_problems(directory)[0].code == "AH012"
    assert labels_of(directory, allow_paths=[tmp_path / "shared"])[1:] == ["../shared/a.yaml"]


def test_a_symlink_inside_the_project_is_loaded_once(project):
    directory = project({"arc_halo.yaml": "include: ['*.yaml']\n", "b.yaml": "models: {}\n"})
    (directory / "a.yaml").symlink_to("b.yaml")
    (directory / "loop.yaml").symlink_to("loop.yaml")
    assert labels_of(directory) == ["arc_halo.yaml", "a.yaml"]


def test_a_project_that_is_not_there_is_named(tmp_path):
    [problem] = load_problems(tmp_path)
    assert (problem.code, problem.file) == ("AH011", "arc_halo.yaml")
    assert "arc-halo init" in problem.hint


def test_a_file_that_is_no_regular_file_is_not_opened(project):
    import os

    directory = project({"arc_halo.yaml": "include: [pipe.yaml]\n"})
    os.mkfifo(directory / "pipe.yaml")
    [problem] = load_problems(directory)
    assert problem.code == "AH011"


def test_the_problems_of_all_files_come_at_once(project):
    directory = project(
        {
            "arc_halo.yaml": "include: ['*.yaml', gone.yaml]\nproject: ${NOBODY}\n",
            "a.yaml": "a: [\n",
            "b.yaml": "x: 1\nx: 2\n",
            "c.yaml": "- a\n",
        }
    )
    assert [(p.file, p.line, p.code) for p in load_problems(directory)] == [
        ("a.yaml", 1, "AH001"),
        ("arc_halo.yaml", 1, "AH011"),
        ("arc_halo.yaml", 2, "AH008"),
        ("b.yaml", 2, "AH002"),
        ("c.yaml", 1, "AH004"),
    ]


@pytest.mark.parametrize("was_enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(project, was_enabled):
    directory = project({"arc_halo.yaml": "a: [\n"})
    try:
        (gc.enable if was_enabled else gc.disable)()
        load_problems(directory)
        assert gc.isenabled() == was_enabled
    finally:
        gc.enable()
