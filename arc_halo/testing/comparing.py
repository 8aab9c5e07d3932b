"""Long bytes compared. Where CI is set, pytest would explain all of them, and take hours."""

from __future__ import annotations

import numpy as np


def check_same(actual: bytes, expected: bytes, message: str) -> None:
    """Raise `AssertionError` with the message, and where they first differ, unless they do not."""
    if actual == expected:
        return
    if len(actual) != len(expected):
        raise AssertionError(f"{message}: {len(actual)} bytes, not {len(expected)}")
    differ = np.frombuffer(actual, np.uint8) != np.frombuffer(expected, np.uint8)
    raise AssertionError(
        f"{message}: {np.count_nonzero(differ)} of {len(actual)} bytes differ, "
        f"the first is that at {np.argmax(differ)}"
    )
