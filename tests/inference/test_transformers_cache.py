"""Prompts of transformers' models in the database: the same tokens, or nothing."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

import arc_halo
from arc_halo.api import Halo
from arc_halo.errors import ArcHaloError, DatabaseError, InvalidInputError
from arc_halo.inference import housekeeping
from arc_halo.store import cache_policies
from arc_halo.store import kv_cache_reading as reading
from tests.inference import torch_models as models
from tests.inference.prompts import BLOCK, PROMPT, greedy, one_weight, opened, written

pytestmark = pytest.mark.torch
WEIGHTS = Path(__file__).parents[2] / "examples" / "weights"

Sql = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def halo(tmp_path: Path, database: str) -> Iterator[Halo]:
    with arc_halo.connect(database, project=tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("dtype", models.DTYPES)
@pytest.mark.parametrize("name", models.NAMES)
def test_a_prompt_from_the_database_goes_on_as_one_in_memory(
    halo: Halo, name: str, dtype: str
) -> None:
    model, ids = models.tiny(name, dtype), models.tokens(PROMPT)
    memory = models.prefilled(model, ids[:96])
    with opened(halo, model) as cache:
        assert cache.prefix(ids)[1] == 0
        assert cache.store(ids, memory)
        assert cache.flush(30)
    with opened(halo, models.tiny(name, dtype)) as cache:
        restored, length = cache.prefix(ids)
    assert length == 96
    assert models.logits(model, ids[96:], restored).equal(models.logits(model, ids[96:], memory))


@pytest.mark.parametrize("name", models.NAMES)
def test_the_tokens_are_those_of_the_model_alone(halo: Halo, name: str) -> None:
    """First nothing is there, then the prompt, then an answer too, and parts of all that."""
    model, ids = models.tiny(name), models.tokens(PROMPT)
    with opened(halo, model) as cache:
        first = written(cache, ids)
        assert (first, cache.cached_tokens) == (greedy(model, ids), 0)
        assert (written(cache, ids), cache.cached_tokens) == (first, 96)
        longer = first + models.tokens(30, seed=2)
        # The last token of an answer is chosen, and not computed with: 111 of the 112 are there.
        assert (written(cache, longer), cache.cached_tokens) == (greedy(model, longer), 96)
        assert (written(cache, longer), cache.cached_tokens) == (greedy(model, longer), 128)
        # A window's blocks were stored on the way, so that the middle is there too.
        other = ids[:70] + models.tokens(30, seed=3)
        assert (written(cache, other), cache.cached_tokens) == (greedy(model, other), 64)
        shorter = ids[:64]
        assert (written(cache, shorter), cache.cached_tokens) == (greedy(model, shorter), 63)


@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
def test_without_records_a_conversation_goes_on_where_it_ended(halo: Halo, name: str) -> None:
    model, ids = models.tiny(name, sliding_window=40), models.tokens(PROMPT)
    with opened(halo, model, record_windows=False) as cache:
        answered = written(cache, ids)
        assert written(cache, ids[:50]) == greedy(model, ids[:50])
        longer = answered + models.tokens(30, seed=2)
        assert (written(cache, longer), cache.cached_tokens) == (greedy(model, longer), 96)
        longest = written(cache, longer) + models.tokens(5, seed=3)
        assert (written(cache, longest), cache.cached_tokens) == (greedy(model, longest), 144)


def with_layer(model: Any, **state: Any) -> Any:
    """With a layer that says of itself what one of peft's with an adapter does."""
    for name, value in {"disable_adapters": False, "merged_adapters": [], **state}.items():
        setattr(model.lm_head, name, value)
    return model


