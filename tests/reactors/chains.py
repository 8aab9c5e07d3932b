"""Small language models made of numpy, and ensembles of them of which nothing is recorded."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from arc_halo.manifest.reactors import RUN_DEFAULTS
from arc_halo.outputs import Outputs
from arc_halo.plugins import PluginManager
from arc_halo.reactors.asking import Panel
from arc_halo.reactors.fusing import Fuser
from arc_halo.reactors.plans import plan_of
from arc_halo.reactors.running import RunningReactor
from arc_halo.types import Vocabulary

SIZE = 12


class Chain:
    """A `TokenModel` whose logits depend on all that it has read; letters from `a` are tokens.

    It counts what it reads, and fails, or hangs, once it is asked for more than so many tokens.
    """

    def __init__(self, seed: int, *, fails_at: int | None = None, hangs_at: int | None = None):
        self.vocabulary = Vocabulary(size=SIZE, tokenizer="letters")
        self.end_tokens = frozenset({SIZE - 1})
        self.context_length: int | None = 200
        self.read_count = 0
        self.fails_at = fails_at
        self.hangs_at = hangs_at
        self.released = threading.Event()
        self._table = np.random.default_rng(seed).normal(size=(SIZE, SIZE))

    def answer(self, inputs: Sequence[Any]) -> Outputs:
        raise AssertionError("it is asked for tokens")

    @property
    def tokens(self) -> Chain:
        return self

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(ord("a") + token) for token in tokens)

    def score(self, tokens: Sequence[int]) -> np.ndarray:
        if self.context_length is not None and len(tokens) > self.context_length:
            raise ValueError(f"{len(tokens)} tokens, and it takes {self.context_length}")
        return np.stack([self.after(tokens[: end + 1]) for end in range(len(tokens))])

    def begin(self, prompts: Sequence[Sequence[int]]) -> ChainSession:
        return ChainSession(self, prompts)

    def after(self, tokens: Sequence[int]) -> np.ndarray:
        total = np.zeros(SIZE)
        for token in tokens:
            total = 0.7 * total + self._table[token]
        total[SIZE - 1] = len(tokens) - 30.0
        return total

    def take(self, texts: Sequence[Sequence[int]], new: int) -> np.ndarray:
        self.read_count += new
        longest = max(map(len, texts))
        if self.fails_at is not None and longest >= self.fails_at:
            raise RuntimeError("out of memory")
        if self.hangs_at is not None and longest >= self.hangs_at:
            self.released.wait(30)
        return np.stack([self.after(text) for text in texts])


class ChainSession:
    def __init__(self, model: Chain, prompts: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._texts = [list(prompt) for prompt in prompts]
        self.logits = model.take(self._texts, sum(map(len, self._texts)))

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        for text, token in zip(self._texts, tokens, strict=True):
            text.append(token)
        self.logits = self._model.take(self._texts, len(tokens))
        return self.logits

    def keep(self, rows: Sequence[int]) -> None:
        self._texts = [self._texts[row] for row in rows]


class Silent:
    def answer(self, inputs: Sequence[Any]) -> Outputs:
        return Outputs(texts=tuple("ab" for _ in inputs))


@contextmanager
def no_database():
    raise AssertionError("nothing is recorded")
    yield


def reactor_of(
    models: dict[str, Any], *, kind="ensemble", weights=None, members=None, strategy=None, **run
):
    """A running ensemble of these, of which nothing is recorded."""
    said = {
        "type": kind,
        "uses": "weighted_average",
        "params": {},
        "members": [
            {
                "model": name, "role": "secondary", "weight": (weights or {}).get(name, 1.0),
                "priority": None, "cost": 1.0, "domains": [], **(members or {}).get(name, {}),
            }
            for name in models
        ],
        "interactions": [],
        "run": {**RUN_DEFAULTS, "level": "tokens", "record": "none", **run},
    }  # fmt: skip
    plan = plan_of("choir", said, {name: {"runner": None} for name in models})
    provided = PluginManager().strategy(plan.strategy)
    if strategy is not None:
        provided = replace(provided, item=strategy)
    fuser = Fuser(reactor=plan.name, provided=provided, params=plan.params)
    return RunningReactor(plan, Panel(models), fuser, no_database)


def by_hand(models: Sequence[Chain], weights: Sequence[float], prompt: str, count: int) -> str:
    """The greedy text of a weighted mean of logits, everything read anew at every step."""
    tokens = models[0].encode(prompt)
    start = len(tokens)
    while len(tokens) - start < count:
        parts = [w * m.after(tokens) for m, w in zip(models, weights, strict=True)]
        chosen = int(np.argmax(sum(parts) / sum(weights)))
        if chosen == SIZE - 1:
            break
        tokens.append(chosen)
    return models[0].decode(tokens[start:])
