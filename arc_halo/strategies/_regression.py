"""Logistic regression by scikit-learn, for the strategies that are fitted to examples."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arc_halo.errors import OutputError

if TYPE_CHECKING:
    from arc_halo.outputs import Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """Coefficients [classes, features], of two classes [1, features], and intercepts."""

    coefficients: Float64
    intercepts: Float64
    is_converged: bool


def fit_regression(
    numbers: Float64,
    places: Sequence[int],
    *,
    c: float = 1.0,
    max_iter: int = 100,
    weights: Float64 | None = None,
) -> Regression:
    """A logistic regression that tells classes, given by their places, by some numbers.

    Raises `OutputError` where scikit-learn is not installed, and for examples of one class.
    """
    import numpy as np

    if len(set(places)) < 2:
        raise OutputError(
            "all examples have the same label", hint="give examples of two classes at least"
        )
    linear_model, exceptions = _scikit_learn()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", exceptions.ConvergenceWarning)
        regression = linear_model.LogisticRegression(C=c, max_iter=max_iter)
        regression.fit(numbers, np.asarray(places), sample_weight=weights)
    return Regression(
        coefficients=np.asarray(regression.coef_, np.float64),
        intercepts=np.asarray(regression.intercept_, np.float64),
        is_converged=not any(
            issubclass(each.category, exceptions.ConvergenceWarning) for each in said
        ),
    )


def _scikit_learn() -> tuple[Any, Any]:
    try:
        return (
            importlib.import_module("sklearn.linear_model"),
            importlib.import_module("sklearn.exceptions"),
        )
    except ImportError as exc:
        raise OutputError(
            "scikit-learn is not installed, and fits what is learnt",
            hint="pip install 'arc-halo[fit]'",
        ) from exc
