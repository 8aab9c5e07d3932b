"""A project whose reactors answer, fail and take their time, as their predictors are told to."""

from __future__ import annotations

import json
from pathlib import Path

SECRET = "sk-secret-of-the-project-01234"
MEMBERS = 20

PLUGIN = """
import hashlib
import os
import time

import numpy as np

from contextlib import contextmanager

from arc_halo import FusionStrategy, ModelRunner, Outputs, Predictor, Vocabulary, hookimpl

FACES = ("heads", "tails")


@hookimpl
def arc_halo_fusion_strategies():
    yield FusionStrategy(name="first", summary="the first answer", combine_outputs=first)


@hookimpl
def arc_halo_predictors():
    for predict in (echo, coin, broken, slow, wordless):
        yield Predictor(name=predict.__name__, summary="for tests", predict=predict)
    yield Predictor(name="flaky", summary="for tests", predict=flaky, load=lambda c: c.model)


@hookimpl
def arc_halo_runners():
    yield ModelRunner(name="letters", summary="writes the alphabet, slowly", open=open_letters)


@contextmanager
def open_letters(context):
    yield Letters()


class Letters:
    vocabulary = Vocabulary(size=27, tokenizer="letters")
    end_tokens = frozenset({26})
    context_length = 40

    @property
    def tokens(self):
        return self

    def encode(self, text):
        return [ord(each) - ord("a") for each in text]

    def decode(self, tokens):
        return "".join(chr(ord("a") + each) for each in tokens)

    def begin(self, prompts):
        return Writing([list(prompt) for prompt in prompts])


class Writing:
    def __init__(self, texts):
        self.texts = texts

    @property
    def logits(self):
        time.sleep(0.03)
        if any(text[0] == 25 and len(text) > 3 for text in self.texts):
            raise RuntimeError("refused: " + os.environ["SERVING_TEST_KEY"])
        return np.eye(27)[[text[-1] + 1 for text in self.texts]] * 50

    def step(self, tokens):
        for text, token in zip(self.texts, tokens, strict=True):
            text.append(token)
        return self.logits

    def keep(self, rows):
        self.texts = [self.texts[row] for row in rows]


def first(outputs, context):
    return outputs[0]


def text(given):
    return given["input"] if isinstance(given, dict) else given


def echo(inputs):
    return Outputs(
        texts=tuple(f"you said {text(each)}" for each in inputs),
        details={"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}},
    )


def coin(inputs):
    return Outputs(scores=np.tile([0.75, 0.25], (len(inputs), 1)), classes=FACES)


def broken(inputs):
    raise RuntimeError("refused: " + os.environ["SERVING_TEST_KEY"])


def slow(inputs):
    time.sleep(float(text(inputs[0])))
    return [f"slept {text(each)}" for each in inputs]


def wordless(inputs):
    return Outputs(scores=np.ones((len(inputs), 2)), meaning="vectors")


def flaky(model, inputs):
    seen = hashlib.sha256(f"{model} {text(inputs[0])}".encode()).digest()
    if seen[0] < 0.05 * 256:
        raise RuntimeError("one of twenty")
    return coin(inputs)
"""


def write_project(directory: Path) -> None:
    """Write a project with a reactor of each predictor, and `many` of twenty that fail at times."""
    (directory / "plugins").mkdir(parents=True)
    (directory / "plugins" / "predictors.py").write_text(PLUGIN)
    models, reactors = {}, {}
    for name in ("echo", "coin", "broken", "slow", "wordless"):
        models[f"{name}@1"] = _model(name)
        reactors[name] = {
            "type": "ensemble",
            "strategy": "first",
            "members": [{"model": name}],
        }
    for number in range(MEMBERS):
        models[f"flaky{number}@1"] = _model("flaky")
    reactors["many"] = {
        "type": "ensemble",
        "strategy": "weighted_average",
        "members": [{"model": f"flaky{number}"} for number in range(MEMBERS)],
        "run": {"on_failure": "skip"},
    }
    models["letters@1"] = {"type": "other", "runner": {"uses": "letters"}}
    reactors["letters"] = {
        "type": "ensemble",
        "strategy": "weighted_average",
        "members": [{"model": "letters"}],
        "run": {"level": "tokens", "max_tokens": 12},
    }
    document = {
        "version": 1,
        "project": "serving",
        "plugins": ["plugins/predictors.py"],
        "settings": {"allow": {"secrets": ["SERVING_TEST_KEY"]}},
        "models": models,
        "reactors": reactors,
    }
    (directory / "arc_halo.yaml").write_text(json.dumps(document))


def _model(predictor: str) -> dict[str, object]:
    return {
        "type": "other",
        "architecture": {},
        "runner": {"uses": "python", "params": {"predictor": predictor}},
    }
