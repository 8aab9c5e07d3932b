"""`halo.models`: the registry."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from arc_halo.api._checks import check_choice, check_name, refuse_existing, refuse_managed
from arc_halo.api._finding import GivenModel, find_model
from arc_halo.errors import NotFoundError, RefusedError
from arc_halo.formats.finding import find_format
from arc_halo.manifest.documents import MODEL, MODEL_TYPES
from arc_halo.names import NAME, VERSION, is_name, is_version
from arc_halo.project import Project
from arc_halo.reconcile import kinds
from arc_halo.reconcile.progress import Progress, Silent
from arc_halo.reconcile.registering import Registered, Registration, register
from arc_halo.store import models
from arc_halo.store.models import ModelRecord
from arc_halo.transfer.sources import DigestCache
from arc_halo.types import JsonObject


class Models:
    """The registry. What is made here belongs to no project, and no apply touches it."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def create_model(
        self,
        *,
        model_name: str,
        model_type: str,
        architecture_config: JsonObject,
        version: str = "1.0.0",
        description: str | None = None,
    ) -> UUID:
        """Register a model with its layers and heads; its id.

        Raises `InvalidInputError` for a name, version or type that may not be, and `RefusedError`
        when the version exists.
        """
        check_name(model_name, is_name(model_name), "name", NAME)
        check_name(version, is_version(version), "version", VERSION)
        check_choice(model_type, MODEL_TYPES, "model type")
        full_name = f"{model_name}@{version}"
        spec: JsonObject = {
            "type": model_type,
            "architecture": dict(architecture_config),
            "description": description,
            "aliases": [],
            "tags": {},
            "weights": None,
            "tokenizer": None,
            "runner": None,
        }
        with self._project.connection() as conn, conn.transaction():
            refuse_existing(conn, MODEL, full_name)
            return kinds.write_models(conn, [kinds.Written(name=full_name, spec=spec)], None)[
                full_name
            ]

    def import_weights(
        self,
        name: str,
        path: Path | str,
        *,
        model_type: str | None = None,
        config: Path | str | None = None,
        codec: str | None = None,
        delta_from: GivenModel | None = None,
        format: str | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Registered:
        """Make the weights at `path` those of the model `name@version`, as `arc-halo import` does.

        `path` is a file, the index of a sharded model, or a directory that holds one. The model is
        registered if it is not there, with the architecture of `config` or of the `config.json`
        beside `path`. What it has is replaced only with `force`. Raises `FormatError` for a broken
        file, `RefusedError` for a model that would lose something or that a project manages.
        `progress` has `task(label, size_bytes)`, a context manager that gives a function told of
        bytes as they are read and stored.
        """
        formats = {each: given.item for each, given in self._project.plugins.formats.items()}
        weight_format = (
            self._project.plugins.format(format) if format else find_format(Path(path), formats)
        )
        root = None
        if delta_from is not None:
            with self._project.connection() as conn:
                base = find_model(conn, delta_from)
            if (root := base.root) is None:
                raise NotFoundError(
                    f"{base.full_name} has no weights to take deltas against",
                    hint="import or declare them first",
                    code="AH064",
                )
        wanted = Registration(
            name=name,
            path=Path(path),
            weight_format=weight_format,
            model_type=model_type,
            config=None if config is None else Path(config),
            codec=codec,
            delta_from=None if root is None else bytes(root),
            is_forced=force,
        )
        is_kept = (self._project.directory / ".arc-halo").is_dir()
        cache = self._project.digests if is_kept else DigestCache(None)
        return register(self._project.weights, wanted, cache, progress or Silent())

    def delete(self, model: GivenModel) -> None:
        """Delete a model that no project manages; its weights stay until they are collected.

        Raises `RefusedError` for a managed one, and for one that a reactor or a training uses.
        """
        with self._project.connection() as conn, conn.transaction():
            record = find_model(conn, model)
            refuse_managed(conn, MODEL, record.full_name)
            if users := models.dependants(conn, [record.full_name]):
                address = users[0][0]
                raise RefusedError(
                    f"{record.full_name} is used by {address}",
                    hint=f"delete or change that {address.partition('/')[0]} first",
                    code="AH053",
                )
            kinds.BY_NAME[MODEL].delete(conn, [record.full_name])

    def get(self, model: GivenModel) -> ModelRecord:
        """A model by `name`, `name@version`, `name:alias` or id. Raises `NotFoundError`."""
        with self._project.connection() as conn:
            return find_model(conn, model)

    def list(self, name: str | None = None) -> list[ModelRecord]:
        """All versions of all models, or of one."""
        if name is not None and not is_name(name):
            return []
        with self._project.connection() as conn:
            return models.find(conn, name=name)
