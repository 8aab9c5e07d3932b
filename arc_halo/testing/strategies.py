"""What every strategy that fuses weights promises, as tests."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from arc_halo.errors import FusionError
from arc_halo.fusion.blocks import fuse_arrays
from arc_halo.types import FuseContext, FusionStrategy

if TYPE_CHECKING:
    from arc_halo.types import FloatArray

SHAPES = ((), (1,), (7,), (3, 5), (2, 3, 4), (0,), (4, 0), (300, 301))
TOLERANCE_EPS = 8


class StrategyContract:
    """Subclass it with a `strategy`; state its `params` and what it claims where that differs.

    Example:

        class TestMedian(StrategyContract):
            strategy = midrange_strategy
    """

    strategy: ClassVar[FusionStrategy]
    params: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Params to run it with; those left out have their defaults."""

    has_fixed_point: ClassVar[bool] = True
    """Members that are all equal, and equal to the base, come out as they are."""

    is_symmetric: ClassVar[bool] = True
    """The order of members, each with its weight, does not matter."""

    spreads_nan: ClassVar[bool] = True
    """Where a member is NaN, the result is, or it is refused. (The engine refuses it before.)"""

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
        assert all(result == expected for result in results)

    def test_equal_members_are_a_fixed_point_if_it_says_so(self) -> None:
        tensors = self._members((20, 30))[:1] * (self._count() + 1)
        assert _is_close(self._fuse(tensors), tensors[0]) == self.has_fixed_point

    def test_the_order_of_members_matters_only_if_it_says_so(self) -> None:
        tensors, weights = self._members((20, 30)), self._weights()
        *members, base = tensors
        turned = self._fuse([*members[::-1], base], weights[::-1])
        assert _is_close(turned, self._fuse(tensors, weights)) == self.is_symmetric

    def test_a_nan_spreads_if_it_says_so(self) -> None:
        tensors = self._members((20, 30))
        tensors[0][3, 4] = np.nan
        try:
            is_told = bool(np.isnan(self._fuse(tensors)[3, 4]))
        except FusionError:
            is_told = True
        assert is_told == self.spreads_nan

    def _fuse(
        self, tensors: list[FloatArray], weights: tuple[float, ...] | None = None
    ) -> FloatArray:
        """Fuse all but the last of `tensors`, which is the base if one is needed."""
        assert self.strategy.fuse_weights, "the contract is for strategies that fuse weights"
        context = FuseContext(
            tensor="a.weight",
            weights=weights or self._weights(),
            base=tensors[-1] if self.strategy.needs_base else None,
        )
        return fuse_arrays(self.strategy, tensors[:-1], context, self._all_params())

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


def _is_close(actual: FloatArray, expected: FloatArray) -> bool:
    tolerance = TOLERANCE_EPS * float(np.finfo(expected.dtype).eps)
    return bool(np.allclose(actual, expected, rtol=tolerance, atol=tolerance))
