"""Plain Python values as JSON that PostgreSQL keeps exactly, and back.

What JSON or `jsonb` would change stands as an object of one key that names the type:
`{"float": "-0.0"}`, `{"int": "0x1f…"}`, `{"bytes": "…"}`, in base64.
"""

from __future__ import annotations

import json
import math
import re
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from typing import Any

UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""What `jsonb` has no place for."""

SMALL_INT = 2**63


class NotPlainError(ValueError):
    """A value that is none of those kept here; its type is the message."""


def encode(value: object) -> Any:
    """`value` as JSON: None, bool, int, float, complex, str, bytes, bytearray, and tuples, sets and
    frozensets of these. Raises `NotPlainError` for all else, subclasses of these too."""
    encoder = _ENCODERS.get(type(value))
    if encoder is None:
        raise NotPlainError(f"{type(value).__module__}.{type(value).__qualname__}")
    return encoder(value)


def decode(found: Any) -> Any:
    """What `encode` was given. Raises `ValueError` for anything it cannot have come to."""
    if not isinstance(found, dict):
        return found
    kinds = found.keys() & _DECODERS.keys()
    if len(kinds) != 1:
        raise ValueError(f"not a value: {json.dumps(found)[:80]}")
    (kind,) = kinds
    return _DECODERS[kind](found)


def as_text(value: Any) -> str:
    """JSON in one form, ASCII alone."""
    return json.dumps(value, separators=(",", ":"))


def _encode_int(value: int) -> Any:
    return value if -SMALL_INT <= value < SMALL_INT else {"int": hex(value)}


def _encode_float(value: float) -> Any:
    # The shortest text that reads back the same; of NaN it says too little.
    if math.isnan(value):
        return {"float": "nan", "bits": struct.pack(">d", value).hex()}
    return {"float": repr(value)}


def _encode_text(value: str) -> Any:
    if UNSTORABLE.search(value):
        return {"text": b64encode(value.encode("utf-8", "surrogatepass")).decode()}
    return value


def _encode_set(kind: str) -> Callable[[Any], Any]:
    return lambda value: {kind: sorted(map(encode, value), key=as_text)}


_ENCODERS: Mapping[type, Callable[[Any], Any]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    int: _encode_int,
    float: _encode_float,
    complex: lambda value: {"complex": [_encode_float(value.real), _encode_float(value.imag)]},
    str: _encode_text,
    bytes: lambda value: {"bytes": b64encode(value).decode()},
    bytearray: lambda value: {"bytearray": b64encode(value).decode()},
    tuple: lambda value: {"items": [encode(item) for item in value]},
    set: _encode_set("set"),
    frozenset: _encode_set("frozenset"),
}


def _decode_float(found: Mapping[str, Any]) -> float:
    if "bits" in found:
        (value,) = struct.unpack(">d", bytes.fromhex(found["bits"]))
        return float(value)
    return float(found["float"])


_DECODERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "int": lambda found: int(found["int"], 16),
    "float": _decode_float,
    "complex": lambda found: complex(*map(decode, found["complex"])),
    "text": lambda found: b64decode(found["text"]).decode("utf-8", "surrogatepass"),
    "bytes": lambda found: b64decode(found["bytes"]),
    "bytearray": lambda found: bytearray(b64decode(found["bytearray"])),
    "items": lambda found: tuple(map(decode, found["items"])),
    "set": lambda found: set(map(decode, found["set"])),
    "frozenset": lambda found: frozenset(map(decode, found["frozenset"])),
}
