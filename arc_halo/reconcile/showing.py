"""One resource of the database, as `show` and the API describe it."""

from __future__ import annotations

from dataclasses import asdict

from arc_halo.errors import InvalidInputError
from arc_halo.manifest.documents import MODEL, TRAINING
from arc_halo.names import parse_reference
from arc_halo.reconcile import kinds
from arc_halo.store import models, projects, reactors, trainings
from arc_halo.store.models import ModelRecord
from arc_halo.store.rows import Connection
from arc_halo.tensors.digests import format_digest
from arc_halo.training.recomputing import recomputing_text
from arc_halo.types import JsonObject


def find_model(conn: Connection, text: str) -> ModelRecord | None:
    """The model that `name`, `name@version` or `name:alias` refers to, or None.

    Raises `InvalidInputError` for a bare name of several versions.
    """
    reference = parse_reference(text.removeprefix(f"{MODEL}/"))
    if reference is None:
        return None
    found = models.find(conn, name=reference.name, version=reference.version, alias=reference.alias)
    if len(found) > 1:
        versions = ", ".join(record.full_name for record in found)
        raise InvalidInputError(
            f"{text!r} could be {versions}", hint="write the version", code="AH022"
        )
    return found[0] if found else None


def describe(conn: Connection, kind: str, name: str) -> JsonObject | None:
    """Everything the database says of a resource, or None when it is not there."""
    if kind == MODEL:
        record = find_model(conn, name)
        return None if record is None else _model(conn, record)
    document = kinds.BY_NAME[kind].live_specs(conn, [name]).get(name)
    if document is None:
        return None
    facts = {"address": f"{kind}/{name}", **_ownership(conn, kind, name)}
    if kind == "reactor":
        facts["operations"] = reactors.status(conn, name)[0]["operation_count"]
    if kind == TRAINING:
        facts |= _of_training(conn, name)
    return {**facts, "document": document}


def _of_training(conn: Connection, name: str) -> JsonObject:
    training = trainings.find(conn, name)
    found = training.gradient_checkpointing if training else None
    text = recomputing_text(training.architecture, asdict(found)) if training and found else None
    return {"sessions": trainings.session_count(conn, name), "recomputing": text}


def _model(conn: Connection, record: ModelRecord) -> JsonObject:
    document = models.live_specs(conn, [record.full_name])[record.full_name]
    return {
        "address": f"model/{record.full_name}",
        "id": str(record.id),
        **_ownership(conn, MODEL, record.full_name),
        "status": record.status,
        "family": record.family,
        "parameters": record.parameter_count,
        "size_bytes": record.size_bytes,
        "root": format_digest(bytes(record.root)) if record.root else None,
        "produced_by": f"reactor/{record.produced_by}" if record.produced_by else None,
        "document": document,
        "tensors": [
            {
                "name": part.name,
                "dtype": part.dtype,
                "shape": part.shape,
                "part": part.part,
                "layer": part.layer,
                "size_bytes": part.size_bytes,
            }
            for part in models.parts(conn, record.id)
        ],
    }


def _ownership(conn: Connection, kind: str, name: str) -> JsonObject:
    rows = projects.list_managed(conn, kind=kind, name=name)
    if not rows:
        return {"project": None}
    return {
        "project": rows[0].project,
        "protected": rows[0].protected,
        "revision": rows[0].updated_revision,
        "source": rows[0].source_file,
    }
