"""Secrets that stand in a manifest by mistake: refused, and never repeated."""

import textwrap

import pytest

from arc_halo.errors import ManifestError
from arc_halo.manifest.reading import read_manifest
from arc_halo.manifest.resolve import resolve

PLUGIN = """
from contextlib import contextmanager
from arc_halo import ModelRunner, hookimpl

@hookimpl
def arc_halo_runners():
    schema = {
        "type": "object",
        "properties": {"api_key": {"type": "string"}, "url": {"type": "string"}, "x": {}},
    }
    yield ModelRunner(name="mine", summary="asks", open=open_mine, params_schema=schema)

@contextmanager
def open_mine(context, *, api_key="", url="", x=None):
    yield None
"""


def problems(directory, runner, more=""):
    """What is wrong with a manifest of one model with this runner."""
    head = "version: 1\nproject: p\nplugins: [mine.py]\nmodels:\n  a@1:\n    runner:"
    text = f"{head}\n{runner}\n{more}"
    (directory / "mine.py").write_text(PLUGIN)
    (directory / "arc_halo.yaml").write_text(text)
    try:
        manifest = read_manifest(directory, env={"URL": "https://u:hunter2@host"})
        resolve(manifest.sources, manifest.plugins)
    except ManifestError as exc:
        return exc.problems
    return ()


def openai(params):
    whole = f"uses: openai\nparams:\n  model: m\n{textwrap.indent(params, '  ')}"
    return textwrap.indent(whole, "      ")


def mine(params):
    return f"      uses: mine\n      params: {{{params}}}"


SERVICE = "url: https://host/v1\n"
MISTAKES = {
    "password in the address": "url: https://user:hunter2@host/v1",
    "token in the address": "url: https://hunter2@host/v1",
    "query of the address": "url: https://host/v1?k=hunter2",
    "address in a variable": "url: ${URL}",
    "literal key": SERVICE + "key: hunter2",
    "key of numbers and letters": SERVICE + "key: 1hunter2",
    "quoted key": SERVICE + "key: 'hunter2 hunter2'",
    "key of several lines": SERVICE + "key: >\n  hunter2\n  hunter2",
    "key for the name": SERVICE + "key: {env: hunter2-}",
    "value for the name": SERVICE + "key: {value: hunter2}",
    "key for the short name": SERVICE + "key_env: hunter2-",
    "another field": SERVICE + "timeout: hunter2",
    "unknown field": SERVICE + "apikee: hunter2",
    "unknown fields": SERVICE + "headers: {Authorization: Bearer hunter2}",
    "one line": "{url: 'https://host/v1', temperature: -1, key: hunter2, x: [hunter2]}",
}


@pytest.mark.parametrize("params", MISTAKES.values(), ids=MISTAKES)
def test_what_stands_in_the_params_of_a_runner_is_refused_and_not_repeated(tmp_path, params):
    if params.startswith("{"):
        runner = f"      {{uses: openai, params: {params.replace('{', '{model: m, ', 1)}}}"
    else:
        runner = openai(params)
    found = problems(tmp_path, runner)
    assert found
    assert "hunter" not in repr(found)


def test_the_place_and_the_way_out_are_told(tmp_path):
    (found,) = problems(tmp_path, openai(SERVICE + "key: hunter2"))
    assert found.message.startswith("models.a@1.runner.params.key: the value is a string")
    assert found.snippet == "        key: *******"
    assert "key: {env: NAME}" in found.hint


def test_a_mistake_elsewhere_on_the_line_shows_no_secret(tmp_path):
    runner = mine("api_key: hunter2, url: hunter2, x: hunter2")
    found = problems(tmp_path, runner.replace("mine", "mien"))
    whole = problems(tmp_path, "      {uses: mien, params: {url: hunter2, n: 1, b: true}}")
    assert [each.code for each in (*found, *whole)] == ["AH032", "AH032"]
    assert whole[0].snippet.endswith("{uses: mien, params: {url: *******, n: 1, b: true}}")
    assert "hunter" not in repr((found, whole))


def test_a_file_that_is_no_yaml_shows_no_secret(tmp_path):
    for text in ("key: hunter2 ]: [", "api_key: hunter2: x", "x: sk-hunter2hunter2: ["):
        found = problems(tmp_path, openai(text))
        assert found[0].code == "AH001"
        assert "hunter" not in repr(found)


@pytest.mark.parametrize(
    "params",
    [
        "url: 'https://u:hunter2@host/v1'",
        "url: 'https://hunter2@host/v1'",
        "x: {deep: ['postgresql://u:hunter2@db/x']}",
        "x: sk-hunter2-0123456789",
        "api_key: hunter2",
        "x: {password: hunter2}",
    ],
)
def test_a_secret_that_a_runner_would_take_is_refused_all_the_same(tmp_path, params):
    (found,) = problems(tmp_path, mine(params))
    assert (found.code, found.message) == ("AH006", "a secret may not stand in a manifest")
    assert "environment variable" in found.hint
    assert "hunter" not in repr(found)


def test_names_of_variables_and_plain_values_are_fine(tmp_path):
    good = "api_key: MINE_KEY, url: 'https://host:80/v1', x: {key: name, password: {env: PW}}"
    assert problems(tmp_path, mine(good)) == ()


def test_names_of_variables_stay_in_sight(tmp_path):
    more = "settings: {allow: {secrets: [GOOD_NAME, hunter2-]}}\n"
    (found,) = problems(tmp_path, openai(SERVICE + "key: {env: GOOD_NAME}"), more)
    assert "GOOD_NAME" in found.snippet
    assert "hunter" not in repr(found)
