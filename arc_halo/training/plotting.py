"""Series drawn: as lines of text for a terminal, as PNG, SVG or PDF by matplotlib (extra `plot`).

What is drawn are envelopes, from least to greatest, so that what one point did is seen. NaN and
infinities have no place on an axis: they are marked below it.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from arc_halo.errors import ArcHaloError, InvalidInputError
from arc_halo.training.reading import Envelope

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Axis = Literal["step", "epoch", "time"]
FORMATS = ("png", "svg", "pdf")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MAX_CURVES = len(LETTERS)
SHARED, OUTSIDE = "*", "\N{MULTIPLICATION SIGN}"
MIN_WIDTH, MIN_HEIGHT = 20, 4

_LARGEST = sys.float_info.max
_LARGEST_DRAWN = 1e300
_MAX_POWER = 308.25
"""Ten to the power of more than that is no number."""
_NOTHING = np.empty(0, np.float64)
# The dots of a Braille sign, two beside and four below one another, and where its signs begin.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE = 0x2800


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What is drawn of a series: at each x what it was at least, at most, and on average."""

    label: str
    x: Floats
    low: Floats
    high: Floats
    mean: Floats
    outside: Floats
    """Where there were values that have no place: NaN, infinities, on a logarithm what is not
    positive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """The values at the edges of a drawing; y is a logarithm where the axis is."""

    left: float
    right: float
    bottom: float
    top: float
    is_log: bool


def curve(label: str, envelope: Envelope, axis: Axis = "step", *, is_log: bool = False) -> Curve:
    """An envelope over its steps, its epochs, or the seconds since its first point.

    Raises `InvalidInputError` where no epochs were logged.
    """
    x = _x(label, envelope, axis)
    low, high, mean = envelope.lows, envelope.highs, envelope.means
    is_outside = envelope.not_finite > 0
    mean = np.where(np.isnan(mean), low, mean)
    if is_log:
        is_outside |= low <= 0
        high = np.where(high > 0, high, np.nan)
        low = np.where(low > 0, low, high)
        mean = np.where(mean > 0, mean, high)
    is_there = np.isfinite(high) & np.isfinite(x)
    return Curve(
        label=label,
        x=x[is_there],
        low=low[is_there],
        high=high[is_there],
        mean=mean[is_there],
        outside=x[is_outside & np.isfinite(x)],
    )


def draw(
    curves: Sequence[Curve], *, width: int = 80, height: int = 20, is_log: bool = False
) -> list[str]:
    """The lines of a plot: one curve in dots of Braille, several in a letter each.

    A `*` is where curves share a place; crosses below the axis tell of values that have none.
    """
    check_count(len(curves))
    frame = _frame(curves, is_log)
    ticks = _ticks(frame, max(height, MIN_HEIGHT))
    margin = max(map(len, ticks))
    columns = max(width, MIN_WIDTH) - margin - 2
    rows = _rows(curves, frame, columns, len(ticks))
    lines = [f"{tick:>{margin}} ┤{row}" for tick, row in zip(ticks, rows, strict=True)]
    lines.append(" " * margin + " └" + "─" * columns)
    marks = _marks(curves, frame, columns)
    if marks:
        lines.append(" " * (margin + 2) + marks)
    left, right = _number(frame.left), _number(frame.right)
    lines.append(" " * (margin + 2) + left + right.rjust(columns - len(left)))
    if len(curves) > 1:
        lines += [f"{letter}  {each.label}" for letter, each in zip(LETTERS, curves, strict=False)]
    if marks:
        lines.append(f"{OUTSIDE}  NaN or infinite" + ", or not positive" * is_log)
    return [line.rstrip() for line in lines]


def check_count(count: int, most: int | None = MAX_CURVES) -> None:
    """Raise `InvalidInputError` for more curves than can be told from one another."""
    if most is not None and count > most:
        raise InvalidInputError(
            f"{count} series have no room in one plot: at most {most}",
            hint="choose fewer with --metric, or draw them to a file",
            code="AH007",
        )


def check_image(path: Path) -> None:
    """Raise where `path` has no name of an image, or matplotlib is not installed."""
    if path.suffix.lower().lstrip(".") not in FORMATS:
        raise InvalidInputError(
            f"{path}: an image is a .png, .svg or .pdf", hint=f"write {path.stem}.png", code="AH006"
        )
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as exc:
        raise ArcHaloError(
            "matplotlib is not installed", hint="pip install 'arc-halo[plot]'", code="AH030"
        ) from exc


def image(
    curves: Sequence[Curve],
    format: str,
    *,
    axis: Axis = "step",
    title: str | None = None,
    is_log: bool = False,
) -> bytes:
    """The plot as PNG, SVG or PDF; the same curves give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for each in curves:
        label = _as_written(each.label)
        (line,) = axes.plot(
            np.repeat(each.x, 2),
            _drawable(np.stack([each.low, each.high], axis=1).ravel()),
            linewidth=0.6,
            alpha=0.5,
        )
        axes.plot(each.x, _drawable(each.mean), linewidth=1.2, color=line.get_color(), label=label)
        if each.outside.size:
            axes.plot(
                each.outside,
                np.full(each.outside.size, 0.02),
                "x",
                transform=axes.get_xaxis_transform(),
                color=line.get_color(),
                label=f"{label}: NaN or infinite" + ", or not positive" * is_log,
            )
    axes.set_xlabel("seconds since the first point" if axis == "time" else axis)
    if is_log:
        axes.set_yscale("log")
    if title is not None:
        axes.set_title(_as_written(title))
    axes.grid(alpha=0.3)
    axes.legend()
    written = io.BytesIO()
    undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with mpl.rc_context({"svg.hashsalt": "arc-halo"}), warnings.catch_warnings():
        # Letters that its font does not have are boxes; nothing is to be done about it here.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(written, format=format, metadata=undated[format])
    return written.getvalue()


