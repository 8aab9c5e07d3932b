"""`arc-halo cache …`: what it prints, what it lets go, its exit codes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from arc_halo.cli.main import run
from arc_halo.inference.keys import Scope
from arc_halo.inference.kv_cache import KVCache
from arc_halo.store import cache_policies, kv_cache
from arc_halo.store.connection import connect, pool
from tests.inference.conftest import CODECS, FULL, computed, tokens_of

REPOSITORY = Path(__file__).parents[2]

STORY, OTHER = bytes([1]) * 32, bytes([2]) * 32

MORE_BLOCKS = """
INSERT INTO kv_cache (block_key, generation, block_index, token_count, weights_root, tenant,
                      tokens, digest, codec, codec_version, part_count, raw_bytes, stored_bytes)
SELECT sha256(block_key || number::text::bytea), generation, block_index, token_count,
       weights_root, tenant, tokens, digest, codec, codec_version, part_count, raw_bytes,
       stored_bytes
FROM kv_cache, generate_series(1, 2) AS number
"""

STORED = bytes([3]) * 32

REGISTERED = """
WITH stored AS (
    INSERT INTO weight_sets (root, tensor_count, parameter_count, size_bytes)
    VALUES (%(stored)s, 1, 6, 24) RETURNING id
), loaded AS (
    INSERT INTO loaded_weights SELECT %(loaded)s, id FROM stored
), model AS (
    INSERT INTO models (model_name, version, model_type, architecture_config, weight_set_id)
    SELECT 'tale', '1.0.0', 'transformer', '{}', id FROM stored RETURNING id
)
INSERT INTO model_aliases SELECT 'tale', 'production', id FROM model
"""


@pytest.fixture
def filled(database, tmp_path, monkeypatch):
    """Two models, one of them for a tenant; a prompt of 4 blocks each, half of it asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", database)
    monkeypatch.setenv("COLUMNS", "200")
    tokens = tokens_of(1, 64)
    for scope in (
        Scope(weights=STORY, model="story@1.0.0"),
        Scope(weights=OTHER, tenant="acme", model="other@2.0.0"),
    ):
        with (
            pool(database, 2) as opened,
            KVCache(opened, CODECS, FULL, scope, block_tokens=16, storage="raw") as cache,
        ):
            cache.store(tokens, computed(FULL, tokens))
            assert cache.flush(30)
            assert cache.load(tokens[:32] + tokens_of(2, 32)).length == 32
            cache.pin(tokens[:16], "system") if scope.tenant else None
    return database


def policy(database, *, budget, ttl, quotas):
    with connect(database) as conn:
        cache_policies.upsert(
            conn,
            [{"name": "kv_cache", "budget": budget, "ttl": ttl, "block_tokens": 16, "codec": "raw",
              "quotas": quotas, "tags": {}}],
        )  # fmt: skip


def output(capsys, *words, code=0):
    assert run(["cache", *words]) == code
    return capsys.readouterr().out


def test_stats_tell_what_is_held_and_what_it_was_good_for(filled, capsys):
    found = json.loads(output(capsys, "stats", "--output", "json"))
    story = next(each for each in found["models"] if each["model"] == "story@1.0.0")
    assert (story["blocks"], story["lookups"], story["hits"]) == (4, 1, 1)
    assert (story["asked_tokens"], story["hit_tokens"]) == (64, 32)
    held, pinned = (
        sum(each[name] for each in found["models"]) for name in ("held_bytes", "pinned_bytes")
    )
    (kept,) = (each for each in found["caches"] if each["cache"] == "kv_cache")
    # What was pinned moved, and counts where it was until that generation is emptied.
    assert kept["taken_bytes"] == held + pinned
    assert (kept["holds"], kept["found"], kept["budget_bytes"]) == (8, 2, 4 * 2**30)
    text = output(capsys, "stats")
    assert "other@2.0.0" in text
    assert "50.0 %" in text
    assert "8 blocks" in text
    assert "0 tensors" in text


def test_rows_of_models_that_are_called_alike_are_told_apart(filled, capsys):
    with connect(filled) as conn:
        conn.execute("UPDATE kv_cache_counters SET model = 'llama'")
    text = output(capsys, "stats")
    assert [STORY.hex()[:12] in line for line in text.splitlines() if "llama" in line] == [
        True,
        False,
    ]
    assert OTHER.hex()[:12] in output(capsys, "ls", "--tenant", "acme")


