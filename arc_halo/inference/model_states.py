"""The caches of a model, one for each state of it: its weights, its adapters, its settings."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from arc_halo.errors import InvalidInputError
from arc_halo.inference import causal_models, dynamic_cache
from arc_halo.inference.fingerprints import Fingerprint, adapter_state
from arc_halo.inference.keys import Scope, namespace
from arc_halo.inference.kv_cache import KVCache
from arc_halo.inference.layouts import KVLayout

OpenCache = Callable[[KVLayout, Scope], KVCache]
Key: TypeAlias = tuple[bytes, bytes, str]

MAX_OPEN = 4
"""States that are kept open at a time, each with a thread."""

CLOSE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The cache of one state of a model."""

    key: Key
    engine: dynamic_cache.Engine
    kv: KVCache
    space: bytes
    """All that its blocks are called by beside tokens: tenant, storage and size too."""


class ModelStates:
    """Looks at each call whether weights or adapters changed, and opens another cache then."""

    def __init__(
        self, model: Any, open_cache: OpenCache, *, tenant: str, adapter_name: str
    ) -> None:
        self._model = model
        self._open_cache = open_cache
        self._tenant = tenant
        self._adapter_name = adapter_name
        self._fingerprint = Fingerprint(model)
        self._opened: OrderedDict[Key, Opened] = OrderedDict()
        self._closing: list[threading.Thread] = []
        self._is_closed = False

    def current(self) -> Opened:
        """The cache of the model as it is.

        Raises `InvalidInputError` after the end, and for a model that is refused.
        """
        if self._is_closed:
            raise InvalidInputError("the cache is closed", code="AH006")
        causal_models.check_model(self._model)
        weights = self._fingerprint.weights()
        key = self._key(weights.root)
        if key not in self._opened:
            engine = dynamic_cache.describe(self._model)
            scope = Scope(
                weights=weights.root,
                adapter=self._adapter(key[1]),
                tenant=self._tenant,
                model=causal_models.name_of(self._model),
                tensors=weights.tensors,
                parameters=weights.parameters,
            )
            kv = self._open_cache(engine.layout, scope)
            space = namespace(scope, engine.layout.digest(), 0, kv.block_tokens, kv.storage)
            self._opened[key] = Opened(key=key, engine=engine, kv=kv, space=space)
            while len(self._opened) > MAX_OPEN:
                self._close_beside(self._opened.popitem(last=False)[1].kv)
        self._opened.move_to_end(key)
        return self._opened[key]

    def is_still(self, opened: Opened) -> bool:
        """Whether the model is as it was. Raises `InvalidInputError` for one that is refused."""
        causal_models.check_model(self._model)
        return self._key(self._fingerprint.weights().root) == opened.key

    def refresh(self) -> None:
        """Read the weights again."""
        self._fingerprint.refresh()

    def flush(self, timeout: float | None) -> bool:
        """Wait until what was stored is written; False where it is not, or waits still."""
        left = _countdown(timeout)
        found = [each.kv.flush(left()) for each in self._opened.values()]
        return self._have_closed(left) and all(found)

    def close(self) -> None:
        """Write what waits, and end the threads that do: some seconds, and no more."""
        self._is_closed = True
        left = _countdown(CLOSE_SECONDS)
        found = [each.kv for each in self._opened.values()]
        self._opened.clear()
        for kv in found:
            kv.close(timeout=0)
        for kv in found:
            kv.close(left())
        self._have_closed(left)

    def _key(self, root: bytes) -> Key:
        settings = json.dumps(causal_models.engine_of(self._model), sort_keys=True)
        return root, adapter_state(self._model), settings

    def _close_beside(self, kv: KVCache) -> None:
        """Let a cache write what waits, without waiting for it."""
        self._closing = [each for each in self._closing if each.is_alive()]
        thread = threading.Thread(
            target=kv.close, args=(None,), name="arc-halo-kv-cache-close", daemon=True
        )
        thread.start()
        self._closing.append(thread)

    def _have_closed(self, left: Callable[[], float | None]) -> bool:
        for thread in self._closing:
            thread.join(left())
        return not any(each.is_alive() for each in self._closing)

    def _adapter(self, state: bytes) -> bytes:
        """What peft's layers say, and what the caller does; empty where there is nothing."""
        name = self._adapter_name.encode()
        if not state and not name:
            return b""
        return hashlib.sha256(b"arc-halo/adapter/1\0" + state.ljust(32, b"\0") + name).digest()


def _countdown(seconds: float | None) -> Callable[[], float | None]:
    """What is left of so many seconds, whenever it is asked."""
    end = None if seconds is None else time.monotonic() + seconds
    return lambda: None if end is None else max(0.0, end - time.monotonic())
