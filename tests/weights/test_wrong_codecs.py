"""Codecs with mistakes in them: nothing is lost to one, and each is named."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from arc_halo.errors import CodecError, CorruptChunkError
from arc_halo.types import TensorCodec
from arc_halo.weights.recoding import recode
from arc_halo.weights.store import WeightStore
from arc_halo.weights.verifying import verify
from tests.weights.sets import made, noise, stored

RAW = {"t": noise("a", 600_000)}


def half(raw: memoryview, *, dtype: str) -> bytes:
    return bytes(raw[: len(raw) // 2])


def decode(body: memoryview, out: memoryview) -> None:
    out[: len(body)] = body


def failing(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("oh")


def narrow(raw: memoryview) -> bytes:
    return bytes(raw)


def codec(encode: Callable[..., Any], decode: Callable[..., Any] = decode) -> TensorCodec:
    return TensorCodec(name="wrong", version=1, summary="", encode=encode, decode=decode)


def with_codec(store: WeightStore, wrong: TensorCodec) -> WeightStore:
    return replace(store, codecs={**store.codecs, "wrong": wrong})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (codec(half), "'wrong' is not lossless"),
        (codec(failing), "'wrong' failed to encode a chunk of U8: ZeroDivisionError"),
        (codec(narrow), "'wrong' failed to encode a chunk of U8: TypeError"),
        (codec(half, failing), "'wrong' failed: ZeroDivisionError"),
    ],
)
def test_what_a_codec_spoils_is_never_stored(
    store: WeightStore, sql: Callable[..., Any], wrong: TensorCodec, told: str
) -> None:
    spoiling = with_codec(store, wrong)
    with pytest.raises(CodecError, match=told):
        made(spoiling, RAW, codec="wrong")
    assert sql("SELECT count(*) FROM chunk_bodies") == [(0,)]
    root = made(store, RAW)
    with pytest.raises(CodecError, match=told):
        recode(spoiling, codec="wrong")
    assert stored(store, root) == RAW


def test_a_codec_that_fails_to_decode_is_named_and_found(
    store: WeightStore,
) -> None:
    good = codec(
        lambda raw, *, dtype: zlib.compress(raw),
        lambda body, out: out.__setitem__(slice(None), zlib.decompress(body)),
    )
    text = {"t": b"all the same words " * 40_000}
    root = made(with_codec(store, good), text, codec="wrong")
    broken = with_codec(store, codec(half, failing))
    with pytest.raises(CorruptChunkError, match="'wrong' failed: ZeroDivisionError"):
        stored(broken, root)
    findings = verify(broken).findings
    assert {finding.codec for finding in findings} == {"wrong"}
    assert not any(finding.is_unread for finding in findings)
