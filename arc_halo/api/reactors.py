"""`halo.reactors`: reactors, run and registered."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from uuid import UUID

from arc_halo.api._checks import check_choice, check_name, refuse_existing, refuse_managed
from arc_halo.api._finding import GivenModel, as_uuid, find_model
from arc_halo.errors import InvalidInputError, NotFoundError, RefusedError
from arc_halo.manifest.documents import REACTOR, REACTOR_TYPES, ROLES
from arc_halo.manifest.params import params_problems, with_defaults
from arc_halo.manifest.reactors import RUN_DEFAULTS, unfit
from arc_halo.names import NAME, is_name
from arc_halo.project import Project
from arc_halo.reconcile import kinds
from arc_halo.store import operations, reactors
from arc_halo.store.rows import Connection
from arc_halo.types import JsonObject

if TYPE_CHECKING:
    from arc_halo.reactors.perplexity import Perplexity
    from arc_halo.reactors.running import Answer, RunningReactor


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

        Raises `ReactorError` where the reactor's policy has nothing to answer with, and
        `InvalidInputError` for what is neither a text, a mapping nor a list of inputs.
        """
        return self._opened().run(_batch(inputs))

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

        operation_id = operation if isinstance(operation, UUID) else as_uuid(operation)
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

        Raises `InvalidInputError` for a name, type or params that may not be, and for a strategy
        that fuses nothing of the kind; `RefusedError` when the name is taken.
        """
        check_name(name, is_name(name), "name", NAME)
        check_choice(reactor_type, REACTOR_TYPES, "reactor type")
        provided = self._project.plugins.strategy(strategy)
        if (told := unfit(provided.item, reactor_type)) is not None:
            raise InvalidInputError(told[0], hint=told[1], code="AH023")
        resolved = _checked_params(strategy, dict(params or {}), provided.item.params_schema)
        with self._project.connection() as conn, conn.transaction():
            refuse_existing(conn, REACTOR, name)
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
        model: GivenModel,
        *,
        role: str = "secondary",
        weight: float = 1.0,
        priority: int | None = None,
    ) -> None:
        """Add a model to a reactor.

        Raises `InvalidInputError` for a role there is not, and `RefusedError` when the model is a
        member, or the reactor is managed by a project.
        """
        check_choice(role, ROLES, "role")
        with self._project.connection() as conn, conn.transaction():
            spec = _reactor_spec(conn, reactor)
            refuse_managed(conn, REACTOR, reactor)
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


def _batch(given: object) -> list[Any]:
    """A text and a mapping are one input; of bytes nobody can say what they are."""
    if isinstance(given, str | Mapping):
        return [given]
    if not isinstance(given, Iterable) or isinstance(given, bytes | bytearray | memoryview):
        raise InvalidInputError(
            f"{type(given).__name__} is neither a text, a mapping nor a list of inputs",
            hint="give a list of inputs: `run([7])`",
            code="AH004",
        )
    return list(given)


def _reactor_spec(conn: Connection, name: str) -> JsonObject:
    found = reactors.live_specs(conn, [name])
    if name not in found:
        raise NotFoundError(f"there is no reactor {name!r}", hint="`halo.reactors.list()`")
    return found[name]


def _write_reactor(conn: Connection, name: str, spec: JsonObject) -> UUID:
    return kinds.write_reactors(conn, [kinds.Written(name=name, spec=spec)], None)[name]


def _member(conn: Connection, model: GivenModel) -> JsonObject:
    record = find_model(conn, model)
    return {
        "model": record.full_name,
        "role": "secondary",
        "weight": 1.0,
        "priority": None,
        "adapters": [],
        "cost": 1.0,
        "domains": [],
    }


def _checked_params(strategy: str, params: JsonObject, schema: JsonObject) -> JsonObject:
    for _, phrase in params_problems(params, schema, ("params",)):
        raise InvalidInputError(f"{strategy}: {phrase.message}", hint=phrase.hint, code=phrase.code)
    return with_defaults(params, schema)
