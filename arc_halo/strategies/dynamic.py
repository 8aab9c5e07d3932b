"""The strategy `dynamic`: probabilities averaged by weights that each input decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from arc_halo.errors import OutputError
from arc_halo.hookspecs import hookimpl
from arc_halo.outputs import CombineContext, Label, Outputs
from arc_halo.strategies._answers import (
    alike_columns,
    decided,
    features_of,
    fitted,
    in_order,
    probabilities,
    softmax,
    votes_of,
)
from arc_halo.strategies._regression import fit_regression
from arc_halo.strategies._schemas import choice, number, schema
from arc_halo.types import FusionStrategy

if TYPE_CHECKING:
    from arc_halo.outputs import Float64

ROUNDS = 50
TOLERANCE = 1e-6
"""The gate is fitted in so many rounds at most, or until no share changes by more."""

ACCURACIES = "accuracies"
"""What is fitted, and the key of the reactor's `memory`: {member: {domain: accuracy}}."""

BY = choice(
    "What makes a member count more: that its answer is certain (entropy), that it was right in "
    "the input's `domain` (accuracy), or what a gate makes of the input's `features` (features).",
    "entropy",
    "accuracy",
    "features",
)
TEMPERATURE = number(
    "What entropies are divided by: the larger, the less they matter.", 1.0, exclusiveMinimum=0
)


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="dynamic",
        version=1,
        summary="probabilities averaged by certainty, by measured accuracy, or by a fitted gate",
        combine_outputs=dynamic,
        fit_outputs=fit_dynamic,
        params_schema=schema(by=BY, temperature=TEMPERATURE),
        is_symmetric=True,
    )


def dynamic(
    outputs: Sequence[Outputs], context: CombineContext, *, by: str, temperature: float
) -> Outputs:
    """The sum of w_m g_m p_m over that of w_m g_m, with g_m of each input.

    By `entropy` g is exp(-H(p_m) / temperature), as Mavromatis et al., "Pack of LLMs", 2024 (arXiv
    2404.11531) weigh models by exp(-loss / temperature): unlike 1/H it is finite where a member is
    certain. By `accuracy` it is the share of examples of the input's domain that m decided rightly
    (Opitz and Shavlik, 1996), of all examples where the domain is unknown; what the reactor's
    memory says goes first. By `features` it is the softmax over members of a linear function of
    the input's features (Jacobs et al., "Adaptive mixtures of local experts", Neural Computation
    3, 1991). Raises `OutputError`.
    """
    import numpy as np

    alike_columns(outputs, context)
    shares = [
        probabilities(each, name) for name, each in zip(context.members, outputs, strict=True)
    ]
    weights = np.array(votes_of(context))[:, None]
    if by == "entropy":
        gates = _by_entropy(shares, temperature)
    elif by == "accuracy":
        gates = _by_accuracy(context)
    else:
        gates = _by_features(context)
    parts = weights * gates
    total = parts.sum(axis=0)
    # Where no member that counts is worth anything, the weights alone decide.
    parts = np.where(total > 0, parts, weights)
    parts = parts / parts.sum(axis=0)
    scores = sum(part[:, None] * each for part, each in zip(parts, shares, strict=True))
    return Outputs(scores=np.asarray(scores), classes=outputs[0].classes)


def fit_dynamic(
    outputs: Sequence[Outputs],
    labels: Sequence[Label],
    context: CombineContext,
    *,
    by: str,
    temperature: float,
) -> Mapping[str, Any]:
    """The accuracies of each member by domain, or the gate. Raises `OutputError`."""
    if by == "accuracy":
        return _fit_accuracies(outputs, labels, context)
    if by == "features":
        return _fit_gate(outputs, labels, context)
    raise OutputError(
        "by entropy there is nothing to fit", hint="params: {by: accuracy} or {by: features}"
    )


def _by_entropy(shares: Sequence[Float64], temperature: float) -> Float64:
    import numpy as np

    found = []
    for each in shares:
        logarithms = np.log(each, where=each > 0, out=np.zeros_like(each))
        found.append((each * logarithms).sum(axis=1) / temperature)
    certainties = np.array(found)
    # Relative to the most certain: exp(-H) of all members may be too small a number.
    return np.asarray(np.exp(certainties - certainties.max(axis=0)))


def _by_accuracy(context: CombineContext) -> Float64:
    import numpy as np

    known = _known_accuracies(context)
    domains = [_domain(given) for given in context.inputs]
    found = np.empty((len(context.members), len(domains)))
    for place, member in enumerate(context.members):
        said = known.get(member, {})
        for index, domain in enumerate(domains):
            value = said.get(domain, said.get(""))
            if value is None:
                raise OutputError(
                    f"nothing says how often {member} is right"
                    + (f" in the domain {domain!r}" if domain else ""),
                    hint="`arc-halo reactor fit NAME --data FILE` first",
                )
            found[place, index] = value
    return found


