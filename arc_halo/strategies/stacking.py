"""The strategy `stacking`: a logistic regression on what the members answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from arc_halo.errors import OutputError
from arc_halo.hookspecs import hookimpl
from arc_halo.outputs import CombineContext, Label, Outputs
from arc_halo.strategies._answers import features_of, fitted, in_order, probabilities, softmax
from arc_halo.strategies._regression import fit_regression
from arc_halo.strategies._schemas import flag, number, schema
from arc_halo.types import FusionStrategy

if TYPE_CHECKING:
    from arc_halo.outputs import Float64

PASSTHROUGH = flag("Give the regression the `features` of each input, too.", default=False)
STRENGTH = number(
    "How little its coefficients are held down when it is fitted; C in scikit-learn.",
    1.0,
    exclusiveMinimum=0,
)
MAX_ITER = {
    "type": "integer",
    "description": "The most steps when it is fitted.",
    "default": 100,
    "minimum": 1,
}


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="stacking",
        version=1,
        summary="a logistic regression on the members' answers, fitted with `reactor fit`",
        combine_outputs=stacking,
        fit_outputs=fit_stacking,
        params_schema=schema(passthrough=PASSTHROUGH, c=STRENGTH, max_iter=MAX_ITER),
    )


def stacking(
    outputs: Sequence[Outputs],
    context: CombineContext,
    *,
    passthrough: bool,
    c: float,
    max_iter: int,
) -> Outputs:
    """The softmax of X A + b, where a row of X is what the members answer to an input.

    Wolpert, "Stacked generalization", Neural Networks 5, 1992, as scikit-learn's
    StackingClassifier has it: of a member's probabilities all columns are taken, of two classes
    the second alone. Logits are made probabilities first, other scores are taken as they are, and
    a label as its place among the classes. Raises `OutputError` where it has not been fitted, for
    these members and the columns they have.
    """
    coefficients, intercepts, classes, columns, members = fitted(
        context, "coefficients", "intercepts", "classes", "columns", "members"
    )
    ordered = _in_order_of(members, outputs, context)
    if [_columns_of(each) for each in ordered] != columns:
        raise OutputError(
            "the members answer with other columns than when it was fitted",
            hint="`arc-halo reactor fit NAME --data FILE` again",
        )
    numbers = _meta_features(ordered, members, classes, context, passthrough)
    if numbers.shape[1] != coefficients.shape[1]:
        raise OutputError(
            f"it was fitted to {coefficients.shape[1]} numbers an input, not to {numbers.shape[1]}",
            hint="`arc-halo reactor fit NAME --data FILE` again",
        )
    return _predicted(numbers @ coefficients.T + intercepts, classes)


def fit_stacking(
    outputs: Sequence[Outputs],
    labels: Sequence[Label],
    context: CombineContext,
    *,
    passthrough: bool,
    c: float,
    max_iter: int,
) -> Mapping[str, Any]:
    """The regression fitted by scikit-learn's LogisticRegression. Raises `OutputError`."""
    classes = in_order(labels)
    numbers = _meta_features(outputs, context.members, classes, context, passthrough)
    places = [classes.index(label) for label in labels]
    regression = fit_regression(numbers, places, c=c, max_iter=max_iter)
    return {
        "coefficients": regression.coefficients,
        "intercepts": regression.intercepts,
        "classes": classes,
        "columns": [_columns_of(each) for each in outputs],
        "is_converged": regression.is_converged,
    }


def _in_order_of(
    members: Sequence[str], outputs: Sequence[Outputs], context: CombineContext
) -> list[Outputs]:
    """The outputs in the order in which their members were fitted."""
    found = dict(zip(context.members, outputs, strict=True))
    if found.keys() != set(members):
        missing = sorted(set(members) - found.keys()) or sorted(found.keys() - set(members))
        raise OutputError(
            f"it was fitted to {', '.join(members)}, and there is "
            f"{'no answer' if missing[0] in members else 'one too many'}: {missing[0]}",
            hint="have `run.on_failure: fallback` answer for those that fail, or fit it again",
        )
    return [found[member] for member in members]


def _columns_of(output: Outputs) -> list[Any]:
    """What a member's part of a row is made of, as JSON."""
    if output.scores is None:
        return ["labels"]
    width = output.scores.shape[1]
    return [output.meaning, list(output.classes) if output.classes is not None else width]


def _meta_features(
    outputs: Sequence[Outputs],
    members: Sequence[str],
    classes: Sequence[Label],
    context: CombineContext,
    passthrough: bool,
) -> Float64:
    import numpy as np

    parts = [_part(each, name, classes) for name, each in zip(members, outputs, strict=True)]
    return np.hstack([*parts, features_of(context)] if passthrough else parts)


def _part(output: Outputs, member: str, classes: Sequence[Label]) -> Float64:
    import numpy as np

    if output.scores is None:
        places = {label: place for place, label in enumerate(classes)}
        if output.labels is None or not set(output.labels) <= places.keys():
            raise OutputError(
                f"{member} answers with {' and '.join(output.kinds)}, and neither scores nor "
                "labels of the classes it was fitted to"
            )
        return np.array([[places[label]] for label in output.labels], np.float64)
    if output.meaning in ("scores", "vectors"):
        return output.scores
    shares = probabilities(output, member)
    return shares[:, 1:] if shares.shape[1] == 2 else shares


def _predicted(decision: Float64, classes: Sequence[Label]) -> Outputs:
    """Probabilities, and the class of the largest decision value: of two, the second above 0."""
    import numpy as np

    if len(classes) == 2:
        scores = _of_two(decision[:, 0])
        best = (decision[:, 0] > 0).astype(np.intp)
    else:
        scores, best = softmax(decision), decision.argmax(axis=1)
    return Outputs(
        scores=scores,
        classes=tuple(classes),
        labels=tuple(classes[place] for place in best.tolist()),
    )


def _of_two(decision: Float64) -> Float64:
    """The logistic function, and 1 less it: neither overflows."""
    import numpy as np

    return softmax(np.column_stack([np.zeros_like(decision), decision]))
