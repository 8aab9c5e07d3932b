"""What strategies that fuse answers have in common: alike scores, shares, classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from arc_halo.errors import OutputError
from arc_halo.outputs import CombineContext, Meaning, Outputs

if TYPE_CHECKING:
    from arc_halo.outputs import Float64


def shares(context: CombineContext) -> list[float]:
    """The members' weights, over their sum. Raises `OutputError` where that is zero."""
    total = sum(context.weights)
    if not total:
        listed = ", ".join(context.members)
        raise OutputError(f"the weights of {listed} add up to 0", hint="give one another weight")
    return [weight / total for weight in context.weights]


def alike_scores(outputs: Sequence[Outputs], context: CombineContext) -> list[Float64]:
    """The members' scores, of one meaning and for the same columns.

    Raises `OutputError` for a member without scores, or with others.
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
        if each.meaning != first.meaning:
            raise OutputError(f"{context.members[0]} answers with {first.meaning}, {name} with "
                              f"{each.meaning}")  # fmt: skip
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
    import numpy as np

    if output.scores is not None and output.meaning == "probabilities":
        return output.scores
    if output.scores is not None and output.meaning == "logits":
        powers = np.exp(output.scores - output.scores.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    said: Meaning | str = output.meaning if output.scores is not None else output.kinds[0]
    raise OutputError(f"{member} answers with {said}; probabilities or logits are needed")


def _columns(output: Outputs) -> str:
    if output.classes is not None:
        return ", ".join(map(str, output.classes[:10]))
    assert output.scores is not None
    return f"{output.scores.shape[1]} columns"
