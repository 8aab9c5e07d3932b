"""Tokenizers: a `tokenizer.json` read strictly, and the one of another with tokens added."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from arc_halo.errors import InvalidInputError
from arc_halo.types import JsonObject

FILE = "tokenizer.json"
MAX_BYTES = 128 * 2**20
MAX_TOKENS = 2**23
"""Beyond these a document is taken for a mistake; the largest known have an eighth of it."""


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A tokenizer's document as it was read, and what follows from it.

    `vocabulary` has the id of each token, `added` the entries of the tokens that were added to the
    model's own, `scores` those of a Unigram model.
    """

    document: bytes
    vocabulary: Mapping[str, int]
    added: Mapping[str, JsonObject]
    scores: Mapping[str, float]

    @cached_property
    def digest(self) -> bytes:
        return hashlib.sha256(self.document).digest()

    @cached_property
    def size(self) -> int:
        """The rows that a matrix with a row for each token has at least."""
        return max(self.vocabulary.values()) + 1

    @cached_property
    def tokens(self) -> tuple[str | None, ...]:
        """The tokens by id; None where no token has the id."""
        listed: list[str | None] = [None] * self.size
        for token, id_ in self.vocabulary.items():
            listed[id_] = token
        return tuple(listed)


def read_tokenizer(path: Path, label: str) -> Tokenizer:
    """The tokenizer at `path`. Raises `InvalidInputError`."""
    try:
        with path.open("rb") as file:
            document = file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise InvalidInputError(f"{label}: {exc.strerror}", code="AH011") from exc
    return parse_tokenizer(document, label)


def parse_tokenizer(document: bytes, label: str) -> Tokenizer:
    """What a `tokenizer.json` says. Raises `InvalidInputError` that says what is wrong with it."""
    try:
        return _parsed(document)
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError(
            f"{label} cannot be used as a tokenizer: {exc}",
            hint="name the tokenizer.json of a Hugging Face tokenizer",
            code="AH011",
        ) from exc


def with_tokens(
    tokenizer: Tokenizer, tokens: Iterable[tuple[str, Tokenizer]], first_id: int
) -> Tokenizer:
    """The tokenizer with `tokens`, each of another one, under the ids from `first_id` on.

    All stand in the model's own vocabulary, which is what gives them their ids. What was added in
    the other tokenizer is added here; of the rest only those are found in a text that the model
    comes to by itself.
    """
    new = list(tokens)
    if not new:
        return tokenizer
    data = json.loads(tokenizer.document)
    ids = {token: id_ for id_, (token, _) in enumerate(new, first_id)}
    vocabulary = {**tokenizer.vocabulary, **ids}
    added = {
        token: {**source.added[token], "id": ids[token]}
        for token, source in new
        if token in source.added
    }
    if isinstance(data["model"]["vocab"], dict):
        data["model"]["vocab"] = vocabulary
    else:
        data["model"]["vocab"] += _pieces(tokenizer, len(data["model"]["vocab"]), new, vocabulary)
    data["added_tokens"] = [*(data.get("added_tokens") or ()), *added.values()]
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return parse_tokenizer(text.encode(), "the union")


def _pieces(
    tokenizer: Tokenizer,
    start: int,
    new: Iterable[tuple[str, Tokenizer]],
    vocabulary: Mapping[str, int],
) -> list[list[Any]]:
    """What follows in a Unigram model's list, in which the place is the id."""
    lowest = min(tokenizer.scores.values(), default=0.0)
    scores = {token: source.scores.get(token, lowest) for token, source in new}
    by_id = {id_: token for token, id_ in vocabulary.items()}
    listed: list[list[Any]] = []
    for id_ in range(start, max(by_id) + 1):
        token = by_id.get(id_, f"<no token {id_}>")
        listed.append([token, scores.get(token, lowest)])
    return listed


def _parsed(document: bytes) -> Tokenizer:
    if len(document) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    data = json.loads(document.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    model = _mapping(data, "it").get("model")
    vocab = _mapping(model, "`model`").get("vocab")
    scores: dict[str, float] = {}
    if isinstance(vocab, list):
        scores = _scores(vocab)
        ids: dict[str, Any] = {token: id_ for id_, token in enumerate(scores)}
    else:
        ids = dict(_mapping(vocab, "`model.vocab`"))
    added = _added(data.get("added_tokens"))
    for token, entry in added.items():
        if ids.setdefault(token, entry.get("id")) != entry.get("id"):
            raise ValueError(f"the added token {token!r} has two ids")
    _check_ids(ids)
    return Tokenizer(document=document, vocabulary=ids, added=added, scores=scores)


def _mapping(value: object, what: str) -> JsonObject:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a mapping")
    return value


def _scores(vocab: list[Any]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for item in vocab:
        match item:
            case [str(token), (int() | float()) as score] if not isinstance(score, bool):
                if token in scores:
                    raise ValueError(f"the token {token!r} stands twice")
                scores[token] = score
            case _:
                raise ValueError("`model.vocab` is not a list of tokens with scores")
    return scores


def _added(value: object) -> dict[str, JsonObject]:
    found: dict[str, JsonObject] = {}
    if value is None:
        return found
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise ValueError("`added_tokens` is not a list of tokens with ids")
        if entry["content"] in found:
            raise ValueError(f"the added token {entry['content']!r} stands twice")
        found[entry["content"]] = entry
    return found


def _check_ids(ids: Mapping[str, Any]) -> None:
    if not ids:
        raise ValueError("it has no tokens")
    taken: dict[int, str] = {}
    for token, id_ in ids.items():
        if not isinstance(id_, int) or isinstance(id_, bool) or not 0 <= id_ < MAX_TOKENS:
            raise ValueError(f"the id of {token!r} is no whole number from 0 to {MAX_TOKENS - 1}")
        if (other := taken.setdefault(id_, token)) != token:
            raise ValueError(f"{other!r} and {token!r} have one id, {id_}")
    "".join(ids).encode()  # lone surrogates are no text


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice")
    return found


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")