OTHERS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "one weight": lambda: (one_weight(models.tiny("llama")), {}),
    "another tenant": lambda: (models.tiny("llama"), {"tenant": "b"}),
    "a named adapter": lambda: (models.tiny("llama"), {"adapter": "steered"}),
    "an active adapter": lambda: (with_layer(models.tiny("llama"), active_adapters=["a"]), {}),
    "another theta": lambda: (
        models.tiny(
            "llama", rope_parameters={"rope_type": "default", "rope_theta": 20_000.0}
        ),
        {},
    ),
    "another attention": lambda: (models.tiny("llama", attn_implementation="eager"), {}),
    "another dtype": lambda: (models.tiny("llama", "bfloat16"), {}),
    "other blocks": lambda: (models.tiny("llama"), {"block_tokens": 8}),
    "another storage": lambda: (models.tiny("llama"), {"storage": "int8"}),
}  # fmt: skip


def test_nothing_of_another_model_or_tenant_is_loaded(halo: Halo) -> None:
    ids = models.tokens(PROMPT)
    with opened(halo, models.tiny("llama"), tenant="a") as cache:
        written(cache, ids)
        assert cache.prefix(ids)[1] == 96
    found = {}
    for name, other in OTHERS.items():
        model, options = other()
        with opened(halo, model, **{"tenant": "a", **options}) as cache:
            found[name] = cache.prefix(ids)[1]
    assert found == dict.fromkeys(OTHERS, 0)


def test_autocast_is_refused_and_leaves_the_rest_as_it_is(halo: Halo) -> None:
    import torch

    model, ids = models.tiny("llama"), models.tokens(PROMPT)
    with opened(halo, model) as cache:
        first = written(cache, ids)
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(InvalidInputError, match="autocast"),
        ):
            cache.generate(ids)
        assert (written(cache, ids), cache.cached_tokens) == (first, 96)


def test_a_setting_that_earlier_versions_saved_is_no_matter(halo: Halo) -> None:
    model, ids = models.tiny("gemma3_text"), models.tokens(PROMPT)
    model.generation_config.cache_implementation = "hybrid"
    with opened(halo, model) as cache:
        assert written(cache, ids) == written(cache, ids) == greedy(model, ids)


def test_weights_that_change_under_way_are_a_miss_and_come_back(halo: Halo) -> None:
    import torch

    model, ids = models.tiny("mistral"), models.tokens(PROMPT)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with opened(halo, model) as cache:
        first = written(cache, ids)
        one_weight(model)
        second = written(cache, ids)
        assert (second, cache.cached_tokens) == (greedy(model, ids), 0)
        model.load_state_dict(before)
        assert (written(cache, ids), cache.cached_tokens) == (first, 96)
        with torch.no_grad():
            model.lm_head.weight.data[0] += 1  # which torch does not count
        cache.refresh()
        assert cache.prefix(ids)[1] == 0


def test_criteria_of_ones_own_stop_it(halo: Halo) -> None:
    model, ids = models.tiny("llama"), models.tokens(PROMPT)

    def at_five(input_ids: Any, scores: Any, **_: Any) -> Any:
        return input_ids.new_full((1,), input_ids.shape[1] >= PROMPT + 5, dtype=bool)

    with opened(halo, model) as cache:
        found = written(cache, ids, stopping_criteria=[at_five])
    assert found == greedy(model, ids, count=5)


@pytest.mark.parametrize("name", models.NAMES)
def test_a_flipped_byte_is_a_miss_and_the_tokens_stay_right(
    halo: Halo, sql: Sql, name: str
) -> None:
    model, ids = models.tiny(name), models.tokens(PROMPT)
    with opened(halo, model, storage="raw") as cache:
        expected = written(cache, ids)
        sql(
            "UPDATE kv_cache_bodies SET body = set_byte(body, 5, get_byte(body, 5) # 1) "
            "WHERE block_key IN (SELECT block_key FROM kv_cache WHERE block_index = 2)"
        )
        assert written(cache, ids) == expected == greedy(model, ids)
        assert cache.cached_tokens in (0, 32, 96)
        assert cache.cached_tokens != 96 or name == "mistral"  # which needs its last window alone


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_beams_share_the_prompt(halo: Halo, name: str) -> None:
    import torch

    model, ids = models.tiny(name), models.tokens(PROMPT)
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8, "do_sample": False}
    given = torch.tensor([ids])
    expected = model.generate(
        input_ids=given, attention_mask=torch.ones_like(given), **options
    ).tolist()
    with opened(halo, model) as cache:
        assert cache.generate(given, **options).tolist() == expected
        assert cache.flush(30)
        cache.prefix(ids)
        assert cache.cached_tokens == 96
        assert cache.generate(given, **options).tolist() == expected
        assert cache.cached_tokens == 96


