"""Models of three vocabularies, and what their merge comes to, worked out row by row in numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Arrays = dict[str, np.ndarray[Any, Any]]
Vocabulary = dict[str, int]

WIDTH = 24
VOCABULARIES: dict[str, Vocabulary] = {
    "base": {token: id_ for id_, token in enumerate("abcdefgh")} | {"<s>": 8},
    # Shuffled, without some of the base's, and with some of its own.
    "poet": {"h": 0, "c": 1, "x": 2, "b": 3, "a": 4, "<s>": 5, "y": 6, "d": 7, "<rhyme>": 9},
    "coder": {"a": 0, "b": 1, "c": 2, "z": 3, "x": 4, "e": 5, "<tab>": 6, "f": 7},
}
ADDED = {"<s>", "<rhyme>", "<tab>"}
PADDING = {"base": 3, "poet": 0, "coder": 1}
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
CONFIG = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 0}


def document(vocabulary: Vocabulary, added: set[str] = ADDED, **model: Any) -> bytes:
    """A `tokenizer.json` of that vocabulary."""
    own = {token: id_ for token, id_ in vocabulary.items() if token not in added}
    entries = [
        {"id": id_, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for token, id_ in vocabulary.items() if token in added
    ]  # fmt: skip
    data = {
        "version": "1.0",
        "added_tokens": entries,
        "pre_tokenizer": None,
        "model": {"type": "BPE", "vocab": own, "merges": [], **model},
    }
    return json.dumps(data, ensure_ascii=False).encode()


def arrays(name: str, vocabulary: Vocabulary, dtype: Any = np.float32) -> Arrays:
    numbers = np.random.default_rng(sum(map(ord, name)))
    rows = max(vocabulary.values()) + 1 + PADDING[name]
    return {
        EMBEDDING: numbers.normal(size=(rows, WIDTH)).astype(dtype),
        "model.layers.0.mlp.up.weight": numbers.normal(size=(70, WIDTH)).astype(dtype),
        "model.norm.weight": numbers.normal(size=WIDTH).astype(dtype),
        OUTPUT: numbers.normal(size=(rows, WIDTH)).astype(dtype),
    }


def write_models(directory: Path, dtype: Any = np.float32) -> dict[str, Arrays]:
    made = {}
    for name, vocabulary in VOCABULARIES.items():
        made[name] = arrays(name, vocabulary, dtype)
        rows = len(made[name][EMBEDDING])
        (directory / name).mkdir()
        save_file(made[name], directory / name / "model.safetensors")
        (directory / name / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": rows}))
        (directory / name / "tokenizer.json").write_bytes(document(vocabulary))
    return made


def union(first: Vocabulary, *others: Vocabulary) -> Vocabulary:
    found = dict(first)
    for other in others:
        for token in sorted(other, key=other.__getitem__):
            found.setdefault(token, max(found.values()) + 1)
    return found


def aligned(
    name: str, tensor: str, models: dict[str, Arrays], result: Vocabulary, rows: int
) -> np.ndarray[Any, Any]:
    """The rows of one model for the tokens of the result, what it lacks filled, in float32."""
    found = np.zeros((rows, WIDTH), np.float32)
    for token, id_ in result.items():
        have = {
            other: models[other][tensor][vocabulary[token]].astype(np.float32)
            for other, vocabulary in VOCABULARIES.items()
            if token in vocabulary and other in models
        }
        if name in have:
            found[id_] = have[name]
        elif "base" in have:
            found[id_] = have["base"]
        else:
            found[id_] = sum(have[n] for n in ("poet", "coder") if n in have) / np.float32(
                len(have)
            )
    return found