def test_what_is_declared_is_told_with_the_part_of_it_that_is_used(filled, capsys):
    policy(filled, budget=2**20, ttl=7 * 86400, quotas={"acme": 2**13})
    text = output(capsys, "stats")
    (kept,) = (line for line in text.splitlines() if line.startswith("kv_cache"))
    (acme,) = (line for line in text.splitlines() if " acme " in line)
    assert re.search(r" 1MiB +[0-9.]+ % +7d$", kept)
    assert re.search(r" [0-9.]+ % of 8KiB ", acme)
    found = json.loads(output(capsys, "stats", "--output", "json"))
    assert found["caches"][0]["ttl_seconds"] == 7 * 86400
    assert {each["tenant"]: each["quota_bytes"] for each in found["models"]} == {
        "": None,
        "acme": 2**13,
    }


def test_rows_of_zeros_are_listed_when_all_are_asked_for(filled, capsys):
    with connect(filled) as conn:
        conn.execute(
            "INSERT INTO kv_cache_counters (tenant, weights_root, stored_blocks)"
            " VALUES ('gone', %s, 5)",
            [STORY],
        )
    assert run(["cache", "stats"]) == 0
    told = capsys.readouterr()
    assert "gone" not in told.out
    assert "1 row of zeros" in told.err
    assert "gone" in output(capsys, "stats", "--all")


def test_what_is_past_its_time_is_not_listed_unless_it_is_pinned(filled, capsys):
    policy(filled, budget=2**30, ttl=3600, quotas={})
    with connect(filled) as conn:
        conn.execute(
            "UPDATE kv_cache SET last_used_at = last_used_at - interval '2 hours'"
            " WHERE block_index = 3 OR tenant = 'acme'"
        )
    found = json.loads(output(capsys, "ls", "--output", "json"))["prefixes"]
    assert [(each["tenant"], each["tokens"]) for each in found] == [("", 48), ("acme", 16)]


def test_of_many_damaged_blocks_the_first_are_listed_and_the_rest_counted(filled, capsys):
    with connect(filled) as conn:
        conn.execute("UPDATE kv_cache_bodies SET body = set_byte(body, 9, get_byte(body, 9) # 128)")
        conn.execute(MORE_BLOCKS)
    text = output(capsys, "verify", code=1)
    assert "… and 14 more; `--output json` lists all" in text
    assert len(text.splitlines()) == 1 + 10 + 4
    found = json.loads(output(capsys, "verify", "--output", "json", code=1))
    assert len(found["damaged"]) == 24


def test_prompts_are_listed_by_model_and_tenant(filled, capsys):
    found = json.loads(output(capsys, "ls", "--output", "json"))["prefixes"]
    assert [each["tokens"] for each in found] == [64, 64]
    assert (
        len(json.loads(output(capsys, "ls", "--model", "story", "--output", "json"))["prefixes"])
        == 1
    )
    assert (
        len(json.loads(output(capsys, "ls", "--model", "020202", "--output", "json"))["prefixes"])
        == 1
    )
    assert "Nothing is in the KV cache" in output(capsys, "ls", "--tenant", "nobody")
    assert run(["cache", "ls", "--limit", "1"]) == 0
    assert "`--limit` lists more" in capsys.readouterr().err


@pytest.mark.parametrize(
    "model",
    ["tale", "tale@1.0.0", "tale:production", STORED.hex(), "030303", f"sha256:{STORED.hex()}",
     STORY.hex()],
)  # fmt: skip
def test_a_registered_model_is_found_by_each_of_its_names_and_roots(filled, capsys, model):
    with connect(filled) as conn:
        conn.execute(REGISTERED, {"stored": STORED, "loaded": STORY})
    found = json.loads(output(capsys, "ls", "--model", model, "--output", "json"))["prefixes"]
    assert [each["model"] for each in found] == ["tale@1.0.0"]
    assert output(capsys, "evict", "--model", model).startswith("4 blocks of")


@pytest.mark.parametrize("model", ["stroy", "", "%", "0202", "030303", "story@", "story:"])
def test_a_model_that_nobody_knows_is_told(filled, capsys, model):
    assert run(["cache", "evict", "--model", model]) == 1
    assert "neither the KV cache nor the registry knows" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--model", "--tenant"])
@pytest.mark.parametrize("command", ["ls", "evict"])
def test_what_is_no_text_is_refused(filled, capsys, command, option):
    assert run(["cache", command, option, os.fsdecode(b"a\xff")]) == 4
    assert "cannot be kept there" in capsys.readouterr().err


