"""The fixed corpus: a project of 9,000 models over 20 architectures and 1,000 reactors.

    python benchmarks/corpus.py DIR [--models N] [--reactors N] [--files N]

Equal arguments give equal bytes: nothing here is random, and nothing depends on the machine.
Four models in five name one of 20 `config.json` files, as people do; the fifth has its config
inline. There are no weights. Reactors refer to models of their own and of other files, by bare
name, by version and by alias.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

MODELS, REACTORS, FILES = 9_000, 1_000, 100
ARCHITECTURES, LAYERS, HEADS = 20, 4, 4

HEAD = """\
version: 1
project: corpus

include:
  - fleet/*.yaml

plugins:
  - plugins/outputs.py

strategies:
  weighted:
    uses: mean_outputs
    description: The mean of the outputs, by the members' weights.
  even:
    uses: mean_outputs
    description: The plain mean of the outputs.
    params: {weighted: false}
  vote:
    uses: mean_outputs
    params: {weighted: true}
    tags: {team: quality}
"""

_TEAMS = ("search", "support", "legal", "health", "finance", "games", "maps")
_TASKS = ("summaries", "translation", "dialogue", "classification", "extraction")
_STAGES = ("trial", "staging", "live")
_STRATEGIES = ("weighted", "even", "vote", "mean_outputs")
_TYPES = ("ensemble", "cascade", "parallel", "hierarchical")
_KINDS = ("validates", "augments", "corrects", "feeds_into")


def write_corpus(
    directory: Path, *, models: int = MODELS, reactors: int = REACTORS, files: int = FILES
) -> None:
    """Write the project into `directory`, which may exist. Reactors need four models."""
    for name in ("architectures", "fleet", "plugins"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    plugin = Path(__file__).with_name("outputs.py")
    shutil.copyfile(plugin, directory / "plugins" / "outputs.py")
    for number in range(ARCHITECTURES):
        text = json.dumps(architecture(number), indent=2) + "\n"
        (directory / "architectures" / f"llama-{number:02}.json").write_text(text)
    for number in range(files):
        (directory / "fleet" / f"fleet-{number:03}.yaml").write_text(
            _fleet(_share(models, files, number), _share(reactors, files, number), models)
        )
    (directory / "arc_halo.yaml").write_text(HEAD)


def architecture(number: int) -> dict[str, object]:
    """A small Llama's `config.json`; every `number` gives another."""
    hidden = 64 * (1 + number % 10)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": hidden * (3 if number < 10 else 4),
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // (1 + number % 2),
        "head_dim": hidden // HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": number % 3 == 0,
        "torch_dtype": "bfloat16",
        "vocab_size": 32000,
    }


def _share(total: int, files: int, number: int) -> range:
    return range(total * number // files, total * (number + 1) // files)


def _fleet(models: range, reactors: range, total: int) -> str:
    lines: list[str] = []
    if models:
        lines += ["models:", *(line for n in models for line in _model(n))]
    if reactors:
        lines += ["reactors:", *(line for n in reactors for line in _reactor(n, total))]
    return "\n".join(lines) + "\n"


def _model(n: int) -> Iterator[str]:
    number = n % ARCHITECTURES
    yield f"  {_name(n)}:"
    yield f"    version: {_version(n)}"
    yield "    type: transformer"
    yield f"    description: Llama {number:02}, fine-tuned for {_TASKS[n % 5]} (run {n})."
    if n // ARCHITECTURES % 5:
        yield f"    architecture: architectures/llama-{number:02}.json"
    else:
        yield "    architecture:"
        for key, value in architecture(number).items():
            yield f"      {key}: {json.dumps(value)}"
    if _has_alias(n):
        yield "    aliases: [production]"
    yield f"    tags: {{team: {_TEAMS[n % 7]}, stage: {_STAGES[n % 3]}}}"


def _reactor(n: int, models: int) -> Iterator[str]:
    # Neighbours and one from far away, never the same model twice.
    first = n * 9 % models
    members = [first, (first + 1) % models, (first + 2) % models, (first + models // 2) % models]
    lead, second, third, far = (_name(member) for member in members)
    yield f"  reactor-{n:04}:"
    yield f"    type: {_TYPES[n % 4]}"
    yield f"    strategy: {_STRATEGIES[n % 4]}"
    yield f"    description: Serves {_TASKS[n % 5]} to {_TEAMS[n % 7]}."
    yield "    members:"
    yield f"      - {{model: {lead}, role: primary, weight: 0.4}}"
    yield f"      - {{model: {second}@{_version(members[1])}, role: specialist, weight: 0.3}}"
    yield f"      - {{model: {_reference(members[2])}, role: validator, weight: 0.2}}"
    if members[3] not in members[:3]:
        yield f"      - {{model: {far}, weight: 0.1, priority: {n % 5}}}"
    yield "    interactions:"
    yield f"      - {{from: {lead}, to: {second}, kind: {_KINDS[n % 4]}, weight: 0.8}}"
    yield f"      - {{from: {third}, to: {lead}, kind: validates}}"
    yield f"    config: {{timeout_seconds: {5 + n % 20}, quorum: 2}}"


def _name(n: int) -> str:
    return f"model-{n:05}"


def _version(n: int) -> str:
    return f"1.{n % 7}.0"


def _has_alias(n: int) -> bool:
    return n % 3 == 2


def _reference(n: int) -> str:
    return f"{_name(n)}:production" if _has_alias(n) else _name(n)


def main() -> None:
    """Write the corpus that the command line asks for."""
    parser = argparse.ArgumentParser(description="Write the fixed corpus.")
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--models", type=int, default=MODELS)
    parser.add_argument("--reactors", type=int, default=REACTORS)
    parser.add_argument("--files", type=int, default=FILES)
    asked = parser.parse_args()
    if asked.files < 1 or (asked.reactors and asked.models < 4):
        parser.error("there must be at least 1 file, and 4 models for the reactors")
    write_corpus(asked.directory, models=asked.models, reactors=asked.reactors, files=asked.files)


if __name__ == "__main__":
    main()
