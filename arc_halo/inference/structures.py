"""What a torch module computes besides its weights: its config, its modules and their settings.

Two models of the same weights give different activations where one scales its positions, or has
another adapter at work: `structure_digest` tells them apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from arc_halo.inference.fingerprints import adapter_state

WITHOUT_EFFECT = frozenset(
    {
        "training", "gradient_checkpointing", "max_seq_len_cached", "call_super_init",
        "dump_patches", "name_or_path", "warnings_issued",
    }
)  # fmt: skip
CONFIG_WITHOUT_EFFECT = frozenset(
    {
        "_name_or_path", "architectures", "attn_implementation", "dtype", "output_attentions",
        "output_hidden_states", "return_dict", "torch_dtype", "transformers_version", "use_cache",
    }
)  # fmt: skip


def structure_digest(module: Any, variant: str = "") -> bytes:
    """SHA-256 of the structure of a module; `variant` names what else changes its values."""
    digest = hashlib.sha256(b"arc-halo/structure/1\0")
    adapters = adapter_state(module)
    for field in (variant.encode(), adapters, _config(module), *_modules(module)):
        digest.update(len(field).to_bytes(8, "little"))
        digest.update(field)
    return digest.digest()


def _config(module: Any) -> bytes:
    config: Any = getattr(module, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return b""
    return json.dumps(_telling(config.to_dict()), sort_keys=True, default=repr).encode()


def _telling(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _telling(each)
            for key, each in value.items()
            if key not in CONFIG_WITHOUT_EFFECT
        }
    return [_telling(each) for each in value] if isinstance(value, (list, tuple)) else value


def _modules(module: Any) -> Iterator[bytes]:
    for name, part in module.named_modules():
        settings = {
            key: value
            for key, value in vars(part).items()
            if not key.startswith("_") and key not in WITHOUT_EFFECT
        }
        plain = {key: value for key, value in settings.items() if _is_plain(value)}
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        yield json.dumps([name, kind, plain], sort_keys=True, default=repr).encode()


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
