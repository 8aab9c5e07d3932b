"""A transformers module at the level of tokens, what it has read kept as keys and values."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from arc_halo.errors import MemberError
from arc_halo.runners._tokenizers import Tokenizer
from arc_halo.types import JsonObject, Vocabulary

if TYPE_CHECKING:
    from arc_halo.outputs import Float64


class ModuleTokens:
    """The `TokenModel` of a module. One thread at a time computes.

    `encode_chat` is what a chat template makes of a conversation.
    """

    def __init__(
        self,
        module: Any,
        tokenizer: Tokenizer,
        architecture: JsonObject,
        encode_chat: Callable[[Sequence[JsonObject]], list[int]] | None = None,
    ) -> None:
        self.encode_chat = encode_chat
        self._module = module
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self.device = module.get_output_embeddings().weight.device
        takes = inspect.signature(module.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        # Its name since transformers 5.
        self._cache = "cache" if "cache" in takes else "past_key_values"
        self.vocabulary = Vocabulary(
            size=module.get_output_embeddings().weight.shape[0], tokenizer=tokenizer.identity
        )
        self.end_tokens = _end_tokens(architecture.get("eos_token_id"))
        length = getattr(module.config, "max_position_embeddings", None)
        self.context_length = length if isinstance(length, int) and length > 0 else None

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)

    def score(self, tokens: Sequence[int]) -> Float64:
        """Logits of what follows each token, in one pass."""
        self.check_length(len(tokens))
        logits, _ = self.run([tokens], use_cache=False)
        only: Float64 = logits[0]
        return only

    def begin(self, prompts: Sequence[Sequence[int]]) -> ModuleSession:
        """Read texts: those of one length together, so that none is padded."""
        for prompt in prompts:
            if not prompt:
                raise MemberError("an empty prompt has nothing to go on with", code="AH007")
        return ModuleSession(self, prompts)

    def check_length(self, count: int) -> None:
        if self.context_length is not None and count > self.context_length:
            raise MemberError(f"{count} tokens, and it takes {self.context_length}")

    def run(self, rows: Sequence[Sequence[int]], **options: Any) -> tuple[Float64, Any]:
        """Logits [rows, tokens, vocabulary] in float64, and the keys and values."""
        import torch  # pyright: ignore[reportMissingImports]

        if bad := [token for row in rows for token in row if not 0 <= token < self.vocabulary.size]:
            raise MemberError(f"token {bad[0]} of a vocabulary of {self.vocabulary.size}")
        with self._lock, torch.inference_mode():
            ids = torch.tensor([list(row) for row in rows], device=self.device)
            found = self._module(input_ids=ids, **options)
            logits = found.logits.cpu().double().numpy()
        return logits, getattr(found, self._cache, None)

    def step(self, rows: Sequence[Sequence[int]], cache: Any) -> tuple[Float64, Any]:
        """Logits [rows, vocabulary] of what follows, with what was read before."""
        options = {self._cache: cache, "use_cache": True, **self._last_only}
        logits, cache = self.run(rows, **options)
        if not isinstance(cache, tuple) and not hasattr(cache, "batch_select_indices"):
            raise MemberError("its architecture keeps no keys and values to go on from")
        return logits[:, -1], cache


class ModuleSession:
    """Texts in groups of one length, each group with the keys and values of what it has read."""

    def __init__(self, model: ModuleTokens, prompts: Sequence[Sequence[int]]) -> None:
        self._model = model
        by_length: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            by_length.setdefault(len(prompt), []).append(row)
        self._groups = [_Group(length, rows, None) for length, rows in by_length.items()]
        self.logits = self._advance(prompts)

    def step(self, tokens: Sequence[int]) -> Float64:
        """The logits of what follows these tokens."""
        for group in self._groups:
            group.length += 1
        self.logits = self._advance([[token] for token in tokens])
        return self.logits

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these only."""
        import torch  # pyright: ignore[reportMissingImports]

        new = {row: place for place, row in enumerate(rows)}
        for group in self._groups:
            places = [place for place, row in enumerate(group.rows) if row in new]
            if places and len(places) < len(group.rows):
                group.cache = _kept(group.cache, torch.tensor(places, device=self._model.device))
            group.rows = [new[group.rows[place]] for place in places]
        self._groups = [group for group in self._groups if group.rows]
        self.logits = self.logits[list(rows)]

    def _advance(self, new: Sequence[Sequence[int]]) -> Float64:
        import numpy as np

        logits = np.empty((len(new), self._model.vocabulary.size))
        for group in self._groups:
            self._model.check_length(group.length)
            found, group.cache = self._model.step([new[row] for row in group.rows], group.cache)
            logits[group.rows] = found
        return logits


class _Group:
    def __init__(self, length: int, rows: list[int], cache: Any) -> None:
        self.length = length
        self.rows = rows
        self.cache = cache


def _kept(cache: Any, places: Any) -> Any:
    """The keys and values of some texts; transformers 4 has them as tuples for some models."""
    if isinstance(cache, tuple):
        return tuple(tuple(each[places] for each in layer) for layer in cache)
    cache.batch_select_indices(places)
    return cache


def _end_tokens(said: Any) -> frozenset[int]:
    listed = said if isinstance(said, list) else [said]
    return frozenset(token for token in listed if isinstance(token, int))
