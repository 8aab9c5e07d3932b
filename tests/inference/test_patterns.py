"""Attention packed: what was given comes back, in Python and in SQL, and its figures are right."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_halo.errors import InvalidInputError
from arc_halo.inference.patterns import assembled, pack, unpack
from arc_halo.store import attention
from arc_halo.store.attention import NewCapture, NewPattern
from arc_halo.store.connection import Connection, connect

NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def softmax(seed: int, queries: int, keys: int, *, is_causal: bool) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(size=(queries, keys)).astype(np.float32) * 3
    if is_causal:
        hidden = np.arange(keys)[None, :] > np.arange(queries)[:, None] + keys - queries
        scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@st.composite
def patterns(draw):
    queries = draw(st.integers(1, 9))
    keys = queries + draw(st.integers(-min(3, queries - 1), 4))
    is_causal = draw(st.booleans()) and keys >= queries
    return softmax(draw(st.integers(0, 2**31)), queries, keys, is_causal=is_causal)


@given(weights=patterns(), dtype=st.sampled_from(sorted(NUMPY)))
@settings(deadline=None)
def test_what_is_packed_is_unpacked_row_by_row_too(weights, dtype):
    packed = pack(weights, dtype)
    expected = weights.astype(NUMPY[dtype])
    assert np.array_equal(unpack(packed.packed, packed.shape), expected)
    width = 4 if dtype == "F32" else 2
    for query, row in enumerate(expected):
        first, length = packed.shape.row(query)
        raw = packed.packed[first * width : (first + length) * width]
        assert np.array_equal(np.frombuffer(raw, NUMPY[dtype]), row[:length])
        assert not row[length:].any()


def test_a_causal_pattern_takes_half():
    n = 64
    causal = pack(softmax(1, n, n, is_causal=True), "F16")
    assert (causal.shape.is_causal, len(causal.packed)) == (True, n * (n + 1))
    other = pack(softmax(1, n, n, is_causal=False), "F16")
    assert (other.shape.is_causal, len(other.packed)) == (False, 2 * n * n)


def test_figures_are_those_of_the_formulas():
    weights = softmax(3, 6, 6, is_causal=True)
    packed = pack(weights, "BF16")
    for query, row in enumerate(weights.tolist()):
        entropy = -sum(p * math.log(p) for p in row if p > 0)
        assert packed.entropy[query] == pytest.approx(entropy, abs=1e-6)
        assert packed.sink_mass[query] == np.float32(row[0])
        assert packed.peak[query] == np.float32(max(row))
    assert packed.entropy[0] == 0


def test_uniform_attention_has_the_entropy_of_its_keys():
    packed = pack(np.full((1, 8), 1 / 8, np.float32), "F32")
    assert packed.entropy[0] == pytest.approx(math.log(8))


def test_what_is_no_number_is_told_and_not_lost():
    weights = softmax(5, 3, 3, is_causal=True)
    weights[1, 0] = np.nan
    packed = pack(weights, "F32")
    assert np.isnan(packed.entropy).tolist() == [False, True, False]
    assert np.array_equal(unpack(packed.packed, packed.shape), weights, equal_nan=True)


def test_passes_that_go_on_are_one_pattern_windows_and_fixed_caches_too():
    whole = np.stack([softmax(seed, 6, 6, is_causal=True) for seed in range(2)])[None]
    parts = [whole[:, :, :4, :4], whole[:, :, 4:5, :5], whole[:, :, 5:, :]]
    assert np.array_equal(assembled(parts, 6), whole)
    fixed = [np.pad(part, [(0, 0)] * 3 + [(0, 9 - part.shape[3])]) for part in parts]
    assert np.array_equal(assembled(fixed, 6), whole)
    windowed = whole.copy()
    windowed[..., 5, :3] = 0
    assert np.array_equal(assembled([*parts[:2], windowed[:, :, 5:, 3:]], 6), windowed)
    beyond = fixed[0].copy()
    beyond[..., 8] = 0.5
    with pytest.raises(InvalidInputError, match="attend to 9 keys"):
        assembled([beyond], 4)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_sql_reads_every_number_of_16_bits(conn: Connection, dtype: str):
    raw = np.arange(2**16, dtype="<u2")
    row = conn.execute("SELECT arc_halo_floats(%s, %s)", [raw.tobytes(), dtype]).fetchone()
    assert row is not None
    found = np.array(row[0], np.float32)
    expected = raw.view(NUMPY[dtype]).astype(np.float32)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found)[expected == 0], np.signbit(expected)[expected == 0])


def test_sql_reads_numbers_of_32_bits(conn: Connection):
    rng = np.random.default_rng(1)
    bits = np.concatenate(
        [
            rng.integers(0, 2**32, 5000, dtype=np.uint32),
            np.array([0, 1, 2**31, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000]),
        ]
    ).astype("<u4")
    row = conn.execute("SELECT arc_halo_floats(%s, 'F32')", [bits.tobytes()]).fetchone()
    assert row is not None
    expected = bits.view("<f4")
    assert np.array_equal(np.array(row[0], np.float32), expected, equal_nan=True)


def test_one_row_of_a_long_head_is_read_without_the_rest(database):
    count = 1024
    packed = pack(softmax(9, count, count, is_causal=True), "F16")
    new = NewCapture(
        input_digest=bytes(32),
        sequence_index=0,
        token_count=count,
        token_ids=None,
        token_texts=None,
        size_bytes=len(packed.packed),
    )
    figures = [float(each) for each in packed.entropy]
    pattern = NewPattern(
        layer_index=0,
        head_index=0,
        query_count=count,
        key_count=count,
        is_causal=True,
        dtype="F16",
        entropy=figures,
        sink_mass=figures,
        peak=figures,
        packed=packed.packed,
    )
    with connect(database) as conn:
        capture = attention.insert(conn, new, [pattern], None)
        row = f"SELECT attention_row('{capture}', 0, 0, 700)"
        blocks(conn, row)  # The first time the catalogue is read, too.
        whole = blocks(conn, "SELECT length(packed::text) FROM attention_patterns")
        assert whole > len(packed.packed) / 8192
        assert blocks(conn, row) < whole / 8


def blocks(conn, query):
    """How many blocks a query reads."""
    found = conn.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}").fetchone()
    assert found is not None
    plan = found[0][0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
