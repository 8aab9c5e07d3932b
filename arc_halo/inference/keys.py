"""Keys of blocks: a chain of SHA-256 over everything that decides their values.

Each field goes in with its length before it, so that no two lists of fields make the same bytes:

    namespace = H("arc-halo/kv/1", weights, adapter, tenant, layout, group, block_tokens, storage)
    key[i]    = H("arc-halo/kv-block/1", namespace, key[i-1], tokens of block i)

with H the SHA-256 of the fields, each after its length as 8 bytes, little-endian; key[-1] is empty,
`group` the index of the group of layers, and tokens are 4 bytes each, little-endian.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from arc_halo.errors import InvalidInputError

MAX_TOKEN = 2**32 - 1

Tokens = Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """For whom and of what a cache is: `weights` is the root of the model's tensors, `adapter`
    names what changes them in flight (empty for none), `tenant` is as the server knows it. What
    the `model` is called decides nothing: it is there to be shown, where the registry does not
    know it by the digests of its `tensors`, of which some are `parameters`."""

    weights: bytes
    adapter: bytes = b""
    tenant: str = ""
    model: str = ""
    tensors: Mapping[str, bytes] = field(default_factory=dict[str, bytes], compare=False)
    parameters: Mapping[str, int] = field(default_factory=dict[str, int], compare=False)


def namespace(
    scope: Scope, layout_digest: bytes, group: int, block_tokens: int, storage: str
) -> bytes:
    """What all keys of one group of layers begin with."""
    return _hash(
        b"arc-halo/kv/1",
        scope.weights,
        scope.adapter,
        scope.tenant.encode(),
        layout_digest,
        group.to_bytes(4, "little"),
        block_tokens.to_bytes(4, "little"),
        storage.encode(),
    )


def token_blocks(tokens: Tokens, block_tokens: int) -> list[bytes]:
    """The tokens of each full block; `InvalidInputError` for what is no token."""
    try:
        array = np.asarray(tokens)
    except ValueError:  # lists of different lengths
        array = np.asarray(None)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InvalidInputError(
            "tokens are one list of whole numbers",
            hint="of a batch, one sequence at a time",
            code="AH006",
        )
    if array.size and (int(array.min()) < 0 or int(array.max()) > MAX_TOKEN):
        raise InvalidInputError(f"a token is a number from 0 to {MAX_TOKEN}", code="AH006")
    raw = array.astype("<u4").tobytes()
    step = 4 * block_tokens
    return [raw[start : start + step] for start in range(0, len(raw) - step + 1, step)]


def chain(space: bytes, blocks: Sequence[bytes]) -> list[bytes]:
    """The key of each block of tokens, of which each has all before it in it."""
    keys: list[bytes] = []
    parent = b""
    for block in blocks:
        parent = _hash(b"arc-halo/kv-block/1", space, parent, block)
        keys.append(parent)
    return keys


def _hash(*fields: bytes) -> bytes:
    return hashlib.sha256(
        b"".join(part for field in fields for part in (len(field).to_bytes(8, "little"), field))
    ).digest()
