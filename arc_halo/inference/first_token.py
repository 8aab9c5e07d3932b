"""When `generate` has computed a prompt, and chosen the first token after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class FirstToken:
    """A stopping criterion of transformers that never stops, and calls a function once: then the
    cache holds the prompt, and nothing else."""

    def __init__(self, then: Callable[[], object]) -> None:
        self.at: float | None = None
        """By `time.perf_counter()`; None before."""
        self._then = then

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """False for each row, `[rows]`."""
        if self.at is None:
            self.at = time.perf_counter()
            self._then()
        return input_ids.new_zeros(input_ids.shape[0], dtype=bool)
