"""The Python API: models, tensors and reactors of one database."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsIndex
from uuid import UUID

from arc_halo.config import find_project
from arc_halo.errors import InvalidInputError, NotFoundError, RefusedError
from arc_halo.formats.finding import find_format
from arc_halo.manifest.documents import MODEL, MODEL_TYPES, REACTOR, REACTOR_TYPES, ROLES
from arc_halo.manifest.params import params_problems, with_defaults
from arc_halo.manifest.reactors import RUN_DEFAULTS
from arc_halo.names import NAME, VERSION, did_you_mean, is_name, is_storable, is_version
from arc_halo.project import Project
from arc_halo.reconcile import kinds, showing
from arc_halo.reconcile.progress import Progress, Silent
from arc_halo.reconcile.registering import Registered, Registration, register
from arc_halo.store import builds, embeddings, models, operations, projects, reactors
from arc_halo.store.embeddings import EmbeddingMatrix
from arc_halo.store.locks import try_xact_lock
from arc_halo.store.models import ModelRecord
from arc_halo.store.rows import Connection
from arc_halo.tensors import dtypes
from arc_halo.tensors.digests import format_digest
from arc_halo.transfer.sources import MAX_NAME_BYTES, DigestCache
from arc_halo.types import JsonObject, TensorInfo
from arc_halo.weights.building import Recipe, build
from arc_halo.weights.handles import Tensor
from arc_halo.weights.indexing import index_matrix
from arc_halo.weights.nearest import find_matrix, nearest
from arc_halo.weights.reading import read_arrays
from arc_halo.weights.scoring import Neighbour

METADATA_KEY = "__metadata__"
"""No tensor's name: files of weights keep their metadata under it."""

LOCK_SECONDS = 30.0

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.reactors.perplexity import Perplexity
    from arc_halo.reactors.running import Answer, RunningReactor

    Arrays = Mapping[str, NDArray[Any]]


def connect(
    database_url: str | None = None, *, project: Path | str | None = None, migrate: bool = True
) -> Halo:
    """Open the database of a project, for use in a `with`.

    `project` is a directory; without one it is the nearest with an `arc_halo.yaml`, or the current
    one. Without `database_url` the database is the one `arc-halo` would use there. Pending
    migrations are applied unless `migrate` is False. Raises `ConnectionFailedError`.
    """
    directory = Path(project) if project else find_project(Path.cwd()) or Path.cwd()
    opened = Project(directory, database_url=database_url)
    try:
        if migrate:
            opened.migrate()
        else:
            opened.check_schema()
    except BaseException:
        opened.close()
        raise
    return Halo(opened)


