"""The strategy `self_consistency`: of texts the answer that most members give."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Context, Decimal

import numpy as np

from arc_halo.errors import OutputError
from arc_halo.hookspecs import hookimpl
from arc_halo.outputs import CombineContext, Outputs
from arc_halo.strategies._answers import votes_of
from arc_halo.strategies._schemas import choice, schema
from arc_halo.types import FusionStrategy

# A sign is none between words or numbers, and a comma only one between thousands.
NUMBER = re.compile(
    r"(?:(?<![\w)])[-+])?"
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE][-+]?\d{1,3})?"
)

NORMALIZE = choice(
    "What makes texts the same answer: all but space around them (strip), besides case and how "
    "much space is between words (casefold), their last number (number), their last line that "
    "says something, as casefold has it (last_line), or every character (none).",
    "strip",
    "casefold",
    "number",
    "last_line",
    "none",
)


@hookimpl
def arc_halo_fusion_strategies() -> Iterator[FusionStrategy]:
    yield FusionStrategy(
        name="self_consistency",
        version=1,
        summary="the text whose answer most members give",
        combine_outputs=self_consistency,
        answer_of=answer_of,
        params_schema=schema(normalize=NORMALIZE),
        numerics="exact",
    )


def self_consistency(
    outputs: Sequence[Outputs], context: CombineContext, *, normalize: str
) -> Outputs:
    """The answer with the largest sum of w_m [m gives it], in the words of the first who does.

    Wang et al., "Self-consistency improves chain of thought reasoning in language models", 2022
    (arXiv 2203.11171), with weighted members in place of samples. Of equals the one that the
    earliest member gives wins; `confidence` is its share of the weights. Raises `OutputError` for
    a member without texts, and for weights below 0.
    """
    weights = votes_of(context)
    for member, each in zip(context.members, outputs, strict=True):
        if each.texts is None:
            raise OutputError(
                f"{member} answers with {' and '.join(each.kinds)}, and texts are needed",
                hint="take voting for labels and scores",
            )
    texts = [each.texts for each in outputs if each.texts is not None]
    winners = [_winner(column, weights, normalize) for column in zip(*texts, strict=True)]
    total = sum(weights)
    return Outputs(
        texts=tuple(text for text, _ in winners),
        confidence=np.array([min(1.0, votes / total) for _, votes in winners]),
    )


def answer_of(text: str, *, normalize: str) -> str:
    """What a text says, whatever else it does."""
    return NORMALIZERS[normalize](text)


def _winner(texts: Sequence[str], weights: Sequence[float], normalize: str) -> tuple[str, float]:
    """The winning text, and the weight behind its answer."""
    votes: dict[str, float] = {}
    words: dict[str, str] = {}
    for text, weight in zip(texts, weights, strict=True):
        answer = answer_of(text, normalize=normalize)
        words.setdefault(answer, text)
        votes[answer] = votes.get(answer, 0.0) + weight
    best = max(votes, key=votes.__getitem__)  # the first of equals, as they came
    return words[best], votes[best]


def _casefold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _number(text: str) -> str:
    """The last number, however it is written: 1,200.50 is 1200.5. A text without one is itself."""
    found = NUMBER.findall(text)
    if not found:
        return text.strip()
    exact = Context(prec=len(found[-1]))
    value = Decimal(found[-1].replace(",", "")).normalize(exact)
    return str(value) if value else "0"


def _last_line(text: str) -> str:
    lines = [line for line in map(_casefold, text.splitlines()) if line]
    return lines[-1] if lines else ""


NORMALIZERS: Mapping[str, Callable[[str], str]] = {
    "none": str,
    "strip": str.strip,
    "casefold": _casefold,
    "number": _number,
    "last_line": _last_line,
}
