r"""What tensors and weight sets are named by. This is a released format: it never changes.

All integers are 64 bits, unsigned, little-endian; all text is UTF-8.

- The *raw bytes* of a tensor are its elements in row-major order, little-endian.
- A *leaf* is 262,144 raw bytes, counted from the tensor's start; the last leaf may be shorter,
  an empty tensor has none. The size is fixed, whatever the chunks in storage.
- leaf digest = SHA-256(the leaf)
- tensor digest = SHA-256("arc-halo/tensor/1\0" + length of the dtype's name + the dtype's name
  + rank + each dimension + size in bytes + each leaf digest, in order)
- root = SHA-256("arc-halo/weights/1\0" + number of tensors + for each tensor, sorted by the bytes
  of its name: length of the name + the name + the tensor's digest)

So equal weights have equal roots in any chunking, codec, file format or order.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Sequence

from arc_halo.errors import InvalidInputError, WeightsError
from arc_halo.tensors import chunking, dtypes

LEAF_BYTES = 262144
DIGEST_BYTES = 32


class TensorHasher:
    """The digest of one tensor, from its bytes or its leaf digests, fed in order.

    Both ways may be mixed wherever a leaf begins.
    """

    def __init__(self, dtype: str, shape: Sequence[int]) -> None:
        self._size_bytes = dtypes.size_bytes(dtype, shape)
        self._seen_bytes = 0
        self._leaf = hashlib.sha256()
        self._tensor = hashlib.sha256(_header(dtype, shape, self._size_bytes))

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Feed the next raw bytes, cut anywhere."""
        view = _flat(data)
        while view:
            part = view[: LEAF_BYTES - self._seen_bytes % LEAF_BYTES]
            self._leaf.update(part)
            self._advance(len(part))
            if self._at_leaf_end():
                self._close_leaf()
            view = view[len(part) :]

    def update_leaf(self, digest: bytes) -> None:
        """Feed the SHA-256 of the next whole leaf."""
        left = self._size_bytes - self._seen_bytes
        if len(digest) != DIGEST_BYTES or (left and self._seen_bytes % LEAF_BYTES):
            raise ValueError("a leaf digest has 32 bytes and comes where a leaf begins")
        self._advance(min(LEAF_BYTES, left) or LEAF_BYTES)
        self._tensor.update(digest)

    def digest(self) -> bytes:
        """The tensor's digest; WeightsError unless exactly the tensor's bytes were fed."""
        if self._seen_bytes != self._size_bytes:
            seen, size = self._seen_bytes, self._size_bytes
            raise WeightsError(f"the tensor ended after {seen} of {size} bytes", hint=_HINT)
        return self._tensor.digest()

    def _advance(self, count: int) -> None:
        self._seen_bytes += count
        if self._seen_bytes > self._size_bytes:
            raise WeightsError(f"the tensor goes on after its {self._size_bytes} bytes", hint=_HINT)

    def _at_leaf_end(self) -> bool:
        return self._seen_bytes % LEAF_BYTES == 0 or self._seen_bytes == self._size_bytes

    def _close_leaf(self) -> None:
        self._tensor.update(self._leaf.digest())
        self._leaf = hashlib.sha256()


def tensor_digest(dtype: str, shape: Sequence[int], raw: bytes | bytearray | memoryview) -> bytes:
    """The digest of a tensor that is in memory as a whole."""
    hasher = TensorHasher(dtype, shape)
    hasher.update(raw)
    return hasher.digest()


def leaf_digests(raw: bytes | bytearray | memoryview) -> list[bytes]:
    """The digest of each leaf of `raw`, which begins where a leaf begins."""
    view = _flat(raw)
    return [
        hashlib.sha256(view[offset : offset + length]).digest()
        for offset, length in chunking.spans(len(view), LEAF_BYTES)
    ]


def weights_root(items: Iterable[tuple[str, bytes]]) -> bytes:
    """The root of a weight set, from (name, tensor digest) in any order; names must be unique."""
    tensors = sorted((name.encode(), digest) for name, digest in items)
    root = hashlib.sha256(b"arc-halo/weights/1\0" + _u64(len(tensors)))
    previous = None
    for name, digest in tensors:
        if name == previous:
            raise WeightsError(
                f"two tensors have the name {name.decode()!r}", hint="rename one of them"
            )
        root.update(_u64(len(name)) + name + digest)
        previous = name
    return root.digest()


def format_digest(digest: bytes) -> str:
    """`sha256:` and 64 lower-case hexadecimal digits."""
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"a digest has {DIGEST_BYTES} bytes, not {len(digest)}")
    return f"sha256:{digest.hex()}"


def parse_digest(text: str) -> bytes:
    """The opposite of `format_digest`; InvalidInputError for any other text."""
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise InvalidInputError(
            f"{text!r} is not a digest",
            hint="a digest is 'sha256:' followed by 64 hexadecimal digits in lower case",
            code="AH006",
        )
    return bytes.fromhex(match[1])


_HINT = "run the command again; should it happen again, import the model again"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def _header(dtype: str, shape: Sequence[int], size_bytes: int) -> bytes:
    name = dtype.encode()
    numbers = _u64(len(shape), *shape, size_bytes)
    return b"arc-halo/tensor/1\0" + _u64(len(name)) + name + numbers


def _u64(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def _flat(data: bytes | bytearray | memoryview) -> memoryview:
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")
