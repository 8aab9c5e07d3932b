"""Chunks cover a tensor exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.tensors.chunking import DEFAULT_CHUNK_BYTES, count, spans


@given(size=st.integers(0, 5000), chunk=st.integers(1, 700))
def test_spans_cover_every_byte_once_and_only_the_last_is_short(size: int, chunk: int) -> None:
    pieces = list(spans(size, chunk))
    assert b"".join(bytes(length) for _, length in pieces) == bytes(size)
    assert [offset for offset, _ in pieces] == [index * chunk for index in range(len(pieces))]
    assert all(length == chunk for _, length in pieces[:-1])
    assert all(length > 0 for _, length in pieces)
    assert len(pieces) == count(size, chunk)


def test_an_empty_tensor_has_no_chunks() -> None:
    assert list(spans(0)) == []


def test_chunks_are_256_kib_unless_asked_otherwise() -> None:
    assert DEFAULT_CHUNK_BYTES == 256 * 1024
    assert list(spans(DEFAULT_CHUNK_BYTES + 1)) == [(0, 262144), (262144, 1)]


@pytest.mark.parametrize(("size", "chunk"), [(-1, 1), (1, 0), (1, -5)])
def test_a_size_that_makes_no_sense_is_refused(size: int, chunk: int) -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        spans(size, chunk)
