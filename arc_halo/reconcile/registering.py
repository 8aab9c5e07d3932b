"""A file of weights made a model that no project manages."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arc_halo.errors import InvalidInputError, RefusedError, WeightsError
from arc_halo.manifest.documents import MODEL, MODEL_TYPES
from arc_halo.manifest.model_files import read_architecture
from arc_halo.names import did_you_mean, parse_reference
from arc_halo.reconcile import kinds
from arc_halo.reconcile.progress import Progress
from arc_halo.store import models, projects
from arc_halo.store.locks import try_xact_lock
from arc_halo.store.rows import Connection
from arc_halo.tensors.digests import format_digest
from arc_halo.transfer.importing import import_weights
from arc_halo.transfer.sources import DigestCache, SourceFacts, source_facts
from arc_halo.types import JsonObject, WeightFormat
from arc_halo.weights.store import AUTO, WeightStore, check_needs_base

DEFAULT_TYPE = "transformer"
LOCK_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A source of weights, the model it is to be, and how it is to be stored.

    A model that is there keeps its type and architecture where none is given here; a new one
    takes the architecture of the `config.json` beside the source. What a model has is replaced
    only if `is_forced`. Deltas are taken against the weights of root `delta_from`.
    """

    name: str
    path: Path
    weight_format: WeightFormat
    model_type: str | None = None
    config: Path | None = None
    codec: str | None = None
    delta_from: bytes | None = None
    is_forced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What came of it; sizes in bytes, `new_bytes` and `stored_bytes` of what was not there."""

    model: str
    action: Literal["created", "updated", "unchanged"]
    root: bytes
    tensor_count: int
    size_bytes: int
    new_bytes: int = 0
    stored_bytes: int = 0


def register(
    store: WeightStore, wanted: Registration, cache: DigestCache, progress: Progress
) -> Registered:
    """Import a source of weights and make it those of a model, which is registered if need be.

    The model is seen with all of its weights or not at all. Raises `FormatError` for a broken
    source, `RefusedError` for a model that a project manages or that would lose something,
    `InvalidInputError` for a name, type or config that may not be.
    """
    _check(store, wanted)
    architecture = _architecture(wanted)
    with store.pool.connection() as conn:
        before = _live_spec(conn, wanted)
    facts = _facts(wanted, cache, progress)
    # Before the long work; once more after it, when it counts.
    after = _spec(wanted, architecture, facts, before)
    result = Registered(
        model=wanted.name,
        action=_action(before, after),
        root=facts.root,
        tensor_count=facts.tensor_count,
        size_bytes=facts.size_bytes,
    )
    if result.action == "unchanged":
        return result
    try:
        with progress.task(f"import {wanted.path}", facts.size_bytes) as advance:
            built = import_weights(
                store,
                wanted.path,
                wanted.weight_format,
                facts.root,
                label=_label(wanted.path),
                codec=wanted.codec,
                delta_from=wanted.delta_from,
                advance=advance,
            )
    except WeightsError:
        # A file may change and keep its size and times: the next run reads it anew.
        cache.forget(wanted.path.resolve(), wanted.weight_format.name)
        cache.save()
        raise
    with store.pool.connection() as conn, conn.transaction():
        try_xact_lock(conn, f"arc-halo/{MODEL}/{wanted.name}", LOCK_SECONDS)
        before = _live_spec(conn, wanted)
        after = _spec(wanted, architecture, facts, before)
        source = {"source": _label(wanted.path), "format": wanted.weight_format.name}
        written = kinds.Written(name=wanted.name, spec=after, weights_source=source)
        kinds.write_models(conn, [written], None)
    return Registered(
        model=wanted.name,
        action=_action(before, after),
        root=facts.root,
        tensor_count=facts.tensor_count,
        size_bytes=facts.size_bytes,
        new_bytes=built.new_bytes,
        stored_bytes=built.stored_bytes,
    )


def _check(store: WeightStore, wanted: Registration) -> None:
    reference = parse_reference(wanted.name)
    if reference is None or reference.version is None:
        raise InvalidInputError(
            f"{wanted.name!r} does not name a version of a model",
            hint="write it as NAME@VERSION, such as story@1.0.0, in small letters",
            code="AH006",
        )
    if wanted.model_type not in (None, *MODEL_TYPES):
        raise InvalidInputError(
            f"{wanted.model_type!r} is not a model type",
            hint=did_you_mean(str(wanted.model_type), MODEL_TYPES)
            or f"a model type is one of {', '.join(MODEL_TYPES)}",
            code="AH006",
        )
    if wanted.codec not in (None, AUTO):
        check_needs_base(store.find_codec(wanted.codec), wanted.delta_from is not None)


def _architecture(wanted: Registration) -> JsonObject | None:
    """That of the config that is named, if one is."""
    path = wanted.config
    return None if path is None else read_architecture(path, str(path))


def _beside(path: Path) -> JsonObject:
    config = (path if path.is_dir() else path.parent) / "config.json"
    return read_architecture(config, str(config)) if config.is_file() else {}


def _label(path: Path) -> str:
    """The path as text that can be stored, whatever bytes its name has."""
    return os.fsencode(path).decode(errors="replace")


def _live_spec(conn: Connection, wanted: Registration) -> JsonObject | None:
    if rows := projects.list_managed(conn, kind=MODEL, name=wanted.name):
        raise RefusedError(
            f"{MODEL}/{wanted.name} belongs to the project {rows[0].project!r}",
            hint="change its manifest, and apply; or choose another name",
            code="AH053",
        )
    return models.live_specs(conn, [wanted.name]).get(wanted.name)


def _facts(wanted: Registration, cache: DigestCache, progress: Progress) -> SourceFacts:
    with progress.task(f"read {wanted.path}", 0) as advance:
        found = source_facts(wanted.path.resolve(), wanted.weight_format, cache, advance=advance)
    cache.save()
    return found


def _spec(
    wanted: Registration,
    architecture: JsonObject | None,
    facts: SourceFacts,
    before: JsonObject | None,
) -> JsonObject:
    """The model's document as it is to be. Raises `RefusedError` where it would lose something."""
    weights = {
        "root": format_digest(facts.root),
        "metadata": dict(facts.metadata),
        "source": _label(wanted.path),
    }
    if before is None:
        return {
            "type": wanted.model_type or DEFAULT_TYPE,
            "architecture": _beside(wanted.path) if architecture is None else architecture,
            "description": None,
            "aliases": [],
            "tags": {},
            "weights": weights,
            "tokenizer": None,
            "runner": None,
        }
    had = before["weights"]
    after = {
        **before,
        "type": wanted.model_type or before["type"],
        "architecture": before["architecture"] if architecture is None else architecture,
        # The same tensors in another file are no reason to touch a model.
        "weights": had if had and had["root"] == weights["root"] else weights,
    }
    lost = [each for each in ("type", "architecture", "weights") if before[each] != after[each]]
    if had is None and "weights" in lost:
        lost.remove("weights")
    if lost and not wanted.is_forced:
        raise RefusedError(
            f"{MODEL}/{wanted.name} is there already, with other {' and '.join(lost)}",
            hint="choose another version, or let `--force` replace what it has",
            code="AH013",
        )
    return after


def _action(
    before: JsonObject | None, after: JsonObject
) -> Literal["created", "updated", "unchanged"]:
    if before is None:
        return "created"
    return "unchanged" if before == after else "updated"
