"""The runner `python`: a function that a plugin provides, whatever it calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from arc_halo.errors import MemberError
from arc_halo.hookspecs import hookimpl
from arc_halo.names import did_you_mean
from arc_halo.outputs import Outputs
from arc_halo.types import JsonObject, ModelRunner, RunnerContext

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from arc_halo.outputs import Label
    from arc_halo.types import Predictor

PARAMS: JsonObject = {
    "type": "object",
    "additionalProperties": False,
    "required": ["predictor"],
    "properties": {
        "predictor": {
            "type": "string",
            "minLength": 1,
            "description": "The function, by the name under which a loaded plugin provides it.",
        },
        "classes": {
            "type": ["array", "null"],
            "items": {"type": ["string", "number", "boolean"]},
            "default": None,
            "description": "What the columns of scores stand for, where the function does not say.",
        },
    },
}


@hookimpl
def arc_halo_runners() -> Iterator[ModelRunner]:
    yield ModelRunner(
        name="python",
        version=1,
        summary="a function of a plugin: scikit-learn, ONNX, anything",
        open=open_python,
        params_schema=PARAMS,
    )


@contextmanager
def open_python(
    context: RunnerContext, *, predictor: str, classes: Sequence[Label] | None = None
) -> Iterator[Predicting]:
    """The function of that name, with what its `load` has returned.

    Raises `MemberError` for a name that no loaded plugin provides, and what `load` raises.
    """
    found = _find(context.predictors, predictor)
    predict: Callable[[Sequence[Any]], Any] = found.predict
    if found.load is not None:
        predict = partial(found.predict, found.load(context))
    yield Predicting(predict, None if classes is None else tuple(classes))


class Predicting:
    """Answers by a function, and puts what it returns into `Outputs`."""

    def __init__(
        self, predict: Callable[[Sequence[Any]], Any], classes: tuple[Label, ...] | None
    ) -> None:
        self._predict = predict
        self._classes = classes

    def answer(self, inputs: Sequence[Any]) -> Outputs:
        return as_outputs(self._predict(inputs), self._classes)


def as_outputs(value: Any, classes: tuple[Label, ...] | None) -> Outputs:
    """What a function returned, as `Outputs`.

    An array [inputs, classes] holds probabilities, one of a single dimension labels. A list of
    texts holds labels where there are `classes`, and texts otherwise; any other list holds labels.
    Raises `MemberError` for what is none of these.
    """
    import numpy as np

    if isinstance(value, Outputs):
        is_nameless = value.scores is not None and value.classes is None
        return replace(value, classes=classes) if is_nameless else value
    if isinstance(value, np.ndarray):
        if value.ndim == 2 and value.dtype.kind in "fiu":
            return Outputs(scores=value.astype(np.float64), classes=classes)
        if value.ndim == 1:
            return Outputs(labels=tuple(value.tolist()))
        raise MemberError(f"it gave an array of {value.dtype}, {list(value.shape)}", hint=EXPECTED)
    if isinstance(value, list | tuple):
        # Numbers of numpy's own, which JSON does not have, become Python's.
        items = tuple(each.item() if isinstance(each, np.generic) else each for each in value)
        if all(isinstance(each, str) for each in items) and classes is None:
            return Outputs(texts=items)
        if all(isinstance(each, str | int | float) for each in items):
            return Outputs(labels=items)
    raise MemberError(f"it gave {type(value).__name__}, of which nothing is known", hint=EXPECTED)


EXPECTED = "return Outputs, an array [inputs, classes] of probabilities, or a list of texts"


def _find(predictors: Mapping[str, Predictor], name: str) -> Predictor:
    if name in predictors:
        return predictors[name]
    listed = ", ".join(predictors) or "none are loaded"
    raise MemberError(
        f"no loaded plugin provides the predictor {name!r}",
        hint=did_you_mean(name, predictors) or f"predictors: {listed}; see `plugins:`",
        code="AH032",
    )
