"""A model of transformers that remembers prompts: its keys and values come from the database."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from arc_halo.errors import DatabaseError, InvalidInputError
from arc_halo.inference import causal_models, dynamic_cache
from arc_halo.inference.arguments import (
    check_arguments,
    check_session,
    generated_tokens,
    rows_of,
    sequences_of,
    tokens_of,
)
from arc_halo.inference.blocks import LayerKV
from arc_halo.inference.first_token import FirstToken
from arc_halo.inference.handing_over import Handover
from arc_halo.inference.kv_cache import Prefix
from arc_halo.inference.model_states import ModelStates, OpenCache, Opened
from arc_halo.inference.recomputing import Recomputation, recompute, tolerance_of
from arc_halo.plain import check_texts

if TYPE_CHECKING:
    from transformers import DynamicCache  # pyright: ignore[reportMissingImports]

    from arc_halo.inference.sessions import InferenceSession

logger = logging.getLogger("arc_halo.inference")

PAUSE_SECONDS = 10.0
"""How long nothing is looked up after the database did not answer."""


class TransformersCache:
    """Prompts of one model for one tenant. Made by `halo.inference.transformers_cache`.

    Every call looks whether weights or adapters changed; of another state of the model nothing is
    loaded. One thread at a time, as the model itself.
    """

    def __init__(
        self,
        model: Any,
        open_cache: OpenCache,
        *,
        tenant: str = "",
        adapter_name: str = "",
        record_windows: bool = True,
    ) -> None:
        self.cached_tokens = 0
        """Tokens of the prompt that the latest `prefix` or `generate` did not have to compute."""
        self._model = model
        self._states = ModelStates(model, open_cache, tenant=tenant, adapter_name=adapter_name)
        self._record_windows = record_windows
        self._outage = ""
        self._ask_again = 0.0
        self._has_told_of_outage = False
        self._states.current()

    def match(self, input_ids: Any) -> int:
        """How many tokens of a prompt seem to be stored, by one query that loads nothing.

        A hint: what is there is known once it is loaded. Raises `DatabaseError`.
        """
        return self._states.current().kv.match(tokens_of(input_ids))

    def prefix(self, input_ids: Any) -> tuple[DynamicCache, int]:
        """A cache with what is stored of a prompt, to go on with, and how many tokens that is.

        The last token is always left to be computed: its logits are what is wanted. Raises
        `DatabaseError`, and for some seconds after that again without asking.
        """
        return self._prefix(self._states.current(), tokens_of(input_ids))

    def store(self, input_ids: Any, cache: DynamicCache) -> bool:
        """Have the full blocks of a cache written that are not there yet, by another thread.

        `input_ids` are all tokens that it has, or more. It may go on being used; its tensors must
        not be written to in place, or nothing is kept. False where too much waits already, and
        where the cache began as a prefix of another state of the model, or of a cache with another
        tenant, adapter, storage or size of blocks. Where any other cache is from is not known: it
        has to be of the model as it is.
        """
        dynamic_cache.check_cache(cache)
        opened, tokens = self._states.current(), tokens_of(input_ids)
        if getattr(cache, "arc_halo_space", opened.space) != opened.space:
            return False
        length = cache.get_seq_length()
        if not length:
            return True
        if length > len(tokens):
            raise InvalidInputError(
                f"a cache of {length} tokens came with {len(tokens)} tokens", code="AH006"
            )
        return opened.kv.store(tokens, dynamic_cache.snapshot(cache, opened.engine.layout))

    def generate(
        self, input_ids: Any, *, session: InferenceSession | None = None, **kwargs: Any
    ) -> Any:
        """`model.generate` for one prompt: the stored prefix is loaded, and what is new stored: the
        prompt once its first token is there, and what follows at the end.

        Returns what `model.generate` does. Without the database it computes everything, and warns.
        A `session` records what it took. Raises `InvalidInputError` for arguments that change more
        than what is chosen.
        """
        check_session(session)
        prompt = tokens_of(input_ids)
        causal_models.check_generates(self._model)
        settings = check_arguments(self._model, kwargs, prompt)
        opened = self._states.current()
        if session is None:
            return self._generated(opened, prompt, settings)[0]
        with session.request(prompt_tokens=len(prompt)) as request:
            output, loaded = self._generated(opened, prompt, settings, request.first_token)
            request.done(
                cached_tokens=loaded,
                generated_tokens=generated_tokens(self._model, settings, output, len(prompt)),
            )
        return output

    def pin(self, input_ids: Any, label: str = "") -> int:
        """Keep what is stored of a prompt, whatever else has to go; how many tokens that is.

        Call `flush` before, for a prompt that was just computed. Raises `RefusedError` where what
        is pinned would have more than half of the budget, or of the tenant's quota.
        """
        check_texts(label=label)
        return self._states.current().kv.pin(tokens_of(input_ids), label or "")

    def unpin(self, input_ids: Any) -> bool:
        """Let the longest prefix of a prompt that is pinned go like others; False where none is."""
        return self._states.current().kv.unpin(tokens_of(input_ids))

    def verify(self, sample: int = 8, *, tolerance: float | None = None) -> Recomputation:
        """Compute so many stored prompts again, and compare.

        They are drawn among all that the tenant has with these weights, so fewer may be of this
        cache. Of models whose layers all slide only first blocks are looked at: no other says what
        came before it.
        """
        if type(sample) is not int or sample < 1:
            raise InvalidInputError(f"sample={sample!r}: write 1 or more", code="AH006")
        opened = self._states.current()
        layout = opened.engine.layout
        if tolerance is None:
            tolerance = tolerance_of(layout.dtype, opened.kv.storage)
        if not 0 <= tolerance < math.inf:
            raise InvalidInputError(f"tolerance={tolerance!r}: write 0 or more", code="AH006")

        def compute(tokens: list[int]) -> list[LayerKV]:
            cache = dynamic_cache.prefilled(self._model, tokens)
            return dynamic_cache.export(cache, layout)

        return recompute(opened.kv.sample(sample), compute, tolerance)

    def refresh(self) -> None:
        """Read the weights again: after writes that torch keeps no count of, see `Fingerprint`."""
        self._states.refresh()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was stored is written; False where it is not, or waits still."""
        return self._states.flush(timeout)

    def close(self) -> None:
        """Write what waits, and end the threads that do: some seconds, and no more."""
        self._states.close()

    def __enter__(self) -> TransformersCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _kept_tokens(self, opened: Opened) -> int | None:
        """What sliding layers keep beside their window: all, or enough that blocks which end in
        the last one are whole."""
        return None if self._record_windows else 2 * opened.kv.block_tokens

    def _generated(
        self,
        opened: Opened,
        prompt: list[int],
        settings: dict[str, Any],
        first_token: Callable[[], None] | None = None,
    ) -> tuple[Any, int]:
        """What `model.generate` returns, and how many tokens it did not have to compute."""
        import torch  # pyright: ignore[reportMissingImports]

        cache, loaded = self._prefix_or_new(opened, prompt)
        rows = rows_of(self._model, settings)
        if rows > 1 and loaded:
            cache.batch_repeat_interleave(rows)
        handover = Handover(
            opened, cache, loaded=loaded, rows=rows, is_unchanged=self._states.is_still
        )
        begun = FirstToken(first_token, lambda: handover.prompt(prompt))
        ids = torch.tensor([prompt], device=self._model.device)
        given = {
            **settings,
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "stopping_criteria": [begun, *(settings.get("stopping_criteria") or ())],
            causal_models.cache_argument(self._model): cache,
        }
        output = self._model.generate(**given)
        handover.answer(sequences_of(output)[0].tolist())
        return output, loaded

    def _prefix_or_new(self, opened: Opened, prompt: list[int]) -> tuple[DynamicCache, int]:
        """What is stored of a prompt; nothing where the database does not say, with a warning."""
        try:
            return self._prefix(opened, prompt)
        except DatabaseError as exc:
            if not self._has_told_of_outage:
                self._has_told_of_outage = True
                logger.warning("prompts are computed as a whole: %s", exc)
            return self._new_cache(opened), 0

    def _prefix(self, opened: Opened, tokens: list[int]) -> tuple[DynamicCache, int]:
        found = self._looked_up(opened, tokens)
        self.cached_tokens = found.length
        if not found.length:
            return self._new_cache(opened), 0
        cache = dynamic_cache.restore(
            self._model,
            opened.engine,
            found.layers,
            found.length,
            kept_tokens=self._kept_tokens(opened),
        )
        cache.arc_halo_space = opened.space
        return cache, found.length

    def _looked_up(self, opened: Opened, tokens: list[int]) -> Prefix:
        """What is stored. A database that did not answer is not asked again for a while, so that
        it costs one prompt's time, and not every one's."""
        if self._outage and time.monotonic() < self._ask_again:
            raise DatabaseError(self._outage)
        try:
            found = opened.kv.load(tokens, limit=max(0, len(tokens) - 1))
        except DatabaseError as exc:
            self._outage, self._ask_again = exc.message, time.monotonic() + PAUSE_SECONDS
            raise
        self._outage, self._has_told_of_outage = "", False
        return found

    def _new_cache(self, opened: Opened) -> DynamicCache:
        self.cached_tokens = 0
        cache = dynamic_cache.new_cache(self._model, kept_tokens=self._kept_tokens(opened))
        cache.arc_halo_space = opened.space
        return cache
