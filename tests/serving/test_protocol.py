"""OpenAI's forms as pure functions: no body breaks them, and every answer has a text."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.outputs import Outputs
from arc_halo.reactors.asking import Asked
from arc_halo.reactors.plans import Member
from arc_halo.reactors.running import Answer
from arc_halo.serving.counting import reasons_of, usage_of
from arc_halo.serving.metrics import BOUNDS, Metrics
from arc_halo.serving.protocol import answer_events, answer_json, texts_of
from arc_halo.serving.questions import Question, Refusal, parse_question

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["model", "messages", "prompt", "stream", "stream_options", "n", "tools", "logprobs", "x"]
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": VALUES})
)


def parsed(api, body):
    try:
        return parse_question(api, body)
    except Refusal as refusal:
        return refusal


@given(
    st.sampled_from(["chat", "completions"]),
    st.dictionaries(FIELDS, VALUES | MESSAGES, max_size=5),
    st.booleans(),
)
def test_every_body_is_a_question_or_is_refused(api, document, has_model):
    body = json.dumps({**document, **({"model": "m"} if has_model else {})}).encode()
    question = parsed(api, body)
    if isinstance(question, Refusal):
        assert question.status == 400
        assert json.dumps(question.as_json())
        return
    assert len(question.inputs) >= 1
    # What is asked is written down as JSON, which PostgreSQL takes.
    assert "\\u0000" not in json.dumps(question.inputs, allow_nan=False)


@given(st.binary(max_size=50))
def test_bytes_are_a_question_or_are_refused(body):
    with pytest.raises(Refusal):
        parse_question("chat", body)


def member(name):
    return Member(
        model=name, role="primary", weight=1.0, priority=None, cost=1.0, domains=(), runner=None
    )


def answer(outputs=None, side_by_side=None, members=()):
    return Answer(
        outputs=outputs, side_by_side=side_by_side or {}, left_out={}, members=members, cost=1.0,
        execution_ms=1.0, operation_id=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        (Outputs(texts=("a",), labels=("b",)), "a"),
        (Outputs(labels=(3,), scores=np.array([[1.0]])), "3"),
        (Outputs(labels=(True,)), "true"),
        (Outputs(scores=np.array([[0.2, 0.8]]), classes=("no", "yes")), "yes"),
        (Outputs(scores=np.array([[0.2, 0.8]])), "1"),
        (Outputs(rankings=(("x", "y"),)), "x"),
        (Outputs(scores=np.array([[0.5, 2.0]]), meaning="vectors"), "[0.5, 2.0]"),
    ],
    ids=["text", "label", "truth", "class", "column", "ranking", "vector"],
)
def test_the_text_is_what_says_most(outputs, text):
    assert texts_of(answer(outputs), 1) == [text]


def test_members_side_by_side_are_an_object_for_each_input():
    every, some = Outputs(texts=("a", "b")), Outputs(labels=("x",))
    members = (
        Asked(member=member("every@1"), indexes=(0, 1), outputs=every),
        Asked(member=member("some@1"), indexes=(1,), outputs=some),
    )
    found = texts_of(answer(None, {"every@1": every, "some@1": some}, members), 2)
    assert [json.loads(each) for each in found] == [
        {"every@1": "a"},
        {"every@1": "b", "some@1": "x"},
    ]


def test_usage_is_what_members_count_and_nothing_else():
    outputs = [
        Outputs(texts=("a",), details={"usage": {"total_tokens": 3, "prompt_tokens": None}}),
        Outputs(texts=("a",), details={"usage": {"total_tokens": 4}}),
        Outputs(texts=("a",), details={"usage": "much"}),
        Outputs(texts=("a",)),
    ]
    members = tuple(
        Asked(member=member(f"m{place}@1"), indexes=(0,), outputs=each)
        for place, each in enumerate(outputs)
    )
    assert usage_of(answer(outputs[0], members=members)) == {
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 7,
    }


def test_tokens_are_counted_input_by_input_too():
    counted = {"prompt_tokens": [3, 4], "completion_tokens": [5, None]}
    outputs = Outputs(texts=("a", "b"), details=counted)
    members = (Asked(member=member("m@1"), indexes=(0, 1), outputs=outputs),)
    expected = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    assert usage_of(answer(outputs, members=members)) == expected
    # Fused token by token: the answer counts, its members do not.
    silent = (Asked(member=member("m@1"), indexes=(0, 1), outputs=Outputs(texts=("a", "b"))),)
    assert usage_of(answer(outputs, members=silent)) == expected


def cut(indexes, texts, *reasons):
    outputs = Outputs(texts=texts, details={"finish_reason": list(reasons)})
    return Asked(member=member(f"m{indexes}@1"), indexes=indexes, outputs=outputs)


def test_a_text_was_cut_if_it_was_for_a_member_that_wrote_it():
    members = (
        cut((0, 1, 2), ("a", "b", "c"), "stop", "length", "length"),
        cut((2, 3), ("x", "d"), "length", "content_filter"),
        cut((0,), ("a",), "whatever"),
    )
    texts = ["a", "b", "z", "d"]
    found = reasons_of(answer(Outputs(texts=tuple(texts)), members=members), texts)
    assert found == ["stop", "length", "stop", "content_filter"]


def test_members_side_by_side_are_cut_where_one_of_them_is():
    members = (cut((0, 1), ("a", "b"), "stop", "length"), cut((0,), ("x",), None))
    assert reasons_of(answer(None, members=members), ["{}", "{}"]) == ["stop", "length"]


def test_the_answers_own_reasons_come_first():
    fused = Outputs(texts=("a", "b"), details={"finish_reason": ["length", "stop"]})
    assert reasons_of(answer(fused), ["a", "b"]) == ["length", "stop"]
    odd = Outputs(texts=("a", "b"), details={"finish_reason": ["length"]})
    assert reasons_of(answer(odd), ["a", "b"]) == ["stop", "stop"]


@given(st.lists(st.text(), min_size=1, max_size=3), st.sampled_from(["chat", "completions"]))
def test_a_stream_says_what_the_document_says(texts, api):
    question = Question(api=api, model="m", inputs=texts, is_streamed=True, wants_usage=False)
    given_answer = answer(Outputs(texts=tuple(texts)))
    streamed = [""] * len(texts)
    for event in answer_events(question, given_answer):
        data = event.removeprefix("data: ").removesuffix("\n\n")
        assert "\n" not in data
        if data == "[DONE]":
            break
        for choice in json.loads(data)["choices"]:
            said = choice["delta"].get("content", "") if api == "chat" else choice["text"]
            streamed[choice["index"]] += said
    whole = answer_json(question, given_answer)["choices"]
    said = [each["message"]["content"] if api == "chat" else each["text"] for each in whole]
    assert streamed == said == texts


@given(st.lists(st.floats(0, 200), max_size=30))
def test_buckets_are_cumulative(times):
    metrics = Metrics()
    for each in times:
        metrics.count("r", 200, each)
    lines = dict(line.rsplit(" ", 1) for line in metrics.text().splitlines() if line[0] != "#")
    for bound in BOUNDS:
        expected = sum(each <= bound for each in times)
        name = f'arc_halo_request_seconds_bucket{{reactor="r",le="{bound}"}}'
        assert int(lines.get(name, 0)) == expected


def test_labels_are_escaped():
    metrics = Metrics()
    metrics.count_failed('a"b\\c\nd', ["m"])
    assert 'reactor="a\\"b\\\\c\\nd"' in metrics.text()
