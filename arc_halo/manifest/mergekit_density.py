"""Where a density is 1 mergekit drops nothing, whatever else a method's parameters say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from arc_halo.manifest.mergekit_settings import Chain, Choice, rest

GAMMA = 0.01
"""The gamma of breadcrumbs that say none."""


def densities(found: Sequence[Chain | None]) -> Iterator[float]:
    """All that one can be; it is 1 where none is given."""
    for each in found:
        if each is None:
            continue
        for choice in _complete(each):
            yield from choice.value if isinstance(choice.value, list) else [choice.value]


def is_whole(density: object) -> bool:
    return isinstance(density, int | float) and density >= 1


def gamma_of(density: Chain, gamma: Chain) -> Chain | None:
    """What gamma has to be for ours to drop nothing either; None is what cannot be said."""
    found = list(densities([density]))
    if not any(map(is_whole, found)):
        return gamma
    if all(map(is_whole, found)):
        return (Choice(None, 0),)
    only = gamma[0] if gamma else Choice(None, GAMMA)
    if only == Choice(None, 0):
        return gamma
    # Filters of two parameters cannot both be asked, nor a gradient where it comes to 1.
    gradients = [each.value for each in density if isinstance(each.value, list)]
    if only.filter is not None or any(is_whole(each) for value in gradients for each in value):
        return None
    return tuple(
        Choice(each.filter, 0 if is_whole(each.value) else only.value)
        for each in _complete(density)
    )


def _complete(density: Chain) -> Chain:
    return density if rest(density) else (*density, Choice(None, 1))
