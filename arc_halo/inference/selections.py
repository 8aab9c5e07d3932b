"""What part of an activation is kept: some positions of the tokens, another dtype."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from arc_halo.errors import InvalidInputError
from arc_halo.plain import whole
from arc_halo.tensors import dtypes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.types import JsonObject

DTYPES = ("F32", "F16", "BF16")

Positions = int | slice | Iterable[int] | Literal["last"]
Given = slice | list[int] | Literal["last"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Positions as numbers from 0, in their order, and a dtype; None is all, and as computed."""

    positions: tuple[int, ...] | None = None
    dtype: str | None = None

    def as_json(self) -> JsonObject:
        found: JsonObject = {}
        if self.positions is not None:
            found["positions"] = list(self.positions)
        if self.dtype is not None:
            found["dtype"] = self.dtype
        return found

    @classmethod
    def from_json(cls, stored: JsonObject) -> Selection:
        positions = stored.get("positions")
        return cls(
            positions=None if positions is None else tuple(map(int, positions)),
            dtype=stored.get("dtype"),
        )

    def has(self, asked: Selection) -> bool:
        """Whether all that is asked for can be taken out of this."""
        fits = self.dtype == asked.dtype or asked.dtype is None or self.dtype is None
        if self.positions is None or not fits:
            return fits
        return asked.positions is not None and set(asked.positions) <= set(self.positions)


def check_dtype(dtype: str | None) -> str | None:
    """Raise `InvalidInputError` unless it is a dtype that activations are kept in."""
    if dtype is not None and dtype not in DTYPES:
        raise InvalidInputError(
            f"dtype={dtype!r} is none that is captured in",
            hint=f"write {', '.join(DTYPES)}, or leave it out to keep what was computed",
            code="AH006",
        )
    return dtype


def given_positions(given: Any) -> Given | None:
    """Positions as they are given, gone through once. Raises `InvalidInputError` for none."""
    if given is None:
        return None
    if isinstance(given, str) and given == "last":
        return "last"
    if isinstance(given, slice):
        parts = (given.start, given.stop, given.step)
        if given.step != 0 and all(each is None or whole(each) is not None for each in parts):
            return given
    elif not isinstance(given, str | bytes):
        listed = list(given) if isinstance(given, Iterable) else [given]
        numbers = [number for each in listed if (number := whole(each)) is not None]
        if len(numbers) == len(listed):
            return numbers
    raise InvalidInputError(
        f"positions={given!r} says no positions",
        hint='write "last", a number, a list of numbers or a slice',
        code="AH006",
    )


def resolve(positions: Given | None, count: int) -> tuple[int, ...] | None:
    """Positions of `count` tokens as numbers from 0; None for all of them in their order.

    Raises `InvalidInputError` for one that is not there.
    """
    if positions is None:
        return None
    places = range(count)
    if isinstance(positions, str):
        found = [count - 1]
    elif isinstance(positions, slice):
        found = list(places[positions])
    else:
        try:
            found = [places[place] for place in positions]
        except IndexError as exc:
            raise InvalidInputError(
                f"there is no position {positions!r} among {count} tokens",
                hint="they count from 0, or from the end with -1 for the last",
                code="AH007",
            ) from exc
    if not found:
        raise InvalidInputError(f"positions={positions!r} are none of {count} tokens", code="AH007")
    return None if found == list(places) else tuple(found)


def worth_keeping(positions: Given | None, span: range) -> list[int]:
    """Which tokens of a pass may be among the positions, whatever comes after it."""
    total = span.stop
    if positions is None:
        return list(span)
    if isinstance(positions, str):
        return [total - 1]
    if isinstance(positions, slice):
        ends = (positions.start or 0, positions.stop or 0, positions.step or 1)
        if min(ends[0], ends[1]) < 0 or ends[2] < 0:
            return list(span)
        stop = total if positions.stop is None else min(total, positions.stop)
        wanted = range(ends[0], stop, ends[2])
        return [place for place in span if place in wanted]
    wanted_places = {place if place >= 0 else total + place for place in positions}
    # What is counted from the end moves on with every pass.
    furthest = min([0, *positions])
    return [place for place in span if place in wanted_places or place >= total + furthest]


def check_has_tokens(shape: Sequence[int], name: str, tokens: tuple[int, int]) -> None:
    """Raise `InvalidInputError` unless the second axis of an activation has the tokens."""
    if tuple(shape[:2]) != tokens:
        raise InvalidInputError(
            f"{name} gives an array of shape {list(shape)}, not [batch, tokens, …]: "
            "it has no positions to choose from",
            hint="leave `positions` out, or name other modules",
            code="AH007",
        )


def cast(array: NDArray[Any], name: str, dtype: str | None) -> NDArray[Any]:
    """The array in another dtype. What is finite stays so, or `InvalidInputError` is raised."""
    if dtype is None or not dtypes.is_float(array.dtype):
        return array
    with np.errstate(over="ignore"):
        found = array.astype(dtypes.numpy_dtype(dtype), copy=False)
    if np.isinf(found).sum() > np.isinf(array).sum():
        raise InvalidInputError(
            f"{name} has values that {dtype} cannot hold: up to "
            f"{np.nanmax(np.abs(array.astype(np.float64))):.4g}",
            hint='capture with dtype="BF16" or dtype="F32"',
            code="AH007",
        )
    return found


def place_among(stored: Selection, asked: Sequence[int]) -> tuple[int, ...]:
    """Where the asked positions are in what is stored."""
    if stored.positions is None:
        return tuple(asked)
    places = {position: place for place, position in enumerate(stored.positions)}
    return tuple(places[position] for position in asked)
