"""What of a model of transformers decides its keys and values, and which models are refused.

Keys and values of a prefix may be stored where they are a function of its tokens alone: not of what
comes after them, not of how long the prompt is, and not of chance.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

from arc_halo.errors import InvalidInputError
from arc_halo.types import JsonObject

UNDECIDING = frozenset(
    {
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""What configs say that decides no keys and values; all else does, for all that is known here."""

UNSTEADY_ROPES = ("dynamic", "longrope", "su")
"""Their angles depend on the length of the whole prompt, so a prefix has no keys of its own."""


def check_model(model: Any) -> None:
    """Raise `InvalidInputError` for a model whose keys and values are no function of tokens."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import PreTrainedModel  # pyright: ignore[reportMissingImports]

    inner = plain(model)
    if not isinstance(inner, PreTrainedModel):
        raise InvalidInputError(
            f"a {type(model).__name__} is no model of transformers",
            hint="give the model itself, as AutoModelForCausalLM loads it",
            code="AH006",
        )
    if any(part.training for part in model.modules()):
        raise InvalidInputError(
            "the model is in training: what it computes is not what it will compute again",
            hint="call model.eval() first",
            code="AH006",
        )
    if torch.is_autocast_enabled(inner.device.type):
        raise InvalidInputError(
            "under autocast keys and values are other ones, of several dtypes",
            hint="convert the model instead: model.to(torch.bfloat16)",
            code="AH006",
        )
    config = inner.config
    if config.is_encoder_decoder:
        raise refusal(f"{type(inner).__name__} has an encoder beside its decoder")
    for each in (config, config.get_text_config(decoder=True)):
        if getattr(each, "use_bidirectional_attention", None):
            raise refusal(f"tokens of {type(inner).__name__} see those after them")
        chunks = "chunked_attention" in (getattr(each, "layer_types", None) or ())
        if chunks or getattr(each, "attention_chunk_size", None) is not None:
            raise refusal(f"{type(inner).__name__} has layers of chunked_attention")
    if rope := unsteady_rope(config):
        raise refusal(f"the keys of {rope} rope depend on how long the whole prompt is")
    for name, adapter in (getattr(model, "peft_config", None) or {}).items():
        if getattr(adapter, "is_prompt_learning", False):
            raise refusal(f"the adapter {name} puts tokens of its own before the prompt")
        if getattr(adapter, "alora_invocation_tokens", None):
            raise refusal(f"where the adapter {name} begins depends on the whole prompt")


def check_generates(model: Any) -> None:
    """Raise `InvalidInputError` for a model without a head, which makes no tokens."""
    inner = plain(model)
    if not inner.can_generate():
        raise InvalidInputError(
            f"{type(inner).__name__} makes no tokens",
            hint="load it with AutoModelForCausalLM",
            code="AH006",
        )


def unsteady_rope(config: Any) -> str | None:
    """The rope of a config that depends on how long the whole prompt is, if it has one."""
    ropes = _ropes(json.loads(config.to_json_string(use_diff=False)))
    return next((rope for rope in ropes if "dynamic" in rope or rope in UNSTEADY_ROPES), None)


def engine_of(model: Any) -> JsonObject:
    """What decides keys and values beside weights and tokens: class, config, attention."""
    inner = plain(model)
    kind = type(inner)
    return {
        "name": "transformers",
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "config": _deciding(json.loads(inner.config.to_json_string(use_diff=False))),
        "attention": str(getattr(inner.config, "_attn_implementation", None)),
    }


def plain(model: Any) -> Any:
    """The model inside of peft's, or the model itself."""
    inside = getattr(model, "get_base_model", None)
    return model if inside is None else inside()


def name_of(model: Any) -> str:
    """What it was loaded from, or its class: to be shown, and no more."""
    inner = plain(model)
    return str(getattr(inner.config, "_name_or_path", "") or type(inner).__name__)


def cache_argument(model: Any) -> str:
    """What `forward` and `generate` call the cache."""
    parameters = inspect.signature(plain(model).forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def refusal(message: str) -> InvalidInputError:
    return InvalidInputError(
        message, hint="such a cache is neither stored nor restored", code="AH006"
    )


def _deciding(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _deciding(each) for key, each in value.items() if key not in UNDECIDING}
    return [_deciding(each) for each in value] if isinstance(value, list) else value


def _ropes(value: Any, name: str = "") -> Iterator[str]:
    """The types of rope that a config names, wherever it does."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if key == "rope_type" or (key == "type" and name.startswith("rope")):
                yield str(each)
            else:
                # Layers of different kinds may each have theirs, one level down.
                yield from _ropes(each, name if name.startswith("rope") else key)
