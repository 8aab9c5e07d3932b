"""Rows of several vocabularies: which row of which model stands for a token of the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from arc_halo.manifest.tokenizers import Tokenizer, with_tokens
from arc_halo.types import JsonObject

Run = tuple[int, ...]
"""Rows that follow one another: how many, then the sources of each, as pairs of a source and its
first row. Of several sources the row is their mean, of none it is zero."""


@dataclass(frozen=True, kw_only=True)
class Vocabularies:
    """The tokenizers of a merge, and which of them decides what tokens the result has.

    `chosen` is the place of a member, or `base`, or `union`: the tokens of the base (without one,
    of the first member), then what the members have beside, in their order.
    """

    chosen: int | Literal["union", "base"]
    members: tuple[Tokenizer, ...]
    base: Tokenizer | None = None
    pad_to_multiple_of: int = 1

    @property
    def all(self) -> tuple[Tokenizer, ...]:
        """Those of the members, then the base's: sources are counted in this order."""
        return (*self.members, *([self.base] if self.base else []))

    @cached_property
    def result(self) -> Tokenizer:
        """The tokenizer of the merged model."""
        if isinstance(self.chosen, int):
            return self.members[self.chosen]
        first = self.base or self.members[0]
        if self.chosen == "base":
            return first
        return with_tokens(first, self._beside(first), first.size)

    def _beside(self, first: Tokenizer) -> Iterator[tuple[str, Tokenizer]]:
        seen = set(first.vocabulary)
        for member in self.members:
            for token in member.tokens:
                if token is not None and token not in seen:
                    seen.add(token)
                    yield token, member

    @cached_property
    def row_count(self) -> int:
        """The rows of the result's matrices, padding included."""
        return -(-self.result.size // self.pad_to_multiple_of) * self.pad_to_multiple_of

    @cached_property
    def runs(self) -> tuple[tuple[Run, ...], ...]:
        """For the members and then the base, where each row of the result comes from.

        A token that a model lacks takes the base's row, or else that of the only other model which
        has it, or else the mean of those that have it. A row of no token is zero.
        """
        rows: list[list[list[int]]] = [[] for _ in self.all]
        for token in self.result.tokens:
            held = [] if token is None else self._holders(token)
            filled = held[-1:] if held and held[-1][0] == len(self.members) else held
            others = tuple(number for pair in filled for number in pair)
            own = dict(held)
            for place, runs in enumerate(rows):
                _append(runs, (place, own[place]) if place in own else others)
        for runs in rows:
            for _ in range(self.row_count - self.result.size):
                _append(runs, ())
        return tuple(tuple(map(tuple, runs)) for runs in rows)

    def _holders(self, token: str) -> list[tuple[int, int]]:
        return [
            (place, row)
            for place, each in enumerate(self.all)
            if (row := each.vocabulary.get(token)) is not None
        ]

    def identity(self) -> JsonObject:
        """All that decides the rows."""
        return {
            "chosen": self.chosen,
            "members": [each.digest.hex() for each in self.members],
            "base": self.base.digest.hex() if self.base else None,
            "pad_to_multiple_of": self.pad_to_multiple_of,
        }


def contradict(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether a token has two ids in them, or an id two tokens."""
    return one.vocabulary != other.vocabulary and any(
        other.vocabulary.get(token, id_) != id_
        or (id_ < other.size and other.tokens[id_] not in (None, token))
        for token, id_ in one.vocabulary.items()
    )


def _append(runs: list[list[int]], sources: Sequence[int]) -> None:
    """A row more: of the last run, if it goes on there."""
    if runs and len(runs[-1]) == len(sources) + 1:
        count, *last = runs[-1]
        if all(
            last[i] == sources[i] and last[i + 1] + count == sources[i + 1]
            for i in range(0, len(last), 2)
        ):
            runs[-1][0] += 1
            return
    runs.append([1, *sources])
