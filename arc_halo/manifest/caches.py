"""Caches of inference: how much each may take, and for how long, checked."""

from __future__ import annotations

from arc_halo.config import parse_duration, parse_size
from arc_halo.manifest.documents import CacheSpec
from arc_halo.manifest.problems import Found, Problems
from arc_halo.plugins import PluginManager
from arc_halo.types import JsonObject

KV_CACHE = "kv_cache"
BUDGETS = {KV_CACHE: "4GiB", "activation_cache": "2GiB", "attention_patterns": "1GiB"}
"""What each may take where nothing is said."""

BLOCKS: JsonObject = {"block_tokens": 64, "codec": "planes"}


def cache_spec(found: Found, plugins: PluginManager, problems: Problems) -> CacheSpec:
    """What a cache's block says, with its defaults; what makes no sense is told."""
    data = found.data
    budget = parse_size(str(data.get("budget", BUDGETS[found.name])))
    blocks = {**BLOCKS, **data} if found.name == KV_CACHE else {}
    quotas = {tenant: parse_size(str(size)) for tenant, size in data.get("quotas", {}).items()}
    quota = parse_size(str(data["quota"])) if "quota" in data else None
    _check_codec(found, blocks.get("codec"), plugins, problems)
    for place, size in ((("quota",), quota), *((("quotas", t), s) for t, s in quotas.items())):
        if size is not None and size > budget:
            message = f"{'.'.join(place)}: it is more than the budget, which is {budget} bytes"
            hint = "leave it out for all of the budget, or write less"
            problems.add(found, place, "AH007", message, hint)
    return CacheSpec(
        budget=budget,
        ttl=parse_duration(data["ttl"]) if "ttl" in data else None,
        block_tokens=blocks.get("block_tokens"),
        codec=blocks.get("codec"),
        quota=quota,
        quotas=quotas,
        description=data.get("description"),
        tags=data.get("tags", {}),
    )


def _check_codec(
    found: Found, codec: str | None, plugins: PluginManager, problems: Problems
) -> None:
    provided = plugins.codecs.get(codec or "")
    if provided is not None and provided.item.needs_base:
        message = f"codec: {codec!r} keeps deltas from a base, and a block has none"
        problems.add(found, ("codec",), "AH006", message, "write planes, zstd, raw or int8")
