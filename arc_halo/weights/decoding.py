"""From stored chunks to raw bytes, every digest verified."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

from arc_halo.errors import (
    ArcHaloError,
    BodyStoreError,
    CodecError,
    CorruptChunkError,
    MissingChunkError,
    UnknownPluginError,
)
from arc_halo.store.chunks import Encoded, StoredChunk, read_chunks_by_digest
from arc_halo.types import TensorCodec
from arc_halo.weights.store import WeightStore

DAMAGED = "`arc-halo tensors verify --repair-from FILE` heals it from the model's original file"

READ_AGAIN = 3
"""How often a body elsewhere is read again that does not fit its row."""

FETCHED_AT_ONCE = 16
"""Chunks whose bodies are asked of a body store together."""


def with_bodies(store: WeightStore, chunks: Iterable[StoredChunk]) -> Iterator[StoredChunk]:
    """The same chunks, those of the body store with their bodies fetched."""
    stream = iter(chunks)
    while batch := list(islice(stream, FETCHED_AT_ONCE if store.bodies else 1)):
        wanted = _elsewhere(store, batch)
        if not wanted or store.bodies is None:
            yield from batch
            continue
        found = store.bodies.bodies.get(wanted)
        for chunk in batch:
            yield replace(
                chunk, encoded=_filled(chunk.encoded, found), base=_filled(chunk.base, found)
            )


def decode_chunk(store: WeightStore, chunk: StoredChunk, out: memoryview) -> None:
    """Fill `out` with the chunk's raw bytes.

    A body elsewhere may have been written over since the row was read: both are then read again.
    Raises `MissingChunkError` and `CorruptChunkError`, neither of which knows the tensor.
    """
    for _ in range(READ_AGAIN):
        try:
            return _decode_checked(store, chunk, out)
        except CorruptChunkError:
            again = _read_again(store, chunk)
            if again is None:
                raise
            chunk = again
    return _decode_checked(store, chunk, out)


def _read_again(store: WeightStore, chunk: StoredChunk) -> StoredChunk | None:
    """The chunk as it is now, where its body or its base's was elsewhere and it is still there."""
    if all(e is None or e.store_id is None for e in (chunk.encoded, chunk.base)):
        return None
    with store.pool.connection() as conn:
        (now,) = with_bodies(store, read_chunks_by_digest(conn, [chunk.digest]))
    return None if now.encoded is None else replace(now, index=chunk.index)


def _decode_checked(store: WeightStore, chunk: StoredChunk, out: memoryview) -> None:
    encoded = chunk.encoded
    if encoded is None:
        raise MissingChunkError(f"chunk {chunk.index} is missing", hint=DAMAGED)
    try:
        _decode(store, encoded, chunk.base, out)
    except CodecError as exc:
        raise CorruptChunkError(
            f"chunk {chunk.index} cannot be decoded: {exc}", hint=DAMAGED
        ) from exc
    if hashlib.sha256(out).digest() != chunk.digest:
        raise CorruptChunkError(
            f"chunk {chunk.index} does not have the digest {chunk.digest.hex()[:16]}… "
            "it is named by",
            hint=DAMAGED,
        )


def decode_base(store: WeightStore, base: Encoded) -> memoryview:
    """The raw bytes of a base, whose digest is verified. Raises `CodecError`."""
    raw = memoryview(bytearray(base.raw_bytes))
    _decode(store, base, None, raw)
    if hashlib.sha256(raw).digest() != base.digest:
        raise CodecError(f"its base {base.digest.hex()[:16]}… is damaged")
    return raw


def _decode(store: WeightStore, encoded: Encoded, base: Encoded | None, out: memoryview) -> None:
    if encoded.body is None:
        raise CodecError(f"its body {encoded.digest.hex()[:16]}… is not in the body store")
    if encoded.raw_bytes != len(out):
        raise CodecError(f"it holds {encoded.raw_bytes} bytes, not {len(out)}")
    codec = store.find_codec(encoded.codec)
    if encoded.codec_version > codec.version:
        raise UnknownPluginError(
            f"a chunk was written by version {encoded.codec_version} of the codec {codec.name}, "
            f"version {codec.version} is loaded",
            hint="install the version that wrote these tensors, or a later one",
        )
    if not codec.needs_base:
        decode_with(codec, encoded.body, out)
    elif base is None:
        raise CodecError("it is a delta without a base")
    else:
        decode_with(codec, encoded.body, out, base=decode_base(store, base))


def decode_with(codec: TensorCodec, body: bytes | memoryview, out: memoryview, **base: Any) -> None:
    """What the codec makes of a body. Whatever it raises is a `CodecError` that names it."""
    try:
        codec.decode(memoryview(body), out, **base)
    except ArcHaloError:
        raise
    except Exception as exc:
        raise CodecError(f"the codec {codec.name!r} failed: {exc!r}") from exc


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say which tensor it is that a chunk is missing or damaged of."""
    with _prefixed(f"tensor {name!r}: "):
        yield


@contextmanager
def naming_chunk(digest: bytes) -> Iterator[None]:
    """Say which chunk it is, where it is looked at for itself."""
    with _prefixed(f"{digest.hex()[:16]}…: "):
        yield


@contextmanager
def _prefixed(text: str) -> Iterator[None]:
    try:
        yield
    except (CorruptChunkError, MissingChunkError) as exc:
        exc.message = text + exc.message
        raise


def _elsewhere(store: WeightStore, chunks: Iterable[StoredChunk]) -> list[bytes]:
    wanted = []
    for encoded in (e for chunk in chunks for e in (chunk.encoded, chunk.base) if e is not None):
        if encoded.store_id is None:
            continue
        if store.bodies is None or encoded.store_id != store.bodies.store_id:
            raise BodyStoreError(
                f"the chunk {encoded.digest.hex()[:16]}… is in body store {encoded.store_id}, "
                "which this project does not name",
                hint="`SELECT url FROM body_stores` says where it is: name it in `storage.bodies`",
            )
        wanted.append(encoded.digest)
    return wanted


def _filled(encoded: Encoded | None, found: Mapping[bytes, bytes | memoryview]) -> Encoded | None:
    if encoded is None or encoded.store_id is None:
        return encoded
    return replace(encoded, body=found.get(encoded.digest))
