"""What `generate` computes, handed to the writer as soon as it is there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from arc_halo.inference import dynamic_cache
from arc_halo.inference.model_states import Opened

if TYPE_CHECKING:
    from transformers import DynamicCache  # pyright: ignore[reportMissingImports]

logger = logging.getLogger("arc_halo.inference")


class Handover:
    """The cache of one call: the prompt is handed over at its first token, the rest at the end.

    `loaded` tokens of it came from the database. Of several `rows` the prompt alone is kept, which
    they have in common. An answer is not lost for what fails here: that is a warning.
    """

    def __init__(
        self,
        opened: Opened,
        cache: DynamicCache,
        *,
        loaded: int,
        rows: int,
        is_unchanged: Callable[[Opened], bool],
    ) -> None:
        self._opened, self._cache, self._rows = opened, cache, rows
        self._is_unchanged = is_unchanged
        self._blocks = loaded // opened.kv.block_tokens

    def prompt(self, tokens: Sequence[int]) -> None:
        """All tokens of the prompt are in the cache, whatever else is."""
        self._hand_over(tokens)

    def answer(self, tokens: Sequence[int]) -> None:
        """All tokens, of which the last is in no cache."""
        if self._rows == 1:
            self._hand_over(tokens)

    def _hand_over(self, tokens: Sequence[int]) -> None:
        kv = self._opened.kv
        try:
            stop = min(self._cache.get_seq_length(), len(tokens))
            # What another thread did to the weights meanwhile must not be stored as theirs.
            if stop // kv.block_tokens == self._blocks or not self._is_unchanged(self._opened):
                return
            layers = dynamic_cache.snapshot(
                self._cache, self._opened.engine.layout, stop=stop, rows_are_alike=self._rows > 1
            )
            if kv.store(tokens, layers):
                self._blocks = stop // kv.block_tokens
        except Exception as exc:  # noqa: BLE001 - whatever it is
            logger.warning("the prompt was not kept: %s: %s", type(exc).__name__, exc)
