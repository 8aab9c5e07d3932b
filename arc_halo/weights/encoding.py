"""Which codec a chunk is stored with: the one asked for, or what makes it smallest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from arc_halo.store.chunks import NewChunk
from arc_halo.tensors import dtypes
from arc_halo.types import TensorCodec
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
    `zstd`, all else as both. With a `base` a delta is tried too.
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


def _bodies(
    store: WeightStore, raw: memoryview, dtype: str, wanted: str, base: Base | None
) -> Iterator[_Body]:
    named = None if wanted == AUTO else store.find_codec(wanted)
    if base is not None and len(base.raw) == len(raw):
        delta = named if named and named.needs_base else store.find_codec(DELTA)
        body = delta.encode(raw, dtype=dtype, base=base.raw)
        if body is not None:
            yield _Body(delta, body, base.digest)
    if named is None or named.needs_base:
        yield from _usual(store, raw, dtype)
    elif named.name != RAW and (body := named.encode(raw, dtype=dtype)) is not None:
        yield _Body(named, body)


def _usual(store: WeightStore, raw: memoryview, dtype: str) -> Iterator[_Body]:
    """What a dtype gives reason to try. Where planes pay for floats, zstd pays less."""
    is_float = dtypes.get_dtype(dtype).is_float
    for name in ("planes", "zstd"):
        codec = store.find_codec(name)
        body = codec.encode(raw, dtype=dtype)
        if body is not None:
            yield _Body(codec, body)
            if is_float:
                return
