"""What is computed goes to the database: at the first token, at the end, or by hand."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import arc_halo
from arc_halo.api import Halo
from arc_halo.errors import InvalidInputError
from arc_halo.inference import housekeeping
from tests.inference import torch_models as models
from tests.inference.prompts import BLOCK, PROMPT, greedy, one_weight, opened, written

pytestmark = pytest.mark.torch

Sql = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def halo(tmp_path: Path, database: str) -> Iterator[Halo]:
    with arc_halo.connect(database, project=tmp_path) as opened:
        yield opened


def at_token(number: int, do: Callable[[], object]) -> Callable[[Any, Any], Any]:
    """A processor of logits that does something before a token is chosen."""

    def processor(input_ids: Any, scores: Any) -> Any:
        if input_ids.shape[1] == PROMPT + number - 1:
            do()
        return scores

    return processor


def test_what_is_there_is_not_handed_over_again(
    halo: Halo, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arc_halo.inference import kv_cache

    starts = []
    store = kv_cache.KVCache.store

    def seen(self: Any, tokens: Any, layers: Any) -> bool:
        starts.append([layer.start for layer in layers])
        return store(self, tokens, layers)

    monkeypatch.setattr(kv_cache.KVCache, "store", seen)
    with opened(halo, models.tiny("gemma3_text")) as cache:
        for _ in range(2):
            written(cache, models.tokens(PROMPT))
        written(cache, models.tokens(PROMPT), count=24)
    assert (starts[0], len(starts)) == ([0, 0], 2)


def test_keys_of_weights_that_went_are_not_stored(halo: Halo, sql: Sql) -> None:
    model, ids = models.tiny("llama"), models.tokens(PROMPT)
    with opened(halo, model) as cache:
        prefix, _ = cache.prefix(ids)
        models.logits(model, ids, prefix)
        one_weight(model)
        assert not cache.store(ids, prefix)
    assert sql("SELECT count(*) FROM kv_cache") == [(0,)]


@pytest.mark.parametrize(("token", "blocks"), [(1, 0), (2, PROMPT // BLOCK)])
def test_what_was_computed_with_weights_that_changed_is_not_stored(
    halo: Halo, sql: Sql, token: int, blocks: int
) -> None:
    """Before the first token is there nothing is stored; after it the prompt, and no more."""
    model = models.tiny("llama")

    def change(input_ids: Any, scores: Any) -> Any:
        if input_ids.shape[1] == PROMPT + token - 1:
            one_weight(model)
        return scores

    with opened(halo, model) as cache:
        cache.generate(models.tokens(PROMPT), max_new_tokens=40, logits_processor=[change])
    assert sql("SELECT count(*) FROM kv_cache") == [(blocks,)]


@pytest.mark.parametrize("name", models.NAMES)
def test_a_prompt_is_kept_once_its_first_token_is_there(halo: Halo, name: str) -> None:
    """Whatever becomes of the answer; and tokens that end in other blocks are kept after it."""
    model, ids = models.tiny(name), models.tokens(PROMPT)

    def interrupt(input_ids: Any, scores: Any) -> Any:
        if input_ids.shape[1] == PROMPT + 3:
            raise KeyboardInterrupt
        return scores

    with opened(halo, model) as cache:
        with pytest.raises(KeyboardInterrupt):
            cache.generate(ids, max_new_tokens=40, logits_processor=[interrupt])
        assert cache.flush(30)
        assert cache.prefix(ids)[1] == 96
        answered = written(cache, ids, count=40)
        assert answered == greedy(model, ids, count=40)
        assert cache.prefix(answered)[1] == 128


@pytest.mark.parametrize("count", [1, 8])
def test_what_is_stored_is_what_was_computed_whoever_has_the_cache(
    halo: Halo, database: str, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    """Nobody can write yet, and the cache that is returned is written over meanwhile."""
    model, ids = models.tiny("llama"), models.tokens(PROMPT)
    options = {"max_new_tokens": count, "do_sample": False}
    with opened(halo, model) as cache:
        with psycopg.connect(database) as conn:
            conn.execute("LOCK kv_cache IN EXCLUSIVE MODE")
            output = cache.generate(ids, return_dict_in_generate=True, **options)
            for layer in output.past_key_values.layers:
                layer.keys.zero_()
        # The prompt is in other tensors, once there is more.
        is_kept = count > 1
        assert cache.flush(30) == is_kept
        assert ("were written over before they were stored" in caplog.text) != is_kept
        assert written(cache, ids) == greedy(model, ids)
        assert cache.cached_tokens == (96 if is_kept else 0)


def test_an_answer_outlives_what_fails_after_it(
    halo: Halo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from arc_halo.inference import kv_cache

    model, ids = models.tiny("llama"), models.tokens(PROMPT)

    def fails(*_: Any) -> bool:
        raise MemoryError("no room")

    class Training:
        """A streamer after which the model is in training."""

        def put(self, value: Any) -> None:
            pass

        def end(self) -> None:
            model.train()

    options = {"max_new_tokens": 40, "do_sample": False}
    expected = greedy(model, ids, count=40)
    with opened(halo, model) as cache:
        assert cache.generate(ids, streamer=Training(), **options)[0].tolist() == expected
        assert "was not kept: InvalidInputError" in caplog.text
        model.eval()
        monkeypatch.setattr(kv_cache.KVCache, "store", fails)
        ids = models.tokens(PROMPT, seed=2)
        assert cache.generate(ids, **options)[0].tolist() == greedy(model, ids, count=40)
        assert "was not kept: MemoryError: no room" in caplog.text


def test_it_warns_once_where_too_much_waits(
    halo: Halo, database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from arc_halo.inference import kv_cache

    made = kv_cache.KVCache.__init__
    monkeypatch.setattr(
        kv_cache.KVCache,
        "__init__",
        lambda self, *args, **kwargs: made(self, *args, **kwargs, queue_bytes=1),
    )
    with opened(halo, models.tiny("llama")) as cache, psycopg.connect(database) as conn:
        conn.execute("LOCK kv_cache IN EXCLUSIVE MODE")
        for _ in range(3):
            cache.generate(models.tokens(PROMPT), max_new_tokens=2)
    assert caplog.text.count("too much waits") == 1


@pytest.mark.parametrize(
    "other", [{"storage": "planes"}, {"adapter": "b"}, {"tenant": "b"}, {"block_tokens": 8}]
)
def test_a_prefix_of_one_cache_is_not_stored_by_another(
    halo: Halo, sql: Sql, other: dict[str, Any]
) -> None:
    model, ids = models.tiny("llama"), models.tokens(PROMPT)
    with (
        opened(halo, model, storage="int8", adapter="a") as first,
        opened(halo, model, **{"storage": "int8", "adapter": "a", **other}) as second,
    ):
        written(first, ids)
        count = sql("SELECT count(*) FROM kv_cache")
        prefix, length = first.prefix(ids)
        models.logits(model, ids[length:], prefix)
        assert not second.store(ids, prefix)
        assert second.flush(30)
        assert sql("SELECT count(*) FROM kv_cache") == count
        assert first.store(ids, prefix)


def test_of_an_empty_cache_there_is_nothing_to_store(halo: Halo, sql: Sql) -> None:
    from transformers import DynamicCache

    model = models.tiny("llama")
    with opened(halo, model) as cache:
        assert cache.store(models.tokens(PROMPT), DynamicCache(config=model.config))
        assert cache.flush(30)
    assert sql("SELECT count(*) FROM kv_cache") == [(0,)]


def test_a_session_records_what_each_prompt_took(halo: Halo, sql: Sql) -> None:
    ids = models.tokens(PROMPT)

    def interrupt(input_ids: Any, scores: Any) -> Any:
        raise KeyboardInterrupt

    with (
        halo.inference.session("tiny@1") as session,
        opened(halo, models.tiny("llama")) as cache,
    ):
        written(cache, ids, session=session)
        written(cache, ids, session=session, num_return_sequences=2, num_beams=2)
        with pytest.raises(InvalidInputError):
            cache.generate(ids, session=session, max_new_token=3)
        with pytest.raises(KeyboardInterrupt):
            cache.generate(ids, session=session, logits_processor=[interrupt], max_new_tokens=2)
        for given in (session.id, halo.inference.get(session)):
            with pytest.raises(InvalidInputError, match="is no session that could record"):
                cache.generate(ids, session=given)
    found = sql(
        "SELECT prompt_tokens, cached_tokens, generated_tokens, succeeded, "
        "first_token_ms < latency_ms FROM inference_metrics ORDER BY id"
    )
    assert found == [
        (PROMPT, 0, 12, True, True),
        (PROMPT, 96, 24, True, True),
        (PROMPT, None, None, False, None),
    ]


def test_a_prompt_whose_write_failed_is_written_with_its_answer(halo: Halo, sql: Sql) -> None:
    model, ids = models.tiny("llama"), models.tokens(PROMPT)
    flushed = []

    def comes_back() -> None:
        flushed.append(cache.flush(30))
        sql("ALTER TABLE gone RENAME TO kv_cache")

    processors = [
        at_token(1, lambda: sql("ALTER TABLE kv_cache RENAME TO gone")),
        at_token(10, comes_back),
    ]
    with opened(halo, model) as cache:
        answered = written(cache, ids, count=40, logits_processor=processors)
        assert flushed == [False]
        assert cache.match(answered) == 128


def test_a_conversation_whose_beginning_went_is_stored_anew(halo: Halo) -> None:
    model, ids = models.tiny("llama"), models.tokens(320)
    with opened(halo, model) as cache:
        past, _ = cache.prefix(ids[:100])
        models.logits(model, ids[:100], past)
        assert cache.store(ids[:100], past)
        assert cache.flush(30)
        with halo.project.connection() as conn:
            housekeeping.clear(conn)
        models.logits(model, ids[100:160], past)
        assert cache.store(ids[:160], past)
        assert cache.flush(30)
        assert cache.match(ids) == 160


def test_a_cache_that_is_cut_or_emptied_and_goes_on_is_stored_as_it_is(halo: Halo) -> None:
    model, first = models.tiny("llama"), models.tokens(128)
    second = first[:32] + models.tokens(96, seed=3)
    with opened(halo, model) as cache:
        past, _ = cache.prefix(first)
        models.logits(model, first, past)
        assert cache.store(first, past)
        past.crop(-96)
        models.logits(model, second[32:], past)
        assert cache.store(second, past)
        past.reset()
        third = models.tokens(128, seed=4)
        models.logits(model, third, past)
        assert cache.store(third, past)
        assert cache.flush(30)
        assert [cache.match(each) for each in (first, second, third)] == [128, 128, 128]
        assert written(cache, second) == greedy(model, second)


def test_what_is_written_is_held_no_longer(
    halo: Halo, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arc_halo.inference import writing

    held: list[weakref.ref[Any]] = []
    put = writing.KVWriter.put

    def seen(self: Any, write: Any) -> bool:
        held.extend(weakref.ref(array) for layer in write.layers for array in layer.both)
        return put(self, write)

    monkeypatch.setattr(writing.KVWriter, "put", seen)
    with opened(halo, models.tiny("llama")) as cache:
        cache.generate(models.tokens(PROMPT), max_new_tokens=2)
        deadline = time.monotonic() + 30
        while any(each() is not None for each in held) and time.monotonic() < deadline:
            time.sleep(0.1)
            gc.collect()
        assert held
        assert not [each for each in held if each() is not None]


def test_of_many_answers_one_row_waits_and_not_the_batch(
    halo: Halo, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.multiprocessing.reductions import StorageWeakRef

    from arc_halo.inference import dynamic_cache

    taken: list[Any] = []
    snapshot = dynamic_cache.snapshot

    def seen(cache: Any, *args: Any, **kwargs: Any) -> Any:
        found = snapshot(cache, *args, **kwargs)
        storages = [StorageWeakRef(each.keys.untyped_storage()) for each in cache.layers]
        taken.append((found, storages))
        return found

    monkeypatch.setattr(dynamic_cache, "snapshot", seen)
    options = {"num_return_sequences": 8, "do_sample": True, "max_new_tokens": 4}
    with opened(halo, models.tiny("llama")) as cache:
        cache.generate(models.tokens(PROMPT), **options)
        gc.collect()
        ((found, storages),) = taken
        assert all(each.expired() for each in storages)
        assert found[0].keys.shape == (2, PROMPT, 8)


@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2}])
def test_several_rows_go_on_from_a_prefix_without_records(
    halo: Halo, name: str, options: dict[str, Any]
) -> None:
    import torch

    model, ids = models.tiny(name, sliding_window=40), models.tokens(PROMPT)
    longer = ids + models.tokens(120, seed=5)
    with opened(halo, model, record_windows=False) as cache:
        written(cache, ids)
        options = {**options, "do_sample": "num_beams" not in options, "max_new_tokens": 3}
        torch.manual_seed(0)
        found = cache.generate(longer, **options)
        assert cache.cached_tokens == 96
        torch.manual_seed(0)
        given = torch.tensor([longer])
        expected = model.generate(given, attention_mask=torch.ones_like(given), **options)
        assert found.equal(expected)


def test_what_fills_up_shorter_answers_is_not_counted(halo: Halo, sql: Sql) -> None:
    import torch

    model, ids = models.tiny("llama"), models.tokens(PROMPT)
    options = {"do_sample": True, "top_k": 0, "num_return_sequences": 4, "max_new_tokens": 120}
    with halo.inference.session("tiny@1") as session, opened(halo, model) as cache:
        torch.manual_seed(0)
        output = cache.generate(ids, eos_token_id=5, pad_token_id=63, session=session, **options)
    rows = output[:, PROMPT:].tolist()
    count = sum(row.index(5) + 1 if 5 in row else len(row) for row in rows)
    assert count < output[:, PROMPT:].numel()
    assert sql("SELECT generated_tokens FROM inference_metrics") == [(count,)]


def test_a_call_within_another_leaves_its_figures_alone(halo: Halo, sql: Sql) -> None:
    model, ids, other = models.tiny("llama"), models.tokens(PROMPT), models.tokens(200, seed=9)
    options = {"max_new_tokens": 8, "do_sample": False}
    with halo.inference.session("tiny@1") as session, opened(halo, model) as cache:
        written(cache, other)
        processor = at_token(3, lambda: cache.generate(other, **options))
        output = cache.generate(ids, session=session, logits_processor=[processor], **options)
        assert output[0].tolist() == greedy(model, ids, count=8)
    found = sql("SELECT prompt_tokens, cached_tokens, generated_tokens FROM inference_metrics")
    assert found == [(PROMPT, 0, 8)]
