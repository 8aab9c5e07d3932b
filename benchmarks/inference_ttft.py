"""Time to the first token of a Llama on the CPU: with its prompt stored, half of it, none of it.

    python inference_ttft.py MODE ARGUMENTS-AS-JSON

measures one, and prints one JSON object; `inference.py --only ttft` does all of them in turns.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rows import Row
from server_cpu import charged
from tensor_site import Cost, Site, interleaved, ratio_row

TOKENS = 2048
VOCABULARY = 32_000
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""125 million parameters in float32; 24 KiB of keys and values a token."""


def ttft(at: Site, url: str, quick: bool, repetitions: int) -> Iterator[Row]:
    """Beside the model alone, with a prompt of 2,048 tokens."""
    fields = {"url": url, "postmaster": at.postmaster, "tokens": TOKENS // (4 if quick else 1)}
    _probe("store", fields)
    modes = ("cold", "stored", "half", "memory", "missed")
    costs = interleaved({mode: partial(_probe, mode, fields) for mode in modes}, repetitions)
    count = fields["tokens"]
    what = f"first token after {count:,} tokens, CPU: cold /"
    yield ratio_row(f"{what} stored", costs, "cold", "stored", 8, ">=")
    yield ratio_row(f"{what} half of it stored", costs, "cold", "half", 1.8, ">=")
    limit = ratio_row("  the same, that half in memory already", costs, "cold", "memory", 1.8, ">=")
    yield Row(what=limit.what, figure=limit.figure)
    yield ratio_row("  nothing stored / cold", costs, "missed", "cold", 1.05, "<=")
    for mode in modes:
        walls = [float(cost.said["seconds"]) for cost in costs[mode]]
        cached = costs[mode][0].said["cached_tokens"]
        figure = f"{median(walls):.2f} s  {min(walls):.2f}-{max(walls):.2f}, {cached} tokens there"
        yield Row(what=f"  {mode}, by the clock", figure=figure)


def measure(mode: str, url: str, postmaster: int, tokens: int) -> dict[str, Any]:
    """What one first token takes in this process, whose model is there and warm."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import arc_halo
    from arc_halo.inference.causal_models import cache_argument
    from arc_halo.inference.dynamic_cache import prefilled

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES)).eval()
    # The halves of a prompt: what nobody may have stored is another one each time.
    other = time.time_ns()
    first = other if mode == "missed" else 0
    second = other if mode in ("missed", "half", "memory") else 0
    halves = [
        np.random.default_rng(seed).integers(1, VOCABULARY, tokens) for seed in (first, second)
    ]
    half = tokens // 2
    prompt = torch.tensor(np.concatenate([halves[0][:half], halves[1][half:]]))[None]
    mask = torch.ones_like(prompt)
    settings = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
    with ExitStack() as stack:
        halo = stack.enter_context(arc_halo.connect(url))
        cache = stack.enter_context(halo.inference.transformers_cache(model))
        for _ in range(2):
            # What is imported, allocated and connected once in a process is in no first token.
            cache.generate(list(range(1, 513)), **settings)
            assert cache.flush(120)
        past: dict[str, Any] = {}
        if mode == "memory":
            with torch.no_grad():
                past = {cache_argument(model): prefilled(model, prompt[0, :half].tolist())}
        started = time.perf_counter()
        with charged(postmaster, writes=False) as cost:
            began = time.process_time()
            if mode in ("cold", "memory"):
                model.generate(input_ids=prompt, attention_mask=mask, **past, **settings)
            else:
                cache.generate(prompt, **settings)
            # What is written back begins when the token is there, and is none of its time.
            client = time.process_time() - began
            seconds = time.perf_counter() - started
        if mode == "store":
            assert cache.flush(120)
        cached = {"cold": 0, "memory": half}.get(mode, cache.cached_tokens)
        return {**cost, "client": client, "seconds": seconds, "cached_tokens": cached}


def _probe(mode: str, fields: dict[str, Any]) -> Cost:
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), mode, json.dumps(fields)],
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the probe {mode} exited with {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Cost(client=found.pop("client"), server=found.pop("server"), said=found)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], **json.loads(sys.argv[2]))))
