"""Which arguments of `generate` leave the keys and values of a prompt what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arc_halo.errors import InvalidInputError
from arc_halo.inference.checking import check_given
from arc_halo.inference.sessions import InferenceSession
from arc_halo.names import did_you_mean

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
    "use_mtp",
)


MAX_TENANT_BYTES = 255


def check_names(*, tenant: str, adapter: str) -> None:
    """Raise `InvalidInputError` for what is no text, and for a tenant that is too long to be
    written."""
    check_given(tenant=tenant, adapter=adapter)
    if len(tenant.encode()) > MAX_TENANT_BYTES:
        raise InvalidInputError(
            f"a tenant of {len(tenant.encode())} bytes",
            hint=f"name it with {MAX_TENANT_BYTES} at most",
            code="AH006",
        )


def check_session(session: Any) -> None:
    """Raise `InvalidInputError` for what is no session at work; None is none."""
    if session is not None and not isinstance(session, InferenceSession):
        raise InvalidInputError(
            f"a {type(session).__name__} is no session that could record what a prompt takes",
            hint="give what `halo.inference.session(...)` returned",
            code="AH004",
        )


def tokens_of(input_ids: Any) -> list[int]:
    """The tokens of one prompt, from a list or a tensor, `[tokens]` or `[1, tokens]`."""
    if isinstance(input_ids, str | bytes):
        raise _no_prompt(
            "text is no prompt yet",
            'give its tokens: tokenizer(text, return_tensors="pt").input_ids',
        )
    if isinstance(input_ids, Mapping):
        raise _no_prompt("input_ids are the tokens of one prompt", "of an encoding, write **inputs")
    try:
        values = input_ids.tolist() if hasattr(input_ids, "tolist") else list(input_ids)
    except TypeError:
        values = []
    if values and isinstance(values[0], list) and len(values) == 1:
        values = values[0]
    if not values or not all(type(value) is int for value in values):
        raise _no_prompt(
            "input_ids are the tokens of one prompt",
            "of a batch, call it for one sequence at a time",
        )
    return values


def check_arguments(model: Any, kwargs: Mapping[str, Any], prompt: Sequence[int]) -> dict[str, Any]:
    """The arguments without the mask, which says nothing more once it is checked.

    Raises `InvalidInputError` unless they leave the keys and values of a prompt what they are.
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
    elif _values(given) not in ([1] * len(prompt), [[1] * len(prompt)]):
        raise InvalidInputError(
            "attention_mask leaves tokens of the prompt out",
            hint="give the prompt without padding",
            code="AH006",
        )
    known = GenerationConfig()
    for name in kwargs:
        if name not in BESIDE_SETTINGS and name != mask and not hasattr(known, name):
            if meant := did_you_mean(name, [*BESIDE_SETTINGS, *vars(known)]):
                raise InvalidInputError(f"generate has no {name}", hint=meant, code="AH006")
            raise _refused(name, hint=_INPUTS.get(name))
    for name in REFUSED_SETTINGS:
        if setting_of(model, kwargs, name):
            raise _refused(name)
    # Saved with some models by earlier versions, and ignored by now.
    if setting_of(model, kwargs, "cache_implementation") not in (None, "hybrid"):
        raise _refused("cache_implementation")
    if setting_of(model, kwargs, "use_cache") is False or not kwargs.get("use_cache", True):
        raise _refused("use_cache=False")
    return {name: value for name, value in kwargs.items() if name != mask}


def rows_of(model: Any, kwargs: Mapping[str, Any]) -> int:
    """How many sequences `generate` makes of one prompt."""
    settings = ("num_beams", "num_return_sequences")
    return max(setting_of(model, kwargs, name) or 1 for name in settings)


def sequences_of(output: Any) -> Any:
    """The tokens of what `generate` returned, `[rows, tokens]`."""
    return getattr(output, "sequences", output)


def generated_tokens(
    model: Any, settings: Mapping[str, Any], output: Any, prompt_tokens: int
) -> int:
    """How many tokens were made, without what fills up rows that ended before others."""
    ends = _values(setting_of(model, settings, "eos_token_id"))
    wanted = set(ends if isinstance(ends, list | tuple) else [ends])
    count = 0
    for row in sequences_of(output)[:, prompt_tokens:].tolist():
        end = next((place for place, token in enumerate(row) if token in wanted), len(row) - 1)
        count += end + 1
    return count


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


def _values(given: Any) -> Any:
    return given.tolist() if hasattr(given, "tolist") else given


def _no_prompt(message: str, hint: str) -> InvalidInputError:
    return InvalidInputError(message, hint=hint, code="AH006")


def _refused(name: str, hint: str | None = None) -> InvalidInputError:
    return InvalidInputError(
        f"generate with {name} is not what a stored prompt was computed with",
        hint=hint or "call model.generate, without the cache",
        code="AH006",
    )


_INPUTS = {
    "inputs": "give the tokens as input_ids",
    "past_key_values": "leave it out: the cache is loaded here",
    "cache": "leave it out: the cache is loaded here",
}
