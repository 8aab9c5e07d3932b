"""Answers fused by the reactor's strategy: inputs in groups that the same members answered."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from arc_halo.errors import ArcHaloError, OutputError
from arc_halo.outputs import CognitiveState, CombineContext, Label, Outputs, joined
from arc_halo.plugins import Provided
from arc_halo.reactors.asking import Cover
from arc_halo.reactors.policies import Voice
from arc_halo.types import FusionStrategy, JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Fuser:
    """A strategy with all that it is called with, whatever is fused.

    What it says when it fails goes through `cover`.
    """

    reactor: str
    provided: Provided[FusionStrategy]
    params: JsonObject
    fitted: Mapping[str, Any] = field(default_factory=dict)
    state: CognitiveState | None = None
    cover: Cover = str

    def fuse(self, voices: Sequence[Voice], inputs: Sequence[Any]) -> Outputs:
        """One answer to each input, of the members that answered it.

        Raises `OutputError` for an input that nobody answered, and what the strategy raises.
        """
        parts = [
            (group, self._fuse(chosen, group, inputs))
            for chosen, group in _groups(voices, len(inputs))
        ]
        if len(parts) == 1 and parts[0][0] == list(range(len(inputs))):
            return parts[0][1]
        return joined(parts, len(inputs))

    def _fuse(
        self, voices: Sequence[Voice], indexes: Sequence[int], inputs: Sequence[Any]
    ) -> Outputs:
        if not voices:
            raise OutputError(f"{self.reactor}: nobody answered to input {indexes[0]}")
        combine = self.provided.item.combine_outputs
        assert combine is not None
        if self.provided.item.is_symmetric:
            voices = sorted(voices, key=lambda voice: voice.member.model)
        context = self._context(voices, [inputs[index] for index in indexes])
        outputs = [voice.answers(indexes) for voice in voices]
        with self._naming_failures():
            fused = combine(outputs, context, **self.params)
            if not isinstance(fused, Outputs):
                raise OutputError(f"it gave {type(fused).__name__}, not Outputs")
            fused.check(len(indexes))
        return fused

    def learn(
        self, voices: Sequence[Voice], inputs: Sequence[Any], labels: Sequence[Label]
    ) -> Mapping[str, Any]:
        """What the strategy learns from examples, each of which all members answered."""
        fit = self.provided.item.fit_outputs
        if fit is None:
            raise OutputError(
                f"{self.reactor}: there is nothing to fit for the strategy "
                f"{self.provided.item.name!r}",
                hint="it runs as it is; stacking and dynamic are fitted",
            )
        outputs = [voice.answers(range(len(inputs))) for voice in voices]
        with self._naming_failures():
            return fit(outputs, labels, self._context(voices, inputs), **self.params)

    def answer_of(self, text: str) -> str:
        """What an answer in words comes to, as the strategy has it: by this texts are compared."""
        comes_to = self.provided.item.answer_of
        if comes_to is None:
            return text.strip()
        with self._naming_failures():
            return comes_to(text, **self.params)

    def _context(self, voices: Sequence[Voice], inputs: Sequence[Any]) -> CombineContext:
        return CombineContext(
            members=tuple(voice.member.model for voice in voices),
            weights=tuple(voice.weight for voice in voices),
            roles=tuple(voice.member.role for voice in voices),
            inputs=inputs,
            fitted=self.fitted,
            state=self.state,
        )

    @contextmanager
    def _naming_failures(self) -> Iterator[None]:
        """Errors of the strategy, with its name and the reactor's."""
        name = self.provided.item.name
        try:
            yield
        except ArcHaloError as exc:
            message = f"{self.reactor}: {name}: {self.cover(exc.message)}"
            hint = None if exc.hint is None else self.cover(exc.hint)
            raise OutputError(message, hint=hint, code=exc.error_code) from exc
        except Exception as exc:
            place = traceback.extract_tb(exc.__traceback__)[-1]
            raise OutputError(
                f"{self.reactor}: the strategy {name!r} failed: {self.cover(repr(exc))} "
                f"({place.filename}:{place.lineno})"
            ) from exc


def _groups(voices: Sequence[Voice], count: int) -> list[tuple[list[Voice], list[int]]]:
    """The inputs by who answered them, and with what weights."""
    if all(len(v.asked.indexes) == count and v.factors is None for v in voices):
        return [(list(voices), list(range(count)))]
    answering: list[list[tuple[int, float]]] = [[] for _ in range(count)]
    for number, voice in enumerate(voices):
        for place, index in enumerate(voice.asked.indexes):
            answering[index].append((number, voice.weight_of(place)))
    groups: dict[tuple[tuple[int, float], ...], list[int]] = {}
    for index, heard in enumerate(answering):
        if heard and not sum(weight for _, weight in heard):
            # Validators leave nothing of it: which answer is the least bad they do not say.
            heard = [(number, voices[number].weight) for number, _ in heard]
        groups.setdefault(tuple(heard), []).append(index)
    return [
        ([replace(voices[number].part(group), weight=weight, factors=None)
          for number, weight in heard], group)
        for heard, group in groups.items()
    ]  # fmt: skip