class Halo:
    """A database of models: `halo.models`, `halo.tensors`, `halo.embeddings`, `halo.reactors`."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.models = Models(project)
        self.tensors = Tensors(project)
        self.embeddings = Embeddings(project)
        self.reactors = Reactors(project)

    def close(self) -> None:
        """End reactors, close connections, and stop the embedded server if nobody else uses it."""
        try:
            self.reactors.close()
        finally:
            self.project.close()

    def __enter__(self) -> Halo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


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
        _check_name(model_name, is_name(model_name), "name", NAME)
        _check_name(version, is_version(version), "version", VERSION)
        _check_choice(model_type, MODEL_TYPES, "model type")
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
            _refuse_existing(conn, MODEL, full_name)
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
        delta_from: str | UUID | None = None,
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
                base = _find_model(conn, delta_from)
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

    def delete(self, model: str | UUID) -> None:
        """Delete a model that no project manages; its weights stay until they are collected.

        Raises `RefusedError` for a managed one, and for one that a reactor uses.
        """
        with self._project.connection() as conn, conn.transaction():
            record = _find_model(conn, model)
            _refuse_managed(conn, MODEL, record.full_name)
            if users := models.dependants(conn, [record.full_name]):
                raise RefusedError(
                    f"{record.full_name} is used by reactor/{users[0][0]}",
                    hint="delete or change that reactor first",
                    code="AH053",
                )
            kinds.BY_NAME[MODEL].delete(conn, [record.full_name])

    def get(self, model: str | UUID) -> ModelRecord:
        """A model by `name`, `name@version`, `name:alias` or id. Raises `NotFoundError`."""
        with self._project.connection() as conn:
            return _find_model(conn, model)

    def list(self, name: str | None = None) -> list[ModelRecord]:
        """All versions of all models, or of one."""
        if name is not None and not is_name(name):
            return []
        with self._project.connection() as conn:
            return models.find(conn, name=name)


class Tensors:
    """Weights as numpy arrays, in the dtype they are stored in."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def names(self, model: str | UUID) -> list[str]:
        """The tensors of a model, in the order of their file."""
        return list(self._rows(model))

    def read(self, model: str | UUID, name: str, *, rows: slice | None = None) -> NDArray[Any]:
        """One tensor, or some of its rows, every digest verified.

        `rows` is a slice of the first axis; only the chunks it lies in are read. Raises
        `NotFoundError`, `CorruptChunkError` or `MissingChunkError`.
        """
        return self.open(model, name).read(rows)

    def open(self, model: str | UUID, name: str) -> Tensor:
        """A handle of one tensor: its dtype and shape now, its values when they are asked for."""
        rows = self._rows(model)
        if name not in rows:
            raise NotFoundError(
                f"{model} has no tensor {name!r}",
                hint=did_you_mean(name, rows) or "`halo.tensors.names(model)` lists them",
            )
        return self._handle(rows[name])

    def handles(self, model: str | UUID) -> dict[str, Tensor]:
        """A handle of each tensor by name, in the order of their file; nothing is read yet."""
        return {name: self._handle(row) for name, row in self._rows(model).items()}

    def load(self, model: str | UUID) -> Arrays:
        """All tensors of a model by name, in the order of their file, in one stream.

        The arrays are views of one allocation, which lives as long as any of them.
        """
        with self._project.connection() as conn:
            set_id = _find_model(conn, model).weight_set_id
            rows = builds.set_tensors(conn, set_id) if set_id is not None else []
        return {} if set_id is None else read_arrays(self._project.weights, set_id, rows)

    def write(
        self, model: str | UUID, arrays: Arrays, *, metadata: Mapping[str, str] | None = None
    ) -> str:
        """Make `arrays` the weights of a model, all of them at once; their root.

        The weights it had stay in its history. Raises `RefusedError` for a model that a project
        manages: its manifest says what its weights are.
        """
        import numpy as np

        with self._project.connection() as conn:
            record = _find_model(conn, model)
            _refuse_managed(conn, MODEL, record.full_name)
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        for name in arrays:
            _check_tensor_name(name)
        metadata = dict(metadata or {})
        _check_metadata(metadata)
        raw = {name: dtypes.raw_bytes(array) for name, array in arrays.items()}
        infos = [
            TensorInfo(
                name=name,
                dtype=dtypes.name_of(array.dtype),
                shape=tuple(array.shape),
                size_bytes=len(raw[name]),
            )
            for name, array in arrays.items()
        ]
        recipe = Recipe(purpose="write", key=_fresh_key(), recipe={"model": record.full_name})
        built = build(self._project.weights, recipe, infos, lambda info: [raw[info.name]])
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
            _refuse_managed(conn, MODEL, record.full_name)
            spec["weights"] = {"root": root, "metadata": metadata, "source": None}
            kinds.write_models(conn, [kinds.Written(name=record.full_name, spec=spec)], None)

    def _rows(self, model: str | UUID) -> dict[str, builds.NamedTensor]:
        with self._project.connection() as conn:
            record = _find_model(conn, model)
            if record.weight_set_id is None:
                return {}
            return {row.name: row for row in builds.set_tensors(conn, record.weight_set_id)}


