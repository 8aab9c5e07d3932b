"""A reactor opened: its row read, its strategy found, and the runners of its members started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from arc_halo.errors import ArcHaloError, MemberError, NotFoundError, ReactorError
from arc_halo.manifest.documents import InteractionSpec
from arc_halo.manifest.reactors import unfit
from arc_halo.names import did_you_mean
from arc_halo.outputs import Outputs
from arc_halo.plugins import PluginManager
from arc_halo.reactors.allowing import Allowance
from arc_halo.reactors.arrays import store_arrays
from arc_halo.reactors.asking import Panel, told
from arc_halo.reactors.fitting import read_fit
from arc_halo.reactors.fusing import Fuser
from arc_halo.reactors.graphs import Node, Shape
from arc_halo.reactors.plans import Member, ReactorPlan, plan_of
from arc_halo.reactors.running import RunningReactor
from arc_halo.reactors.states import StoredState
from arc_halo.reactors.tokens import token_models
from arc_halo.store import builds, models, operations, reactors, tokenizers
from arc_halo.store.rows import Connection
from arc_halo.types import JsonObject, RunnerContext, RunningModel, TensorInfo, TokenModel
from arc_halo.weights.reading import read_array
from arc_halo.weights.store import WeightStore


@contextmanager
def open_reactor(
    store: WeightStore, plugins: PluginManager, allowance: Allowance, name: str
) -> Iterator[RunningReactor]:
    """The reactor of that name, its members ready to answer.

    Raises `NotFoundError`, `ReactorError` for one that does not run, `UnknownPluginError` for a
    strategy or a runner that is not loaded here, and `MemberError` for a model that cannot answer.
    Where the policy is not `fail`, one whose runner cannot be opened is a member that fails.
    """
    with store.pool.connection() as conn:
        operations.forget_expired(conn)
        plan = read_plan(conn, name)
    provided = plugins.strategy(plan.strategy)
    if (why := unfit(provided.item, plan.type)) is not None:
        raise ReactorError(f"{name}: {why[0]}", hint=why[1], code="AH023")
    fuser = Fuser(
        reactor=name,
        provided=provided,
        params=plan.params,
        fitted=read_fit(store, plan),
        state=StoredState(store.pool.connection, name),
        cover=allowance.cover,
    )
    with ExitStack() as stack:
        running = {
            member.model: _open(stack, store, plugins, allowance, plan, member)
            for member in plan.members
        }
        panel = Panel(running, cover=allowance.cover)
        stack.callback(panel.close)
        if plan.level == "tokens":
            token_models(plan, panel)
        keep = partial(store_arrays, store, facts={"answers_of": name})
        yield RunningReactor(plan, panel, fuser, store.pool.connection, keep)


def read_plan(conn: Connection, name: str) -> ReactorPlan:
    """What the database says of a reactor. `NotFoundError`, and `ReactorError` for a merge."""
    spec = _spec(conn, name)
    if spec["type"] == "merge":
        made = f": it makes the model {spec['produces']}" if spec["produces"] else ""
        raise ReactorError(
            f"reactor/{name} is a merge, which fuses weights when it is applied{made}",
            hint="run what it produces as a member of an ensemble, or export it",
        )
    found = models.runnable(conn, [member["model"] for member in spec["members"]])
    return plan_of(name, spec, found)


def read_shape(conn: Connection, name: str) -> Shape:
    """What a reactor is made of, a merge too. Raises `NotFoundError`."""
    spec = _spec(conn, name)
    return Shape(
        name=name,
        type=spec["type"],
        strategy=spec["strategy"],
        members=tuple(
            Node(name=each["model"], role=each["role"], weight=each["weight"])
            for each in spec["members"]
        ),
        edges=tuple(
            InteractionSpec(
                source=each["from"], target=each["to"], kind=each["kind"], weight=each["weight"]
            )
            for each in spec["interactions"]
        ),
        base=spec["base"],
        produces=spec["produces"],
    )


def _spec(conn: Connection, name: str) -> JsonObject:
    specs = reactors.live_specs(conn, [name])
    if name not in specs:
        known = [str(row["reactor_name"]) for row in reactors.status(conn)]
        raise NotFoundError(
            f"there is no reactor {name!r}",
            hint=did_you_mean(name, known) or "`arc-halo reactor status` lists them",
        )
    return specs[name]


def _open(
    stack: ExitStack,
    store: WeightStore,
    plugins: PluginManager,
    allowance: Allowance,
    plan: ReactorPlan,
    member: Member,
) -> RunningModel:
    if member.runner is None:
        raise MemberError(
            f"{member.model}: nothing says what is to run it",
            hint=f"declare a `runner:` for it: {', '.join(plugins.runners)}",
        )
    runner = plugins.runner(member.runner["uses"]).item
    context = RunnerContext(
        model=member.model,
        architecture=member.architecture,
        find_file=allowance.find_file,
        secret=allowance.secret,
        check_url=allowance.check_url,
        predictors={name: provided.item for name, provided in plugins.predictors.items()},
        tensors=partial(_tensors, store, member),
        tokenizer=_tokenizer(store, member),
        timeout_seconds=plan.timeout_seconds,
    )
    try:
        return stack.enter_context(runner.open(context, **member.runner["params"]))
    except Exception as exc:
        # What keeps a database from being read is no fault of the member's.
        if isinstance(exc, ArcHaloError) and not isinstance(exc, MemberError):
            raise
        error = told(member.model, exc, allowance.cover)
        if plan.on_failure == "fail":
            raise error from exc
        return _Closed(error=error, cause=exc)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Closed:
    """A member that could not be opened, and fails whenever it is asked."""

    error: MemberError
    cause: Exception

    def answer(self, inputs: Sequence[Any]) -> Outputs:
        # Without that its traceback would grow with every run.
        raise self.cause.with_traceback(None)

    @property
    def tokens(self) -> TokenModel:
        raise self.error


def _tensors(store: WeightStore, member: Member) -> Iterator[tuple[TensorInfo, Any]]:
    """The weights, tensor by tensor, every digest verified."""
    if member.weight_set_id is None:
        raise MemberError("it has no weights", hint="declare `weights:` for it", code="AH064")
    with store.pool.connection() as conn:
        rows = builds.set_tensors(conn, member.weight_set_id)
    for row in rows:
        array = read_array(store, row, row.name)
        info = TensorInfo(
            name=row.name, dtype=row.dtype, shape=tuple(row.shape), size_bytes=row.size_bytes
        )
        yield info, array


def _tokenizer(store: WeightStore, member: Member) -> bytes | None:
    if member.tokenizer_digest is None:
        return None
    with store.pool.connection() as conn:
        found: Mapping[bytes, bytes] = tokenizers.documents(conn, [member.tokenizer_digest])
    return found.get(member.tokenizer_digest)