def _drawable(values: Floats) -> Floats:
    """Without what is so large that matplotlib finds no marks for an axis: it is at the edge."""
    return np.clip(values, -_LARGEST_DRAWN, _LARGEST_DRAWN)


def _as_written(label: str) -> str:
    """Without what matplotlib makes of a text: formulas, and labels that are left out."""
    return ("\u200b" if label.startswith("_") else "") + label.replace("$", "\\$")


def _x(label: str, envelope: Envelope, axis: Axis) -> Floats:
    if axis == "step":
        # A bucket stands where it begins, and the last where the series ends.
        steps = np.append(envelope.first_steps[:-1], envelope.last_steps[-1:])
        return steps.astype(np.float64)
    if axis == "epoch":
        if len(envelope) and np.isnan(envelope.epochs).all():
            raise InvalidInputError(
                f"{label} was logged without epochs", hint="draw it over steps, or time"
            )
        return envelope.epochs
    micros = envelope.times.astype(np.int64)
    return (micros - (micros[0] if len(micros) else 0)) / 1e6


def _frame(curves: Sequence[Curve], is_log: bool) -> _Frame:
    x = np.concatenate([_NOTHING, *(each.x for each in curves), *(c.outside for c in curves)])
    y = np.concatenate([_NOTHING, *(each.low for each in curves), *(c.high for c in curves)])
    y = np.log10(y) if is_log else y
    left, right = (float(x.min()), float(x.max())) if x.size else (0.0, 1.0)
    bottom, top = (float(y.min()), float(y.max())) if y.size else (0.0, 1.0)
    if bottom == top:
        room = 0.5 if is_log else (abs(top) / 2 or 1.0)
        bottom, top = max(bottom - room, -_LARGEST), min(top + room, _LARGEST)
    return _Frame(left=left, right=right, bottom=bottom, top=top, is_log=is_log)


def _ticks(frame: _Frame, rows: int) -> list[str]:
    """What stands beside each row: a number at every fourth, and at both ends."""
    shares = [row / (rows - 1) for row in range(rows)]
    values = [frame.top * (1 - share) + frame.bottom * share for share in shares]
    shown = [10 ** min(value, _MAX_POWER) if frame.is_log else value for value in values]
    return [
        _number(value) if row % 4 == 0 or row == rows - 1 else "" for row, value in enumerate(shown)
    ]


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.6g}"


def _rows(curves: Sequence[Curve], frame: _Frame, columns: int, rows: int) -> list[str]:
    if len(curves) == 1:
        return _braille(_bitmap(curves[0], frame, columns * 2, rows * 4))
    signs = np.full((rows, columns), " ", dtype="<U1")
    for letter, each in zip(LETTERS, curves, strict=False):
        is_drawn = _bitmap(each, frame, columns, rows)
        signs = np.where(is_drawn, np.where(signs == " ", letter, SHARED), signs)
    return ["".join(row) for row in signs]


def _braille(bitmap: NDArray[np.bool_]) -> list[str]:
    height, width = bitmap.shape
    cells = bitmap.reshape(height // 4, 4, width // 2, 2)
    codes = (cells * np.array(_DOTS)[None, :, None, :]).sum(axis=(1, 3))
    return ["".join(chr(_BRAILLE + code) if code else " " for code in row) for row in codes]


def _bitmap(curve: Curve, frame: _Frame, width: int, height: int) -> NDArray[np.bool_]:
    """The places that a curve goes through: bars from least to greatest, and lines between."""
    found = np.zeros((height, width), dtype=bool)
    columns = _places(curve.x, frame.left, frame.right, width)
    lows, highs, means = (
        height - 1 - _places(np.log10(y) if frame.is_log else y, frame.bottom, frame.top, height)
        for y in (curve.low, curve.high, curve.mean)
    )
    for column, low, high in zip(columns, lows, highs, strict=True):
        found[high : low + 1, column] = True
    for i in range(1, len(columns)):
        count = max(abs(columns[i] - columns[i - 1]), abs(means[i] - means[i - 1])) + 1
        across = np.linspace(columns[i - 1], columns[i], count).round().astype(int)
        found[np.linspace(means[i - 1], means[i], count).round().astype(int), across] = True
    return found


def _places(values: Floats, first: float, last: float, count: int) -> NDArray[np.intp]:
    """Which of `count` places between two values each has. Halved first: no span is too large."""
    span = last / 2 - first / 2
    share = (values / 2 - first / 2) / span if span > 0 else np.zeros(len(values))
    return np.clip(np.rint(share * (count - 1)), 0, count - 1).astype(np.intp)


def _marks(curves: Sequence[Curve], frame: _Frame, columns: int) -> str:
    signs = [" "] * columns
    for each in curves:
        for place in _places(each.outside, frame.left, frame.right, columns):
            signs[place] = OUTSIDE
    return "".join(signs).rstrip()
