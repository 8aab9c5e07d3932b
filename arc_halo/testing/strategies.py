"""What every strategy that fuses weights promises, as tests."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from arc_halo.errors import FusionError
from arc_halo.fusion.blocks import fuse_arrays, fused_parts
from arc_halo.fusion.inputs import Input, scan_inputs
from arc_halo.testing.comparing import check_same
from arc_halo.types import Block, FuseContext, FusionStrategy

if TYPE_CHECKING:
    from arc_halo.types import FloatArray

SHAPES = ((), (1,), (7,), (3, 5), (2, 3, 4), (0,), (4, 0), (300, 301))
WHOLE_SHAPE, PARTS_SHAPE = (60, 80), (170, 1000)
WINDOWS = ((2**16, 4096), (2**20, 2**18), (3 * 2**20, 100_000))
"""Bytes that are read at once, and what offsets are multiples of: as files and chunks have it."""
TOLERANCE_EPS = 8


class StrategyContract:
    """Subclass it with a `strategy`; state its `params` and what it claims where that differs.

    Give an `oracle` if you can: nothing else here knows what the numbers should be.

    Example:

        class TestMidrange(StrategyContract):
            strategy = midrange_strategy

            def oracle(self, tensors, weights, base, params):
                return (np.min(tensors, axis=0) + np.max(tensors, axis=0)) / 2
    """

    strategy: ClassVar[FusionStrategy]
    params: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Params to run it with; those left out have their defaults."""

    has_fixed_point: ClassVar[bool] = True
    """Members that are all equal, and equal to the base, come out as they are."""

    spreads_nan: ClassVar[bool] = True
    """Where a member is NaN, the result is, or it is refused. (The engine refuses it before.)"""

    oracle_eps: ClassVar[float] = 16
    """How far from the oracle a result may be: units of its dtype's epsilon, times the largest
    absolute value of the members and the result."""

    def oracle(
        self,
        tensors: Sequence[FloatArray],
        weights: Sequence[float],
        base: FloatArray | None,
        params: Mapping[str, Any],
    ) -> FloatArray:
        """Override it: the result in float64, by code that is not the strategy's own.

        `tensors` and `base` are whole and in float64; `params` has all of them.
        """
        raise NotImplementedError

    def test_its_params_schema_is_one_and_describes_every_param(self) -> None:
        schema = self.strategy.params_schema
        Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object"
        assert schema["additionalProperties"] is False
        for name, param in schema.get("properties", {}).items():
            assert param.get("description"), f"the param {name!r} has no description"

    def test_its_params_schema_and_its_function_agree_on_defaults(self) -> None:
        schema = self.strategy.params_schema
        properties = schema.get("properties", {})
        declared = {
            name: param["default"] for name, param in properties.items() if "default" in param
        }
        assert declared == self._defaults()
        assert set(schema.get("required", ())) == set(properties) - set(declared)

    def test_its_defaults_and_these_params_are_valid(self) -> None:
        Draft202012Validator(self.strategy.params_schema).validate(self._all_params())

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_shape_and_dtype_are_kept(
        self, shape: tuple[int, ...], dtype: type[np.floating[Any]]
    ) -> None:
        result = self._fuse(self._members(shape, dtype))
        assert result.shape == shape
        assert result.dtype == dtype

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_it_is_what_its_oracle_says_if_it_has_one(self, dtype: type[np.floating[Any]]) -> None:
        if type(self).oracle is StrategyContract.oracle:
            return
        for shape in SHAPES:
            tensors = self._members(shape, dtype)
            expected = np.asarray(self._expected(tensors), np.float64)
            assert expected.shape == shape, "the oracle gives another shape"
            if expected.size:
                error = np.abs(self._fuse(tensors).astype(np.float64) - expected).max()
                scale = max(float(np.abs(each).max()) for each in (*tensors, expected))
                assert error <= self.oracle_eps * float(np.finfo(dtype).eps) * scale, shape

    def test_it_does_not_matter_how_tensors_are_read(self) -> None:
        tensors = self._members(self._large_shape())
        expected = self._fuse(tensors)
        for window in WINDOWS:
            found = self._fuse_read(tensors, *window)
            if self.strategy.numerics == "exact":
                check_same(found.tobytes(), expected.tobytes(), "numerics='exact' is not so")
            assert _is_close(found, expected)

    def test_its_part_is_all_that_it_needs(self) -> None:
        # Who measures, or draws an element's number, knows more than the part on purpose.
        if self.strategy.part == "tensor" or self.strategy.measure or self.strategy.is_random:
            return
        tensors = self._members((40, 30))
        upper = self._fuse([tensor[:17] for tensor in tensors])
        assert _is_close(upper, self._fuse(tensors)[:17]), (
            f"part={self.strategy.part!r}, but the result depends on what else is in the tensor: "
            "measure that, or say part='tensor'"
        )

    def test_nothing_is_written_into_the_members_or_the_base(self) -> None:
        tensors = self._members((20, 30))
        before = [tensor.copy() for tensor in tensors]
        for tensor in tensors:
            tensor.flags.writeable = False
        self._fuse(tensors)
        assert all(np.array_equal(*pair) for pair in zip(tensors, before, strict=True))

    def test_members_need_not_be_contiguous(self) -> None:
        tensors = [tensor[::2, ::-1].T for tensor in self._members((40, 30))]
        expected = self._fuse([tensor.copy(order="C") for tensor in tensors])
        assert np.array_equal(self._fuse(tensors), expected)

    def test_equal_inputs_give_equal_bits_in_every_thread(self) -> None:
        tensors = self._members((200, 300))
        expected = self._fuse(tensors).tobytes()
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda _: self._fuse(tensors).tobytes(), range(8)))
        for result in results:
            check_same(result, expected, "another thread comes to other bits")

    def test_equal_members_are_a_fixed_point_if_it_says_so(self) -> None:
        tensors = self._members((20, 30))[:1] * (self._count() + 1)
        assert _is_close(self._fuse(tensors), tensors[0]) == self.has_fixed_point

    def test_the_order_of_members_matters_unless_it_is_symmetric(self) -> None:
        *members, base = tensors = self._members((20, 30))
        if len(members) == 1:
            return
        context = self._context()
        turned = replace(context, weights=context.weights[::-1], roots=context.roots[::-1])
        does_matter = not _is_close(
            self._fuse([*members[::-1], base], turned), self._fuse(tensors, context)
        )
        assert does_matter != self.strategy.is_symmetric, (
            "the order of members matters: it is not symmetric"
            if does_matter
            else "the order of members does not matter: say is_symmetric=True, or give params with "
            "which it does"
        )

    def test_a_nan_spreads_if_it_says_so(self) -> None:
        tensors = self._members((20, 30))
        tensors[0][3, 4] = np.nan
        try:
            is_told = bool(np.isnan(self._fuse(tensors)[3, 4]))
        except FusionError:
            is_told = True
        assert is_told == self.spreads_nan

    def _fuse(self, tensors: list[FloatArray], context: FuseContext | None = None) -> FloatArray:
        """Fuse all but the last of `tensors`, which is the base if one is needed."""
        context = replace(context or self._context(), base=self._base(tensors))
        return fuse_arrays(self.strategy, tensors[:-1], context, self._all_params())

    def _fuse_read(
        self, tensors: list[FloatArray], window_bytes: int, alignment: int
    ) -> FloatArray:
        """The same, of tensors that are read through windows, as a merge does."""
        context = replace(self._context(), shape=tensors[0].shape)
        *members, base = [
            Input("m", context.tensor, _Stored(tensor, alignment), window_bytes)
            for tensor in tensors
        ]

        def scan() -> Iterator[Block]:
            used = base if self.strategy.needs_base else None
            return scan_inputs(members, used, context.shape, self.strategy.part)

        parts = fused_parts(self.strategy, self._all_params(), context, scan)
        return np.concatenate([part.reshape(-1) for part in parts]).reshape(context.shape)

    def _expected(self, tensors: list[FloatArray]) -> FloatArray:
        wide = [np.asarray(tensor, np.float64) for tensor in tensors]
        return self.oracle(wide[:-1], self._weights(), self._base(wide), self._all_params())

    def _context(self) -> FuseContext:
        assert self.strategy.fuse_weights, "the contract is for strategies that fuse weights"
        roots = [bytes([1 + index]) * 32 for index in range(self._count())]
        return FuseContext(
            tensor="a.weight",
            weights=self._weights(),
            roots=tuple(roots if self.strategy.is_random else ()),
        )

    def _base(self, tensors: Sequence[FloatArray]) -> FloatArray | None:
        return tensors[-1] if self.strategy.needs_base else None

    def _large_shape(self) -> tuple[int, int]:
        """More than one part, unless a whole tensor is one: those may be slow."""
        return WHOLE_SHAPE if self.strategy.part == "tensor" else PARTS_SHAPE

    def _count(self) -> int:
        return max(self.strategy.min_members, min(3, self.strategy.max_members or 3))

    def _weights(self) -> tuple[float, ...]:
        return tuple(0.25 + index for index in range(self._count()))

    def _members(
        self, shape: tuple[int, ...], dtype: type[np.floating[Any]] = np.float32
    ) -> list[FloatArray]:
        numbers = np.random.Generator(np.random.PCG64(7))
        base = numbers.normal(size=shape)
        changes = [numbers.normal(size=shape) for _ in range(self._count())]
        return [*(np.asarray(base + c, dtype) for c in changes), np.asarray(base, dtype)]

    def _defaults(self) -> dict[str, Any]:
        assert self.strategy.fuse_weights is not None
        parameters = inspect.signature(self.strategy.fuse_weights).parameters.values()
        return {
            p.name: p.default
            for p in parameters
            if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is not inspect.Parameter.empty
        }

    def _all_params(self) -> dict[str, Any]:
        return {**self._defaults(), **self.params}


class _Stored:
    """A tensor as the engine finds it in a file or in the database."""

    def __init__(self, array: FloatArray, alignment: int) -> None:
        self.dtype = {4: "F32", 8: "F64"}[array.dtype.itemsize]
        self.size_bytes = array.nbytes
        self.alignment = alignment
        self._raw = array.tobytes()

    def read_into(self, offset: int, out: memoryview) -> None:
        out[:] = self._raw[offset : offset + out.nbytes]


def _is_close(actual: FloatArray, expected: FloatArray) -> bool:
    tolerance = TOLERANCE_EPS * float(np.finfo(expected.dtype).eps)
    return bool(np.allclose(actual, expected, rtol=tolerance, atol=tolerance))
