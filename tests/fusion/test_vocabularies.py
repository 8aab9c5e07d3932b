"""Plans of rows, and tensors read by them in any windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.architectures import is_vocabulary_tensor
from arc_halo.errors import IncompatibleModelsError
from arc_halo.fusion.aligning import AlignedTensor, aligned_tables
from arc_halo.fusion.blocks import spans
from arc_halo.fusion.compatibility import Described, Table
from arc_halo.fusion.inputs import Input
from arc_halo.fusion.planning import plan_tensors
from arc_halo.fusion.recipes import AdapterInput
from arc_halo.fusion.tensor_recipes import Rows, TensorSource, from_identity
from arc_halo.fusion.vocabularies import Vocabularies, contradict
from arc_halo.manifest.tokenizers import Tokenizer, parse_tokenizer
from arc_halo.tensors.dtypes import name_of
from tests.fusion.test_planning import recipe
from tests.fusion.tokenizers import EMBEDDING, OUTPUT, VOCABULARIES, document


def tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    return parse_tokenizer(document(vocabulary), "a test's")


@dataclass(slots=True)
class Matrix:
    """A tensor in memory that notes what is read of it."""

    values: np.ndarray[Any, Any]
    alignment: int = 64
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def dtype(self) -> str:
        return name_of(self.values.dtype)

    @property
    def size_bytes(self) -> int:
        return self.values.nbytes

    def read_into(self, offset: int, out: memoryview) -> None:
        self.reads.append((offset, out.nbytes))
        out[:] = self.values.tobytes()[offset : offset + out.nbytes]


def read(rows: Rows, sources: Sequence[Matrix], columns: int, step: int = 10**9) -> Any:
    """All of an aligned tensor, in pieces of so many bytes."""
    tensor = AlignedTensor(rows, sources, columns, "F32")
    raw = bytearray(tensor.size_bytes)
    for offset in range(0, len(raw), step):
        tensor.read_into(offset, memoryview(raw)[offset : offset + step])
    return np.frombuffer(raw, np.float32).reshape(-1, columns)


def sources(count: int) -> list[TensorSource]:
    return [TensorSource(model=f"m{i}", tensor="w", dtype="F32") for i in range(count)]


NAMES = st.lists(st.text("abcdefgh", min_size=1, max_size=3), min_size=1, unique=True)


@given(names=NAMES, padding=st.integers(0, 3))
def test_a_vocabulary_aligned_to_itself_is_the_identity(names: list[str], padding: int) -> None:
    own = tokenizer({token: id_ for id_, token in enumerate(names)})
    for chosen in ("union", "base", 0):
        found = Vocabularies(chosen=chosen, members=(own, own), base=own)  # type: ignore[arg-type]
        assert found.result is own
        assert found.runs == tuple(((len(names), place, 0),) for place in range(3))
    tables = [
        Table(n, {EMBEDDING: Described("F32", [len(names) + padding, 4], n.encode())}) for n in "ab"
    ]
    aligned = aligned_tables(Vocabularies(chosen="union", members=(own, own)), tables)
    assert (aligned == tables) == (padding == 0)
    assert all(table.tensors[EMBEDDING].shape[0] == len(names) for table in aligned)


@given(names=NAMES, data=st.data(), step=st.integers(1, 40))
def test_permuted_ids_come_back_in_order_whatever_is_read_at_once(
    names: list[str], data: st.DataObject, step: int
) -> None:
    order = data.draw(st.permutations(range(len(names))))
    first = tokenizer({token: id_ for id_, token in enumerate(names)})
    second = tokenizer(dict(zip(names, order, strict=True)))
    values = np.random.default_rng(1).normal(size=(len(names), 3)).astype(np.float32)
    values[:, 1] = -0.0
    shuffled = np.empty_like(values)
    shuffled[order] = values
    found = Vocabularies(chosen=0, members=(first, second))
    rows = Rows.of(found.runs[1], sources(2))
    assert [source.model for source in rows.sources] == ["m1"]
    assert read(rows, [Matrix(shuffled)], 3, 4 * step).tobytes() == values.tobytes()


def test_a_row_is_filled_by_the_base_the_only_other_or_the_mean() -> None:
    vocabularies = [{"a": 0, "b": 1}, {"b": 0, "c": 1, "d": 2}, {"c": 0, "d": 1, "e": 2}, {"a": 1}]
    members = tuple(map(tokenizer, vocabularies[:3]))
    found = Vocabularies(chosen="union", members=members, base=tokenizer(vocabularies[3]))
    assert found.result.tokens == (None, "a", "b", "c", "d", "e")
    first, second, _, base = found.runs
    assert first == ((1,), (2, 0, 0), (2, 1, 1, 2, 0), (1, 2, 2))
    assert second == ((1,), (1, 3, 1), (3, 1, 0), (1, 2, 2))
    assert base == ((1,), (1, 3, 1), (1, 0, 1, 1, 0), (2, 1, 1, 2, 0), (1, 2, 2))
    matrices = [np.arange(10 * k, 10 * k + 6, dtype=np.float32).reshape(3, 2) for k in range(4)]
    rows = Rows.of(base, sources(4))
    values = read(rows, [Matrix(each) for each in matrices], 2, 12)
    mean = (matrices[0][1] + matrices[1][0]) / 2
    expected = [
        [0, 0], matrices[3][1], mean, (matrices[1][1] + matrices[2][0]) / 2,
        (matrices[1][2] + matrices[2][1]) / 2, matrices[2][2],
    ]  # fmt: skip
    np.testing.assert_array_equal(values, np.array(expected, np.float32))


def test_what_lies_together_is_read_at_once_and_no_more_than_there_is_room_for() -> None:
    values = np.random.default_rng(0).normal(size=(3000, 400)).astype(np.float16)
    order = np.random.default_rng(1).permutation(3000)
    runs = [(1, 0, int(row)) for row in order]
    matrix = Matrix(values, alignment=4096)
    rows = Rows.of(runs, sources(1))
    source = Input("m", "w", AlignedTensor(rows, [matrix], 400, "F32"), 2**20)
    parts = [source.block(span) for span in spans((3000, 400), "rows")]
    np.testing.assert_array_equal(np.concatenate(parts), values[order].astype(np.float32))
    assert max(size for _, size in matrix.reads) <= 2**20
    assert len(matrix.reads) < 1500
    whole = Matrix(values, alignment=4096)
    read(Rows.of([(3000, 0, 0)], sources(1)), [whole], 400)
    assert [size for _, size in whole.reads] == [2**20, 2**20, values.nbytes - 2 * 2**20]


def test_a_recipe_of_aligned_rows_can_be_written_down_and_read_again() -> None:
    digests = {name: bytes([place]) * 32 for place, name in enumerate(VOCABULARIES)}
    tables = [
        Table(name, {each: Described("BF16", [11, 8], digests[name]) for each in (EMBEDDING, "w")})
        for name in ("poet", "coder", "base")
    ]
    members = tuple(tokenizer(VOCABULARIES[name]) for name in ("poet", "coder"))
    found = Vocabularies(chosen="union", members=members, base=tokenizer(VOCABULARIES["base"]))
    wanted = recipe("ties", vocabularies=found)
    aligned, plain = plan_tensors(wanted, tables[:2], tables[2])
    assert aligned.shape == (found.row_count, 8)
    assert plain.shape == (11, 8)
    assert aligned.strategy is not None
    again = from_identity(
        aligned.identity(), aligned.labels(), aligned.strategy, aligned.size_bytes
    )
    assert again == aligned
    assert again.key == aligned.key
    padded = Vocabularies(chosen="union", members=members, base=found.base, pad_to_multiple_of=64)
    other, same = plan_tensors(recipe("ties", vocabularies=padded), tables[:2], tables[2])
    assert other.key != aligned.key
    assert same.key == plain.key
    assert recipe("ties", vocabularies=padded).key != wanted.key


def test_a_base_that_only_fills_is_not_fused() -> None:
    tables = [
        Table(name, {EMBEDDING: Described("F32", [11, 8]), "w": Described("F32", [2])})
        for name in ("poet", "coder", "base")
    ]
    members = tuple(tokenizer(VOCABULARIES[name]) for name in ("poet", "coder"))
    found = Vocabularies(chosen="base", members=members, base=tokenizer(VOCABULARIES["base"]))
    wanted = recipe("ties", vocabularies=found)
    linear = recipe("linear", vocabularies=found, out_dtype=None)
    object.__setattr__(linear, "base", wanted.base)
    aligned, plain = plan_tensors(linear, tables[:2], tables[2])
    assert aligned.base is None
    assert plain.base is None
    assert [source.model for source in aligned.members[1].read] == ["coder", "base"]


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ([5, 8], "F32", "5 rows in poet, whose tokenizer has 10 tokens"),
        ([11, 8], "U8", "dtype U8 in poet cannot be aligned"),
        ([11, 9], "F32", r"shape \[14, 9\] in poet, \[14, 8\] in coder"),
    ],
)
def test_what_cannot_be_aligned_is_told(shape: list[int], dtype: str, told: str) -> None:
    tables = [
        Table("poet", {EMBEDDING: Described(dtype, shape)}),
        Table("coder", {EMBEDDING: Described("F32", [9, 8])}),
    ]
    members = tuple(tokenizer(VOCABULARIES[name]) for name in ("poet", "coder"))
    found = Vocabularies(chosen="union", members=members, pad_to_multiple_of=2)
    with pytest.raises(IncompatibleModelsError, match=told):
        plan_tensors(recipe("linear", vocabularies=found), tables)


def test_models_without_rows_of_tokens_have_nothing_to_be_aligned() -> None:
    own = tokenizer({"a": 0})
    tables = [Table(name, {"w": Described("F32", [4, 4])}) for name in "ab"]
    with pytest.raises(IncompatibleModelsError, match="no tensor of a has a row for each token"):
        plan_tensors(
            recipe("linear", vocabularies=Vocabularies(chosen="union", members=(own, own))), tables
        )


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": 0}, {"a": 0, "b": 1}, False),
        ({"a": 0, "c": 2}, {"a": 0, "b": 1}, False),
        ({"a": 0}, {"a": 1}, True),
        ({"a": 0, "b": 1}, {"c": 1}, True),
    ],
)
def test_vocabularies_contradict_where_an_id_or_a_token_stands_for_two(
    one: dict[str, int], other: dict[str, int], expected: bool
) -> None:
    assert contradict(tokenizer(one), tokenizer(other)) == expected
    assert contradict(tokenizer(other), tokenizer(one)) == expected


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        (EMBEDDING, (50, 8), True),
        (OUTPUT, (50, 8), True),
        ("transformer.wte.weight", (50, 8), True),
        ("bert.embeddings.word_embeddings.weight", (64, 8), True),
        ("gpt_neox.embed_out.weight", (64, 8), True),
        ("cls.predictions.bias", (50,), True),
        ("shared.weight", (50, 8), True),
        ("output.weight", (50, 8), True),
        ("transformer.wpe.weight", (64, 8), False),
        ("bert.embeddings.position_embeddings.weight", (512, 8), False),
        ("bert.embeddings.LayerNorm.weight", (64,), False),
        ("bert.encoder.layer.0.output.dense.weight", (64, 64), False),
        ("vision.patch_embed.weight", (64, 8), False),
        ("embed_scale.weight", (3, 8), False),
        ("model.layers.0.mlp.up_proj.weight", (64, 8), False),
        ("model.norm.weight", (64,), False),
    ],
)
def test_tensors_with_a_row_for_each_token(
    name: str, shape: tuple[int, ...], expected: bool
) -> None:
    assert is_vocabulary_tensor(name, shape, 50) == expected


def test_an_adapter_of_rows_that_are_to_be_aligned_is_refused() -> None:
    tables = [Table(n, {EMBEDDING: Described("F32", [11, 8])}) for n in ("m0", "m1")]
    lora = {
        "base_model.model.model.embed_tokens.lora_embedding_A": Described("F32", [2, 11]),
        "base_model.model.model.embed_tokens.lora_embedding_B": Described("F32", [8, 2]),
    }
    members = tuple(tokenizer(VOCABULARIES[name]) for name in ("poet", "coder"))
    found = Vocabularies(chosen="union", members=members)
    wanted = recipe("linear", vocabularies=found)
    adapter = AdapterInput(model="lora", root=None, scale=1.0, config={"lora_alpha": 2})
    adapted = replace(wanted.members[0], adapters=(adapter,))
    wanted = replace(wanted, members=(adapted, wanted.members[1]))
    with pytest.raises(IncompatibleModelsError, match="is changed by an adapter"):
        plan_tensors(wanted, tables, None, {"lora": Table("lora", lora)})
    plain = replace(wanted, vocabularies=None)
    assert plan_tensors(plain, tables, None, {"lora": Table("lora", lora)})