def test_what_generate_returns_comes_back_as_it_is(halo: Halo) -> None:
    import torch

    model, ids = models.tiny("llama"), models.tokens(PROMPT)
    with opened(halo, model) as cache:
        output = cache.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, PROMPT),
            generation_config=model.generation_config,
            max_new_tokens=4,
            return_dict_in_generate=True,
            output_logits=True,
        )
        assert output.sequences.shape == (1, PROMPT + 4)
        assert len(output.logits) == 4
        assert cache.flush(30)
        assert cache.prefix(ids)[1] == 96


def test_arguments_that_change_the_prompt_are_refused_by_name(halo: Halo) -> None:
    import torch

    model, ids = models.tiny("llama"), models.tokens(10)
    with opened(halo, model) as cache:
        for name, value in {
            "inputs_embeds": torch.zeros(1, 10, 32),
            "position_ids": torch.arange(10)[None],
            "adapter_names": ["a"],
            "past_key_values": None,
            "assistant_model": model,
            "cache_implementation": "static",
            "prompt_lookup_num_tokens": 3,
            "token_healing": True,
        }.items():
            with pytest.raises(InvalidInputError, match=name):
                cache.generate(ids, **{name: value})
        with pytest.raises(InvalidInputError, match="use_cache=False"):
            cache.generate(ids, use_cache=False)
        with pytest.raises(InvalidInputError, match="leaves tokens"):
            cache.generate(ids, attention_mask=torch.tensor([[0] + [1] * 9]))
        for odd in ([], [[1], [2]], torch.zeros(2, 3, dtype=torch.long), [0.5]):
            with pytest.raises(InvalidInputError, match="tokens of one prompt"):
                cache.generate(odd)


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        ({"max_new_token": 3}, "max_new_token", "did you mean 'max_new_tokens'?"),
        ({"inputs": [1]}, "inputs", "give the tokens as input_ids"),
        ({"past_key_values": None}, "past_key_values", "leave it out"),
        ({"input_ids": None}, "the tokens of one prompt", "one sequence at a time"),
        ({"input_ids": "Once"}, "text is no prompt yet", "tokenizer(text"),
        ({"input_ids": {"input_ids": [1]}}, "the tokens of one prompt", "write **inputs"),
        ({"input_ids": [[1], [2]]}, "the tokens of one prompt", "one sequence at a time"),
        ({"attention_mask": [[1, 0]]}, "attention_mask leaves", "without padding"),
    ],
)
def test_a_mistaken_call_says_what_was_meant(
    halo: Halo, arguments: dict[str, Any], said: str, hint: str
) -> None:
    with opened(halo, models.tiny("llama")) as cache:
        with pytest.raises(InvalidInputError, match=said) as caught:
            cache.generate(**{"input_ids": [1, 2], **arguments})
        assert hint in str(caught.value.hint)
        cache.generate([1, 2], attention_mask=[[1, 1]], max_new_tokens=1)


@pytest.mark.parametrize(
    "options",
    [
        {"tenant": None},
        {"tenant": 5},
        {"adapter": None},
        {"block_tokens": 0},
        {"block_tokens": "x"},
        {"block_tokens": 7.5},
    ],
)
def test_mistaken_options_are_refused(halo: Halo, options: dict[str, Any]) -> None:
    with pytest.raises(ArcHaloError, match=str(next(iter(options)))[:5]):
        opened(halo, models.tiny("llama"), **options)


