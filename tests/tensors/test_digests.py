"""Digests: a released format, so most of these tests hold it to fixed values."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import FormatError, InvalidInputError, WeightsError
from arc_halo.tensors.digests import (
    LEAF_BYTES,
    TensorHasher,
    format_digest,
    leaf_digests,
    parse_digest,
    tensor_digest,
    weights_root,
)

LARGE = hashlib.shake_256(b"arc-halo").digest(2 * LEAF_BYTES + 1000)
DIGEST = b"\x11" * 32

GOLDEN = [
    (
        "F32",
        (),
        bytes(4),
        "sha256:da457179d56bba43da526e641a68b933298408324ecc4210ce5e959edc011f3f",
    ),
    (
        "BF16",
        (2, 3),
        bytes(range(12)),
        "sha256:1b8e92526ec5633f91753c39445a1c5325f7a0f3859076d3dbc8064899cf25a4",
    ),
    (
        "BOOL",
        (3, 0),
        b"",
        "sha256:3c64eea81783c5385f20356071a6f10cec029600cfc11ba959ac983b133d94a6",
    ),
    (
        "F4",
        (4,),
        b"\x12\x34",
        "sha256:4a98899912d5def89b314e95656d77bd45573bb1c05e1929b2bed4b13a690852",
    ),
    (
        "U8",
        (LEAF_BYTES,),
        LARGE[:LEAF_BYTES],
        "sha256:013c29f2cd1e8ad34d05b8ed670446f38b1b13749d63a14f334dc10aa9e43f56",
    ),
    (
        "U8",
        (len(LARGE),),
        LARGE,
        "sha256:7fd851d436cbf1b329ebe60eadd69441f9996ab7ebd4be1562a5372d8546342c",
    ),
]


def u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def by_the_definition(dtype: str, shape: Sequence[int], raw: bytes) -> bytes:
    """The tensor digest, written down a second time from the module's docstring."""
    text = b"arc-halo/tensor/1\0" + u64(len(dtype)) + dtype.encode() + u64(len(shape))
    text += b"".join(map(u64, shape)) + u64(len(raw))
    for start in range(0, len(raw), 262144):
        text += hashlib.sha256(raw[start : start + 262144]).digest()
    return hashlib.sha256(text).digest()


@pytest.mark.parametrize(("dtype", "shape", "raw", "golden"), GOLDEN)
def test_tensor_digests_never_change(
    dtype: str, shape: tuple[int, ...], raw: bytes, golden: str
) -> None:
    digest = tensor_digest(dtype, shape, raw)
    assert format_digest(digest) == golden
    assert digest == by_the_definition(dtype, shape, raw)


@pytest.mark.parametrize("seed", range(6))
def test_a_digest_does_not_depend_on_how_the_bytes_are_fed(seed: int) -> None:
    choose = random.Random(seed)
    hasher, offset = TensorHasher("U8", [len(LARGE)]), 0
    while offset < len(LARGE):
        if offset % LEAF_BYTES == 0 and choose.random() < 0.5:
            leaf = LARGE[offset : offset + LEAF_BYTES]
            hasher.update_leaf(hashlib.sha256(leaf).digest())
            offset += len(leaf)
        else:
            length = choose.choice([0, 1, 1000, LEAF_BYTES - offset % LEAF_BYTES, 300_000])
            hasher.update(memoryview(LARGE)[offset : offset + length])
            offset += len(LARGE[offset : offset + length])
    assert hasher.digest() == tensor_digest("U8", [len(LARGE)], LARGE)


def test_leaf_digests_are_enough_for_the_tensors_digest() -> None:
    hasher = TensorHasher("U8", [len(LARGE)])
    for leaf in leaf_digests(LARGE):
        hasher.update_leaf(leaf)
    assert hasher.digest() == tensor_digest("U8", [len(LARGE)], LARGE)


def test_any_memory_can_be_hashed() -> None:
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    assert tensor_digest("F32", (2, 3), array.data) == tensor_digest("F32", (2, 3), array.tobytes())
    assert tensor_digest("F32", (0, 3), array[:0].data) == tensor_digest("F32", (0, 3), b"")