def test_a_model_is_evicted_and_what_is_pinned_stays(filled, capsys):
    assert output(capsys, "evict", "--tenant", "acme", "--dry-run").startswith("3 blocks of")
    assert "would go" in output(capsys, "evict", "--model", "story", "--dry-run")
    assert output(capsys, "evict", "--model", "story").startswith("4 blocks of")
    assert output(capsys, "evict", "--idle", "1w").startswith("0 blocks of")
    assert output(capsys, "evict", "--tenant", "acme").startswith("3 blocks of")
    found = json.loads(output(capsys, "ls", "--output", "json"))["prefixes"]
    assert [(each["tokens"], each["label"]) for each in found] == [(16, "system")]
    assert output(capsys, "evict", "--tenant", "acme", "--pinned", "--yes").startswith("1 block of")
    assert output(capsys, "ls", "--output", "json") == '{\n  "prefixes": []\n}\n'
    assert run(["cache", "evict"]) == 64
    assert run(["cache", "evict", "--idle", "soon"]) == 64


def test_what_is_pinned_goes_when_that_is_said(filled, capsys):
    words = ("evict", "--tenant", "acme", "--pinned")
    assert run(["cache", *words]) == 5
    assert "say `--yes`" in capsys.readouterr().err
    assert output(capsys, *words, "--dry-run").startswith("4 blocks of")
    assert output(capsys, *words, "--yes").startswith("4 blocks of")
    assert output(capsys, *words).startswith("0 blocks of")


def test_a_tenant_that_left_is_named_no_more(filled, capsys):
    def tenants():
        found = json.loads(output(capsys, "stats", "--all", "--output", "json"))["models"]
        return {each["tenant"] for each in found}

    output(capsys, "evict", "--tenant", "acme")
    assert tenants() == {"", "acme"}  # what is pinned is left
    output(capsys, "evict", "--tenant", "acme", "--model", "story", "--pinned", "--yes")
    output(capsys, "evict", "--tenant", "acme", "--idle", "0", "--pinned", "--yes")
    output(capsys, "evict", "--tenant", "acme", "--dry-run")
    assert tenants() == {"", "acme"}
    output(capsys, "evict", "--tenant", "acme")
    assert tenants() == {""}
    output(capsys, "evict", "--model", "story")
    assert tenants() == {""}
    output(capsys, "clear", "--yes")
    assert tenants() == set()


def test_it_is_emptied_when_that_is_said(filled, capsys):
    assert run(["cache", "clear"]) == 5
    assert "say `--yes`" in capsys.readouterr().err
    assert "8 blocks" in output(capsys, "clear", "--dry-run")
    assert "8 blocks" in output(capsys, "clear", "--yes")
    assert "0 blocks" in output(capsys, "clear", "--yes")
    assert "0 blocks" in output(capsys, "stats")


def test_emptied_it_has_all_of_its_budget_again_though_no_block_was_left(filled, capsys):
    def taken():
        return json.loads(output(capsys, "stats", "--output", "json"))["caches"][0]["taken_bytes"]

    output(capsys, "evict", "--idle", "0", "--pinned", "--yes")
    assert taken() > 0
    output(capsys, "clear", "--dry-run")
    assert taken() > 0
    assert "0 blocks" in output(capsys, "clear", "--yes")
    assert taken() == 0
    with connect(filled) as conn:
        assert kv_cache.generations(conn) == []


@pytest.mark.parametrize(
    "words", [("stats",), ("ls",), ("evict", "--idle", "0"), ("clear", "--yes"), ("verify",)]
)
def test_the_reference_has_the_fields_of_the_json(filled, capsys, words):
    found = json.loads(output(capsys, *words, "--output", "json"))
    page = (REPOSITORY / "docs/reference/commands.md").read_text()
    _, _, section = page.partition(f"## `arc-halo cache {words[0]}`\n")
    (told,) = re.findall("^JSON: (.*)$", section.partition("\n## ")[0], re.MULTILINE)
    assert set(re.findall("`([a-z_]+)`", told)) == found.keys()


def test_a_damaged_block_is_told_and_let_go(filled, capsys):
    assert "each has its digest" in output(capsys, "verify")
    with connect(filled) as conn:
        conn.execute(
            "UPDATE kv_cache_bodies SET body = set_byte(body, 9, get_byte(body, 9) # 128)"
            " WHERE block_key = (SELECT block_key FROM kv_cache"
            "                    WHERE block_index = 2 AND tenant = 'acme')"
        )
    found = json.loads(output(capsys, "verify", "--output", "json", code=1))
    assert [(each["tenant"], each["index"]) for each in found["damaged"]] == [("acme", 2)]
    assert "1 damaged; 2 blocks went" in output(capsys, "verify", "--drop")
    assert "6 blocks" in output(capsys, "verify", "--sample", "10")
