"""Which codec a chunk is stored with: the one asked for, or what makes it smallest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from arc_halo.errors import ArcHaloError, CodecError
from arc_halo.store.chunks import NewChunk
from arc_halo.tensors import dtypes
from arc_halo.types import TensorCodec
from arc_halo.weights.decoding import decode_with
from arc_halo.weights.store import AUTO, DELTA, WeightStore

RAW = "raw"
"""What is left when nothing pays: the raw bytes themselves, without a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A chunk to take deltas against: no delta itself, its raw bytes at hand."""

    digest: bytes
    raw: memoryview


@dataclass(frozen=True, slots=True)
class _Body:
    codec: TensorCodec
    body: bytes
    base_digest: bytes | None = None


def encode_chunk(
    store: WeightStore,
    digest: bytes,
    raw: bytes | memoryview,
    *,
    dtype: str,
    codec: str | None = None,
    base: Base | None = None,
) -> NewChunk:
    """The chunk as it will be stored: the smallest body of those tried, else the raw bytes.

    `codec` names the one to try; without it, or as `auto`, floats are tried as `planes` and then
    `zstd`, all else as both. With a `base` a delta is tried too. What a plugin's codec has made is
    decoded again before it counts: a mistake in it must not cost a tensor. Raises `CodecError`.
    """
    view = memoryview(raw)
    best: _Body | None = None
    for body in _bodies(store, view, dtype, codec or store.codec or AUTO, base):
        if len(body.body) < min(len(view), len(best.body) if best else len(view)):
            best = body
    chosen = best.codec if best else store.find_codec(RAW)
    return NewChunk(
        digest=digest,
        raw_bytes=len(view),
        codec=chosen.name,
        codec_version=chosen.version,
        body=best.body if best else raw,
        base_digest=best.base_digest if best else None,
    )


def encode_with(codec: TensorCodec, raw: memoryview, dtype: str, **base: Any) -> bytes | None:
    """The body that a codec makes of a chunk, or None. Raises `CodecError` for a codec that fails,
    or that does not give the same bytes back."""
    try:
        body: bytes | None = codec.encode(raw, dtype=dtype, **base)
    except ArcHaloError:
        raise
    except Exception as exc:
        raise CodecError(
            f"the codec {codec.name!r} failed to encode a chunk of {dtype}: {exc!r}",
            hint="nothing was stored; `arc_halo.testing.CodecContract` says what a codec promises",
        ) from exc
    if body is not None and not _is_ours(codec):
        _check(codec, raw, body, **base)
    return body


def _bodies(
    store: WeightStore, raw: memoryview, dtype: str, wanted: str, base: Base | None
) -> Iterator[_Body]:
    named = None if wanted == AUTO else store.find_codec(wanted)
    if base is not None and len(base.raw) == len(raw):
        delta = named if named and named.needs_base else store.find_codec(DELTA)
        body = encode_with(delta, raw, dtype, base=base.raw)
        if body is not None:
            yield _Body(delta, body, base.digest)
    if named is None or named.needs_base:
        yield from _usual(store, raw, dtype)
    elif named.name != RAW and (body := encode_with(named, raw, dtype)) is not None:
        yield _Body(named, body)


def _usual(store: WeightStore, raw: memoryview, dtype: str) -> Iterator[_Body]:
    """What a dtype gives reason to try. Where planes pay for floats, zstd pays less."""
    is_float = dtypes.get_dtype(dtype).is_float
    for name in ("planes", "zstd"):
        codec = store.find_codec(name)
        body = encode_with(codec, raw, dtype)
        if body is not None:
            yield _Body(codec, body)
            if is_float:
                return


def _check(codec: TensorCodec, raw: memoryview, body: bytes, **base: Any) -> None:
    out = memoryview(bytearray(len(raw)))
    decode_with(codec, body, out, **base)
    if out != raw:
        raise CodecError(
            f"the codec {codec.name!r} is not lossless: what it encoded does not decode to the "
            "same bytes",
            hint="nothing was stored; `arc_halo.testing.CodecContract` says what a codec promises",
        )


def _is_ours(codec: TensorCodec) -> bool:
    """Whether our own tests hold it to its promise, so that it is not asked each time."""
    return codec.encode.__module__.startswith("arc_halo.codecs.")
