"""Byte counts, numbers and times as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

_SIZES: Mapping[str, int] = {
    "TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10,
    "TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3, "B": 1,
}  # fmt: skip
_SECONDS: Mapping[str, int] = {"d": 86400, "h": 3600, "m": 60, "s": 1}


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


def format_time(at: datetime) -> str:
    """`2026-06-01 12:00:00+0000`: everywhere in UTC, whatever the zone of server and reader."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S%z}"


def manifest_size(size_bytes: int) -> str:
    """`100MiB`, as short as it can be written in a manifest without rounding."""
    return min(_exact(size_bytes, _SIZES), key=len)


def manifest_duration(seconds: int) -> str:
    """`7d`, as short as it can be written in a manifest without rounding."""
    return min(_exact(seconds, _SECONDS), key=len)


def _exact(value: int, units: Mapping[str, int]) -> list[str]:
    return [f"{value // size}{unit}" for unit, size in units.items() if value % size == 0]
