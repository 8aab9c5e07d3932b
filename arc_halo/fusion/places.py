"""Where the tensors of a merge come from: names matched, or layers cut in slices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from arc_halo.errors import IncompatibleModelsError
from arc_halo.fusion.compatibility import Table
from arc_halo.fusion.layers import Layered, is_before_layers, layered, position, stacks
from arc_halo.fusion.recipes import FusionRecipe, LayerSlice


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A tensor of the result: what it is called in each input, and where among the layers it is.

    `names` are by the place of the member. `position` is from 0 to 1.
    """

    name: str
    names: Mapping[int, str]
    base: str | None
    position: float
    part: LayerSlice | None = None


def whole(first: Table, recipe: FusionRecipe) -> Iterator[Place]:
    counts = stacks(first.tensors)
    for name in first.tensors:
        found = layered(name)
        yield Place(
            name=name,
            names=dict.fromkeys(range(len(recipe.members)), name),
            base=name if recipe.fuses_base else None,
            position=position(found.index, counts[found.stack]) if found else 0.0,
        )


def sliced(recipe: FusionRecipe, members: Sequence[Table], base: Table | None) -> Iterator[Place]:
    """What precedes the layers is taken of the first slice, what follows them of the last."""
    stack = _only_stack([members[p] for p in sorted({p for s in recipe.slices for p in s.layers})])
    yield from _outside(recipe, members, recipe.slices[0], before=True)
    start = 0
    for part in recipe.slices:
        _check_slice(part, members, stack)
        yield from _slice(part, members, base, stack, start)
        start += _length(part)
    yield from _outside(recipe, members, recipe.slices[-1], before=False)


def _only_stack(members: Sequence[Table]) -> str:
    """What the one stack of layers is called that each of them has."""
    for member in members:
        counts = stacks(member.tensors)
        if len(counts) != 1 or counts.keys() != stacks(members[0].tensors).keys():
            listed = ", ".join(repr(stack) for stack in sorted(counts)) or "none"
            raise IncompatibleModelsError(
                f"{member.name} cannot be cut in slices: its stacks of layers are {listed}",
                hint="slices are for models with one stack of layers, of one name",
            )
    return next(iter(stacks(members[0].tensors)))


def _check_slice(part: LayerSlice, members: Sequence[Table], stack: str) -> None:
    lengths = {members[place].name: end - first for place, (first, end) in part.layers.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{count} of {name}" for name, count in lengths.items())
        raise IncompatibleModelsError(
            f"a slice takes {told} layers", hint="take as many layers of each member"
        )
    for place, (_, end) in part.layers.items():
        count = stacks(members[place].tensors).get(stack, 0)
        if end > count:
            raise IncompatibleModelsError(
                f"a slice takes layers up to {end} of {members[place].name}, which has {count}",
                hint="the first layer is 0; the end is not taken along",
            )


def _length(part: LayerSlice) -> int:
    first, end = next(iter(part.layers.values()))
    return end - first


def _slice(
    part: LayerSlice, members: Sequence[Table], base: Table | None, stack: str, start: int
) -> Iterator[Place]:
    first, end = next(iter(part.layers.values()))
    base_first = first if part.base is None else part.base
    rests = {place: _by_layer(members[place]) for place in part.layers}
    for step in range(end - first):
        # What one of them lacks is told of afterwards.
        all_rests = [
            rest
            for place, (begin, _) in part.layers.items()
            for rest in rests[place].get(begin + step, ())
        ]
        for rest in dict.fromkeys(all_rests):
            found = Layered(stack, first + step, rest)
            yield Place(
                name=found.at(start + step),
                names={place: found.at(begin + step) for place, (begin, _) in part.layers.items()},
                base=found.at(base_first + step) if base else None,
                position=position(step, end - first),
                part=part,
            )


def _by_layer(member: Table) -> dict[int, list[str]]:
    """What the tensors of each layer are called in it."""
    rests: dict[int, list[str]] = {}
    for name in member.tensors:
        found = layered(name)
        if found is not None:
            rests.setdefault(found.index, []).append(found.rest)
    return rests


def layer_problems(places: Sequence[Place]) -> Iterator[str]:
    """Tensors that some layers of the result have and others lack."""
    rests: dict[int, set[str]] = {}
    for place in places:
        found = layered(place.name)
        if found is not None:
            rests.setdefault(found.index, set()).add(found.rest)
    every = set().union(*rests.values()) if rests else set()
    for index, found_rests in rests.items():
        for rest in every - found_rests:
            yield f"layer {index} would have no {rest}, which others have"


def _outside(
    recipe: FusionRecipe, members: Sequence[Table], part: LayerSlice, *, before: bool
) -> Iterator[Place]:
    for name in dict.fromkeys(name for place in part.layers for name in members[place].tensors):
        if layered(name) is None and is_before_layers(name) == before:
            yield Place(
                name=name,
                names=dict.fromkeys(part.layers, name),
                base=name if recipe.fuses_base else None,
                position=0.0,
                part=part,
            )
