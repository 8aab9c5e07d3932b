"""Language models fused token by token: small ones made of numpy, and those of the demo."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from chains import SIZE, Chain, Silent, by_hand, reactor_of

from arc_halo import connect
from arc_halo.errors import OutputError, ReactorError
from arc_halo.outputs import Outputs
from arc_halo.reactors.tokens import logits_of, token_models
from arc_halo.runners.generating import log_softmax
from arc_halo.store import operations
from arc_halo.types import FusionStrategy, Vocabulary

PROMPTS = ["abc", "cab", "b", "aabbccdd"]


def test_the_text_is_that_of_the_fused_logits_and_nothing_is_read_twice():
    models = {"one": Chain(1), "two": Chain(2)}
    answer = reactor_of(models, weights={"one": 3.0}).run(PROMPTS)
    expected = [by_hand([Chain(1), Chain(2)], [3, 1], prompt, 64) for prompt in PROMPTS]
    assert list(answer.outputs.texts) == expected
    assert answer.outputs.details["finish_reason"] == ["stop"] * 4
    for model in models.values():
        # Each prompt and each token once; a text goes no further than the token that ends it.
        assert model.read_count == sum(map(len, PROMPTS)) + sum(map(len, expected))


def test_each_member_is_on_record_with_its_own_choices_and_how_likely_it_found_the_text():
    models = {"one": Chain(1), "two": Chain(2)}
    answer = reactor_of(models, max_tokens=10).run(["abc"])
    (text,) = answer.outputs.texts
    for asked in answer.members:
        model = models[asked.member.model]
        tokens = model.encode("abc" + text)
        rows = log_softmax(model.score(tokens)[2:-1])
        assert asked.outputs.texts == (model.decode(rows.argmax(axis=1).tolist()),)
        nats = rows[np.arange(10), tokens[3:]].mean()
        assert asked.outputs.confidence[0] == pytest.approx(np.exp(nats))
    assert answer.cost == 2


def test_a_drawn_text_is_drawn_from_the_fused_logits_by_the_seed():
    def texts(seed):
        reactor = reactor_of({"one": Chain(1), "two": Chain(2)}, temperature=0.9, seed=seed)
        return reactor.run(["abc", "abc"]).outputs.texts

    assert texts(1) == texts(1)
    assert len({*texts(1), *texts(2)}) == 4


def test_a_conversation_is_read_by_all_as_the_first_one_reads_it():
    class Conversing(Chain):
        def encode_chat(self, messages):
            return self.encode("".join(each["content"] for each in messages))

    chat = {"messages": [{"role": "user", "content": "ab"}, {"role": "user", "content": "c"}]}
    reactor = reactor_of({"one": Conversing(1), "two": Chain(2)})
    assert reactor.run([chat]).outputs.texts == reactor.run(["abc"]).outputs.texts


def test_a_stream_gives_the_text_in_pieces():
    reactor = reactor_of({"one": Chain(1), "two": Chain(2)}, max_tokens=20)
    pieces = list(reactor.stream("abc"))
    assert "".join(pieces) == reactor.run(["abc"]).outputs.texts[0]
    assert len(pieces) == 20


def test_a_stream_that_nobody_listens_to_stops_asking():
    models = {"one": Chain(1), "two": Chain(2)}
    stream = reactor_of(models).stream("abc")
    next(stream)
    stream.close()
    assert models["one"].read_count == 3


def test_a_reactor_of_whole_answers_streams_its_text_in_one_piece():
    first = FusionStrategy(
        name="first", version=1, summary="", combine_outputs=lambda outputs, context: outputs[0]
    )
    reactor = reactor_of({"one": Silent()}, strategy=first, level="answers")
    assert list(reactor.stream("abc")) == ["ab"]
    with pytest.raises(OutputError, match="scores are needed"):
        list(reactor_of({"one": Silent()}, level="answers").stream("abc"))


def test_a_member_that_fails_is_left_out_from_then_on():
    models = {"one": Chain(1), "two": Chain(2, fails_at=8)}
    answer = reactor_of(models, on_failure="skip", max_tokens=20).run(["abc"])
    (text,) = answer.outputs.texts
    first = by_hand([Chain(1), Chain(2)], [1, 1], "abc", 5)
    assert text == first + by_hand([Chain(1)], [1], "abc" + first, 15)
    assert answer.left_out == {"two": "two: RuntimeError: out of memory"}
    assert models["two"].read_count == 8


def test_a_failure_ends_the_run_where_the_policy_is_to_fail():
    models = {"one": Chain(1), "two": Chain(2, fails_at=8)}
    with pytest.raises(ReactorError, match="two: RuntimeError: out of memory"):
        reactor_of(models).run(["abc"])


def test_a_run_ends_when_too_few_members_are_left():
    models = {"one": Chain(1), "two": Chain(2, fails_at=8)}
    with pytest.raises(ReactorError, match="its quorum is 2"):
        reactor_of(models, on_failure="skip", quorum=2).run(["abc"])


@pytest.mark.parametrize("role", ["secondary", "validator"])
def test_another_member_stands_in_for_one_that_fails(role):
    models = {"one": Chain(1), "two": Chain(2, fails_at=8), "three": Chain(3)}
    reactor = reactor_of(
        models, on_failure="fallback", fallback="three", max_tokens=20,
        members={"three": {"role": role}},
    )  # fmt: skip
    (text,) = reactor.run(["abc"]).outputs.texts
    others = [Chain(3)] if role == "secondary" else []
    ones = [1] * (2 + len(others))
    first = by_hand([Chain(1), Chain(2), *others], ones, "abc", 5)
    assert text == first + by_hand([Chain(1), Chain(3), *others], ones, "abc" + first, 15)


def test_the_timeout_is_for_all_that_a_member_does():
    models = {"one": Chain(1), "two": Chain(2, hangs_at=6)}
    reactor = reactor_of(models, on_failure="skip", timeout=1.0, max_tokens=8)
    answer = reactor.run(["abc"])
    models["two"].released.set()
    assert answer.left_out == {"two": "two: no answer within 1 s"}
    assert answer.execution_ms < 5000
    assert len(answer.outputs.texts[0]) == 8


def test_specialists_have_a_say_in_texts_of_their_domain():
    models = {"one": Chain(1), "two": Chain(2)}
    members = {"two": {"role": "specialist", "domains": ["law"]}}
    reactor = reactor_of(models, members=members, max_tokens=12)
    answer = reactor.run([{"prompt": "abc"}, {"prompt": "abc", "domain": "law"}])
    assert answer.outputs.texts == (
        by_hand([Chain(1)], [1], "abc", 12),
        by_hand([Chain(1), Chain(2)], [1, 1], "abc", 12),
    )


def test_members_of_other_vocabularies_are_refused():
    models = {"one": Chain(1), "two": Chain(2)}
    models["two"].vocabulary = Vocabulary(size=SIZE, tokenizer="runes")
    reactor = reactor_of(models)
    with pytest.raises(ReactorError, match="one and two have other vocabularies"):
        token_models(reactor.plan, reactor.panel)


def test_a_member_that_answers_only_as_a_whole_is_refused():
    reactor = reactor_of({"one": Chain(1), "two": Silent()})
    with pytest.raises(ReactorError, match="two has no tokens to fuse"):
        reactor.run(["abc"])


def test_scores_that_are_no_logits_choose_no_token():
    logits = logits_of(Outputs(scores=np.array([[0.25, 0.75, 0.0]])), 3, "r")
    np.testing.assert_array_equal(np.exp(logits), [[0.25, 0.75, 0.0]])
    with pytest.raises(OutputError, match="makes vectors of logits"):
        logits_of(Outputs(scores=np.ones((1, 3)), meaning="vectors"), 3, "r")
    with pytest.raises(OutputError, match="makes labels of logits"):
        logits_of(Outputs(labels=("a",)), 3, "r")


@pytest.mark.torch
def test_the_demos_ensemble_writes_what_torch_writes_without_a_cache(demo, references, database):
    import torch

    expected = []
    for prompt in ("In the beginning", "def __init__("):
        tokens = list(prompt.encode())
        for _ in range(48):
            with torch.inference_mode():
                rows = [model(torch.tensor([tokens])).logits[0, -1] for model in references]
            tokens.append(int(sum(row.double() for row in rows).argmax()))
        expected.append(bytes(tokens[len(prompt) :]).decode())
    with connect(database, project=demo.directory) as halo:
        chorus = halo.reactors["chorus"]
        answer = chorus.run(["In the beginning", "def __init__("])
        assert list(answer.outputs.texts) == expected
        assert "".join(chorus.stream("def __init__(")) == expected[1]
        stream = chorus.stream("def __init__(")
        next(stream)
        stream.close()
    with demo.connection() as conn:
        rows = conn.execute(
            "SELECT status, error FROM fusion_operations WHERE operation_type = 'ensemble'"
            " ORDER BY created_at"
        ).fetchall()
        asked = operations.members(conn, answer.operation_id)
    assert rows == [
        ("completed", None), ("completed", None), ("failed", "nobody listened to the end"),
    ]  # fmt: skip
    assert [row["status"] for row in asked] == ["answered", "answered"]
    assert [row["answered_count"] for row in asked] == [2, 2]


def test_threads_do_not_become_more_with_every_answer():
    reactor = reactor_of({"one": Chain(1), "two": Chain(2)}, max_tokens=3)
    for _ in range(3):
        reactor.run(["abc"])
    before = threading.active_count()
    for _ in range(20):
        reactor.run(["abc"])
    assert threading.active_count() <= before + 1