def test_other_calls_by_mistake_are_refused_too(halo: Halo) -> None:
    model, ids = models.tiny("llama"), models.tokens(PROMPT)
    with opened(halo, model) as cache:
        for given in (None, model, ((1, 2),)):
            with pytest.raises(InvalidInputError, match="is no DynamicCache"):
                cache.store(ids, given)
        for options in ({"sample": 0}, {"sample": "x"}, {"tolerance": -1}, {"tolerance": math.nan}):
            with pytest.raises(InvalidInputError, match=next(iter(options))):
                cache.verify(**options)
        for label in (5, "a\0"):
            with pytest.raises(InvalidInputError, match="label"):
                cache.pin(ids, label)
    with opened(halo, model.model) as cache, pytest.raises(InvalidInputError, match="no tokens"):
        cache.generate(ids)
    with pytest.raises(InvalidInputError, match="a str is no model"):
        opened(halo, "story@1.0.0")


def test_a_match_tells_what_seems_to_be_there_and_loads_nothing(halo: Halo, sql: Sql) -> None:
    ids = models.tokens(PROMPT)
    with opened(halo, models.tiny("llama")) as cache:
        assert cache.match(ids) == 0
        written(cache, ids)
        sql("DELETE FROM kv_cache_bodies")
        assert cache.match(ids) == 96
        assert cache.prefix(ids)[1] == 0


def test_padding_without_a_mask_is_refused(halo: Halo) -> None:
    import torch

    model = models.tiny("llama")
    ids = [7, 7, *(token for token in models.tokens(PROMPT) if token != 7)]
    ones = torch.ones(1, len(ids), dtype=torch.long)
    with opened(halo, model) as cache:
        with pytest.raises(InvalidInputError, match="padding token 7"):
            cache.generate(ids, pad_token_id=7)
        model.generation_config.pad_token_id = 7
        with pytest.raises(InvalidInputError, match="padding token 7"):
            cache.generate(ids)
        assert written(cache, ids, attention_mask=ones) == greedy(model, ids)
        assert written(cache, ids[2:]) == greedy(model, ids[2:])
        # One that ends texts as well is no padding.
        for ends in (7, [3, 7]):
            options = {"eos_token_id": ends, "max_new_tokens": 4, "do_sample": False}
            expected = model.generate(input_ids=torch.tensor([ids]), **options)
            assert cache.generate(ids, **options).equal(expected)


def test_what_a_generation_config_leaves_open_is_as_the_model_has_it(halo: Halo) -> None:
    import torch
    from transformers import GenerationConfig

    model, ids = models.tiny("llama"), models.tokens(PROMPT)
    model.generation_config.num_beams = 3
    given = torch.tensor([ids])

    def expected(**options: Any) -> list[int]:
        output = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), do_sample=False, **options
        )
        found: list[int] = output[0].tolist()
        return found

    with opened(halo, model) as cache:
        written(cache, ids, num_beams=1)
        for options in (
            {"generation_config": GenerationConfig(max_new_tokens=12)},
            {"generation_config": GenerationConfig(num_beams=2, max_new_tokens=12)},
        ):
            output = cache.generate(ids, do_sample=False, **options)
            assert (output[0].tolist(), cache.cached_tokens) == (expected(**options), 96)
        for name, value in {
            "use_cache": False, "cache_implementation": "static", "token_healing": True
        }.items():  # fmt: skip
            before = getattr(model.generation_config, name)
            setattr(model.generation_config, name, value)
            with pytest.raises(InvalidInputError, match=name):
                cache.generate(ids, generation_config=GenerationConfig(max_new_tokens=4))
            setattr(model.generation_config, name, before)
        with pytest.raises(InvalidInputError, match="use_cache"):
            cache.generate(ids, use_cache=None)