def test_dtype_shape_and_content_each_change_the_digest() -> None:
    digests = {
        tensor_digest(dtype, shape, raw)
        for dtype, shape, raw in [
            ("F32", (2, 2), bytes(16)),
            ("I32", (2, 2), bytes(16)),
            ("F32", (4,), bytes(16)),
            ("F32", (1, 4), bytes(16)),
            ("F32", (2, 2), bytes(15) + b"\1"),
        ]
    }
    assert len(digests) == 5


@pytest.mark.parametrize("size", [0, 7])
def test_a_tensor_that_ends_early_has_no_digest(size: int) -> None:
    hasher = TensorHasher("F32", [2])
    hasher.update(bytes(size))
    with pytest.raises(WeightsError, match=f"after {size} of 8 bytes"):
        hasher.digest()


def test_bytes_beyond_the_tensor_are_refused() -> None:
    with pytest.raises(WeightsError, match="after its 8 bytes"):
        TensorHasher("F32", [2]).update(bytes(9))


def test_leaves_beyond_the_tensor_are_refused() -> None:
    hasher = TensorHasher("F32", [2])
    hasher.update_leaf(DIGEST)
    with pytest.raises(WeightsError, match="after its 8 bytes"):
        hasher.update_leaf(DIGEST)
    with pytest.raises(WeightsError, match="after its 0 bytes"):
        TensorHasher("F32", [0]).update_leaf(DIGEST)


def test_a_leaf_digest_inside_a_leaf_is_refused() -> None:
    hasher = TensorHasher("U8", [10])
    hasher.update(b"1")
    with pytest.raises(ValueError, match="where a leaf begins"):
        hasher.update_leaf(DIGEST)


def test_an_impossible_tensor_has_no_hasher() -> None:
    with pytest.raises(FormatError):
        TensorHasher("NOPE", [1])


def test_roots_never_change() -> None:
    assert (
        format_digest(weights_root([]))
        == "sha256:7caa7b731e2d3f80d71b3fb6c9c8fda6812a44ebea28bcb47acbb414f5a86189"
    )
    items = [("b", DIGEST), ("a.weight", b"\x22" * 32), ("é", b"\x33" * 32)]
    assert (
        format_digest(weights_root(items))
        == "sha256:e13f4c6079f24cdc2aca6cf80c6dd96c755601c917c4884e18222a930ab8b5f9"
    )


def test_a_root_is_what_its_definition_says() -> None:
    text = b"arc-halo/weights/1\0" + u64(2)
    text += u64(1) + b"Z" + DIGEST
    text += u64(2) + "é".encode() + DIGEST
    assert weights_root([("é", DIGEST), ("Z", DIGEST)]) == hashlib.sha256(text).digest()


@given(
    items=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.binary(min_size=32, max_size=32)
    ),
    seed=st.randoms(use_true_random=False),
)
def test_a_root_does_not_depend_on_the_order_of_tensors(
    items: dict[str, bytes], seed: random.Random
) -> None:
    shuffled = list(items.items())
    seed.shuffle(shuffled)
    assert weights_root(shuffled) == weights_root(items.items())


def test_a_name_given_twice_has_no_root() -> None:
    with pytest.raises(WeightsError, match="'a'"):
        weights_root([("a", DIGEST), ("b", DIGEST), ("a", b"\x22" * 32)])


@given(st.binary(min_size=32, max_size=32))
def test_a_digest_is_parsed_as_it_is_written(digest: bytes) -> None:
    assert parse_digest(format_digest(digest)) == digest


NO_DIGESTS = [
    "",
    "sha256:",
    "0" * 64,
    "sha256:" + "g" * 64,
    "sha256:" + "A" * 64,
    "sha256:" + "0" * 64 + "\n",
    "sha1:" + "0" * 40,
]


@pytest.mark.parametrize("text", NO_DIGESTS)
def test_another_text_is_no_digest(text: str) -> None:
    with pytest.raises(InvalidInputError, match="not a digest"):
        parse_digest(text)


def test_only_32_bytes_are_a_digest() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        format_digest(bytes(31))
