"""How each kind of resource is read, written and deleted: the only per-kind code of reconcile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from uuid import UUID

from arc_halo.architectures import read_architecture, tensor_part
from arc_halo.manifest.documents import INFERENCE, KINDS, MODEL, REACTOR, STRATEGY, TRAINING
from arc_halo.store import aliases, cache_policies, models, reactors, strategies, trainings
from arc_halo.store.rows import Connection, LiveRow
from arc_halo.types import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A resource about to be written: its name, its document, and where its weights came from."""

    name: str
    spec: JsonObject
    weights_source: JsonObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """The revision that a write belongs to; writes outside of apply have none."""

    project: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What reconcile asks of a kind. All of it is set-based: one call for all resources."""

    name: str
    live: Callable[[Connection, Iterable[str]], dict[str, LiveRow]]
    live_specs: Callable[[Connection, Iterable[str]], dict[str, JsonObject]]
    write: Callable[[Connection, Sequence[Written], Revision | None], dict[str, UUID]]
    rename: Callable[[Connection, str, str], None]
    delete: Callable[[Connection, Iterable[str]], None]


def write_strategies(
    conn: Connection, items: Sequence[Written], revision: Revision | None
) -> dict[str, UUID]:
    return strategies.upsert(conn, [{"name": item.name, **item.spec} for item in items])


def write_models(
    conn: Connection, items: Sequence[Written], revision: Revision | None
) -> dict[str, UUID]:
    """Models with all that follows from them: layers, heads, weights, aliases."""
    ids = models.upsert(conn, [_model_item(item) for item in items])
    listed = list(ids.values())
    models.replace_layers(conn, listed, _layer_items(items, ids))
    parts = [
        _part_item(model_id, family, name)
        for model_id, family, names in models.tensor_names(conn, listed)
        for name in names
    ]
    models.replace_weights(
        conn,
        listed,
        parts,
        project=revision.project if revision else None,
        revision=revision.number if revision else None,
    )
    held = [
        {"model_id": str(ids[item.name]), "alias": alias}
        for item in items
        for alias in item.spec["aliases"]
    ]
    aliases.replace(conn, listed, held)
    return ids


def write_reactors(
    conn: Connection, items: Sequence[Written], revision: Revision | None
) -> dict[str, UUID]:
    ids = reactors.upsert(
        conn,
        [
            {
                "name": item.name,
                **{k: v for k, v in item.spec.items() if k not in ("members", "interactions")},
                "recipe": {field: item.spec[field] for field in reactors.RECIPE_FIELDS},
                "status": "ready" if item.spec["produces"] else "registered",
            }
            for item in items
        ],
    )
    reactors.replace_members(
        conn,
        list(ids.values()),
        _numbered(items, ids, "members"),
        _numbered(items, ids, "interactions"),
    )
    return ids


def write_trainings(
    conn: Connection, items: Sequence[Written], revision: Revision | None
) -> dict[str, UUID]:
    return trainings.upsert(conn, [{"name": item.name, **item.spec} for item in items])


def write_caches(
    conn: Connection, items: Sequence[Written], revision: Revision | None
) -> dict[str, UUID]:
    return cache_policies.upsert(conn, [{"name": item.name, **item.spec} for item in items])


def rename_cache(conn: Connection, old: str, new: str) -> None:
    raise AssertionError(f"caches have the names they have: {old} cannot be {new}")


BY_NAME: Mapping[str, Kind] = MappingProxyType(
    {
        STRATEGY: Kind(
            name=STRATEGY,
            live=strategies.live,
            live_specs=strategies.live_specs,
            write=write_strategies,
            rename=strategies.rename,
            delete=strategies.delete,
        ),
        MODEL: Kind(
            name=MODEL,
            live=models.live,
            live_specs=models.live_specs,
            write=write_models,
            rename=models.rename,
            delete=models.delete,
        ),
        REACTOR: Kind(
            name=REACTOR,
            live=reactors.live,
            live_specs=reactors.live_specs,
            write=write_reactors,
            rename=reactors.rename,
            delete=reactors.delete,
        ),
        TRAINING: Kind(
            name=TRAINING,
            live=trainings.live,
            live_specs=trainings.live_specs,
            write=write_trainings,
            rename=trainings.rename,
            delete=trainings.delete,
        ),
        INFERENCE: Kind(
            name=INFERENCE,
            live=cache_policies.live,
            live_specs=cache_policies.live_specs,
            write=write_caches,
            rename=rename_cache,
            delete=cache_policies.delete,
        ),
    }
)

ORDERED = tuple(BY_NAME[name] for name in KINDS)


def _model_item(item: Written) -> JsonObject:
    name, _, version = item.name.partition("@")
    weights = item.spec["weights"] or {}
    tokenizer = item.spec.get("tokenizer") or {}
    return {
        "name": name,
        "version": version,
        "type": item.spec["type"],
        "architecture": item.spec["architecture"],
        "family": read_architecture(item.spec["architecture"]).family,
        "description": item.spec["description"],
        "tags": item.spec["tags"],
        "root": (weights.get("root") or "").removeprefix("sha256:") or None,
        "metadata": weights.get("metadata"),
        "source": item.weights_source,
        "tokenizer": (tokenizer.get("digest") or "").removeprefix("sha256:") or None,
        "tokenizer_source": tokenizer.get("source"),
        "runner": item.spec.get("runner"),
    }


def _layer_items(items: Sequence[Written], ids: Mapping[str, UUID]) -> list[JsonObject]:
    found = []
    for item in items:
        architecture = read_architecture(item.spec["architecture"])
        if architecture.layer is not None:
            found.append(
                {
                    "model_id": str(ids[item.name]),
                    "layer_count": architecture.layer_count,
                    "layer_type": "encoder" if architecture.family == "bert" else "decoder",
                    **asdict(architecture.layer),
                }
            )
    return found


def _part_item(model_id: UUID, family: str | None, name: str) -> JsonObject:
    part = tensor_part(family, name)
    return {
        "model_id": str(model_id),
        "tensor_name": name,
        "weight_type": part.weight_type,
        "layer_index": part.layer_index,
    }


def _numbered(items: Sequence[Written], ids: Mapping[str, UUID], field: str) -> list[JsonObject]:
    return [
        {"reactor_id": str(ids[item.name]), "ordinal": ordinal, **entry}
        for item in items
        for ordinal, entry in enumerate(item.spec[field])
    ]
