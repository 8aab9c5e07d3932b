"""Perplexity of exported models on the demo's held-out texts, computed with transformers.

    pip install torch transformers
    python examples/perplexity.py examples/weights/base out/story

Each directory holds what `arc-halo export` and `arc-halo fuse run` write: model.safetensors and
config.json. The demo's models read bytes, so a text needs no tokenizer. Perplexity is exp(loss),
and loss the mean nats per byte over the 255 next-byte predictions of each 256-byte window: bfloat16
weights, computed in float32, log-softmax in float64.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

WINDOW = 256
BATCH = 16
TEXTS = {
    name: Path(__file__).parent / "weights" / f"eval_{name}.txt"
    for name in ("scripture", "python", "general")
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Perplexity of models on the demo's held-out texts; lower is better."
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="DIRECTORY")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the losses there, too")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    print(f"{'perplexity':16}" + "".join(f"{text:>11}" for text in TEXTS))
    results: dict[str, dict[str, torch.Tensor]] = {}
    for directory in arguments.models:
        results[directory.name] = losses = losses_of(directory)
        perplexities = (math.exp(each.mean()) for each in losses.values())
        print(f"{directory.name:16}" + "".join(f"{each:11.3f}" for each in perplexities))
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(results), indent=2) + "\n")


def losses_of(directory: Path) -> dict[str, torch.Tensor]:
    """The loss of each window, by the name of the text."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return {name: window_losses(model, path.read_bytes()) for name, path in TEXTS.items()}


@torch.inference_mode()
def window_losses(model: torch.nn.Module, text: bytes) -> torch.Tensor:
    """Mean nats per byte of each window of `text`."""
    windows = torch.tensor(list(text)).reshape(-1, WINDOW)
    logits = torch.cat([model(part).logits[:, :-1] for part in windows.split(BATCH)]).double()
    losses = torch.nn.functional.cross_entropy(logits.mT, windows[:, 1:], reduction="none")
    return losses.mean(dim=1)


def as_json(results: dict[str, dict[str, torch.Tensor]]) -> dict[str, object]:
    """Losses of whole texts, as in weights/losses.json, and of the first quarter of each."""

    def means(share: float) -> dict[str, dict[str, float]]:
        return {
            model: {
                text: round(losses[: int(share * len(losses))].mean().item(), 5)
                for text, losses in each.items()
            }
            for model, each in results.items()
        }

    metric = "mean nats per byte, as in examples/weights/losses.json; perplexity is exp of it"
    return {"metric": metric, "losses": means(1), "first_quarter": means(0.25)}


if __name__ == "__main__":
    main()