def test_a_model_in_training_is_refused_whenever_it_is(halo: Halo) -> None:
    model = models.tiny("llama")
    with opened(halo, model) as cache:
        model.train()
        with pytest.raises(InvalidInputError, match="in training"):
            cache.generate([1, 2, 3])
    with pytest.raises(InvalidInputError, match="in training"):
        opened(halo, model)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_prompt_shorter_than_a_block_is_computed(halo: Halo, name: str) -> None:
    model, ids = models.tiny(name), models.tokens(5)
    with opened(halo, model) as cache:
        for _ in range(2):
            assert (written(cache, ids, 4), cache.cached_tokens) == (greedy(model, ids, 4), 0)


def test_a_prompt_of_one_token_is_computed(halo: Halo) -> None:
    model = models.tiny("llama")
    with opened(halo, model, block_tokens=1) as cache:
        assert written(cache, [5]) == greedy(model, [5])
        assert cache.prefix([5])[1] == 0


def test_after_the_end_it_says_so(halo: Halo) -> None:
    cache = opened(halo, models.tiny("llama"))
    halo.inference.close()
    with pytest.raises(InvalidInputError, match="closed"):
        cache.generate([1, 2, 3])


def test_without_the_database_it_generates_and_warns(
    halo: Halo, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    model, ids = models.tiny("llama"), models.tokens(PROMPT)
    with opened(halo, model) as cache, caplog.at_level(logging.WARNING, "arc_halo.inference"):
        written(cache, ids)
        sql("ALTER TABLE kv_cache RENAME TO gone")
        output = cache.generate(ids, max_new_tokens=12, do_sample=False)
        assert (output[0].tolist(), cache.cached_tokens) == (greedy(model, ids), 0)
        assert "prompts are computed as a whole" in caplog.text


def the_warnings(caplog: pytest.LogCaptureFixture, text: str) -> int:
    return sum(text in record.getMessage() for record in caplog.records)


def test_a_frozen_server_is_a_miss_and_is_not_asked_again_for_a_while(
    halo: Halo,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from arc_halo.inference import kv_cache

    monkeypatch.setattr(kv_cache, "SILENCE_SECONDS", 0.3)
    model, ids = models.tiny("llama"), models.tokens(PROMPT)
    expected = greedy(model, ids)
    asked = []
    load = kv_cache.KVCache.load

    def seen(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(1)
        return load(self, *args, **kwargs)

    with opened(halo, model) as cache:
        written(cache, ids)
        monkeypatch.setattr(kv_cache.KVCache, "load", seen)
        with frozen(database):
            for _ in range(2):
                output = cache.generate(ids, max_new_tokens=12, do_sample=False)
                assert (output[0].tolist(), cache.cached_tokens) == (expected, 0)
            with pytest.raises(DatabaseError, match="did not answer"):
                cache.prefix(ids)
        assert len(asked) == 1
        assert the_warnings(caplog, "computed as a whole") == 1
        monkeypatch.setattr(time, "monotonic", later())
        assert cache.flush(30)
        assert (written(cache, ids), cache.cached_tokens) == (expected, 96)


def test_where_no_connection_is_to_be_had_it_computes(
    halo: Halo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from arc_halo.inference import kv_cache

    monkeypatch.setattr(kv_cache, "CONNECTION_SECONDS", 0.1)
    model, ids = models.tiny("llama"), models.tokens(PROMPT)
    pool = halo.inference._project.pool  # pyright: ignore[reportPrivateUsage]
    with opened(halo, model) as cache:
        with ExitStack() as stack:
            for _ in range(pool.max_size):
                stack.enter_context(pool.connection())
            output = cache.generate(ids, max_new_tokens=12, do_sample=False)
        assert (output[0].tolist(), cache.cached_tokens) == (greedy(model, ids), 0)
    assert "0.10 sec" in caplog.text


def later() -> Callable[[], float]:
    """A clock on which a minute has passed."""
    clock = time.monotonic
    return lambda: clock() + 60


@contextmanager
def frozen(database: str) -> Iterator[None]:
    """A database of which no server process does anything."""
    with psycopg.connect(database, autocommit=True) as conn:
        rows = conn.execute(
            "SELECT pid FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend'"
        ).fetchall()
        for (pid,) in rows:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for (pid,) in rows:
                os.kill(pid, signal.SIGCONT)


def test_a_tenant_that_cannot_be_written_is_refused(halo: Halo) -> None:
    model, ids = models.tiny("llama"), models.tokens(PROMPT)
    for tenant in ("a\0b", "a\ud800", "ä" * 128):
        with pytest.raises(InvalidInputError):
            opened(halo, model, tenant=tenant)
    with opened(halo, model, tenant="x" * 255) as cache:
        written(cache, ids)
        assert cache.prefix(ids)[1] == 96


def test_a_state_that_has_to_go_is_not_waited_for(halo: Halo, database: str) -> None:
    """Others hold the table; what it has to write is written once they let go."""
    model, ids = models.tiny("llama"), models.tokens(PROMPT)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with opened(halo, model) as cache, psycopg.connect(database) as conn:
        cache.prefix(ids)
        conn.execute("LOCK kv_cache IN EXCLUSIVE MODE")
        cache.store(ids, models.prefilled(model, ids))
        for _ in range(4):
            one_weight(model)
            cache.prefix(ids)
        assert not cache.flush(0.2)
        conn.rollback()
        assert cache.flush(30)
        model.load_state_dict(before)
        assert cache.prefix(ids)[1] == 96


def test_a_model_of_the_demo_remembers_its_prompt(halo: Halo) -> None:
    from transformers import AutoModelForCausalLM

    text = (WEIGHTS / "eval_general.txt").read_bytes()[:200]
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS / "base").eval()
    with opened(halo, model, block_tokens=64) as cache:
        first = written(cache, list(text))
        assert (written(cache, list(text)), cache.cached_tokens) == (first, 192)
        assert first == greedy(model, list(text))


@pytest.mark.parametrize("storage", ["planes", "int8"])
@pytest.mark.parametrize("dtype", models.DTYPES)
@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_what_is_stored_is_what_is_computed_again(
    halo: Halo, name: str, dtype: str, storage: str
) -> None:
    with opened(halo, models.tiny(name, dtype), storage=storage) as cache:
        for seed in (1, 2):
            written(cache, models.tokens(PROMPT, seed=seed))
        found = cache.verify()
        assert (found.prompts > 0, found.wrong) == (True, ())
        assert found.tokens >= BLOCK * found.prompts
        assert found.error > 0.001 or storage != "int8"


def test_keys_of_something_else_are_found_by_computing_again(halo: Halo) -> None:
    """Stored by a caller's mistake, with every digest right."""
    model, ids = models.tiny("llama"), models.tokens(PROMPT)
    with opened(halo, model) as cache:
        assert cache.verify().prompts == 0
        assert cache.store(ids, models.prefilled(models.tiny("llama", seed=9), ids))
        assert cache.flush(30)
        found = cache.verify(sample=100)
    assert found.prompts == 6
    assert {each.tokens for each in found.wrong} == {tuple(ids[:n]) for n in range(16, 97, 16)}
    assert all(each.error > 0.5 for each in found.wrong)


def test_prompts_of_others_are_not_computed_again(halo: Halo) -> None:
    ids = models.tokens(PROMPT)
    for options in ({}, {"tenant": "b"}, {"adapter": "c"}, {"storage": "raw"}):
        with opened(halo, models.tiny("llama"), **options) as cache:
            written(cache, ids)
    with opened(halo, models.tiny("llama"), tenant="b") as cache:
        assert cache.verify(sample=100).prompts == 6
    with opened(halo, models.tiny("mistral")) as cache:
        written(cache, ids)
        # The only one that is known to follow none.
        assert cache.verify(sample=100).tokens == BLOCK


def test_a_prompt_that_is_pinned_stays(halo: Halo, sql: Sql) -> None:
    model, ids = models.tiny("llama", "float32"), models.tokens(PROMPT)
    with opened(halo, model) as cache:
        written(cache, ids)
        assert cache.pin(ids, label="system prompt") == 96
        assert sql("SELECT DISTINCT label FROM kv_cache_pins") == [("system prompt",)]
        with halo.project.connection() as conn:
            housekeeping.evict(conn, tenant="")
        assert cache.prefix(ids)[1] == 96
        assert cache.unpin(ids)
        assert not cache.unpin(ids)


def test_blocks_are_as_a_manifest_declares_them(halo: Halo, sql: Sql) -> None:
    model, ids = models.tiny("llama", "float32"), models.tokens(PROMPT)
    with halo.project.connection() as conn:
        declared = {"name": "kv_cache", "budget": 2**30, "block_tokens": 32, "codec": "raw"}
        cache_policies.upsert(conn, [{**declared, "quotas": {}, "tags": {}}])
    with halo.inference.transformers_cache(model) as cache:
        written(cache, ids)
    assert sql("SELECT DISTINCT token_count, codec FROM kv_cache") == [(32, "raw")]


def test_a_model_of_the_registry_is_known_by_its_tensors(halo: Halo, tmp_path: Path) -> None:
    """Loaded it has tied weights and buffers beside those of the file, or another dtype."""
    from transformers import AutoModelForCausalLM

    ids = models.tokens(PROMPT)
    models.tiny("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "tiny")
    for name in ("story@1.0.0", "tale@2.0.0"):
        halo.models.import_weights(name, tmp_path / "tiny", model_type="transformer")
    for dtype in ("float32", "bfloat16"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", dtype=dtype).eval()
        with opened(halo, model) as cache:
            written(cache, ids)
        one_weight(model)
        with opened(halo, model) as cache:
            written(cache, ids)
    with halo.project.connection() as conn:
        names = sorted(each.model for each in reading.usage(conn))
        assert names == [*3 * [str(tmp_path / "tiny")], "story@1.0.0, tale@2.0.0"]
        for name in ("story", "story@1.0.0", "tale"):
            assert len(reading.roots_of_model(conn, name)) == 2  # as stored, and as loaded


def test_a_model_with_more_parameters_is_not_taken_for_a_registered_one(
    halo: Halo, tmp_path: Path
) -> None:
    """Norms of ones, whose bytes are those of others that are there."""
    from safetensors.torch import save_file  # pyright: ignore[reportMissingImports]

    model = models.tiny("qwen3", **{**models.SIZES, "head_dim": 32})
    stored = {
        name: tensor.detach().clone()
        for name, tensor in model.named_parameters()
        if "q_norm" not in name and "k_norm" not in name
    }
    save_file(stored, tmp_path / "plain.safetensors")
    halo.models.import_weights(
        "plain@1.0.0", tmp_path / "plain.safetensors", model_type="transformer"
    )
    with opened(halo, model) as cache:
        written(cache, models.tokens(PROMPT))
    with halo.project.connection() as conn:
        assert [each.model for each in reading.usage(conn)] != ["plain@1.0.0"]


def test_weights_made_in_inference_mode_are_looked_at_each_time(
    halo: Halo, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    ids = models.tokens(PROMPT)
    with torch.inference_mode():
        model = models.tiny("llama")
        with opened(halo, model) as cache:
            written(cache, ids)
            assert cache.prefix(ids)[1] == 96
            model.lm_head.weight[0] += 1
            assert cache.prefix(ids)[1] == 0
    assert caplog.text.count("outside of torch.inference_mode") == 1
