"""What a pass of a torch module is given, as arrays by name, and the cache that it goes on from."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from arc_halo.errors import InvalidInputError
from arc_halo.inference.inputs import IDS, plain_array, text_array
from arc_halo.plain import whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

CACHES = ("cache", "past_key_values")
WITHOUT_EFFECT = frozenset(
    {
        "cache_position", "labels", "logits_to_keep", "num_logits_to_keep", "output_attentions",
        "output_hidden_states", "return_dict", "use_cache",
    }
)  # fmt: skip
"""Arguments that change no activation."""


def given_arguments(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, NDArray[Any]], Any]:
    """What decides the values of a pass as arrays by name, and the cache that it goes on from."""
    found: dict[str, NDArray[Any]] = {}
    cache = None
    try:
        arguments = signature.bind_partial(*args, **kwargs).arguments
    except TypeError:
        # The module itself will say what is wrong.
        return found, None
    for name, value in _flat(signature, arguments):
        if name in WITHOUT_EFFECT or value is None:
            continue
        if name in CACHES or hasattr(value, "get_seq_length"):
            cache = value
        else:
            found |= _arrays(name, value)
    return found, cache


def kept_logits(kwargs: Mapping[str, Any]) -> int | None:
    """Of how many tokens alone logits are asked for; None for all."""
    given = kwargs.get("logits_to_keep", kwargs.get("num_logits_to_keep"))
    return whole(given) or None if getattr(given, "ndim", 0) == 0 else len(given)


def size_of(given: Mapping[str, NDArray[Any]]) -> tuple[int, int] | None:
    """[batch, tokens], where there are tokens, or vectors in their places."""
    for name in (IDS, "inputs_embeds"):
        array = given.get(name)
        if array is not None and array.ndim >= 2:
            return int(array.shape[0]), int(array.shape[1])
    return None


def length_of(cache: Any) -> int:
    """The tokens that a cache has. Raises `InvalidInputError` for one that does not say."""
    if cache is None:
        return 0
    if not hasattr(cache, "get_seq_length"):
        raise InvalidInputError(
            f"a {type(cache).__name__} as a cache does not say how many tokens it has",
            hint="use a DynamicCache of transformers, or none",
        )
    return int(cache.get_seq_length())


def _flat(signature: inspect.Signature, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            yield from value.items()
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            yield from ((f"{name}.{place}", each) for place, each in enumerate(value))
        else:
            yield name, value


def _arrays(name: str, value: Any) -> dict[str, NDArray[Any]]:
    if isinstance(value, Mapping):
        inner = [(f"{name}.{key}", each) for key, each in value.items()]
    elif isinstance(value, (tuple, list)):
        inner = [(f"{name}.{place}", each) for place, each in enumerate(value)]
    elif value is None:
        return {}
    elif isinstance(value, str):
        return {name: text_array(value)}
    elif isinstance(value, (bool, int, float)) or hasattr(value, "shape"):
        return {name: plain_array(value).copy()}
    else:
        raise InvalidInputError(
            f"the model was given {name}, a {type(value).__name__}: it has no digest that "
            "activations could be found by",
            hint="capture passes that are given numbers, tensors and a cache only",
        )
    return {key: array for part, each in inner for key, array in _arrays(part, each).items()}
