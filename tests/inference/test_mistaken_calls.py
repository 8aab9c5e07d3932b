"""Whoever calls with what makes no sense is told so in words, whatever it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import arc_halo
from arc_halo.errors import ArcHaloError, InvalidInputError, NotFoundError
from arc_halo.inference.token_texts import token_texts
from tests.cli.test_attention import add_capture

ROOT = b"r" * 32
NO_TEXTS: list[Any] = [5, 1.5, True, b"x", ["x"], {"a": 1}, object(), "\0", "\ud800"]
NO_COUNTS: list[Any] = [-1, 1.5, True, "5", "", b"x", [1], math.nan, 2**63, object(), slice(1)]


@pytest.fixture
def head(halo: arc_halo.Halo, database: str) -> Any:
    add_capture(database, [[1.0, 0.0], [0.5, 0.5]], label="one")
    return halo.inference.attention("one").head(0, 0)


def test_what_is_no_text_is_told(halo: arc_halo.Halo) -> None:
    inference = halo.inference
    filters: list[Callable[[Any], object]] = [
        lambda wrong: inference.list(model=wrong),
        lambda wrong: inference.list(tenant=wrong),
        lambda wrong: inference.list(status=wrong),
        lambda wrong: inference.activation_captures(model=wrong),
        lambda wrong: inference.attention_captures(model=wrong),
        lambda wrong: inference.attention_captures(label=wrong),
        lambda wrong: inference.delete_attention(label=wrong),
    ]
    names: list[Callable[[Any], object]] = [
        inference.get,
        inference.attention,
        inference.activation_capture,
        inference.delete_attention,
        inference.delete_activations,
    ]
    for wrong in NO_TEXTS:
        for call in filters:
            with pytest.raises(InvalidInputError):
                call(wrong)
        for call in names:
            with pytest.raises(NotFoundError):
                call(wrong)


def test_what_is_no_number_is_told(halo: arc_halo.Halo, head: Any) -> None:
    attention = halo.inference.attention("one")
    calls: list[Callable[[Any], object]] = [
        lambda wrong: halo.inference.list(limit=wrong),
        lambda wrong: halo.inference.activation_captures(limit=wrong),
        lambda wrong: halo.inference.attention_captures(limit=wrong),
        lambda wrong: attention.head(wrong, 0),
        lambda wrong: attention.head(0, wrong),
        attention.layer,
    ]
    for wrong in NO_COUNTS:
        for call in calls:
            with pytest.raises(InvalidInputError, match="cannot be"):
                call(wrong)
        with pytest.raises(InvalidInputError, match="is no head"):
            head.minus(wrong)
    for wrong in (*NO_COUNTS[1:], 2, -3):
        with pytest.raises(InvalidInputError, match="none at"):
            head.row(wrong)


def test_numbers_of_numpy_are_numbers(halo: arc_halo.Halo, head: Any) -> None:
    attention = halo.inference.attention("one")
    assert attention.head(np.int64(0), np.uint8(1)).row(np.int32(-1)).tolist() == [0.5, 0.5]
    assert len(attention.layer(np.int64(0))) == 2
    assert halo.inference.list(limit=np.int64(3)) == []


def test_what_was_never_given_to_a_model_is_told(halo: arc_halo.Halo) -> None:
    wrong: Any
    for wrong in (5, "x", ["x"], [("x", 1)], {5: 1}, {"\ud800": 1}):
        with pytest.raises(InvalidInputError, match="by name"):
            halo.inference.activations(ROOT, [1], inputs=wrong)
    for wrong in (object(), [[1], [1, 2]], ["x"], {"a": 1}, b"x", 2**70):
        for given in ({"attention_mask": wrong}, {"inputs": {"scale": wrong}}):
            with pytest.raises(InvalidInputError, match="are no numbers"):
                halo.inference.activations(ROOT, [1], **given)
        with pytest.raises(InvalidInputError, match="tokens"):
            halo.inference.activations(ROOT, wrong)
    for wrong in (b"x", "x", "sha256:00", 5, None, object(), bytearray(32)):
        with pytest.raises(ArcHaloError):
            halo.inference.activations(wrong, [1])


def test_what_are_no_positions_is_told(halo: arc_halo.Halo) -> None:
    slices = [slice("a", None), slice(0, 1, 0), slice(1.5)]
    for wrong in ("first", b"x", 1.5, math.inf, [1, "b"], [None], {"a"}, *slices):
        with pytest.raises(InvalidInputError, match="says no positions"):
            halo.inference.activations(ROOT, [1, 2], positions=wrong)  # type: ignore[arg-type]


def test_what_gives_no_texts_of_tokens_is_told() -> None:
    wrong: Any
    for wrong in (5, "abc", b"abc", object()):
        with pytest.raises(InvalidInputError, match="gives no texts"):
            token_texts(wrong)
    for wrong in (None, 5, ["a"], [], "abc"):
        with pytest.raises(InvalidInputError, match="2 tokens have"):
            token_texts(lambda ids, wrong=wrong: wrong)([1, 2])


@pytest.mark.torch
def test_what_cannot_be_captured_with_is_told(halo: arc_halo.Halo) -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(2, 2)).eval()
    wrongs: dict[str, list[Any]] = {
        "variant": [None, 5, b"x", ["x"], "\ud800"],
        "root": [5, b"x", "x", 1.5, ["x"]],
        "positions": ["first", 1.5, slice("a", None)],
        "dtype": ["F64", 5, ["F32"]],
        "budget_bytes": ["1GiB", -1],
        "ttl_seconds": ["1d", 0],
    }
    for name, values in wrongs.items():
        for wrong in values:
            with pytest.raises(ArcHaloError):
                halo.inference.capture(model, "0", **{name: wrong})
