"""`halo.tensors`: weights as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from arc_halo.api._checks import refuse_managed
from arc_halo.api._finding import GivenModel, find_model
from arc_halo.errors import InvalidInputError, NotFoundError
from arc_halo.manifest.documents import MODEL
from arc_halo.names import did_you_mean, is_storable
from arc_halo.project import Project
from arc_halo.reconcile import kinds
from arc_halo.store import builds, models
from arc_halo.store.locks import try_xact_lock
from arc_halo.store.models import ModelRecord
from arc_halo.tensors.digests import format_digest
from arc_halo.transfer.sources import MAX_NAME_BYTES
from arc_halo.weights.arrays import build_arrays, fresh_key
from arc_halo.weights.building import Recipe
from arc_halo.weights.handles import Tensor
from arc_halo.weights.reading import read_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

METADATA_KEY = "__metadata__"
"""No tensor's name: files of weights keep their metadata under it."""

LOCK_SECONDS = 30.0


class Tensors:
    """Weights as numpy arrays, in the dtype they are stored in."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def names(self, model: GivenModel) -> list[str]:
        """The tensors of a model, in the order of their file."""
        return list(self._rows(model))

    def read(self, model: GivenModel, name: str, *, rows: slice | None = None) -> NDArray[Any]:
        """One tensor, or some of its rows, every digest verified.

        `rows` is a slice of the first axis; only the chunks it lies in are read. Raises
        `NotFoundError`, `CorruptChunkError` or `MissingChunkError`.
        """
        return self.open(model, name).read(rows)

    def open(self, model: GivenModel, name: str) -> Tensor:
        """A handle of one tensor: its dtype and shape now, its values when they are asked for."""
        rows = self._rows(model)
        if name not in rows:
            raise NotFoundError(
                f"{_named(model)} has no tensor {name!r}",
                hint=did_you_mean(name, rows) or "`halo.tensors.names(model)` lists them",
            )
        return self._handle(rows[name])

    def handles(self, model: GivenModel) -> dict[str, Tensor]:
        """A handle of each tensor by name, in the order of their file; nothing is read yet."""
        return {name: self._handle(row) for name, row in self._rows(model).items()}

    def load(self, model: GivenModel) -> Arrays:
        """All tensors of a model by name, in the order of their file, in one stream.

        The arrays are views of one allocation, which lives as long as any of them.
        """
        with self._project.connection() as conn:
            set_id = find_model(conn, model).weight_set_id
            rows = builds.set_tensors(conn, set_id) if set_id is not None else []
        return {} if set_id is None else read_arrays(self._project.weights, set_id, rows)

    def write(
        self, model: GivenModel, arrays: Arrays, *, metadata: Mapping[str, str] | None = None
    ) -> str:
        """Make `arrays` the weights of a model, all of them at once; their root.

        The weights it had stay in its history. Raises `RefusedError` for a model that a project
        manages: its manifest says what its weights are.
        """
        import numpy as np

        with self._project.connection() as conn:
            record = find_model(conn, model)
            refuse_managed(conn, MODEL, record.full_name)
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        for name in arrays:
            _check_tensor_name(name)
        metadata = dict(metadata or {})
        _check_metadata(metadata)
        recipe = Recipe(purpose="write", key=fresh_key(), recipe={"model": record.full_name})
        built = build_arrays(self._project.weights, recipe, arrays)
        self._point(record, format_digest(built.root), metadata)
        return format_digest(built.root)

    def _handle(self, row: builds.NamedTensor) -> Tensor:
        return Tensor(
            name=row.name,
            dtype=row.dtype,
            shape=tuple(row.shape),
            size_bytes=row.size_bytes,
            _row=row,
            _store=self._project.weights,
        )

    def _point(self, record: ModelRecord, root: str, metadata: dict[str, str]) -> None:
        with self._project.connection() as conn, conn.transaction():
            try_xact_lock(conn, f"arc-halo/{MODEL}/{record.full_name}", LOCK_SECONDS)
            spec = models.live_specs(conn, [record.full_name]).get(record.full_name)
            if spec is None:
                raise NotFoundError(
                    f"{record.full_name} was deleted meanwhile", hint="create it, and write again"
                )
            refuse_managed(conn, MODEL, record.full_name)
            spec["weights"] = {"root": root, "metadata": metadata, "source": None}
            kinds.write_models(conn, [kinds.Written(name=record.full_name, spec=spec)], None)

    def _rows(self, model: GivenModel) -> dict[str, builds.NamedTensor]:
        with self._project.connection() as conn:
            record = find_model(conn, model)
            if record.weight_set_id is None:
                return {}
            return {row.name: row for row in builds.set_tensors(conn, record.weight_set_id)}


def _named(model: GivenModel) -> str:
    return model.full_name if isinstance(model, ModelRecord) else str(model)


def _check_tensor_name(name: str) -> None:
    is_text = isinstance(name, str) and is_storable(name)
    if not is_text or len(name.encode()) > MAX_NAME_BYTES or name == METADATA_KEY:
        raise InvalidInputError(
            f"the tensor name {str(name)[:40]!r} cannot be stored",
            hint=f"a name is text without NUL, of at most {MAX_NAME_BYTES} bytes, "
            f"and not {METADATA_KEY}",
            code="AH006",
        )


def _check_metadata(metadata: Mapping[Any, Any]) -> None:
    """As every file of weights holds them: texts by text."""
    for key, value in metadata.items():
        if not all(isinstance(text, str) and is_storable(text) for text in (key, value)):
            raise InvalidInputError(
                f"the metadata {str(key)[:40]!r} cannot be stored",
                hint="keys and values are text without NUL",
                code="AH006",
            )
