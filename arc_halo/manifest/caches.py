"""Caches of inference: how much each may take, and for how long, checked."""

from __future__ import annotations

from collections.abc import Sequence

from arc_halo.config import parse_duration, parse_size
from arc_halo.manifest.documents import INFERENCE, CacheSpec
from arc_halo.manifest.problems import Found, Problems
from arc_halo.plugins import PluginManager
from arc_halo.sizes import manifest_duration, manifest_size
from arc_halo.types import JsonObject

KV_CACHE = "kv_cache"
BUDGETS = {KV_CACHE: "4GiB", "activation_cache": "2GiB", "attention_patterns": "1GiB"}
"""What each may take where nothing is said."""

WRITTEN = {
    "budget": manifest_size,
    "ttl": manifest_duration,
    "quota": manifest_size,
    "quotas": manifest_size,
}

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
            most = manifest_size(budget)
            message = f"{_path(found, place)}: {manifest_size(size)} is more than the budget"
            hint = f"write {most} at most, or raise the budget"
            problems.add(found, place, "AH007", f"{message}, {most}", hint)
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


def as_written(path: str, value: object) -> object:
    """A field of a cache, with its sizes and times as a manifest has them: `7d`, `100MiB`."""
    if isinstance(value, dict):
        return {name: as_written(f"{path}.{name}", each) for name, each in value.items()}
    write = WRITTEN.get(path.partition(".")[0])
    return write(value) if write and isinstance(value, int) else value


def _check_codec(
    found: Found, codec: str | None, plugins: PluginManager, problems: Problems
) -> None:
    provided = plugins.codecs.get(codec or "")
    if provided is not None and provided.item.needs_base:
        message = f"{codec!r} keeps deltas from a base, and a block has none"
        hint = "write planes, zstd, raw or int8"
        problems.add(found, ("codec",), "AH006", f"{_path(found, ('codec',))}: {message}", hint)


def _path(found: Found, place: Sequence[str]) -> str:
    return ".".join((INFERENCE, found.name, *place))
