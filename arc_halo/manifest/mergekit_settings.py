"""A parameter of a mergekit document: a value, a gradient, or filters with one of them for each.

A chain is what holds for one parameter after all places that may say so were asked; it is placed
in a reactor as a value of the whole merge, values of slices, and rules for tensors.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Refuse = Callable[[str], None]
Translate = Callable[[Any], Any]

BEFORE, PREFIX, AFTER = (
    ("model.embed_tokens.weight",),
    "model.layers.",
    ("model.norm.weight", "lm_head.weight"),
)
"""How a Llama calls what precedes its layers, the layers, and what follows them."""

_NUMBERED = re.compile(r"^\.?\d|(?:layers?|blocks?|\bh)\.\d")


@dataclass(frozen=True, slots=True)
class Choice:
    """A value for the tensors that have `filter` in their names; None has all of them."""

    filter: str | None
    value: Any

    @property
    def is_numbered(self) -> bool:
        """Whether it may be about the number of a layer."""
        return self.filter is not None and _NUMBERED.search(self.filter) is not None


Chain = tuple[Choice, ...]


def choices(setting: Any, where: str, refuse: Refuse) -> Chain:
    """The choices of one setting; the first that matches is meant."""
    listed = setting if isinstance(setting, list) else [setting]
    if not any(isinstance(each, dict) for each in listed):
        return (Choice(None, setting),) if _is_value(setting, where, refuse) else ()
    if not all(isinstance(each, dict) for each in listed):
        refuse(f"{where}: filters and values stand in one list")
        return ()
    found = []
    for index, each in enumerate(listed):
        place = f"{where}[{index}]"
        if not each.keys() <= {"filter", "value"} or "value" not in each:
            refuse(f"{place}: a `filter` and a `value` are needed")
        elif not isinstance(each.get("filter"), str | None):
            refuse(f"{place}.filter: it is no text")
        elif _is_value(each["value"], f"{place}.value", refuse):
            found.append(Choice(_meant(each.get("filter")), each["value"]))
    return tuple(found)


def chain(*settings: Chain) -> Chain:
    """Those that can be reached: a setting is asked where no filter of those before it matches."""
    reached: dict[str | None, Choice] = {}
    for choice in (each for setting in settings for each in setting):
        if None in reached:
            break
        reached.setdefault(choice.filter, choice)
    return tuple(reached.values())


def rest(found: Chain) -> Choice | None:
    """The choice for tensors that no filter names."""
    return found[-1] if found and found[-1].filter is None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where a manifest says what a chain does: in general, in slices, by rules."""

    everywhere: Any = None
    of_slices: Mapping[int, Any] = field(default_factory=dict)
    rules: tuple[tuple[tuple[str, ...], Any], ...] = ()


def placed(
    chains: Sequence[Chain | None], layers: Sequence[range], where: str, refuse: Refuse
) -> Placed:
    """Where the chains of the slices go; None is one that nothing depends on.

    `layers` are those of the result that each slice makes.
    """
    present = {index: each for index, each in enumerate(chains) if each is not None}
    first = next(iter(present.values()), ())
    if all(each == first for each in present.values()):
        return _placed_once(first)
    rules: list[tuple[tuple[str, ...], Any]] = []
    for index, found in present.items():
        for choice in reversed(found):
            if choice.filter is None:
                continue
            if not _is_inner(choice.filter):
                refuse(
                    f"{where}: slices differ in it, and the filter {choice.filter!r} is of more "
                    "than names inside of layers"
                )
            if patterns := tuple(_patterns(choice.filter, index, layers)):
                rules.append((patterns, choice.value))
    of_slices = {index: last.value for index, each in present.items() if (last := rest(each))}
    return Placed(of_slices=of_slices, rules=tuple(rules))


def _placed_once(found: Chain) -> Placed:
    # Here the first that matches is meant, in a manifest the last.
    rules = [
        (("*",) if each.filter is None else (f"*{glob.escape(each.filter)}*",), each.value)
        for each in reversed(found)
    ]
    last = rest(found)
    if last is None or isinstance(last.value, list):
        return Placed(rules=tuple(rules))
    return Placed(everywhere=last.value, rules=tuple(rules[1:]))


def _patterns(text: str, index: int, layers: Sequence[range]) -> Iterator[str]:
    """The names with a text in them that a slice makes, if they are a Llama's."""
    if index == 0:
        yield from (name for name in BEFORE if text in name)
    if not any(word in text for word in ("embed", "lm_head")):
        yield from (f"*layers.{layer}.*{glob.escape(text)}*" for layer in layers[index])
    if index == len(layers) - 1:
        yield from (name for name in AFTER if text in name)


def _is_inner(text: str) -> bool:
    """Whether it can only be found in what follows the number of a layer, or outside of layers."""
    return not (_NUMBERED.search(text) or text.startswith(".") or text in PREFIX or PREFIX in text)


def _meant(text: str | None) -> str | None:
    return None if text in ("*", "") else text


def _is_value(value: Any, where: str, refuse: Refuse) -> bool:
    if isinstance(value, list):
        if not value:
            refuse(f"{where}: it is an empty list")
        elif all(_is_number(e) for e in value) or all(isinstance(e, bool) for e in value):
            return True
        else:
            refuse(f"{where}: it is a gradient of neither numbers nor flags")
        return False
    if isinstance(value, bool | str) or _is_number(value):
        return True
    refuse(f"{where}: it is no value")
    return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
