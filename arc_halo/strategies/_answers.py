"""What strategies that fuse answers have in common: alike scores, shares, probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from arc_halo.errors import OutputError
from arc_halo.outputs import CombineContext, Label, Meaning, Outputs

if TYPE_CHECKING:
    from arc_halo.outputs import Float64


def shares(context: CombineContext) -> list[float]:
    """The members' weights, over their sum. Raises `OutputError` where that is zero."""
    total = sum(context.weights)
    if not total:
        listed = ", ".join(context.members)
        raise OutputError(f"the weights of {listed} add up to 0", hint="give one another weight")
    return [weight / total for weight in context.weights]


def votes_of(context: CombineContext) -> tuple[float, ...]:
    """The members' weights, as those of votes. Raises `OutputError` unless they can be counted."""
    for member, weight in zip(context.members, context.weights, strict=True):
        if weight < 0:
            raise OutputError(
                f"{member} has the weight {weight:g}, and nobody has less than no vote",
                hint="give it a weight of 0 or more",
            )
    shares(context)
    return context.weights


def alike_scores(outputs: Sequence[Outputs], context: CombineContext) -> list[Float64]:
    """The members' scores, of one meaning and for the same columns.

    Raises `OutputError` for a member without scores, or with others.
    """
    found = alike_columns(outputs, context)
    first = outputs[0]
    for name, each in zip(context.members, outputs, strict=True):
        if each.meaning != first.meaning:
            raise OutputError(f"{context.members[0]} answers with {first.meaning}, {name} with "
                              f"{each.meaning}")  # fmt: skip
    return found


def alike_columns(outputs: Sequence[Outputs], context: CombineContext) -> list[Float64]:
    """The members' scores for the same columns, whatever they mean.

    Raises `OutputError` for a member without scores, or with other columns.
    """
    found: list[Float64] = []
    for name, each in zip(context.members, outputs, strict=True):
        if each.scores is None:
            raise OutputError(
                f"{name} answers with {' and '.join(each.kinds)}, and scores are needed",
                hint="take a strategy that fuses such answers; `arc-halo plugins` lists them",
            )
        first = outputs[0]
        assert first.scores is not None
        if each.scores.shape != first.scores.shape or each.classes != first.classes:
            raise OutputError(
                f"{context.members[0]} and {name} have scores for other classes: "
                f"{_columns(first)}, and {_columns(each)}"
            )
        found.append(each.scores)
    return found


def probabilities(output: Outputs, member: str) -> Float64:
    """A member's probabilities: as they are, or the softmax of its logits.

    Raises `OutputError` where it has neither.
    """
    if output.scores is not None and output.meaning == "probabilities":
        return output.scores
    if output.scores is not None and output.meaning == "logits":
        return softmax(output.scores)
    raise _no_probabilities(output, member)


def log_probabilities(output: Outputs, member: str) -> Float64:
    """Their logarithms, -inf where a probability is zero. Raises `OutputError` as above."""
    import numpy as np

    if output.scores is not None and output.meaning == "logits":
        shifted = output.scores - output.scores.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(probabilities(output, member)))


def softmax(scores: Float64) -> Float64:
    """The exponentials of each row over their sum; no row is of -inf alone."""
    import numpy as np

    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def decided(output: Outputs, member: str) -> list[Label]:
    """A member's decision on each input: its label, else the class, or column, of its best score.

    The first of equal ones. Raises `OutputError` where it has neither labels nor scores.
    """
    if output.labels is not None:
        return list(output.labels)
    if output.scores is None or output.meaning == "vectors":
        said = output.meaning if output.scores is not None else output.kinds[0]
        raise OutputError(f"{member} answers with {said}; labels or scores are needed")
    places: list[int] = output.scores.argmax(axis=1).tolist()
    return [*places] if output.classes is None else [output.classes[place] for place in places]


def in_order(labels: Sequence[Label]) -> list[Label]:
    """Each label once: numbers as they count, then texts."""
    return sorted(dict.fromkeys(labels), key=lambda each: (isinstance(each, str), each))


def features_of(context: CombineContext) -> Float64:
    """The numbers that each input has as its `features`. Raises `OutputError` where it has none."""
    import numpy as np

    found = [given.get("features") if isinstance(given, dict) else None for given in context.inputs]
    lengths = {len(each) for each in found if isinstance(each, list)}
    try:
        numbers = np.asarray(found, np.float64)
    except (TypeError, ValueError):
        numbers = np.full(len(found), np.nan)
    if numbers.ndim != 2 or len(lengths) != 1 or not np.isfinite(numbers).all():
        raise OutputError(
            "an input without `features`, or with others than the rest",
            hint='give each input the same count of numbers: `{"features": [0.5, 2]}`',
        )
    return numbers


def fitted(context: CombineContext, *names: str) -> list[Any]:
    """What `reactor fit` has stored by these names. Raises `OutputError` where it has not."""
    if missing := [name for name in names if name not in context.fitted]:
        raise OutputError(
            f"it has not been fitted: nothing is stored as {missing[0]!r}",
            hint="`arc-halo reactor fit NAME --data FILE` first",
        )
    return [context.fitted[name] for name in names]


def _no_probabilities(output: Outputs, member: str) -> OutputError:
    said: Meaning | str = output.meaning if output.scores is not None else output.kinds[0]
    return OutputError(f"{member} answers with {said}; probabilities or logits are needed")


def _columns(output: Outputs) -> str:
    if output.classes is not None:
        return ", ".join(map(str, output.classes[:10]))
    assert output.scores is not None
    return f"{output.scores.shape[1]} columns"
