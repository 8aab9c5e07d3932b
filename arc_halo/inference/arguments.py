"""Which arguments of `generate` leave the keys and values of a prompt what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arc_halo.errors import InvalidInputError

BESIDE_SETTINGS = frozenset(
    {
        "generation_config",
        "logits_processor",
        "prefix_allowed_tokens_fn",
        "stopping_criteria",
        "streamer",
        "synced_gpus",
        "tokenizer",
    }
)
"""Arguments of `generate` that change no keys and values, beside those of a GenerationConfig."""

REFUSED_SETTINGS = (
    "assistant_early_exit",
    "dola_layers",
    "penalty_alpha",
    "prompt_lookup_num_tokens",
    "token_healing",
)


MAX_TENANT_BYTES = 255


def check_tenant(tenant: str) -> None:
    """Raise `InvalidInputError` for one that is too long to be written."""
    if len(tenant.encode()) > MAX_TENANT_BYTES:
        raise InvalidInputError(
            f"a tenant of {len(tenant.encode())} bytes",
            hint=f"name it with {MAX_TENANT_BYTES} at most",
            code="AH006",
        )


def tokens_of(input_ids: Any) -> list[int]:
    """The tokens of one prompt, from a list or a tensor, `[tokens]` or `[1, tokens]`."""
    values = input_ids.tolist() if hasattr(input_ids, "tolist") else list(input_ids)
    if values and isinstance(values[0], list) and len(values) == 1:
        values = values[0]
    if not values or not all(type(value) is int for value in values):
        raise InvalidInputError(
            "input_ids are the tokens of one prompt",
            hint="of a batch, call it for one sequence at a time",
            code="AH006",
        )
    return values


def check_arguments(model: Any, kwargs: Mapping[str, Any], prompt: Sequence[int]) -> str:
    """Raise `InvalidInputError` unless they leave the keys and values of a prompt what they are.

    Returns the name of the argument that says nothing more once it is checked.
    """
    from transformers import GenerationConfig  # pyright: ignore[reportMissingImports]

    mask = "attention_mask"
    if (given := kwargs.get(mask)) is None:
        if (pad := _padding(model, kwargs)) in prompt:
            raise InvalidInputError(
                f"the prompt has the padding token {pad}, which model.generate leaves out",
                hint="give the prompt without padding; where it is text, with an attention_mask "
                "of ones",
                code="AH006",
            )
    elif tuple(given.shape) != (1, len(prompt)) or not bool((given == 1).all()):
        raise InvalidInputError(
            "attention_mask leaves tokens of the prompt out",
            hint="give the prompt without padding",
            code="AH006",
        )
    known = GenerationConfig()
    for name in kwargs:
        if name not in BESIDE_SETTINGS and name != mask and not hasattr(known, name):
            raise _refused(name)
    for name in REFUSED_SETTINGS:
        if setting_of(model, kwargs, name):
            raise _refused(name)
    # Saved with some models by earlier versions, and ignored by now.
    if setting_of(model, kwargs, "cache_implementation") not in (None, "hybrid"):
        raise _refused("cache_implementation")
    if setting_of(model, kwargs, "use_cache") is False or not kwargs.get("use_cache", True):
        raise _refused("use_cache=False")
    return mask


def rows_of(model: Any, kwargs: Mapping[str, Any]) -> int:
    """How many sequences `generate` makes of one prompt."""
    settings = ("num_beams", "num_return_sequences")
    return max(setting_of(model, kwargs, name) or 1 for name in settings)


def setting_of(model: Any, kwargs: Mapping[str, Any], name: str) -> Any:
    """What holds of a setting in a call of `generate`: what a `generation_config` leaves as it is
    by default is as the model has it."""
    from transformers import GenerationConfig  # pyright: ignore[reportMissingImports]

    if name in kwargs:
        return kwargs[name]
    given = kwargs.get("generation_config")
    value = getattr(given, name, None)
    if given is None or value == getattr(GenerationConfig(), name, None):
        return getattr(model.generation_config, name, None)
    return value


def _padding(model: Any, kwargs: Mapping[str, Any]) -> int | None:
    """The token that `generate` takes for padding where there is no mask, if it takes one."""
    pad, ends = (setting_of(model, kwargs, name) for name in ("pad_token_id", "eos_token_id"))
    pad, ends = (each.tolist() if hasattr(each, "tolist") else each for each in (pad, ends))
    return None if pad in (ends if isinstance(ends, list | tuple) else [ends]) else pad


def _refused(name: str) -> InvalidInputError:
    return InvalidInputError(
        f"generate with {name} is not what a stored prompt was computed with",
        hint="call model.generate, without the cache",
        code="AH006",
    )
