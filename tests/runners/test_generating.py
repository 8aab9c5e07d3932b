"""Tokens chosen and texts ended, without any model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import MemberError
from arc_halo.runners._tokenizers import ByteTokenizer
from arc_halo.runners.generating import Decoding, Text, choose, prompt_of, prompt_tokens


def text_of(decoding: Decoding, ends: frozenset[int] = frozenset()) -> Text:
    return Text(ByteTokenizer().decode, ends, decoding, prompt_count=1, context_length=None)


def written(given: bytes, **decoding) -> tuple[Text, list[str]]:
    text = text_of(Decoding(**{"max_tokens": len(given), **decoding}))
    pieces = [text.add(token, -1.0) for token in given if text.reason is None]
    return text, pieces


@given(st.binary(min_size=1, max_size=40))
def test_pieces_add_up_to_the_text_whatever_the_bytes(given):
    text, pieces = written(given)
    assert "".join(pieces) == text.text == given.decode("utf-8", "replace")
    assert text.reason == "length"


@given(st.text("ab", min_size=1, max_size=30), st.lists(st.text("ab", min_size=1, max_size=4)))
def test_a_text_ends_before_its_first_stop_and_shows_nothing_of_it(given, stops):
    text, pieces = written(given.encode(), stop=tuple(stops))
    assert "".join(pieces) == text.text
    ends = [end for stop in stops if (end := given.find(stop)) >= 0]
    assert all(stop not in text.text for stop in stops)
    if ends:
        assert given.startswith(text.text)
        assert text.reason == "stop"
    else:
        assert text.text == given


def test_a_character_is_shown_when_its_last_byte_has_come():
    assert written("aé€".encode())[1] == ["a", "", "é", "", "", "€"]


def test_a_token_that_ends_texts_is_not_part_of_one():
    text = text_of(Decoding(max_tokens=9), frozenset({0}))
    assert text.add(97, 0.0) + text.add(0, 0.0) == "a"
    assert text.usage == {"prompt_tokens": 1, "completion_tokens": 1, "finish_reason": "stop"}


def test_draws_have_the_frequencies_of_their_probabilities():
    logits = np.log(np.array([[0.5, 0.2, 0.3]]))
    decoding = Decoding(temperature=1, seed=5)
    drawn = [choose(logits, decoding, [0], step)[0][0] for step in range(4000)]
    assert np.bincount(drawn) / 4000 == pytest.approx([0.5, 0.2, 0.3], abs=0.03)
    drawn = [choose(logits, Decoding(temperature=0.5), [0], step)[0][0] for step in range(4000)]
    squares = np.array([0.25, 0.04, 0.09])
    assert np.bincount(drawn) / 4000 == pytest.approx(squares / squares.sum(), abs=0.03)


def test_a_draw_does_not_depend_on_who_else_is_in_the_batch():
    logits = np.random.default_rng(0).normal(size=(4, 50))
    decoding = Decoding(temperature=2, seed=1)
    together, _ = choose(logits, decoding, [0, 1, 2, 3], 7)
    assert choose(logits[[2]], decoding, [2], 7)[0] == [together[2]]


@pytest.mark.parametrize("temperature", [0, 0.1, 5])
def test_what_is_impossible_is_never_chosen(temperature):
    logits = np.array([[-np.inf, 0.0, -np.inf]])
    for step in range(50):
        assert choose(logits, Decoding(temperature=temperature), [0], step) == ([1], [0.0])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("hello", "hello"),
        ({"prompt": "hello"}, "hello"),
        ({"input": "hello", "domain": "x"}, "hello"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "user: hi\nassistant:"),
    ],
)
def test_inputs_are_texts_in_several_forms(given, expected):
    assert prompt_of(given) == expected


class Conversing:
    def encode(self, text):
        return [text]

    def encode_chat(self, messages):
        return [(each["role"], each["content"]) for each in messages]


HI = {"role": "user", "content": "hi"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}
ANSWERS = [{"model": "a@1", "kind": "feeds_into", "answer": "A"}]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"messages": [HI]}, [("user", "hi")]),
        ({"messages": [PARTS], "input": "hi"}, [("user", "hi")]),
        ({"messages": [{**HI, "role": "system"}, HI]}, [("system", "hi"), ("user", "hi")]),
        (
            {"messages": [HI], "answers": ANSWERS},
            [("user", "hi\n\nAnswers of other models:\n\n[a@1, feeds_into]\nA")],
        ),
        (
            {"input": {"messages": [HI]}, "member": "a@1", "answer": "A"},
            [("user", "user: hi\n\nAnswer of a@1:\n\nA")],
        ),
        ("hi", ["hi"]),
        ({"input": "hi"}, ["hi"]),
        ({"messages": [], "input": "hi"}, ["hi"]),
    ],
)
def test_a_conversation_is_read_as_the_model_reads_one(given, expected):
    assert prompt_tokens(Conversing(), given) == expected


def test_a_model_that_reads_no_conversations_gets_lines():
    model = Conversing()
    model.encode_chat = None
    assert prompt_tokens(model, {"messages": [HI]}) == ["user: hi\nassistant:"]


def test_what_is_no_conversation_is_refused():
    with pytest.raises(MemberError, match=r"no list of \{role, content\}"):
        prompt_tokens(Conversing(), {"messages": ["hi"]})


@pytest.mark.parametrize("given", [3, None, {}, {"messages": []}, {"messages": ["hi"]}])
def test_what_holds_no_text_is_refused(given):
    with pytest.raises(MemberError, match="an input is no text"):
        prompt_of(given)
