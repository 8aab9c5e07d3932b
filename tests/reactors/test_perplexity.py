"""How well language models foretell a text together, by hand and by torch."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chains import Chain, reactor_of

from arc_halo.cli.main import run
from arc_halo.cli.perplexity import by_token
from arc_halo.errors import InvalidInputError, ReactorError
from arc_halo.manifest.params import with_defaults
from arc_halo.plugins import PluginManager
from arc_halo.reactors.perplexity import perplexity
from arc_halo.store import operations

WEIGHTS = Path(__file__).parents[2] / "examples" / "weights"


def test_perplexity_is_that_of_the_fused_logits():
    models = {"one": Chain(1), "two": Chain(2)}
    text = "abcabdacabbbddddaaabc"
    found = perplexity(reactor_of(models, weights={"one": 3.0}), text, window=8)
    nats, count = np.zeros(3), 0
    tokens = models["one"].encode(text)
    for start in range(0, len(tokens), 8):
        part = tokens[start : start + 8]
        for place in range(1, len(part)):
            one, two = (m.after(part[:place]) for m in models.values())
            for row, logits in enumerate((one, two, (3 * one + two) / 4)):
                nats[row] -= np.log(np.exp(logits) / np.exp(logits).sum())[part[place]]
            count += 1
    assert found.prediction_count == count == 18
    losses = [each.loss for each in (*found.members, found.fused)]
    assert losses == pytest.approx((nats / count).tolist(), rel=1e-12)
    assert [each.model for each in found.members] == ["one", "two"]
    assert found.fused.perplexity == pytest.approx(np.exp(nats[2] / count))


def test_a_cascade_foretells_by_the_first_member_that_is_sure_enough():
    models = {"one": Chain(1), "two": Chain(2)}
    members = {"one": {"priority": 2, "cost": 10.0}, "two": {"priority": 1, "cost": 1.0}}
    reactor = reactor_of(models, kind="cascade", members=members, level="answers", threshold=0.4)
    text = "abcabdacabbbddddaaabc"
    found = perplexity(reactor, text, window=8)
    nats, cost, count, asked = 0.0, 0.0, 0, 0
    tokens = models["one"].encode(text)
    for start in range(0, len(tokens), 8):
        part = tokens[start : start + 8]
        for place in range(1, len(part)):
            logits = models["two"].after(part[:place])
            cost += 1
            if (np.exp(logits) / np.exp(logits).sum()).max() < 0.4:
                logits = models["one"].after(part[:place])
                cost += 10
                asked += 1
            nats -= np.log(np.exp(logits) / np.exp(logits).sum())[part[place]]
            count += 1
    assert 0 < asked < count
    assert found.fused.loss == pytest.approx(nats / count, rel=1e-12)
    assert found.cost == pytest.approx(cost / count)


def test_perplexity_needs_every_member_and_some_text():
    class Broken(Chain):
        def score(self, tokens):
            raise RuntimeError("out of memory")

    reactor = reactor_of({"one": Chain(1), "two": Broken(2)}, on_failure="skip")
    with pytest.raises(ReactorError, match="two: RuntimeError: out of memory"):
        perplexity(reactor, "abc")
    with pytest.raises(InvalidInputError, match="two tokens at least"):
        perplexity(reactor, "a")
    with pytest.raises(ReactorError, match="201 tokens, and it takes 200"):
        perplexity(reactor_of({"one": Chain(1)}), "ab" * 101, window=202)
    reactor.plan = replace(reactor.plan, type="parallel")
    with pytest.raises(ReactorError, match="choir is of type parallel"):
        perplexity(reactor, "abc")


@pytest.mark.parametrize("name", ["voting", "contrastive"])
def test_a_token_that_was_ruled_out_is_an_infinite_loss(name):
    members = {"one": {"role": "primary"}}
    reactor = reactor_of({"one": Chain(1), "two": Chain(2)}, members=members)
    provided = PluginManager().strategy(name)
    params = with_defaults({}, provided.item.params_schema)
    reactor.fuser = replace(reactor.fuser, provided=provided, params=params)
    found = perplexity(reactor, "abcabdacabbbddddaaabc")
    assert found.fused.loss == found.fused.perplexity == math.inf
    told = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert told["fused"] == {"model": "choir", "loss": "Infinity", "perplexity": "Infinity"}
    assert told["members"][0]["loss"] == found.members[0].loss


def test_only_models_of_bytes_read_what_is_no_text():
    class Bytes(Chain):
        def __init__(self, seed):
            super().__init__(seed)
            self.vocabulary = replace(self.vocabulary, tokenizer="bytes")

        def encode(self, text):
            return [byte % 8 for byte in text.encode("utf-8", "surrogateescape")]

    odd = b"abc\xff\xfe".decode("utf-8", "surrogateescape")
    assert perplexity(reactor_of({"one": Bytes(1)}), odd).prediction_count == 4
    with pytest.raises(InvalidInputError, match="the text is not UTF-8"):
        perplexity(reactor_of({"one": Chain(1)}), odd)
    with pytest.raises(InvalidInputError, match="a text is needed, and this is bytes"):
        perplexity(reactor_of({"one": Bytes(1)}), b"abc")


def test_who_answers_as_a_whole_is_told_to_be_measured_by_tokens():
    models = {"one": Chain(1)}
    assert by_token(reactor_of(models).plan) is None
    for kind, does in (("cascade", "goes by whole answers"), ("ensemble", "fuses whole answers")):
        told = by_token(reactor_of(models, kind=kind, level="answers").plan)
        assert told is not None
        assert told.endswith(f"token by token; when it runs, it {does}")


def test_without_a_text_there_is_nothing_to_measure_on(capsys):
    assert run(["reactor", "eval", "choir"]) == 64
    assert "give `--data FILE` or `--text FILE`" in capsys.readouterr().err


@pytest.mark.torch
@pytest.mark.parametrize("text", ["scripture", "python", "general"])
def test_the_demos_perplexities_are_those_that_torch_comes_to(demo, references, text):
    import torch

    words = (WEIGHTS / f"eval_{text}.txt").read_text()
    windows = torch.tensor(list(words.encode())).reshape(-1, 256)
    with torch.inference_mode():
        one, two = (
            torch.cat([model(part).logits[:, :-1] for part in windows.split(16)]).double()
            for model in references
        )
    expected = [
        torch.nn.functional.cross_entropy(logits.mT, windows[:, 1:]).item()
        for logits in (one, two, (one + two) / 2)
    ]
    with demo.open_reactor("chorus") as reactor:
        found = perplexity(reactor, words)
    figures = (*found.members, found.fused)
    assert [each.loss for each in figures] == pytest.approx(expected, rel=1e-6)
    assert [each.perplexity for each in figures] == pytest.approx(np.exp(expected), rel=1e-6)
    with demo.connection() as conn:
        assert found.operation_id is not None
        operation = operations.operation(conn, found.operation_id)
        rows = operations.members(conn, found.operation_id)
    assert (operation.type, operation.status) == ("evaluation", "completed")
    assert operation.input_count == 128 * 255
    assert operation.output["fused"]["loss"] == found.fused.loss
    assert [row["output"]["model"] for row in rows] == ["scripture@1.0.0", "python@1.0.0"]
