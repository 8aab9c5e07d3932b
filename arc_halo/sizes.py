"""Byte counts, numbers and times as people read them."""

from __future__ import annotations


def format_size(size_bytes: float) -> str:
    """`6.1 MB`: decimal units, two or three significant digits."""
    value = float(size_bytes)
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    if unit == "B":
        return f"{int(value)} B"
    return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"


def format_count(count: int, noun: str) -> str:
    """`1 tensor`, `39 tensors`, `9,000 models`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def format_seconds(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `26 h 08 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{int(seconds // 60)} min {int(seconds % 60):02} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02} min"
