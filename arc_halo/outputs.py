"""What models answer to a batch of inputs, and what a strategy that fuses answers may know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args

from arc_halo.errors import OutputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Float64 = NDArray[np.float64]

Label = str | int | float | bool
Meaning = Literal["probabilities", "logits", "scores", "vectors"]
"""What numbers are: shares that add up to 1, their logarithms up to a constant, anything that is
larger where it is better, or coordinates."""

T = TypeVar("T")
SUM_TOLERANCE = 1e-3
"""How far from 1 what is given as probabilities may add up to: they may come from float16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What a model, or a reactor, answers to a batch of n inputs: one entry an input.

    At least one of `scores`, `labels`, `texts` and `rankings` is there; a validator may give its
    `confidence` alone. `scores` is [n, columns] in float64; `meaning` says what they are, and
    `classes` what each column stands for. A label is a class; a ranking names things, the best
    first. `confidence` [n] from 0 to 1 and `costs` [n] are what the model itself says of its
    answers; `details` is what else is worth recording, as JSON.

    Lists, and arrays of other numbers, become what the fields are declared to be. Raises
    `OutputError` for what cannot.
    """

    scores: Float64 | None = None
    meaning: Meaning = "probabilities"
    classes: tuple[Label, ...] | None = None
    labels: tuple[Label, ...] | None = None
    texts: tuple[str, ...] | None = None
    rankings: tuple[tuple[str, ...], ...] | None = None
    confidence: Float64 | None = None
    costs: Float64 | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in NUMBERS:
            if (value := getattr(self, name)) is not None and not _is_float64(value):
                object.__setattr__(self, name, _numbers(name, value))
        for name in LISTS:
            value = getattr(self, name)
            if value is not None and not (type(value) is tuple and all(map(_is_plain, value))):
                object.__setattr__(self, name, _listed(name, value))
        if not isinstance(self.details, Mapping):
            raise OutputError(f"details are a mapping, not {type(self.details).__name__}")

    def __len__(self) -> int:
        first = next((getattr(self, name) for name in PER_INPUT if self.has(name)), ())
        return len(first)

    def has(self, name: str) -> bool:
        return getattr(self, name) is not None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which forms the answers have."""
        return tuple(name for name in FORMS if self.has(name))

    def take(self, indexes: Sequence[int]) -> Outputs:
        """The answers to some of the inputs, in that order."""
        chosen = {name: _taken(getattr(self, name), indexes) for name in PER_INPUT}
        return replace(self, **chosen)

    def check(self, count: int, *, is_judgement: bool = False) -> None:
        """Raise `OutputError` for what cannot be the answers to `count` inputs, or cannot be a
        judgement of so many answers."""
        import numpy as np

        if not self.kinds and not (is_judgement and self.has("confidence")):
            alone = ", and a confidence alone only judges" if self.has("confidence") else ""
            raise OutputError(
                f"no answer: neither scores, labels, texts nor rankings{alone}",
                hint="give one of these, or the member `role: validator`" if alone else None,
            )
        for name in PER_INPUT:
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise OutputError(f"{len(value)} {name} for {count} inputs")
        _check_lists(self)
        if self.scores is not None:
            _check_scores(self.scores, self.meaning, self.classes)
        for name in ("confidence", "costs"):
            numbers = getattr(self, name)
            if numbers is not None and numbers.ndim != 1:
                raise OutputError(f"{name} has one number an input, not {list(numbers.shape)}")
        if self.confidence is not None and not np.all(
            (self.confidence >= 0) & (self.confidence <= 1)
        ):
            raise OutputError("a confidence that is not from 0 to 1")
        if self.costs is not None and not np.all(np.isfinite(self.costs)):
            raise OutputError("a cost that is no number")


PER_INPUT = ("scores", "labels", "texts", "rankings", "confidence", "costs")
FORMS = ("scores", "labels", "texts", "rankings")
NUMBERS = ("scores", "confidence", "costs")
LISTS = ("classes", "labels", "texts", "rankings")
MEANINGS = get_args(Meaning)
WANTED: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("texts", (str,), "text"),
    ("labels", (str, int, float), "text, number or boolean"),
    ("rankings", (tuple,), "list of names"),
)


def joined(parts: Sequence[tuple[Sequence[int], Outputs]], count: int) -> Outputs:
    """Answers to `count` inputs, put together from those to some of them, each input once.

    What only some of the parts have is left out, unless it is confidence or costs, which are then
    NaN. Raises `OutputError` where nothing is left.
    """
    import numpy as np

    if sorted(index for indexes, _ in parts for index in indexes) != list(range(count)):
        raise OutputError("there is not one answer to each input")
    first = parts[0][1]
    found: dict[str, Any] = {}
    for name in PER_INPUT:
        have = [each.has(name) for _, each in parts]
        if name in ("confidence", "costs"):
            if any(have):
                numbers = np.full(count, math.nan)
                for indexes, each in parts:
                    if each.has(name):
                        numbers[list(indexes)] = getattr(each, name)
                found[name] = numbers
        elif all(have) and (name != "scores" or _are_alike([each for _, each in parts])):
            found[name] = _placed(name, parts, count)
    result = Outputs(meaning=first.meaning, classes=first.classes, **found)
    if not result.kinds:
        listed = ", ".join(sorted({kind for _, each in parts for kind in each.kinds}))
        raise OutputError(f"answers of unlike forms cannot be put together: {listed}")
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class CombineContext:
    """What a strategy that fuses outputs may know beside its params.

    `members`, `weights` and `roles` are of those that answered, in the order of their outputs;
    `inputs` is what they were asked. `fitted` has the arrays, and the JSON, that `arc-halo reactor
    fit` stored. `state` keeps what the reactor remembers between runs; where nothing is kept it is
    empty.
    """

    members: tuple[str, ...]
    weights: tuple[float, ...]
    roles: tuple[str, ...] = ()
    inputs: Sequence[Any] = ()
    fitted: Mapping[str, Any] = field(default_factory=dict)
    state: CognitiveState | None = None