def _known_accuracies(context: CombineContext) -> dict[str, dict[str, float]]:
    """By member and domain, of all domains as ""; what is remembered before what was fitted."""
    known: dict[str, dict[str, float]] = {member: {} for member in context.members}
    if ACCURACIES in context.fitted:
        numbers, domains, members = fitted(context, ACCURACIES, "domains", "members")
        for member, row in zip(members, numbers.tolist(), strict=True):
            known.setdefault(member, {}).update(zip(domains, row, strict=True))
    remembered = context.state.get("memory", ACCURACIES) if context.state is not None else None
    for member, said in (remembered or {}).items():
        known.setdefault(member, {}).update(said)
    return known


def _by_features(context: CombineContext) -> Float64:
    import numpy as np

    coefficients, intercepts, members = fitted(context, "gate", "gate_intercepts", "members")
    numbers = features_of(context)
    if numbers.shape[1] != coefficients.shape[1] or not set(context.members) <= set(members):
        raise OutputError(
            f"the gate was fitted to {coefficients.shape[1]} features and {', '.join(members)}",
            hint="`arc-halo reactor fit NAME --data FILE` again",
        )
    places = [members.index(member) for member in context.members]
    return np.asarray(softmax((numbers @ coefficients.T + intercepts)[:, places]).T)


def _fit_accuracies(
    outputs: Sequence[Outputs], labels: Sequence[Label], context: CombineContext
) -> Mapping[str, Any]:
    import numpy as np

    for each in outputs:
        if each.scores is not None and each.labels is None:
            _columns(labels, each, each.scores.shape[1])
    right = np.array(
        [
            [said == label for said, label in zip(decided(each, name), labels, strict=True)]
            for name, each in zip(context.members, outputs, strict=True)
        ]
    )
    of_inputs = [_domain(given) for given in context.inputs]
    domains = [str(each) for each in in_order([each for each in of_inputs if each])]
    of_domains = [
        right[:, [each == domain for each in of_inputs]].mean(axis=1) for domain in domains
    ]
    return {
        ACCURACIES: np.column_stack([right.mean(axis=1), *of_domains]),
        "domains": ["", *domains],
    }


def _fit_gate(
    outputs: Sequence[Outputs], labels: Sequence[Label], context: CombineContext
) -> Mapping[str, Any]:
    """By expectation and maximisation, experts as they are (Jordan and Jacobs, 1994)."""
    import numpy as np

    numbers = features_of(context)
    alike_columns(outputs, context)
    shares = [probabilities(e, name) for name, e in zip(context.members, outputs, strict=True)]
    columns = _columns(labels, outputs[0], shares[0].shape[1])
    # What each member gives the right class; never nothing, or nobody could be to thank for it.
    likelihoods = np.column_stack([each[range(len(columns)), columns] for each in shares])
    likelihoods = likelihoods.clip(min=1e-12)
    count, members = likelihoods.shape
    gates = np.full((count, members), 1 / members)
    coefficients, intercepts = np.zeros((members, numbers.shape[1])), np.zeros(members)
    for _ in range(ROUNDS if members > 1 else 0):
        thanks = gates * likelihoods
        thanks /= thanks.sum(axis=1, keepdims=True)
        regression = fit_regression(
            np.tile(numbers, (members, 1)),
            [member for member in range(members) for _ in range(count)],
            max_iter=1000,
            weights=thanks.T.ravel(),
        )
        coefficients, intercepts = regression.coefficients, regression.intercepts
        if members == 2:  # of two classes there is the second's row alone
            coefficients = np.vstack([np.zeros_like(coefficients), coefficients])
            intercepts = np.concatenate([[0.0], intercepts])
        before, gates = gates, softmax(numbers @ coefficients.T + intercepts)
        if np.abs(gates - before).max() < TOLERANCE:
            break
    return {"gate": coefficients, "gate_intercepts": intercepts}


def _columns(labels: Sequence[Label], output: Outputs, width: int) -> list[int]:
    classes: Sequence[Label] = output.classes if output.classes is not None else range(width)
    places = {label: place for place, label in enumerate(classes)}
    if strange := [label for label in labels if label not in places]:
        raise OutputError(f"the label {strange[0]!r} is none of the members' classes")
    return [places[label] for label in labels]


def _domain(given: Any) -> str:
    return str(given.get("domain") or "") if isinstance(given, dict) else ""
