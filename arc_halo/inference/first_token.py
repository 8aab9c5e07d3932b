"""When `generate` has computed a prompt, and chosen the first token after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class FirstToken:
    """A stopping criterion of transformers that never stops, and calls functions once: when the
    cache holds the prompt."""

    def __init__(self, *then: Callable[[], object] | None) -> None:
        self._then = [each for each in then if each is not None]

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """False for each row, `[rows]`."""
        import torch  # pyright: ignore[reportMissingImports]

        then, self._then = self._then, []
        for each in then:
            each()
        return input_ids.new_zeros(input_ids.shape[0], dtype=torch.bool)
