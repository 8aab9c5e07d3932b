"""Variables in values: what is replaced, what is left alone, what is refused."""

import pytest

from arc_halo.errors import ManifestError
from arc_halo.manifest.load import load_project
from arc_halo.manifest.variables import expand, is_one_variable

ENV = {"NAME": "poet", "EMPTY": "", "WEIGHT": "0.5", "PRICE": "$5"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("${NAME}", "poet"),
        ("a/${NAME}/b/${NAME}", "a/poet/b/poet"),
        ("${EMPTY}", ""),
        ("${MISSING:-default}", "default"),
        ("${EMPTY:-default}", "default"),
        ("${NAME:-default}", "poet"),
        ("${MISSING:-}", ""),
        ("${MISSING:-a:-b ?c}", "a:-b ?c"),
        ("${NAME:?say who}", "poet"),
        ("$${NAME}", "${NAME}"),
        ("$$${NAME}", "$${NAME}"),
        ("$NAME and $$ and $(NAME) and {env: NAME}", "$NAME and $$ and $(NAME) and {env: NAME}"),
        ("${PRICE}", "$5"),
    ],
)
def test_variables_expand_as_documented(text, expected):
    assert expand(text, ENV) == (expected, [])


def test_a_value_is_not_expanded_again():
    assert expand("${A}", {"A": "${B}", "B": "no"}) == ("${B}", [])


@pytest.mark.parametrize(
    ("text", "reference", "message"),
    [
        ("x ${MISSING} y", "${MISSING}", "the variable 'MISSING' has no value"),
        ("${MISSING:?say who}", "${MISSING:?say who}", "'MISSING' has no value: say who"),
        ("${EMPTY:?say who}", "${EMPTY:?say who}", "'EMPTY' has no value: say who"),
        ("${}", "${}", "'${}' is not a variable"),
        ("${1A}", "${1A}", "is not a variable"),
        ("${NAME-default}", "${NAME-default}", "is not a variable"),
        ("${NAME", "${", "is not a variable"),
        ("${A:-${NAME}}", "${", "is not a variable"),
        ("${NÄME}", "${NÄME}", "is not a variable"),
    ],
)
def test_what_cannot_be_expanded_is_a_problem(text, reference, message):
    _, problems = expand(text, ENV)
    assert [problem.reference for problem in problems] == [reference]
    assert message in problems[0].message
    assert problems[0].hint


def test_a_variable_that_is_not_text_is_a_problem():
    _, problems = expand("${BYTES}", {"BYTES": "\udcff"})
    assert [problem.message for problem in problems] == ["the variable BYTES is not UTF-8 text"]


def test_one_variable_is_told_from_text_with_a_variable():
    assert is_one_variable("${A}")
    assert is_one_variable("${A:-b}")
    assert not is_one_variable("x${A}")
    assert not is_one_variable("${A}${B}")
    assert not is_one_variable("$${A}")


@pytest.fixture
def load(tmp_path):
    def load(text, env=ENV):
        (tmp_path / "arc_halo.yaml").write_text(text)
        return load_project(tmp_path, env=env)[0].data

    return load


def test_variables_expand_in_values_of_every_style_and_never_in_keys(load):
    text = (
        "plain: ${NAME}\n"
        "single: '${NAME}'\n"
        'double: "${NAME}"\n'
        "block: |\n  ${NAME}\n"
        "list: [x, '${NAME}']\n"
        "${NAME}: key\n"
    )
    assert load(text) == {
        "plain": "poet",
        "single": "poet",
        "double": "poet",
        "block": "poet\n",
        "list": ["x", "poet"],
        "${NAME}": "key",
    }


def test_a_variable_alone_and_without_quotes_may_be_a_number_or_a_truth(load):
    text = "a: ${WEIGHT}\nb: ${N:-3}\nc: ${T:-true}\nd: ${E:-}\ne: x${WEIGHT}\n"
    assert load(text) == {"a": 0.5, "b": 3, "c": True, "d": "", "e": "x0.5"}


def test_a_variable_in_quotes_or_tagged_as_text_stays_text(load):
    assert load("a: '${WEIGHT}'\nb: \"${WEIGHT}\"\nc: !!str ${WEIGHT}\n") == dict.fromkeys(
        "abc", "0.5"
    )


def test_a_reference_to_a_secret_is_left_alone(load):
    assert load("database: {password: {env: NAME}}") == {"database": {"password": {"env": "NAME"}}}


def test_an_alias_repeats_the_expanded_value(load):
    assert load("a: &x ['$${NAME}', '${NAME}']\nb: *x\n")["b"] == ["${NAME}", "poet"]


def test_every_unset_variable_is_reported_at_its_place(load):
    text = "a: one ${X} two ${Y}\nb:\n  - >-\n    folded\n    ${Z}\n"
    with pytest.raises(ManifestError) as caught:
        load(text)
    found = [(p.code, p.line, p.column, p.length) for p in caught.value.problems]
    assert found == [("AH008", 1, 8, 4), ("AH008", 1, 17, 4), ("AH008", 5, 5, 4)]


@pytest.mark.parametrize("value", ["9" * 30, "1e999", ".inf", "a\x1b[31mb"])
def test_a_variable_cannot_smuggle_in_what_a_file_may_not_hold(load, value):
    with pytest.raises(ManifestError) as caught:
        load("a: ${V}\n", {"V": value})
    [problem] = caught.value.problems
    assert problem.code in ("AH007", "AH010")
    assert (problem.line, problem.column) == (1, 4)
