"""Runs written down: what was asked and answered, as far as the reactor's policy keeps it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from arc_halo.errors import ArcHaloError
from arc_halo.outputs import FORMS, Outputs
from arc_halo.reactors.asking import Asked, Cover
from arc_halo.reactors.plans import Member, ReactorPlan, Record
from arc_halo.types import JsonObject

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGE_NUMBERS = 4096
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
ANSWER = "answer"
"""What the tensor of the fused answer is called."""


def kept(value: Any, record: Record) -> Any:
    """What is kept of JSON: all of it, the SHA-256 of its canonical text, or nothing."""
    if value is None or record == "none":
        return None
    if record == "full":
        return value
    return {"sha256": hashlib.sha256(canonical(value)).hexdigest()}


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def as_json(outputs: Outputs) -> JsonObject:
    """Answers as they are recorded and printed: the forms that they have, and no others."""
    found: JsonObject = {}
    for name in FORMS:
        if outputs.has(name):
            key = outputs.meaning if name == "scores" else name
            value = getattr(outputs, name)
            found[key] = _plain(value) if name == "scores" else storable(value)
    if outputs.classes is not None:
        found["classes"] = storable(outputs.classes)
    for name in ("confidence", "costs"):
        if outputs.has(name):
            found[name] = _plain(getattr(outputs, name))
    if outputs.details:
        found["details"] = storable(dict(outputs.details))
    return found


def storable(value: Any) -> Any:
    """The value as JSON that a database takes: numpy's numbers as numbers, what is no number as
    null, and in texts U+FFFD for NUL and for halves of characters."""
    if isinstance(value, str):
        return UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {storable(str(key)): storable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [storable(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return storable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | None) else storable(str(value))


def told_error(exc: BaseException, record: Record, cover: Cover) -> str:
    """What is kept of an error: no secrets, and of its words, which may repeat what was asked,
    none where they are not to be kept."""
    if record != "full":
        code = exc.error_code if isinstance(exc, ArcHaloError) else type(exc).__name__
        return f"{code}: not kept"
    if isinstance(exc, GeneratorExit):
        return "nobody listened to the end"
    words = exc.message if isinstance(exc, ArcHaloError) else f"{type(exc).__name__}: {exc}"
    told: str = storable(cover(words))
    return told


def spelt(value: Any) -> Any:
    """Numbers as JSON has them: infinities are the texts Infinity and -Infinity, NaN is null."""
    return json.loads(json.dumps(value), parse_constant=_constant)


class LargeArrays:
    """Scores of more numbers than a record should spell out, to be kept as tensors by name."""

    def __init__(self, *, are_kept: bool) -> None:
        self.found: dict[str, NDArray[Any]] = {}
        self._are_kept = are_kept

    def as_json(self, outputs: Outputs, name: str) -> JsonObject:
        """Answers as they are recorded; in the place of large scores, the tensor that has them."""
        scores = outputs.scores
        if not self._are_kept or scores is None or scores.size <= LARGE_NUMBERS:
            return as_json(outputs)
        self.found[name] = scores
        told = {outputs.meaning: {"tensor": name, "shape": list(scores.shape)}}
        return told | as_json(replace(outputs, scores=None))


def member_rows(
    plan: ReactorPlan, asked: Sequence[Asked], arrays: LargeArrays, cover: Cover
) -> list[JsonObject]:
    """A row for each member: what it answered, or why it did not."""
    by_member: dict[str, list[Asked]] = {}
    for each in asked:
        by_member.setdefault(each.member.model, []).append(each)
    return [
        {"ordinal": ordinal, **_row(member, by_member.get(member.model, []), plan, arrays, cover)}
        for ordinal, member in enumerate(plan.members)
    ]


def _row(
    member: Member,
    calls: Sequence[Asked],
    plan: ReactorPlan,
    arrays: LargeArrays,
    cover: Cover,
) -> JsonObject:
    answers = [each for each in calls if each.outputs is not None]
    failed = next((each.error for each in calls if each.error is not None), None)
    status = "answered" if answers else "not_asked"
    if failed is not None:
        status = "fell_back" if plan.on_failure == "fallback" else "failed"
    names = _names(member, len(answers))
    said = [
        arrays.as_json(each.outputs, name) | _places(each)
        for each, name in zip(answers, names, strict=True)
        if each.outputs is not None
    ]
    return {
        "model": member.model,
        "root": member.root.hex() if member.root else None,
        "role": member.role,
        "weight": member.weight,
        "status": status,
        "answered_count": sum(len(each.indexes) for each in answers),
        "execution_ms": 1000 * sum(each.seconds for each in calls) if calls else None,
        "cost": total_cost(answers) if answers else None,
        "output": kept(said[0] if len(said) == 1 else said, plan.record) if said else None,
        "error": told_error(failed, plan.record, cover) if failed else None,
    }


def _names(member: Member, count: int) -> list[str]:
    """What the tensors of a member's answers are called; of several, with their number."""
    if count <= 1:
        return [member.model] * count
    return [f"{member.model}/{number}" for number in range(count)]


def total_cost(asked: Iterable[Asked]) -> float:
    return float(sum(each.costs.sum() for each in asked if each.outputs is not None))


def _places(asked: Asked) -> JsonObject:
    """Which inputs of the batch it was asked, unless all up to the last."""
    is_all = asked.indexes == tuple(range(len(asked.indexes)))
    return {} if is_all else {"inputs": list(asked.indexes)}


def _plain(value: NDArray[Any]) -> Any:
    return value.tolist() if np.isfinite(value).all() else spelt(value.tolist())


def _constant(name: str) -> float | str | None:
    return None if name == "NaN" else name
