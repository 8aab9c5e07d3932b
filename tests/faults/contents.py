"""Files of weights that tests import, written and read by hand."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LARGE_BYTES = 24 * 2**20
"""More than sits in any socket's buffers."""

Contents = Mapping[str, tuple[str, tuple[int, ...], bytes]]


def shake(name: str, size: int) -> bytes:
    return hashlib.shake_256(name.encode()).digest(size)


def contents_of(names: range) -> Contents:
    """Layers of 1 MiB and 300 KB, and small tensors in between."""
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for n in names:
        found[f"layer.{n}"] = ("F32", (512, 512), shake(f"layer.{n}", 2**20))
        found[f"norm.{n}"] = ("BF16", (64,), shake(f"norm.{n}", 128))
        found[f"embed.{n}"] = ("U8", (300_000,), shake(f"embed.{n}", 300_000))
    return found


def write_contents(path: Path, contents: Contents) -> Path:
    header: dict[str, Any] = {}
    body = b""
    for name, (dtype, shape, raw) in contents.items():
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def read_contents(path: Path) -> Contents:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    return {
        name: (entry["dtype"], tuple(entry["shape"]), body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }
