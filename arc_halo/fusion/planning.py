"""From a recipe to its tensors: names matched, params resolved, and what does not fit refused."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from arc_halo.errors import IncompatibleModelsError
from arc_halo.fusion.adapters import Fitted, fit, source_of
from arc_halo.fusion.aligning import Aligned, aligned_tables
from arc_halo.fusion.compatibility import (
    Table,
    is_computable,
    name_problems,
    refuse,
    source_problems,
)
from arc_halo.fusion.places import Place, layer_problems, sliced, whole
from arc_halo.fusion.recipes import FusionRecipe, canonical
from arc_halo.fusion.tensor_recipes import TensorRecipe, TensorSource
from arc_halo.fusion.vocabularies import Vocabularies
from arc_halo.manifest.params import as_number, takes_lists
from arc_halo.tensors import dtypes
from arc_halo.types import JsonObject


def plan_tensors(
    recipe: FusionRecipe,
    members: Sequence[Table],
    base: Table | None = None,
    adapters: Mapping[str, Table] | None = None,
) -> list[TensorRecipe]:
    """The tensors of a merge, in the order of the first member's file.

    `adapters` has the tensors of those that the members name. Raises `IncompatibleModelsError`,
    which lists the first ten tensors concerned, and for a rule that no tensor matches.
    """
    own = members
    if recipe.vocabularies is not None:
        members, base = _aligned(recipe.vocabularies, members, base)
    base = base if recipe.fuses_base else None
    tables = [*members, *([base] if base else [])]
    problems = [] if recipe.slices else list(name_problems(tables))
    places = list(sliced(recipe, members, base) if recipe.slices else whole(members[0], recipe))
    for place in places:
        sources = [(tables[index], name) for index, name in _sources(place, len(members))]
        absent = [(table, name) for table, name in sources if name not in table.tensors]
        if not absent:
            problems += source_problems(sources, is_free=recipe.out_dtype is not None)
        elif recipe.slices:
            problems += [f"{name}: not in {table.name}" for table, name in absent]
    if recipe.slices:
        problems += layer_problems(places)
    refuse(tables, problems)
    _check_rules(recipe, [place.name for place in places])
    fitted = [
        [fit(adapter, (adapters or {})[adapter.model], table) for adapter in member.adapters]
        for member, table in zip(recipe.members, own, strict=True)
    ]
    planned = [_tensor_recipe(recipe, place, members, base, fitted) for place in places]
    refuse(
        tables,
        [
            f"{each.name}: dtype {each.dtype} cannot be averaged"
            for each in planned
            if each.strategy is None
            and len({source.digest for source in each.sources if source.digest}) > 1
        ],
    )
    return planned


def _aligned(
    vocabularies: Vocabularies, members: Sequence[Table], base: Table | None
) -> tuple[Sequence[Table], Table | None]:
    tables = aligned_tables(vocabularies, [*members, *([base] if base else [])])
    count = len(members)
    return tables[:count], tables[count] if base else None


def _sources(place: Place, member_count: int) -> Iterator[tuple[int, str]]:
    yield from place.names.items()
    if place.base is not None:
        yield member_count, place.base


def _check_rules(recipe: FusionRecipe, names: Sequence[str]) -> None:
    for rule in recipe.rules:
        for pattern in rule.match:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise IncompatibleModelsError(
                    f"a rule is for {pattern!r}, and no tensor has such a name",
                    hint=f"tensors are called {names[0]!r}; * stands for any text, and [[] for a ["
                    if names
                    else "the models have no tensors",
                )


def _tensor_recipe(
    recipe: FusionRecipe,
    place: Place,
    members: Sequence[Table],
    base: Table | None,
    fitted: Sequence[Sequence[Fitted]],
) -> TensorRecipe:
    used = _ordered(recipe, place)
    sources = tuple(
        _adapted(_source(members[index], place.names[index]), fitted[index]) for index in used
    )
    first = members[used[0]].tensors[place.names[used[0]]]
    is_fused = is_computable(first.dtype)
    params, weights = _resolved(recipe, place, used)
    dtype = recipe.out_dtype if is_fused and recipe.out_dtype else first.dtype
    is_random = is_fused and recipe.strategy.is_random
    roots = [recipe.members[index].root for index in used] if is_random else []
    return TensorRecipe(
        name=place.name,
        dtype=dtype,
        shape=tuple(first.shape),
        size_bytes=dtypes.size_bytes(dtype, first.shape),
        strategy=recipe.strategy if is_fused else None,
        strategy_version=recipe.strategy_version,
        params=params,
        weights=tuple(weights[index] for index in used),
        members=sources,
        base=_source(base, place.base) if base and place.base else None,
        roots=tuple(root for root in roots if root is not None),
        compute=recipe.compute,
    )


def _ordered(recipe: FusionRecipe, place: Place) -> list[int]:
    """The members of a tensor, by name where the strategy takes them in any order.

    Sums are then rounded in one order, whichever it is that the recipe has them in.
    """
    used = list(place.names)
    if not recipe.strategy.is_symmetric:
        return used

    def name(index: int) -> tuple[str, str, float, bytes]:
        member = recipe.members[index]
        adapters = [adapter.identity() for adapter in member.adapters]
        return member.model, place.names[index], member.weight, canonical({"adapters": adapters})

    return sorted(used, key=name)


def _source(table: Table, name: str) -> TensorSource:
    tensor = table.tensors[name]
    rows = tensor.rows if isinstance(tensor, Aligned) else None
    return replace(source_of(table, name), rows=rows)


def _adapted(source: TensorSource, fitted: Sequence[Fitted]) -> TensorSource:
    """The source with what each adapter does to it, one after another."""
    name = source.tensor
    if source.rows and any(name in each.replaced or name in each.updates for each in fitted):
        raise IncompatibleModelsError(
            f"{name} of {source.model}, whose rows are to be aligned, is changed by an adapter",
            hint="first merge the adapter by itself: `strategy: passthrough`, without `tokenizer`",
        )
    for each in fitted:
        source = each.replaced.get(name, source)
        if name in each.updates:
            source = replace(source, updates=(*source.updates, each.updates[name]))
    return source


def _resolved(
    recipe: FusionRecipe, place: Place, used: Sequence[int]
) -> tuple[JsonObject, dict[int, float]]:
    """The params and weights of one tensor of the members used, gradients taken at its layer."""
    params = _Params(recipe.params)
    weights: dict[int, Any] = {index: m.weight for index, m in enumerate(recipe.members)}
    if place.part is not None:
        params.override(place.part.params)
        weights |= place.part.weights
    for rule in recipe.rules:
        if any(fnmatchcase(place.name, pattern) for pattern in rule.match):
            params.override(rule.params)
            weights |= rule.weights
    properties = recipe.strategy.params_schema.get("properties", {})
    return (
        {
            name: value
            if takes_lists(properties.get(name, {}))
            else _typed(params.at(name, place.position, used), properties.get(name, {}))
            for name, value in params.of_all.items()
        },
        {index: float(at(weight, place.position)) for index, weight in weights.items()},
    )


def _typed(value: Any, schema: JsonObject) -> Any:
    """What a gradient gives for a whole number is rounded."""
    is_between = isinstance(value, float) and schema.get("type") == "integer"
    return round(value) if is_between else as_number(value, schema)


class _Params:
    """Params as they are overridden, for all members or for some."""

    def __init__(self, params: JsonObject) -> None:
        self.of_all: JsonObject = dict(params)
        self._of_some: dict[str, JsonObject] = {}

    def override(self, params: JsonObject) -> None:
        for name, value in params.items():
            if isinstance(value, dict):
                self._of_some[name] = {**self._of_some.get(name, {}), **value}
            else:
                self.of_all[name] = value
                self._of_some.pop(name, None)

    def at(self, name: str, position: float, members: Sequence[int]) -> Any:
        """The value at a layer: one, or a list of the members' where they differ."""
        some = self._of_some.get(name, {})
        usual = self.of_all[name]
        values = [at(some.get(str(member), usual), position) for member in members]
        return values[0] if all(value == values[0] for value in values) else values


def at(value: Any, place: float) -> Any:
    """A gradient's value at a place from 0 to 1; what is no gradient stays.

    Between numbers on the straight line, of anything else the one whose turn it is.
    """
    if not isinstance(value, list | tuple):
        return value
    steps = place * (len(value) - 1)
    if all(isinstance(each, int | float) and not isinstance(each, bool) for each in value):
        low = min(math.floor(steps), len(value) - 1)
        high = min(low + 1, len(value) - 1)
        if steps == low:
            return value[low]
        return value[low] + (value[high] - value[low]) * (steps - low)
    return value[math.floor(steps)]
