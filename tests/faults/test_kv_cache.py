"""No call on a KV cache waits for long for a server that hangs, nor does its end."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import arc_halo
from arc_halo.errors import ConnectionFailedError
from arc_halo.inference.keys import Scope
from arc_halo.inference.kv_cache import KVCache
from arc_halo.store import silence
from arc_halo.store.connection import pool
from tests.faults.servers import Server, wait_for
from tests.inference.conftest import CODECS, FULL, computed, tokens_of

TOKENS = tokens_of(1, 32)
WRITER = "arc-halo-kv-cache"


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """A server of which no process does anything, not even take a connection."""
    postmaster = int((server.data / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGSTOP)  # first, so that it makes no more
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    pids = [*map(int, children), postmaster]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def cache(server: Server) -> Iterator[KVCache]:
    """One with a prompt in it."""
    scope = Scope(weights=bytes(32))
    with (
        pool(server.url(server.create_database()), 2) as opened,
        KVCache(opened, CODECS, FULL, scope, block_tokens=16, storage="raw") as made,
    ):
        made.store(TOKENS, computed(FULL, TOKENS))
        assert made.flush(30)
        yield made


@pytest.mark.parametrize(
    "call",
    [
        lambda cache: cache.pin(TOKENS),
        lambda cache: cache.unpin(TOKENS),
        lambda cache: list(cache.sample(1)),
    ],
    ids=["pin", "unpin", "sample"],
)
def test_a_frozen_server_is_given_up(
    server: Server,
    cache: KVCache,
    call: Callable[[KVCache], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(silence, "TRANSACTION_SECONDS", 0.3)
    with frozen(server), pytest.raises(ConnectionFailedError, match="did not answer"):
        call(cache)
    assert cache.load(TOKENS).length == 32
    assert cache.flush(30)


def test_what_a_frozen_server_did_not_take_is_told_and_the_thread_goes_on(
    server: Server,
    cache: KVCache,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(silence, "TRANSACTION_SECONDS", 0.3)
    other = tokens_of(2, 32)
    with frozen(server):
        assert cache.store(other, computed(FULL, other))
        wait_for(lambda: "did not answer" in caplog.text)
    assert not cache.flush(30)
    assert cache.store(other, computed(FULL, other))
    assert cache.flush(30)
    assert cache.match(other) == 32


def test_the_end_of_a_cache_waits_for_no_frozen_server(
    server: Server, cache: KVCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "psycopg")
    other = tokens_of(3, 32)
    with frozen(server):
        assert cache.store(other, computed(FULL, other))
        assert not cache.flush(0.2)
        cache.close(0.2)
        # The thread is still at it, and keeps nobody.
        assert WRITER in {each.name for each in threading.enumerate() if each.daemon}
        assert not cache.store(other, computed(FULL, other))
    wait_for(lambda: WRITER not in {each.name for each in threading.enumerate()})
    assert cache.match(other) == 32


@pytest.mark.torch
def test_all_caches_of_a_model_have_one_deadline_to_end_by(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from arc_halo.inference import transformers_cache
    from tests.inference import torch_models as models

    monkeypatch.setattr(transformers_cache, "CLOSE_SECONDS", 2.0)
    model, ids = models.tiny("llama"), models.tokens(40)
    one_each = threading.Timer(5, lambda: None)
    with arc_halo.connect(server.url(server.create_database()), project=tmp_path) as halo:
        cache = halo.inference.transformers_cache(model, block_tokens=16)
        with frozen(server):
            for _ in range(3):
                with torch.no_grad():
                    model.lm_head.weight.mul_(2)
                    computed = model(torch.tensor([ids]), use_cache=True).past_key_values
                assert cache.store(ids, computed)
            names = [each.name for each in threading.enumerate()]
            assert names.count(WRITER) == 3
            one_each.start()
            cache.close()
            assert one_each.is_alive()
            one_each.cancel()
    wait_for(lambda: WRITER not in {each.name for each in threading.enumerate()})
