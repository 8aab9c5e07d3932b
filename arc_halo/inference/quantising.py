"""Keys and values as 8-bit integers: lossy, so only where it is asked for, with its error told.

Symmetric: x is kept as round(x / s), s = max|x| / 127. Keys have one s for each channel of a head
over the tokens of the block, since their outliers stand in few channels; values have one for each
token of a head (Liu et al., KIVI, 2024, arXiv:2402.02750). The body of a part: for each run of
heads the scales, float32, then the integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from arc_halo.errors import CodecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
MOST = 127

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """`error` is the root mean square of the difference by that of the values; 0 for zeros."""

    parts: list[bytes]
    error: float


def quantise(
    raws: Sequence[memoryview], shapes: Sequence[Sequence[tuple[bool, Shape]]], dtype: np.dtype[Any]
) -> Quantised | None:
    """The parts of a block, each made of runs of keys (True) or values; None where a value is not
    finite, which no scale could keep."""
    parts: list[bytes] = []
    squares = of_errors = 0.0
    for raw, runs in zip(raws, shapes, strict=True):
        pieces: list[bytes] = []
        at = 0
        for is_keys, shape in runs:
            size = math.prod(shape) * dtype.itemsize
            values = np.frombuffer(raw, np.uint8)[at : at + size].view(dtype).reshape(shape)
            at += size
            wide = values.astype(np.float32)
            if not np.isfinite(wide).all():
                return None
            scales = np.abs(wide).max(axis=1 if is_keys else 2) / np.float32(MOST)
            # Where all are zero, or too small for a scale, any scale but zero will do.
            spread = np.where(scales > 0, scales, np.float32(1))
            spread = spread[:, None, :] if is_keys else spread[:, :, None]
            integers = np.clip(np.rint(wide / spread), -MOST, MOST).astype(np.int8)
            back = _back(integers, scales, dtype, is_keys=is_keys).astype(np.float32)
            squares += float(np.square(wide, dtype=np.float64).sum())
            of_errors += float(np.square(wide - back, dtype=np.float64).sum())
            pieces += [scales.astype("<f4").tobytes(), integers.tobytes()]
        parts.append(b"".join(pieces))
    return Quantised(parts=parts, error=math.sqrt(of_errors / squares) if squares else 0.0)


def restore(
    body: memoryview, shapes: Sequence[tuple[bool, Shape]], dtype: np.dtype[Any]
) -> NDArray[np.uint8]:
    """The raw bytes of a part, as near as they were kept; `CodecError` for a wrong length."""
    source = np.frombuffer(body, np.uint8)
    pieces: list[NDArray[np.uint8]] = []
    at = 0
    for is_keys, (heads, tokens, size) in shapes:
        scale_count = heads * (size if is_keys else tokens)
        end = at + 4 * scale_count
        stop = end + heads * tokens * size
        if stop > source.size:
            raise CodecError("int8: the part is too short")
        scales = source[at:end].view("<f4").reshape(heads, -1)
        integers = source[end:stop].view(np.int8).reshape(heads, tokens, size)
        found = _back(integers, scales, dtype, is_keys=is_keys)
        pieces.append(found.reshape(-1).view(np.uint8))
        at = stop
    if at != source.size:
        raise CodecError("int8: the part is too long")
    return np.concatenate(pieces)


def _back(
    integers: NDArray[np.int8], scales: NDArray[Any], dtype: np.dtype[Any], *, is_keys: bool
) -> NDArray[Any]:
    spread = scales[:, None, :] if is_keys else scales[:, :, None]
    return np.asarray(integers.astype(np.float32) * spread).astype(dtype)
