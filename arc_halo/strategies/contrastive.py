"""The strategy `contrastive`: what an expert says and amateurs do not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from arc_halo.errors import OutputError
from arc_halo.hookspecs import hookimpl
from arc_halo.outputs import CombineContext, Outputs
from arc_halo.strategies._answers import alike_columns, log_probabilities, probabilities
from arc_halo.strategies._schemas import choice, number, schema
from arc_halo.types import FusionStrategy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from arc_halo.outputs import Float64

FORM = choice(
    "log p_e - log p_a (difference), or (1 + beta) log p_e - beta log p_a (dexperts).",
    "difference",
    "dexperts",
)
ALPHA = number(
    "What the expert thinks less likely than this times its likeliest is out of the question; 0: "
    "nothing is.",
    0.1,
    minimum=0,
    maximum=1,
)
BETA = number("How much the amateurs count in the form dexperts.", 0.5, minimum=0)


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="contrastive",
        version=1,
        summary="the expert's logits less the amateurs'; the primary member is the expert",
        combine_outputs=contrastive,
        params_schema=schema(form=FORM, alpha=ALPHA, beta=BETA),
        min_members=2,
    )


def contrastive(
    outputs: Sequence[Outputs], context: CombineContext, *, form: str, alpha: float, beta: float
) -> Outputs:
    """Logits log p_e - log p_a where p_e >= alpha max p_e, and -inf elsewhere.

    Li et al., "Contrastive decoding", 2022 (arXiv 2210.15097); with `form: dexperts` they are
    (1 + beta) z_e - beta z_a, where z are log p, which are logits: DExperts (Liu et al., 2021,
    arXiv 2105.03023) with the expert as its own base where alpha is 0, and O'Brien and Lewis, 2023
    (arXiv 2309.09117) where it is not. The primary member is the expert, and of all others, the
    amateurs, log p_a is the mean by weights. Raises `OutputError` without exactly one primary, and
    where an amateur rules out what the expert does not.
    """
    alike_columns(outputs, context)
    logarithms = [
        log_probabilities(each, name) for name, each in zip(context.members, outputs, strict=True)
    ]
    place = _expert(context)
    expert = logarithms.pop(place)
    amateur = _mean(logarithms, [w for i, w in enumerate(context.weights) if i != place])
    thought = probabilities(outputs[place], context.members[place])
    least = alpha * thought.max(axis=1, keepdims=True)
    own, other = (1.0, 1.0) if form == "difference" else (1.0 + beta, beta)
    logits = _contrast(expert, amateur, thought >= least, own, other)
    return Outputs(scores=logits, meaning="logits", classes=outputs[place].classes)


def _expert(context: CombineContext) -> int:
    places = [place for place, role in enumerate(context.roles) if role == "primary"]
    if len(places) != 1 or len(context.members) < 2:
        raise OutputError(
            f"{len(places)} primary members of {len(context.members)} answer, and it takes one, "
            "the expert, and amateurs beside it",
            hint="give the expert alone `role: primary`",
        )
    return places[0]


def _mean(logarithms: Sequence[Float64], weights: Sequence[float]) -> Float64:
    total = sum(weights)
    if not total:
        raise OutputError("the weights of the amateurs add up to 0", hint="give one another weight")
    found: Float64 | None = None
    for weight, each in zip(weights, logarithms, strict=True):
        if weight:
            found = weight / total * each if found is None else found + weight / total * each
    assert found is not None
    return found


def _contrast(
    expert: Float64, amateur: Float64, is_likely: NDArray[np.bool_], own: float, other: float
) -> Float64:
    import numpy as np

    is_plausible = is_likely & np.isfinite(expert)
    logits = np.full(expert.shape, -math.inf)
    logits[is_plausible] = own * expert[is_plausible]
    if other:
        if not np.isfinite(amateur[is_plausible]).all():
            raise OutputError(
                "an amateur gives no probability at all to what the expert thinks plausible",
                hint="have it answer with logits, or with probabilities above 0",
            )
        logits[is_plausible] -= other * amateur[is_plausible]
    return logits
