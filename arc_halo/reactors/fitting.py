"""Reactors fitted to labelled examples: what their strategy learns is kept as tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arc_halo.errors import InvalidInputError, NotFoundError, OutputError
from arc_halo.outputs import Label
from arc_halo.reactors.arrays import store_arrays
from arc_halo.reactors.plans import ReactorPlan
from arc_halo.store import builds, reactors
from arc_halo.tensors.digests import format_digest
from arc_halo.types import JsonObject
from arc_halo.weights.reading import read_arrays
from arc_halo.weights.store import WeightStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.reactors.running import RunningReactor

ABOUT = "about"
"""The tensor of bytes that says, as JSON, for whom the others were learnt, and what is no array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An input, and what is to be decided about it."""

    input: Any
    label: Label


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What came of fitting a reactor; `learnt` has arrays by their shapes, and JSON as it is."""

    reactor: str
    strategy: str
    members: tuple[str, ...]
    example_count: int
    learnt: JsonObject
    root: str

    def as_json(self) -> JsonObject:
        return {
            "reactor": self.reactor,
            "strategy": self.strategy,
            "members": list(self.members),
            "examples": self.example_count,
            "learnt": self.learnt,
            "root": self.root,
        }


class Unfit(Mapping[str, Any]):
    """What was learnt for another reactor than this one is now: asked for anything, it says so."""

    def __init__(self, error: OutputError) -> None:
        self._error = error

    def __getitem__(self, name: str) -> Any:
        raise self._error

    def __iter__(self) -> Iterator[str]:
        raise self._error

    def __len__(self) -> int:
        raise self._error


def read_examples(text: str) -> list[Example]:
    """One JSON object a line, `{"input": ..., "label": ...}`. Raises `InvalidInputError`."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        hint = "give one JSON object a line"
        raise InvalidInputError("there is no example", hint=hint, code="AH006")
    return [_example(number, line) for number, line in lines]


def fit_reactor(store: WeightStore, opened: RunningReactor, examples: Sequence[Example]) -> Fitted:
    """Ask the members, have the strategy learn, and make it what the reactor answers with.

    The members' answers count as they are, so those that were trained on the examples are believed
    too much: give examples that they have not seen, or answers from out of their folds. Raises
    `ReactorError`, and `NotFoundError` for a reactor that was deleted meanwhile.
    """
    import numpy as np

    plan = opened.plan
    learnt = opened.learn([each.input for each in examples], [each.label for each in examples])
    arrays = {
        name: np.ascontiguousarray(value)
        for name, value in sorted(learnt.items())
        if isinstance(value, np.ndarray)
    }
    values = {name: value for name, value in learnt.items() if name not in arrays}
    about = {**_fitted_for(plan), "values": values}
    root = _write(store, plan.name, {ABOUT: _as_bytes(about), **arrays})
    return Fitted(
        reactor=plan.name,
        strategy=plan.strategy,
        members=tuple(member.model for member in plan.voters),
        example_count=len(examples),
        learnt={**values, **{name: list(array.shape) for name, array in arrays.items()}},
        root=format_digest(root),
    )


def read_fit(store: WeightStore, plan: ReactorPlan) -> Mapping[str, Any]:
    """What a reactor has learnt, each digest verified: arrays and JSON by name.

    Nothing where it never was fitted; what was learnt for other members, or for another strategy,
    raises `OutputError` when it is asked for.
    """
    with store.pool.connection() as conn:
        set_id = reactors.fitted_set(conn, plan.name)
        rows = builds.set_tensors(conn, set_id) if set_id is not None else []
    if set_id is None:
        return {}
    arrays: dict[str, Any] = dict(read_arrays(store, set_id, rows))
    about = json.loads(arrays.pop(ABOUT).tobytes())
    if (change := _change(about, _fitted_for(plan))) is not None:
        return Unfit(
            OutputError(change, hint=f"`arc-halo reactor fit {plan.name} --data FILE` again")
        )
    return {**about["values"], **arrays, "members": list(about["members"])}


def _example(number: int, line: str) -> Example:
    try:
        said = json.loads(line)
    except ValueError as exc:
        raise _no_example(number, f"is no JSON: {exc}") from exc
    if not isinstance(said, dict) or said.keys() != {"input", "label"}:
        raise _no_example(number, "is not an object of `input` and `label`")
    if not isinstance(said["label"], str | int | float):
        raise _no_example(number, "has a label that is neither text, number nor truth value")
    return Example(input=said["input"], label=said["label"])


def _no_example(number: int, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"line {number} of the examples {why}",
        hint='write one a line: {"input": {"id": 7}, "label": "cat"}',
        code="AH006",
    )


def _fitted_for(plan: ReactorPlan) -> JsonObject:
    """What has to stay for what was learnt to be of use: the strategy, and members with weights."""
    members = {each.model: each.root.hex() if each.root else None for each in plan.voters}
    return {"strategy": plan.strategy, "members": members}


def _change(then: JsonObject, now: JsonObject) -> str | None:
    """What is no longer as it was when the reactor was fitted."""
    if then["strategy"] != now["strategy"]:
        return f"what was learnt is {then['strategy']}'s"
    if set(then["members"]) != set(now["members"]):
        return f"it was fitted to other members: {', '.join(then['members'])}"
    for member, root in now["members"].items():
        if then["members"][member] != root:
            return f"it was fitted to other weights of {member}"
    return None


def _as_bytes(about: JsonObject) -> NDArray[Any]:
    """As JSON in the order of its keys: members are in that of the columns."""
    import numpy as np

    try:
        text = json.dumps(about, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise OutputError(f"what was learnt is neither arrays nor JSON: {exc}") from exc
    return np.frombuffer(text.encode(), np.uint8)


def _write(store: WeightStore, reactor: str, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Store arrays, and have the reactor point to them; their root."""
    root = store_arrays(store, arrays, {"fit": reactor})
    with store.pool.connection() as conn, conn.transaction():
        if not reactors.point_to_fit(conn, reactor, root):
            raise NotFoundError(
                f"the reactor {reactor!r} was deleted meanwhile", hint="apply it, and fit it again"
            )
    return root
