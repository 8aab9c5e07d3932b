"""Tokenizers read strictly, and made larger: every token keeps its id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import InvalidInputError
from arc_halo.manifest import tokenizers
from arc_halo.manifest.tokenizers import parse_tokenizer, read_tokenizer, with_tokens


def bpe(vocab: Any, added: Any = ()) -> bytes:
    return json.dumps({"model": {"type": "BPE", "vocab": vocab}, "added_tokens": added}).encode()


def entry(token: str, id_: int, **flags: Any) -> dict[str, Any]:
    return {"id": id_, "content": token, "special": True, **flags}


def test_the_vocabulary_is_the_model_s_and_what_was_added() -> None:
    found = parse_tokenizer(bpe({"a": 1, "b": 0}, [entry("b", 0), entry("<s>", 4)]), "t")
    assert found.vocabulary == {"a": 1, "b": 0, "<s>": 4}
    assert found.size == 5
    assert found.tokens == ("b", "a", None, None, "<s>")


def test_of_unigram_the_place_is_the_id() -> None:
    found = parse_tokenizer(bpe([["<unk>", 0], ["a", -1.5]]), "t")
    assert found.vocabulary == {"<unk>": 0, "a": 1}
    assert found.scores == {"<unk>": 0, "a": -1.5}


WRONG: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "Expecting"),
    "no text": (b"\xff", "utf-8"),
    "a list": (b"[]", "it is not a mapping"),
    "no model": (b"{}", "`model` is not a mapping"),
    "no vocabulary": (b'{"model": {}}', "`model.vocab` is not a mapping"),
    "no tokens": (bpe({}), "it has no tokens"),
    "a key twice": (b'{"model": {"vocab": {"a": 0, "a": 1}}}', "the key 'a' stands twice"),
    "an id twice": (bpe({"a": 0, "b": 0}), "'a' and 'b' have one id, 0"),
    "two ids": (bpe({"a": 0}, [entry("a", 1)]), "the added token 'a' has two ids"),
    "added twice": (bpe({}, [entry("a", 1), entry("a", 1)]), "'a' stands twice"),
    "no entry": (bpe({"a": 0}, ["a"]), "not a list of tokens"),
    "a negative id": (bpe({"a": -1}), "the id of 'a' is no whole number"),
    "a truth": (bpe({"a": True}), "the id of 'a' is no whole number"),
    "an id too large": (bpe({"a": 2**23}), "from 0 to 8388607"),
    "a piece without a score": (bpe([["a"]]), "not a list of tokens with scores"),
    "a piece twice": (bpe([["a", 0], ["a", 0]]), "the token 'a' stands twice"),
    "a number that is none": (b'{"model": {"vocab": [["a", NaN]]}}', "NaN is not a JSON number"),
    "a surrogate": (b'{"model": {"vocab": {"\\ud800": 0}}}', "surrogates not allowed"),
    "too deep": (b'{"x": ' + b"[" * 100_000, "recursion"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told(case: str) -> None:
    document, told = WRONG[case]
    with pytest.raises(InvalidInputError) as caught:
        parse_tokenizer(document, "poet/tokenizer.json")
    assert told in caught.value.message
    assert "poet/tokenizer.json cannot be used as a tokenizer" in caught.value.message


def test_a_document_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "MAX_BYTES", 100)
    (tmp_path / "t.json").write_bytes(b" " * 101)
    with pytest.raises(InvalidInputError, match="more than 100 bytes"):
        read_tokenizer(tmp_path / "t.json", "t")
    with pytest.raises(InvalidInputError, match="No such file"):
        read_tokenizer(tmp_path / "none.json", "t")


TOKENS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), unique=True)


@given(own=TOKENS.filter(bool), other=TOKENS.filter(bool), kinds=st.tuples(*[st.booleans()] * 4))
def test_a_union_keeps_every_id_whatever_the_kinds(
    own: list[str], other: list[str], kinds: tuple[bool, ...]
) -> None:
    first = parse_tokenizer(made(own, is_list=kinds[0], has_added=kinds[1]), "first")
    second = parse_tokenizer(made(other, is_list=kinds[2], has_added=kinds[3]), "second")
    new = [(token, second) for token in second.tokens if token and token not in first.vocabulary]
    union = with_tokens(first, new, first.size)
    assert {t: union.vocabulary[t] for t in first.vocabulary} == first.vocabulary
    expected = {token: first.size + place for place, (token, _) in enumerate(new)}
    assert {token: union.vocabulary[token] for token, _ in new} == expected
    assert union.added.keys() >= first.added.keys() | (second.added.keys() - first.vocabulary)
    assert parse_tokenizer(union.document, "again") == union
    assert (union is first) == (not new)


def made(tokens: list[str], *, is_list: bool, has_added: bool) -> bytes:
    """The last token is an added one, behind a hole."""
    own = tokens[:-1] if has_added and len(tokens) > 1 else tokens
    added = [entry(token, len(own) + 1) for token in tokens[len(own) :]]
    vocab = [[t, -1.0] for t in own] if is_list else {t: id_ for id_, t in enumerate(own)}
    return bpe(vocab, added)
