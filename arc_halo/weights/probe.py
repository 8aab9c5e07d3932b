"""A tensor sent through the whole pipeline and back, leaving nothing behind."""

from __future__ import annotations

import hashlib
import os

from arc_halo.errors import CorruptChunkError
from arc_halo.store import chunks
from arc_halo.store.rows import Connection
from arc_halo.store.tensors import NewTensor, insert_tensors
from arc_halo.tensors import digests

PROBE_BYTES = 4096


def round_trip(conn: Connection) -> None:
    """Write a tensor of random bytes, read it back, compare, roll back.

    Raises what the database raises, and `CorruptChunkError` when other bytes come back.
    """
    raw = os.urandom(PROBE_BYTES)
    with conn.transaction(force_rollback=True):
        chunk = chunks.NewChunk(
            digest=hashlib.sha256(raw).digest(),
            raw_bytes=len(raw),
            codec="raw",
            codec_version=1,
            body=raw,
        )
        chunks.insert_chunks(conn, [chunk])
        digest = digests.tensor_digest("U8", [PROBE_BYTES], raw)
        tensor = NewTensor(
            digest=digest,
            dtype="U8",
            shape=(PROBE_BYTES,),
            element_count=PROBE_BYTES,
            size_bytes=PROBE_BYTES,
            chunk_bytes=digests.LEAF_BYTES,
            chunks=[chunk.digest],
        )
        tensor_id = insert_tensors(conn, [tensor])[digest]
        found = [chunk.encoded for chunk in chunks.read_chunks(conn, tensor_id)]
    if [bytes(encoded.body or b"") for encoded in found if encoded] != [raw]:
        raise CorruptChunkError("a tensor written to the database did not come back as it was")
