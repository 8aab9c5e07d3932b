"""Any nested state comes back as it was, bit for bit; what cannot is refused by its path."""

from __future__ import annotations

import math
import struct
from collections import Counter, OrderedDict, namedtuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from arc_halo.errors import CheckpointError
from arc_halo.training.checkpoints import scalars
from arc_halo.training.checkpoints.states import Leaf, flatten, unflatten

FLOATS = st.floats() | st.binary(min_size=8, max_size=8).map(
    lambda raw: struct.unpack("<d", raw)[0]
)
INTS = st.integers() | st.integers(-(2**200), 2**200)
PLAIN = (
    st.none()
    | st.booleans()
    | INTS
    | FLOATS
    | st.complex_numbers()
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.binary().map(bytearray)
    | st.binary(min_size=5000, max_size=5000)
)
KEYS = st.recursive(
    st.none() | st.booleans() | INTS | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
DTYPES = (
    arrays.scalar_dtypes()
    | arrays.complex_number_dtypes(endianness="?")
    | st.sampled_from([np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)])
)
ARRAYS = DTYPES.flatmap(
    lambda dtype: st.builds(
        lambda shape, fill: (
            np.resize(np.frombuffer(fill * 64, np.uint8), (math.prod(shape) * dtype.itemsize,))
            .view(dtype)
            .reshape(shape)
        ),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=4),
        st.binary(min_size=1, max_size=64),
    )
)
MANY = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=16, max_size=40) | st.lists(
    FLOATS, min_size=16, max_size=40
)
STATES = st.recursive(
    PLAIN
    | ARRAYS
    | ARRAYS.map(lambda a: a.reshape(-1)[0])
    | MANY
    | MANY.map(tuple)
    | st.sets(KEYS),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict)
        | st.dictionaries(KEYS, st.integers(), max_size=4).map(Counter)
    ),
    max_leaves=12,
)


def same(a, b):
    """Equal in type, bits and order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        pairs = zip(a.items(), b.items(), strict=False)
        return len(a) == len(b) and all(same(x, y) for x, y in pairs)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    return a == b


@given(STATES, st.booleans())
def test_every_state_comes_back_as_it_was(state, copy):
    assert same(unflatten(flatten(state, copy=copy)), state)


@given(STATES)
def test_paths_tell_leaves_apart_and_values_are_what_jsonb_keeps(state):
    leaves = flatten(state)
    assert len({leaf.path for leaf in leaves}) == len(leaves)
    for leaf in leaves:
        assert leaf.path.isascii()
        assert "\\u0000" not in (leaf.value or "")
        assert leaf.value is not None or leaf.array is not None


def test_keys_that_are_integers_stay_so_and_texts_stay_texts():
    state = {0: {"step": 1, "exp_avg": np.zeros(2)}, "0": [], 1.5: (), (1, "a"): {}}
    assert same(unflatten(flatten(state)), state)
    assert [leaf.path for leaf in flatten(state)][1:4] == ["[0]", '[0,"step"]', '[0,"exp_avg"]']


def test_the_order_of_keys_is_kept():
    assert list(unflatten(flatten({"b": 1, "a": 2}))) == ["b", "a"]


def test_a_copy_shares_no_memory():
    array = np.arange(5)
    (shared,), (own,) = flatten(array), flatten(array, copy=True)
    array[0] = 99
    assert (shared.array[0], own.array[0]) == (99, 0)


def test_many_numbers_are_one_leaf():
    state = {"order": list(range(100_000)), "few": [1, 2]}
    assert len(flatten(state)) == 5
    assert unflatten(flatten(state)) == state


class Stranger:
    """Nothing that a checkpoint knows."""

    def __repr__(self):
        raise AssertionError("nobody asks for it")


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (Stranger(), "Stranger"),
        (lambda: 1, "function"),
        (Point(1, 2), "Point"),
        (np.array([None]), "object"),
        (np.zeros(2, [("a", "f4")]), "an array of"),
        (np.ma.masked_array([1]), "MaskedArray"),
        ({Stranger(): 1}, "a key of type"),
        ({1: {2: type("I", (int,), {})(3)}}, r"\['group'\]\[3\]\[1\]\[2\]"),
    ],
)
def test_what_is_unknown_is_refused_by_its_path(value, what):
    with pytest.raises(CheckpointError, match=what) as caught:
        flatten({"group": [0, 1, 2, value]})
    assert str(caught.value).startswith("['group'][3]")


def test_a_state_that_holds_itself_is_refused():
    state = []
    state.append(state)
    with pytest.raises(CheckpointError, match="deeper than 200"):
        flatten(state)


@pytest.mark.parametrize(
    "leaves",
    [
        [],
        [Leaf(path="[]", value='{"dict":1}')],
        [Leaf(path="[]", value="1"), Leaf(path="[]", value="2")],
        [Leaf(path="[]", value='{"pickle":"gASV"}')],
        [Leaf(path="[]", value='{"as":"code"}', array=np.zeros(1))],
        [Leaf(path="[]", value='{"list":1}'), Leaf(path="[]", value="1")],
    ],
)
def test_leaves_that_no_state_has_are_refused(leaves):
    with pytest.raises(CheckpointError, match="makes no sense"):
        unflatten(leaves)


def test_only_plain_values_are_scalars():
    with pytest.raises(scalars.NotPlainError, match="list"):
        scalars.encode([1])