class CognitiveState(Protocol):
    """What a reactor keeps between runs: JSON by kind and key, of some priority, until it expires.

    Kinds are `context`, `memory`, `attention_focus` and `goal`.
    """

    def get(self, kind: str, key: str) -> Any:
        """A value; None where there is none, or none any more."""
        ...

    def list(self, kind: str) -> list[tuple[str, Any]]:
        """Keys and values of a kind, those of the highest priority first."""
        ...

    def set(
        self, kind: str, key: str, value: Any, *, priority: int = 0, seconds: float | None = None
    ) -> None:
        """Keep a value, for so many seconds if that is said."""
        ...

    def forget(self, kind: str, key: str) -> None: ...


def _is_float64(value: Any) -> bool:
    """Whether it is an array of float64 that has a first axis."""
    return bool(type(value).__module__ == "numpy" and str(value.dtype) == "float64" and value.ndim)


def _is_plain(value: Any) -> bool:
    """Whether it is none of numpy's own numbers, which JSON does not have."""
    return type(value).__module__ != "numpy" or not hasattr(value, "item")


def _numbers(name: str, value: Any) -> Float64:
    import numpy as np

    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError
        found = array.astype(np.float64)
    except (ValueError, TypeError) as exc:
        raise OutputError(
            f"{name} are no numbers: {_shortly(value)}", hint="give an array, or a list of numbers"
        ) from exc
    if not found.ndim:
        raise OutputError(f"{name} is the single number {found}", hint="give a list, one an input")
    return found


def _listed(name: str, value: Any) -> tuple[Any, ...]:
    """A list or an array as a tuple of what JSON has; rankings are tuples too."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise OutputError(
            f"{name} are no list: {_shortly(value)}", hint="give a list, one an input"
        )
    if name == "rankings":
        return tuple(tuple(each) if isinstance(each, list) else each for each in value)
    return tuple(each if _is_plain(each) else each.item() for each in value)


def _check_lists(outputs: Outputs) -> None:
    """What stands in the lists: texts, labels, and names in their order."""
    for name, kinds, wanted in WANTED:
        for each in getattr(outputs, name) or ():
            if not isinstance(each, kinds):
                raise OutputError(f"{name} hold {_shortly(each)}, which is no {wanted}")
    if outputs.meaning not in MEANINGS:
        raise OutputError(
            f"scores that mean {outputs.meaning!r}", hint=f"known are {', '.join(MEANINGS)}"
        )


def _shortly(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _check_scores(scores: Float64, meaning: Meaning, classes: Sequence[Label] | None) -> None:
    import numpy as np

    if scores.ndim != 2 or scores.shape[1] == 0:
        raise OutputError(f"scores are [inputs, columns], not {list(scores.shape)}")
    if classes is not None and len(classes) != scores.shape[1]:
        raise OutputError(f"{scores.shape[1]} columns of scores for {len(classes)} classes")
    if np.isnan(scores).any():
        raise OutputError("scores that are NaN")
    if meaning == "logits":
        if np.isposinf(scores).any() or np.isneginf(scores).all(axis=1).any():
            raise OutputError("logits that leave nothing, or infinity, to choose from")
    elif not np.isfinite(scores).all():
        raise OutputError(f"{meaning} that are infinite")
    are_shares = meaning == "probabilities" and scores.size > 0
    if are_shares and (scores.min() < 0 or np.abs(scores.sum(axis=1) - 1).max() > SUM_TOLERANCE):
        raise OutputError("probabilities that are negative, or do not add up to 1")


def _are_alike(outputs: Sequence[Outputs]) -> bool:
    shapes = {
        (each.scores.shape[1], each.meaning, each.classes)
        for each in outputs
        if each.scores is not None
    }
    return len(shapes) == 1


def _placed(name: str, parts: Sequence[tuple[Sequence[int], Outputs]], count: int) -> Any:
    import numpy as np

    if name == "scores":
        first = parts[0][1].scores
        assert first is not None
        numbers = np.empty((count, first.shape[1]))
        for indexes, each in parts:
            numbers[list(indexes)] = each.scores
        return numbers
    values: list[Any] = [None] * count
    for indexes, each in parts:
        for index, value in zip(indexes, getattr(each, name), strict=True):
            values[index] = value
    return tuple(values)


def _taken(value: Any, indexes: Sequence[int]) -> Any:
    if value is None:
        return None
    return tuple(value[i] for i in indexes) if isinstance(value, tuple) else value[list(indexes)]


assert {*PER_INPUT} <= {each.name for each in fields(Outputs)}
