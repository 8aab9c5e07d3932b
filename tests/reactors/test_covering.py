"""What members say when they fail, without the secrets that the project lets them read."""

from __future__ import annotations

import json

import psycopg
import pytest

from arc_halo import connect
from arc_halo.cli.main import run
from arc_halo.reactors.allowing import Allowance

SECRET = "it's\\a/secret 01234"
PLUGIN = r"""
import os
from contextlib import contextmanager
from urllib.parse import quote

from arc_halo import FusionStrategy, ModelRunner, Outputs, Predictor, Vocabulary, hookimpl
from arc_halo.errors import MemberError

KEY = os.environ["COVERING_TEST_KEY"]


@hookimpl
def arc_halo_predictors():
    yield Predictor(name="fine", summary="answers", predict=lambda inputs: ["fine"] * len(inputs))
    yield Predictor(name="echo", summary="answers", predict=list)
    for fail in (plain, quoted, escaped, hinting):
        yield Predictor(name=fail.__name__, summary="fails", predict=fail)
    yield Predictor(name="load", summary="fails", predict=plain, load=plain)


@hookimpl
def arc_halo_fusion_strategies():
    yield FusionStrategy(name="first", summary="first", combine_outputs=lambda given, _: given[0])
    yield FusionStrategy(name="leaky", summary="fails", combine_outputs=leaky)


@hookimpl
def arc_halo_runners():
    yield ModelRunner(name="encode", summary="fails", open=open_tokens)
    yield ModelRunner(name="decode", summary="fails", open=open_tokens)


def plain(inputs):
    raise RuntimeError("refused: " + KEY)


def quoted(inputs):
    raise KeyError(KEY)


def escaped(inputs):
    raise RuntimeError("GET /?key=" + quote(KEY, safe=""))


def hinting(inputs):
    raise MemberError("refused", hint="is it " + KEY)


def leaky(outputs, context):
    raise RuntimeError("refused: " + KEY)


@contextmanager
def open_tokens(context):
    yield Tokens(context.model.partition("@")[0])


class Tokens:
    vocabulary = Vocabulary(size=3, tokenizer="three")
    end_tokens = frozenset()
    context_length = None

    def __init__(self, name):
        self.fails = name
        self.tokens = self

    def encode(self, text):
        return plain(text) if self.fails == "encode" else [1, 2, 1]

    def decode(self, tokens):
        return plain(tokens) if tokens else ""

    def score(self, tokens):
        return plain(tokens)

    def begin(self, prompts):
        import numpy as np
        self.logits = np.ones((len(prompts), 3))
        return self
"""


@pytest.fixture
def project(tmp_path, monkeypatch, database):
    """Applies a project with the reactor `r` of a member that fails as it is told to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COVERING_TEST_KEY", SECRET)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    (tmp_path / "plugin.py").write_text(PLUGIN)

    def write(fails, strategy="first", **how):
        models = {
            f"{name}@1": {
                "type": "other",
                "runner": {"uses": name}
                if name in ("encode", "decode")
                else {"uses": "python", "params": {"predictor": name}},
            }
            for name in (fails, "fine")
        }
        members = [{"model": name} for name in (fails, "fine")[: 1 if "level" in how else 2]]
        document = {
            "version": 1,
            "project": "covering",
            "plugins": ["plugin.py"],
            "settings": {"allow": {"secrets": ["COVERING_TEST_KEY"]}},
            "models": models,
            "reactors": {
                "r": {"type": "ensemble", "strategy": strategy, "members": members, "run": how}
            },
        }
        (tmp_path / "arc_halo.yaml").write_text(json.dumps(document))
        with connect(database, project=tmp_path) as halo:
            halo.project.apply(halo.project.plan())
        (tmp_path / "question").write_text("hello")

    return write


def said(capsys, *arguments):
    run([*arguments])
    return "".join(capsys.readouterr())


def record(database):
    """What is on record of runs and of members, as text."""
    with psycopg.connect(database) as conn:
        found = conn.execute("SELECT o.error FROM fusion_operations AS o").fetchall()
        found += conn.execute("SELECT i.error FROM fusion_operation_inputs AS i").fetchall()
        rows = conn.execute(
            "SELECT o::text FROM fusion_operations AS o "
            "UNION ALL SELECT i::text FROM fusion_operation_inputs AS i"
        ).fetchall()
    assert "secret" not in str(rows)
    return [error for (error,) in found if error is not None]


FAILURES = {
    "plain": "RuntimeError: refused: ***",
    "quoted": 'KeyError: "***"',
    "escaped": "RuntimeError: GET /?key=***",
    "hinting": "refused",
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_member_that_fails_names_no_secret(project, database, capsys, name):
    project(name)
    found = said(capsys, "reactor", "run", "r", "--input", "question")
    assert f"{name}@1: {FAILURES[name]}" in found
    assert "secret" not in found
    assert record(database) == [f"r: {name}@1: {FAILURES[name]}", f"{name}@1: {FAILURES[name]}"]


@pytest.mark.parametrize("form", ["text", "json", "markdown"])
def test_a_member_that_is_skipped_names_none(project, database, capsys, form):
    project("plain", on_failure="skip")
    found = said(capsys, "reactor", "run", "r", "--input", "question", "--output", form)
    assert "RuntimeError: refused: ***" in found
    assert "secret" not in found
    assert record(database) == ["plain@1: RuntimeError: refused: ***"]


def test_a_strategy_that_fails_names_none(project, database, capsys):
    project("echo", strategy="leaky")
    found = said(capsys, "reactor", "run", "r", "--input", "question")
    assert "the strategy 'leaky' failed" in found
    assert "refused: ***" in found
    assert "secret" not in found
    assert "refused: ***" in record(database)[0]


def test_a_model_that_cannot_be_loaded_names_none(project, capsys):
    project("load")
    found = said(capsys, "reactor", "run", "r", "--input", "question")
    assert "load@1: RuntimeError: refused: ***" in found
    assert "secret" not in found


TOKENS = {"level": "tokens", "strategy": "weighted_average"}


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_a_model_whose_tokens_fail_names_none(project, database, capsys, name):
    project(name, **TOKENS)
    found = said(capsys, "reactor", "run", "r", "--input", "question")
    assert f"{name}@1: RuntimeError: refused: ***" in found
    assert "secret" not in found
    assert record(database)[0].endswith(f"{name}@1: RuntimeError: refused: ***")


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_a_text_that_cannot_be_measured_names_none(project, database, capsys, name):
    project(name, **TOKENS)
    found = said(capsys, "reactor", "eval", "r", "--text", "question")
    assert f"{name}@1: RuntimeError: refused: ***" in found
    assert "secret" not in found
    kept = [f"r: {name}@1: RuntimeError: refused: ***"] if name == "decode" else []
    assert record(database) == kept


def test_an_evaluation_keeps_the_words_of_errors_where_the_reactor_keeps_them(project, database):
    project("decode", **TOKENS, record="digest")
    assert run(["reactor", "eval", "r", "--text", "question"]) == 1
    assert record(database) == ["AH075: not kept"]


def test_of_two_secrets_the_longer_one_is_covered_whole(tmp_path):
    allowance = Allowance(
        directory=tmp_path,
        allow_paths=(),
        hosts=(),
        secrets=("SHORT", "LONG", "EMPTY", "ABSENT"),
        environ={"SHORT": "abc", "LONG": "abcdef\n", "EMPTY": " ", "OTHER": "xyz"},
    )
    assert allowance.cover("abcdef, abc, xyz and postgres://me:pw@host") == (
        "***, ***, xyz and postgres://me:***@host"
    )