class Embeddings:
    """Embedding matrices, searched row by row; in any database, without an extension too."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def nearest(
        self,
        model: str | UUID,
        query: SupportsIndex | Iterable[float],
        *,
        k: int = 10,
        metric: str = "cosine",
        kind: str = "token",
        exact: bool = False,
    ) -> list[Neighbour]:
        """The `k` rows nearest to the row `query`, or to a vector; the nearest first.

        `metric` is cosine, l2 or ip. A row is not its own neighbour, and one that holds a NaN is
        nobody's. Raises `NotFoundError`, `InvalidInputError`.
        """
        matrix = self._matrix(model, kind)
        return nearest(
            self._project.weights, matrix, query, k=k, metric=metric, exact=exact
        ).neighbours

    def index(self, model: str | UUID, *, kind: str = "token") -> int:
        """Index an embedding with pgvector, unless it is; how many rows are indexed.

        Raises `DatabaseError` where pgvector cannot be had, `RefusedError` for a matrix that is
        too wide for it.
        """
        return index_matrix(self._project.weights, self._matrix(model, kind)).row_count

    def drop_index(self, model: str | UUID, *, kind: str = "token") -> bool:
        """Drop the index, for every model that shares the matrix; False when there was none."""
        matrix = self._matrix(model, kind)
        with self._project.connection() as conn:
            return embeddings.drop_index(conn, matrix.id)

    def _matrix(self, model: str | UUID, kind: str) -> EmbeddingMatrix:
        with self._project.connection() as conn:
            record = _find_model(conn, model)
            return find_matrix(conn, record.id, record.full_name, kind)

    def list(self, model: str | UUID | None = None) -> list[EmbeddingMatrix]:
        """The embedding matrices of all models, or of one."""
        with self._project.connection() as conn:
            return embeddings.matrices(conn, None if model is None else _find_model(conn, model).id)


class Reactor:
    """A reactor of the database, for running it: `halo.reactors["story"]`.

    Its members are started by the first run, and stay so until the `Halo` is closed.
    """

    def __init__(self, project: Project, stack: ExitStack, name: str) -> None:
        self.name = name
        self._project = project
        self._stack = stack
        self._lock = threading.Lock()
        self._running: RunningReactor | None = None

    def run(self, inputs: Sequence[Any] | str | Mapping[str, Any]) -> Answer:
        """Answer a batch of inputs, or the one that is given; threads may do so at once.

        Raises `ReactorError` where the reactor's policy has nothing to answer with.
        """
        is_one = isinstance(inputs, str | Mapping)
        return self._opened().run([inputs] if is_one else list(inputs))

    def stream(self, given: str | Mapping[str, Any]) -> Iterator[str]:
        """Answer one input with a text, piece by piece, as it is written.

        Only an ensemble of `level: tokens` writes in pieces; others give their text in one.
        """
        return self._opened().stream(given)

    def perplexity(self, text: str, *, window: int = 256) -> Perplexity:
        """How well its language models foretell a text, each by itself and fused.

        It is recorded as an evaluation. `ReactorError` where a member fails or has no tokens.
        """
        from arc_halo.reactors.perplexity import perplexity

        return perplexity(self._opened(), text, window)

    def _opened(self) -> RunningReactor:
        with self._lock:
            if self._running is None:
                opened = self._project.open_reactor(self.name)
                self._running = self._stack.enter_context(opened)
            return self._running


class Reactors:
    """Reactors of the database. Those made here belong to no project."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._stack = ExitStack()
        self._reactors: dict[str, Reactor] = {}

    def __getitem__(self, name: str) -> Reactor:
        """The reactor of that name, to be run."""
        return self._reactors.setdefault(name, Reactor(self._project, self._stack, name))

    def recorded(self, operation: str | UUID) -> JsonObject:
        """What is on record of a run: the operation, its `members`, and large `arrays` by name.

        Raises `NotFoundError`.
        """
        from arc_halo.reactors.arrays import load_arrays

        operation_id = operation if isinstance(operation, UUID) else _as_uuid(operation)
        with self._project.connection() as conn:
            found = operations.operation(conn, operation_id) if operation_id else None
            if found is None or operation_id is None:
                raise NotFoundError(f"there is no operation {operation}")
            members = operations.members(conn, operation_id)
        set_id = found.output_set_id
        arrays = {} if set_id is None else load_arrays(self._project.weights, set_id)
        return {**asdict(found), "members": members, "arrays": arrays}

    def close(self) -> None:
        """End what runs the members of reactors."""
        self._reactors.clear()
        self._stack.close()

    def create(
        self,
        *,
        name: str,
        reactor_type: str,
        strategy: str,
        params: JsonObject | None = None,
        members: Iterable[str] = (),
        description: str | None = None,
    ) -> UUID:
        """Register a reactor; its id. `members` are models by reference, weighted alike.

        Raises `InvalidInputError` for a name, type or params that may not be, `RefusedError` when
        the name is taken.
        """
        _check_name(name, is_name(name), "name", NAME)
        _check_choice(reactor_type, REACTOR_TYPES, "reactor type")
        provided = self._project.plugins.strategy(strategy)
        resolved = _checked_params(strategy, dict(params or {}), provided.item.params_schema)
        with self._project.connection() as conn, conn.transaction():
            _refuse_existing(conn, REACTOR, name)
            spec = {
                "type": reactor_type,
                "strategy": strategy,
                "uses": provided.item.name,
                "params": resolved,
                "members": [_member(conn, member) for member in members],
                "base": None,
                "tensors": [],
                "slices": [],
                "compute": "F32",
                "out_dtype": None,
                "tokenizer": None,
                "interactions": [],
                "produces": None,
                "run": {} if reactor_type == "merge" else dict(RUN_DEFAULTS),
                "config": {},
                "description": description,
                "tags": {},
            }
            return _write_reactor(conn, name, spec)

    def add_model(
        self,
        reactor: str,
        model: str | UUID,
        *,
        role: str = "secondary",
        weight: float = 1.0,
        priority: int | None = None,
    ) -> None:
        """Add a model to a reactor.

        Raises `InvalidInputError` for a role there is not, and `RefusedError` when the model is a
        member, or the reactor is managed by a project.
        """
        _check_choice(role, ROLES, "role")
        with self._project.connection() as conn, conn.transaction():
            spec = _reactor_spec(conn, reactor)
            _refuse_managed(conn, REACTOR, reactor)
            member = {**_member(conn, model), "role": role, "weight": weight, "priority": priority}
            if any(known["model"] == member["model"] for known in spec["members"]):
                raise RefusedError(
                    f"{member['model']} is a member of {reactor} already", code="AH013"
                )
            spec["members"].append(member)
            _write_reactor(conn, reactor, spec)

    def get(self, name: str) -> JsonObject:
        """A reactor's document: type, strategy, params, members, interactions."""
        with self._project.connection() as conn:
            return _reactor_spec(conn, name)

    def list(self) -> list[JsonObject]:
        """The status of every reactor, by name."""
        with self._project.connection() as conn:
            return reactors.status(conn)

    def status(self, name: str) -> JsonObject:
        """A row of `v_reactor_status`. Raises `NotFoundError`."""
        with self._project.connection() as conn:
            found = reactors.status(conn, name)
        if not found:
            raise NotFoundError(f"there is no reactor {name!r}", hint="`halo.reactors.list()`")
        return found[0]


def _find_model(conn: Connection, model: str | UUID) -> ModelRecord:
    record = showing.find_model(conn, model) if isinstance(model, str) else None
    if record is None and isinstance(model, (str, UUID)):
        with suppress(ValueError):
            found = models.find(conn, id=model if isinstance(model, UUID) else UUID(model))
            record = found[0] if found else None
    if record is None:
        raise NotFoundError(f"there is no model {str(model)!r}", hint="`halo.models.list()`")
    return record


def _reactor_spec(conn: Connection, name: str) -> JsonObject:
    found = reactors.live_specs(conn, [name])
    if name not in found:
        raise NotFoundError(f"there is no reactor {name!r}", hint="`halo.reactors.list()`")
    return found[name]


def _write_reactor(conn: Connection, name: str, spec: JsonObject) -> UUID:
    return kinds.write_reactors(conn, [kinds.Written(name=name, spec=spec)], None)[name]


def _member(conn: Connection, model: str | UUID) -> JsonObject:
    record = _find_model(conn, model)
    return {
        "model": record.full_name,
        "role": "secondary",
        "weight": 1.0,
        "priority": None,
        "adapters": [],
        "cost": 1.0,
        "domains": [],
    }


def _check_name(text: str, is_valid: bool, what: str, pattern: str) -> None:
    if not is_valid:
        raise InvalidInputError(
            f"{text!r} is not a {what}", hint=f"a {what} matches {pattern}", code="AH006"
        )


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


def _check_choice(text: str, choices: Iterable[str], what: str) -> None:
    if text not in choices:
        raise InvalidInputError(
            f"{text!r} is not a {what}",
            hint=did_you_mean(text, choices) or f"a {what} is one of {', '.join(choices)}",
            code="AH006",
        )


def _checked_params(strategy: str, params: JsonObject, schema: JsonObject) -> JsonObject:
    for _, phrase in params_problems(params, schema, ("params",)):
        raise InvalidInputError(f"{strategy}: {phrase.message}", hint=phrase.hint, code=phrase.code)
    return with_defaults(params, schema)


def _refuse_existing(conn: Connection, kind: str, name: str) -> None:
    if kinds.BY_NAME[kind].live(conn, [name]):
        raise RefusedError(f"{kind}/{name} exists already", hint="choose another", code="AH013")


def _refuse_managed(conn: Connection, kind: str, name: str) -> None:
    if rows := projects.list_managed(conn, kind=kind, name=name):
        raise RefusedError(
            f"{kind}/{name} belongs to the project {rows[0].project!r}",
            hint="change its manifest, and apply",
            code="AH053",
        )


def _fresh_key() -> bytes:
    """Writes of arrays are not remembered: each is a build of its own."""
    return hashlib.sha256(b"arc-halo/write/1\0" + secrets.token_bytes(32)).digest()


def _as_uuid(text: str) -> UUID | None:
    with suppress(ValueError):
        return UUID(text)
    return None
